"""What papers say of these methods, tried at the scale of a laptop: every run, and docs/results.md with its figures.

    python benchmarks/claims.py [--testbeds credit habits few] [--jobs 2] [--out runs/claims]
    python benchmarks/claims.py --only tune          # the learning rates alone
    python benchmarks/claims.py --only write         # docs/results.md from the runs that are there

Each method gets the learning rate of RATES with the largest area under its curve on seeds 100 and 101, and is then run on five
fresh seeds; nothing else is tuned and no run is left out. Testbeds, sizes and seeds stand below and were fixed before the fresh seeds
were run. Finished runs are not run again, so an interrupted command goes on. One thread a run. Needs scipy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from learnability import TASK, mean_curve
from scipy import stats
from seeds import ROOT, curves_of, table
from tqdm import tqdm

sys.path.insert(0, str(ROOT))
from common.checkpoint import write_atomically

RATES = [1.5e-4, 3e-4, 6e-4]
TUNED_ON, SEEDS = [100, 101], [0, 1, 2, 3, 4]
METHODS = {  # four updates a step for all of them: so many the first three have by default on the embedded model
    "PPO": "train_ppo.py",
    "VinePPO, K=3": "train_vineppo.py --mc_samples 3",
    "VinePPO, K=9": "train_vineppo.py --mc_samples 9",
    "GRPO": "train_grpo.py --num_minibatches 4",
    "Dr. GRPO": "train_grpo.py --no_scale_rewards --loss_aggregation constant --num_minibatches 4",
    "RLOO": "train_grpo.py --no_scale_rewards --leave_one_out --loss_aggregation seq-mean-token-sum --num_minibatches 4",
    "DAPO": "train_grpo.py --epsilon_high 0.28 --overlong_buffer 16 --overlong_factor 0.5 --num_minibatches 4",
    "NFT": "train_nft.py --num_minibatches 4",
    "RFT": "train_nft.py --num_minibatches 4 --neg_weight 0 --prompt_weight none",
}
COMMON = "--eval_problems 400 --save_steps 0 --warmup_steps 2"


class Testbed(NamedTuple):
    """A data set of the embedded task, sizes of a step, and the methods that are compared on it."""

    about: str
    flags: str
    methods: list[str]
    ways: tuple[str, ...] = ("uniform",)

    @property
    def cells(self) -> list[tuple[str, str]]:
        return [(method, way) for method in self.methods for way in self.ways]


TESTBEDS = {
    "credit": Testbed(
        "chains of 4-6 sums with two random words before each line, which do not matter (3.9 nats a line, so that a problem has many right "
        "solutions); values up to 60, so that a wrong chain is right by luck in few cases",
        "--dataset arithmetic:values=60,words=2,tiers=half:1:4-6 --problems_per_step 8 --num_generations 4 --max_steps 40 --eval_steps 5",
        list(METHODS),
    ),
    "habits": Testbed(
        "24 (verb, item) cells with error rates of their own, .60 in a sixth of them: there the wrong operator is the likelier one, and "
        "sharpening does not help; values up to 60",
        "--dataset arithmetic:values=60,cells=0.01:12/0.3:8/0.6:4 --problems_per_step 8 --num_generations 4 --max_steps 40 --eval_steps 5",
        ["PPO", "VinePPO, K=3", "GRPO", "NFT", "RFT"],
    ),
    "few": Testbed(
        "70 % of the problems are solved from the start, 20 % are hopeless, 10 % in between; tested on these and longer ones",
        f"--dataset arithmetic:train=4000,{TASK} --problems_per_step 8 --num_generations 8 --max_steps 30 --eval_steps 5",
        ["PPO", "VinePPO, K=3", "GRPO", "Dr. GRPO", "NFT", "RFT"],
        ("uniform", "lilo"),
    ),
}
AXES = {"steps": "step", "tokens": "generated tokens, thousands", "seconds": "seconds of steps, evaluations apart"}
DRAWS = 10_000
MANY = 1.5  # times the tokens
Runs = dict[tuple[str, str], list[dict[str, Any]]]  # by method and way of sampling, over seeds


# ---- runs ------------------------------------------------------------------------------------------------------------


def folder_of(out: Path, testbed: str, method: str, way: str, rate: float, seed: int) -> Path:
    name = "".join(letter for letter in method.lower().replace(" ", "-") if letter.isalnum() or letter == "-")
    return out / testbed / f"{name}-{way}" / f"{rate:g}" / f"seed-{seed}"


def run(folder: Path, command: list[str], log: Path) -> None:
    """Runs the command unless the folder holds its finished run. What does not end well ends all: no run is left out."""
    done = folder / "command.json"
    if done.exists():
        if json.loads(done.read_text())["command"] != command:
            sys.exit(f"{folder} holds a run of another command; name another --out")
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = ["--resume_from_checkpoint", "auto", "--output_dir", str(folder)]
    with open(log, "w") as file:
        code = subprocess.run([sys.executable, *command, *flags], cwd=ROOT, stdout=file, stderr=file).returncode
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with code {code}; see {log}")
    done.write_text(json.dumps({"command": command, "revision": revision()}))


def revision() -> str:
    """Of the code that runs; with a + where files differ from it."""
    words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def run_all(jobs: dict[Path, list[str]], count: int, what: str) -> None:
    """All runs, `count` at a time, with a progress bar."""
    with ThreadPoolExecutor(count) as threads, tqdm(total=len(jobs), desc=what, dynamic_ncols=True) as bar:
        waiting = [threads.submit(run, folder, command, folder.with_suffix(".log")) for folder, command in jobs.items()]
        for one in as_completed(waiting):
            if one.exception():
                for other in waiting:
                    other.cancel()
                sys.exit(str(one.exception()))
            bar.update()


def command_of(testbed: str, method: str, way: str, rate: float, seed: int) -> list[str]:
    flags = f"{METHODS[method]} {TESTBEDS[testbed].flags} {COMMON} --learning_rate {rate:g} --seed {seed}"
    critic = f" --critic_learning_rate {2.5 * rate:g}" if method == "PPO" else ""
    return (flags + critic + (f" --sampling {way}" if way != "uniform" else "")).split()


def jobs_of(out: Path, testbed: str, rates: dict[str, list[float]], seeds: list[int], ways: tuple[str, ...]) -> dict[Path, list[str]]:
    """By folder: every method at its rates on every seed; all methods of a seed, then the next seed."""
    cells = [(method, way) for method, way in TESTBEDS[testbed].cells if way in ways]
    return {
        folder_of(out, testbed, method, way, rate, seed): command_of(testbed, method, way, rate, seed)
        for seed in seeds
        for method, way in cells
        for rate in rates[method]
    }


def read(folder: Path) -> dict[str, Any]:
    """A run's curves by axis, tokens and seconds of all steps, its entropies, and the revision that it ran."""
    done = folder / "command.json"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    revision = json.loads(done.read_text())["revision"] if done.exists() else "unknown"
    return {
        **curves_of(rows),
        "revision": revision,
        "all_tokens": rows[-1]["num_tokens"],
        "all_seconds": sum(row.get("step_time", 0.0) for row in rows),
    }


