"""The requests of one call of `generate`, and the vLLM servers that share them out. None is lost with its server."""
from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common import parallel
from common.errors import UserError
from common.records import Completion, Request
from common.rollout.vllm_http import Lost, Server

BUSY = 256  # completions that a server computes at a time; more would wait there, and not where a free server finds them
TRIES = 10  # times that a request may be lost
FAR_MORE = 10  # a server that counts this many times the tokens of a full load, and gives no answer, will give none


class Member:
    """What a run knows of one of its servers."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.up = True
        # a lost server works again: the adapter that it has, and samples by which it is judged
        self.found: tuple[tuple[str, Path] | None, list[list[Completion]]] | None = None
        self.said = ""  # why it was lost, or is not taken back


@dataclass(eq=False)
class Shift:
    """A member at work in one call of `generate`, until it is lost."""

    alive_at: float  # when it was last seen to work
    count: float = 0.0  # its tokens then, as it counts them: those of other processes and runs are among them
    at_answer: float | None = None  # its tokens at the first look after its last answer
    taken: set[int] = field(default_factory=set)  # the requests that it has
    busy: int = 0  # their completions


class Work:
    """The requests of one call: which wait, and what has come back. Threads share it: all is read and changed under `change`."""

    def __init__(self, requests: list[Request], ask: Callable[[Server, Request], list[Completion]],
                 lose: Callable[[Member, str], None]) -> None:
        """ask: gives the completions of a request, or raises Lost or UserError. lose: is told that a member is lost, and why."""
        self.requests, self.ask, self.lose = requests, ask, lose
        self.full = BUSY * max((len(request.prompt_ids) + request.max_tokens for request in requests), default=0)  # tokens of a full load
        self.waiting = deque(range(len(requests)))
        self.done: dict[int, list[Completion]] = {}
        self.tries = [0] * len(requests)
        self.shifts: dict[Member, Shift] = {}
        self.error: BaseException | None = None
        self.over = False  # the call has ended
        self.change = threading.Condition()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to wait for."""
        return self.over or self.error is not None or len(self.done) == len(self.requests)

    def start(self, members: list[Member]) -> None:
        """Puts these members to work, all together, so that none takes what another could have."""
        with self.change:
            for member in members:
                if member.up:  # it may have been lost just now
                    self.shifts.setdefault(member, Shift(time.monotonic()))
            self._hand_out()

    def listen(self, member: Member, pause: float, timeout: float) -> None:
        """Looks at a member that has been silent for `pause` seconds. Gives it up if its tokens have not grown for `timeout` seconds, or
        have grown far beyond what it can owe to all who ask it.
        """
        shift = self.shifts.get(member)
        if shift is None or not shift.busy or time.monotonic() - shift.alive_at < pause:
            return
        count = None
        with contextlib.suppress(Lost, UserError):
            count = member.server.tokens()
        with self.change:
            if not shift.busy or self.shifts.get(member) is not shift:  # all its answers have come by now, or it is lost
                return
            if count is not None:
                if count != shift.count:
                    shift.count, shift.alive_at = count, time.monotonic()
                shift.at_answer = count if shift.at_answer is None else shift.at_answer
            written = 0.0 if shift.at_answer is None else shift.count - shift.at_answer
            why = "it hangs" if time.monotonic() - shift.alive_at > timeout else \
                "it writes and does not answer" if written > FAR_MORE * self.full else ""
            if why:
                self._lose(member, f"{why}, and owes {shift.busy} completions")

    def end(self) -> None:
        """Ends all that is under way."""
        with self.change:
            self.over = True
        if len(self.done) < len(self.requests):
            for member in self.shifts:
                member.server.cut()

    # ---- inside: called under `change` ----------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Gives each request that waits to the member that has least to do, as far as there is room."""
        while self.waiting and self.shifts and not self.finished:
            request = self.requests[self.waiting[0]]
            member, shift = min(self.shifts.items(), key=lambda item: item[1].busy)
            if shift.busy and shift.busy + request.n > BUSY // parallel.count():
                return
            i = self.waiting.popleft()
            shift.taken.add(i)
            shift.busy += request.n
            threading.Thread(target=self._serve, args=[member, shift, i], daemon=True).start()

    def _serve(self, member: Member, shift: Shift, i: int) -> None:
        """Asks for request i, in a thread of its own. What goes wrong ends the call of `generate`, and not the thread alone."""
        try:
            found: list[Completion] | BaseException = self.ask(member.server, self.requests[i])
        except BaseException as error:
            found = error
        with self.change:
            try:
                self._take(member, shift, i, found)
                self._hand_out()
            except BaseException as error:
                self.error = error
            if self.finished:
                self.change.notify_all()

    def _take(self, member: Member, shift: Shift, i: int, found: list[Completion] | BaseException) -> None:
        """Keeps what came back for request i, unless the request was put back into the queue before."""
        if self.over or i not in shift.taken:
            return
        if isinstance(found, Lost):
            self._lose(member, str(found))
            return
        shift.taken.discard(i)
        shift.busy -= self.requests[i].n
        shift.alive_at, shift.at_answer = time.monotonic(), None
        if isinstance(found, BaseException):
            self.error = self.error or found
        else:
            self.done[i] = found

    def _lose(self, member: Member, why: str) -> None:
        """Puts all requests of a member back into the queue. What its threads still bring does not count."""
        shift = self.shifts.pop(member)
        for i in sorted(shift.taken, reverse=True):
            self.waiting.appendleft(i)
            self.tries[i] += 1
            if self.tries[i] >= TRIES:
                request = self.requests[i]
                self.error = UserError(f"a request of {request.n} x {request.max_tokens} tokens was lost {TRIES} times, at last by "
                                       f"{member.server.url}: {why}")
        shift.taken.clear()
        self.lose(member, why)
        member.server.cut()
