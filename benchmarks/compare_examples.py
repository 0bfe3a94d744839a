"""Every script in examples/ beside its base, on the testbeds `few` and `habits` of benchmarks/claims.py, at two learning rates.

    python benchmarks/compare_examples.py [--seeds 3] [--out runs/compare-examples]
    python benchmarks/compare_examples.py --methods gspo       # the runs of one example, then tables and figures
    python benchmarks/compare_examples.py --only run --methods variants       # only the runs of VARIANTS
    python benchmarks/compare_examples.py --only write         # tables and figures from the runs that are there, and from the page
    python benchmarks/compare_examples.py --only figures       # the figures alone, from the tables of the page

The learning rates are the one that claims.py found best for the base, and half of it. All methods make four updates a step, as there. Flags
of a method keep the defaults of its script. All examples run on one seed before the next seed begins. After all of them come VARIANTS:
scripts with flags that make another method of them. One process runs both rates of a method. The same command goes on after an
interruption. One thread a run.

docs/examples_runs.md keeps the words between its tables. Rows of seeds that this machine has no run of stay as they are in the page.
"""
from __future__ import annotations

import argparse
import importlib
import json
import shutil
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from claims import TESTBEDS
from curves import dots, height, minus, save, shown, t_interval, table
from sweep import ROOT, folder_name, run_all, seeds_of

from common.console import guard, say
from common.files import write_file

sys.path.append(str(ROOT / "tools"))
from list_examples import base_of, examples, read_fields

STEPS, EVERY, PROBLEMS = 10, 5, 150
RATES = [1.2e-3, 6e-4]  # claims.py found the first best for GRPO and for PPO on both testbeds
CRITIC = {"few": 10.0, "habits": 2.5}  # PPO's critic learning rate, in multiples of the policy's; from claims.py, too
WITH_CRITIC = ("train_ppo", "egae")
SETTINGS = f"--max_steps {STEPS} --eval_steps {EVERY} --eval_problems {PROBLEMS} --save_steps 0 --warmup_steps 2 --num_minibatches 4"
PAGE = ROOT / "docs" / "examples_runs.md"
FAILED = "failed.txt"  # in the folder of a run: why it ended early
VARIANTS = {  # by the name of script and variant: the flags
    **{f"pairs-{loss}": f"--loss {loss}" for loss in ("copg", "ipo", "p3o", "lipo", "trpa", "inpo")},
    **{f"pass_at_k-{method}": f"--method {method}" for method in ("pkpo", "pkpo_loo")},
    "kl_cov-clip": "--method clip --cov_share 2e-4",  # the published share
    "dppo-kl": "--divergence kl --delta 0.05",  # the usual limit
    "cispo-scalerl": "--max_ratio 5 --scale_rewards batch",  # arXiv 2510.13786
    "reinforce_pp-plain": "--no_group_baseline",
    "igpo-paper": "--gain_weight 1 --joint_scale",  # the weight and the scale of the paper
    "train_grpo-maxrl": "--scale_rewards mean",
    "train_grpo-batch": "--scale_rewards batch",  # Lite PPO
    "train_grpo-dr": "--scale_rewards none --loss_aggregation constant",  # Dr. GRPO
}


def methods() -> dict[str, str]:
    """Base of each method by the name of its script, bases themselves included."""
    bases = {path.stem: base_of(read_fields(path.read_text(encoding="utf-8")))[0].stem for path in examples()}
    return {**{base: base for base in dict.fromkeys(bases.values())}, **bases}


def compared() -> dict[str, str]:
    """Base of every method by its name, those of VARIANTS last."""
    bases = methods()
    return bases | {name: bases[script_of(name)] for name in VARIANTS}


def script_of(name: str) -> str:
    """The script of a method. Example: "pairs-ipo" -> "pairs"."""
    return name.partition("-")[0]


# ---- runs ------------------------------------------------------------------------------------------------------------

def flags_of(testbed: str, name: str, rate: float) -> list[str]:
    """The flags of a run without seed and folder. Those of a variant are the last."""
    sizes = TESTBEDS[testbed].flags.partition(" --max_steps")[0]
    critic = f" --critic_learning_rate {CRITIC[testbed] * rate:g}" if name in WITH_CRITIC else ""
    return f"{sizes} {SETTINGS} --learning_rate {rate:g}{critic} {VARIANTS.get(name, '')}".split()


