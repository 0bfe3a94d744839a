"""Seconds and memory of a training step as one size grows: completions, their length, the vocabulary, or the LoRA rank.

    python benchmarks/scaling.py [--axes completions length vocabulary rank] [--rounds 3] [--threads 2] [--plot docs/scaling.svg]

The other sizes stay at BASE. The model has the embedded model's architecture and random weights. The transformers engine samples
without an end token, so every completion has its full length. The update is phases 5 and 6 of train_grpo.py on random completions, all
of which are trained on. Each point is measured once in every round, in processes of its own. A time is the median of --repeats after a
warm-up, then the median over rounds. Memory is the most that an update holds above the memory before it: resident memory on a CPU,
torch's count on a GPU.

For each size the script prints a table, and for each column the line a + b n by least squares with its R^2 and the points that are more
than 10 % of their value away from the line. Values that all lie within 10 % of each other get no line.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import ROOT, device_name, parser, resident_gb, result_of, save_svg, stacked_panels, table
from transformers import AutoConfig

from common.batching import Batch, make_batch, microbatches
from common.data import Problem
from common.launch import keep_freed_memory
from common.loss import aggregate, loss_divisor, truncated_importance_weights
from common.metrics import TokenMeans
from common.optim import clip_gradients, make_optimizer, take_step
from common.policy import Policy, load_policy
from common.rollout import Completion, Request, TransformersEngine, derive_seed
from common.tiny import Arithmetic, build_model, build_tokenizer
from train_grpo import Config, clipped_tokens, grpo_token_loss

OUT = ROOT / "runs" / "scaling"
BASE = {"completions": 64, "length": 64, "vocabulary": 1024, "rank": 32}
AXES = {
    "completions": [32, 64, 128, 256, 512],
    "length": [32, 64, 128, 256, 512],  # with the prompt, at most half of the model's positions
    "vocabulary": [1024, 4096, 16384, 32768, 65536],
    "rank": [4, 8, 16, 32, 64, 128],
}
COLUMNS = {"sample": "sampling, s", "update": "update, s", "step": "both, s", "memory_mb": "the update's memory, MB"}
PROMPT = 32  # tokens
GROUP = 8  # completions of each prompt
MICROBATCH = 2048  # tokens
ALLOWED = 0.1  # distance from the line, as a share of the value


# ---- a point, in a process of its own --------------------------------------------------------------------------------


def prepare(point: dict[str, int]) -> tuple[Config, Policy]:
    """A random model of this vocabulary with a fresh adapter of this rank."""
    folder = OUT / f"model-{point['vocabulary']}"
    build_model(point["vocabulary"], seed=0).save_pretrained(folder)
    sizes = {"lora_r": point["rank"], "lora_alpha": 2 * point["rank"], "max_completion_length": point["length"]}
    config = Config(model=str(folder), max_tokens_per_microbatch=MICROBATCH, **sizes)
    policy = load_policy(config, build_tokenizer(Arithmetic()), AutoConfig.from_pretrained(folder))
    policy.stop_ids = set()  # a completion ends at its length alone
    return config, policy


def random_batch(point: dict[str, int], groups: int) -> Batch:
    """Groups of completions of random tokens, all of the point's length."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(point["vocabulary"], (count,), generator=generator).tolist()

    logps = [-math.log(point["vocabulary"])] * point["length"]
    problems = [Problem(str(i), "", tuple(ids(PROMPT)), "") for i in range(groups)]
    return make_batch(problems, [[Completion(ids(point["length"]), logps, "length", "") for _ in range(GROUP)] for _ in problems])


