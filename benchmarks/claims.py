"""What papers say of these methods, tried at the scale of a laptop: every run, and the tables and figures of docs/results.md.

    python benchmarks/claims.py [--jobs 2] [--out runs/claims]
    python benchmarks/claims.py --testbeds credit --only tune run
    python benchmarks/claims.py --only write               # the tables and figures from the runs that are there
    python benchmarks/claims.py --figures docs/results.md  # the figures alone, from the tables of the page

Each method gets the learning rate with the largest area under its curve on seeds 100 and 101, of RATES and of what lies beyond them where
the best one is the first or the last; PPO's critic has two rates to each of them. It is then run on five fresh seeds. Nothing else is
tuned and no run is left out. Testbeds, sizes and seeds stand below and were fixed before the fresh seeds were run; docs/results.md says
what they are for, and how a verdict is reached. Its tables are found by their headers and replaced; its words are written by hand. The same
command goes on after an interruption. One thread a run.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import statistics
from functools import cache
from pathlib import Path
from typing import NamedTuple

import curves
import numpy as np
from curves import Run, binned, dots, height, listed, minus, save, shown, t_interval, table, tenths
from learnability import TASK, sooner
from sweep import ROOT, is_done, note_of, run_all

from common.console import fail, guard, say
from common.files import write_file

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

    flags: str
    longest: int  # tokens of the longest right solution; DAPO's penalty on long ones begins there
    ways: tuple[str, ...] = ("uniform",)

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Methods and ways of sampling."""
        return [(method, way) for method in METHODS for way in self.ways]

    def label(self, method: str, way: str) -> str:
        """A cell's name in tables."""
        return f"{method}, {way}" if len(self.ways) > 1 else method


CHAINS = "values=60,words=2,tiers=half:1:4-6"
TESTBEDS = {
    "credit": Testbed(f"--dataset arithmetic:{CHAINS} --problems_per_step 8 --num_generations 4 --max_steps 40 --eval_steps 5", 51),
    "habits": Testbed(f"--dataset arithmetic:{CHAINS},cells=0.01:12/0.3:8/0.6:4,warm_steps=1500 --problems_per_step 8 --num_generations 4 "
                      "--max_steps 40 --eval_steps 5", 51),
    "few": Testbed(f"--dataset arithmetic:train=4000,{TASK} --problems_per_step 8 --num_generations 8 --max_steps 30 --eval_steps 5", 99,
                   ("uniform", "lilo")),
}
DRAWS = 10_000  # of the bootstrap
MANY = 1.5  # times the tokens
VALUED_ON, VALUED_AT, VALUED = ["credit", "habits"], [10, 20, 30, 40], 60  # steps of PPO runs at which values of states are measured
Results = dict[tuple[str, str], list[Run]]  # by method and way of sampling, over seeds


# ---- runs ------------------------------------------------------------------------------------------------------------

class Setting(NamedTuple):
    """What is tuned."""

    rate: float
    critic: float = CRITICS[0]  # of PPO alone

    @property
    def folder(self) -> str:
        """Its part of a path."""
        return f"{self.rate:g}" + (f"-critic-{self.critic:g}x" if self.critic != CRITICS[0] else "")


def folder_of(out: Path, testbed: str, method: str, way: str, setting: Setting, seed: int) -> Path:
    """Of one run."""
    name = "".join(letter for letter in method.lower().replace(" ", "-") if letter.isalnum() or letter == "-")
    return out / testbed / f"{name}-{way}" / setting.folder / f"seed-{seed}"


def command_of(testbed: str, method: str, way: str, setting: Setting) -> list[str]:
    """Of one run, without its seed."""
    own = METHODS[method].format(limit=TESTBEDS[testbed].longest + 16)
    flags = f"{own} {TESTBEDS[testbed].flags} {COMMON} --learning_rate {setting.rate:g}"
    critic = f" --critic_learning_rate {setting.critic * setting.rate:g}" if method == "PPO" else ""
    return (flags + critic + (f" --sampling {way}" if way != "uniform" else "")).split()


