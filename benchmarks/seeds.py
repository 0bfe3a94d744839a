"""Learning curves on the embedded task: one or more methods, several seeds each, one run after the other, none left out.

    python benchmarks/seeds.py "GRPO: train_grpo.py" --plot docs/grpo_seeds.png
    python benchmarks/seeds.py "NFT: train_nft.py --num_minibatches 4" "RFT: train_nft.py --num_minibatches 4 --neg_weight 0
        --prompt_weight none" "GRPO: train_grpo.py --num_minibatches 4" --evaluate 4 --plot docs/nft_seeds.png
        --panels steps entropy

Prints every evaluation of every run, wall time from process start to exit, and the policy's entropy over the steps, as
estimated from all sampled tokens (`neg_logp`). `--evaluate N` adds eval.py on the last checkpoint: all 1,000 test
problems, N samples each, with its 95 % interval; several methods are compared with the first, seed by seed. Finished
runs are not run again. --plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BIN = 10  # steps over which entropies are averaged
STEP = "step (16 problems x 8 completions each)"
LABELS = {"steps": STEP, "entropy": STEP, "tokens": "generated tokens, thousands", "seconds": "seconds of steps, evaluations apart"}


def run_seed(folder: Path, command: list[str], seed: int) -> None:
    """Runs the command unless the folder holds its finished run; the command and wall seconds go to seconds.json."""
    done = folder / "seconds.json"
    if done.exists():
        if json.loads(done.read_text())["command"] != command:
            sys.exit(f"{folder} holds a run of another command; name another --out")
        return
    start = time.perf_counter()
    subprocess.run([sys.executable, *command, "--seed", str(seed), "--output_dir", str(folder)], cwd=ROOT, check=True)
    done.write_text(json.dumps({"command": command, "seconds": time.perf_counter() - start}))


def evaluate(folder: Path, seed: int, samples: int) -> dict[str, float]:
    """eval.py's mean@N of the last checkpoint, with its interval."""
    checkpoint = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    out = folder / f"eval-{samples}"
    if not (out / "summary.json").exists():
        dataset = json.loads((folder / "config.json").read_text())["flags"]["dataset"]
        flags = ["--adapter", str(checkpoint), "--dataset", dataset, "--num_samples", str(samples), "--k", "1", "--output_dir", str(out)]
        subprocess.run([sys.executable, "eval.py", *flags, "--seed", str(seed)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "summary.json").read_text())["mean"]


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def entropies(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Mean `neg_logp` of steps 1-10, 11-20, ..., by the last step of each."""
    steps = [row for row in rows if "neg_logp" in row]
    parts = [steps[i : i + BIN] for i in range(0, len(steps), BIN)]
    return {part[-1]["step"]: statistics.mean(row["neg_logp"] for row in part) for part in parts}


def curves_of(rows: list[dict[str, Any]]) -> dict[str, dict[float, float]]:
    """What each panel shows of one run: pass@1 by step, by generated tokens, by seconds of steps; and entropy by step."""
    seconds, curves = 0.0, {"steps": {}, "tokens": {}, "seconds": {}, "entropy": entropies(rows)}
    for row in rows:
        seconds += row.get("step_time", 0.0)
        if "eval/pass@1" in row:
            for axis, x in (("steps", row["step"]), ("tokens", row.get("num_tokens", 0) / 1000), ("seconds", seconds)):
                curves[axis][x] = row["eval/pass@1"]
    return curves


def plot(runs: dict[str, list[dict[str, dict[float, float]]]], shown: list[str], path: str) -> None:
    """A panel for each of `shown`. One method: a line per seed. Several: a colour per method, a thin line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    several = len(runs) > 1
    figure, panels = pyplot.subplots(1, len(shown), figsize=(max(7, 5 * len(shown)), 3.6), dpi=110, squeeze=False)
    for panel, axes in zip(shown, panels[0], strict=True):
        for m, (name, seeds) in enumerate(runs.items()):
            for s, curves in enumerate(seeds):
                style = {"color": f"C{m}", "alpha": 0.6} if several else {"label": f"seed {s}", "marker": "o", "markersize": 3}
                axes.plot(curves[panel].keys(), curves[panel].values(), linewidth=1.4, **style)
            if several:
                axes.plot([], [], color=f"C{m}", label=name)
        axes.set(
            xlabel=LABELS[panel], ylabel="-log p of sampled tokens, nats" if panel == "entropy" else "sampled pass@1, 400 unseen problems"
        )
        axes.set_ylim(0, None if panel == "entropy" else 1.02)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", help='"name: script.py flags"')
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "seeds")
    parser.add_argument("--evaluate", type=int, default=0, metavar="N")
    parser.add_argument("--plot")
    parser.add_argument("--panels", nargs="+", default=["steps"], choices=LABELS)
    arguments = parser.parse_args()
    methods = {name.strip(): shlex.split(command) for name, _, command in (text.partition(":") for text in arguments.methods)}
    runs: dict[str, list[dict[str, dict[float, float]]]] = {name: [] for name in methods}
    final: dict[str, list[float]] = {name: [] for name in methods}
    lines = []
    for seed in arguments.seeds:
        for name, command in methods.items():
            folder = arguments.out / name.lower().replace(" ", "-") / f"seed-{seed}"
            run_seed(folder, command, seed)
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            evaluations = [row for row in rows if "eval/pass@1" in row]
            runs[name].append(curves_of(rows))
            curve = runs[name][-1]["steps"]
            final[name].append(statistics.mean(list(curve.values())[-3:]))
            line = [name, str(seed), *(f"{value:.3f}" for value in curve.values()), f"**{final[name][-1]:.3f}**"]
            if arguments.evaluate:
                mean = evaluate(folder, seed, arguments.evaluate)
                final[name][-1] = mean["value"]
                line.append(f"**{mean['value']:.4f}** ({mean['low']:.4f} - {mean['high']:.4f})")
            line.append(f"{evaluations[0]['eval/greedy']:.3f} -> {evaluations[-1]['eval/greedy']:.3f}")
            line += [f"{rows[-1]['num_tokens'] / 1e3:.0f}k", f"{sum(row.get('step_time', 0) for row in rows):.0f}"]
            lines.append([*line, f"{json.loads((folder / 'seconds.json').read_text())['seconds']:.0f}"])
    lines.sort(key=lambda line: list(methods).index(line[0]))
    steps = [f"step {step}" for step in next(iter(runs.values()))[0]["steps"]]
    scored = [f"eval.py, mean@{arguments.evaluate}"] if arguments.evaluate else []
    print("\n" + table(["method", "seed", *steps, "last three", *scored, "greedy", "tokens", "steps, s", "whole process, s"], lines))
    rows = [
        [name, str(seed), *(f"{value:.4f}" for value in curves["entropy"].values())]
        for name in methods
        for seed, curves in zip(arguments.seeds, runs[name], strict=True)
    ]
    print("\n" + table(["method", "seed", *(f"to step {step}" for step in runs[next(iter(methods))][0]["entropy"])], rows))
    first = next(iter(methods))
    print()
    for name in methods:
        print(f"{name}: {statistics.mean(final[name]):.4f} over seeds", end="")
        if name != first:
            apart = [a - b for a, b in zip(final[name], final[first], strict=True)]
            error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
            print(f"; {name} - {first}: {statistics.mean(apart):+.4f}, standard error {error:.4f} over seeds", end="")
        print()
    if arguments.plot:
        plot(runs, arguments.panels, arguments.plot)


if __name__ == "__main__":
    main()
