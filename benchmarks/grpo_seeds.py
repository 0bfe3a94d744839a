"""The README's learning curve: train_grpo.py on the embedded task for several seeds, one after the other.

    python benchmarks/grpo_seeds.py [--seeds 0 1 2 3 4] [--out runs/grpo_seeds] [--plot docs/grpo_seeds.png] [-- flags for the script]

Prints every evaluation of every seed as the table in docs/grpo.md, with wall time from process start to exit. Finished
seeds are not run again. --plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_seed(folder: Path, seed: int, flags: list[str]) -> None:
    """Runs the script unless the folder holds the finished run; wall seconds go to seconds.txt."""
    if (folder / "seconds.txt").exists():
        return
    start = time.perf_counter()
    subprocess.run([sys.executable, "train_grpo.py", "--seed", str(seed), "--output_dir", str(folder), *flags], cwd=ROOT, check=True)
    (folder / "seconds.txt").write_text(f"{time.perf_counter() - start:.1f}")


def plot(curves: dict[int, dict[int, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), dpi=110)
    for seed, curve in curves.items():
        axes.plot(curve.keys(), curve.values(), marker="o", markersize=3, linewidth=1.4, label=f"seed {seed}")
    axes.set(
        xlabel="step (16 problems x 8 completions each)",
        ylabel="sampled pass@1, 400 unseen problems",
        ylim=(0, 1.02),
        title="python train_grpo.py: tiny model, 2 CPU cores",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "grpo_seeds")
    parser.add_argument("--plot")
    arguments, flags = parser.parse_known_args()
    curves: dict[int, dict[int, float]] = {}
    lines = []
    for seed in arguments.seeds:
        folder = arguments.out / f"seed-{seed}"
        run_seed(folder, seed, [flag for flag in flags if flag != "--"])
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        evaluations = [row for row in rows if "eval/pass@1" in row and row["step"] <= 60]
        curves[seed] = {row["step"]: row["eval/pass@1"] for row in evaluations}
        last = statistics.mean(list(curves[seed].values())[-3:])
        lines.append(
            f"| {seed} | "
            + " | ".join(f"{value:.3f}" for value in curves[seed].values())
            + f" | **{last:.3f}** | {evaluations[0]['eval/greedy']:.3f} -> {evaluations[-1]['eval/greedy']:.3f} | "
            f"{rows[-1]['num_tokens'] / 1e3:.0f}k | {sum(row.get('step_time', 0) for row in rows):.0f} | "
            f"{float((folder / 'seconds.txt').read_text()):.0f} |"
        )
    steps = list(curves[arguments.seeds[0]])
    print("\n| seed | " + " | ".join(f"step {step}" for step in steps) + " | last three | greedy | tokens | steps, s | whole process, s |")
    print("|---" * (len(steps) + 6) + "|")
    print("\n".join(lines))
    if arguments.plot:
        plot(curves, arguments.plot)


if __name__ == "__main__":
    main()