def jobs_of(out: Path, testbed: str, settings: dict[str, list[Setting]], cells: list[tuple[str, str]], seeds: list[int]
            ) -> dict[Path, list[str]]:
    """By folder: every cell (method, way of sampling) at its settings on every seed; all cells of a seed, then the next seed."""
    return {folder_of(out, testbed, method, way, setting, seed): [*command_of(testbed, method, way, setting), "--seed", str(seed)]
            for seed in seeds for method, way in cells for setting in settings[method]}


def value_jobs(out: Path, testbed: str, setting: Setting) -> dict[Path, list[str]]:
    """benchmarks/value_error.py for PPO, every fresh seed; with checkpoints, so these are runs of their own."""
    measure = f"--steps {' '.join(map(str, VALUED_AT))} --states {VALUED} --choices 0 --".split()
    trains = [*command_of(testbed, "PPO", "uniform", setting)[1:], "--save_steps", "10"]
    return {out / "values" / testbed / f"seed-{seed}": ["benchmarks/value_error.py", "--seeds", f"{seed},", *measure, *trains]
            for seed in SEEDS}


@cache  # of a finished run
def read(folder: Path) -> Run:
    """A run's curves and totals, its seed, and the revision that it ran."""
    return {**curves.read(folder), "seed": folder.name.removeprefix("seed-"), "revision": note_of(folder)["revision"]}


def runs_of(jobs: dict[Path, list[str]]) -> list[Path]:
    """Their folders. Exits unless all runs are finished."""
    missing = [folder for folder, command in jobs.items() if not is_done(folder, command)]
    if missing:
        fail(f"error: {len(missing)} runs are missing, the first is {missing[0]}; do without --only first")
    return list(jobs)


def tuning(out: Path, testbed: str, method: str) -> dict[Setting, list[Run]]:
    """The settings to try, and their runs on the seeds for tuning, which are empty lists until all of these are there.

    While the best rate is the lowest or the highest, half of it or twice of it is tried as well.
    """
    rates = list(RATES)
    while True:
        settings = [Setting(rate, critic) for critic in (CRITICS if method == "PPO" else CRITICS[:1]) for rate in rates]
        jobs = jobs_of(out, testbed, {method: settings}, [(method, "uniform")], TUNED_ON)
        if not all(is_done(*job) for job in jobs.items()):
            return {setting: [] for setting in settings}
        runs = {s: [read(folder_of(out, testbed, method, "uniform", s, seed)) for seed in TUNED_ON] for s in settings}
        best = best_of(runs).rate
        if len(rates) == MOST_RATES or rates[0] < best < rates[-1]:
            return runs
        rates = [best / 2, *rates] if best == rates[0] else [*rates, best * 2]


def best_of(runs: dict[Setting, list[Run]]) -> Setting:
    """The setting with the largest area."""
    return max(runs, key=lambda setting: statistics.mean(areas(runs[setting])))


def tune(out: Path, testbed: str, count: int) -> None:
    """Runs what `tuning` asks for until it asks for no more."""
    asked: dict[Path, list[str]] = {}
    while True:
        settings = {method: list(tuning(out, testbed, method)) for method in METHODS}
        jobs = jobs_of(out, testbed, settings, [(method, "uniform") for method in METHODS], TUNED_ON)
        if jobs == asked:
            return
        run_all(jobs, count, f"{testbed}, learning rates")  # of those that are there, it looks at the command
        asked = jobs


def chosen(out: Path, testbed: str) -> dict[str, Setting]:
    """The best setting of each method. Exits before all are tuned."""
    found = {method: tuning(out, testbed, method) for method in METHODS}
    if not all(all(runs.values()) for runs in found.values()):
        fail(f"error: {testbed}: learning rates are not tuned yet; do without --only first")
    return {method: best_of(runs) for method, runs in found.items()}


def finished(out: Path, testbed: str, settings: dict[str, Setting], cells: list[tuple[str, str]], seeds: list[int]) -> Results:
    """The runs at the chosen settings."""
    return {(method, way): [read(folder) for folder in runs_of(jobs_of(out, testbed, {method: [settings[method]]}, [(method, way)], seeds))]
            for method, way in cells}


# ---- numbers ---------------------------------------------------------------------------------------------------------

