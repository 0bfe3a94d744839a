"""Does it pay to choose problems? `--sampling` on the embedded task with few learnable problems, over steps, tokens and seconds.

    python benchmarks/learnability.py grpo vineppo repeated --jobs 2 --plot docs/learnability

70 % of the training problems are solved from the start, 20 % hopeless, 10 % in between; the test problems are of that third kind, and
longer. `grpo` (centred: Dr. GRPO's flags) and `vineppo` have more problems than they can try in a run. `repeated` has GRPO on 100 problems,
which come again, so that there is something to remember (`--candidate_choice memory`).

Prints every tenth step's evaluation of every run. Then it compares each way with `uniform`: the mean of all evaluations and of the last
three (differences seed by seed, 95 % t intervals over seeds), and how much sooner the best value of uniform's mean curve was reached, in
steps, generated tokens and seconds of steps. The range of a speed-up holds 95 % of bootstrap draws over seeds (both ways from the same
seeds); with five seeds that is too narrow for a 95 % interval. Seconds are wall time, so other work on the machine is in them. --plot X
writes X_EXPERIMENT.svg and X_zero.svg. The same command goes on after an interruption.
"""
from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from curves import AXES, Chart, Curve, Run, binned, charts_of, greedy, listed, mean_curve, minus, picture, read, save, shown, tenths, totals
from measure import show
from sweep import Parser, sweep

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
    "vineppo": (f"train_vineppo.py --learning_rate 3e-4 --max_steps 30 --dataset arithmetic:train=4000,{TASK}",
                ["uniform", "lilo", "adaptive", "dynamic"]),
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
        return (f"{self.times:.2f} times sooner" if self.times else "never") + f" ({self.low:.2f} - {self.high:.2f})"


def sooner(runs: list[Run], base: list[Run], axis: str) -> Sooner:
    """`speed_up` of runs against the base's, on one of AXES."""
    a, b = [run[axis] for run in base], [run[axis] for run in runs]
    draws = np.random.default_rng(0).integers(len(a), size=(DRAWS, len(a)))
    low, high = np.quantile([speed_up([a[i] for i in draw], [b[i] for i in draw]) for draw in draws], [0.025, 0.975])
    return Sooner(speed_up(a, b), float(low), float(high))


def compared(uniform: list[Run], other: list[Run]) -> dict[str, str]:
    """The other way against uniform sampling: mean of all evaluations, of the last three, and the speed-ups."""
    cells = {}
    for name, last in (("mean of all evaluations", 0), ("of the last three", -3)):
        ours, base = ([statistics.fmean(list(run["steps"].values())[last:]) for run in runs] for runs in (other, uniform))
        cells[name] = shown(minus(ours, base), "+.3f")
    for axis in AXES:
        found = sooner(other, uniform, axis)
        cells[f"speed-up, {axis}"] = f"{f'{found.times:.2f}' if found.times else 'not reached'} ({found.low:.2f} to {found.high:.2f})"
    return cells


def main() -> None:
    """The command line."""
    parser = Parser(__doc__, "runs/learnability")
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    arguments, flags = parser.parse()
    cells = {f"{experiment}, {way}": f"{EXPERIMENTS[experiment][0]} {SIZES} {WAYS[way]}".split() + flags
             for experiment in arguments.experiments for way in EXPERIMENTS[experiment][1]}
    folders = sweep(cells, arguments.seeds, arguments.out, arguments.jobs)
    zero = []
    for experiment in arguments.experiments:
        runs = {way: [read(folder) for folder in folders[f"{experiment}, {way}"]] for way in EXPERIMENTS[experiment][1]}
        rows = [{"sampling": way, "seed": str(seed), **tenths(run), "greedy": f"{greedy(run)[-1]:.3f}",
                 "zero-gradient": f"{statistics.fmean(binned(run, 'frac_reward_zero_std').values()):.2f}", **totals(run)}
                for way, own in runs.items() for seed, run in zip(arguments.seeds, own, strict=True)]
        others = [{"sampling": way, **compared(runs["uniform"], own)} for way, own in runs.items() if way != "uniform"]
        show(f"\n## {experiment}\n\n{listed(rows)}\n\n{listed(others)}")
        shares = {way: [binned(run, "frac_reward_zero_std") for run in runs[way]] for way in ("uniform", "lilo")}
        zero.append(Chart(shares, AXES["steps"], experiment))
        if arguments.plot:
            title = f"Unseen problems solved, by how training problems are chosen ({experiment})"
            save(picture(charts_of(runs, list(AXES)), title, WAYS), Path(f"{arguments.plot}_{experiment}.svg"))
    if arguments.plot:
        title = "Share of a step's problems that teach nothing: all completions right, or all wrong"
        save(picture(zero, title), Path(f"{arguments.plot}_zero.svg"))


if __name__ == "__main__":
    main()
