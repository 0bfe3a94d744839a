"""Does it pay to choose problems? `--sampling` on the embedded task with few learnable problems, over steps, tokens and seconds.

    python benchmarks/learnability.py grpo vineppo repeated --jobs 2 --plot docs/learnability

70 % of the training problems are solved from the start, 20 % hopeless, 10 % in between; the test problems are of that third
kind, and longer. `grpo` (centred: Dr. GRPO's flags) and `vineppo` have more problems than they can try in a run; `repeated`
has GRPO on 100 problems, which come again, so that there is something to remember (`--candidate_choice memory`).

Prints every evaluation of every run; then, against `uniform`, the mean of all evaluations and of the last three (differences
seed by seed, 95 % t intervals over seeds), and how much sooner the best value of the uniform runs' mean curve was reached, in
steps, generated tokens and seconds of steps, with the range that 95 % of bootstrap draws over seeds give (both methods from the
same seeds): with five seeds that range is too narrow for a 95 % interval. Seconds are wall time, so a busy machine is in them.
Finished runs are not run again. One thread a run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

from scipy import stats
from seeds import LABELS, ROOT, curves_of, run_seed, table

TASK = "values=60,tiers=100-0-0:7:1-2/minus:2:14-16/half:1:5-8,test_tiers=half:30:5-8/half:10:9-12,warm_steps=900,habits=0.01:0.41:0.41"
SIZES = "--problems_per_step 8 --num_generations 8 --eval_steps 5 --save_steps 0"
GRPO = "train_grpo.py --no_scale_rewards --loss_aggregation constant --learning_rate 7e-4 --max_steps 80"
WAYS = {
    "uniform": "",
    "lilo": "--sampling lilo",
    "lilo, 2x": "--sampling lilo --candidate_factor 2",
    "lilo, 8x pairs": "--sampling lilo --candidate_factor 8 --candidate_generations 2",
    "adaptive": "--sampling adaptive",
    "dynamic": "--sampling dynamic",
    "memory": "--sampling lilo --candidate_factor 1 --candidate_choice memory",
}
FRESH = ["uniform", "lilo", "lilo, 2x", "lilo, 8x pairs", "adaptive", "dynamic"]
EXPERIMENTS = {
    "grpo": (f"{GRPO} --dataset arithmetic:train=4000,{TASK}", FRESH),
    "vineppo": (
        f"train_vineppo.py --learning_rate 3e-4 --max_steps 30 --dataset arithmetic:train=4000,{TASK}",
        ["uniform", "lilo", "adaptive", "dynamic"],
    ),
    "repeated": (f"{GRPO} --dataset arithmetic:train=100,{TASK}", ["uniform", "lilo", "memory"]),
}
AXES = ("steps", "tokens", "seconds")
DRAWS = 2000  # of the bootstrap
Curve = dict[float, float]


def first_reach(curve: list[tuple[float, float]], value: float) -> float:
    """The x at which a curve of (x, y) first reaches the value, straight lines between its points; infinity if never."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 >= value:
            return x1 if y1 == y0 else x0 + (x1 - x0) * max(0.0, (value - y0) / (y1 - y0))
    return float("inf")


def mean_curve(runs: list[Curve]) -> list[tuple[float, float]]:
    """Over runs that were evaluated at the same steps: the mean x and the mean y of each evaluation."""
    points = zip(*(run.items() for run in runs), strict=True)
    return [(statistics.fmean(x for x, _ in point), statistics.fmean(y for _, y in point)) for point in points]


def speed_up(uniform: list[Curve], other: list[Curve]) -> float:
    """How many times less x the other method takes to the best value of the uniform runs' mean curve; 0 if it never gets there."""
    base = mean_curve(uniform)
    best = max(y for _, y in base)
    if best == base[0][1]:  # it never rose: there is nothing to be sooner than
        return 1.0
    return first_reach(base, best) / first_reach(mean_curve(other), best)


def middle(values: list[float]) -> tuple[float, float]:
    """Between which 95 % of the values lie."""
    values = sorted(values)
    return values[int(0.025 * len(values))], values[int(0.975 * len(values)) - 1]


def compared(uniform: list[dict[str, Curve]], other: list[dict[str, Curve]]) -> list[str]:
    """The other method against uniform sampling: mean of all evaluations, of the last three, and the speed-ups."""
    rng = random.Random(0)
    drawn = [[rng.randrange(len(uniform)) for _ in uniform] for _ in range(DRAWS)]
    cells = []
    for last in (0, -3):
        apart = [
            statistics.mean(list(b["steps"].values())[last:]) - statistics.mean(list(a["steps"].values())[last:])
            for a, b in zip(uniform, other, strict=True)
        ]
        mean = statistics.mean(apart)
        half = stats.t.ppf(0.975, len(apart) - 1) * statistics.stdev(apart) / len(apart) ** 0.5
        cells.append(f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})")
    for axis in AXES:
        a, b = [run[axis] for run in uniform], [run[axis] for run in other]
        low, high = middle([speed_up([a[i] for i in draw], [b[i] for i in draw]) for draw in drawn])
        whole = speed_up(a, b)
        cells.append(f"{f'{whole:.2f}' if whole else 'not reached'} ({low:.2f} to {high:.2f})")
    return cells


