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


def make_forks_in_every_direction(folder: Path) -> Path:
    """Sixty-four processes, each in a session of its own, whose parents have ended. `pids` has their numbers."""
    return write(folder, f"""
        if os.fork() == 0:
            for _ in range(6):
                os.fork()
                os.setsid() if os.getsid(0) != os.getpid() else None
            with open("{folder}/pids", "a") as pids:
                pids.write(f"{{os.getpid()}}\\n")
            time.sleep(1000)
        while not os.path.exists("{folder}/pids") or len(open("{folder}/pids").read().split()) < 64:
            time.sleep(0.02)
        os._exit(3)
        """)


def make_tells_the_environment(folder: Path) -> Path:
    """The score is the number of variables with a known name that it, or a program that it starts, can see."""
    names = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "NEPTUNE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"]
    return write(folder, f"""
        import subprocess
        shown = subprocess.run(["env"], capture_output=True, text=True).stdout
        return float(sum(name in os.environ or name in shown for name in {names}))
        """)


# ---- programs that a model may write, for examples/rewards/unit_tests.py: none of them defines a right `add` ----

PROGRAMS = {
    "leaves_with_0": "import os\nos._exit(0)",
    "leaves_from_the_function": "import os\ndef add(a, b): os._exit(0)",
    "raises_SystemExit": "def add(a, b): raise SystemExit(0)",
    "is_equal_to_everything": "class Any(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Any()",
    "patches_the_checks": "import builtins, ast\nbuiltins.exec = ast.literal_eval = lambda *_: True\ndef add(a, b): return 0",
    "brings_its_own_abs": "def abs(x): return 0\ndef len(x): return 3\ndef add(a, b): return 10 ** 6",
    "prints_marks": "import os\nfor n in range(256):\n    try: os.write(n, b'1' * 1000)\n    except OSError: pass\ndef add(a, b): return 0",
    "looks_for_the_tests": """
import gc, sys
texts = [x for x in gc.get_objects() if isinstance(x, (list, dict))] + [f.f_locals for f in [sys._getframe(i) for i in range(3)]]
def add(a, b):
    return 42 if "add(" + "17, 25)" in repr(texts) else 0
""",
    "reads_its_input": "import sys\ndef add(a, b): return 42 if 'assert' in sys.stdin.read() else 0",
    "prints_30_MB": "for _ in range(30): print('x' * 10 ** 6, flush=True)\ndef add(a, b): return a + b",
    "returns_30_MB": "def add(a, b): return 'x' * (30 * 10 ** 6)",
    "returns_depth": "def add(a, b):\n    x = []\n    for _ in range(900): x = [x]\n    return x",
    "sleeps": "import time\ntime.sleep(1000)",
    "sleeps_in_a_signal": "import signal, time\nfor s in (15, 14, 24, 25): signal.signal(s, lambda *_: None)\nwhile True: time.sleep(1)",
    "takes_memory": "whole = [bytearray(2 ** 27) for _ in range(100)]\ndef add(a, b): return a + b",
}
# (program, what it defines as `out`): `out()` is True if the program got out
ESCAPES = {
    "environment": "import os\ndef out(): return len([n for n in os.environ if n != 'LC_CTYPE']) > 0",
    "home": "import os\ndef out(): return bool(os.listdir({home!r}))",
    "secret_file": "def out(): return open({home!r} + '/secret').read() == 'secret'",
    "network": """
import socket
def out():
    s = socket.socket()
    s.connect(("127.0.0.1", {port}))
    return True
""",
    "network_by_number": """
import ctypes
def out(): return ctypes.CDLL(None).syscall({{"x86_64": 41, "aarch64": 198}}[__import__("platform").machine()], 2, 1, 0) >= 0
""",
    "fork": "import os\ndef out(): return os.fork() >= 0 or os._exit(0)",
    "fork_bomb": "import os\ndef out():\n    while True: os.fork()",
    "daemon": """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({home!r} + "/out", "w").write("here")
def out(): return True
""",
    "program": "import subprocess\ndef out(): return subprocess.run(['true']).returncode == 0",
    "kills_its_parent": "import os, signal\ndef out():\n    os.kill(os.getppid(), signal.SIGTERM)\n    return True",
    "kills_the_reward": "import os, signal\ndef out():\n    os.kill({worker}, signal.SIGTERM)\n    return True",
    "lets_the_kernel_signal": """
import fcntl, os
def out():
    end, other = os.pipe()
    fcntl.fcntl(end, fcntl.F_SETOWN, {worker})
    fcntl.fcntl(end, 10, 15)  # F_SETSIG, SIGTERM
    fcntl.fcntl(end, fcntl.F_SETFL, os.O_ASYNC)
    return os.write(other, b"x") > 0
""",
    "owns_the_signal": "import fcntl, os\ndef out(): return fcntl.fcntl(os.pipe()[0], 15, bytes(8)) is not None",
    "limits_the_run": "import resource\ndef out(): return resource.prlimit({worker}, resource.RLIMIT_CORE, (0, 0)) is not None",
    "slows_the_run": "import os\ndef out():\n    os.setpriority(os.PRIO_PROCESS, {worker}, 19)\n    return True",
    "binds_the_run": "import os\ndef out():\n    os.sched_setaffinity({worker}, [0])\n    return True",
    "writes_a_file": "def out(): return open({home!r} + '/out', 'w').write('here') > 0",
    "writes_beside_itself": "def out(): return open('out', 'w').write('here') > 0",
    "fills_the_disk": "def out():\n    for i in range(10 ** 6): open(f'part{{i}}', 'wb').write(bytes(10 ** 6))\n    return True",
    "link": "import os\ndef out():\n    os.symlink({home!r} + '/secret', 'link')\n    return open('link').read() == 'secret'",
    "hard_link": "import os\ndef out():\n    os.link({home!r} + '/secret', 'link')\n    return True",
    "empties_a_file": "import os\ndef out():\n    os.truncate({home!r} + '/secret', 0)\n    return True",
    "changes_rights": "import os\ndef out():\n    os.chmod({home!r} + '/secret', 0)\n    return True",
    "removes_a_file": "import os\ndef out():\n    os.remove({home!r} + '/secret')\n    return True",
    "shared_memory": "import ctypes\ndef out(): return ctypes.CDLL(None).shmget(0, 10 ** 6, 0o1600) >= 0",
    "other_process": "def out(): return len(open('/proc/{worker}/environ').read()) > 0",
    "many_files": "import os\nhandles = [os.pipe() for _ in range(200)]\ndef out(): return True",
}


def make_programs_that_cheat(folder: Path) -> Path:
    for name, program in PROGRAMS.items():
        (folder / f"{name}.py").write_text(program)
    return folder


def make_programs_that_try_to_get_out(folder: Path) -> Path:
    """`home` is the folder itself, with a file `secret`."""
    (folder / "secret").write_text("secret")
    for name, program in ESCAPES.items():
        (folder / f"{name}.py").write_text(program.format(home=str(folder), port=1, worker=1))
    return folder
