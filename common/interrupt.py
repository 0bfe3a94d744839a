"""Signals that ask a process to stop: the work under way is finished, and a line says how to go on."""
from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import parallel

# Ctrl-C and kill; then those that schedulers send some time before they kill, and a terminal that closes
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]
MAY_BE_IGNORED = SIGNALS[2:]  # by choice, as with nohup. A shell ignores SIGINT by itself for commands with &
COME_TWICE = [signal.SIGHUP, signal.SIGXCPU]  # the system itself repeats them


class Stopped(KeyboardInterrupt):
    """A signal came while nothing could be finished."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


class Stop:
    """Takes the signals while it is entered. The first one is kept in `number`. The same one again, or Ctrl-C, ends the process at once.

    In a thread other than the main one the signals are left alone.
    """

    def __init__(self, what: str = "") -> None:
        """what: the work that is finished before the stop, in words; "": the first signal raises Stopped instead."""
        self.what = what
        self.number: int | None = None
        self.seen: set[int] = set()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(outer, Stop) and not outer.what and outer.number is not None:  # a library has caught and dropped what it raised
            raise Stopped(outer.number)
        self.before = take_signals(self._on_signal)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: Any) -> None:
        if self.seen and (number in self.seen or number == signal.SIGINT) and number not in COME_TWICE:
            if self.before[number] is signal.default_int_handler:
                raise Stopped(number)  # not from the command line, but in a program or a notebook that goes on
            os._exit(128 + number)
        first = not self.seen
        self.seen.add(number)
        if first:
            self.number = number
        if self.what:
            write_line(f"stopping after {self.what} (once more: stop now)")
        elif first:
            raise Stopped(number)


def take_signals(handler: Callable[[int, Any], Any]) -> dict[int, Any]:
    """Makes `handler` that of the signals. Returns the handlers before, by signal."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = {number: old for number, old in before.items()
             if old is not None and not (old is signal.SIG_IGN and number in MAY_BE_IGNORED)}  # None: a library's, in C
    for number in taken:
        signal.signal(number, handler)
    return taken


def end_quietly(name: str) -> None:
    """Makes a signal end the process with one line. Without this, a signal during the imports would show a stack trace.

    name: the `__name__` of the module that calls this. Does nothing if that is not the script which the process runs.
    """
    def end(number: int, _: Any) -> None:
        write_line(f"stopped by {signal.Signals(number).name}")
        os._exit(128 + number)

    if name == "__main__":
        take_signals(end)


def write_line(text: str) -> None:
    """Writes a line to stderr. For handlers of signals, where `say` could wait for a lock that the process itself holds."""
    if parallel.rank() > 0:  # all processes of a run get the signal, and one says so
        return
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def command(script: Path, *flags: str) -> str:
    """The command line that starts a script with these flags, to be pasted into the shell from which this process was started."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main and os.path.realpath(main) == os.path.realpath(script):
        started = parallel.launcher() or sys.orig_argv[:len(sys.orig_argv) - len(sys.argv[1:])]  # up to the script
    else:  # a program or a notebook has called the script's functions
        started = ["python", str(script)]
    return shlex.join([*started, *flags])
