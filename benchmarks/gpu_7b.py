"""Each script at a 7B shape with random weights, as planned for 24, 48 and 80 GB: memory against the plan, and speed.

    python benchmarks/gpu_7b.py [--cards 24 48 80] [--scripts train_grpo train_ppo ...] [--engine vllm] [--steps 3]

Random weights are honest for speed and memory and say nothing of learning; rewards are coin flips, and completions run to
their full length. Each run is a process of its own, with the settings of its plan (NF4 at 24 GB). The peak is that of the
whole device (NVML, every 50 ms), less what was in use before: no cap is put on anything.

Printed, and written to results.json: peak and plan in GB; tokens sampled per second; tokens trained per second, and the executed
arithmetic of training as a share of the device's peak, counted as 2 N per token forward, 2 N backward and 2 N for what is
computed again under checkpointing, N the weights of linear layers and head (--peak_tflops: 989 for an H200 in bfloat16; without it
no share is given); seconds of a step and of its parts. The first step warms up and is left out. vLLM is used where it can be
imported. Without a GPU: a rehearsal at a toy shape.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu_smoke import ON_GPU, ROOT, coin_flips, problems_file, random_model, watched
from seeds import table

from common.launch import parse_config, run_script
from common.policy.micro_batches import MicroBatch
from common.policy.policy import Policy
from common.run.files import write_atomically
from common.run.memory_plan import GB, Plan, Shape, make_plan, shape_of
from common.run.run import Run

ALL = ["train_ppo", "train_vineppo", "train_grpo", "train_nft"]
EXECUTED = "executed.json"  # in the run folder: tokens through the model, by step
PARTS = ("sample", "value", "update", "sync")


def command(script: str, card: float, arguments: argparse.Namespace, model: Path) -> list[str]:
    """The flags of a run before the plan adds its own."""
    flags = [
        "--model",
        str(model),
        "--dataset",
        str(problems_file(arguments.out)),
        "--prompt_template",
        "question",
        "--engine",
        arguments.engine,
    ]
    flags += ["--max_steps", str(arguments.steps), "--eval_steps", "0", "--save_steps", "0"]
    flags += (
        ["--max_completion_length", "1024"] if ON_GPU else ["--max_completion_length", "24", "--problems_per_step", "2", "--lora_r", "4"]
    )
    if script == "train_vineppo":  # coin flips have no lines: a state every 256 tokens, one continuation each
        flags += ["--step_split", "tokens:256" if ON_GPU else "tokens:8", "--mc_samples", "1"]
    if script in ("train_ppo", "train_vineppo"):
        flags += ["--num_iterations", "1"]
    return flags + (["--load_in_4bit"] if card <= 24 and ON_GPU else [])


def planned(script: str, flags: list[str], card: float) -> tuple[Plan, Shape, list[str]]:
    """The plan for a card, and the flags that carry it out on the device that is there."""
    module = importlib.import_module(script)
    config = parse_config(module.Config, flags, script)
    shape = shape_of(AutoConfig.from_pretrained(config.model), config)
    plan = make_plan(config, shape, card * GB, set())
    if plan.settings is None:
        return plan, shape, []
    settings = dataclasses.asdict(plan.settings)
    if ON_GPU:  # vLLM's share is of the device that is there
        settings["vllm_gpu_memory_utilization"] *= card * GB / torch.cuda.mem_get_info()[1]
    names = [name for name, value in settings.items() if value is not False and (ON_GPU or "vllm" not in name)]
    return (
        plan,
        shape,
        [word for name in names for word in ([f"--{name}"] if settings[name] is True else [f"--{name}", str(settings[name])])],
    )


def inside(script: str, flags: list[str]) -> None:
    """The process of a run."""
    import common.rewards as rewards

    rewards.score = coin_flips
    counted, steps = {"forward": 0, "both": 0}, []
    real, log = Policy.states_before, Run.log

    def counting(policy: Policy, micro: MicroBatch) -> Any:
        counted["both" if torch.is_grad_enabled() else "forward"] += micro.input_ids.numel()
        return real(policy, micro)

    def noted(run: Run, metrics: dict[str, float | None]) -> None:
        steps.append(dict(counted))
        counted.update(forward=0, both=0)
        write_atomically(run.folder / EXECUTED, json.dumps(steps))
        log(run, metrics)

    Policy.states_before, Run.log = counting, noted
    module = importlib.import_module(script)
    sys.argv = [f"{script}.py", *flags]
    run_script(module.Config, module.train, module.__file__)


def measure(script: str, card: float, arguments: argparse.Namespace, model: Path) -> dict[str, Any]:
    """One run, the device's memory watched meanwhile."""
    flags = command(script, card, arguments, model)
    plan, shape, settings = planned(script, flags, card)
    row: dict[str, Any] = {"script": script, "card": card, "plan_gb": plan.peak / GB, "settings": settings}
    if plan.settings is None:
        return row | {"result": f"does not fit; {' or '.join(plan.remedies) or 'no remedy'}"}
    folder = arguments.out / f"{script}-{card:g}"
    with open(arguments.out / f"{script}-{card:g}.log", "w") as log, watched() as peaks:
        words = [sys.executable, __file__, "--inside", script, *flags, *settings, "--output_dir", str(folder)]
        code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT).returncode
    row |= {"peak_gb": max(peaks), "result": "ok" if code == 0 else f"FAILED: code {code}, see {log.name}"}
    if code == 0:
        text = AutoConfig.from_pretrained(model).get_text_config()
        head = text.vocab_size * text.hidden_size
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        row |= speeds(rows, shape.linear + head, folder, json.loads((folder / EXECUTED).read_text()), arguments.peak_tflops)
    return row


