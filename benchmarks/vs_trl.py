"""Seconds and memory of a step: train_grpo.py against TRL's GRPOTrainer, the same work on the CPU, taking turns.

    python benchmarks/vs_trl.py [--rounds 3] [--steps 12] [--threads 2] [--trl_python PATH]
    python benchmarks/vs_trl.py --profile        # ours alone: where a step's time goes, and what its matrix products alone take

Both sides: the embedded model, float32, the same problems in the same order, 16 x 8 completions, the same LoRA, AdamW and learning
rate, one update a step, the same checker, no evaluation, no checkpoint before the end. TRL runs in an environment of its own, made
under --out unless --trl_python names one, and in the fastest of the settings that a calibration tries first (its table is printed).

A step is timed from its beginning to that of the next, so everything is in it; the first two and the last are left out. Prints
medians of both sides, ratios by round, and whether they did the same work; all of it goes to result.json in a new folder of --out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import time
import venv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seeds import table

ROOT = Path(__file__).parents[1]
TRL = "1.16.0"
WARM_UP = 2  # steps that are not counted
OURS, THEIRS = "train_grpo.py", "TRL"
# --max_steps, --seed and --output_dir come beside these; all else is what `python train_grpo.py` does
FLAGS = ["--eval_steps", "0", "--save_steps", "0", "--lr_scheduler_type", "constant", "--warmup_steps", "0", "--dtype", "float32"]
TURNS = 2  # runs of each setting in the calibration, taking turns within its kind
HOPELESS = 1.3  # a setting that takes this many times as long as the best of its kind gets no second run
LIMIT = 900  # seconds for one run of TRL


@dataclass
class Side:
    """One run of one side. Lists are by step, warm-up and last step left out, but for `lengths` and `rewards`, which have all."""

    start: float  # seconds of the steps before those
    seconds: list[float]
    sample: list[float]
    verify: list[float]
    lengths: list[list[int]]  # of every completion
    rewards: list[list[float]]
    passes: float  # share of the completions that got a forward and backward pass: ours leaves out those whose gradient is 0
    optimizer_steps: int
    peak_gb: float  # of resident memory, the libraries included
    before_gb: float  # the same up to the first step: libraries, model, data
    trainable: int  # parameters
    threads: int
    versions: dict[str, str]

    @property
    def tokens(self) -> int:
        """Sampled in the steps that count."""
        return sum(map(sum, self.lengths[WARM_UP:-1]))

    @property
    def completions(self) -> int:
        return sum(map(len, self.lengths[WARM_UP:-1]))


def run_logged(command: list[str], log: Path, threads: int, timeout: float | None = None) -> str | None:
    """Runs it on the CPU with this many threads, all output to `log`. None, or what went wrong."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with open(log, "w") as file:
        try:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            return f"stopped after {timeout:.0f} s"
    return None if code == 0 else f"ended with code {code}, {(log.read_text().strip().splitlines() or ['no output'])[-1][:120]}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- ours -----------------------------------------------------------------------------------------------------------


def be_ours(result: Path, flags: list[str]) -> None:
    """In a process of its own: train_grpo.py as from the command line, and a note of when each step begins."""
    sys.path.insert(0, str(ROOT))
    import torch

    import train_grpo
    from common.run.run import Run

    began, steps, note = [], Run.steps, {}

    def peak_gb() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def noted(run: Run) -> Any:
        note["before_gb"] = peak_gb()
        for step in steps(run):
            began.append(time.perf_counter())
            yield step

    Run.steps, sys.argv = noted, ["train_grpo.py", *flags]
    train_grpo.run_script(train_grpo.Config, train_grpo.train, train_grpo.__file__)
    result.write_text(json.dumps({**note, "began": began, "peak_gb": peak_gb(), "threads": torch.get_num_threads()}))


