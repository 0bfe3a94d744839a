"""What papers say of these methods, tried at the scale of a laptop: every run, and docs/results.md with its figures.

    python benchmarks/claims.py [--jobs 2] [--out runs/claims]
    python benchmarks/claims.py --testbeds credit --only tune run
    python benchmarks/claims.py --only write         # docs/results.md from the runs that are there

Each method gets the learning rate with the largest area under its curve on seeds 100 and 101, of RATES and of what lies beyond them where
the best one is the first or the last; PPO's critic has two rates to each of them. It is then run on five fresh seeds. Nothing else is
tuned and no run is left out. Testbeds, sizes and seeds stand below and were fixed before the fresh seeds were run. Finished runs are not
run again, so an interrupted command goes on. One thread a run. Needs scipy.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from learnability import TASK, mean_curve, speed_up
from scipy import stats
from seeds import ROOT, curves_of, table
from tqdm import tqdm

sys.path.insert(0, str(ROOT))
from common.run.files import write_atomically

RATES, MOST_RATES = [3e-4, 6e-4, 1.2e-3], 5
CRITICS = [2.5, 10.0]  # PPO's critic learning rate, in multiples of the policy's
TUNED_ON, SEEDS = [100, 101], [0, 1, 2, 3, 4]
FURTHER = {"habits": ([("PPO", "uniform"), ("VinePPO, K=9", "uniform")], list(range(5, 15)))}  # compared once more, on other fresh seeds
METHODS = {  # four updates a step for all of them: so many the first three have by default on the embedded model
    "PPO": "train_ppo.py",
    "VinePPO, K=3": "train_vineppo.py --mc_samples 3",
    "VinePPO, K=9": "train_vineppo.py --mc_samples 9",
    "GRPO": "train_grpo.py --num_minibatches 4",
    "Dr. GRPO": "train_grpo.py --no_scale_rewards --loss_aggregation constant --num_minibatches 4",
    "RLOO": "train_grpo.py --no_scale_rewards --leave_one_out --loss_aggregation seq-mean-token-sum --num_minibatches 4",
    "DAPO": "train_grpo.py --epsilon_high 0.28 --max_completion_length {limit} --overlong_buffer 16 --overlong_factor 0.5 "
    "--num_minibatches 4",
    "NFT": "train_nft.py --num_minibatches 4",
    "RFT": "train_nft.py --num_minibatches 4 --neg_weight 0 --prompt_weight none",
}
COMMON = "--eval_problems 400 --save_steps 0 --warmup_steps 2"


class Testbed(NamedTuple):
    """A data set of the embedded task, sizes of a step, and the methods that are compared on it."""

    about: str
    flags: str
    longest: int  # tokens of the longest right solution; DAPO's penalty on long ones begins there
    ways: tuple[str, ...] = ("uniform",)

    @property
    def cells(self) -> list[tuple[str, str]]:
        return [(method, way) for method in METHODS for way in self.ways]


TESTBEDS = {
    "credit": Testbed(
        "chains of 4-6 sums with two random words before each line, which do not matter (3.9 nats a line, so that a problem has many right "
        "solutions); values up to 60, so that a wrong chain is right by luck in few cases",
        "--dataset arithmetic:values=60,words=2,tiers=half:1:4-6 --problems_per_step 8 --num_generations 4 --max_steps 40 --eval_steps 5",
        51,
    ),
    "habits": Testbed(
        "the same chains, words and values from a base that can calculate (1,500 steps of warm start: .1 % of its lines are slips) and has "
        "24 (verb, item) cells with error rates of their own, .60 in a sixth of them: there the wrong operator is the likelier one, and "
        "sharpening does not help",
        "--dataset arithmetic:values=60,words=2,tiers=half:1:4-6,cells=0.01:12/0.3:8/0.6:4,warm_steps=1500 "
        "--problems_per_step 8 --num_generations 4 --max_steps 40 --eval_steps 5",
        51,
    ),
    "few": Testbed(
        "70 % of the problems are one or two sums, solved from the start, 20 % are chains of 14-16, hopeless, 10 % chains of 5-8, in "
        "between; tested on chains of 5-8 and 9-12, so on what choosing problems chooses",
        f"--dataset arithmetic:train=4000,{TASK} --problems_per_step 8 --num_generations 8 --max_steps 30 --eval_steps 5",
        99,
        ("uniform", "lilo"),
    ),
}
AXES = {"steps": "step", "tokens": "generated tokens, thousands", "seconds": "seconds of steps, evaluations apart"}
DRAWS = 10_000
MANY = 1.5  # times the tokens
VALUED_ON, VALUED_AT, VALUED = ["credit", "habits"], [10, 20, 30, 40], 60  # steps of PPO runs at which values of states are measured
RUNNING: set[subprocess.Popen[bytes]] = set()
Runs = dict[tuple[str, str], list[dict[str, Any]]]  # by method and way of sampling, over seeds


# ---- runs ------------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """What is tuned."""

    rate: float
    critic: float = CRITICS[0]  # of PPO alone

    @property
    def folder(self) -> str:
        return f"{self.rate:g}" + (f"-critic-{self.critic:g}x" if self.critic != CRITICS[0] else "")


def folder_of(out: Path, testbed: str, method: str, way: str, setting: Setting, seed: int) -> Path:
    name = "".join(letter for letter in method.lower().replace(" ", "-") if letter.isalnum() or letter == "-")
    return out / testbed / f"{name}-{way}" / setting.folder / f"seed-{seed}"


def is_done(folder: Path, command: list[str]) -> bool:
    """Whether the folder holds this command's finished run. Exits if it holds another one's."""
    done = folder / "command.json"
    if not done.exists():
        return False
    if json.loads(done.read_text())["command"] != command:
        sys.exit(f"{folder} holds a run of another command; name another --out")
    return True


def run(folder: Path, command: list[str], log: Path) -> None:
    """Runs a script unless the folder holds its finished run."""
    if is_done(folder, command):
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    trains = command[0].startswith("train_")
    flags = ["--resume_from_checkpoint", "auto", "--output_dir", str(folder)] if trains else ["--out", str(folder)]
    running = revision()
    with open(log, "w") as file:  # a session of its own: `run_all` ends it, and what it started
        child = subprocess.Popen([sys.executable, *command, *flags], cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        RUNNING.add(child)
        code = child.wait()
        RUNNING.discard(child)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with code {code}; see {log}")
    write_atomically(folder / "command.json", json.dumps({"command": command, "revision": running}))


def revision() -> str:
    """Of the code that runs; with a + where files differ from it."""
    words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def run_all(jobs: dict[Path, list[str]], count: int, what: str) -> None:
    """All runs, `count` at a time, with a progress bar. One that fails ends all: no run is left out. So does SIGINT or SIGTERM; runs in
    hand save a checkpoint and go on from it when the command is given again."""
    with ThreadPoolExecutor(count) as threads, tqdm(total=len(jobs), desc=what, dynamic_ncols=True) as bar:
        waiting = [threads.submit(run, folder, command, folder.with_suffix(".log")) for folder, command in jobs.items()]
        try:
            for one in as_completed(waiting):
                one.result()
                bar.update()
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on")
        except RuntimeError as error:
            sys.exit(str(error))
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            while not all(one.done() for one in waiting):  # one may start just now
                while RUNNING:
                    os.killpg(RUNNING.pop().pid, signal.SIGTERM)
                time.sleep(0.1)


def command_of(testbed: str, method: str, way: str, setting: Setting) -> list[str]:
    own = METHODS[method].format(limit=TESTBEDS[testbed].longest + 16)
    flags = f"{own} {TESTBEDS[testbed].flags} {COMMON} --learning_rate {setting.rate:g}"
    critic = f" --critic_learning_rate {setting.critic * setting.rate:g}" if method == "PPO" else ""
    return (flags + critic + (f" --sampling {way}" if way != "uniform" else "")).split()


def jobs_of(
    out: Path, testbed: str, settings: dict[str, list[Setting]], cells: list[tuple[str, str]], seeds: list[int]
) -> dict[Path, list[str]]:
    """By folder: every cell (method, way of sampling) at its settings on every seed; all cells of a seed, then the next seed."""
    return {
        folder_of(out, testbed, method, way, setting, seed): [*command_of(testbed, method, way, setting), "--seed", str(seed)]
        for seed in seeds
        for method, way in cells
        for setting in settings[method]
    }


def value_jobs(out: Path, testbed: str, setting: Setting) -> dict[Path, list[str]]:
    """benchmarks/value_error.py for PPO, every fresh seed; with checkpoints, so these are runs of their own."""
    trains = [*command_of(testbed, "PPO", "uniform", setting), "--save_steps", "10", "--save_total_limit", "0"]
    trains += ["--resume_from_checkpoint", "auto"]
    measure = f"--steps {' '.join(map(str, VALUED_AT))} --states {VALUED} --choices 0".split()
    return {
        out / "values" / testbed / f"seed-{seed}": ["benchmarks/value_error.py", " ".join(trains), "--seeds", str(seed), *measure]
        for seed in SEEDS
    }


def value_errors(folder: Path) -> dict[int, dict[str, float]]:
    """By step and estimator: mean absolute error against V* in one run of `value_jobs`."""
    steps = json.loads((folder / "value_error.json").read_text())["steps"]
    return {int(step): summaries[0]["mean absolute error"] for step, summaries in steps.items()}


@cache  # of a finished run
def read(folder: Path) -> dict[str, Any]:
    """A run's curves by axis, tokens and seconds of all steps, its entropies, and the revision that it ran."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        **curves_of(rows),
        "seed": int(folder.name.removeprefix("seed-")),
        "revision": json.loads((folder / "command.json").read_text())["revision"],
        "explained": statistics.mean(row["value/explained_variance"] for row in rows[-10:])
        if "value/explained_variance" in rows[-1]
        else None,
        "all_tokens": rows[-1]["num_tokens"],
        "all_seconds": sum(row.get("step_time", 0.0) for row in rows),
    }


