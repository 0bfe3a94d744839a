"""Turns completions into rewards: the built-in verifier, or a function of the user in processes of its own.

A completion that was cut off at the length limit has not answered. The verifier gives it 0, whatever it says. With a function of the
user it gets the reward of a failed call.
"""
from __future__ import annotations

import os
import statistics
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from common import parallel
from common.config import CommonConfig
from common.console import say
from common.errors import UserError
from common.records import Completion, Problem
from common.verify.answers import is_correct
from common.verify.reward_process import ASKED, Worker, environment

MAX_PROCESSES = 8  # of a custom reward; on a machine with fewer processors, one for each; of a run of more processes, one for each
MAX_FAILURES_SHOWN = 3  # in one call, on the console; metrics.jsonl counts all failures
MAX_PRINTS_SHOWN = 20  # lines of what the function prints in one call
LONGEST_LINE = 300  # characters of such a line that are shown
JUDGED = 5  # uses of the function that are judged together: an outage of one step, or one crash with a whole batch, is forgiven
FAILING = 0.5  # share of failed calls in them that ends the run: above it most of what the run learns from is not the user's reward
FAR = 1000.0  # times the median size of the other scores: such a score is noted
FORMS = ("A reward is `def f(completion, problem)` that returns a finite number, or `def f(completions, problems)` that returns a list of "
         "them: docs/rewards.md")


class Reward(Protocol):
    """Scores completions. `failures` counts the failed calls of a custom reward since the start, under the names of their metrics.

    `cut_off`: what it gives now to a completion that was cut off at the length limit. None: that never changes.
    """

    failures: dict[str, int]

    @property
    def cut_off(self) -> float | None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

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

    cut_off = None

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor:
        """(B,) float32. Several processes share out the work."""
        mine = parallel.part([len(completion.text) for completion in completions])
        about = [(problem.id, len(completion.ids)) for problem, completion in zip(problems, completions, strict=True)]
        return torch.tensor(parallel.gather(score(problems[mine], completions[mine]).tolist(), "rewards", about))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""


# ---- a reward of the user -------------------------------------------------------------------------------------------

