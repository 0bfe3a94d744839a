"""`make audit`: asks for known advisories about every package of the two locks.

Ends with 1 if there are any, and with 2 if none could be had.
"""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.console import guard, say

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    guard()
    found, unknown = [], []
    for lock in ("requirements.lock", "requirements-cpu.lock"):
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", "--requirement", str(ROOT / lock)]
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            packages = json.loads(done.stdout)["dependencies"]
        except ValueError:
            packages = [{"name": lock, "skip_reason": (done.stderr.strip().splitlines() or ["pip-audit wrote nothing"])[-1]}]
        unknown += [package["name"] for package in packages if "skip_reason" in package]
        found += [f"{lock}: {package['name']} {package['version']}: {advisory['id']}" for package in packages
                  for advisory in package.get("vulns", ())]
    say(*found)
    if unknown:
        say(f"no advisories could be had for {len(unknown)} packages ({', '.join(unknown[:3])}, ...), so nothing is known about them; "
            "is there a network?")
    sys.exit(1 if found else 2 if unknown else 0)


if __name__ == "__main__":
    main()