def tuning(out: Path, testbed: str, method: str) -> tuple[list[Setting], dict[Setting, list[dict[str, Any]]]]:
    """The settings to try, and their runs on the seeds for tuning once all of these are there. While the best rate is the lowest or
    the highest, half of it or twice of it is tried as well."""
    rates = list(RATES)
    while True:
        settings = [Setting(rate, critic) for critic in (CRITICS if method == "PPO" else CRITICS[:1]) for rate in rates]
        jobs = jobs_of(out, testbed, {method: settings}, [(method, "uniform")], TUNED_ON)
        if not all(is_done(*job) for job in jobs.items()):
            return settings, {}
        runs = {s: [read(folder_of(out, testbed, method, "uniform", s, seed)) for seed in TUNED_ON] for s in settings}
        best = best_of(runs).rate
        if len(rates) == MOST_RATES or rates[0] < best < rates[-1]:
            return settings, runs
        rates = [best / 2, *rates] if best == rates[0] else [*rates, best * 2]


def best_of(runs: dict[Setting, list[dict[str, Any]]]) -> Setting:
    return max(runs, key=lambda setting: statistics.mean(area(run) for run in runs[setting]))


def tune(out: Path, testbed: str, count: int) -> None:
    """Runs what `tuning` asks for until it asks for no more."""
    asked: dict[Path, list[str]] = {}
    while True:
        settings = {method: tuning(out, testbed, method)[0] for method in METHODS}
        jobs = jobs_of(out, testbed, settings, [(method, "uniform") for method in METHODS], TUNED_ON)
        if jobs == asked:
            return
        run_all(jobs, count, f"{testbed}, learning rates")  # of those that are there, it looks at the command
        asked = jobs


