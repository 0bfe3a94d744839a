"""The files of a run folder that grow row by row."""
from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.files import append, write_file

CONFIG, METRICS, COMPLETIONS = "config.json", "metrics.jsonl", "completions.jsonl"
CONFIG_COPY = ".config.json"  # is read where CONFIG is damaged
# metrics of an evaluation: (of one sample per problem, of greedy decoding). Shares of right answers, or means of a custom reward
EVALUATIONS = (("eval/pass@1", "eval/greedy"), ("eval/reward", "eval/reward_greedy"))


def evaluation_names(row: dict[str, Any]) -> tuple[str, str] | None:
    """The pair of EVALUATIONS that a row of metrics.jsonl has, or None if the row has no evaluation."""
    return next((names for names in EVALUATIONS if names[0] in row), None)


def comparable(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that have an evaluation, with the same metrics as the last one.

    Older versions called the mean of a custom reward pass@1. So a run that was resumed since then may have both.
    """
    evaluated = [row for row in rows if evaluation_names(row)]
    return [row for row in evaluated if evaluation_names(row) == evaluation_names(evaluated[-1])]


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Adds rows to the end of a jsonl file."""
    append(path, lines_of(rows))


def lines_of(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as the lines of a jsonl file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_config(folder: Path, record: dict[str, Any]) -> None:
    """Writes config.json and its copy."""
    for name in (CONFIG_COPY, CONFIG):
        write_file(folder / name, json.dumps(record, indent=2) + "\n")


def cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops the rows of a jsonl file that are later than `step`, and a last row that was cut off. Returns the rows that are left."""
    rows, lines = [], []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:  # as bytes, since a character may have been cut too
        try:
            row = json.loads(line)
        except ValueError:  # UnicodeDecodeError is one
            continue
        if isinstance(row, dict) and row.get("step", math.inf) <= step:
            rows.append(row)
            lines.append(line.decode() + "\n")
    write_file(path, "".join(lines))
    return rows
