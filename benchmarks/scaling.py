"""Seconds and memory of a training step as one size grows: completions, their length, the vocabulary, or the LoRA rank.

    python benchmarks/scaling.py [--axes completions length vocabulary rank] [--rounds 3] [--threads 2] [--plot docs/scaling.svg]

The other sizes stay at BASE. Each point is a run of train_grpo.py on a model with the embedded model's architecture and random weights.
There is no end token and every second reward is 1, so every completion has its full length and is trained on. Each point is measured once
in every round. A time is the median of --repeats steps after a warm-up, then the median over rounds. Memory is the most that an update
holds above the memory before it: resident memory on a CPU (Linux), torch's count on a GPU.

For each size the script prints a table, and for each column the line a + b n by least squares with its R^2 and the points that are more
than 10 % of their value away from the line. Values that all lie within 10 % of each other get no line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from measure import device_name, parser, read_rows, resident_gb, result_of, save_svg, show, stacked_panels, table

import train_grpo
from common.console import say
from common.launch import keep_freed_memory, parse_config
from common.policy.policy import Policy
from common.records import Completion, Problem
from common.rollout.transformers_engine import TransformersEngine
from common.run.run import Run
from common.tiny.model import build_model, build_tokenizer
from common.tiny.task import Arithmetic
from common.verify.rewards import VerifierReward

BASE = {"completions": 64, "length": 64, "vocabulary": 1024, "rank": 32}
AXES = {
    "completions": [32, 64, 128, 256, 512],
    "length": [32, 64, 128, 256, 512],  # with the prompt, at most half of the model's positions
    "vocabulary": [1024, 4096, 16384, 32768, 65536],
    "rank": [4, 8, 16, 32, 64, 128],
}
COLUMNS = {"sample": "sampling, s", "update": "update, s", "step": "both, s", "memory_mb": "the update's memory, MB"}
GROUP = 8  # completions of each prompt
MICROBATCH = 2048  # tokens
ALLOWED = 0.1  # distance from the line, as a share of the value


# ---- a point, in a process of its own --------------------------------------------------------------------------------


def random_task(vocabulary: int, folder: Path) -> list[str]:
    """The flags for a random model of this vocabulary and for prompts of 32 tokens."""
    build_model(vocabulary, seed=0).save_pretrained(folder)
    build_tokenizer(Arithmetic()).save_pretrained(folder)
    rng = random.Random(0)
    rows = [{"question": "+".join(str(rng.randint(0, 30)) for _ in range(16)), "answer": "1"} for _ in range(300)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", str(folder), "--dataset", str(folder / "problems.jsonl"), "--prompt_template", "question"]


def update_memory(peaks: list[float]) -> Any:
    """Takes the place of Run.timer, and adds the memory in MB that an update holds above the memory before it to `peaks`."""
    timer = Run.timer

    @contextlib.contextmanager
    def watched(run: Run, phase: str) -> Iterator[None]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() / 1e6
        else:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the memory of now
            before = 1000 * resident_gb("VmRSS")
        with timer(run, phase):
            yield
        if phase == "update" and run.step > 1:  # in the first step libraries load some of their parts
            peak = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 1000 * resident_gb("VmHWM")
            peaks.append(peak - before)

    return watched


def run_point(point: dict[str, int], what: str, repeats: int) -> dict[str, float]:
    """Median seconds of sampling and update, or the largest memory of an update, over the steps after the first."""
    connect, peaks = TransformersEngine.connect, []

    def without_end(engine: TransformersEngine, policy: Policy) -> None:
        policy.stop_ids = set()
        connect(engine, policy)

    def every_second(reward: VerifierReward, problems: list[Problem], completions: list[Completion]) -> torch.Tensor:
        return torch.arange(len(completions)) % 2.0

    sizes = {"problems_per_step": point["completions"] // GROUP, "num_generations": GROUP, "max_completion_length": point["length"],
             "lora_r": point["rank"], "lora_alpha": 2 * point["rank"], "max_tokens_per_microbatch": MICROBATCH,
             "max_steps": repeats + 1, "eval_steps": 0, "save_steps": 0}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as patches:
        flags = [*random_task(point["vocabulary"], Path(folder)), "--engine", "transformers", "--output_dir", f"{folder}/run"]
        config = parse_config(train_grpo.Config, [*flags, *(f"--{k}={v}" for k, v in sizes.items())], "train_grpo")
        patches.enter_context(mock.patch.object(TransformersEngine, "connect", without_end))
        patches.enter_context(mock.patch.object(VerifierReward, "__call__", every_second))
        if what == "seconds":
            keep_freed_memory()  # as the scripts do
        else:
            patches.enter_context(mock.patch.object(Run, "timer", update_memory(peaks)))
        train_grpo.train(config)
        rows = read_rows(Path(folder) / "run" / "metrics.jsonl")[1:]
    assert all(row["completions/mean_length"] == point["length"] for row in rows), "a completion ended early"
    if what == "memory":
        return {"memory_mb": max(peaks)}
    return {name: statistics.median(row[f"time/{name}"] for row in rows) for name in ("sample", "update")}


# ---- all points ------------------------------------------------------------------------------------------------------


def measure(point: dict[str, int], arguments: argparse.Namespace) -> dict[str, Any]:
    """One round of one point, in two new processes."""
    command = [sys.executable, __file__, "--repeats", str(arguments.repeats), "--point", json.dumps(point), "--what"]
    threads = {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    found = result_of([*command, "seconds"], **threads)
    # the C library returns blocks of this many bytes or more to the system as soon as they are freed
    found |= result_of([*command, "memory"], **threads, MALLOC_MMAP_THRESHOLD_="65536")
    return found | {"step": found["sample"] + found["update"]}


def fit(sizes: list[int], values: list[float]) -> tuple[float, float, np.ndarray]:
    """a and b of the line a + b n by least squares, and the line at each size."""
    b, a = np.polyfit(sizes, values, 1)
    return a, b, a + b * np.array(sizes)


def sentence(label: str, sizes: list[int], values: list[float]) -> str:
    """The line through one column, and the points away from it."""
    more = max(values) / min(values) - 1
    if more <= ALLOWED:  # a line would follow the noise
        return f"{label}: flat, the largest is {more:.1%} above the smallest"
    a, b, line = fit(sizes, values)
    r2 = 1 - np.var(np.array(values) - line) / np.var(values)
    shares = (np.array(values) - line) / values
    bends = ", ".join(f"{n:,} ({share:+.0%})" for n, share in zip(sizes, shares, strict=True) if abs(share) > ALLOWED)
    where = f"more than {ALLOWED:.0%} off it at {bends}" if bends else f"no point is more than {ALLOWED:.0%} off it"
    return f"{label}: {a:.3g} + {b:.3g} n, R^2 {r2:.4f}; {where}"


def report(axis: str, rows: list[dict[str, float]]) -> str:
    """The table of one axis, and a sentence for each of its columns."""
    body = [
        [f"{n:,}", *(f"{row[name]:.1f}" if name == "memory_mb" else f"{row[name]:.3f}" for name in COLUMNS)]
        for n, row in zip(AXES[axis], rows, strict=True)
    ]
    lines = [sentence(label, AXES[axis], [row[name] for row in rows]) for name, label in COLUMNS.items()]
    return "\n".join([table([axis, *COLUMNS.values()], body), "", *lines])


def plot(rows: list[dict[str, float]], path: str) -> None:
    """Seconds and memory over completions, with the lines through the seconds."""
    n = AXES["completions"]
    figure, panels = stacked_panels(2)
    for name, label, marker in (("sample", "sampling", "o"), ("update", "update", "s")):
        values = [row[name] for row in rows]
        (dots,) = panels[0, 0].plot(n, values, marker, label=label)
        panels[0, 0].plot(n, fit(n, values)[2], color=dots.get_color())
    panels[1, 0].plot(n, [row["memory_mb"] for row in rows], "o-", color="C2")
    panels[0, 0].set_ylabel("seconds")
    panels[0, 0].legend(frameon=False)
    panels[1, 0].set(xlabel="completions in a step", ylabel="the update's memory, MB")
    for axes in panels[:, 0]:
        axes.set_ylim(0, 1.15 * axes.dataLim.y1)  # the edge cuts no point
        axes.grid(alpha=0.3)
    save_svg(figure, path)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES)
    options.add_argument("--rounds", type=int, default=3, help="over all points, so that other load on the machine meets all of them")
    options.add_argument("--repeats", type=int, default=3, help="in each process")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--plot", help="an SVG file for the axis completions")
    options.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options.add_argument("--what", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.point:  # one of the processes
        say(json.dumps(run_point(arguments.point, arguments.what, arguments.repeats)))
        return
    points = {axis: [{**BASE, axis: n} for n in AXES[axis]] for axis in arguments.axes}
    found: dict[str, list[dict[str, Any]]] = {json.dumps(point): [] for own in points.values() for point in own}
    for i in range(arguments.rounds):
        for k, (point, measured) in enumerate(found.items()):
            measured.append(measure(json.loads(point), arguments))
            say(f"round {i + 1} of {arguments.rounds}, point {k + 1} of {len(found)}: {point}: {measured[-1]}")
    torch.set_num_threads(arguments.threads)
    show(f"\n{device_name()}; {arguments.rounds} rounds of {arguments.repeats} repeats; prompts of 32 tokens, {GROUP} completions each; "
         f"{MICROBATCH} tokens in a micro-batch; sizes that do not grow: {BASE}")
    for axis, own in points.items():
        rows = [{name: statistics.median(m[name] for m in found[json.dumps(point)]) for name in COLUMNS} for point in own]
        show(f"\n{report(axis, rows)}")
        if axis == "completions" and arguments.plot:
            plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