def chosen(out: Path, testbed: str) -> dict[str, Setting]:
    found = {method: tuning(out, testbed, method)[1] for method in METHODS}
    if not all(found.values()):
        sys.exit(f"{testbed}: learning rates are not tuned yet; do without --only first")
    return {method: best_of(runs) for method, runs in found.items()}


def finished(out: Path, testbed: str, settings: dict[str, Setting], cells: list[tuple[str, str]], seeds: list[int]) -> Runs:
    runs = {}
    for method, way in cells:
        jobs = jobs_of(out, testbed, {method: [settings[method]]}, [(method, way)], seeds)
        require(jobs)
        runs[method, way] = [read(folder) for folder in jobs]
    return runs


def require(jobs: dict[Path, list[str]]) -> None:
    """Exits unless all of them are there."""
    missing = [folder for folder, command in jobs.items() if not is_done(folder, command)]
    if missing:
        sys.exit(f"{len(missing)} runs are missing, the first is {missing[0]}; do without --only first")


def tuning_table(out: Path, testbed: str) -> str:
    """A row for each method, and critic rate: area and, in brackets, the last three evaluations; * at the edge of what was tried."""
    found = {method: tuning(out, testbed, method)[1] for method in METHODS}
    columns = sorted({setting.rate for runs in found.values() for setting in runs})
    rows = []
    for method, runs in found.items():
        best, rates = best_of(runs), sorted({setting.rate for setting in runs})
        for critic in dict.fromkeys(setting.critic for setting in runs):
            cells = []
            for rate in columns:
                own = runs.get(Setting(rate, critic))
                text = f"{statistics.mean(map(area, own)):.3f} ({statistics.mean(map(final, own)):.3f})" if own else ""
                edge = "*" if rate in (rates[0], rates[-1]) else ""
                cells.append(f"**{text}**{edge}" if (rate, critic) == best else text)
            rows.append([f"{method}, critic {critic:g}x" if method == "PPO" else method, *cells])
    return table(["method", *(f"{rate:g}" for rate in columns)], rows)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def height(run: dict[str, Any], axis: str, end: float) -> float:
    """Mean height of the pass@1 curve up to `end` on an axis of AXES: the area under it, over its width."""
    x, y = np.array(list(run[axis].items())).T
    points = [*x[x < end], end]
    return float(np.trapezoid(np.interp(points, x, y), points) / end)


