"""How often the 95 % interval of eval.py contains the true value, in simulated evaluations: the table of docs/evaluation.md.

    python benchmarks/interval_coverage.py [--draws 4000]

Each simulated evaluation first draws the chance of each problem to be solved, then the samples of each problem. The true value is the
mean chance over all problems of that kind. The numbers in brackets are for the mean +- 1.96 standard errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from measure import parser, show, table

from eval import interval

# name: the chances of n problems, the mean chance, samples of each problem
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
    options = parser(__doc__)
    options.add_argument("--draws", type=int, default=4000, help="simulated evaluations")
    draws = options.parse_args().draws
    sizes, rows = (30, 100, 500), []
    for name, (chances, truth, samples) in KINDS.items():
        cells = []
        for n in sizes:
            rng, ours, plain = np.random.default_rng(0), 0, 0
            for _ in range(draws):
                scores = rng.binomial(samples, chances(rng, n).astype(float)) / samples
                found = interval(scores.tolist(), samples)
                ours += found["low"] <= truth <= found["high"]
                plain += abs(scores.mean() - truth) <= 1.96 * scores.std(ddof=1) / n**0.5
            cells.append(f"{ours / draws:.3f} ({plain / draws:.3f})")
        rows.append([name, *cells])
    show(table(["scores", *(f"{n} problems" for n in sizes)], rows))


if __name__ == "__main__":
    main()