def speeds(
    rows: list[dict[str, Any]],
    weights: int,
    folder: Path,
    executed: list[dict[str, int]],
    peak_tflops: float | None,
) -> dict[str, Any]:
    """Medians over the steps after the first."""
    seconds = {name: statistics.median(row.get(f"time/{name}", 0.0) for row in rows[1:]) for name in PARTS}
    sampled = statistics.median(b["num_tokens"] - a["num_tokens"] for a, b in pairwise(rows))
    flags = json.loads((folder / "config.json").read_text())["flags"]
    critic = "critic_learning_rate" in flags
    # tokens that went through the model, padding included and shared prompts once: forward alone, and backward too
    forward, both = (statistics.median(step[name] for step in executed[1:]) for name in ("forward", "both"))
    training = seconds["update"] + (seconds["value"] if critic else 0.0)  # the critic's forward passes are under "value"
    operations = 2 * weights * (forward + both * (3 if flags["gradient_checkpointing"] else 2))
    found = {
        # where there is a critic, "value" is its forward pass, else it is sampling
        "sampled_per_second": sampled / max(seconds["sample"] + (0.0 if critic else seconds["value"]), 1e-9),
        "trained_per_second": both / (2 if critic else 1) / max(seconds["update"], 1e-9),  # the critic's are the same tokens
        "step_seconds": statistics.median(row["step_time"] for row in rows[1:]),
        "seconds": seconds,
    }
    if peak_tflops:
        found["utilisation"] = operations / max(training, 1e-9) / (peak_tflops * 1e12)
    return found


def main() -> None:
    if "--inside" in sys.argv:
        inside(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=float, nargs="+", default=[24, 48, 80])
    parser.add_argument("--scripts", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--shape", default="7b" if ON_GPU else "toy", help="one of gpu_smoke.py's")
    parser.add_argument("--engine", default="vllm" if ON_GPU and find_spec("vllm") else "transformers", choices=["vllm", "transformers"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--peak_tflops", type=float)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / f"gpu_7b-{time.strftime('%Y%m%d-%H%M%S')}")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = random_model(arguments.shape, arguments.out / f"model-{arguments.shape}")
    results = []
    for card in arguments.cards:
        for script in arguments.scripts:
            results.append(measure(script, card, arguments, model))
            write_atomically(arguments.out / "results.json", json.dumps(results, indent=1))
            print(f"{script} {card:g} GB: {results[-1]['result']}", flush=True)
    device = torch.cuda.get_device_name() if ON_GPU else "no GPU: a rehearsal, memory not measured"
    print(f"\n{arguments.shape}, {arguments.engine}, {device}\n")
    header = ["script", "card", "plan, GB", "peak, GB", "sampled/s", "trained/s", "of peak", "step, s", *PARTS, "result"]
    print(table(header, [cells(row) for row in results]))
    if any(not row["result"].startswith(("ok", "does not fit")) for row in results):
        sys.exit(1)


def cells(row: dict[str, Any]) -> list[str]:
    def shown(name: str, form: str) -> str:
        return form.format(row[name]) if name in row else "-"

    parts = [f"{row['seconds'][name]:.2f}" if "seconds" in row else "-" for name in PARTS]
    rates = [shown("sampled_per_second", "{:.0f}"), shown("trained_per_second", "{:.0f}"), shown("utilisation", "{:.0%}")]
    peak = shown("peak_gb", "{:.1f}") if ON_GPU else "-"
    return [
        row["script"],
        f"{row['card']:g}",
        f"{row['plan_gb']:.1f}",
        peak,
        *rates,
        shown("step_seconds", "{:.2f}"),
        *parts,
        row["result"],
    ]


if __name__ == "__main__":
    main()