def run_ours(folder: Path, steps: int, seed: int, threads: int) -> Side:
    """train_grpo.py into `folder`."""
    result = folder.with_suffix(".json")
    flags = [*FLAGS, "--max_steps", str(steps), "--seed", str(seed), "--output_dir", str(folder)]
    wrong = run_logged([sys.executable, __file__, "--ours", str(result), *flags], folder.with_suffix(".log"), threads)
    if wrong:
        sys.exit(f"{OURS}: {wrong}; see {folder.with_suffix('.log')}")
    noted, rows = json.loads(result.read_text()), read_lines(folder / "metrics.jsonl")
    by_step: list[list[dict[str, Any]]] = [[] for _ in rows]
    for row in read_lines(folder / "completions.jsonl"):
        by_step[row["step"] - 1].append(row)
    counted = rows[WARM_UP:-1]
    return Side(
        start=noted["began"][WARM_UP] - noted["began"][0],
        seconds=[b - a for a, b in zip(noted["began"][WARM_UP:], noted["began"][WARM_UP + 1 :], strict=False)],
        sample=[row["time/sample"] for row in counted],
        verify=[row["time/verify"] for row in counted],
        lengths=[[row["tokens"] for row in step] for step in by_step],
        rewards=[[row["reward"] for row in step] for step in by_step],
        passes=statistics.mean(row["advantage"] != 0 for step in by_step[WARM_UP:-1] for row in step),
        optimizer_steps=len(rows),  # one a step: num_iterations and num_minibatches are 1
        peak_gb=noted["peak_gb"],
        before_gb=noted["before_gb"],
        trainable=trainable(folder / f"checkpoint-{steps}" / "adapter_model.safetensors"),
        threads=noted["threads"],
        versions=json.loads((folder / "config.json").read_text())["versions"],
    )


def trainable(path: Path) -> int:
    """Parameters in a saved adapter."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118 (not a dict)
    return sum(rows * columns for rows, columns in shapes)


# ---- TRL's ----------------------------------------------------------------------------------------------------------


def trl_python(given: Path | None, out: Path) -> Path:
    """The python of an environment with TRL: the one given, or one made under `out` on first use."""
    folder = out / f"trl-{TRL}"
    python = given or folder / "bin" / "python"
    if not given and not (folder / "done").exists():
        wanted = [f"trl=={TRL}", *(f"{p}=={importlib.metadata.version(p).split('+')[0]}" for p in ("torch", "transformers", "peft"))]
        print(f"making {folder} with {' '.join(wanted)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / "done").touch()
    return python


def job_like(ours: Path) -> dict[str, Any]:
    """What TRL is to do: the problems, sizes and rates of one of our runs. Micro-batches and the like are the calibration's."""
    flags = json.loads((ours / "config.json").read_text())["flags"]
    adapter = json.loads((next(ours.glob("checkpoint-*")) / "adapter_config.json").read_text())
    rows = read_lines(ours / "completions.jsonl")[:: flags["num_generations"]]  # the first completion of each group
    return {
        "model": adapter["base_model_name_or_path"],
        "problems": [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows],
        "lora": {"r": flags["lora_r"], "lora_alpha": flags["lora_alpha"], "target_modules": "all-linear"},
        "attention": "sdpa",
        "config": {
            **{name: flags[name] for name in ("num_generations", "max_completion_length", "max_steps", "temperature", "learning_rate")},
            **{name: flags[name] for name in ("lr_scheduler_type", "warmup_steps", "max_grad_norm", "epsilon", "beta", "seed")},
            "generation_batch_size": flags["problems_per_step"] * flags["num_generations"],
            "weight_decay": 0.0,
            "loss_type": "dapo",  # its name for the mean over all tokens of the step
            "shuffle_dataset": False,  # the order is ours already
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "log_completions": False,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        },
    }


