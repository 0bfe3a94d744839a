"""Learning curves of one or more methods on the embedded task, over several seeds. No run is left out.

    python benchmarks/seeds.py "PPO: train_ppo.py" "VinePPO: train_vineppo.py" --evaluate 4 --plot docs/ppo_vineppo_seeds.svg
        --panels steps tokens seconds
    python benchmarks/seeds.py "NFT: train_nft.py --num_minibatches 4" "RFT: train_nft.py --num_minibatches 4 --neg_weight 0
        --prompt_weight none" "GRPO: train_grpo.py --num_minibatches 4" --evaluate 4 --plot docs/nft_seeds.svg --panels steps entropy

Prints the evaluations of every run (every tenth step where there are many), the wall time from process start to exit (not of a run that
was interrupted), and the entropy of the policy over the steps, as estimated from all sampled tokens (`neg_logp`). `--evaluate N` adds
eval.py on the last checkpoint: all test problems, N samples each, with a 95 % interval over problems. Several methods are compared with the
first one, seed by seed; intervals over seeds are 95 % t intervals. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
from pathlib import Path
from typing import Any

from curves import AXES, Chart, binned, picture, problems_of, read, save, shown, table
from sweep import ROOT, folder_name, note_of, run_all

PANELS = [*AXES, "entropy"]


def eval_job(folder: Path, seed: int, samples: int) -> tuple[Path, list[str]]:
    """Folder and command of eval.py on a run's last checkpoint."""
    checkpoint = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    dataset = json.loads((folder / "config.json").read_text())["flags"]["dataset"]
    flags = ["--adapter", str(checkpoint), "--dataset", dataset, "--num_samples", str(samples), "--k", "1", "--seed", str(seed)]
    return folder / f"eval-{samples}", ["eval.py", *flags]


def charts_of(runs: dict[str, list[dict[str, Any]]], panels: list[str]) -> list[Chart]:
    """A chart for each panel."""
    solved = f"sampled pass@1, {problems_of(run for own in runs.values() for run in own)}"
    charts = []
    for panel in panels:
        y = "entropy: -log p of sampled tokens, nats per token" if panel == "entropy" else solved
        curves = {name: [binned(run, "neg_logp") if panel == "entropy" else run[panel] for run in own] for name, own in runs.items()}
        charts.append(Chart(curves, AXES.get(panel, AXES["steps"]), y))
    return charts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", help='"name: script.py flags"')
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "seeds")
    parser.add_argument("--evaluate", type=int, default=0, metavar="N")
    parser.add_argument("--plot", type=Path, help="file for the figure, .svg")
    parser.add_argument("--panels", nargs="+", default=["steps"], choices=PANELS)
    parser.add_argument("--title", default="How many unseen problems a model solves as it trains")
    arguments = parser.parse_args()
    methods = {name.strip(): shlex.split(command) for name, _, command in (text.partition(":") for text in arguments.methods)}
    keys = [(name, seed) for seed in arguments.seeds for name in methods]
    folders = {(name, seed): arguments.out.absolute() / folder_name(name.lower()) / f"seed-{seed}" for name, seed in keys}
    run_all({folders[key]: [*methods[key[0]], "--seed", str(key[1])] for key in keys}, arguments.jobs, "runs")
    evals = {key: eval_job(folders[key], key[1], arguments.evaluate) for key in keys} if arguments.evaluate else {}
    if evals:
        run_all(dict(evals.values()), arguments.jobs, "eval.py")
    runs = {name: [read(folders[name, seed]) for seed in arguments.seeds] for name in methods}
    steps = list(runs[next(iter(methods))][0]["steps"])
    steps = [step for step in steps if step % 10 == 0] if len(steps) > 8 else steps
    lines, entropies, final = [], [], {name: [] for name in methods}
    for name, own in runs.items():
        for seed, run in zip(arguments.seeds, own, strict=True):
            final[name].append(statistics.fmean(list(run["steps"].values())[-3:]))
            line = [name, str(seed), *(f"{run['steps'][step]:.3f}" for step in steps), f"**{final[name][-1]:.3f}**"]
            if evals:
                mean = json.loads((evals[name, seed][0] / "summary.json").read_text())["mean"]
                final[name][-1] = mean["value"]
                line.append(f"**{mean['value']:.4f}** ({mean['low']:.4f} - {mean['high']:.4f})")
            greedy = [row["eval/greedy"] for row in run["rows"] if "eval/greedy" in row]
            wall = note_of(folders[name, seed])["seconds"]
            line += [f"{greedy[0]:.3f} -> {greedy[-1]:.3f}", f"{run['all_tokens'] / 1e3:.0f}k", f"{run['all_seconds']:.0f}"]
            lines.append([*line, f"{wall:.0f}" if wall else "interrupted"])
            entropies.append([name, str(seed), *(f"{value:.4f}" for value in binned(run, "neg_logp").values())])
    scored = [f"eval.py, mean@{arguments.evaluate}"] if evals else []
    header = [
        "method",
        "seed",
        *(f"step {step}" for step in steps),
        "last three",
        *scored,
        "greedy",
        "tokens",
        "steps, s",
        "whole process, s",
    ]
    print("\n" + table(header, lines))
    print("\n" + table(["method", "seed", *(f"to step {step}" for step in binned(runs[lines[0][0]][0], "neg_logp"))], entropies) + "\n")
    first = next(iter(methods))
    for name, own in final.items():
        apart = f"; {name} - {first}: {shown([a - b for a, b in zip(own, final[first], strict=True)], '+.4f')}" if name != first else ""
        print(f"{name}: {shown(own, '.4f')} over seeds{apart}")
    if arguments.plot:
        save(picture(charts_of(runs, arguments.panels), arguments.title), arguments.plot)


if __name__ == "__main__":
    main()
