"""Run folders as report.html reads them, and groups of runs that differ in their seed alone."""
from __future__ import annotations

import contextlib
import io
import json
import os
import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.run.folder import comparable

PALETTE = ("#2588cf", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")  # legible on white and on black
Row = dict[str, Any]  # of a jsonl file

# Flags that may differ between the runs of a group
OWN = {"seed", "output_dir", "config", "resume_from_checkpoint", "report_to", "plan_memory"}


@dataclass
class RunData:
    """The content of a run folder. `rows` are those of metrics.jsonl, with x-values under the names of X."""

    name: str
    record: dict[str, Any]  # config.json
    rows: list[Row]
    samples: dict[int, list[Row]]  # rows of completions.jsonl, by step


@dataclass
class Group:
    """Runs that differ in their seed alone."""

    name: str
    runs: list[RunData]
    colour: str
    rows: list[Row]  # the mean of the runs, for each step that all of them have done

    @property
    def evaluations(self) -> list[Row]:
        return comparable(self.rows)

    @property
    def steps(self) -> list[Row]:
        return [row for row in self.rows if row["steps"] > 0]


def read_run(folder: Path) -> RunData:
    """Raises UserError if the folder is not a run folder."""
    try:
        record = json.loads((folder / "config.json").read_text())
        record["flags"] |= record.get("derived", {})  # the page shows the values that counted
        rows = list(whole_rows((folder / "metrics.jsonl").read_text().split("\n")))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a run folder (config.json, metrics.jsonl): {error}") from error
    seconds = accumulate(row.get("step_time", 0.0) for row in rows)
    for row, passed in zip(rows, seconds, strict=True):
        row |= {"steps": row["step"], "tokens": row.get("num_tokens", 0), "seconds": passed}
    samples: dict[int, list[Row]] = {}
    path = folder / "completions.jsonl"
    with open(path, encoding="utf-8") if path.exists() else io.StringIO() as file:
        for row in whole_rows(line for line in file if '"token_advantages"' in line):  # parsing takes long, and the page shows these alone
            samples.setdefault(row["step"], []).append(row)
    return RunData(folder.name, record, rows, samples)


def whole_rows(lines: Iterable[str]) -> Iterator[Row]:
    """The rows of a jsonl file. The last line may be cut if the run is still going on or was killed."""
    for line in lines:
        with contextlib.suppress(ValueError):
            yield json.loads(line)



def group_runs(runs: list[RunData]) -> list[Group]:
    """The runs by script and flags, in the order in which they come."""
    by_flags: dict[str, list[RunData]] = {}
    for run in runs:
        flags = {name: value for name, value in run.record["flags"].items() if name not in OWN}
        by_flags.setdefault(json.dumps([run.record["script"], flags], sort_keys=True), []).append(run)
    groups = [Group(common_name(own), own, PALETTE[i % len(PALETTE)], mean_rows(own)) for i, own in enumerate(by_flags.values())]
    names = [group.name for group in groups]
    for group in groups:
        if names.count(group.name) > 1:
            group.name = ", ".join([group.name, group.runs[0].record["script"], *differences(group, groups)])
    return groups


def common_name(runs: list[RunData]) -> str:
    """What the names of the runs begin with. grpo/seed-0 and grpo/seed-1 -> grpo. The script's name if they have nothing in common."""
    if len(runs) == 1:
        return runs[0].name
    shared = os.path.commonprefix([run.name for run in runs])  # noqa: RUF071 -- seed-0 and seed-1 share characters, not a path
    return re.sub(r"(^|[\W_]+)(seed|s)?[\W_]*\d*$", "", shared) or runs[0].record["script"]


def mean_rows(runs: list[RunData]) -> list[Row]:
    """The rows of one run, or the means of several: over the numbers that all runs have, for the steps that all runs have done."""
    if len(runs) == 1:
        return runs[0].rows
    by_step = [{row["steps"]: row for row in run.rows} for run in runs]
    means = []
    for step in sorted(set.intersection(*map(set, by_step))):
        rows = [own[step] for own in by_step]
        names = [name for name in rows[0] if all(type(row.get(name)) in (int, float) for row in rows)]
        means.append({name: statistics.fmean(row[name] for row in rows) for name in names})
    return means


def differences(group: Group, groups: list[Group]) -> list[str]:
    """The group's flags, with values, that all groups have and that are not the same in all of them."""
    flags = [other.runs[0].record["flags"] for other in groups]
    own = group.runs[0].record["flags"]
    return [f"{name} {shown(value)}" for name, value in own.items()
            if name not in OWN and all(name in other for other in flags) and any(other[name] != value for other in flags)]


def shown(value: Any) -> str:
    """The value of a flag as text."""
    if value is None:
        return "not set"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
