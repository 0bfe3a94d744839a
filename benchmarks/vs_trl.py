"""Seconds and memory of a training step: train_grpo.py beside TRL's GRPOTrainer, on the CPU, in runs that take turns.

    python benchmarks/vs_trl.py [--rounds 3] [--steps 12] [--threads 2] [--trl_python PATH]
    python benchmarks/vs_trl.py --profile        # the time of each phase, and of its matrix products
    python benchmarks/vs_trl.py --model smollm2 --threads 1 --cpu_seconds --warm_up 1 --steps 3

Both sides train the same model on the same problems in the same order: the same number of completions, the same LoRA, AdamW, learning
rate and reward, one update a step, no evaluation. Of the embedded model it is 16 x 8 completions a step, of smollm2 8 x 8 on the data set
sums. TRL runs in an environment of its own, which is made on first use. A calibration first looks for TRL's fastest settings and prints
what it tried.

The time of a step goes from its beginning to the beginning of the next step, or to the end of the run, so that it includes everything.
The first steps of a run (--warm_up) are not counted. The script prints medians of both sides and their ratio in each round. --cpu_seconds
counts the seconds of the processor that a side took, for a machine that others use; then give --threads 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import ROOT, Products, parser, read_rows, resident_gb, run_logged, show, spread, table, versions

from common.console import fail, say
from common.files import write_file

TRL = "1.16.0"
OURS, THEIRS = "train_grpo.py", "TRL"
PHASES = ("sample", "verify", "update", "sync")
FLAGS = ["--eval_steps", "0", "--save_steps", "0", "--lr_scheduler_type", "constant", "--warmup_steps", "0"]
# of a real model: its template with the question alone, and the reward that reads its answers
REAL = ["--dataset", "sums", "--prompt_template", "chat:{question}", "--reward", "examples/rewards/last_number.py:last_number",
        "--reward_failed", "0", "--reward_workers", "1", "--problems_per_step", "8", "--lora_r", "16", "--lora_alpha", "32",
        "--learning_rate", "3e-4", "--engine", "transformers"]

# One run of either side, as trl_side.py writes it. Each step has began, sample, verify (seconds), lengths, rewards (of every completion)
# and trained (share of the completions with a forward and backward pass). `ended` is the end of the last one. `start` adds seconds
Result = dict[str, Any]


def start(command: list[str], path: Path, threads: int) -> Result | None:
    """The result that a run of one side left in `path`.json. None if the run failed; its output is in `path`.log."""
    only_cpu = {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    if run_logged(command, path.with_suffix(".log"), **only_cpu):
        return None
    result = json.loads(path.with_suffix(".json").read_text())
    steps = result["steps"]
    for step, (began, ended) in zip(steps, pairwise([*(step["began"] for step in steps), result["ended"]]), strict=True):
        step["seconds"] = ended - began
    return result


def counted_seconds(result: Result, warm_up: int) -> list[float]:
    """The seconds of each counted step."""
    return [step["seconds"] for step in result["steps"][warm_up:]]


def flags_of(arguments: argparse.Namespace) -> list[str]:
    """The flags of train_grpo.py that follow from the command line."""
    length = ["--max_completion_length", str(arguments.max_completion_length)] if arguments.max_completion_length else []
    flags = [*FLAGS, "--model", arguments.model, *(REAL if arguments.model != "tiny" else []), "--dtype", arguments.dtype, *length]
    if arguments.all_trained:  # of a flag that is given twice, the last one counts
        flags += ["--reward", "benchmarks/spread_reward.py:spread", "--reward_failed", "0", "--reward_workers", "1"]
    return flags


# ---- train_grpo.py ---------------------------------------------------------------------------------------------------


def train(folder: Path, steps: str, seed: str, flags: list[str]) -> None:
    """Runs train_grpo.py in this process."""
    import train_grpo
    from common.launch import parse_command_line

    sys.argv = ["train_grpo.py", *flags, "--max_steps", steps, "--seed", seed, "--output_dir", str(folder)]
    train_grpo.run_script(train_grpo.train, parse_command_line(train_grpo.Config, train_grpo.__file__))


def be_ours(folder: Path, steps: str, seed: str, clock_name: str, *flags: str) -> None:
    """Runs train_grpo.py in this process and writes the same result as trl_side.py. clock_name: a clock of the module `time`."""
    import torch
    from safetensors.torch import load_file

    from common.config import CommonConfig
    from common.policy.pretrained import model_folder
    from common.run.run import Run

    began, ended, before, original, clock = [], [], [], Run.steps, getattr(time, clock_name)

    def noted(run: Run) -> Iterator[int]:
        before.append(resident_gb("VmHWM"))
        for step in original(run):
            began.append(clock())
            yield step
            ended[:] = [clock()]  # of the last step also the checkpoint

    @contextlib.contextmanager
    def timer(run: Run, phase: str) -> Iterator[None]:
        start = clock()
        yield
        run.seconds[phase] = run.seconds.get(phase, 0.0) + clock() - start

    Run.steps, Run.timer = noted, timer
    train(folder, steps, seed, list(flags))
    rows, completions = read_rows(folder / "metrics.jsonl"), read_rows(folder / "completions.jsonl")
    given = json.loads((folder / "config.json").read_text())["flags"]
    noted_steps = []
    for beginning, row in zip(began, rows, strict=True):
        own = [completion for completion in completions if completion["step"] == row["step"]]
        step = {"began": beginning, **{phase: row[f"time/{phase}"] for phase in PHASES}}
        step |= {"lengths": [c["tokens"] for c in own], "rewards": [c["reward"] for c in own]}
        noted_steps.append(step | {"trained": statistics.mean(c["advantage"] != 0 for c in own)})
    adapter = load_file(folder / f"checkpoint-{steps}" / "adapter_model.safetensors")
    result = {
        "steps": noted_steps,
        "ended": ended[0],
        "optimizer_steps": len(rows),  # one a step
        "completions": len(completions),
        "parameters": sum(weight.numel() for weight in adapter.values()),
        "model": model_folder(CommonConfig(model=given["model"], dataset=given["dataset"])),
        "threads": torch.get_num_threads(),
        "before_gb": before[0],
        "peak_gb": resident_gb("VmHWM"),
        "versions": versions(),
    }
    write_file(folder.with_suffix(".json"), json.dumps(result))


def run_ours(folder: Path, steps: int, seed: int, arguments: argparse.Namespace, how: str = "--ours") -> Result:
    """train_grpo.py with its run folder in `folder`."""
    command = [sys.executable, __file__, how, str(folder), str(steps), str(seed), clock_of(arguments), *flags_of(arguments)]
    result = start(command, folder, arguments.threads)
    return result or fail(f"{OURS} failed; see {folder}.log")


# ---- TRL -------------------------------------------------------------------------------------------------------------


def make_environment(folder: Path) -> Path:
    """The python of an environment with TRL and our versions of torch, transformers and peft, made on first use."""
    if not (folder / "done").exists():
        wanted = [f"trl=={TRL}", *(f"{package}=={version}" for package, version in versions().items())]
        say(f"making {folder} with {' '.join(wanted)}")
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / "done").touch()
    return folder / "bin" / "python"


def clock_of(arguments: argparse.Namespace) -> str:
    """The name of the clock in the module `time`."""
    return "process_time" if arguments.cpu_seconds else "perf_counter"


def job_like(ours: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The job for TRL: the problems, sizes and rates of one of our runs."""
    flags = json.loads((ours / "config.json").read_text())["flags"]
    rows = read_rows(ours / "completions.jsonl")[:: flags["num_generations"]]  # the first completion of each group
    same = ("num_generations", "max_completion_length", "max_steps", "temperature", "learning_rate", "lr_scheduler_type")
    same += ("warmup_steps", "max_grad_norm", "epsilon", "beta", "seed")
    return {
        "model": json.loads(ours.with_suffix(".json").read_text())["model"],
        "dtype": flags["dtype"],
        "reward": flags["reward"],
        "clock": clock_of(arguments),
        "problems": [{"prompt": row["prompt"], "answer": row["answer"]} for row in rows],
        "lora": {"r": flags["lora_r"], "lora_alpha": flags["lora_alpha"], "target_modules": "all-linear"},
        "attention": "sdpa",
        "config": {
            **{name: flags[name] for name in same},
            "generation_batch_size": flags["problems_per_step"] * flags["num_generations"],
            "weight_decay": 0.0,
            "loss_type": "dapo",  # TRL's name for the mean over all tokens of the step
            "shuffle_dataset": False,  # the problems are in our order already
            "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
            "log_completions": False, "save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True,
        },
    }


