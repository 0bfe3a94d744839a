"""Each script at a 7B shape with random weights, as planned for 24, 48 and 80 GB: memory beside the plan, and speed.

    python benchmarks/gpu_7b.py [--cards 24 48 80] [--scripts train_grpo train_ppo ...]

Random weights tell speed and memory, and nothing about learning; rewards are coin flips, and completions have their full length. Each run
is a process of its own with the settings of its plan (NF4 at 24 GB). The peak is the largest memory in use on the whole device (read every
50 ms), less the memory in use before; nothing limits it. The script prints peak and plan in GB, completion tokens sampled and trained per
second, and the seconds of a step and of its parts. The first step warms up and is left out. vLLM samples where it can be imported.

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
from unittest import mock

import torch
from gpu_smoke import ON_GPU, SHAPES, random_model, random_task, run_on_coin_flips, watched
from measure import ROOT, parser, read_rows, run_logged, show, table
from transformers import AutoConfig

from common.console import say
from common.files import write_file
from common.launch import parse_config
from common.run.memory_plan import GB, Plan, make_plan
from common.run.model_shape import shape_of

SCRIPTS = ["train_ppo", "train_vineppo", "train_grpo", "train_nft"]
PARTS = ("sample", "value", "update", "sync")


def flags_of(script: str, card: float, arguments: argparse.Namespace, model: Path) -> list[str]:
    """The flags of a run without those of its plan."""
    flags = [*random_task(model, arguments.out), "--max_steps", str(arguments.steps), "--eval_steps", "0", "--save_steps", "0"]
    flags += ["--engine", "vllm" if ON_GPU and find_spec("vllm") else "transformers", "--max_completion_length", "1024" if ON_GPU else "24"]
    flags += [] if ON_GPU else ["--problems_per_step", "2", "--lora_r", "4"]
    if script == "train_vineppo":  # random tokens have no lines: a state every 256 tokens, with one continuation each
        flags += ["--step_split", "tokens:256" if ON_GPU else "tokens:8", "--mc_samples", "1"]
    if script in ("train_ppo", "train_vineppo"):
        flags += ["--num_iterations", "1"]
    return flags + (["--load_in_4bit"] if card <= 24 and ON_GPU else [])


def planned(script: str, flags: list[str], card: float) -> Plan:
    """The plan for a card of `card` GB."""
    config = parse_config(importlib.import_module(script).Config, flags, script)
    return make_plan(config, shape_of(AutoConfig.from_pretrained(config.model, trust_remote_code=False), config), card * GB, set())


def run_as_on(card: float, script: str, folder: Path, *flags: str) -> Path:
    """A run that plans its memory as on a card of `card` GB that is empty."""
    whole = torch.cuda.mem_get_info()[1] if ON_GPU else 0
    with mock.patch("common.run.memory_plan.card_memory", lambda: (card * GB, whole)):
        return run_on_coin_flips(script, folder, *flags)


def measure(script: str, card: float, arguments: argparse.Namespace, model: Path) -> dict[str, Any]:
    """One run, during which the device's memory is watched."""
    flags = flags_of(script, card, arguments, model)
    plan = planned(script, flags, card)
    row: dict[str, Any] = {"script": script, "card": card, "plan_gb": plan.peak / GB, "option": plan.option._asdict(), "result": "ok"}
    if plan.settings is None:
        return row | {"result": f"does not fit; {' or '.join(plan.remedies) or 'no remedy'}"}
    folder, log = arguments.out / f"{script}-{card:g}", arguments.out / f"{script}-{card:g}.log"
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
    return [row["script"], f"{row['card']:g}", f"{row['plan_gb']:.1f}", *shown, *parts, row["result"]]


def main(words: list[str] | None = None) -> None:
    """The command line; `words` take its place."""
    options = parser(__doc__)
    options.add_argument("--cards", type=float, nargs="+", default=[24, 48, 80])
    options.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    options.add_argument("--shape", default="7b" if ON_GPU else "toy", choices=SHAPES)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--same_process", action="store_true", help="all runs in this process, for a rehearsal: memory is not measured")
    options.add_argument("--out", type=Path, default=ROOT / "runs" / f"gpu_7b-{time.strftime('%Y%m%d-%H%M%S')}")
    arguments = options.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = random_model(arguments.shape, arguments.out / f"model-{arguments.shape}")
    results = []
    for card in arguments.cards:
        for script in arguments.scripts:
            results.append(measure(script, card, arguments, model))
            write_file(arguments.out / "results.json", json.dumps(results, indent=1))
            say(f"{script} {card:g} GB: {results[-1]['result']}")
    show(f"\n{arguments.shape}, {torch.cuda.get_device_name() if ON_GPU else 'no GPU: a rehearsal, memory not measured'}\n")
    header = ["script", "card", "plan, GB", "peak, GB", "sampled/s", "trained/s", "step, s", *PARTS, "result"]
    show(table(header, [cells(row) for row in results]))
    if any(row["result"].startswith("FAILED") for row in results):
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:  # the process of a run
        run_as_on(float(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), *sys.argv[5:])
    else:
        main()
