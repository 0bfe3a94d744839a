"""NFT is (Dr.) GRPO as long as each batch is used for one update: the same seeds through both scripts, token by token.

    python benchmarks/nft_identity.py [--seeds 0 1 2] [--plot docs/nft_identity.svg]

Compares `--prompt_weight sqrt` with GRPO, and `1-r` with centred advantages. Prints up to which step every sampled completion is the same, how
far the two adapters are apart at each checkpoint, and pass@1 of both. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from curves import AXES, Chart, picture, problems_of, read, save, table
from safetensors.torch import load_file
from sweep import ROOT, run_all

PAIRS = {
    "sqrt": {"GRPO": "train_grpo.py", "NFT": "train_nft.py --prompt_weight sqrt"},
    "1-r": {"GRPO, centred": "train_grpo.py --no_scale_rewards", "NFT": "train_nft.py --prompt_weight 1-r"},
}


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


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "nft_identity")
    parser.add_argument("--flags", default="", help="for every run, as `--max_steps 20`")
    parser.add_argument("--plot", type=Path, help="file for the figure, .svg")
    arguments = parser.parse_args()
    folders, jobs = {}, {}
    for weight, pair in PAIRS.items():
        for seed in arguments.seeds:
            for name, command in pair.items():
                folder = arguments.out.absolute() / f"{weight}-{name.partition(',')[0].lower()}-{seed}"
                folders.setdefault((weight, seed), []).append(folder)
                jobs[folder] = f"{command} --save_steps 10 --save_total_limit 0 {arguments.flags} --seed {seed}".split()
    run_all(jobs, arguments.jobs, "runs")
    runs = {key: [read(folder) for folder in pair] for key, pair in folders.items()}
    lines = []
    for (weight, seed), pair in folders.items():
        first, second = map(completions, pair)
        same = [first[step] == second[step] for step in first]
        checkpoints = sorted(int(path.name.split("-")[1]) for path in pair[0].glob("checkpoint-*"))
        far = [f"{apart(*(folder / f'checkpoint-{step}' for folder in pair)):.1e}" for step in checkpoints]
        steps = list(runs[weight, seed][0]["steps"])
        scored = (steps[0], steps[len(steps) // 2], steps[-1])
        scores = [" / ".join(f"{run['steps'][step]:.3f}" for run in runs[weight, seed]) for step in scored]
        lines.append([weight, str(seed), f"{same.index(False) if False in same else len(same)} of {len(same)}", *far, *scores])
    header = ["weight", "seed", "same steps", *(f"step {step}" for step in checkpoints), *(f"pass@1, step {step}" for step in scored)]
    print("\n" + table(header, lines))
    if arguments.plot:
        solved = f"pass@1, {problems_of(run for pair in runs.values() for run in pair)}"
        charts = []
        for weight, pair in PAIRS.items():
            curves = {name: [runs[weight, seed][i]["steps"] for seed in arguments.seeds] for i, name in enumerate(pair)}
            charts.append(Chart(curves, AXES["steps"], f"{solved}; prompt weight {weight}", wide=next(iter(pair))))
        save(picture(charts, "Two scripts, one curve: NFT with one update per batch is GRPO"), arguments.plot)


if __name__ == "__main__":
    main()
