"""A real model learns small sums on a CPU: GRPO on SmolLM2-135M-Instruct, with answers before and after. `make demo-real` runs it.

    python benchmarks/real_model.py
    python benchmarks/real_model.py --seeds 0 1 2
    python benchmarks/real_model.py --plot docs/real_model.json

Trains once for each seed, then shows the greedy answers to the same test questions without and with the adapter of the first seed. The
reward is that of examples/rewards/last_number.py: the last number of the text counts. A run is one pass over the training questions, so
the completions of a step are about questions that the model has not been trained on. Seeds that are finished in --out are not trained
again, and an unfinished one goes on from its checkpoint. No run is left out. What was found is written to results.json in --out;
docs/real_model.json is that of three seeds, and --plot makes a picture of it, beside it.
"""
from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from curves import COLOURS, INK, LEFT, LETTERS, RIGHT, WIDTH, Curve, mean_curve, place, read, save, sheet, write

from common.console import guard, say
from common.files import write_file
from common.problems.sums import TRAIN
from examples.rewards.last_number import last_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
PROBLEMS, GENERATIONS = 8, 8  # of a step
STEPS = TRAIN // PROBLEMS  # one pass
BIN = 5  # steps of training completions that make one point of the picture
SHOWN = 10  # answers
# The model's own chat template with its own system message: the question alone, without our request for a box
SAME = ["--model", "smollm2", "--dataset", "sums", "--max_completion_length", "16",
        "--system_prompt", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"]
TRAINING = ["--reward", f"{ROOT}/examples/rewards/last_number.py:last_number", "--reward_failed", "0", "--reward_workers", "1",
            "--problems_per_step", str(PROBLEMS), "--num_generations", str(GENERATIONS), "--lora_r", "16", "--lora_alpha", "32",
            "--learning_rate", "5e-4", "--warmup_steps", "0", "--max_steps", str(STEPS), "--eval_steps", str(STEPS // 2),
            "--eval_problems", "80", "--save_steps", str(STEPS // 2), "--max_tokens_per_microbatch", "2048"]
SAMPLED, GREEDY = "eval/reward", "eval/reward_greedy"


# ---- the runs --------------------------------------------------------------------------------------------------------

def dtype_flags() -> list[str]:
    """bfloat16 where the CPU multiplies it faster than float32, else the default.

    With AVX512-BF16 the products of this model took half the time of float32's, with AVX-512 alone 2.4 times it, with AVX2 4.5 times.
    """
    import torch

    can = torch.cpu.get_capabilities()
    return ["--dtype", "bfloat16"] if can.get("avx512_bf16") or can.get("amx_bf16") else []


def call(script: str, *flags: str, stdout: int | None = None) -> None:
    """Runs a script, which shows its output here, or on stderr alone. Exits if it fails; it has said why."""
    code = subprocess.run([sys.executable, str(ROOT / script), *SAME, *dtype_flags(), *flags], stdout=stdout).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)  # below 0: minus the signal that ended it


def trained(seed: int, out: Path) -> Path:
    """The run folder of this seed, trained now if it is not finished."""
    folder = out / f"seed-{seed}"
    if not (folder / f"checkpoint-{STEPS}").exists():
        call("train_grpo.py", *TRAINING, "--seed", str(seed), "--output_dir", str(folder), "--resume_from_checkpoint", "auto")
    return folder


def answers(folder: Path, *flags: str) -> list[dict[str, Any]]:
    """The greedy answers to the first test questions, in the order of evaluations: rows of problems.jsonl of eval.py in this folder."""
    if not (folder / "summary.json").exists():
        # its scores are those of our checker, which wants a marked answer: this model marks none, so they are not shown
        call("eval.py", "--num_samples", "0", "--max_problems", str(SHOWN), "--output_dir", str(folder), *flags, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]


def answer_of(row: dict[str, Any]) -> tuple[str, bool]:
    """A greedy answer on one line, and whether it is right by the reward of the run. One that was cut off is wrong."""
    text, cut = row["greedy"]["completion"], row["greedy"]["finish_reason"] != "stop"
    return " ".join(text.split()) + ("..." if cut else ""), not cut and last_number(text, SimpleNamespace(answer=row["reference"])) == 1


def side_by_side(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each question: "question" as in 18 - 15, and "before" and "after" as in ["18 - 15 = 3", true]."""
    rows = []
    for old, new in zip(before, after, strict=True):
        if old["prompt"] != new["prompt"]:
            raise ValueError(f"not the same question: {old['problem']} and {new['problem']}")
        question = re.search(r"What is (.+?)\? Answer", old["prompt"])[1]
        rows.append({"question": question, "before": answer_of(old), "after": answer_of(new)})
    return rows


def curves_of(folder: Path) -> dict[str, dict[str, float]]:
    """What is kept of a run: the reward of each step, and both scores on the test questions, by step."""
    rows = read(folder, GREEDY)["rows"]
    return {name: {str(row["step"]): round(row[name], 6) for row in rows if name in row} for name in ("reward", SAMPLED, GREEDY)}


# ---- what is shown ---------------------------------------------------------------------------------------------------

def shorten(text: str, width: int = 27) -> str:
    """The beginning of a text, with three dots if it is longer."""
    return text if len(text) <= width else text[:width - 3].rstrip(" .") + "..."


def lines_of(results: dict[str, Any]) -> list[str]:
    """The answers side by side, and each seed's scores at the evaluations."""
    first = next(iter(results["seeds"]))
    lines = ["", f"greedy answers to the same {len(results['answers'])} test questions before and after {STEPS} steps (seed {first})", ""]
    for row in results["answers"]:
        cells = [f"{shorten(text):<28}{'right' if right else 'wrong'}" for text, right in (row["before"], row["after"])]
        lines.append(f"  {row['question']:>7}    {cells[0]}    {cells[1]}")
    lines += ["", "share of all 80 test questions that is right, by training step"]
    for seed, own in results["seeds"].items():
        for name, metric in (("sampled", SAMPLED), ("greedy", GREEDY)):
            lines.append(f"  seed {seed}  {name:<8}" + "".join(f"  {step:>3}: {value:.3f}" for step, value in own[metric].items()))
    return [*lines, ""]


def binned(curve: dict[str, float]) -> Curve:
    """Means over BIN steps each, at the middle of them. Example: steps 1 to 5 -> a point at 3."""
    values = [curve[str(step)] for step in range(1, STEPS + 1)]
    return {i + (BIN + 1) / 2: statistics.fmean(values[i:i + BIN]) for i in range(0, STEPS, BIN)}


def drawn(results: dict[str, Any]) -> Figure:
    """The curves of all seeds, and below them the answers, cut to the width of the picture."""
    high, line = 1.9, 0.19
    text = line * (len(results["answers"]) + 1) + 0.1
    seeds = results["seeds"].values()
    figure = sheet("SmolLM2-135M learns small sums by RL on a CPU", "thin: one seed; bold: mean of the seeds", high + 0.65 + text)
    write(figure, 0.08, high + 0.63 + text, "share of answers that are right (test: 80 unseen questions)")
    axes = place(figure, LEFT, text + 0.45, WIDTH - LEFT - RIGHT, high)
    for i, own in enumerate(seeds):
        label = None if i else f"sampled, in training ({BIN * PROBLEMS * GENERATIONS} a point)"
        axes.plot(*zip(*binned(own["reward"]).items(), strict=True), color=INK, linewidth=0.8, alpha=0.35, label=label)
    for label, metric, colour in (("sampled, test", SAMPLED, COLOURS[0]), ("greedy, test", GREEDY, COLOURS[1])):
        curves = [{float(step): y for step, y in own[metric].items()} for own in seeds]
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(*zip(*mean_curve(curves), strict=True), "o-", color=colour, markersize=3.5, linewidth=2, label=label)
    axes.set(xlim=(0, STEPS), ylim=(-0.02, 1))
    axes.legend(frameon=False, fontsize=LETTERS, labelcolor=INK, loc="lower right")
    write(figure, (LEFT + WIDTH - RIGHT) / 2, text + 0.24, "training step", ha="center")
    columns, first = (0.08, 0.75, 2.55), next(iter(results["seeds"]))
    for x, head in zip(columns, ("What is", "greedy answer before", f"after {STEPS} steps (seed {first})"), strict=True):
        write(figure, x, text, head, weight="bold")
    for i, row in enumerate(results["answers"]):
        y = text - line * (i + 1)
        write(figure, columns[0], y, row["question"])
        for x, (said, right) in zip(columns[1:], (row["before"], row["after"]), strict=True):
            write(figure, x, y, ("\u2713 " if right else "\u2717 ") + shorten(said), alpha=1.0 if right else 0.65)
    return figure


def main() -> None:
    """The command line."""
    guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/real_model"), help="folder of the runs")
    parser.add_argument("--plot", type=Path, metavar="RESULTS.json", help="draw these results beside their file; nothing is run")
    arguments = parser.parse_args()
    if arguments.plot:
        save(drawn(json.loads(arguments.plot.read_text())), arguments.plot.with_suffix(".svg"))
        return
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C also reaches the script in hand, which saves and ends; so does this then
    folders = {seed: trained(seed, arguments.out) for seed in arguments.seeds}
    first = folders[arguments.seeds[0]]
    before = answers(arguments.out / "before")
    after = answers(first / "after", "--adapter", str(first / f"checkpoint-{STEPS}"))
    results = {"seeds": {str(seed): curves_of(folder) for seed, folder in folders.items()}, "answers": side_by_side(before, after)}
    write_file(arguments.out / "results.json", json.dumps(results) + "\n")
    say(*lines_of(results), f"curves and completions: {first / 'report.html'}")


if __name__ == "__main__":
    main()
