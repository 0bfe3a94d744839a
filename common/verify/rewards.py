"""Turns completions into rewards: the built-in verifier, or a function of the user in processes of its own.

A completion that was cut off at the length limit has not answered. The verifier gives it 0, whatever it says. With a function of the
user it gets the reward of a failed call.
"""
from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from common.config import CommonConfig
from common.console import say
from common.errors import UserError
from common.records import Completion, Problem
from common.verify.answers import is_correct

MAX_PROCESSES = 8  # of a custom reward; on a machine with fewer processors, one for each
LOAD_SECONDS = 60.0  # for loading the file of a custom reward, which may import large packages
GRACE_SECONDS = 2.0  # a process that ends its slow calls itself has this much time to say so
MAX_FAILURES_SHOWN = 3  # in one call, on the console; metrics.jsonl counts all failures


class Reward(Protocol):
    """Scores completions. `failures` counts the failed calls of a custom reward since the start, under the names of their metrics."""

    failures: dict[str, int]

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor:
        """(B,) float32: the reward of each completion. Completion i answers problems[i]."""


def make_reward(config: CommonConfig) -> Reward:
    """The reward function that `--reward` names, or the verifier without that flag. Raises UserError if the function does not load."""
    if not config.reward:
        return VerifierReward()
    failed = None if config.reward_failed == "lowest" else float(config.reward_failed)
    return CustomReward(config.reward, config.reward_timeout, config.reward_workers, failed)


# ---- the built-in reward --------------------------------------------------------------------------------------------

def score(problems: list[Problem], completions: list[Completion]) -> Tensor:
    """(B,) float32: 1 if completion i ended by itself and its answer is the answer of problems[i], else 0."""
    return torch.tensor([float(completion.finish_reason == "stop" and is_correct(completion.text, problem.answer))
                         for problem, completion in zip(problems, completions, strict=True)])


