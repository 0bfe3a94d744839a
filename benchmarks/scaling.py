"""Seconds and memory of a step against completions, completion length, vocabulary and LoRA rank, and how straight the lines are.

    python benchmarks/scaling.py [--axes completions length vocabulary rank] [--rounds 3] [--threads 2] [--plot docs/scaling.png]

One size grows, the others stay at BASE; the model is the embedded one's architecture with random weights. Sampling is the
transformers engine's with no end token, so that every completion has its full length; the update is phases 5 and 6 of train_grpo.py
on random completions of that length, none left out, at a fixed --max_tokens_per_microbatch. Each point is measured in processes of
its own, once in each round: the median of --repeats after a warm-up, then the median over rounds. Memory is the most that an update
holds above what was held before it: resident memory on CPU (Linux), in a process whose allocator returns freed blocks at once;
torch's own count on a GPU.

Prints a table for each size, and for each column the line a + b n by least squares with its R^2. It bends at the points that are
more than 10 % of their value off the line; values that all lie within 10 % get no line. Two claims are checked: sampling, update and
their sum are linear in completions (R^2 of .99 or more), and the update's memory does not depend on their number (largest at most
10 % above smallest). All of it goes to result.json in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seeds import table
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.launch import keep_freed_memory
from common.policy.load import load_policy
from common.policy.loss import aggregate, loss_divisor, truncated_importance_weights
from common.policy.micro_batches import microbatches
from common.policy.optim import clip_gradients, make_optimizer, take_step
from common.policy.policy import Policy
from common.records import Batch, Completion, Problem, Request, derive_seed, make_batch
from common.rollout.transformers_engine import TransformersEngine
from common.run.metrics import TokenMeans
from common.tiny.model import build_model, build_tokenizer
from common.tiny.task import Arithmetic
from train_grpo import Config, clipped_tokens, grpo_token_loss

ROOT = Path(__file__).parents[1]
BASE = {"completions": 64, "length": 64, "vocabulary": 1024, "rank": 32}
AXES = {
    "completions": [32, 64, 128, 256, 512],
    "length": [32, 64, 128, 256, 512],  # with the prompt, up to half of what the model has positions for
    "vocabulary": [1024, 4096, 16384, 32768, 65536],
    "rank": [4, 8, 16, 32, 64, 128],
}
LABELS = {"sample": "sampling", "update": "update", "step": "both", "memory_mb": "the update's memory"}
COLUMNS = {column: f"{label}, {'MB' if column == 'memory_mb' else 's'}" for column, label in LABELS.items()}
PROMPT = 32  # tokens
GROUP = 8  # completions of each prompt
ALLOWED = 0.1  # off the line, or apart in memory
STRAIGHT = 0.99  # R^2


# ---- a point, in a process of its own -------------------------------------------------------------------------------


def prepare(point: dict[str, int], arguments: argparse.Namespace) -> tuple[Config, Policy]:
    """The random model of this vocabulary, made on first use, with a fresh adapter of this rank."""
    folder = arguments.out / f"model-{point['vocabulary']}"
    if not (folder / "model.safetensors").exists():
        build_model(point["vocabulary"], seed=0).save_pretrained(folder)
    sizes = {"lora_r": point["rank"], "lora_alpha": 2 * point["rank"], "max_completion_length": point["length"]}
    config = Config(model=str(folder), max_tokens_per_microbatch=arguments.max_tokens_per_microbatch, **sizes)
    policy = load_policy(config, build_tokenizer(Arithmetic()), AutoConfig.from_pretrained(folder))
    policy.stop_ids = set()  # nothing ends a completion but its length
    return config, policy


def random_batch(point: dict[str, int], groups: int) -> Batch:
    """Groups of completions of random tokens, all of the point's length."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(point["vocabulary"], (count,), generator=generator).tolist()

    logps = [-float(np.log(point["vocabulary"]))] * point["length"]
    problems = [Problem(str(i), "", tuple(ids(PROMPT)), "") for i in range(groups)]
    return make_batch(problems, [[Completion(ids(point["length"]), logps, "length", "") for _ in range(GROUP)] for _ in problems])


def update(batch: Batch, policy: Policy, optimizer: torch.optim.Optimizer, config: Config) -> None:
    """Phases 5 and 6 of train_grpo.py, at its defaults, for a batch that needs every pass."""
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
        losses.append((micro.rows, loss.detach()))
        clipped = clipped_tokens(logps, old, micro.take(advantages), **clip)
        means.add(micro.completion_mask, entropy=entropy, difference=(old - micro.sampling_logps).abs(), clipped=clipped)
    clip_gradients(optimizer, config.max_grad_norm, len(losses))
    take_step(optimizer, config.learning_rate)
    means.mean("entropy")


