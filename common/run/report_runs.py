"""Run folders as report.html reads them, and groups of runs that differ in their seed alone."""
from __future__ import annotations

import contextlib
import json
import math
import os
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import open_plain
from common.run.folder import COMPLETIONS, CONFIG, EVALUATIONS, METRICS, comparable
from common.run.saved_config import read_record

PALETTE = ("#2588cf", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")  # legible on white and on black
Row = dict[str, Any]  # of a jsonl file
LARGEST_LINE = 2**26  # bytes
LARGEST = 1e100  # number that a chart can have
MOST_METRICS = 500

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
    """Raises UserError if the folder is not a run folder.

    Folders come from other people too: of a row only that is kept which has the type that the page expects.
    """
    try:
        record = read_record(folder / CONFIG)
    except UserError as error:
        raise UserError(f"{folder} is not a run folder: {str(error).rpartition(';')[0]}") from error
    derived = record.get("derived")
    flags = {**record["flags"], **(derived if isinstance(derived, dict) else {})}  # the page shows the values that counted
    flags = {"model": "?", "dataset": "?", "seed": "?", **{name: plain_value(value) for name, value in flags.items()}}
    command = record.get("command")
    record = {"script": str(plain_value(record.get("script"))), "flags": flags, "command": command if isinstance(command, list) else []}
    rows = [numbers for row in whole_rows(folder / METRICS) if (numbers := numbers_of(row))]
    names = dict.fromkeys(name for row in rows for name in row)
    if len(names) > MOST_METRICS:
        raise UserError(f"{folder / METRICS} has {len(names)} metrics; a page shows at most {MOST_METRICS}")
    seconds = accumulate(_from_zero(row, "step_time") for row in rows)
    for row, passed in zip(rows, seconds, strict=True):
        row |= {"steps": row["step"], "tokens": _from_zero(row, "num_tokens"), "seconds": passed}
    samples: dict[int, list[Row]] = {}
    if (folder / COMPLETIONS).exists():
        for row in whole_rows(folder / COMPLETIONS, b'"token_advantages"'):  # parsing takes long, and the page shows these alone
            if is_sample(row):
                samples.setdefault(row["step"], []).append(row)
    return RunData(folder.name, record, rows, samples)


def whole_rows(path: Path, marked: bytes = b"") -> Iterator[Row]:
    """The rows of a jsonl file, those with the text `marked`. Lines that are no rows are left out: the last may be cut.

    Raises UserError if the file is not a plain file or has a line that is too long to be a row.
    """
    try:
        with open(open_plain(path), "rb") as file:
            while line := file.readline(LARGEST_LINE):
                if len(line) == LARGEST_LINE:
                    raise UserError(f"{path} has a line of more than {LARGEST_LINE >> 20} MiB; it is not of a run")
                if marked in line:
                    with contextlib.suppress(ValueError, RecursionError):
                        row = json.loads(line)
                        if isinstance(row, dict):
                            yield row
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a run folder (config.json, metrics.jsonl)") from error


def numbers_of(row: Row) -> Row:
    """The numbers of a row of metrics.jsonl, NaN in place of those too large to draw. {} if its step is not a number from 0 up."""
    found = {name: value if abs(value) < LARGEST else math.nan for name, value in row.items() if type(value) in (int, float)}
    if not found.get("step", -1) >= 0:  # NaN is not either
        return {}
    for sampled, greedy in EVALUATIONS:
        if sampled in found:
            found.setdefault(greedy, math.nan)
    if not found.get("eval/problems", 1) >= 1:
        del found["eval/problems"]
    return found


def _from_zero(row: Row, name: str) -> float:
    """The number in a row if it is 0 or more, else 0."""
    return row[name] if row.get(name, -1) >= 0 else 0


def is_number(value: Any) -> bool:
    """Whether the value is a float, or an int that a float can hold."""
    return type(value) is float or (type(value) is int and abs(value) < LARGEST)


def is_sample(row: Row) -> bool:
    """Whether a row of completions.jsonl has a completion token by token, as the page shows it."""
    texts = [row.get(name) for name in ("prompt", "completion", "answer", "finish_reason")]
    lists = [row.get("offsets"), row.get("token_advantages"), row.get("token_values", [])]
    lists += [row[name] for name in ("step_starts", "state_values") if row.get(name) is not None]
    return (type(row.get("step")) is int and all(is_number(row.get(name)) for name in ("step", "reward", "advantage", "tokens"))
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(values, list) and all(value is None or is_number(value) for value in values) for values in lists)
            and all(type(place) is int for place in lists[0]))


def plain_value(value: Any) -> Any:
    """The value of a flag: a text, a number, null or a list of these. Anything else is not of a flag."""
    if isinstance(value, list):
        return [plain_value(one) for one in value if not isinstance(one, list)]
    return value if value is None or isinstance(value, (str, int, float)) else "?"


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
