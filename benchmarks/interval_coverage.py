"""How often eval.py's 95 % interval holds the truth, over simulated evaluations, beside mean +- 1.96 standard errors.

    python benchmarks/interval_coverage.py [--draws 4000]

A problem's chance to be solved is drawn for each simulated evaluation, then its samples; the truth is the mean chance over
all problems of that kind. Prints the table of docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from eval import interval

# name -> chances of n problems, their mean over all such problems, samples each
KINDS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float, int]] = {
    "greedy, half solved": (lambda rng, n: rng.random(n) < 0.5, 0.5, 1),
    "greedy, 5 % solved": (lambda rng, n: rng.random(n) < 0.05, 0.05, 1),
    "greedy, 98 % solved": (lambda rng, n: rng.random(n) < 0.98, 0.98, 1),
    "mean@16, chances beta(2, 2)": (lambda rng, n: rng.beta(2, 2, n), 0.5, 16),
    "mean@16, chances beta(0.2, 0.8)": (lambda rng, n: rng.beta(0.2, 0.8, n), 0.2, 16),
    "mean@16, all at .3": (lambda rng, n: np.full(n, 0.3), 0.3, 16),
    "mean@16, chances beta(0.1, 4)": (lambda rng, n: rng.beta(0.1, 4, n), 0.1 / 4.1, 16),
    "mean@16, 1 in 20 solved at .5, others never": (lambda rng, n: 0.5 * (rng.random(n) < 0.05), 0.025, 16),
    "mean@16, 1 in 50 always solved, others never": (lambda rng, n: rng.random(n) < 0.02, 0.02, 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000)
    arguments = parser.parse_args()
    sizes = (30, 100, 500)
    print("| scores | " + " | ".join(f"{n} problems" for n in sizes) + " |\n|---" + "|---" * len(sizes) + "|")
    for name, (chances, truth, samples) in KINDS.items():
        cells = []
        for n in sizes:
            rng, ours, plain = np.random.default_rng(0), 0, 0
            for _ in range(arguments.draws):
                scores = rng.binomial(samples, chances(rng, n).astype(float)) / samples
                found = interval(scores.tolist(), samples)
                ours += found["low"] <= truth <= found["high"]
                plain += abs(scores.mean() - truth) <= 1.96 * scores.std(ddof=1) / n**0.5
            cells.append(f"{ours / arguments.draws:.3f} ({plain / arguments.draws:.3f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
