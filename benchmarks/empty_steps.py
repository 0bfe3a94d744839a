"""What a step in which nothing was learnt should do: move the weights by Adam's momentum, or leave them alone.

    python benchmarks/empty_steps.py [--seeds 5] [--jobs 1] [--out runs/empty_steps]

A step without any gradient (every group all right or all wrong) is an empty step. Each cell is run twice on each seed: once as the scripts
do it, which leave weights and optimiser alone, and once with gradients of zeros, on which Adam moves by its momentum. Settings are those of
the testbed `few` of claims.py with the learning rates that were tuned there. In `scarce`, a step has 2 problems in place of 8, which makes
most of the optimiser steps empty. The same command goes on after an interruption. One thread a run.
"""
from __future__ import annotations

import importlib
import json
import statistics
import sys
from pathlib import Path

import torch
from claims import Setting, command_of, finals
from curves import height, listed, minus, read, shown
from measure import show
from sweep import ROOT, Parser, run_all

RATE, MOVES = 1.2e-3, "moves.json"  # the learning rate that claims.py tuned for every method on `few`; a run's file of our numbers
SCARCE = "--problems_per_step 2 --max_steps 60 --eval_steps 10"  # argparse takes the last value of a flag
WAYS = ("moved", "skipped")
SCORES = ("area", "last three evaluations", "last evaluation")
CELLS = {method: command_of("few", method, "uniform", Setting(RATE)) for method in ("GRPO", "NFT")}
CELLS["GRPO, scarce"] = [*CELLS["GRPO"], *SCARCE.split()]


def run_one(way: str, command: list[str]) -> None:
    """Runs a training script in this process and writes MOVES: how many steps of the optimiser there were, and how far they went."""
    sys.path.insert(0, str(ROOT))
    from common.launch import parse_command_line, run_script
    from common.policy import optim

    clip, step = optim.clip_gradients, optim.take_step
    empty, distances = [], []

    def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        return [p for group in optimizer.param_groups for p in group["params"]]

    def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float, passes: int) -> torch.Tensor:
        norm = clip(optimizer, max_norm, passes)
        empty.append(bool(norm == 0))
        for parameter in parameters_of(optimizer) if empty[-1] else ():
            parameter.grad = torch.zeros_like(parameter) if way == "moved" else None
        return norm

    def take_step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
        before = [p.detach().clone() for p in parameters_of(optimizer)]
        step(optimizer, learning_rate)
        moved = [(p.detach() - old).square().sum() for p, old in zip(parameters_of(optimizer), before, strict=True)]
        distances.append(torch.stack(moved).sum().sqrt().item())

    optim.clip_gradients, optim.take_step = clip_gradients, take_step  # before the script imports them
    sys.argv = command
    module = importlib.import_module(Path(command[0]).stem)
    config = parse_command_line(module.Config, module.__file__)
    run_script(module.train, config)
    (Path(config.output_dir) / MOVES).write_text(json.dumps({
        "steps": len(empty), "empty": sum(empty), "all_moves": sum(distances),  # of the optimiser; lengths of its moves
        "empty_moves": sum(distance for distance, is_empty in zip(distances, empty, strict=True) if is_empty)}))


def measured(folders: list[Path]) -> dict[str, list[float]]:
    """Columns of the table, by name; a value for each run."""
    runs, moves = [read(folder) for folder in folders], [json.loads((folder / MOVES).read_text()) for folder in folders]
    scores = [height(run["steps"]) for run in runs], finals(runs), [list(run["steps"].values())[-1] for run in runs]
    return dict(zip(SCORES, scores, strict=True)) | {name: [move[name] for move in moves] for name in moves[0]}


def form(value: float) -> str:
    """A count, or three digits."""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def main() -> None:
    """The command line."""
    if len(sys.argv) > 3 and sys.argv[3] in WAYS:  # a run, as `run_all` starts it: --output_dir FOLDER WAY SCRIPT FLAGS
        run_one(sys.argv[3], [sys.argv[4], *sys.argv[1:3], *sys.argv[5:]])
        return
    parser = Parser(__doc__, "runs/empty_steps")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    asked, _ = parser.parse()
    folders = {(cell, way, seed): asked.out.absolute() / cell.lower().replace(", ", "-") / way / f"seed-{seed}"
               for cell in asked.cells for seed in asked.seeds for way in WAYS}
    run_all({folder: ["benchmarks/empty_steps.py", way, *CELLS[cell], "--seed", str(seed)]
             for (cell, way, seed), folder in folders.items()}, asked.jobs)
    rows, verdicts = [], []
    for cell in asked.cells:
        values = {way: measured([folders[cell, way, seed] for seed in asked.seeds]) for way in WAYS}
        for way, own in values.items():
            rows += [{"cell": cell, "empty steps": way, "seed": str(seed), **{name: form(of[i]) for name, of in own.items()}}
                     for i, seed in enumerate(asked.seeds)]
        for name in SCORES:
            moved, skipped = values["moved"][name], values["skipped"][name]
            verdicts.append({"cell": cell, "": name, **{way: form(statistics.fmean(values[way][name])) for way in WAYS},
                             "skipped - moved": shown(minus(skipped, moved), "+.3f", what="95 % t interval ")})
    show(f"\n{listed(rows)}\n\n{listed(verdicts)}")


if __name__ == "__main__":
    main()
