"""Carries a change of one training script to the others, as a three-way merge: git merge-file with the script's old version as the base.

    python tools/carry.py train_grpo.py                          # its uncommitted change, to the other three scripts and to examples/
    python tools/carry.py train_grpo.py --since HEAD~3           # everything that changed since then
    python tools/carry.py train_grpo.py --to my/train_mine.py    # to a fork of your own, which was a copy of train_grpo.py

Lines that the scripts share change in all of them. Where a script has its own lines at the place of the change, git writes both versions
between conflict markers into that script, and this command names it and ends with 1.
"""
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.console import fail, guard, say

ROOT = Path(__file__).resolve().parents[1]


def old_version(script: Path, since: str) -> str:
    """The text of a script in an earlier commit. Exits if git does not have it."""
    if not script.resolve().is_relative_to(ROOT):
        fail(f"error: {script} is no script of {ROOT}; name the changed script first, and your copy with --to")
    name = script.resolve().relative_to(ROOT).as_posix()
    shown = subprocess.run(["git", "-C", str(ROOT), "show", f"{since}:{name}"], capture_output=True, text=True)
    if shown.returncode:
        fail(f"error: {shown.stderr.strip()}; give a commit that has {name} with --since")
    return shown.stdout


def carry(script: Path, old: str, target: Path) -> int:
    """Merges the change from `old` to the script's present text into `target`. Returns the number of conflicts."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / script.name
        base.write_text(old, encoding="utf-8")
        labels = ["-L", str(target), "-L", f"{script.name} before", "-L", f"{script.name} now"]
        command = ["git", "merge-file", "--diff3", *labels, str(target), str(base), str(script)]
        merged = subprocess.run(command, capture_output=True, text=True)
    if merged.returncode > 127:  # git merge-file returns the number of conflicts, or 255 for an error
        fail(f"error: {merged.stderr.strip()}")
    return merged.returncode


def main() -> None:
    guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("script", type=Path, help="the script that was changed")
    parser.add_argument("--since", default="HEAD", help="the commit with its version before the change (default: HEAD)")
    parser.add_argument("--to", type=Path, nargs="+", help="the scripts to change (default: the other train_*.py, and examples/)")
    arguments = parser.parse_args()
    others = sorted([*ROOT.glob("train_*.py"), *ROOT.glob("examples/*.py")])
    targets = arguments.to or [path for path in others if path.resolve() != arguments.script.resolve()]
    missing = [str(path) for path in [arguments.script, *targets] if not path.is_file()]
    if missing:
        fail(f"error: there is no file {missing[0]}")
    old = old_version(arguments.script, arguments.since)
    conflicts = {target: carry(arguments.script, old, target) for target in targets}
    for target, count in conflicts.items():
        say(f"{target}: {f'{count} conflicts, between <<<<<<< and >>>>>>>' if count else 'merged'}")
    sys.exit(1 if any(conflicts.values()) else 0)


if __name__ == "__main__":
    main()