def chosen_rates(out: Path, testbed: str) -> tuple[dict[str, float], list[list[str]]]:
    """Of each method the rate whose runs on the seeds for tuning have the largest area; and a table row each, * at the grid's edge."""
    best, lines = {}, []
    for method in TESTBEDS[testbed].methods:
        values = []
        for rate in RATES:
            runs = [read(folder_of(out, testbed, method, "uniform", rate, seed)) for seed in TUNED_ON]
            values.append(statistics.mean(area(one) for one in runs))
        best[method] = RATES[values.index(max(values))]
        edge = "*" if best[method] in (RATES[0], RATES[-1]) else ""
        cells = (f"**{v:.3f}**{edge}" if rate == best[method] else f"{v:.3f}" for rate, v in zip(RATES, values, strict=True))
        lines.append([method, *cells])
    return best, lines


# ---- numbers ---------------------------------------------------------------------------------------------------------


def area(run: dict[str, Any], axis: str = "steps", end: float | None = None) -> float:
    """Mean height of the pass@1 curve over an axis from 0 to `end` (default: its end): the area under it, over its width."""
    points = list(run[axis].items())
    end = points[-1][0] if end is None else end
    total = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= end:
            break
        cut = min(x1, end)
        height = y0 + (y1 - y0) * (cut - x0) / (x1 - x0)
        total += (cut - x0) * (y0 + height) / 2
    return total / end


