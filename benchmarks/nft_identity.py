"""NFT is (Dr.) GRPO as long as each batch is used for one update: the same seeds through both scripts, token by token.

    python benchmarks/nft_identity.py [--seeds 0 1 2] [--out runs/nft_identity] [--plot docs/nft_identity.png]

For `--prompt_weight sqrt` against GRPO, and `1-r` against centred advantages: up to which step every sampled completion is
the same, how far the two adapters are apart every ten steps, and both learning curves. --plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
PAIRS = {
    "sqrt": {"GRPO": ["train_grpo.py"], "NFT": ["train_nft.py", "--prompt_weight", "sqrt"]},
    "1-r": {"GRPO, centred": ["train_grpo.py", "--no_scale_rewards"], "NFT": ["train_nft.py", "--prompt_weight", "1-r"]},
}


def run(folder: Path, command: list[str], seed: int) -> None:
    """Runs the command unless the folder holds its finished run (the model card comes with the last checkpoint)."""
    if not (folder / "checkpoint-60").exists():
        flags = ["--seed", str(seed), "--save_steps", "10", "--save_total_limit", "0", "--output_dir", str(folder)]
        subprocess.run([sys.executable, *command, *flags], cwd=ROOT, check=True)


def completions(folder: Path) -> dict[int, list[tuple[str, str]]]:
    """Of each step: problem and completion of every sample, in order."""
    steps: dict[int, list[tuple[str, str]]] = {}
    for line in (folder / "completions.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps.setdefault(row["step"], []).append((row["problem"], row["completion"]))
    return steps


def apart(a: Path, b: Path) -> float:
    """The largest difference between two adapters' numbers."""
    left, right = (load_file(folder / "adapter_model.safetensors") for folder in (a, b))
    return max(float((left[key] - right[key]).abs().max()) for key in left)


def curve(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["eval/pass@1"] for row in rows if "eval/pass@1" in row}


def plot(curves: dict[str, list[tuple[dict[int, float], dict[int, float]]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(10, 3.4), dpi=110, sharey=True)
    for axes, (weight, seeds) in zip(panels, curves.items(), strict=True):
        for s, (first, second) in enumerate(seeds):
            grpo, nft = PAIRS[weight]
            axes.plot(first.keys(), first.values(), color=f"C{s}", alpha=0.35, linewidth=5, label=f"{grpo}, seed {s}")
            axes.plot(second.keys(), second.values(), color=f"C{s}", linewidth=1.2, linestyle="--", label=f"{nft} {weight}, seed {s}")
        axes.set(xlabel="step", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("sampled pass@1, 400 unseen problems")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "nft_identity")
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    curves: dict[str, list[tuple[dict[int, float], dict[int, float]]]] = {weight: [] for weight in PAIRS}
    lines = []
    for weight, pair in PAIRS.items():
        for seed in arguments.seeds:
            folders = []
            for name, command in pair.items():
                folders.append(arguments.out / f"{weight}-{'grpo' if 'GRPO' in name else 'nft'}-{seed}")
                run(folders[-1], command, seed)
            first, second = map(completions, folders)
            same = [first[step] == second[step] for step in first]
            until = same.index(False) if False in same else len(same)
            checkpoints = list(range(10, len(same) + 1, 10))
            far = [f"{apart(*(folder / f'checkpoint-{step}' for folder in folders)):.1e}" for step in checkpoints]
            curves[weight].append((curve(folders[0]), curve(folders[1])))
            scores = [" / ".join(f"{c[step]:.3f}" for c in curves[weight][-1]) for step in (0, 30, 60)]
            lines.append([weight, str(seed), f"{until} of {len(same)}", *far, *scores])
    header = ["weight", "seed", "same steps", *(f"step {step}" for step in checkpoints), "pass@1, step 0", "step 30", "step 60"]
    print()
    for row in [header, ["---"] * len(header), *lines]:
        print("| " + " | ".join(row) + " |")
    if arguments.plot:
        plot(curves, arguments.plot)


if __name__ == "__main__":
    main()
