"""Learning curves of one or more methods on the embedded task, over several seeds. No run is left out.

    python benchmarks/seeds.py "PPO: train_ppo.py" "VinePPO: train_vineppo.py" --evaluate 4 --plot docs/ppo_vineppo_seeds.svg
        --panels steps tokens seconds
    python benchmarks/seeds.py "NFT: train_nft.py --num_minibatches 4" "RFT: train_nft.py --num_minibatches 4 --neg_weight 0
        --prompt_weight none" "GRPO: train_grpo.py --num_minibatches 4" --evaluate 4 --plot docs/nft_seeds.svg --panels steps entropy

Prints every tenth step's evaluation of every run, the wall time from process start to exit (not of a run that was interrupted), and the
entropy of the policy over the steps, as estimated from all sampled tokens (`neg_logp`). `--evaluate N` adds eval.py on the last checkpoint:
all test problems, N samples each, with a 95 % interval over problems. Several methods are compared with the first one, seed by seed, with
95 % t intervals over the seeds. A reward of one's own has another metric: `--metric eval/reward`. The same command goes on after an
interruption.
"""
from __future__ import annotations

import json
import shlex
import statistics
from pathlib import Path

from curves import AXES, Chart, binned, charts_of, greedy, listed, minus, picture, read, save, shown, table, tenths, totals
from measure import show
from sweep import Parser, note_of, run_all, sweep

from common.console import say

__all__ = ["table"]  # other benchmarks import it from here


def eval_job(folder: Path, samples: int) -> tuple[Path, list[str]]:
    """Folder and command of eval.py on a run's last checkpoint."""
    checkpoint = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    flags = json.loads((folder / "config.json").read_text())["flags"]
    words = f"--dataset {flags['dataset']} --seed {flags['seed']} --num_samples {samples} --k 1".split()
    return folder / f"eval-{samples}", ["eval.py", "--adapter", str(checkpoint), *words]


def main() -> None:
    """The command line."""
    parser = Parser(__doc__, "runs/seeds")
    parser.add_argument("methods", nargs="+", help='"name: script.py flags"')
    parser.add_argument("--evaluate", type=int, default=0, metavar="N", help="samples a problem for eval.py (default: no eval.py)")
    parser.add_argument("--metric", default="eval/pass@1", help="number in metrics.jsonl to compare (default: eval/pass@1)")
    parser.add_argument("--panels", nargs="+", default=["steps"], choices=[*AXES, "entropy"])
    parser.add_argument("--title", default="How many unseen problems a model solves as it trains")
    arguments, flags = parser.parse()
    cells = {name.strip(): [*shlex.split(command), *flags] for name, _, command in (text.partition(":") for text in arguments.methods)}
    folders = sweep(cells, arguments.seeds, arguments.out, arguments.jobs)
    if arguments.evaluate:
        run_all(dict(eval_job(folder, arguments.evaluate) for own in folders.values() for folder in own), arguments.jobs, "eval.py")
    runs = {name: [read(folder, arguments.metric) for folder in own] for name, own in folders.items()}
    rows, entropies, final = [], [], {name: [] for name in cells}
    for name, own in runs.items():
        for seed, run, folder in zip(arguments.seeds, own, folders[name], strict=True):
            final[name].append(statistics.fmean(list(run["steps"].values())[-3:]))
            rows.append({"method": name, "seed": str(seed), **tenths(run), "last three": f"**{final[name][-1]:.3f}**"})
            if arguments.evaluate:
                mean = json.loads((folder / f"eval-{arguments.evaluate}" / "summary.json").read_text())["mean"]
                final[name][-1] = mean["value"]
                rows[-1][f"eval.py, mean@{arguments.evaluate}"] = "**{value:.4f}** ({low:.4f} - {high:.4f})".format_map(mean)
            wall = note_of(folder)["seconds"]
            rows[-1] |= {"greedy": f"{greedy(run)[0]:.3f} -> {greedy(run)[-1]:.3f}", **totals(run),
                         "whole process, s": f"{wall:.0f}" if wall else "interrupted"}
            bins = {f"to step {step}": f"{value:.4f}" for step, value in binned(run, "neg_logp").items()}
            entropies.append({"method": name, "seed": str(seed), **bins})
    show(f"\n{listed(rows)}\n\n{listed(entropies)}\n")
    first = next(iter(cells))
    for name, own in final.items():
        apart = f"; {name} - {first}: {shown(minus(own, final[first]), '+.4f')}" if name != first else ""
        say(f"{name}: {shown(own, '.4f')} over seeds{apart}")
    if arguments.plot:
        entropy = Chart({name: [binned(run, "neg_logp") for run in own] for name, own in runs.items()}, AXES["steps"],
                        "entropy: -log p of sampled tokens, nats per token")
        charts = [entropy if panel == "entropy" else charts_of(runs, [panel], arguments.metric)[0] for panel in arguments.panels]
        save(picture(charts, arguments.title), arguments.plot)


if __name__ == "__main__":
    main()
