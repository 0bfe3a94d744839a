"""A command under way that can be disturbed: in a session of its own, with a pipe or a terminal that can be closed. Linux and macOS."""
from __future__ import annotations

import os
import pty
import runpy
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from measure import ROOT

from common.console import show_exception

PATIENCE = 300.0  # seconds; a process that has not done by then what it should do hangs


class Child:
    """A command under way. All that it prints is kept in `said`."""

    def __init__(self, command: list[str], warm: bool, terminal: bool) -> None:
        """command: a script and its flags. warm: see `become`. terminal: it gets a terminal of its own; else a pipe."""
        read, write = os.pipe()
        self.said, self.began = b"", time.monotonic()
        self.code: int | None = None  # its exit code, or below 0 the number of the signal that ended it; None: it is alive
        self.pid, fd = pty.fork() if terminal else (os.fork(), read)
        if self.pid == 0:
            become(command, warm, None if terminal else write)
        os.close(write)
        if terminal:
            os.close(read)
        self.screen: int | None = fd  # where its output comes out; None: closed

    def pulse(self, seconds: float = 0.01) -> bool:
        """Reads what it prints, for a moment. Whether it is alive."""
        if self.screen is None:
            time.sleep(seconds)
        elif select.select([self.screen], [], [], seconds)[0]:
            try:
                text = os.read(self.screen, 2**16)
            except OSError:  # so a terminal says that nobody has it open any more
                text = b""
            self.said += text
            if not text:
                self.close()
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def follow(self, seconds: float = PATIENCE, until: Callable[[], bool] = lambda: False) -> bool:
        """Reads until the time is over, `until()` holds, or the process has ended. Whether it is still alive."""
        end = time.monotonic() + seconds
        while self.pulse() and time.monotonic() < end and not until():
            pass
        return self.code is None

    def close(self) -> None:
        """Takes its terminal or pipe away."""
        if self.screen is not None:
            os.close(self.screen)
            self.screen = None

    def send(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.pulse(0):
            os.kill(self.pid, number)

    def end(self) -> tuple[str, bool]:
        """(all that it printed, whether it hung): waits for its end. One that hangs is killed."""
        hung = self.follow()
        self.send(signal.SIGKILL)
        self.follow()
        while self.screen is not None and select.select([self.screen], [], [], 0)[0]:
            self.pulse(0)
        self.close()
        return self.said.decode(errors="replace").replace("\r", "\n"), hung


def become(command: list[str], warm: bool, output: int | None) -> NoReturn:
    """Turns this process, which was just forked, into the command. warm: keeps what is imported already, which saves seconds."""
    code: Any = 1
    try:
        if output is not None:
            os.setsid()
            for number, fd in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
                os.dup2(fd, number)
        os.closerange(3, 256)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(ROOT)
        if not warm:
            os.execv(sys.executable, [sys.executable, *command])
        sys.argv, sys.orig_argv = command, [sys.executable, *command]
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            os.write(2, f"{code}\n".encode())
            code = 1
    except BaseException as error:
        show_exception(type(error), error, error.__traceback__)
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)