def train_both(testbed: str, name: str, seed: int, folder: Path) -> None:
    """Runs a method at both rates, each in a folder of `folder`. A finished run is not done again."""
    from common.errors import UserError
    from common.launch import parse_config

    script = script_of(name)
    module: Any = importlib.import_module(script if methods()[script] == script else f"examples.{script}")
    for rate in RATES:
        own = folder / f"{rate:g}"
        if (own / FAILED).exists() or ((own / "metrics.jsonl").exists() and last_step(own) == STEPS):
            continue
        shutil.rmtree(own, ignore_errors=True)
        argv = [*flags_of(testbed, name, rate), "--seed", str(seed), "--output_dir", str(own)]
        config = parse_config(module.Config, argv, Path(module.__file__).stem)
        try:
            module.train(config)
        except UserError as error:
            own.mkdir(exist_ok=True)
            write_file(own / FAILED, "\n".join(error.lines) + "\n")


def last_step(folder: Path) -> int:
    """The last step in a run's metrics.jsonl."""
    return int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])


def jobs_of(out: Path, names: Iterable[str], seeds: list[int]) -> dict[Path, list[str]]:
    """The command of every testbed, method and seed, by folder; the whole of a seed, then the next seed."""
    return {out / testbed / folder_name(name) / f"seed-{seed}":
            ["benchmarks/compare_examples.py", "--train", testbed, name, "--seed", str(seed)]
            for seed in seeds for testbed in CRITIC for name in names}


# ---- the page --------------------------------------------------------------------------------------------------------

