"""Does it pay to choose problems? `--sampling` on the embedded task with few learnable problems, over steps, tokens and seconds.

    python benchmarks/learnability.py grpo vineppo repeated --jobs 2 --plot docs/learnability

70 % of the training problems are solved from the start, 20 % hopeless, 10 % in between; the test problems are of that third kind, and
longer. `grpo` (centred: Dr. GRPO's flags) and `vineppo` have more problems than they can try in a run. `repeated` has GRPO on 100 problems,
which come again, so that there is something to remember (`--candidate_choice memory`).

Prints every tenth step's evaluation of every run. Then it compares each way with `uniform`: the mean of all evaluations and of the last three
(differences seed by seed, 95 % t intervals over seeds), and how much sooner the best value of uniform's mean curve was reached, in steps,
generated tokens and seconds of steps. The range of a speed-up holds 95 % of bootstrap draws over seeds (both ways from the same seeds); with
five seeds that is too narrow for a 95 % interval. Seconds are wall time, so other work on the machine is in them. --plot X writes
X_EXPERIMENT.svg and X_zero.svg. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curves import AXES, Chart, Curve, binned, mean_curve, picture, problems_of, read, save, shown, table
from sweep import ROOT, folder_name, run_all

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
EXPERIMENTS = {
    "grpo": (f"{GRPO} --dataset arithmetic:train=4000,{TASK}", list(WAYS)[:-1]),
    "vineppo": (
        f"train_vineppo.py --learning_rate 3e-4 --max_steps 30 --dataset arithmetic:train=4000,{TASK}",
        ["uniform", "lilo", "adaptive", "dynamic"],
    ),
    "repeated": (f"{GRPO} --dataset arithmetic:train=100,{TASK}", ["uniform", "lilo", "memory"]),
}
DRAWS = 2000  # of the bootstrap


def first_reach(curve: list[tuple[float, float]], value: float) -> float:
    """The x at which a curve of (x, y) first reaches the value, straight lines between its points; infinity if never."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if y1 >= value:
            return x1 if y1 == y0 else x0 + (x1 - x0) * max(0.0, (value - y0) / (y1 - y0))
    return float("inf")


def speed_up(base: list[Curve], other: list[Curve]) -> float:
    """How many times less x the other method takes to the best value of the base runs' mean curve; 0 if it never gets there."""
    curve = mean_curve(base)
    best = max(y for _, y in curve)
    if best == curve[0][1]:  # it never rose: there is nothing to be sooner than
        return 1.0
    return first_reach(curve, best) / first_reach(mean_curve(other), best)


class Sooner(NamedTuple):
    """A speed-up, and the range that 95 % of draws of seeds give; 0: never."""

    times: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{f'{self.times:.2f}' if self.times else 'not reached'} ({self.low:.2f} to {self.high:.2f})"


def sooner(runs: list[dict[str, Any]], base: list[dict[str, Any]], axis: str) -> Sooner:
    """`speed_up` of runs against the base's, on one of AXES."""
    a, b = [run[axis] for run in base], [run[axis] for run in runs]
    draws = np.random.default_rng(0).integers(len(a), size=(DRAWS, len(a)))
    low, high = np.quantile([speed_up([a[i] for i in draw], [b[i] for i in draw]) for draw in draws], [0.025, 0.975])
    return Sooner(speed_up(a, b), float(low), float(high))


def compared(uniform: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[str]:
    """The other way against uniform sampling: mean of all evaluations, of the last three, and the speed-ups."""
    cells = []
    for last in (0, -3):
        means = ([statistics.fmean(list(run["steps"].values())[last:]) for run in runs] for runs in (other, uniform))
        cells.append(shown([a - b for a, b in zip(*means, strict=True)], "+.3f"))
    return cells + [str(sooner(other, uniform, axis)) for axis in AXES]


def plot(results: dict[str, dict[str, list[dict[str, Any]]]], path: str) -> None:
    """A figure for each experiment, pass@1 on each axis; and one with the share of problems that have no gradient."""
    for experiment, ways in results.items():
        solved = f"sampled pass@1, {problems_of(run for runs in ways.values() for run in runs)}"
        charts = [Chart({way: [run[axis] for run in runs] for way, runs in ways.items()}, x, solved) for axis, x in AXES.items()]
        save(picture(charts, f"Unseen problems solved, by how problems are chosen ({experiment})", WAYS), Path(f"{path}_{experiment}.svg"))
    zero = [
        Chart({way: [binned(run, "frac_reward_zero_std") for run in ways[way]] for way in ("uniform", "lilo")}, AXES["steps"], experiment)
        for experiment, ways in results.items()
        if experiment != "repeated"
    ]
    if zero:
        save(picture(zero, "Share of a step's problems that teach nothing: all completions right, or all wrong"), Path(f"{path}_zero.svg"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--flags", default="", help="for every run, as `--learning_rate 1e-3`")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "learnability")
    parser.add_argument("--plot", help="begin of the names of the figures, as docs/learnability")
    arguments = parser.parse_args()
    folders, jobs = {}, {}
    for seed in arguments.seeds:  # all methods of a seed, then the next seed
        for experiment in arguments.experiments:
            command, ways = EXPERIMENTS[experiment]
            for way in ways:
                folder = folders[experiment, way, seed] = arguments.out.absolute() / experiment / folder_name(way) / f"seed-{seed}"
                jobs[folder] = f"{command} {SIZES} {WAYS[way]} {arguments.flags} --seed {seed}".split()
    run_all(jobs, arguments.jobs, "runs")
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for experiment in arguments.experiments:
        ways = {way: [read(folders[experiment, way, seed]) for seed in arguments.seeds] for way in EXPERIMENTS[experiment][1]}
        results[experiment] = ways
        lines = []
        for way, runs in ways.items():
            for seed, run in zip(arguments.seeds, runs, strict=True):
                greedy = [row["eval/greedy"] for row in run["rows"] if "eval/greedy" in row][-1]
                zero = statistics.fmean(binned(run, "frac_reward_zero_std").values())
                curve = [f"{value:.3f}" for step, value in run["steps"].items() if step % 10 == 0]
                lines.append([way, str(seed), *curve, f"{greedy:.3f}", f"{zero:.2f}", f"{run['all_tokens'] / 1e3:.0f}k"])
                lines[-1].append(f"{run['all_seconds']:.0f}")
        steps = [f"step {step}" for step in ways["uniform"][0]["steps"] if step % 10 == 0]
        print(f"\n## {experiment}\n\n" + table(["sampling", "seed", *steps, "greedy", "zero-gradient", "tokens", "steps, s"], lines))
        header = ["sampling", "mean of all evaluations", "of the last three", *(f"speed-up, {axis}" for axis in AXES)]
        print("\n" + table(header, [[way, *compared(ways["uniform"], runs)] for way, runs in ways.items() if way != "uniform"]))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
