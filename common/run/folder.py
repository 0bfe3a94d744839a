"""The name of a run folder, and its files that grow row by row."""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.config import SamplingConfig
from common.console import say
from common.files import append, cut, encoded, read_file, sha256, write_file

CONFIG, METRICS, COMPLETIONS = "config.json", "metrics.jsonl", "completions.jsonl"
CONFIG_COPY = ".config.json"  # is read where CONFIG is damaged
MARKS = "rows.json"  # in a checkpoint: what METRICS and COMPLETIONS held then
# metrics of an evaluation: (of one sample per problem, of greedy decoding). Shares of right answers, or means of a custom reward
EVALUATIONS = (("eval/pass@1", "eval/greedy"), ("eval/reward", "eval/reward_greedy"))


def is_begun(folder: Path) -> bool:
    """Whether the folder has the config.json of a run or of an evaluation, or its copy."""
    return any((folder / name).exists() for name in (CONFIG, CONFIG_COPY))


def evaluation_names(row: dict[str, Any]) -> tuple[str, str] | None:
    """The pair of EVALUATIONS that a row of metrics.jsonl has, or None if the row has no evaluation."""
    return next((names for names in EVALUATIONS if set(names) <= row.keys()), None)


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


class Rows:
    """A jsonl file of a run that grows row by row. It counts and hashes what it has written, so that a resumed run knows its own rows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting = b""  # rows that are not written yet
        self.size, self.hash = 0, hashlib.sha256()

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds rows, which `write` will write."""
        self.waiting += encoded(lines_of(rows))

    def write(self, folder: Path) -> None:
        """Writes the rows that wait. Raises OSError; then they still wait."""
        if self.waiting:
            append(folder / self.name, self.waiting)
            self.hash.update(self.waiting)
            self.size += len(self.waiting)
            self.waiting = b""

    @property
    def mark(self) -> dict[str, Any]:
        """What the file holds, with the rows that wait, for a checkpoint."""
        found = self.hash.copy()
        found.update(self.waiting)
        return {"bytes": self.size + len(self.waiting), "sha256": found.hexdigest()}

    def go_back(self, checkpoint: Path, step: int) -> list[dict[str, Any]]:
        """Cuts the file back to what it held at a checkpoint. Returns its rows up to there. Says so if other content had changed."""
        path = checkpoint.parent / self.name
        mark = marks(checkpoint).get(self.name)
        if mark and not differs(path, mark):
            cut(path, mark["bytes"])
            rows = [row for line in read_file(path).splitlines() if (row := _row(line, METRICS))] if self.name == METRICS else []
        else:
            rows = cut_back(path, step)
            if mark:
                say(f"note: {path} has changed or was cut off since {checkpoint.name}; the {len(rows)} rows that can be read are kept")
        with open(path, "rb") as file:
            self.hash, self.size = hashlib.file_digest(file, "sha256"), path.stat().st_size
        return rows


def marks(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """What the jsonl files of a run held at a checkpoint, by name. Nothing for checkpoints of older versions."""
    try:
        found = json.loads(read_file(checkpoint / MARKS))
        return {name: {"bytes": int(found[name]["bytes"]), "sha256": str(found[name]["sha256"])} for name in (METRICS, COMPLETIONS)}
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return {}


def differs(path: Path, mark: dict[str, Any]) -> bool:
    """Whether a file no longer begins with what it held at a checkpoint."""
    try:
        return not 0 <= mark["bytes"] <= path.stat().st_size or sha256(path, mark["bytes"]) != mark["sha256"]
    except FileNotFoundError:
        return mark["bytes"] > 0
    except OSError:  # it is no plain file any more, or cannot be read
        return True


def cut_back(path: Path, step: int) -> list[dict[str, Any]]:
    """Drops the rows of a jsonl file that are later than `step`, and a last row that was cut off. Returns the rows that are left."""
    rows, lines = [], []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:  # as bytes, since a character may have been cut too
        row = _row(line, path.name)
        if row and row["step"] <= step:
            rows.append(row)
            lines.append(line.decode() + "\n")
    write_file(path, "".join(lines))
    return rows


def _row(line: bytes, name: str) -> dict[str, Any] | None:
    """The row in a line of the jsonl file `name`, or None if it has no step, or if a metric is no number."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row if name != METRICS or all(isinstance(value, int | float) for value in row.values()) else None


def short_name(text: str) -> str:
    """The last part of a path or hub name: "Qwen/Qwen2.5-1.5B" -> "Qwen2.5-1.5B".

    `arithmetic:...` stays whole, because a / in its settings does not separate folders.
    """
    return text if text.startswith("arithmetic") else text.rstrip("/").split("/")[-1]


def run_prefix(config: SamplingConfig, script: str) -> str:
    """The name of the default run folder without its time. Runs with the same script, model, data and seed have the same prefix."""
    model, dataset = (re.sub(r"[^A-Za-z0-9.]+", "-", short_name(text)).strip("-")[:60] for text in (config.model, config.dataset))
    return f"runs/{script}-{model}-{dataset}-s{config.seed}"