def areas(runs: list[Run]) -> list[float]:
    """Mean height of each run's pass@1 curve over its steps."""
    return [height(run["steps"]) for run in runs]


def finals(runs: list[Run]) -> list[float]:
    """Mean of each run's last three evaluations."""
    return [statistics.mean(list(run["steps"].values())[-3:]) for run in runs]


def interval(values: list[float]) -> tuple[float, float]:
    """95 % of bootstrap draws of the mean over seeds."""
    means = np.random.default_rng(0).choice(values, (DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def drawn(values: list[float], form: str = ".3f") -> str:
    """Mean and bootstrap interval."""
    return shown(values, form, interval, "-")


def by_t(values: list[float], form: str = ".3f") -> str:
    """Mean and t interval; on five values the bootstrap's is narrower than it says."""
    return shown(values, form, what="95 % t interval ")


class Difference(NamedTuple):
    """a - b, seed by seed."""

    mean: float
    low: float  # `t_interval` of the paired differences
    high: float
    overlap: bool  # of the two methods' own bootstrap intervals

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (95 % t interval {self.low:+.3f} to {self.high:+.3f})"


def difference(a: list[float], b: list[float]) -> Difference:
    """Of two methods on the same seeds."""
    (low_a, high_a), (low_b, high_b) = interval(a), interval(b)
    return Difference(statistics.mean(minus(a, b)), *t_interval(minus(a, b)), low_a <= high_b and low_b <= high_a)


def verdict(found: Difference, wanted: int = 1) -> str:
    """`wanted`: the sign that the claim gives the difference."""
    if found.low <= 0 <= found.high:
        return "not reproduced: no difference shown"
    same = found.mean * wanted > 0
    if found.overlap:
        return f"not reproduced by our rule: {'so' if same else 'the other way round'} in the paired interval, but the methods' own overlap"
    return "reproduced" if same else "not reproduced: the other way round"


def change(values: list[float], wanted: int) -> str:
    """Verdict on shares of a start that are claimed to be above (wanted: 1) or below (-1) 1."""
    low, high = t_interval(values)
    return verdict(Difference(statistics.mean(values) - 1, low - 1, high - 1, False), wanted)


# ---- claims: rows of claim, source and scale, what was seen, verdict ---------------------------------------------------

VINEPPO, NFT, LILO = "VinePPO, arXiv 2410.01679", "NFT, arXiv 2505.18116", "learnability sampling, arXiv 2502.12272"
ELSEWHERE = [["on-policy, NFT with prompt weight `sqrt` is GRPO", "NFT, arXiv 2505.18116, theorem",
              "all 7,680 completions of 60 steps the same, 3 seeds ([nft.md](nft.md#three-reductions))", "reproduced",
              "`benchmarks/nft_identity.py`"]]


def vineppo_claims(runs: dict[str, list[Run]], where: str = "") -> list[list[str]]:
    """VinePPO against PPO, per step and per second."""
    rows, ppo = [], runs["PPO"]
    for method in (m for m in runs if m.startswith("VinePPO")):
        k, vine = method.removeprefix("VinePPO, "), runs[method]
        found, end = difference(areas(vine), areas(ppo)), min(max(run["seconds"]) for run in vine + ppo)
        within = difference(*([height(run["seconds"], end) for run in own] for own in (vine, ppo)))
        steps, seconds = (f"at PPO's best mean value {sooner(vine, ppo, axis)}" for axis in ("steps", "seconds"))
        source = f"{VINEPPO}: RhoMath 1.1B, DeepSeekMath 7B; to PPO's best on MATH up to 9 and 2.8 times fewer steps (secondary source)"
        rows.append([f"VinePPO ({k}) beats PPO per step{where}", source,
                     f"area {drawn(areas(vine))}, PPO's {drawn(areas(ppo))}: {found}; {steps}", verdict(found)])
        rows.append([f"VinePPO ({k}) beats PPO per second{where}", f"{VINEPPO}: 3.0 and 1.5 times less wall time (secondary source)",
                     f"mean height up to second {end:.0f}: {within}; {seconds}", verdict(within)])
    return rows


def value_claims(values: list[dict[str, dict[str, float]]]) -> list[list[str]]:
    """The critic against Monte-Carlo. values: of each seed, mean absolute error by step and estimator."""
    rows = []
    names = ("critic", "constant", "MC 3", "MC 9")
    errors = {name: [statistics.mean(at[name] for at in own.values()) for own in values] for name in names}
    for k in (9, 3):
        found, against = difference(errors["critic"], errors[f"MC {k}"]), difference(errors["critic"], errors["constant"])
        means = {step: [statistics.mean(own[str(step)][name] for own in values) for name in ("critic", f"MC {k}", "constant")]
                 for step in VALUED_AT}
        steps = "; ".join(f"step {step}: {', '.join(f'{value:.3f}' for value in own)}" for step, own in means.items())
        rows.append([f"Monte-Carlo values (K = {k}) are more accurate than a critic's",
                     f"{VINEPPO}: about .11 against .03 (secondary source)",
                     f"mean absolute error of critic, K = {k}, a constant: {steps}. Critic less K = {k}: {found}; less constant: {against}",
                     verdict(found)])
    return rows


def nft_claims(runs: dict[str, list[Run]]) -> list[list[str]]:
    """NFT against RFT, and entropies."""
    rows = []
    for where, of in (("", areas), (", last three evaluations", finals)):
        found = difference(of(runs["NFT"]), of(runs["RFT"]))
        source = f"{NFT}: 7B and 32B, 51.7 against 48.3 and 59.2 against 52.8"
        rows.append([f"NFT is above RFT{where}", source, f"{found}", verdict(found)])
    entropies = {method: [entropy_change(run) for run in own] for method, own in runs.items()}
    means, source = [statistics.mean(own) for own in entropies.values()], f"{NFT}: RFT lowers it, NFT and DAPO raise it"
    for method, wanted in (("RFT", -1), ("NFT", 1), ("DAPO", 1)):
        seen = f"last ten steps, of the first ten's: {by_t(entropies[method])}; means of all methods {min(means):.3f} - {max(means):.3f}"
        rows.append([f"{method}'s entropy {'falls' if wanted < 0 else 'rises'}", source, seen, change(entropies[method], wanted)])
    more = difference(entropies["RFT"], entropies["NFT"])
    return [*rows, ["RFT's entropy falls more than NFT's", source, f"RFT less NFT: {more}", verdict(more, -1)]]


def entropy_change(run: Run) -> float:
    """-log p of sampled tokens in the last ten steps, as a share of the first ten's."""
    values = list(binned(run, "neg_logp").values())
    return values[-1] / values[0]


def learnability_claims(runs: Results) -> list[list[str]]:
    """`lilo` against uniform sampling: areas and tokens."""
    rows, gains, tokens = [], {}, {}
    for method in METHODS:
        lilo, uniform = runs[method, "lilo"], runs[method, "uniform"]
        gains[method] = minus(areas(lilo), areas(uniform))
        tokens[method] = [a["all_tokens"] / b["all_tokens"] for a, b in zip(lilo, uniform, strict=True)]
        found = difference(areas(lilo), areas(uniform))
        factor = {"PPO": "1.9 and 2.5", "VinePPO, K=9": "3.3 and 3.2", "GRPO": "1.5"}.get(method)
        source = f"{LILO}: {factor} times fewer steps to the best value, 1B to 1.5B" if factor else "ours, by extension"
        rows.append([f"learnability sampling needs fewer steps: {method}", source,
                     f"area {found}; at uniform's best mean value {sooner(lilo, uniform, 'steps')}", verdict(found)])
    paying = {method: own for method, own in tokens.items() if not method.startswith("VinePPO")}
    least = min(t_interval(own)[0] for own in paying.values())
    paid = ", ".join(f"{method} {shown(own, '.2f')}" for method, own in paying.items())
    holds = "reproduced, as it must be: four times the candidates" if least > MANY else "not reproduced"
    rows.append(["it costs many more tokens a step for PPO and GRPO", f"{LILO}: 4 times", f"{paid} times the tokens", holds])
    for method in (m for m in METHODS if m.startswith("VinePPO")):
        holds = "reproduced" if t_interval(tokens[method])[1] < MANY else "not reproduced"
        source = f"{LILO}: 1.04 times" if method == "VinePPO, K=9" else "ours, by extension"
        rows.append([f"and few for {method}", source, f"{by_t(tokens[method], '.2f')} times the tokens", holds])
    found = difference(gains["Dr. GRPO"], gains["GRPO"])
    claim = "GRPO divided by the standard deviation gains less from it than centred (Dr. GRPO)"
    return [*rows, [claim, f"{LILO}, theorem 3.1: theory", f"gain in area, centred less normalised: {found}", verdict(found)]]


# ---- the page --------------------------------------------------------------------------------------------------------

def testbed_tables(name: str, runs: Results, further: Results, settings: dict[str, Setting]) -> tuple[str, str]:
    """A row for each method, and one for each seed."""
    bed, lines, every = TESTBEDS[name], [], []
    for (method, way), own in runs.items():
        lines.append({"method": bed.label(method, way),
                      "learning rate": f"{settings[method].rate:g}" + (f", critic {settings[method].critic:g}x" if method == "PPO" else ""),
                      "last three evaluations": drawn(finals(own)), "area": drawn(areas(own)),
                      "tokens, k": f"{statistics.mean(run['all_tokens'] for run in own) / 1e3:.0f}",
                      "seconds": f"{statistics.mean(run['all_seconds'] for run in own):.0f}"})
    for (method, way), own in [*runs.items(), *further.items()]:
        every += [{"method": bed.label(method, way), "seed": run["seed"], **tenths(run), "last three": f"{last:.3f}", "area": f"{area:.3f}"}
                  for run, last, area in zip(own, finals(own), areas(own), strict=True)]
    return listed(lines), listed(every)


def tuning_table(out: Path, testbed: str) -> str:
    """A row for each method, and critic rate: area and, in brackets, the last three evaluations; * at the edge of what was tried."""
    found = {method: tuning(out, testbed, method) for method in METHODS}
    columns, rows = sorted({setting.rate for runs in found.values() for setting in runs}), []
    for method, runs in found.items():
        rates = sorted({setting.rate for setting in runs})
        for critic in dict.fromkeys(setting.critic for setting in runs):
            row = {"method": f"{method}, critic {critic:g}x" if method == "PPO" else method}
            for rate in columns:
                own = runs.get(Setting(rate, critic))
                text = f"{statistics.mean(areas(own)):.3f} ({statistics.mean(finals(own)):.3f})" if own else ""
                best = Setting(rate, critic) == best_of(runs)
                row[f"{rate:g}"] = f"**{text}**{'*' if rate in (rates[0], rates[-1]) else ''}" if best else text
            rows.append(row)
    return listed(rows)


HEADERS = {"claims": r"\| claim \| source", "overview": r"\| area \(", "methods": r"\| method \| learning rate \|",
           "tuning": r"\| method \| 0?\.?\d", "seeds": r"\| method \| seed \|"}  # how the tables of the page begin


def tables_in(text: str, kind: str, count: int = len(TESTBEDS)) -> list[str]:
    """The page's tables of a kind. Exits if there are not that many."""
    found = re.findall(rf"^{HEADERS[kind]}.*\n(?:\|.*\n)+", text, re.MULTILINE)
    if len(found) != count:
        fail(f"error: the page has {len(found)} tables that begin with {HEADERS[kind]}, and not {count}")
    return found


def figures(page: Path) -> None:
    """Draws the areas that the page's tables of all seeds record: a figure for each testbed, beside the page."""
    for (name, bed), rows in zip(TESTBEDS.items(), tables_in(page.read_text(), "seeds"), strict=True):
        recorded: dict[str, list[float]] = {}
        for label, seed, *_, area in ([cell.strip() for cell in row.strip("| ").split("|")] for row in rows.splitlines()[2:]):
            if int(seed) in SEEDS:  # the further ones are compared by themselves
                recorded.setdefault(label, []).append(float(area))
        found = {method: {way: recorded[bed.label(method, way)] for way in bed.ways} for method in METHODS}
        title = f"Share of unseen problems solved, averaged over the training (task {name})"
        save(dots(found, title, "area: mean sampled pass@1 over the steps of a run", interval), page.with_name(f"results_{name}.svg"))


def write(out: Path, page: Path) -> None:
    """Puts the finished runs into the page's tables, draws its figures, and prints what the words around them need."""
    results, rows, tables, revisions = {}, [], {"methods": [], "tuning": [], "seeds": []}, set()
    for name, bed in TESTBEDS.items():
        settings = chosen(out, name)
        runs = results[name] = finished(out, name, settings, bed.cells, SEEDS)
        further = finished(out, name, settings, *FURTHER.get(name, ([], [])))
        methods, again = ({method: own for (method, _), own in some.items()} for some in (runs, further))
        own = learnability_claims(runs) if name == "few" else vineppo_claims(methods)
        own += vineppo_claims(again, f", on {len(again['PPO'])} further seeds") if again else []
        if name in VALUED_ON:
            folders = runs_of(value_jobs(out, name, settings["PPO"]))
            found = [json.loads((folder / "value_error.json").read_text())["steps"] for folder in folders]
            own += value_claims([{step: seeds[0]["mean absolute error"] for step, seeds in steps.items()} for steps in found])
            own += nft_claims(methods)
        rows += [[*row, name] for row in own]
        each = *testbed_tables(name, runs, further, settings), tuning_table(out, name)
        for kind, one in zip(("methods", "seeds", "tuning"), each, strict=True):
            tables[kind].append(one)
        revisions |= {run["revision"] for own in [*runs.values(), *further.values()] for run in own}
        explained = [[row["value/explained_variance"] for row in run["rows"][-10:] if "value/explained_variance" in row]
                     for run in runs["PPO", "uniform"]]
        if all(explained):
            shares = drawn([statistics.mean(own) for own in explained], ".2f")
            say(f"{name}: PPO's critic explains {shares} of the variance of the returns in the last ten steps")
    columns = [(name, way) for name, bed in TESTBEDS.items() for way in bed.ways]
    heads = [f"`{name}`{f', {way}' if len(TESTBEDS[name].ways) > 1 else ''}" for name, way in columns]
    overview = [[method, *(drawn(areas(results[name][method, way])) for name, way in columns)] for method in METHODS]
    tables["overview"] = [table(["area (95 % interval)", *heads], overview)]
    tables["claims"] = [table(["claim", "source and scale", "seen here", "verdict", "testbed or command"], rows + ELSEWHERE)]
    text = page.read_text()
    for kind, new in tables.items():
        for old, one in zip(tables_in(text, kind, len(new)), new, strict=True):
            text = text.replace(old, f"{one}\n", 1)
    write_file(page, text)
    say(f"wrote {page}: {len(rows)} verdicts; revision of the code: {', '.join(sorted(revisions))}")
    figures(page)


def main() -> None:
    """The command line."""
    guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--testbeds", nargs="+", choices=TESTBEDS, default=list(TESTBEDS))
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2)), help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="+", choices=["tune", "run", "write"], default=["tune", "run", "write"])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "claims")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", help="its tables are replaced; figures go beside it")
    parser.add_argument("--figures", type=Path, metavar="PAGE", help="draw the figures of this page from its tables, and end")
    arguments = parser.parse_args()
    if arguments.figures:
        return figures(arguments.figures)
    if "write" in arguments.only and len(arguments.testbeds) < len(TESTBEDS):
        parser.error("the page is about all testbeds; with --testbeds give --only tune run")
    os.environ["HF_HUB_OFFLINE"] = "1"
    out, count = arguments.out.absolute(), arguments.jobs
    for name in arguments.testbeds:
        if "tune" in arguments.only:
            tune(out, name, count)
        if "run" in arguments.only:
            settings = chosen(out, name)
            each = {method: [own] for method, own in settings.items()}
            run_all(jobs_of(out, name, each, TESTBEDS[name].cells, SEEDS), count, f"{name}, seeds")
            run_all(jobs_of(out, name, each, *FURTHER.get(name, ([], []))), count, f"{name}, further seeds")
            run_all(value_jobs(out, name, settings["PPO"]) if name in VALUED_ON else {}, count, f"{name}, values of states")
    return write(out, arguments.page) if "write" in arguments.only else None


if __name__ == "__main__":
    main()
