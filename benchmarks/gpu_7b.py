"""What the README says fits, run with random weights: each script on cards of 12 to 80 GB, memory beside the plan, and speed.

    python benchmarks/gpu_7b.py [--cards 24 48 ...] [--scripts train_grpo train_ppo ...]

Random weights tell speed and memory, and nothing about learning; rewards are coin flips, and completions have their full length. Each run
is a process of its own with the settings of its plan. The peak is the largest memory in use on the whole device (read every 50 ms), less
the memory in use before; nothing limits it. The script prints peak and plan in GB, completion tokens sampled and trained per second, and
the seconds of a step and of its parts. The first step warms up and is left out. vLLM samples where it can be imported.

Without a GPU the script rehearses at a toy shape in float32. --same_process then saves the start of a process for each run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from gpu_smoke import GB, ON_GPU, random_model, random_task, run_as_on, watched
from measure import ROOT, parser, read_rows, run_logged, show, table
from shapes import FITS
from transformers import AutoConfig

from common.console import say
from common.files import write_file
from common.launch import parse_config
from common.run.memory_plan import Plan, make_plan
from common.run.model_shape import shape_of

SCRIPTS = ["train_ppo", "train_vineppo", "train_grpo", "train_nft"]
PARTS = ("sample", "value", "update", "sync")


def flags_of(script: str, model: Path, readmes: str, arguments: argparse.Namespace) -> list[str]:
    """The flags of a run without those of its plan. readmes: those that the README gives for the model and the card."""
    flags = [*random_task(model, arguments.out), "--max_steps", str(arguments.steps), "--eval_steps", "0", "--save_steps", "0",
             "--engine", "vllm" if ON_GPU and find_spec("vllm") else "transformers"]
    flags += readmes.split() if ON_GPU else ["--max_completion_length", "24", "--problems_per_step", "2", "--lora_r", "4"]
    if script == "train_vineppo":  # random tokens have no lines: a state every 256 tokens, with one continuation each
        flags += ["--step_split", "tokens:256" if ON_GPU else "tokens:8", "--mc_samples", "1"]
    if script in ("train_ppo", "train_vineppo"):
        flags += ["--num_iterations", "1"]
    return flags


def planned(script: str, flags: list[str], card: float) -> Plan:
    """The plan for a card of `card` GB."""
    config = parse_config(importlib.import_module(script).Config, flags, script)
    return make_plan(config, shape_of(AutoConfig.from_pretrained(config.model, trust_remote_code=False), config), card * GB, set())


def measure(script: str, card: float, name: str, readmes: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run of the model `name`, during which the device's memory is watched."""
    model = random_model(name, arguments.out / f"model-{name}")
    flags = flags_of(script, model, readmes, arguments)
    plan = planned(script, flags, card)
    row: dict[str, Any] = {"model": name, "script": script, "card": card, "result": "ok"}
    row |= {"plan_gb": plan.peak / GB, "option": plan.option._asdict()}
    if plan.settings is None:
        return row | {"result": f"does not fit; {' or '.join(plan.remedies) or 'no remedy'}"}
    folder, log = (arguments.out / f"{script}-{name}-{card:g}{end}" for end in ("", ".log"))
    if arguments.same_process:
        run_as_on(card, script, folder, *flags)
    else:
        with watched() as memory:
            code = run_logged([sys.executable, __file__, "--inside", str(card), script, str(folder), *flags], log)
        row |= {"peak_gb": max(memory)} if ON_GPU else {}
        if code:
            return row | {"result": f"FAILED: code {code}, see {log.name}"}
    return row | speeds(folder)


def speeds(folder: Path) -> dict[str, Any]:
    """Medians over the steps after the first."""
    rows, flags = read_rows(folder / "metrics.jsonl"), json.loads((folder / "config.json").read_text())["flags"]
    seconds = {name: statistics.median(row.get(f"time/{name}", 0.0) for row in rows[1:]) for name in PARTS}
    completions = flags["problems_per_step"] * flags["num_generations"]
    trained = completions * statistics.median(row["completions/mean_length"] for row in rows[1:])
    sampled = statistics.median(b["num_tokens"] - a["num_tokens"] for a, b in pairwise(rows))  # VinePPO's continuations included
    return {
        # "value" is the forward pass of a critic, or else sampling
        "sampled_per_second": sampled / (seconds["sample"] + (0.0 if "critic_learning_rate" in flags else seconds["value"])),
        "trained_per_second": trained / seconds["update"],
        "step_seconds": statistics.median(row["step_time"] for row in rows[1:]),
        "seconds": seconds,
    }


def cells(row: dict[str, Any]) -> list[str]:
    """The row of the table."""
    forms = {"peak_gb": "{:.1f}", "sampled_per_second": "{:.0f}", "trained_per_second": "{:.0f}", "step_seconds": "{:.2f}"}
    shown = [form.format(row[name]) if name in row else "-" for name, form in forms.items()]
    parts = [f"{row['seconds'][name]:.2f}" if "seconds" in row else "-" for name in PARTS]
    return [row["model"], row["script"], f"{row['card']:g}", f"{row['plan_gb']:.1f}", *shown, *parts, row["result"]]


def main(words: list[str] | None = None) -> None:
    """The command line; `words` take its place."""
    options = parser(__doc__)
    options.add_argument("--cards", type=int, nargs="+", default=sorted({row[0] for row in FITS}), help="GB, as in the README")
    options.add_argument("--models", nargs="+", choices=sorted({row[1] for row in FITS}), help="default: all of these cards")
    options.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--same_process", action="store_true", help="all runs in this process, for a rehearsal: memory is not measured")
    options.add_argument("--out", type=Path, default=ROOT / "runs" / f"gpu_7b-{time.strftime('%Y%m%d-%H%M%S')}")
    arguments = options.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = [row for row in FITS if row[0] in arguments.cards and row[1] in (arguments.models or [row[1]])]
    results = []
    for card, name, readmes in chosen if ON_GPU else [(24, "toy", "")]:
        for script in arguments.scripts:
            results.append(measure(script, card, name, readmes, arguments))
            write_file(arguments.out / "results.json", json.dumps(results, indent=1))
            say(f"{name} {script} {card:g} GB: {results[-1]['result']}")
    show(f"\n{torch.cuda.get_device_name() if ON_GPU else 'no GPU: a rehearsal, memory not measured'}\n")
    header = ["model", "script", "card", "plan, GB", "peak, GB", "sampled/s", "trained/s", "step, s", *PARTS, "result"]
    show(table(header, [cells(row) for row in results]))
    if any(row["result"].startswith("FAILED") for row in results):
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:  # the process of a run
        run_as_on(float(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), *sys.argv[5:])
    else:
        main()
