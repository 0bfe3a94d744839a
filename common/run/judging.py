"""Verdicts on the completions of an evaluation: of the answer checker, and of a second opinion. Saved completions can be judged again."""
from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from common import verify
from common.console import say
from common.errors import UserError
from common.files import new_folder, read_file, write_file
from common.records import SUCCESS_ABOVE, Completion, Problem
from common.run.folder import CONFIG, lines_of, write_config
from common.run.saved_config import read_record
from common.verify.answers import extract_answer, is_correct
from common.verify.rewards import CustomReward

Row = dict[str, Any]  # a line of problems.jsonl
PROBLEMS, SUMMARY = "problems.jsonl", "summary.json"
KINDS = {"completion": str, "finish_reason": str, "tokens": int}  # of what was sampled; a verdict is worked out anew


def checker_version() -> str:
    """The fingerprint of the answer checker: a hash of its files. Another version may give other verdicts."""
    digest = hashlib.sha256()
    for path in sorted(Path(verify.__file__).parent.glob("*.py")):
        if not path.stem.startswith(("reward", "second")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def judge(problem: Problem, greedy: list[Completion], samples: list[Completion]) -> Row:
    """The line of a problem in problems.jsonl. greedy: a list with the greedy completion."""
    entries = [{"completion": one.text, "answer": None, "correct": False, "finish_reason": one.finish_reason, "tokens": len(one.ids)}
               for one in [*greedy, *samples]]
    row = {"problem": problem.id, "prompt": problem.prompt, "reference": problem.answer, "greedy": entries[0], "samples": entries[1:]}
    return judged(row)


def judged(row: Row) -> Row:
    """The row with the verdicts of the checker as it is now. A completion that was cut off is wrong, whatever it says."""
    for entry in (row["greedy"], *row["samples"]):
        entry["answer"] = extract_answer(entry["completion"])
        entry["correct"] = entry["finish_reason"] == "stop" and is_correct(entry["completion"], row["reference"])
    return row


def whole_row(line: bytes) -> Row | None:
    """A line of problems.jsonl as a row, judged anew, or None if anything that was sampled is missing or of a wrong type."""
    try:
        row = json.loads(line)
        entries = [row["greedy"], *row["samples"]]
        texts = all(isinstance(row[name], str) for name in ("problem", "prompt", "reference"))
        right = all(type(entry[name]) is kind for entry in entries for name, kind in KINDS.items())
        if not texts or not right or any(entry["finish_reason"] not in ("stop", "length") or entry["tokens"] < 0 for entry in entries):
            return None
        if any(not isinstance(entry.get("second_opinion", False), bool) for entry in entries):
            return None
        return judged(row)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def verdicts(rows: list[Row]) -> list[bool]:
    """The verdicts on all completions of the rows, in order."""
    return [entry["correct"] for row in rows for entry in (row["greedy"], *row["samples"])]


def second_opinion(name: str) -> CustomReward | None:
    """The other checker that `--second_opinion` names: "none", "math_verify", or "FILE.py:function" for a function like a reward."""
    if name == "none":
        return None
    own = f"{Path(verify.__file__).parent / 'second_opinion.py'}:math_verify"
    return CustomReward(own if name == "math_verify" else name, failed=0.0)


def add_opinion(opinion: CustomReward, problems: list[Problem], rows: list[Row]) -> None:
    """Adds the verdict of the other checker to each completion in `rows`. An error or a timeout of that checker counts as wrong."""
    entries = [(problem, entry) for problem, row in zip(problems, rows, strict=True) for entry in (row["greedy"], *row["samples"])
               if "second_opinion" not in entry]
    if not entries:
        return
    completions = [Completion([0] * entry["tokens"], [0.0] * entry["tokens"], entry["finish_reason"], entry["completion"])
                   for _, entry in entries]
    for (_, entry), score in zip(entries, opinion([problem for problem, _ in entries], completions).tolist(), strict=True):
        entry["second_opinion"] = score > SUCCESS_ABOVE


# ---- a saved evaluation ---------------------------------------------------------------------------------------------

def read_rows(folder: Path) -> list[Row]:
    """The rows of a saved evaluation, judged anew. Raises UserError if it is none, or if a row is damaged."""
    if not (folder / PROBLEMS).is_file():
        raise UserError(f"{folder} has no {PROBLEMS}: it is no result folder of eval.py")
    lines = [line for line in read_file(folder / PROBLEMS).split(b"\n") if line]
    rows = [row for line in lines if (row := whole_row(line))]
    if not rows or len(rows) < len(lines):
        raise UserError(f"{folder / PROBLEMS}: {len(lines) - len(rows)} of its {len(lines)} rows are damaged; the command of that "
                        "evaluation samples them again")
    return rows


def judge_again(folder: Path, output_dir: str | None, name: str, problems: dict[str, Problem]) -> tuple[Path, list[Row]]:
    """(a new folder with the rows of `folder`, judged anew; the rows). Nothing is sampled, and `folder` stays as it is. Raises UserError.

    name: the second opinion, as in `--second_opinion`. problems: the problems by id, for a function that reads their row or question.
    """
    place = Path(output_dir or f"{folder}-judged-{time.strftime('%Y%m%d-%H%M%S')}")
    if place.exists():
        raise UserError(f"--output_dir {place} exists; name a new folder for the new verdicts")
    record, rows = read_record(folder / CONFIG), read_rows(folder)
    saved = [json.loads(line) for line in read_file(folder / PROBLEMS).split(b"\n") if line]
    before, now = verdicts(saved), verdicts(rows)
    gained, lost = sum(n and not b for b, n in zip(before, now, strict=True)), sum(b and not n for b, n in zip(before, now, strict=True))
    say(f"{folder}: {len(now)} completions of {len(rows)} problems judged anew: {gained} that were wrong are right, and {lost} that were "
        "right are wrong")
    if opinion := second_opinion(name):
        for row in rows:
            for entry in (row["greedy"], *row["samples"]):
                entry.pop("second_opinion", None)
        add_opinion(opinion, [problems.get(row["problem"]) or Problem(row["problem"], row["prompt"], (), row["reference"]) for row in rows],
                    rows)
    with new_folder(place) as unfinished:
        write_file(unfinished / PROBLEMS, lines_of(rows))
        record["flags"]["second_opinion"] = name
        write_config(unfinished, record | {"checker": checker_version(), "judged_from": str(folder.resolve())})
    return place, rows
