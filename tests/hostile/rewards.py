"""Reward files that break something. The function is `reward` in each. In most of them the completion "good" is scored with 1."""
from __future__ import annotations

import textwrap
from pathlib import Path


def write(folder: Path, body: str, before: str = "") -> Path:
    """The file reward.py whose function runs `body`, except for the completion "good"."""
    file = folder / "reward.py"
    parts = ["import os, sys, time", textwrap.dedent(before), "def reward(completion, problem):", "    if completion == 'good': return 1.0",
             textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")]
    file.write_text("\n".join(parts) + "\n")
    return file


# ---- the channel to the run ----

WRITE = """
def write(data, first=3, last=256):
    for number in range(first, last):
        try:
            os.write(number, data)
        except OSError:
            pass
"""


def make_writes_to_every_descriptor(folder: Path) -> Path:
    return write(folder, "write(b'hello\\n')\nreturn 0.5", WRITE)


def make_writes_half_a_line(folder: Path) -> Path:
    return write(folder, "write(b'{\"id\": ')\nreturn 0.5", WRITE)


def make_forges_an_answer(folder: Path) -> Path:
    return write(folder, "write(b'{\"id\": 0, \"answers\": [{\"score\": 100.0}]}\\n')\nreturn 0.5", WRITE)


def make_writes_deep_json(folder: Path) -> Path:
    return write(folder, "write(b'[' * 8000 + b'\\n')\nreturn 0.5", WRITE)


def make_answers_without_end(folder: Path) -> Path:
    return write(folder, "while True: write(b'x' * 65536, 100, 102)", WRITE)


def make_answers_a_byte_at_a_time(folder: Path) -> Path:
    return write(folder, "while True:\n    write(b' ', 100, 102)\n    time.sleep(0.1)", WRITE)


def make_lets_a_child_write(folder: Path) -> Path:
    """A program that the function starts with all its descriptors, and one that it forks."""
    child = "import os\nfor n in range(3, 256):\n    try: os.write(n, b'child\\n')\n    except OSError: pass"
    return write(folder, f"""
        import subprocess
        subprocess.run([sys.executable, "-c", {child!r}], close_fds=False)
        if (child := os.fork()) == 0:
            write(b"child\\n")
            os._exit(0)
        os.waitpid(child, 0)
        return 0.5
        """, WRITE)


def make_forks_and_both_return(folder: Path) -> Path:
    return write(folder, "return 0.25 if os.fork() == 0 else 0.5")


def make_closes_every_descriptor(folder: Path) -> Path:
    return write(folder, "os.closerange(3, 4096)\nreturn 0.5")


def make_reads_the_calls(folder: Path) -> Path:
    return write(folder, "return float(len(os.read(100, 100)))")


def make_stops_itself(folder: Path) -> Path:
    return write(folder, "import signal\nos.kill(os.getpid(), signal.SIGSTOP)\nreturn 0.5")


def make_stops_its_guard(folder: Path) -> Path:
    return write(folder, "import signal\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(60)")


def make_kills_its_guard(folder: Path) -> Path:
    return write(folder, "import signal\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)")


# ---- too much ----

def make_long_message(folder: Path) -> Path:
    return write(folder, "raise ValueError('x' * 30_000_000)")


def make_message_that_steers_the_terminal(folder: Path) -> Path:
    return write(folder, r"raise ValueError('\x1b]0;owned\x07 \u202e ' + 'two\nlines')")


def make_message_that_raises(folder: Path) -> Path:
    return write(folder, "raise Bad", "class Bad(Exception):\n    def __str__(self): raise KeyError('again')")


def make_prints_without_measure(folder: Path) -> Path:
    return write(folder, "for _ in range(2000): print('\\x1b[2J' + 'x' * 50_000)\nreturn 0.5")


def make_takes_all_memory(folder: Path) -> Path:
    return write(folder, "whole = []\nwhile True: whole.append(numpy.empty(2 ** 28))", "import numpy")  # it is never touched


def make_deep_recursion(folder: Path) -> Path:
    return write(folder, "return reward(completion + '.', problem)")


# ---- results ----

VALUES = {"1e39": None, "-1e39": None, "float('nan')": None, "None": None, "True": 1.0, "3": 3.0, "10 ** 400": None, "2 + 0j": None,
          "[0.5]": None, "'good'": None, "Fraction(1, 4)": 0.25, "Decimal('0.5')": 0.5, "Decimal('1e400')": None, "Decimal('sNaN')": None,
          "numpy.float32(0.5)": 0.5, "numpy.array([[0.5]])": 0.5, "numpy.array([1, 2])": None, "Bad()": None, "object()": None}


def make_odd_values(folder: Path) -> Path:
    """The completion is a key of VALUES; the value beside it is what it should score, None for a failure."""
    return write(folder, "return eval(completion)", """
        from decimal import Decimal
        from fractions import Fraction
        import numpy

        class Bad:
            def __float__(self): raise SystemError("no")
        """)


def make_far_from_all_others(folder: Path) -> Path:
    return write(folder, "return {'far': 1e30, 'low': -1e30}.get(completion, 0.0)")


# ---- from the first call on ----

def make_of_another_library(folder: Path) -> Path:
    file = folder / "reward.py"
    file.write_text("def reward(prompts, completions, answer, **kwargs):\n    return [1.0 for _ in completions]\n")
    return file


def make_fails_after_a_while(folder: Path) -> Path:
    """The first 40 calls of all processes are good."""
    return write(folder, f"""
        with open({str(folder / 'calls')!r}, "a") as calls:
            calls.write(".")
        if os.path.getsize({str(folder / 'calls')!r}) > 40:
            raise ConnectionError("the server has gone")
        return float(len(completion) % 2)
        """)


# ---- processes ----

def make_leaves_daemons(folder: Path) -> Path:
    """Two processes that outlive it: one in its group, one that is a daemon in a session of its own. `pids` has their numbers."""
    return write(folder, f"""
        import subprocess
        shell = "sleep 1000 & echo $! >> {folder}/pids"
        subprocess.run(["sh", "-c", shell])
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                subprocess.run(["sh", "-c", shell])
                time.sleep(1000)
            os._exit(0)
        while len(open("{folder}/pids").read().split()) < 2:
            time.sleep(0.02)
        if completion == "die":
            os._exit(3)
        if completion == "hang":
            time.sleep(1000)
        return 0.5
        """)


def make_tells_the_environment(folder: Path) -> Path:
    """The score is the number of variables with a known name that it, or a program that it starts, can see."""
    names = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "NEPTUNE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"]
    return write(folder, f"""
        import subprocess
        shown = subprocess.run(["env"], capture_output=True, text=True).stdout
        return float(sum(name in os.environ or name in shown for name in {names}))
        """)