def update(batch: Batch, policy: Policy, optimizer: torch.optim.Optimizer, config: Config) -> None:
    """Phases 5 and 6 of train_grpo.py at its defaults, for a batch in which every completion is trained on."""
    advantages, mask = torch.ones(len(batch)), batch.loss_mask()
    clip = {"epsilon": config.epsilon, "epsilon_high": config.epsilon}
    means, losses = TokenMeans(), []
    divisor = loss_divisor(mask, config.loss_aggregation, config.max_completion_length)
    for micro in microbatches(batch, torch.arange(len(batch)), config.max_tokens_per_microbatch, policy):
        logps, entropy = policy.logps(micro, entropy=True)
        old = logps.detach()
        token_loss = grpo_token_loss(logps, old, micro.take(advantages), **clip)
        token_loss = token_loss * truncated_importance_weights(old, micro.sampling_logps, config.importance_cap)
        loss = aggregate(token_loss, micro.completion_mask, config.loss_aggregation, divisor)
        loss.backward()
        losses.append(loss.detach())
        clipped = clipped_tokens(logps, old, micro.take(advantages), **clip)
        means.add(micro.completion_mask, entropy=entropy, difference=(old - micro.sampling_logps).abs(), clipped=clipped)
    clip_gradients(optimizer, config.max_grad_norm, len(losses))
    take_step(optimizer, config.learning_rate)
    means.mean("entropy")


def measure_seconds(point: dict[str, int], repeats: int) -> dict[str, Any]:
    """Median seconds of sampling and of the update. The first run of each does not count."""
    keep_freed_memory()  # as the scripts do
    config, policy = prepare(point)
    engine, optimizer = TransformersEngine(), make_optimizer(policy.parameters_of("default"), config.learning_rate)
    engine.connect(policy)
    batch = random_batch(point, point["completions"] // GROUP)
    prompts = [problem.prompt_ids for problem in batch.problems[::GROUP]]
    requests = [Request(prompt, derive_seed(0, "scaling", i), GROUP, point["length"]) for i, prompt in enumerate(prompts)]

    def seconds(function: Callable[..., Any], *inputs: Any) -> float:
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            function(*inputs)
            if policy.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    sampled = [completion for group in engine.generate(requests) for completion in group]
    assert [len(completion.ids) for completion in sampled] == [point["length"]] * point["completions"], "a completion ended early"
    device = f"{device_name()}, {policy.dtype}, torch {torch.__version__}"
    return {"sample": seconds(engine.generate, requests), "update": seconds(update, batch, policy, optimizer, config), "device": device}


def measure_memory(point: dict[str, int], repeats: int) -> dict[str, Any]:
    """The most memory in MB that an optimiser's first update held above the memory before it."""
    config, policy = prepare(point)
    on_gpu, batch = policy.device.type == "cuda", random_batch(point, point["completions"] // GROUP)
    # libraries load some of their parts on first use
    update(random_batch(point, 1), policy, make_optimizer(policy.parameters_of("default"), config.learning_rate), config)
    optimizer = make_optimizer(policy.parameters_of("default"), config.learning_rate)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the memory of now
        before = 1000 * resident_gb("VmRSS")
    update(batch, policy, optimizer, config)
    most = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else 1000 * resident_gb("VmHWM")
    return {"memory_mb": most - before}


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
        print(json.dumps((measure_memory if arguments.what == "memory" else measure_seconds)(arguments.point, arguments.repeats)))
        return
    points = {axis: [{**BASE, axis: n} for n in AXES[axis]] for axis in arguments.axes}
    found: dict[str, list[dict[str, Any]]] = {json.dumps(point): [] for own in points.values() for point in own}
    for i in range(arguments.rounds):
        for k, (point, measured) in enumerate(found.items()):
            measured.append(measure(json.loads(point), arguments))
            print(f"round {i + 1} of {arguments.rounds}, point {k + 1} of {len(found)}: {point}: {measured[-1]}", flush=True)
    print(f"\n{measured[-1]['device']}; {arguments.rounds} rounds of {arguments.repeats} repeats; prompts of {PROMPT} tokens, "
          f"{GROUP} completions each; {MICROBATCH} tokens in a micro-batch; sizes that do not grow: {BASE}")
    for axis, own in points.items():
        rows = [{name: statistics.median(m[name] for m in found[json.dumps(point)]) for name in COLUMNS} for point in own]
        print(f"\n{report(axis, rows)}")
        if axis == "completions" and arguments.plot:
            plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