def plot(experiments: dict[str, dict[str, list[dict[str, Any]]]], path: str) -> None:
    """path.png: pass@1, a row for each experiment and a panel for each axis. path_zero.png: problems without gradient."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(experiments), 3, figsize=(15, 3.6 * len(experiments)), dpi=100, squeeze=False)
    for axes, (title, methods) in zip(rows, experiments.items(), strict=True):
        for axis, panel in zip(AXES, axes, strict=True):
            for m, (name, runs) in enumerate(methods.items()):
                for run in runs:
                    panel.plot(run[axis].keys(), run[axis].values(), color=f"C{m}", linewidth=0.6, alpha=0.4)
                x, y = zip(*mean_curve([run[axis] for run in runs]), strict=True)
                panel.plot(x, y, color=f"C{m}", linewidth=2, label=name)
            panel.set(xlabel=LABELS[axis] if axis != "steps" else "step", ylabel=f"{title}: sampled pass@1", ylim=(0.1, 1.02))
            panel.grid(alpha=0.3)
        axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(f"{path}.png")
    shown = {title: methods for title, methods in experiments.items() if title != "repeated"}
    figure, axes = pyplot.subplots(1, max(1, len(shown)), figsize=(6 * max(1, len(shown)), 3.4), dpi=100, squeeze=False)
    for panel, (title, methods) in zip(axes[0], shown.items(), strict=True):
        for m, name in enumerate(methods):
            if name in ("uniform", "lilo"):
                for run in methods[name]:
                    panel.plot(run["zero"].keys(), run["zero"].values(), color=f"C{m}", linewidth=0.5, alpha=0.35)
                x, y = zip(*mean_curve([run["zero"] for run in methods[name]]), strict=True)
                panel.plot(x, y, color=f"C{m}", linewidth=2, label=name)
        panel.set(xlabel="step", ylabel="share of problems without gradient", title=title, ylim=(-0.02, 1.02))
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(f"{path}_zero.png")


def read(folder: Path) -> dict[str, Any]:
    """A run's curves; `zero`: the share of the batch's problems whose completions all have the same reward, in tens of steps."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "frac_reward_zero_std" in row]
    tens = [steps[i : i + 10] for i in range(0, len(steps), 10)]
    zero = {part[-1]["step"]: statistics.mean(row["frac_reward_zero_std"] for row in part) for part in tens}
    return {**curves_of(rows), "zero": zero, "greedy": [row["eval/greedy"] for row in rows if "eval/greedy" in row][-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--flags", default="", help="for every run, as `--learning_rate 1e-3`")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "learnability")
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = {}
    for seed in arguments.seeds:  # all methods of a seed, then the next seed
        for experiment in arguments.experiments:
            command, ways = EXPERIMENTS[experiment]
            for way in ways:
                folder = arguments.out / experiment / way.replace(", ", "-").replace(" ", "-") / f"seed-{seed}"
                jobs[experiment, way, seed] = (folder, f"{command} {SIZES} {WAYS[way]} {arguments.flags}".split(), seed)
    with ThreadPoolExecutor(arguments.jobs) as threads:
        list(threads.map(lambda job: run_seed(*job), jobs.values()))
    results = {
        experiment: {way: [read(jobs[experiment, way, seed][0]) for seed in arguments.seeds] for way in EXPERIMENTS[experiment][1]}
        for experiment in arguments.experiments
    }
    for experiment, methods in results.items():
        rows = [
            [
                way,
                str(seed),
                *(f"{value:.3f}" for step, value in run["steps"].items() if step % 10 == 0),
                f"{run['greedy']:.3f}",
                f"{statistics.mean(run['zero'].values()):.2f}",
                f"{max(run['tokens']):.0f}k",
                f"{max(run['seconds']):.0f}",
            ]
            for way, runs in methods.items()
            for seed, run in zip(arguments.seeds, runs, strict=True)
        ]
        steps = [f"step {step}" for step in methods["uniform"][0]["steps"] if step % 10 == 0]
        print(f"\n## {experiment}\n\n" + table(["sampling", "seed", *steps, "greedy", "zero-gradient", "tokens", "steps, s"], rows))
        header = ["sampling", "mean of all evaluations", "of the last three", *(f"speed-up, {axis}" for axis in AXES)]
        others = [[way, *compared(methods["uniform"], runs)] for way, runs in methods.items() if way != "uniform"]
        print("\n" + table(header, others))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    sys.exit(main())