def choices(completions: int) -> dict[str, list[dict[str, Any]]]:
    """What the calibration tries, one kind after the other, each on top of the best so far; the first of a kind is TRL's default."""
    sizes = [completions // parts for parts in (1, 2, 4, 8)]
    # one block holds 256 tokens, so one completion; without a bound its cache takes most of the machine's memory
    blocks = {"num_blocks": completions, "max_batch_tokens": 2 * completions}
    return {
        "micro-batch": [{"per_device_train_batch_size": n, "gradient_accumulation_steps": completions // n} for n in sizes],
        "attention": [{}, {"attention": "eager"}],
        "sampling": [
            {},
            {"cache_implementation": "static"},
            {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": blocks},
        ],
        "compilation": [{}, {"torch_compile": True}],
    }


def run_trl(python: Path, job: dict[str, Any], setting: dict[str, Any], path: Path, threads: int) -> Side | str:
    """TRL on the job with this setting, logs and results beside `path`; or what went wrong."""
    job = {**job, "attention": setting.get("attention", job["attention"])}
    job["config"] = {**job["config"], "output_dir": str(path), **{k: v for k, v in setting.items() if k != "attention"}}
    source, result = path.with_suffix(".job.json"), path.with_suffix(".json")
    source.write_text(json.dumps(job))
    wrong = run_logged([str(python), "benchmarks/trl_side.py", str(source), str(result)], path.with_suffix(".log"), threads, LIMIT)
    if wrong:
        return wrong
    noted = json.loads(result.read_text())
    steps = noted["steps"]
    counted = steps[WARM_UP:-1]
    return Side(
        start=steps[WARM_UP]["began"] - steps[0]["began"],
        seconds=[after["began"] - step["began"] for step, after in zip(counted, steps[WARM_UP + 1 :], strict=True)],
        sample=[step["sampled"] - step["began"] for step in counted],
        verify=[step["verified"] - step["sampled"] for step in counted],
        lengths=[step["lengths"] for step in steps],
        rewards=[step["rewards"] for step in steps],
        passes=1.0,
        **{name: noted[name] for name in ("optimizer_steps", "peak_gb", "before_gb", "trainable", "threads", "versions")},
    )


def calibrate(python: Path, job: dict[str, Any], folder: Path, threads: int) -> tuple[dict[str, Any], list[list[str]]]:
    """TRL's fastest setting, and a line for each that was tried.

    The whole run counts, as compilation goes on in its first steps. Of each part the fastest run counts, as other load on the machine
    only adds; with one seed all of them do the same steps.
    """
    best, lines = {}, []
    for kind, settings in choices(job["config"]["generation_batch_size"]).items():
        tried: list[list[Side | str]] = [[] for _ in settings]
        whole, after = [math.inf] * len(settings), [math.inf] * len(settings)
        for turn in range(TURNS):
            for i, setting in enumerate(settings):
                if turn and whole[i] > HOPELESS * min(whole):
                    continue
                side = run_trl(python, job, {**best, **setting}, folder / f"calibrate-{kind}-{i}-{turn}", threads)
                tried[i].append(side)
                runs = [side for side in tried[i] if isinstance(side, Side)]
                if runs:
                    steps = [min(step) for step in zip(*(side.seconds for side in runs), strict=True)]
                    after[i] = statistics.median(steps)
                    whole[i] = (min(side.start for side in runs) + sum(steps)) / (WARM_UP + len(steps))
                said = f"{whole[i]:.3f} s a step with the first {WARM_UP}, {after[i]:.3f} s median of the others"
                print(f"calibration, {kind}, {named(setting)}: {said if runs else side}", flush=True)
        if min(whole) == math.inf:
            sys.exit(f"TRL did not run: {tried[0][0]}; see the logs in {folder}")
        for setting, *values, runs in zip(settings, whole, after, tried, strict=True):
            peaks = [f"{side.peak_gb:.2f}" for side in runs if isinstance(side, Side)]
            seconds = [f"{value:.3f}" for value in values] if peaks else [str(runs[0]), ""]
            lines.append([kind, named(setting), *seconds, max(peaks, default="")])
        best = {**best, **settings[whole.index(min(whole))]}
    return best, lines


def named(setting: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in setting.items()) or "default"


# ---- the comparison -------------------------------------------------------------------------------------------------


def spread(values: list[float], form: str = ".2f") -> str:
    """median (lowest - highest)"""
    return f"{statistics.median(values):{form}} ({min(values):{form}} - {max(values):{form}})"


def report(sides: dict[str, list[Side]]) -> str:
    """The tables: what it took, and whether it was the same work."""

    def pooled(values: Any) -> list[str]:
        return [spread([value for side in own for value in values(side)]) for own in sides.values()]

    def rest(side: Side) -> list[float]:
        return [s - a - b for s, a, b in zip(side.seconds, side.sample, side.verify, strict=True)]

    def each(value: Any, form: str = ".2f") -> list[str]:
        return [spread([value(side) for side in own], form) for own in sides.values()]

    def equal(value: Any) -> list[str]:
        return [" ".join(sorted({f"{value(side):,}" for side in own})) for own in sides.values()]

    header = ["", *sides]
    took = [
        ["seconds a step, all steps", *pooled(lambda side: side.seconds)],
        ["of them sampling", *pooled(lambda side: side.sample)],
        ["verifying, ms", *pooled(lambda side: [1000 * seconds for seconds in side.verify])],
        ["update, sync and the rest", *pooled(rest)],
        ["completions/s, by round", *each(lambda side: side.completions / sum(side.seconds), ".1f")],
        ["tokens/s, by round", *each(lambda side: side.tokens / sum(side.seconds), ".0f")],
        ["peak resident memory, GB", *each(lambda side: side.peak_gb)],
        ["of it added by the steps", *each(lambda side: side.peak_gb - side.before_gb)],
    ]
    work = [
        ["tokens a completion, steps that count", *each(lambda side: side.tokens / side.completions, ".1f")],
        ["the same, first step", *each(lambda side: statistics.mean(side.lengths[0]), ".1f")],
        ["reward, first step", *each(lambda side: statistics.mean(side.rewards[0]), ".3f")],
        ["reward, last step", *each(lambda side: statistics.mean(side.rewards[-1]), ".3f")],
        ["completions, all steps", *equal(lambda side: sum(map(len, side.lengths)))],
        ["optimiser steps", *equal(lambda side: side.optimizer_steps)],
        ["parameters trained", *equal(lambda side: side.trainable)],
        ["completions with a forward and backward pass, %", *each(lambda side: 100 * side.passes, ".0f")],
        ["threads", *equal(lambda side: side.threads)],
    ]
    ratios = []
    for name, value in (
        ("seconds a step", lambda side: statistics.median(side.seconds)),
        ("seconds a token", lambda side: sum(side.seconds) / side.tokens),
        ("peak memory", lambda side: side.peak_gb),
    ):
        own = [value(ours) / value(theirs) for ours, theirs in zip(*sides.values(), strict=True)]
        ratios.append([name, *(f"{ratio:.3f}" for ratio in own), f"**{statistics.median(own):.3f}**"])
    rounds = [f"round {i + 1}" for i in range(len(next(iter(sides.values()))))]
    return "\n\n".join(
        [
            "what it took: median (lowest - highest)\n\n" + table(header, took),
            "the same work?\n\n" + table(header, work),
            f"{OURS} / {THEIRS}\n\n" + table(["", *rounds, "median"], ratios),
        ]
    )


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    python = trl_python(arguments.trl_python, arguments.out)
    print("a short run of ours, for its problems and to warm up", flush=True)
    short = WARM_UP + arguments.calibration_steps + 1
    run_ours(folder / "ours-0", short, 0, arguments.threads)
    setting, lines = arguments.setting, []
    if setting is None:
        setting, lines = calibrate(python, job_like(folder / "ours-0"), folder, arguments.threads)
        tried = table(
            [
                "",
                "setting of TRL",
                f"seconds a step, all {WARM_UP + arguments.calibration_steps}",
                f"median of the last {arguments.calibration_steps}",
                "peak GB",
            ],
            lines,
        )
        print(f"\n{tried}\n")
    print(f"setting of TRL: {json.dumps(setting)}", flush=True)
    sides: dict[str, list[Side]] = {OURS: [], THEIRS: []}
    load = []
    for i in range(1, arguments.rounds + 1):
        load.append(os.getloadavg()[0])
        sides[OURS].append(run_ours(folder / f"ours-{i}", arguments.steps + 1, i, arguments.threads))
        theirs = run_trl(python, job_like(folder / f"ours-{i}"), setting, folder / f"trl-{i}", arguments.threads)
        if isinstance(theirs, str):
            sys.exit(f"TRL: {theirs}; see {folder / f'trl-{i}.log'}")
        sides[THEIRS].append(theirs)
        said = ", ".join(f"{name} {statistics.median(own[-1].seconds):.3f} s a step" for name, own in sides.items())
        print(f"round {i} of {arguments.rounds}: {said} (load of the machine before it: {load[-1]:.1f})", flush=True)
    versions = sides[THEIRS][0].versions
    print(f"\n{arguments.threads} threads, steps {WARM_UP + 1} to {arguments.steps} of {arguments.rounds} runs each, float32, {versions}")
    other = {p: v for p, v in sides[OURS][0].versions.items() if versions.get(p, v) != v}
    print(f"ours ran with {other}\n" if other else "the same versions on our side\n")
    print(report(sides))
    result = {"setting": setting, "calibration": lines, "load": load, "arguments": {k: str(v) for k, v in vars(arguments).items()}}
    result["sides"] = {name: [vars(side) for side in own] for name, own in sides.items()}
    (folder / "result.json").write_text(json.dumps(result))


# ---- where our time goes --------------------------------------------------------------------------------------------

Shape = tuple[int, int, int]  # (m, k) @ (k, n)


def products(ours: Path, steps: int) -> dict[str, Counter[Shape]]:
    """The matrix products that the last `steps` steps of our run cannot avoid, by phase: linear layers and output head.

    Every distinct prompt token once, every sampled token but the last of a completion once, and in the update the completions that
    have an advantage and, once, their prompts. Attention, norms and all else are left out, which makes it a floor.
    """
    from torch import nn
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of weights that load in milliseconds
    adapter = json.loads((next(ours.glob("checkpoint-*")) / "adapter_config.json").read_text())
    flags = json.loads((ours / "config.json").read_text())["flags"]
    model, tokenizer = (kind.from_pretrained(adapter["base_model_name_or_path"]) for kind in (AutoModelForCausalLM, AutoTokenizer))
    linear = {name: m.weight.shape for name, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in name}
    (vocabulary, hidden), rank, piece = model.lm_head.weight.shape, adapter["r"], flags["max_tokens_per_microbatch"]
    found: dict[str, Counter[Shape]] = {"sample": Counter(), "update": Counter(), "sync": Counter()}
    rows = read_lines(ours / "completions.jsonl")
    last = rows[-1]["step"]
    for step in range(last - steps, last):  # the last one is not counted
        own = [row for row in rows if row["step"] == step]
        prompts = {row["prompt"]: len(tokenizer(row["prompt"])["input_ids"]) for row in own}
        alive = [sum(row["tokens"] > place for row in own) for place in range(max(row["tokens"] for row in own))]
        trained = [row for row in own if row["advantage"]]
        tokens = sum(row["tokens"] for row in trained) + sum(prompts[prompt] for prompt in {row["prompt"] for row in trained})
        pieces = [piece] * (tokens // piece) + [tokens % piece] * (tokens % piece > 0)
        for name, (wide, deep) in linear.items():
            # q, k and v of the first layer read the frozen embeddings, which need no gradient
            first = re.search(r"layers\.0\.self_attn\.[qkv]_proj", name)
            found["sample"].update([(m, deep, wide) for m in [sum(prompts.values()), *alive[1:]]])
            for m in pieces:
                found["update"].update([(m, deep, wide), (m, deep, rank), (m, rank, wide)])  # forward: W, A, B
                found["update"].update([(wide, m, rank), (m, wide, rank), (rank, m, deep)])  # gradients of B, of what it reads, of A
                found["update"].update([] if first else [(m, wide, deep), (m, rank, deep)])  # gradient of the layer's input
            found["sync"].update([(wide, rank, deep)])
        found["sample"].update([(m, hidden, vocabulary) for m in alive])
        completion_tokens = sum(row["tokens"] for row in trained)
        for m in pieces:  # logits, and again for the backward pass; gradient of the hidden states
            m = round(m * completion_tokens / tokens)
            found["update"].update([(m, hidden, vocabulary), (m, hidden, vocabulary), (m, vocabulary, hidden)])
    return found


def seconds_of(shape: Shape) -> float:
    """Of one torch.matmul of this shape, float32: the fastest of seven turns of a millisecond or more."""
    import torch

    m, k, n = shape
    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    calls, turns = 1, []
    while len(turns) < 7:
        began = time.perf_counter()
        for _ in range(calls):
            torch.matmul(a, b, out=out)
        took = time.perf_counter() - began
        if took < 1e-3:
            calls *= 2
        else:
            turns.append(took / calls)
    return min(turns)


def profile(arguments: argparse.Namespace, folder: Path) -> None:
    """Seconds of each phase of our step, and of the matrix products in it."""
    print("a run of ours", flush=True)
    side = run_ours(folder / "ours", arguments.steps + 1, 0, arguments.threads)
    rows, steps = read_lines(folder / "ours" / "metrics.jsonl")[WARM_UP:-1], len(side.seconds)
    print("its matrix products", flush=True)
    import torch

    torch.set_num_threads(arguments.threads)
    counts = products(folder / "ours", steps)
    timed = {shape: seconds_of(shape) for shape in sorted(set().union(*counts.values()))}
    floor = {phase: sum(timed[shape] * count for shape, count in own.items()) / steps for phase, own in counts.items()}
    flops = {phase: sum(2 * m * k * n * count for (m, k, n), count in own.items()) / steps for phase, own in counts.items()}
    took = {phase: statistics.mean(row[f"time/{phase}"] for row in rows) for phase in ("sample", "verify", "update", "sync")}
    whole = statistics.mean(side.seconds)
    took |= {"rest": whole - sum(took.values()), "step": whole}
    floor["step"], flops["step"] = sum(floor.values()), sum(flops.values())
    lines = []
    for phase, seconds in took.items():
        line = [phase, f"{seconds:.4f}", f"{seconds / whole:.1%}"]
        if phase in floor:
            line += [f"{floor[phase]:.4f}", f"{flops[phase] / 1e9:.2f}", f"{flops[phase] / 1e9 / floor[phase]:.0f}"]
        lines.append(line + ([f"{seconds / floor[phase]:.2f}"] if phase in floor else ["", "", "", ""]))
    header = ["phase", "seconds a step", "share", "bare matrix products, s", "GFLOP", "GFLOP/s", "times the products"]
    print(f"\n{OURS}, {side.threads} threads, means of {steps} steps of {side.completions // steps} completions\n\n{table(header, lines)}")
    forwards = statistics.mean(max(lengths) - 1 for lengths in side.lengths[WARM_UP:-1])
    print(
        f"\nsampling: {forwards:.1f} forward passes of one token each, {1e3 * took['sample'] / forwards:.2f} ms a pass, prompts included\n"
        f"bare matrix products: torch.matmul, float32, of the shapes of linear layers and output head, attention left out; "
        f"{100 * side.passes:.0f} % of the completions are in the update"
    )
    (folder / "result.json").write_text(json.dumps({"seconds": took, "floor": floor, "flops": flops, "side": vars(side)}))


def main() -> None:
    if sys.argv[1:2] == ["--ours"]:
        be_ours(Path(sys.argv[2]), sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of a run; the first two are not counted, and one more ends it")
    parser.add_argument("--calibration_steps", type=int, default=6, help="that count, for each setting of TRL")
    parser.add_argument("--setting", type=json.loads, help="of TRL, as a calibration prints it, instead of a calibration")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl_python", type=Path, help=f"python of an environment with trl=={TRL}; default: one is made under --out")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "vs_trl")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    folder = arguments.out / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    print(f"logs and results: {folder}", flush=True)
    (profile if arguments.profile else compare)(arguments, folder)


if __name__ == "__main__":
    main()
