"""Seconds and generated tokens of a step of every example, against its base: for the table of docs/examples.md.

    python benchmarks/example_costs.py [--rounds 2] [--only gspo,cispo] [--out docs/examples_costs.csv]

All scripts run in turn, in one process with one thread, and the whole turn is repeated. Seconds are those of the processor and not of the
clock, so that other work on the machine is not in them. The first step of a run is left out. A ratio is that of a round: an example against
its base in the same round. The file gets the median over the rounds, the lowest and the highest. Rows of other examples stay.

The embedded model on its default task: 8 problems x 4 completions, 4 optimiser steps a step.
"""
from __future__ import annotations

import argparse
import csv
import importlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
from compare_examples import methods
from sweep import ROOT

from common.console import guard, say
from common.files import write_file
from common.launch import parse_config
from common.run.run import Run

FLAGS = "--max_steps 6 --problems_per_step 8 --num_generations 4 --num_minibatches 4 --eval_steps 0 --save_steps 0"
COLUMNS = ("example", "base", "seconds", "lowest", "highest", "tokens")
Cost = tuple[float, float]  # seconds and tokens of a step


class Clocked(Run):
    """A run that notes the cost of each step."""

    costs: list[Cost] = []  # noqa: RUF012  # of the last run: the scripts make the run, and do not give it away

    def steps(self) -> Iterator[int]:
        self.costs.clear()
        for step in super().steps():
            began, tokens = time.process_time(), self.num_tokens
            yield step
            self.costs.append((time.process_time() - began, self.num_tokens - tokens))


def cost_of(name: str, folder: Path) -> Cost:
    """Means over the steps of one run, the first step left out."""
    module = importlib.import_module(name if methods()[name] == name else f"examples.{name}")
    module.Run = Clocked
    module.train(parse_config(module.Config, [*FLAGS.split(), "--output_dir", str(folder)], name))
    seconds, tokens = zip(*Clocked.costs[1:], strict=True)
    return statistics.mean(seconds), statistics.mean(tokens)


def measure(names: list[str], rounds: int) -> list[dict[str, Cost]]:
    """The costs of all scripts, by name, for each round."""
    found = []
    with tempfile.TemporaryDirectory() as home:
        for i in range(rounds):
            found.append({name: cost_of(name, Path(home) / f"{i}-{name}") for name in names})
            say(f"round {i + 1} of {rounds}: " + ", ".join(f"{name} {seconds:.3f} s" for name, (seconds, _) in found[-1].items()))
    return found


def main() -> None:
    """The command line."""
    guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often the turn of all scripts is repeated (default: 2)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of examples, as gspo,cispo (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "examples_costs.csv", help="default: docs/examples_costs.csv")
    asked = parser.parse_args()
    bases = methods()
    names = asked.only or [name for name in bases if bases[name] != name]
    found = measure(list(dict.fromkeys([*(bases[name] for name in names), *names])), asked.rounds)
    rows = {row["example"]: row for row in csv.DictReader(asked.out.read_text().splitlines())} if asked.out.exists() else {}
    for name in names:
        seconds, tokens = ([costs[name][i] / costs[bases[name]][i] for costs in found] for i in (0, 1))
        values = (name, bases[name], *(f"{value:.2f}" for value in (statistics.median(seconds), min(seconds), max(seconds),
                                                                   statistics.median(tokens))))
        rows[name] = dict(zip(COLUMNS, values, strict=True))
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows) if name in bases)
    write_file(asked.out, sheet.getvalue())
    say(f"wrote {asked.out}")


if __name__ == "__main__":
    main()
