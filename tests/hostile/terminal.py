"""Text that would steer a terminal: titles, the clipboard, lines that are drawn over, lines that look like ours."""
from __future__ import annotations

import json
from pathlib import Path

TEXT = "\x1b]0;owned\x07\x1b]52;c;aGk=\x07\x1b[2J\r\x9b31m\u202eevil\u2066\nstep    9  reward 1.000\n"


def make_columns(folder: Path) -> Path:
    """Column names."""
    (folder / "rows.jsonl").write_text(json.dumps({TEXT: "1 + 1 ?", f"{TEXT}2": "2"}) + "\n")
    return folder / "rows.jsonl"


def make_file_name(folder: Path) -> Path:
    """The name of a data file."""
    path = folder / f"rows{TEXT.replace('/', '')}.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\n")
    return path


def make_reward(folder: Path) -> Path:
    """What a reward prints and raises."""
    path = folder / "reward.py"
    path.write_text(f"TEXT = {TEXT!r}\ndef f(completion, problem):\n    print(TEXT)\n    if len(completion) % 2:\n"
                    "        raise ValueError(TEXT)\n    return 1.0\n")
    return path