def choices(completions: int, few: bool) -> dict[str, list[dict[str, Any]]]:
    """The settings that the calibration tries, by kind. Each kind is tried on top of the best settings of the kinds before it.

    few: not those that made the embedded model several times slower.
    """
    sizes = [completions // parts for parts in ((1, 4) if few else (1, 2, 4, 8))]
    # a block holds 256 tokens, which is one completion; without a bound the cache takes most of the machine's memory
    blocks = {"num_blocks": completions, "max_batch_tokens": 2 * completions}
    continuous = {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": blocks}
    first = {
        "micro-batch": [{"per_device_train_batch_size": n, "gradient_accumulation_steps": completions // n} for n in sizes],
        "attention": [{}, {"attention": "eager"}],
    }
    return first if few else first | {
        "sampling": [{}, {"cache_implementation": "static"}, continuous],
        "compilation": [{}, {"torch_compile": True}],
    }


def run_trl(python: Path, job: dict[str, Any], setting: dict[str, Any], path: Path, threads: int) -> Result | None:
    """TRL on the job with this setting. None if it failed."""
    own = {"attention": job["attention"], **setting}
    job = {**job, "attention": own.pop("attention"), "config": {**job["config"], **own, "output_dir": str(path)}}
    source = path.with_suffix(".job.json")
    write_file(source, json.dumps(job))
    return start([str(python), "benchmarks/trl_side.py", str(source), str(path.with_suffix(".json"))], path, threads)


def calibrate(python: Path, job: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """TRL's fastest setting. Prints a table of all that were tried.

    Compilation goes on during the first steps, so settings are compared by the mean over all steps. Runs of one setting do the same
    steps, and other load on the machine only adds time, so the faster run counts for each step.
    """
    best, lines, turns = {}, [], arguments.turns
    for kind, settings in choices(job["config"]["generation_batch_size"], arguments.model != "tiny").items():
        runs: list[list[Result | None]] = [[] for _ in settings]
        for turn in range(turns):
            for i, setting in enumerate(settings):
                path = folder / f"calibrate-{kind}-{i}-{turn}"
                runs[i].append(run_trl(python, job, {**best, **setting}, path, arguments.threads))
                say(f"calibration, {kind}, {named(setting)}: run {turn + 1} of {turns} is done")
        means: list[float] = []
        for setting, own in zip(settings, runs, strict=True):
            if None in own:
                means.append(float("inf"))
                lines.append([kind, named(setting), "failed", "", ""])
                continue
            fastest = [min(seconds) for seconds in zip(*([s["seconds"] for s in run["steps"]] for run in own), strict=True)]
            means.append(statistics.mean(fastest))
            after, peak = statistics.median(fastest[arguments.warm_up:]), max(run["peak_gb"] for run in own)
            lines.append([kind, named(setting), f"{means[-1]:.3f}", f"{after:.3f}", f"{peak:.2f}"])
        if min(means) == float("inf"):
            fail(f"TRL failed with every setting; see the logs in {folder}")
        best = {**best, **settings[means.index(min(means))]}
    last = arguments.calibration_steps
    seconds = [f"seconds a step, all {arguments.warm_up + last}", f"median of the last {last}"]
    show("\n" + table(["", "setting of TRL", *seconds, "peak GB"], lines))
    return best


def named(setting: dict[str, Any]) -> str:
    """The setting in one line."""
    return " ".join(f"{key}={value}" for key, value in setting.items()) or "default"


# ---- the comparison --------------------------------------------------------------------------------------------------


def check_same_work(ours: Result, theirs: Result) -> None:
    """Ends the program if the work of the two sides differs."""
    for name in ("optimizer_steps", "completions", "parameters", "threads", "versions"):
        if ours[name] != theirs[name]:
            fail(f"the two sides did not do the same work: {name} is {ours[name]} in {OURS} and {theirs[name]} in {THEIRS}")


def measures(run: Result, warm_up: int) -> dict[str, list[float]]:
    """The quantities of one run: a value for each counted step, or one value for the run."""
    steps = run["steps"][warm_up:]
    seconds, lengths = [step["seconds"] for step in steps], [length for step in steps for length in step["lengths"]]
    return {
        "completions/s": [len(lengths) / sum(seconds)],
        "seconds a step": seconds,
        "of them sampling": [step["sample"] for step in steps],
        "update, sync and the rest": [step["seconds"] - step["sample"] - step["verify"] for step in steps],
        "peak resident memory, GB": [run["peak_gb"]],
        "of it added by the steps": [run["peak_gb"] - run["before_gb"]],
        "tokens a completion": [statistics.mean(lengths)],
        "reward of the first step": [statistics.mean(run["steps"][0]["rewards"])],
        "reward of the last step": [statistics.mean(run["steps"][-1]["rewards"])],
        "completions with a forward and backward pass, %": [100 * statistics.mean(step["trained"] for step in steps)],
        "seconds a token": [sum(seconds) / sum(lengths)],
    }


def report(sides: dict[str, list[Result]], warm_up: int) -> str:
    """A table of both sides over all rounds, and a table of their ratios in each round."""
    found = {name: [measures(run, warm_up) for run in runs] for name, runs in sides.items()}
    rows = [[name, *(spread([value for run in runs for value in run[name]], ".3g") for runs in found.values())] for name in found[OURS][0]]
    ratios = []
    for name in ("seconds a step", "seconds a token", "peak resident memory, GB"):
        pairs = zip(found[OURS], found[THEIRS], strict=True)
        own = [statistics.median(ours[name]) / statistics.median(theirs[name]) for ours, theirs in pairs]
        ratios.append([name, *(f"{ratio:.3f}" for ratio in own), f"**{statistics.median(own):.3f}**"])
    header = [f"{OURS} / {THEIRS}", *(f"round {i + 1}" for i in range(len(sides[OURS]))), "median"]
    return f"median (lowest - highest)\n\n{table(['', *sides], rows)}\n\n{table(header, ratios)}"


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Prints the tables of both sides over all rounds."""
    python = arguments.trl_python or make_environment(folder.parent / f"trl-{TRL}")
    setting = arguments.setting
    if setting is None:
        say(f"a short run of {OURS}, which gives the problems for the calibration")
        run_ours(folder / "ours-0", arguments.warm_up + arguments.calibration_steps, 0, arguments)
        setting = calibrate(python, job_like(folder / "ours-0", arguments), folder, arguments)
    show(f"\nsetting of TRL: {json.dumps(setting)}")
    sides: dict[str, list[Result]] = {OURS: [], THEIRS: []}
    for i in range(1, arguments.rounds + 1):
        ours = run_ours(folder / f"ours-{i}", arguments.steps, i, arguments)
        theirs = run_trl(python, job_like(folder / f"ours-{i}", arguments), setting, folder / f"trl-{i}", arguments.threads)
        if theirs is None:
            fail(f"TRL failed; see {folder / f'trl-{i}.log'}")
        check_same_work(ours, theirs)
        sides[OURS].append(ours)
        sides[THEIRS].append(theirs)
        seconds = [statistics.median(counted_seconds(run, arguments.warm_up)) for run in (ours, theirs)]
        say(f"round {i} of {arguments.rounds}: {OURS} {seconds[0]:.3f} s a step, {THEIRS} {seconds[1]:.3f} s")
    write_file(folder / "result.json", json.dumps({"setting": setting, "sides": sides}))
    show(f"\n{arguments.threads} threads, {arguments.dtype}, {clock_of(arguments)}, steps {arguments.warm_up + 1} to {arguments.steps} of "
         f"{arguments.rounds} runs a side, TRL {TRL}, {versions()}\n\n{report(sides, arguments.warm_up)}")


# ---- where the time goes ----------------------------------------------------------------------------------------------


def be_profiled(folder: Path, steps: str, seed: str, clock_name: str, *flags: str) -> None:
    """Runs train_grpo.py in this process and writes where the time of the counted step goes, as trl_side.py with `profile`."""
    from common.config import CommonConfig
    from common.policy.pretrained import model_folder
    from common.run.run import Run

    found, timer = {phase: Products() for phase in PHASES}, Run.timer

    @contextlib.contextmanager
    def profiled(run: Run, phase: str) -> Iterator[None]:
        with timer(run, phase), found[phase] if run.step == int(steps) and phase in found else contextlib.nullcontext():
            yield

    Run.timer = profiled
    train(folder, steps, seed, list(flags))
    phases = {phase: own.found() for phase, own in found.items()}
    given = json.loads((folder / "config.json").read_text())["flags"]
    model = model_folder(CommonConfig(model=given["model"], dataset=given["dataset"]))
    write_file(folder.with_suffix(".json"), json.dumps({"steps": [], "ended": 0.0, "phases": phases, "model": model}))


def seconds_of(shape: tuple[int, int, int], dtype: str, clock_name: str) -> float:
    """Seconds of one torch.matmul of this shape, (m, k) @ (k, n), by a clock of `time`; the fastest of several blocks of calls."""
    import torch
    from torch.utils.benchmark import Timer

    (m, k, n), kind = shape, {"dtype": getattr(torch, dtype)}
    inputs = {"a": torch.randn(m, k, **kind), "b": torch.randn(k, n, **kind), "out": torch.empty(m, n, **kind)}
    timer = Timer("torch.matmul(a, b, out=out)", globals=inputs, num_threads=torch.get_num_threads(),
                  timer=getattr(time, clock_name))
    return min(timer.blocked_autorange(min_run_time=0.01).times)


def profile(arguments: argparse.Namespace, folder: Path) -> None:
    """Prints for one step of both sides the seconds of each phase, those in products, and those of the products by themselves."""
    python, steps = arguments.trl_python or make_environment(folder.parent / f"trl-{TRL}"), arguments.warm_up + 1
    say(f"a run of {OURS} under torch's profiler, and TRL under it on the same problems")
    profiled = {OURS: run_ours(folder / "ours", steps, 0, arguments, "--profiled")}
    job = job_like(folder / "ours", arguments) | {"profile": steps}
    setting = arguments.setting or choices(job["config"]["generation_batch_size"], few=True)["micro-batch"][0]
    profiled[THEIRS] = run_trl(python, job, setting, folder / "trl", arguments.threads) or fail(f"TRL failed; see {folder}")
    import torch

    torch.set_num_threads(arguments.threads)
    lines = []
    for side, run in profiled.items():
        whole = sum(phase["seconds"] for phase in run["phases"].values())
        for name, phase in run["phases"].items():
            bare = sum(seconds_of(tuple(shape), arguments.dtype, clock_of(arguments)) * times for shape, times in phase["products"])
            gflop = sum(2e-9 * m * k * n * times for (m, k, n), times in phase["products"])
            rest = phase["seconds"] - phase["linear"] - phase["attention"]
            parts = [f"{seconds:.2f} ({seconds / whole:.0%})" for seconds in (phase["seconds"], phase["linear"], phase["attention"], rest)]
            lines.append([side, name, *parts, f"{gflop:.0f}", f"{bare:.2f}"])
    header = ["side", "phase", "seconds", "linear layers", "attention's products", "all else", "GFLOP of linear layers", "alone, s"]
    show(f"\none step under torch's profiler, {arguments.threads} threads, {arguments.dtype}\n\n{table(header, lines)}")


def main() -> None:
    if sys.argv[1:2] in (["--ours"], ["--profiled"]):  # the process of a run
        (be_ours if sys.argv[1] == "--ours" else be_profiled)(Path(sys.argv[2]), *sys.argv[3:])
        return
    options = parser(__doc__)
    options.add_argument("--model", default="tiny", help="tiny, smollm2, or a folder")
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options.add_argument("--max_completion_length", type=int, help="tokens; default: that of train_grpo.py")
    options.add_argument("--all_trained", action="store_true", help="a reward with which all completions are in the update of both sides")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=12, help="of a run, with the warm-up")
    options.add_argument("--warm_up", type=int, default=2, help="steps at the beginning of a run that are not counted")
    options.add_argument("--calibration_steps", type=int, default=6, help="counted steps in each run of the calibration")
    options.add_argument("--turns", type=int, default=2, help="runs of each setting in the calibration")
    options.add_argument("--cpu_seconds", action="store_true", help="count seconds of the processor")
    options.add_argument("--setting", type=json.loads, help="a setting of TRL as the calibration prints it; then there is no calibration")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--trl_python", type=Path, help=f"the python of an environment with trl=={TRL}; default: one is made")
    options.add_argument("--profile", action="store_true")
    arguments = options.parse_args()
    folder = ROOT / "runs" / "vs_trl" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    say(f"logs and results: {folder}")
    (profile if arguments.profile else compare)(arguments, folder)


if __name__ == "__main__":
    main()
