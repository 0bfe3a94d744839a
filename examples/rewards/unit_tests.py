"""The share of a problem's unit tests that a program passes. Each program runs in a process with limits on time, memory and output.

The data has a column `tests`: a list of Python statements such as "assert add(2, 3) == 5".

python train_grpo.py --model Qwen/Qwen2.5-Coder-1.5B-Instruct --dataset tasks.jsonl --reward examples/rewards/unit_tests.py:unit_tests \
    --system_prompt "Write one Python program in a code block. Write nothing else."

The limits stop accidents: endless loops, large lists, long outputs. They are no sandbox. The program may read your files and use the
network, so run a model that you do not trust in a container.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 5  # for a program with all its tests. Keep it well below --reward_timeout, so that the process is ended here
MEMORY = 2**30  # bytes of address space
OUTPUT = 2**20  # bytes of any file that the program writes, its output included
LIMITS = f"""
import resource, signal
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({OUTPUT}, {OUTPUT}))
signal.alarm({SECONDS + 1})  # ends a program that sleeps, even if the run that started it has gone
"""


def unit_tests(completion: str, problem) -> float:
    """The share of the tests in the row that the program in the completion passes."""
    return share_passed(program_of(completion), problem.row["tests"])


def program_of(completion: str) -> str:
    """The last code block, or the whole text if there is none."""
    blocks = re.findall(r"```(?:python)?\n(.*?)```", completion, re.DOTALL)
    return blocks[-1] if blocks else completion


def share_passed(program: str, tests: list[str]) -> float:
    """The share of the tests that pass after the program has run. A program that fails or ends the process passes none."""
    mark = secrets.token_hex(8)  # printed after each test that passes. A program that only exits with code 0 does not know it
    checks = [f"try:\n    exec({test!r})\n    print('\\n{mark}', flush=True)\nexcept BaseException:\n    pass" for test in tests]
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder) / "program.py", Path(folder) / "output.txt"
        file.write_text("\n".join([LIMITS, f"exec({program!r})", *checks]), errors="replace")
        run(file, output)
        passed = output.read_text(errors="replace").splitlines().count(mark)
    return passed / max(1, len(tests))


def run(file: Path, output: Path) -> None:
    """Runs a Python file in an own process group, and ends the whole group after SECONDS at the latest."""
    with open(output, "w") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-I", str(file)],
            cwd=file.parent,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
