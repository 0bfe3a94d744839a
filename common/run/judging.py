"""Verdicts on the completions of an evaluation: of the answer checker, and of a second opinion. Saved completions can be judged again."""
from __future__ import annotations

import contextlib
import hashlib
import json
import math
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
MADE_WITH = ("prompt_template", "prompt_date", "context")  # in summary.json: what was worked out at the start, and decides the numbers
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
    """The row with the verdicts of the checker as it is now, or of the reward that is saved. One that was cut off is wrong anyway."""
    for entry in (row["greedy"], *row["samples"]):
        entry["answer"] = extract_answer(entry["completion"])
        right = entry["reward"] > SUCCESS_ABOVE if "reward" in entry else is_correct(entry["completion"], row["reference"])
        entry["correct"] = entry["finish_reason"] == "stop" and right
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
        if any(not isinstance(entry.get("second_opinion", False), bool) or not _is_number(entry.get("reward", 0.0)) for entry in entries):
            return None
        return judged(row)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _is_number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def verdicts(rows: list[Row]) -> list[bool]:
    """The verdicts on all completions of the rows, in order."""
    return [entry["correct"] for row in rows for entry in (row["greedy"], *row["samples"])]


def judges_of(second_opinion: str, reward: str | None) -> dict[str, CustomReward]:
    """The functions that judge, by what they add to a completion: "second_opinion" stands beside the checker, "reward" in its place.

    second_opinion: "none", "math_verify", or "FILE.py:function" for a function like a reward.
    """
    own = f"{Path(verify.__file__).parent / 'second_opinion.py'}:math_verify"
    named = {"second_opinion": {"none": None, "math_verify": own}.get(second_opinion, second_opinion), "reward": reward}
    return {adds: CustomReward(name, failed=0.0, flag=adds, training=False) for adds, name in named.items() if name}


def add_verdicts(judges: dict[str, CustomReward], problems: list[Problem], rows: list[Row]) -> None:
    """Adds to each completion in `rows` what the judges say of it. An error or a timeout of theirs is a 0, which is wrong."""
    for adds, function in judges.items():
        entries = [(problem, entry) for problem, row in zip(problems, rows, strict=True) for entry in (row["greedy"], *row["samples"])
                   if adds not in entry]
        completions = [Completion([0] * entry["tokens"], [0.0] * entry["tokens"], entry["finish_reason"], entry["completion"])
                       for _, entry in entries]
        scores = function([problem for problem, _ in entries], completions).tolist() if entries else []
        for (_, entry), score in zip(entries, scores, strict=True):
            entry[adds] = score if adds == "reward" else score > SUCCESS_ABOVE
            if adds == "reward":
                entry["correct"] = entry["finish_reason"] == "stop" and score > SUCCESS_ABOVE


def forget(verdicts: list[str], rows: list[Row]) -> None:
    """Takes away what judges added to the completions, so that they judge anew."""
    for row in rows:
        for entry in (row["greedy"], *row["samples"]):
            for name in verdicts:
                entry.pop(name, None)


# ---- a saved evaluation ---------------------------------------------------------------------------------------------

def read_rows(folder: Path) -> list[Row]:
    """The rows of a saved evaluation, judged anew. Raises UserError if it is none, or if a row is damaged."""
    if not (folder / PROBLEMS).is_file():
        what = f"it has no {PROBLEMS}" if folder.is_dir() else "it is a file" if folder.exists() else "there is no such folder"
        with contextlib.suppress(UserError):
            what = f"it is of {read_record(folder / CONFIG).get('script')}.py and has no {PROBLEMS}"
        raise UserError(f"{folder} is no result folder of eval.py: {what}")
    lines = [line for line in read_file(folder / PROBLEMS).split(b"\n") if line]
    rows = [row for line in lines if (row := whole_row(line))]
    if not lines:
        raise UserError(f"{folder / PROBLEMS} is empty: that evaluation was stopped early; its command with --output_dir {folder} goes on")
    if len(rows) < len(lines):
        raise UserError(f"{folder / PROBLEMS}: {len(lines) - len(rows)} of its {len(lines)} rows are damaged; the command of that "
                        "evaluation samples them again")
    return rows


def about(folder: Path) -> Row:
    """What summary.json says of how a saved evaluation was made. Empty if there is none, or if it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        saved = json.loads(read_file(folder / SUMMARY))
        if isinstance(saved, dict):
            return {name: saved[name] for name in ("left_out", *MADE_WITH, "prompt_sha256") if name in saved}
    return {}


def judge_again(folder: Path, rows: list[Row], output_dir: str | None, names: dict[str, str | None], problems: dict[str, Problem],
                ) -> Path:
    """Judges the `rows` of `folder` anew, and writes them to a new folder, which it returns. `folder` stays as it is. Raises UserError.

    names: the flags "second_opinion" and "reward"; without a reward the checker judges. problems: the problems by id, for a function that
    reads their row or question.
    """
    place = Path(output_dir or f"{folder}-judged-{time.strftime('%Y%m%d-%H%M%S')}")
    if place.exists():
        raise UserError(f"--output_dir {place} exists; name a new folder for the new verdicts")
    if len({len(row["samples"]) for row in rows}) > 1:
        raise UserError(f"{folder}: some problems have more samples than others, as it was stopped; its own command goes on")
    for row in rows:
        if not names["reward"] and not row["reference"]:
            raise UserError(f"{folder}: {row['problem']} has no reference for the checker; give --reward FILE.py:function")
        if problems and (row["problem"] not in problems or problems[row["problem"]].answer != row["reference"]):
            raise UserError(f"{folder}: its data have changed since, {row['problem']} is not as it was; give it the old data back")
    record, judges = read_record(folder / CONFIG), judges_of(**names)
    before = verdicts([json.loads(line) for line in read_file(folder / PROBLEMS).split(b"\n") if line])
    if not names["reward"] and "reward" in rows[0]["greedy"]:
        say(f"note: {folder} was judged by --reward {record['flags'].get('reward')}; without --reward the checker judges")
    forget(["second_opinion", "reward"], rows)
    rows = [judged(row) for row in rows]
    asked = [problems.get(row["problem"]) or Problem(row["problem"], row["prompt"], (), row["reference"]) for row in rows]
    add_verdicts(judges, asked, rows)
    now = verdicts(rows)
    gained, lost = sum(n and not b for b, n in zip(before, now, strict=True)), sum(b and not n for b, n in zip(before, now, strict=True))
    say(f"{folder}: {len(now)} completions of {len(rows)} problems judged anew: {gained} that were wrong are right, and {lost} that were "
        "right are wrong")
    with new_folder(place) as unfinished:
        write_file(unfinished / PROBLEMS, lines_of(rows))
        record["flags"] |= names
        write_config(unfinished, record | {"checker": checker_version(), "judged_from": str(folder.resolve())})
    return place