class CustomReward:
    """A function of the user, called in processes that can be killed. docs/rewards.md shows its forms:

        function(completion, problem) -> number        an `async def` function runs up to 16 calls in each process at the same time
        function(completions, problems) -> numbers     all completions of a call at once, in one process

    A call fails if it raises, returns no finite number or takes more than `seconds`. A completion whose call failed, or that was cut
    off at the length limit, gets the reward `failed`. None: the lowest reward so far in the run, or 0 if there is none. With the lowest
    reward of this call alone, it would be the reward of a right completion where all others are right, and training would lead to
    completions that never end.

    Failures are counted in `failures`, by completion, and shown on the console. If too many calls fail, UserError ends the run.
    """

    def __init__(self, file_and_function: str, seconds: float = 10.0, workers: int | None = None, failed: float | None = None,
                 flag: str = "reward", training: bool = True) -> None:
        """`file_and_function`: path/to/file.py:function. `workers`: number of processes. Raises UserError if it does not load.

        flag: the flag that named the function. training: whether messages may speak of the flags and the steps of a training run.
        """
        path, _, name = file_and_function.rpartition(":")
        self.flag, self.training, self.what = f"--{flag} {file_and_function}", training, flag.replace("_", " ")
        if not path.endswith(".py") or not Path(path).is_file():
            raise UserError(f"{self.flag}: give path/to/file.py:function, with a file that exists")
        self.name, self.seconds, self.failed, self.failures = name, seconds, failed, {"reward/errors": 0, "reward/timeouts": 0}
        self.lowest: float | None = None  # of all scores so far
        self.usual = 1.0  # median size of the scores, and 1 or more
        self.uses: deque[tuple[int, int]] = deque(maxlen=JUDGED)  # (failed calls, calls) of the last uses since the start or the resume
        self.said: set[str] = set()  # notes that are shown once
        if kept := environment()[1]:
            say(f"note: the {self.what} does not get the environment variables {', '.join(kept)}; {ASKED}=NAME,NAME names those that it "
                "needs")
        self.workers = [Worker(path, name, seconds)] if parallel.rank() == 0 else []
        weakref.finalize(self, _stop, self.workers)
        ready = parallel.first(lambda: self._loaded(self.workers[0]), "the kind of the reward")
        self.batch, self.at_once = ready["batch"], ready["at_once"]
        number = 1 if self.batch else workers or max(parallel.count(), min(MAX_PROCESSES, os.cpu_count() or 1))
        self.number = parallel.first(lambda: number, "the number of processes of the reward")  # processors may differ
        self.own = range(parallel.rank(), self.number, parallel.count())  # of these processes, the numbers of this one's
        self.workers += [Worker(path, name, seconds) for _ in self.own[len(self.workers):]]
        for worker in self.workers[parallel.rank() == 0:]:
            self._loaded(worker)

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor:
        """(B,) float32."""
        calls = [_call(problem, completion) for problem, completion in zip(problems, completions, strict=True)]
        whole = [i for i, completion in enumerate(completions) if completion.finish_reason == "stop"]
        about = [(call["problem"]["id"], call["tokens"]) for call in calls]
        answers = dict(parallel.gather(list(self._answers(calls, whole).items()), "rewards", about))
        scores = {i: answers[i]["score"] for i in whole if "score" in answers[i]}
        self._show_prints()
        self._look_at([(problems[i], score) for i, score in scores.items()])
        self._judge([(problems[i], answers[i]) for i in whole if i not in scores], len(whole), self.cut_off)
        return torch.tensor([scores.get(i, self.cut_off) for i in range(len(completions))])

    def _answers(self, calls: list[dict[str, Any]], whole: list[int]) -> dict[int, dict[str, Any]]:
        """The answers to this process's share of the calls, by the number of the call. whole: the numbers of those that count."""
        if not self.workers:  # of a run of several processes, the others have them
            return {}
        if self.batch:
            return dict(enumerate(self.workers[0].run([calls])[0] if calls else []))
        shares = [whole[k::self.number] for k in self.own]
        with ThreadPoolExecutor(len(self.workers)) as threads:  # one thread waits for each process
            found = threads.map(lambda worker, share: worker.run([[calls[i]] for i in share], self.at_once), self.workers, shares)
            return {i: answer for share, own in zip(shares, found, strict=True) for i, (answer,) in zip(share, own, strict=True)}

    @property
    def cut_off(self) -> float:
        """The reward of a completion that was cut off, and of a failed call."""
        return (self.lowest or 0.0) if self.failed is None else self.failed

    def state_dict(self) -> dict[str, Any]:
        return {"failures": dict(self.failures), "lowest": self.lowest, "usual": self.usual}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.failures = {name: int(state["failures"][name]) for name in self.failures}
        self.lowest, self.usual = None if state["lowest"] is None else float(state["lowest"]), float(state["usual"])

    def _loaded(self, worker: Worker) -> dict[str, Any]:
        """The kind of the function, when a process has loaded it. Raises UserError if it does not load."""
        ready = worker.loaded()
        if "at_once" not in ready:
            self._show_prints()
            reason = ready.get("error", f"it was not ready after {worker.load_seconds:g} s")
            raise UserError(f"{self.flag} does not load: {reason}{'. ' + FORMS if 'form' in ready else ''}")
        return ready

    def _show_prints(self) -> None:
        """Shows the first lines of what the function has printed since the last look."""
        lines = [line for worker in self.workers for line in worker.printed.decode(errors="replace").splitlines()]  # of process 0's
        say(*(f"{self.name}: {line[:LONGEST_LINE]}" for line in lines[:MAX_PRINTS_SHOWN]))
        if len(lines) > MAX_PRINTS_SHOWN or any(worker.unseen for worker in self.workers):
            self._note_once("prints", f"the {self.what} prints more than {MAX_PRINTS_SHOWN} lines at a time; the others are thrown away. "
                            "Let it write to a file what is to be kept")
        for worker in self.workers:
            worker.printed, worker.unseen = bytearray(), 0

    def _look_at(self, scores: list[tuple[Problem, float]]) -> None:
        """Keeps the lowest score. A score far from all others is noted, and does not count as the lowest."""
        self.usual = max(1.0, statistics.median_low([*(abs(score) for _, score in scores), self.usual]))
        for problem, score in scores:
            if abs(score) > FAR * self.usual:
                but = ", but not as the lowest reward (--reward_failed)" * self.training
                self._note_once("far", f"the {self.what} of {problem.id} is {score:g}, far from the others: half of them lie within "
                                       f"{self.usual:g} of 0. It counts as it is{but}")
            elif self.lowest is None or score < self.lowest:
                self.lowest = score

    def _judge(self, failures: list[tuple[Problem, dict[str, Any]]], calls: int, failed: float) -> None:
        """Counts the failed ones of some calls, given as (problem, answer), and shows the first ones. Raises UserError if too many fail.

        The first use of the function must not fail altogether. Later the last uses count together.
        """
        limit = f"no result within {self.seconds:g} s{' (--reward_timeout)' * self.training}"
        causes = [answer.get("error", limit) for _, answer in failures]
        if calls and not self.uses and len(failures) == calls:
            raise UserError(f"{self.flag}: all of the first {calls} calls failed, the first with {causes[0]}. {FORMS}")
        for number, ((problem, answer), cause) in enumerate(zip(failures, causes, strict=True)):
            self.failures["reward/timeouts" if "timeout" in answer else "reward/errors"] += 1
            if number < MAX_FAILURES_SHOWN:
                say(f"note: the {self.what} of {problem.id} failed and is {failed:g}: {self.name}: {cause}")
        if not calls:  # all were cut off
            return
        self.uses.append((len(failures), calls))
        failing, together = map(sum, zip(*self.uses, strict=True))
        if len(self.uses) == JUDGED and failing > FAILING * together:
            raise UserError(f"{self.flag}: {failing} of the last {together} calls failed, more than half. The last failure: {causes[-1]}. "
                            f"{FORMS}{'. This step is not saved; checkpoints of earlier steps stay as they are' * self.training}")

    def _note_once(self, kind: str, text: str) -> None:
        if kind not in self.said:
            say(f"note: {text}")
        self.said.add(kind)


def _call(problem: Problem, completion: Completion) -> dict[str, Any]:
    """What the process gets of a completion and its problem."""
    return {"completion": completion.text, "tokens": len(completion.ids), "finish_reason": completion.finish_reason,
            "problem": {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer, "question": problem.question,
                        "row": problem.row}}


def _stop(workers: list[Worker]) -> None:
    """Ends the processes."""
    for worker in workers:
        worker.close()  # all at the same time
    for worker in workers:
        worker.stop()
