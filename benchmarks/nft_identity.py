"""NFT is (Dr.) GRPO as long as each batch is used for one update: the same seeds through both scripts, token by token.

    python benchmarks/nft_identity.py [--seeds 3] [--plot docs/nft_identity.svg]

Compares `--prompt_weight sqrt` with GRPO, and `1-r` with centred advantages. Prints up to which step every sampled completion is the same,
how far the two adapters are apart at each checkpoint, and pass@1 of both. The same command goes on after an interruption.
"""
from __future__ import annotations

import json
from pathlib import Path

from curves import charts_of, listed, picture, read, save
from measure import show
from safetensors.torch import load_file
from sweep import Parser, sweep

PAIRS = {"sqrt": {"GRPO": "train_grpo.py", "NFT sqrt": "train_nft.py --prompt_weight sqrt"},
         "1-r": {"GRPO, centred": "train_grpo.py --no_scale_rewards", "NFT 1-r": "train_nft.py --prompt_weight 1-r"}}


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
    arguments, flags = Parser(__doc__, "runs/nft_identity", "3").parse()
    save_all = ["--save_steps", "10", "--save_total_limit", "0", *flags]
    cells = {name: [*command.split(), *save_all] for pair in PAIRS.values() for name, command in pair.items()}
    folders = sweep(cells, arguments.seeds, arguments.out, arguments.jobs)
    runs = {name: [read(folder) for folder in own] for name, own in folders.items()}
    rows = []
    for weight, pair in PAIRS.items():
        for i, seed in enumerate(arguments.seeds):
            both = [folders[name][i] for name in pair]
            first, second = map(completions, both)
            same = [first[step] == second[step] for step in first]
            row = {"weight": f"`{weight}`", "seed": str(seed), "same steps": f"{[*same, False].index(False)} of {len(same)}"}
            for step in sorted(int(path.name.split("-")[1]) for path in both[0].glob("checkpoint-*")):
                row[f"adapters apart, step {step}"] = f"{apart(*(folder / f'checkpoint-{step}' for folder in both)):.1e}"
            steps = list(runs[next(iter(pair))][i]["steps"])
            for step in (steps[0], steps[len(steps) // 2], steps[-1]):
                row[f"pass@1 GRPO / NFT, step {step}"] = " / ".join(f"{runs[name][i]['steps'][step]:.3f}" for name in pair)
            rows.append(row)
    show("\n" + listed(rows))
    if arguments.plot:
        charts = [charts_of({name: runs[name] for name in pair}, ["steps"])[0]._replace(wide=next(iter(pair))) for pair in PAIRS.values()]
        save(picture(charts, "Two scripts, one curve: NFT with one update per batch is GRPO"), arguments.plot)


if __name__ == "__main__":
    main()