def final(run: dict[str, Any]) -> float:
    """Mean of the last three evaluations."""
    return statistics.mean(list(run["steps"].values())[-3:])


def interval(values: list[float]) -> tuple[float, float]:
    """95 % of bootstrap draws of the mean over seeds."""
    means = np.random.default_rng(0).choice(values, (DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def shown(values: list[float], form: str = ".3f") -> str:
    low, high = interval(values)
    return f"{statistics.mean(values):{form}} ({low:{form}} - {high:{form}})"


class Difference(NamedTuple):
    """a - b, seed by seed."""

    mean: float
    low: float
    high: float
    apart: bool  # the two methods' own bootstrap intervals do not overlap, and the paired t interval leaves out 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (95 % t interval {self.low:+.3f} to {self.high:+.3f})"


def difference(a: list[float], b: list[float]) -> Difference:
    apart = [x - y for x, y in zip(a, b, strict=True)]
    mean, half = statistics.mean(apart), stats.t.ppf(0.975, len(apart) - 1) * statistics.stdev(apart) / len(apart) ** 0.5
    (low_a, high_a), (low_b, high_b) = interval(a), interval(b)
    return Difference(mean, mean - half, mean + half, (low_a > high_b or low_b > high_a) and abs(mean) > half)


def verdict(found: Difference, wanted: int = 1) -> str:
    """`wanted`: the sign that the claim gives the difference."""
    if not found.apart:
        return "not reproduced: no difference that the intervals allow"
    return "reproduced" if found.mean * wanted > 0 else "not reproduced: the other way round"


# ---- claims ----------------------------------------------------------------------------------------------------------


def claims_of(results: dict[str, Runs]) -> list[list[str]]:
    """Rows of the table: claim, source and scale, what was seen, verdict, testbed."""
    rows = []
    for name in ("credit", "habits"):
        if name not in results:
            continue
        runs = {method: own for (method, _), own in results[name].items()}
        for k in (9, 3):
            if (vine := runs.get(f"VinePPO, K={k}")) is None:
                continue
            steps = difference([area(run) for run in vine], [area(run) for run in runs["PPO"]])
            ends = [
                min(list(a["seconds"])[-1], list(b["seconds"])[-1]) for a, b in zip(vine, runs["PPO"], strict=True)
            ]  # both have gone that far
            seconds = difference(
                [area(run, "seconds", end) for run, end in zip(vine, ends, strict=True)],
                [area(run, "seconds", end) for run, end in zip(runs["PPO"], ends, strict=True)],
            )
            source = "VinePPO, arXiv 2410.01679: MATH and GSM8K, 1B and 7B"
            rows.append([f"VinePPO (K = {k}) beats PPO per step", source, f"area {steps}", verdict(steps), name])
            rows.append(
                [f"VinePPO (K = {k}) beats PPO per second", source, f"area over the same seconds {seconds}", verdict(seconds), name]
            )
        source = "NFT, arXiv 2505.18116: 7B and 32B, 320 rollouts"
        nft = difference([final(run) for run in runs["NFT"]], [final(run) for run in runs["RFT"]])
        rows.append(["NFT ends above RFT", source, f"last three evaluations {nft}", verdict(nft), name])
        falls = [entropy_change(run) for run in runs["RFT"]]
        nft_falls = [entropy_change(run) for run in runs["NFT"]]
        more = difference(falls, nft_falls)
        seen = f"RFT {shown(falls, '.2f')} of its first value, NFT {shown(nft_falls, '.2f')}; difference {more}"
        rows.append(
            ["RFT's entropy falls, and more than NFT's", source, seen, verdict(more, -1) if max(falls) < 1 else "not reproduced", name]
        )
    if "few" in results:
        runs, source = results["few"], "learnability sampling, arXiv 2502.12272: 1B and 1.5B"
        gains = {}
        for method in TESTBEDS["few"].methods:
            lilo, uniform = runs[method, "lilo"], runs[method, "uniform"]
            gains[method] = [area(a) - area(b) for a, b in zip(lilo, uniform, strict=True)]
            found = difference([area(run) for run in lilo], [area(run) for run in uniform])
            rows.append([f"learnability sampling needs fewer steps: {method}", source, f"area {found}", verdict(found), "few"])
        for method in TESTBEDS["few"].methods:
            ratios = [a["all_tokens"] / b["all_tokens"] for a, b in zip(runs[method, "lilo"], runs[method, "uniform"], strict=True)]
            low, high = interval(ratios)
            vine = method.startswith("Vine")
            holds = high < MANY if vine else low > MANY
            claim = f"it costs {'few' if vine else 'many'} more tokens a step: {method}"
            rows.append([claim, source, f"{shown(ratios, '.2f')} times the tokens", "reproduced" if holds else "not reproduced", "few"])
        found = difference(gains["Dr. GRPO"], gains["GRPO"])
        claim = "GRPO divided by the standard deviation gains less from it than centred"
        rows.append([claim, source, f"gain in area, centred less normalised: {found}", verdict(found), "few"])
    return rows


def entropy_change(run: dict[str, Any]) -> float:
    """-log p of sampled tokens in the last ten steps, as a share of the first ten's."""
    values = list(run["entropy"].values())
    return values[-1] / values[0]


ELSEWHERE = [
    [
        "Monte-Carlo values are more accurate than a critic",
        "VinePPO, arXiv 2410.01679: 1B and 7B",
        "mean absolute error over training: critic .157 - .043, K = 9 .050 - .032, K = 1 .099 - .060 (3 seeds, four steps each; "
        "[vineppo.md](vineppo.md#how-good-are-the-values))",
        "for K = 9 in the mean at every step; not under the rule below (3 seeds, and the critic catches up)",
        "`benchmarks/value_error.py`",
    ],
    [
        "on-policy, NFT with prompt weight `sqrt` is GRPO",
        "NFT, arXiv 2505.18116, theorem",
        "all 7,680 completions of 60 steps the same, 3 seeds ([nft.md](nft.md#three-reductions))",
        "reproduced",
        "`benchmarks/nft_identity.py`",
    ],
]


# ---- the page --------------------------------------------------------------------------------------------------------


def plot(name: str, runs: Runs, path: Path) -> None:
    """Mean curves over seeds with a bootstrap band, a panel for each axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(15, 4.2), dpi=80)
    for axes, (axis, label) in zip(panels, AXES.items(), strict=True):
        for (method, way), own in runs.items():
            place = TESTBEDS[name].methods.index(method)
            x, y = zip(*mean_curve([run[axis] for run in own]), strict=True)
            low, high = zip(*(interval([list(run["steps"].values())[i] for run in own]) for i in range(len(x))), strict=True)
            style = "--" if way == "uniform" and len(TESTBEDS[name].ways) > 1 else "-"
            axes.fill_between(x, low, high, color=f"C{place}", alpha=0.1, linewidth=0)
            axes.plot(x, y, style, color=f"C{place}", linewidth=1.6, label=f"{method}{f', {way}' if len(TESTBEDS[name].ways) > 1 else ''}")
        axes.set(xlabel=label, ylabel="sampled pass@1, 400 unseen problems")
        axes.grid(alpha=0.3)
        if axis != "steps":
            axes.set_xscale("log")
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def testbed_page(name: str, runs: Runs, rates: dict[str, float], tuning: list[list[str]]) -> str:
    """Its part of docs/results.md."""
    several = len(TESTBEDS[name].ways) > 1
    lines, every = [], []
    for (method, way), own in runs.items():
        label = f"{method}, {way}" if several else method
        lines.append([label, f"{rates[method]:g}", shown([final(run) for run in own]), shown([area(run) for run in own])])
        lines[-1] += [
            f"{statistics.mean(run[f'all_{axis}'] for run in own) / scale:.0f}" for axis, scale in (("tokens", 1e3), ("seconds", 1))
        ]
        for seed, run in zip(SEEDS, own, strict=True):
            curve = [f"{value:.3f}" for step, value in run["steps"].items() if step % 10 == 0]
            every.append([label, str(seed), *curve, f"{final(run):.3f}", f"{area(run):.3f}"])
    steps = [f"step {step}" for step in next(iter(runs.values()))[0]["steps"] if step % 10 == 0]
    header = ["method", "learning rate", "last three evaluations", "area", "tokens, k", "seconds"]
    return f"""## {name}

{TESTBEDS[name].about[0].upper()}{TESTBEDS[name].about[1:]}. `{TESTBEDS[name].flags} {COMMON}`

![pass@1 over steps, tokens and seconds](results_{name}.png)

{table(header, lines)}

Revision of the code: {", ".join(sorted({run["revision"] for own in runs.values() for run in own}))}.

Learning rates, mean area on seeds {" and ".join(map(str, TUNED_ON))} (uniform sampling; the best is used for all ways of sampling):

{table(["method", *(f"{rate:g}" for rate in RATES)], tuning)}

<details><summary>All seeds</summary>

{table(["method", "seed", *steps, "last three", "area"], every)}

</details>
"""


def write(out: Path, testbeds: list[str], docs: Path) -> None:
    """docs/results.md and its figures, from finished runs."""
    results, parts, notes = {}, [], (Path(__file__).with_suffix(".md")).read_text()
    for name in testbeds:
        rates, tuning = chosen_rates(out, name)
        runs = {
            (method, way): [read(folder_of(out, name, method, way, rates[method], seed)) for seed in SEEDS]
            for method, way in TESTBEDS[name].cells
        }
        results[name] = runs
        parts.append(testbed_page(name, runs, rates, tuning))
        plot(name, runs, docs / f"results_{name}.png")
    header = ["claim", "source and scale", "seen here", "verdict", "testbed or command"]
    claims = table(header, claims_of(results) + ELSEWHERE)
    text = notes.replace("{{CLAIMS}}", claims).replace("{{TESTBEDS}}", "\n".join(parts))
    write_atomically(docs / "results.md", text)
    print(f"wrote {docs / 'results.md'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--testbeds", nargs="+", choices=TESTBEDS, default=list(TESTBEDS))
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2)), help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="+", choices=["tune", "run", "write"], default=["tune", "run", "write"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "claims")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results.md and its figures go")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    out = arguments.out.absolute()
    for name in arguments.testbeds:
        if "tune" in arguments.only:
            rates = dict.fromkeys(METHODS, RATES)
            run_all(jobs_of(out, name, rates, TUNED_ON, ("uniform",)), arguments.jobs, f"{name}, learning rates")
        if "run" in arguments.only:
            rates = {method: [rate] for method, rate in chosen_rates(out, name)[0].items()}
            run_all(jobs_of(out, name, rates, SEEDS, TESTBEDS[name].ways), arguments.jobs, f"{name}, seeds")
    if "write" in arguments.only:
        write(out, arguments.testbeds, arguments.docs)


if __name__ == "__main__":
    main()