def area(run: dict[str, Any]) -> float:
    return height(run, "steps", max(run["steps"]))


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


def t_interval(values: list[float]) -> tuple[float, float]:
    """95 % Student t interval of the mean; on five values the bootstrap's is narrower than it says."""
    mean, half = statistics.mean(values), stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def shown_t(values: list[float], form: str = ".3f") -> str:
    low, high = t_interval(values)
    return f"{statistics.mean(values):{form}} (95 % t interval {low:{form}} to {high:{form}})"


class Difference(NamedTuple):
    """a - b, seed by seed."""

    mean: float
    low: float  # `t_interval` of the paired differences
    high: float
    overlap: bool  # of the two methods' own bootstrap intervals

    @property
    def sure(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (95 % t interval {self.low:+.3f} to {self.high:+.3f})"


def difference(a: list[float], b: list[float]) -> Difference:
    apart = [x - y for x, y in zip(a, b, strict=True)]
    (low_a, high_a), (low_b, high_b) = interval(a), interval(b)
    return Difference(statistics.mean(apart), *t_interval(apart), low_a <= high_b and low_b <= high_a)


def change(values: list[float], wanted: int) -> str:
    """Verdict on shares of a start that are claimed to be above (wanted: 1) or below (-1) 1."""
    low, high = t_interval(values)
    if low <= 1 <= high:
        return "not reproduced: no difference shown"
    return "reproduced" if (low > 1) == (wanted > 0) else "not reproduced: the other way round"


def verdict(found: Difference, wanted: int = 1) -> str:
    """`wanted`: the sign that the claim gives the difference."""
    if not found.sure:
        return "not reproduced: no difference shown"
    same = found.mean * wanted > 0
    if found.overlap:
        return f"not reproduced by our rule: {'so' if same else 'the other way round'} in the paired interval, but the methods' own overlap"
    return "reproduced" if same else "not reproduced: the other way round"


class Sooner(NamedTuple):
    """How many times less of an axis a method needs to the best value of the other's mean curve; 0: it never gets there."""

    times: float
    low: float  # 95 % of draws of seeds
    high: float

    def __str__(self) -> str:
        return (f"{self.times:.2f} times sooner" if self.times else "never") + f" ({self.low:.2f} - {self.high:.2f})"


def sooner(runs: list[dict[str, Any]], base: list[dict[str, Any]], axis: str) -> Sooner:
    a, b = [run[axis] for run in base], [run[axis] for run in runs]
    draws = np.random.default_rng(0).integers(len(a), size=(DRAWS // 5, len(a)))
    low, high = np.quantile([speed_up([a[i] for i in draw], [b[i] for i in draw]) for draw in draws], [0.025, 0.975])
    return Sooner(speed_up(a, b), float(low), float(high))


# ---- claims ----------------------------------------------------------------------------------------------------------

VINEPPO, NFT, LILO = "VinePPO, arXiv 2410.01679", "NFT, arXiv 2505.18116", "learnability sampling, arXiv 2502.12272"


def claims_of(results: dict[str, Runs], further: dict[str, Runs], values: dict[str, list[dict[int, dict[str, float]]]]) -> list[list[str]]:
    """Rows of the table: claim, source and scale, what was seen, verdict, testbed. values: `value_errors` of each seed, by testbed."""
    rows = []
    for name in ("credit", "habits"):
        runs, again = by_method(results[name]), by_method(further[name])
        own = vineppo_claims(runs)
        if again:
            own += vineppo_claims(again, f", on {len(again['PPO'])} further seeds")
        rows += [[*row, name] for row in own + value_claims(values[name]) + nft_claims(runs)]
    return rows + [[*row, "few"] for row in learnability_claims(results["few"])]


def by_method(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """Of a testbed with one way of sampling."""
    return {method: own for (method, _), own in runs.items()}


def vineppo_claims(runs: dict[str, list[dict[str, Any]]], where: str = "") -> list[list[str]]:
    rows = []
    for method in (m for m in runs if m.startswith("VinePPO")):
        k, vine, ppo = method.removeprefix("VinePPO, "), runs[method], runs["PPO"]
        found, steps, seconds = difference(areas(vine), areas(ppo)), sooner(vine, ppo, "steps"), sooner(vine, ppo, "seconds")
        end = min(max(run["seconds"]) for run in vine + ppo)
        within = difference(*([height(run, "seconds", end) for run in own] for own in (vine, ppo)))
        source = f"{VINEPPO}: RhoMath 1.1B, DeepSeekMath 7B; to PPO's best on MATH up to 9 and 2.8 times fewer steps (secondary source)"
        rows.append(
            [
                f"VinePPO ({k}) beats PPO per step{where}",
                source,
                f"area {shown(areas(vine))}, PPO's {shown(areas(ppo))}: {found}; at PPO's best mean value {steps}",
                verdict(found),
            ]
        )
        source = f"{VINEPPO}: 3.0 and 1.5 times less wall time (secondary source)"
        rows.append(
            [
                f"VinePPO ({k}) beats PPO per second{where}",
                source,
                f"mean height up to second {end:.0f}: {within}; at PPO's best mean value {seconds}",
                verdict(within),
            ]
        )
    return rows


def value_claims(values: list[dict[int, dict[str, float]]]) -> list[list[str]]:
    rows = []
    errors = {name: [statistics.mean(at[name] for at in own.values()) for own in values] for name in ("critic", "constant", "MC 3", "MC 9")}
    against = difference(errors["critic"], errors["constant"])
    for k in (9, 3):
        found = difference(errors["critic"], errors[f"MC {k}"])
        steps = "; ".join(
            f"step {step}: {statistics.mean(own[step]['critic'] for own in values):.3f}, "
            f"{statistics.mean(own[step][f'MC {k}'] for own in values):.3f}, {statistics.mean(own[step]['constant'] for own in values):.3f}"
            for step in VALUED_AT
        )
        seen = f"mean absolute error of critic, K = {k}, a constant: {steps}. Critic less K = {k}: {found}; less constant: {against}"
        source = f"{VINEPPO}: about .11 against .03 (secondary source)"
        rows.append([f"Monte-Carlo values (K = {k}) are more accurate than a critic's", source, seen, verdict(found)])
    return rows


def nft_claims(runs: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    rows, source = [], f"{NFT}: 7B and 32B, 51.7 against 48.3 and 59.2 against 52.8"
    for where, of in (("", area), (", last three evaluations", final)):
        found = difference([of(run) for run in runs["NFT"]], [of(run) for run in runs["RFT"]])
        rows.append([f"NFT is above RFT{where}", source, f"{found}", verdict(found)])
    entropies = {method: [entropy_change(run) for run in own] for method, own in runs.items()}
    means = [statistics.mean(own) for own in entropies.values()]
    source = f"{NFT}: RFT lowers it, NFT and DAPO raise it"
    for method, wanted in (("RFT", -1), ("NFT", 1), ("DAPO", 1)):
        own = entropies[method]
        claim = f"{method}'s entropy {'falls' if wanted < 0 else 'rises'}"
        seen = f"last ten steps, of the first ten's: {shown_t(own, '.3f')}; means of all methods {min(means):.3f} - {max(means):.3f}"
        rows.append([claim, source, seen, change(own, wanted)])
    more = difference(entropies["RFT"], entropies["NFT"])
    return [*rows, ["RFT's entropy falls more than NFT's", source, f"RFT less NFT: {more}", verdict(more, -1)]]


def learnability_claims(runs: Runs) -> list[list[str]]:
    rows, gains, tokens = [], {}, {}
    for method in METHODS:
        lilo, uniform = runs[method, "lilo"], runs[method, "uniform"]
        gains[method] = [a - b for a, b in zip(areas(lilo), areas(uniform), strict=True)]
        tokens[method] = [a["all_tokens"] / b["all_tokens"] for a, b in zip(lilo, uniform, strict=True)]
        found, steps = difference(areas(lilo), areas(uniform)), sooner(lilo, uniform, "steps")
        factor = {"PPO": "1.9 and 2.5", "VinePPO, K=9": "3.3 and 3.2", "GRPO": "1.5"}.get(method)
        source = f"{LILO}: {factor} times fewer steps to the best value, 1B to 1.5B" if factor else "ours, by extension"
        claim = f"learnability sampling needs fewer steps: {method}"
        rows.append([claim, source, f"area {found}; at uniform's best mean value {steps}", verdict(found)])
    paying = {method: own for method, own in tokens.items() if not method.startswith("VinePPO")}
    least = min(t_interval(own)[0] for own in paying.values())
    paid = ", ".join(
        f"{method} {statistics.mean(own):.2f} ({' to '.join(f'{x:.2f}' for x in t_interval(own))})" for method, own in paying.items()
    )
    holds = "reproduced, as it must be: four times the candidates" if least > MANY else "not reproduced"
    rows.append(["it costs many more tokens a step for PPO and GRPO", f"{LILO}: 4 times", f"{paid} times the tokens", holds])
    for method in (m for m in METHODS if m.startswith("VinePPO")):
        holds = "reproduced" if t_interval(tokens[method])[1] < MANY else "not reproduced"
        source = f"{LILO}: 1.04 times" if method == "VinePPO, K=9" else "ours, by extension"
        rows.append([f"and few for {method}", source, f"{shown_t(tokens[method], '.2f')} times the tokens", holds])
    found = difference(gains["Dr. GRPO"], gains["GRPO"])
    claim = "GRPO divided by the standard deviation gains less from it than centred (Dr. GRPO)"
    rows.append([claim, f"{LILO}, theorem 3.1: theory", f"gain in area, centred less normalised: {found}", verdict(found)])
    return rows


def areas(runs: list[dict[str, Any]]) -> list[float]:
    return [area(run) for run in runs]


def entropy_change(run: dict[str, Any]) -> float:
    """-log p of sampled tokens in the last ten steps, as a share of the first ten's."""
    values = list(run["entropy"].values())
    return values[-1] / values[0]


ELSEWHERE = [
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
    """Mean curves over seeds with a bootstrap band: a column of panels for each axis, a row for each way of sampling."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = TESTBEDS[name].ways
    figure, grid = pyplot.subplots(len(ways), 3, figsize=(15, 0.8 + 4 * len(ways)), dpi=80, sharex="col", sharey=True, squeeze=False)
    for (method, way), own in runs.items():
        for axes, axis in zip(grid[ways.index(way)], AXES, strict=True):
            first = 0 if axis == "steps" else 1  # 0 tokens have no place on a logarithmic axis
            x, y = zip(*mean_curve([run[axis] for run in own])[first:], strict=True)
            heights = np.array([list(run["steps"].values()) for run in own])[:, first:]
            low, high = zip(*(interval(column.tolist()) for column in heights.T), strict=True)
            colour = f"C{list(METHODS).index(method)}"
            axes.fill_between(x, low, high, color=colour, alpha=0.07, linewidth=0)
            axes.plot(x, y, color=colour, linewidth=1.6, label=method)
    for way, panels in zip(ways, grid, strict=True):
        panels[0].set_ylabel("sampled pass@1, 400 unseen problems" + (f"\n{way}" if len(ways) > 1 else ""))
        for axes, axis in zip(panels, AXES, strict=True):
            axes.grid(alpha=0.3)
            if axis != "steps":
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter("")
    for axes, label in zip(grid[-1], AXES.values(), strict=True):
        axes.set(xlabel=label)
    height = figure.get_figheight()
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="lower center", ncols=len(METHODS), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.3 / height, 1, 1))
    figure.savefig(path)
    pyplot.close(figure)


def testbed_page(name: str, runs: Runs, further: Runs, settings: dict[str, Setting], tuned: str) -> str:
    """Its part of docs/results.md."""
    several = len(TESTBEDS[name].ways) > 1
    lines, every = [], []
    for (method, way), own in runs.items():
        label = f"{method}, {way}" if several else method
        rate = f"{settings[method].rate:g}" + (f", critic {settings[method].critic:g}x" if method == "PPO" else "")
        lines.append([label, rate, shown([final(run) for run in own]), shown([area(run) for run in own])])
        lines[-1] += [
            f"{statistics.mean(run[f'all_{axis}'] for run in own) / scale:.0f}" for axis, scale in (("tokens", 1e3), ("seconds", 1))
        ]
    for (method, way), own in [*runs.items(), *further.items()]:
        label = f"{method}, {way}" if several else method
        for run in own:
            curve = [f"{value:.3f}" for step, value in run["steps"].items() if step % 10 == 0]
            every.append([label, str(run["seed"]), *curve, f"{final(run):.3f}", f"{area(run):.3f}"])
    steps = [f"step {step}" for step in next(iter(runs.values()))[0]["steps"] if step % 10 == 0]
    ppo = [run["explained"] for run in runs["PPO", "uniform"] if run["explained"] is not None]
    critic = f"PPO's critic explains {shown(ppo, '.2f')} of the variance of the returns in the last ten steps.\n\n" if ppo else ""
    header = ["method", "learning rate", "last three evaluations", "area", "tokens, k", "seconds"]
    return f"""## {name}

{TESTBEDS[name].about[0].upper()}{TESTBEDS[name].about[1:]}. `{TESTBEDS[name].flags} {COMMON}`

![pass@1 over steps, tokens and seconds](results_{name}.png)

{table(header, lines)}

{critic}Revision of the code: {", ".join(sorted({run["revision"] for own in [*runs.values(), *further.values()] for run in own}))}.

Learning rates: mean area on seeds {" and ".join(map(str, TUNED_ON))}, and in brackets the last three evaluations. Uniform sampling; the
rate with the largest area is used for all ways of sampling. * no further rate was tried on that side.

{tuned}

<details><summary>All seeds{", and at the end the further ones" if further else ""}</summary>

{table(["method", "seed", *steps, "last three", "area"], every)}

</details>
"""


def overview(results: dict[str, Runs]) -> str:
    """Area of every method on every testbed and with every way of sampling."""
    columns = [(name, way) for name in results for way in TESTBEDS[name].ways]
    header = ["area (95 % interval)", *(f"`{name}`{f', {way}' if len(TESTBEDS[name].ways) > 1 else ''}" for name, way in columns)]
    return table(header, [[method, *(shown(areas(results[name][method, way])) for name, way in columns)] for method in METHODS])


def write(out: Path, docs: Path) -> None:
    """docs/results.md and its figures, from finished runs."""
    results, further, values, parts, notes = {}, {}, {}, [], (Path(__file__).with_suffix(".md")).read_text()
    for name in TESTBEDS:
        settings = chosen(out, name)
        results[name] = finished(out, name, settings, TESTBEDS[name].cells, SEEDS)
        further[name] = finished(out, name, settings, *FURTHER.get(name, ([], [])))
        if name in VALUED_ON:
            jobs = value_jobs(out, name, settings["PPO"])
            require(jobs)
            values[name] = [value_errors(folder) for folder in jobs]
        parts.append(testbed_page(name, results[name], further[name], settings, tuning_table(out, name)))
        plot(name, results[name], docs / f"results_{name}.png")
    header = ["claim", "source and scale", "seen here", "verdict", "testbed or command"]
    rows = claims_of(results, further, values)
    filled = {
        "CLAIMS": table(header, rows + ELSEWHERE),
        "COUNT": str(len(rows)),
        "OVERVIEW": overview(results),
        "TESTBEDS": "\n".join(parts),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], notes)
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
    if "write" in arguments.only and len(arguments.testbeds) < len(TESTBEDS):
        parser.error("the page is about all testbeds; with --testbeds give --only tune run")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    out = arguments.out.absolute()
    for name in arguments.testbeds:
        if "tune" in arguments.only:
            tune(out, name, arguments.jobs)
        if "run" in arguments.only:
            settings = chosen(out, name)
            each = {method: [own] for method, own in settings.items()}
            run_all(jobs_of(out, name, each, TESTBEDS[name].cells, SEEDS), arguments.jobs, f"{name}, seeds")
            if name in FURTHER:
                run_all(jobs_of(out, name, each, *FURTHER[name]), arguments.jobs, f"{name}, further seeds")
            if name in VALUED_ON:
                run_all(value_jobs(out, name, settings["PPO"]), arguments.jobs, f"{name}, values of states")
    if "write" in arguments.only:
        write(out, arguments.docs)


if __name__ == "__main__":
    main()