class VerifierReward:
    """The reward of `score`. It has no failures."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor:
        """(B,) float32."""
        return score(problems, completions)


# ---- a reward of the user -------------------------------------------------------------------------------------------

class CustomReward:
    """A function of the user, called in processes that can be killed. docs/rewards.md shows its forms:

        function(completion, problem) -> number        an `async def` function runs up to 16 calls in each process at the same time
        function(completions, problems) -> numbers     all completions of a call at once, in one process

    A call fails if it raises, returns no finite number or takes more than `seconds`. A completion whose call failed, or that was cut
    off at the length limit, gets the reward `failed`. None: the lowest reward of the others of this call, or 0 if there is none.
    Failures are counted in `failures`, by completion, and shown on the console. The process of a slow call is killed, together with the
    processes that it started.
    """

    def __init__(self, file_and_function: str, seconds: float = 10.0, workers: int | None = None, failed: float | None = None) -> None:
        """`file_and_function`: path/to/file.py:function. `workers`: number of processes. Raises UserError if it does not load."""
        path, _, self.name = file_and_function.rpartition(":")
        if not path.endswith(".py") or not Path(path).is_file():
            raise UserError(f"--reward {file_and_function}: give path/to/file.py:function, with a file that exists")
        self.seconds, self.failed, self.failures = seconds, failed, {"reward/errors": 0, "reward/timeouts": 0}
        self.workers = [Worker(path, self.name, seconds)]
        weakref.finalize(self, _stop, self.workers)
        ready = self._loaded(self.workers[0], file_and_function)
        self.batch, self.at_once = ready["batch"], ready["at_once"]
        if not self.batch:
            self.workers += [Worker(path, self.name, seconds) for _ in range(1, workers or min(MAX_PROCESSES, os.cpu_count() or 1))]
        for worker in self.workers[1:]:
            self._loaded(worker, file_and_function)

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor:
        """(B,) float32."""
        calls = [_call(problem, completion) for problem, completion in zip(problems, completions, strict=True)]
        whole = [i for i, completion in enumerate(completions) if completion.finish_reason == "stop"]
        if self.batch:
            answers = dict(enumerate(self.workers[0].run([calls])[0] if calls else []))
        else:
            shares = [whole[k::len(self.workers)] for k in range(len(self.workers))]
            with ThreadPoolExecutor(len(self.workers)) as threads:  # one thread waits for each process
                found = threads.map(lambda worker, share: worker.run([[calls[i]] for i in share], self.at_once), self.workers, shares)
                answers = {i: answer for share, own in zip(shares, found, strict=True) for i, (answer,) in zip(share, own, strict=True)}
        scores = {i: answers[i]["score"] for i in whole if "score" in answers[i]}
        failed = min(scores.values(), default=0.0) if self.failed is None else self.failed
        self._count([(problems[i], answers[i]) for i in whole if i not in scores], failed)
        return torch.tensor([scores.get(i, failed) for i in range(len(completions))])

    def _loaded(self, worker: Worker, file_and_function: str) -> dict[str, Any]:
        """The first answer of a process: the kind of the function. Raises UserError if the process has not loaded it."""
        ready = worker.receive(time.monotonic() + worker.load_seconds)
        if "error" in ready:
            raise UserError(f"--reward {file_and_function} does not load: {ready['error']}")
        if "timeout" in ready:
            raise UserError(f"--reward {file_and_function} does not load: it was not ready after {worker.load_seconds:g} s")
        return ready

    def _count(self, failures: list[tuple[Problem, dict[str, Any]]], failed: float) -> None:
        """Counts failed calls, given as (problem, answer), and shows the first ones on the console."""
        for number, (problem, answer) in enumerate(failures):
            self.failures["reward/timeouts" if "timeout" in answer else "reward/errors"] += 1
            if number < MAX_FAILURES_SHOWN:
                cause = answer.get("error", f"no result within {self.seconds:g} s (--reward_timeout)")
                say(f"note: the reward of {problem.id} failed and is {failed:g}: {self.name}: {cause}")


def _call(problem: Problem, completion: Completion) -> dict[str, Any]:
    """What the process gets of a completion and its problem."""
    return {"completion": completion.text, "tokens": len(completion.ids), "finish_reason": completion.finish_reason,
            "problem": {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer, "question": problem.question,
                        "row": problem.row}}


class Worker:
    """A process that runs reward_worker.py. After a call that took too long it is killed and started again."""

    def __init__(self, path: Path | str, function: str, seconds: float) -> None:
        """Starts the process. `seconds`: the time limit of a call."""
        self.arguments, self.seconds, self.load_seconds = [str(path), function, str(seconds)], seconds, max(LOAD_SECONDS, seconds)
        self.start()

    def start(self) -> None:
        """Starts the process. Its first answer says whether the function was loaded."""
        script = str(Path(__file__).with_name("reward_worker.py"))
        # In a session of its own, so that Ctrl-C reaches only the run, which then finishes its step. The processes that the function
        # starts belong to the same process group, and can be killed together.
        self.process = subprocess.Popen([sys.executable, script, *self.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        start_new_session=True)
        self.buffer = b""

    def run(self, jobs: list[list[dict[str, Any]]], at_once: int = 1) -> list[list[dict[str, Any]]]:
        """The answers to each job, which is a list of calls. At most `at_once` jobs are with the process at the same time.

        An answer is {"score": x}, {"error": text} or {"timeout": True}. Afterwards the process is ready for the next jobs.
        """
        answers: list[list[dict[str, Any]]] = [[] for _ in jobs]
        waiting, deadlines = list(range(len(jobs)))[::-1], {}  # deadlines: of the jobs that the process has
        while waiting or deadlines:
            while waiting and len(deadlines) < at_once:
                i = waiting.pop()
                self._send({"id": i, "calls": jobs[i]})
                deadlines[i] = time.monotonic() + self.seconds + (GRACE_SECONDS if at_once > 1 else 0.0)
            answer = self.receive(min(deadlines.values()))
            if "id" in answer:
                answers[answer["id"]] = answer["answers"]
                del deadlines[answer["id"]]
            else:  # no answer in time, or the process has ended
                for i in deadlines:
                    answers[i] = [answer] * len(jobs[i])
                deadlines = {}
                self._restart()
        if at_once > 1 and any("timeout" in answer for own in answers for answer in own):
            self._restart()  # a slow call may go on in a thread
        return answers

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next answer of the process. {"timeout": True}: there was none until `deadline`. {"error": text}: the process has ended."""
        handle = self.process.stdout.fileno()
        while b"\n" not in self.buffer:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return {"timeout": True}
            piece = os.read(handle, 2**16)
            if not piece:
                _kill(self.process)
                return {"error": f"its process ended with code {self.process.wait()}"}
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def _send(self, job: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the process has ended; `receive` reports it
            self.process.stdin.write(json.dumps(job, default=str).encode() + b"\n")
            self.process.stdin.flush()

    def _restart(self) -> None:
        _stop([self])
        self.start()
        self.receive(time.monotonic() + self.load_seconds)  # "ready"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the process, and the processes that it started and that did not leave its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended; macOS says "permission" for that
        os.killpg(process.pid, signal.SIGKILL)


def _stop(workers: list[Worker]) -> None:
    """Ends the processes."""
    for worker in workers:
        if worker.process.returncode is None:  # else it has been killed, and its number may belong to another process
            _kill(worker.process)
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