class Result(NamedTuple):
    """One run, as a row of the page has it."""

    name: str
    rate: str
    seed: int
    passes: tuple[float, ...]  # pass@1 at each evaluation; empty if the run ended early
    tokens: str  # generated, thousands; or why the run ended early

    @property
    def area(self) -> float:
        """Mean height of the curve of pass@1."""
        return height({float(i): value for i, value in enumerate(self.passes)})

    def row(self) -> list[str]:
        """The cells of the page."""
        values = [f"{value:.3f}" for value in (*self.passes, self.area)] if self.passes else [""] * (STEPS // EVERY + 2)
        return [self.name, self.rate, str(self.seed), *values, self.tokens]


HEADER = ["script", "rate", "seed", *(f"step {step}" for step in range(0, STEPS + 1, EVERY)), "area", "tokens, k"]


def results_of(out: Path, testbed: str) -> list[Result]:
    """The finished runs in a folder, and those that ended early."""
    found = []
    for folder in sorted((out / testbed).glob("*/seed-*/*/")):
        name, seed, rate = folder.parts[-3], int(folder.parts[-2].removeprefix("seed-")), folder.name
        if (folder / FAILED).exists():
            found.append(Result(name, rate, seed, (), (folder / FAILED).read_text().splitlines()[0].replace("|", "/")))
        elif (folder / "metrics.jsonl").exists() and last_step(folder) == STEPS:
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            passes = tuple(round(row["eval/pass@1"], 3) for row in rows if "eval/pass@1" in row)
            found.append(Result(name, rate, seed, passes, f"{rows[-1]['num_tokens'] / 1e3:.0f}"))
    return found


def section(text: str, testbed: str, what: str) -> tuple[str, str, str]:
    """The page's text before a table, between its two marks, and after it."""
    first, last = f"<!-- {testbed}: {what} -->\n", "<!-- end -->"
    before, mark, rest = text.partition(first)
    inside, end, after = rest.partition(last)
    if not mark or not end:
        raise ValueError(f"{PAGE}: there is no {first.strip()} ... {last}")
    return before + mark, inside, end + after


def recorded(text: str, testbed: str) -> list[Result]:
    """The runs in the page's table of all seeds."""
    found = []
    for line in section(text, testbed, "all seeds")[1].splitlines()[2:]:
        if line.startswith("|"):
            name, rate, seed, *passes, _, tokens = [cell.strip() for cell in line[1:-1].split("|")]
            found.append(Result(name, rate, int(seed), tuple(map(float, filter(None, passes))), tokens))
    return found


def merged(old: list[Result], new: list[Result]) -> list[Result]:
    """All runs in the order of the table; a new one takes the place of an old one."""
    order = list(compared())
    runs = {(order.index(one.name), -float(one.rate), one.seed): one for one in [*old, *new] if one.name in order}
    return [runs[key] for key in sorted(runs)]


def areas(results: list[Result], name: str, rate: str) -> dict[int, float]:
    """Area by seed of a script at a rate."""
    return {one.seed: one.area for one in results if (one.name, one.rate) == (name, rate) and one.passes}


def against_base(own: dict[int, float], base: dict[int, float]) -> str:
    """Difference of areas on the seeds that both have. Bold if its interval excludes 0 and the two intervals do not meet."""
    seeds = sorted(own.keys() & base.keys())
    if not seeds:
        return ""
    a, b = ([values[seed] for seed in seeds] for values in (own, base))
    cell = shown(minus(a, b), "+.3f")
    (low, high), (low_a, high_a), (low_b, high_b) = t_interval(minus(a, b)), t_interval(a), t_interval(b)
    return f"**{cell}**" if (low > 0 or high < 0) and (low_a > high_b or low_b > high_a) else cell


def overview(results: list[Result]) -> str:
    """One row for each script with a run: mean area at each rate with its interval, the difference from the base, the last evaluation."""
    rows, run = [], {one.name for one in results}
    for name, base in ((name, base) for name, base in compared().items() if name in run):
        cells, counts = [f"{script_of(name)} {VARIANTS.get(name, '')}".strip(), "" if base == name else base], []
        for rate in (f"{value:g}" for value in RATES):
            own = areas(results, name, rate)
            ends = [one.passes[-1] for one in results if (one.name, one.rate) == (name, rate) and one.passes]
            counts.append(str(len(own)))
            cells += [shown(list(own.values())), against_base(own, areas(results, base, rate)) if base != name else "",
                      f"{statistics.fmean(ends):.3f}"] if own else ["", "", ""]
        rows.append([*cells, ", ".join(counts)])
    return table(["script", "base", *(f"{value:g}: {what}" for value in RATES for what in ("area", "less base", "last")), "seeds"], rows)


def write(out: Path) -> None:
    """Puts the tables into the page."""
    text = PAGE.read_text(encoding="utf-8")
    for testbed in CRITIC:
        results = merged(recorded(text, testbed), results_of(out, testbed))
        for what, new in (("overview", overview(results)), ("all seeds", table(HEADER, [one.row() for one in results]))):
            before, _, after = section(text, testbed, what)
            text = f"{before}{new}\n{after}"
        wanted = len(compared()) * len(RATES)
        say(f"{testbed}: {len(results)} runs, {wanted} a seed")
    write_file(PAGE, text)


def figures() -> None:
    """docs/examples_TESTBED.svg of each testbed, from the page."""
    text = PAGE.read_text(encoding="utf-8")
    for testbed in CRITIC:
        results, rates = recorded(text, testbed), [f"{value:g}" for value in RATES]
        rows = {name: {rate: list(own.values()) for rate in rates if (own := areas(results, name, rate))} for name in compared()}
        if not any(rows.values()):
            continue
        save(dots({name: own for name, own in rows.items() if own}, f"Every example beside its base on {testbed}, {STEPS} steps",
                  f"area: mean height of the curve of pass@1, {PROBLEMS} problems", t_interval), PAGE.parent / f"examples_{testbed}.svg")


def main() -> None:
    """The command line."""
    guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default="3", help="how many (0, 1, ...), or which, as 7,9 (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--out", "--output_dir", type=Path, metavar="DIR", default="runs/compare-examples", help="folder of the runs")
    parser.add_argument("--methods", nargs="+", choices=["scripts", "variants", *compared()], metavar="METHOD",
                        help="which ones run: scripts, variants, or names as gspo pairs-ipo (default: the scripts, then the variants)")
    parser.add_argument("--only", choices=["run", "write", "figures"], help="a part of the work (default: all)")
    parser.add_argument("--train", nargs=2, metavar=("TESTBED", "NAME"),
                        help="one process of the comparison, which it starts itself: both rates in folders of --out, "
                        "which it sets to DIR/TESTBED/NAME/seed-N")
    parser.add_argument("--seed", type=int, default=0, help="seed of --train")
    asked = parser.parse_args()
    out = asked.out.absolute()
    if asked.train:
        return train_both(*asked.train, asked.seed, out)
    if asked.only in (None, "run"):
        chosen = set(asked.methods or ["scripts", "variants"])
        groups = [[name for name in group if chosen & {kind, name}] for kind, group in (("scripts", methods()), ("variants", VARIANTS))]
        run_all({folder: job for names in groups for folder, job in jobs_of(out, names, asked.seeds).items()}, asked.jobs, "examples")
    if asked.only in (None, "write"):
        write(out)
    return figures() if asked.only != "run" else None


if __name__ == "__main__":
    main()