def measure_seconds(point: dict[str, int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of sampling and of the update, each repeat after a turn that does not count."""
    keep_freed_memory()  # as the scripts do
    config, policy = prepare(point, arguments)
    engine, optimizer = TransformersEngine(), make_optimizer(policy.parameters_of("default"), config.learning_rate)
    engine.connect(policy)
    batch = random_batch(point, point["completions"] // GROUP)
    prompts = [problem.prompt_ids for problem in batch.problems[::GROUP]]
    requests = [Request(prompt, derive_seed(0, "scaling", i), GROUP, point["length"]) for i, prompt in enumerate(prompts)]

    def seconds(function: Callable[..., Any], *inputs: Any) -> float:
        began = time.perf_counter()
        function(*inputs)
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    sampled = [completion for group in engine.generate(requests) for completion in group]
    assert [len(completion.ids) for completion in sampled] == [point["length"]] * point["completions"], "a completion ended early"
    found = {"sample": [seconds(engine.generate, requests) for _ in range(arguments.repeats)]}
    update(batch, policy, optimizer, config)
    found["update"] = [seconds(update, batch, policy, optimizer, config) for _ in range(arguments.repeats)]
    device = torch.cuda.get_device_name() if policy.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {**found, "device": f"{device}, {policy.dtype}, torch {torch.__version__}"}


def measure_memory(point: dict[str, int], arguments: argparse.Namespace) -> dict[str, Any]:
    """The most that the first update with an optimiser held above what was held before it, MB."""
    config, policy = prepare(point, arguments)
    on_gpu, batch = policy.device.type == "cuda", random_batch(point, point["completions"] // GROUP)
    # libraries load some of their parts on first use
    update(random_batch(point, 1), policy, make_optimizer(policy.parameters_of("default"), config.learning_rate), config)
    optimizer = make_optimizer(policy.parameters_of("default"), config.learning_rate)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before = resident_mb("VmRSS")
    update(batch, policy, optimizer, config)
    most = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else resident_mb("VmHWM")
    return {"memory_mb": most - before}


def resident_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (the most so far) of this process, from /proc."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


# ---- all points -----------------------------------------------------------------------------------------------------


def points(axes: list[str]) -> list[dict[str, int]]:
    """Every point of the axes, the one that they share once."""
    return list({json.dumps({**BASE, axis: n}): {**BASE, axis: n} for axis in axes for n in AXES[axis]}.values())


def run_point(point: dict[str, int], what: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `measure_seconds` or `measure_memory` gives, from a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
    if what == "memory":  # a fixed threshold: blocks from this size on (bytes) go back to the system when they are freed
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    flags = ["--out", str(arguments.out), "--max_tokens_per_microbatch", str(arguments.max_tokens_per_microbatch)]
    command = [sys.executable, __file__, "--point", json.dumps(point), "--what", what, "--repeats", str(arguments.repeats), *flags]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{point}: {process.stderr.strip() or f'ended with code {process.returncode}'}")
    return json.loads(process.stdout.splitlines()[-1])


def fit(sizes: list[int], values: list[float]) -> dict[str, Any]:
    """The line a + b n by least squares, R^2, and how far each value is from it, as a share of the value."""
    n, y = np.array(sizes, dtype=float), np.array(values)
    b, a = np.polyfit(n, y, 1)
    apart = y - (a + b * n)
    total = ((y - y.mean()) ** 2).sum()
    return {"a": float(a), "b": float(b), "r2": float(1 - (apart**2).sum() / total) if total else 1.0, "off": (apart / y).tolist()}


def report(axis: str, rows: list[dict[str, float]], fits: dict[str, dict[str, Any]]) -> str:
    """The table of one axis, and a sentence for each of its lines."""
    body = [
        [f"{n:,}", *(f"{row[c]:.3f}" if c != "memory_mb" else f"{row[c]:.1f}" for c in COLUMNS)]
        for n, row in zip(AXES[axis], rows, strict=True)
    ]
    lines = [table([axis, *COLUMNS.values()], body), ""]
    for column, line in fits.items():
        values = [row[column] for row in rows]
        more = max(values) / min(values) - 1
        if more <= ALLOWED:  # then a line through it is a line through noise
            lines.append(f"{COLUMNS[column]}: flat, the largest is {more:.1%} above the smallest")
            continue
        bends = [f"{n:,} ({off:+.0%})" for n, off in zip(AXES[axis], line["off"], strict=True) if abs(off) > ALLOWED]
        tells = f"more than {ALLOWED:.0%} off it at {', '.join(bends)}" if bends else f"no point is more than {ALLOWED:.0%} off it"
        lines.append(f"{COLUMNS[column]}: {line['a']:.3g} + {line['b']:.3g} n, R^2 {line['r2']:.4f}; {tells}")
    return "\n".join(lines)


def check(rows: list[dict[str, float]], fits: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """What is claimed of the axis of completions, with the numbers, and whether it holds."""
    claims = {
        f"{LABELS[c]}: linear in completions, R^2 {fits[c]['r2']:.4f}": fits[c]["r2"] >= STRAIGHT for c in ("sample", "update", "step")
    }
    memory = [row["memory_mb"] for row in rows]
    flat = max(memory) <= (1 + ALLOWED) * min(memory)
    return {**claims, f"{LABELS['memory_mb']}: flat in completions, {min(memory):.1f} to {max(memory):.1f} MB": flat}


def plot(results: dict[str, list[dict[str, float]]], fits: dict[str, dict[str, Any]], path: str) -> None:
    """Seconds above, memory below, a column of panels for each axis; thin lines are the fits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(results), figsize=(3.6 * len(results), 5.6), dpi=110, squeeze=False)
    for k, (axis, rows) in enumerate(results.items()):
        n = AXES[axis]
        for column in ("sample", "update"):
            (dots,) = panels[0, k].plot(n, [row[column] for row in rows], "o", markersize=4, label=LABELS[column])
            line = fits[axis][column]
            panels[0, k].plot(n, [line["a"] + line["b"] * x for x in n], linewidth=1, color=dots.get_color())
        panels[1, k].plot(n, [row["memory_mb"] for row in rows], "o-", markersize=4, linewidth=1, color="C2")
        panels[1, k].set_xlabel({"rank": "LoRA rank", "length": "tokens of a completion"}.get(axis, axis))
        for axes in panels[:, k]:
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel(COLUMNS["memory_mb"])
    panels[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=AXES)
    parser.add_argument("--rounds", type=int, default=3, help="over all points, so that other load on the machine meets all of them")
    parser.add_argument("--repeats", type=int, default=3, help="in each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max_tokens_per_microbatch", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "scaling")
    parser.add_argument("--plot")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:  # one of the processes
        print(json.dumps((measure_memory if arguments.what == "memory" else measure_seconds)(arguments.point, arguments)))
        return
    arguments.out = arguments.out.absolute()
    arguments.out.mkdir(parents=True, exist_ok=True)
    todo, found, device = points(arguments.axes), {}, ""
    for i in range(arguments.rounds):
        for k, point in enumerate(todo):
            both = run_point(point, "time", arguments) | run_point(point, "memory", arguments)
            device = both.pop("device")
            own = {name: statistics.median(values) for name, values in both.items() if name != "memory_mb"}
            own |= {"step": own["sample"] + own["update"], "memory_mb": both["memory_mb"]}
            found.setdefault(json.dumps(point), []).append(own)
            where = f"round {i + 1} of {arguments.rounds}, point {k + 1} of {len(todo)}"
            print(f"{where}: {point}: {', '.join(f'{name} {value:.3f}' for name, value in own.items())}", flush=True)
    results = {
        axis: [{c: statistics.median(own[c] for own in found[json.dumps({**BASE, axis: n})]) for c in COLUMNS} for n in AXES[axis]]
        for axis in arguments.axes
    }
    fits = {axis: {c: fit(AXES[axis], [row[c] for row in rows]) for c in COLUMNS} for axis, rows in results.items()}
    base = ", ".join(f"{name} {value:,}" for name, value in BASE.items())
    print(
        f"\n{device}; {arguments.rounds} rounds of {arguments.repeats} repeats; prompts of {PROMPT} tokens, {GROUP} completions each; "
        f"{arguments.max_tokens_per_microbatch} tokens in a micro-batch; where nothing else is said: {base}"
    )
    for axis, rows in results.items():
        print(f"\n{report(axis, rows, fits[axis])}")
    claims = check(results["completions"], fits["completions"]) if "completions" in results else {}
    print("\n" + "\n".join(f"{claim}: {'holds' if holds else 'DOES NOT HOLD'}" for claim, holds in claims.items()))
    result = {
        "device": device,
        "base": BASE,
        "axes": {axis: AXES[axis] for axis in results},
        "found": found,
        "results": results,
        "fits": fits,
        "claims": claims,
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
    }
    (arguments.out / "result.json").write_text(json.dumps(result))
    print(f"\nwrote {arguments.out / 'result.json'}")
    if arguments.plot:
        plot(results, fits, arguments.plot)


if __name__ == "__main__":
    main()
