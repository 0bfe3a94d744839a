"""The run's side of a process that calls a reward of the user. reward_worker.py is the other side.

The process may do anything, so everything that it sends is checked: an answer has the unguessable number of its call, and time, length
and form are limited. If anything else comes, the calls under way have failed, and the process is replaced.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common.verify.reward_worker import LARGEST, SWEEP_SECONDS

LOAD_SECONDS = 60.0  # for loading the file of a custom reward, which may import large packages
GRACE_SECONDS = 2.0  # a process that ends its slow calls itself has this much time to say so; and each process to end
ANSWER_BYTES = 8192  # longest answer to a call; a shortened error message fits
PRINTED_BYTES = 8192  # of a process between two looks at what the function printed; the rest is thrown away
ASKED = "VINERY_REWARD_ENV"  # an environment variable: names of variables that the process gets although they look like secrets
SECRET = re.compile(r"(TOKEN|KEY|SECRET|PASSW(OR)?D|CREDENTIAL)S?(_|$)|_(PWD|PAT)$|^SSH_AUTH_SOCK$", re.IGNORECASE)

Job = list[dict[str, Any]]  # calls that are answered together
STRAY = {"error": "its process wrote something that is no answer to this call"}


def environment() -> tuple[dict[str, str], list[str]]:
    """The environment variables of the process, and the names of those that are kept from it, as they look like secrets."""
    asked = ["JUDGE_KEY", *os.environ.get(ASKED, "").replace(",", " ").split()]  # the first is the name in examples/rewards/judge.py
    kept = sorted(name for name in os.environ if SECRET.search(name) and name not in asked)
    return {name: value for name, value in os.environ.items() if name not in kept}, kept


class Worker:
    """A process that runs reward_worker.py. It is killed and started again after a call that took too long or was answered wrongly."""

    def __init__(self, path: Path | str, function: str, seconds: float) -> None:
        """Starts the process. `seconds`: the time limit of a call."""
        self.arguments, self.seconds, self.load_seconds = [str(path), function, str(seconds)], seconds, max(LOAD_SECONDS, seconds)
        self.stopped = 0.0  # seconds for which this process itself did not run
        self.printed, self.unseen = bytearray(), 0  # what the function printed, and the number of bytes of it that were thrown away
        self.start()

    def start(self) -> None:
        """Starts the process, which begins to load the function. `loaded` tells how that went."""
        script = str(Path(__file__).with_name("reward_worker.py"))
        # in a session of its own, so that Ctrl-C reaches only the run, which then finishes its step
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen([sys.executable, script, *self.arguments], bufsize=0, env=environment()[0],
                                        start_new_session=True, **pipes)
        self.calls, self.answers, self.prints = (p.fileno() for p in (self.process.stdin, self.process.stdout, self.process.stderr))
        for pipe in (self.calls, self.prints):  # a process that does not read its calls must not stop the run
            os.set_blocking(pipe, False)
        self.events = select.poll()
        self.events.register(self.answers, select.POLLIN)
        self.events.register(self.prints, select.POLLIN)
        self.received, self.unsent = bytearray(), b""
        self.loading: str | None = secrets.token_hex(8)
        self._send({"id": self.loading})

    def loaded(self) -> dict[str, Any]:
        """What the process says when it has loaded the function: {"batch", "at_once"}, {"error": text} or {"timeout": True}."""
        answer = self._receive(self._now() + self.load_seconds, ANSWER_BYTES)
        if answer.get("id") == self.loading and (isinstance(answer.get("error"), str) or isinstance(answer.get("at_once"), int)):
            self.loading = None
            return answer
        return answer if "id" not in answer else STRAY

    def run(self, jobs: list[Job], at_once: int = 1) -> list[list[dict[str, Any]]]:
        """The answers to each job. At most `at_once` jobs are with the process at the same time.

        An answer is {"score": x}, {"error": text} or {"timeout": True}.
        """
        answers: list[list[dict[str, Any]]] = [[] for _ in jobs]
        waiting, pending = list(range(len(jobs)))[::-1], {}  # pending: number -> (job that the process has, deadline)
        while waiting or pending:
            if self.loading and "at_once" not in (ready := self.loaded()):  # it was started again, and that failed
                reason = ready.get("error", f"it was not ready after {self.load_seconds:g} s")
                for i in waiting:
                    answers[i] = [{"error": f"its process does not start again: {reason}"}] * len(jobs[i])
                self.restart()
                break
            while waiting and len(pending) < at_once:
                i, number = waiting.pop(), secrets.token_hex(8)
                pending[number] = i, self._now() + self.seconds + (GRACE_SECONDS if at_once > 1 else 0.0)
                self._send({"id": number, "calls": jobs[i]})
            most = ANSWER_BYTES * (1 + sum(len(jobs[i]) for i, _ in pending.values()))
            answer = self._receive(min(deadline for _, deadline in pending.values()), most)
            place = pending.get(str(answer.get("id")))
            if place and _well_formed(answer, len(jobs[place[0]])) and (len(pending) > 1 or not self.received):
                answers[place[0]] = answer["answers"]
                del pending[answer["id"]]
                continue
            for i, _ in pending.values():
                answers[i] = [STRAY if "id" in answer else answer] * len(jobs[i])
            pending.clear()
            self.restart()
        if at_once > 1 and any("timeout" in answer for own in answers for answer in own):
            self.restart()  # a slow call may go on in a thread
        self._read_prints()
        return answers

    def restart(self) -> None:
        """Replaces the process."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """Ends the process and all processes that it started."""
        self._read_prints()
        self.close()
        try:
            self.process.wait(SWEEP_SECONDS + GRACE_SECONDS)
        except subprocess.TimeoutExpired:  # it was stopped, or is busy with processes that start others
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()

    def close(self) -> None:
        """Closes the channel: the guard then ends all processes. A signal would not do, as a scheduler may send one to all of them."""
        self.process.stdin.close()

    # ---- the channel ------------------------------------------------------------------------------------------------

    def _send(self, job: dict[str, Any]) -> None:
        """Sends a line. What the pipe does not take now is sent while the run waits for an answer."""
        self.unsent += json.dumps(job, default=str).encode() + b"\n"
        self._write()

    def _now(self) -> float:
        """Seconds by a clock that rests while this process is stopped, as by Ctrl-Z or a scheduler: the function was stopped with it."""
        return time.monotonic() - self.stopped

    def _write(self) -> None:
        try:
            self.unsent = self.unsent[os.write(self.calls, self.unsent):]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # the process has ended; `_receive` tells
            self.unsent = b""

    def _receive(self, deadline: float, most: int) -> dict[str, Any]:
        """The next line of the process: a JSON object with an "id".

        {"timeout": True}: there was none until `deadline`. {"error": text}: the process has ended, or sent something else or over `most`
        bytes.
        """
        while b"\n" not in self.received:
            left = deadline - self._now()
            if left <= 0:
                return {"timeout": True}
            if self.unsent:
                self.events.register(self.calls, select.POLLOUT)
            began, wait = self._now(), min(left, 1.0)
            happened = [number for number, _ in self.events.poll(1000 * wait + 1)]
            if (took := self._now() - began) > wait + 1:
                self.stopped += took
            if self.unsent:
                self.events.unregister(self.calls)
                self._write()
            if self.prints in happened:
                self._read_prints()
            if self.answers in happened:
                piece = os.read(self.answers, 2**16)
                if not piece:
                    return {"error": self._end()}
                self.received += piece
                if len(self.received) > most:
                    return STRAY
        line, _, self.received = self.received.partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            return STRAY
        return answer if isinstance(answer, dict) and "id" in answer else STRAY

    def _read_prints(self) -> None:
        """Takes what the function has printed, as far as it is there. A process that prints for ever gets no more attention than this."""
        for _ in range(16):
            try:
                piece = os.read(self.prints, 2**16)
            except BlockingIOError:
                return
            if not piece:  # all who could print have ended
                with contextlib.suppress(KeyError):
                    self.events.unregister(self.prints)
                return
            room = max(0, PRINTED_BYTES - len(self.printed))
            self.printed += piece[:room]
            self.unseen += len(piece[room:])

    def _end(self) -> str:
        """How the process ended that closed its answers."""
        try:
            code = self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process closed the channel to the run"
        killed = f", by {signal.Signals(code - 128).name}" if code - 128 in set(signal.Signals) else ""
        return f"its process ended with code {code}{killed}" + " (out of memory?)" * killed.endswith("KILL")


def _well_formed(answer: dict[str, Any], count: int) -> bool:
    """Whether an answer has `count` entries of the form {"score": x}, {"error": text} or {"timeout": True}."""
    found = answer.get("answers")
    return isinstance(found, list) and len(found) == count and all(
        isinstance(one, dict) and ((isinstance(score := one.get("score"), float) and abs(score) <= LARGEST)
                                   or isinstance(one.get("error"), str) or one == {"timeout": True}) for one in found)
