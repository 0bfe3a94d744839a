"""From completions to rewards, and from held-out problems to pass@1. One rule for all: cut off at the length limit is 0."""
from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from common.config import CommonConfig
from common.errors import UserError
from common.records import Completion, Problem
from common.verify.answers import is_correct

SECONDS = 10.0  # that one call of a custom reward may take
WORKERS = 8  # processes at most, one per processor
SHOWN = 3  # failures of a step that the console shows; metrics.jsonl counts all


class Reward(Protocol):
    """Scores completions: (B,) float32. `failures` counts calls of a custom reward that failed since the start, by metric."""

    failures: dict[str, int]

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor: ...



def score(problems: list[Problem], completions: list[Completion]) -> Tensor:
    """(B,) float32: 1 where completion i ended by itself and its answer is that of problems[i], else 0."""
    return torch.tensor([float(c.finish_reason == "stop" and is_correct(c.text, p.answer))
                         for p, c in zip(problems, completions, strict=True)])



def make_reward(config: CommonConfig) -> Reward:
    """What `--reward` names, else the verifier. Raises UserError for a file or function that does not load."""
    return CustomReward(config.reward) if config.reward else VerifierReward()



class VerifierReward:
    """`score`, which does not fail."""

    def __init__(self) -> None:
        self.failures: dict[str, int] = {}

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor:
        """(B,) float32."""
        return score(problems, completions)



class CustomReward:
    """A user's `function(completion: str, problem) -> float`, called in processes that are killed when a call takes too long.

    `problem` has the fields id, prompt and answer of `Problem`. A call that raises, returns no finite number or takes over
    SECONDS scores 0, is counted in `failures` and named on the console.
    """

    def __init__(self, where: str, seconds: float = SECONDS) -> None:
        """`where`: path/to/file.py:function. Raises UserError."""
        path, _, self.name = where.rpartition(":")
        if not path.endswith(".py") or not Path(path).is_file():
            raise UserError(f"--reward {where}: give path/to/file.py:function, with a file that exists")
        self.path, self.seconds, self.failures = path, seconds, {"reward/errors": 0, "reward/timeouts": 0}
        self.workers: list[Worker] = [Worker(path, self.name, seconds) for _ in range(min(WORKERS, os.cpu_count() or 1))]
        weakref.finalize(self, _stop, self.workers)
        for worker in self.workers:
            answer = worker.answer()
            if answer is None or "error" in answer:
                raise UserError(f"--reward {where} does not load: {(answer or {}).get('error', f'nothing within {seconds:g} s')}")

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor:
        """(B,) float32."""
        jobs = [(i, p, c.text) for i, (p, c) in enumerate(zip(problems, completions, strict=True)) if c.finish_reason == "stop"]
        rewards = torch.zeros(len(problems))
        shares = [jobs[k::len(self.workers)] for k in range(len(self.workers))]
        with ThreadPoolExecutor(len(self.workers)) as threads:  # a thread waits for each process
            results = sorted(result for share in threads.map(self._work, self.workers, shares) for result in share)
        for i, value, _ in results:
            rewards[i] = value
        failures = [(problems[i].id, failure) for i, _, failure in results if failure]
        for _, failure in failures:
            self.failures["reward/timeouts" if failure.startswith("no answer") else "reward/errors"] += 1
        for name, failure in failures[:SHOWN]:
            tqdm.write(f"note: the reward of {name} is 0: {self.name}: {failure}")
        return rewards

    def _work(self, worker: Worker, jobs: list[tuple[int, Problem, str]]) -> list[tuple[int, float, str]]:
        """(place, reward, failure or "") of each job of one process."""
        results = []
        for i, problem, text in jobs:
            answer = worker.call({"completion": text, "problem": {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer}})
            failure = f"no answer within {self.seconds:g} s" if answer is None else answer.get("error", "")
            results.append((i, 0.0 if failure else answer["score"], failure))
        return results



class Worker:
    """A process of `common/reward_worker.py`, started again when it had to be killed."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.seconds = float(self.arguments[2])
        self.start()

    def start(self) -> None:
        # in a session of its own: Ctrl-C is for the run, which finishes its step
        script = str(Path(__file__).with_name("reward_worker.py"))
        self.process = subprocess.Popen([sys.executable, script, *self.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        start_new_session=True)

    def answer(self) -> dict[str, Any] | None:
        """The next line; None if none comes in time. A process that ended says so."""
        buffer, handle = b"", self.process.stdout.fileno()
        while select.select([handle], [], [], self.seconds)[0]:
            piece = os.read(handle, 2**16)
            if not piece:
                return {"error": f"its process ended with code {self.process.wait()}"}
            buffer += piece
            if buffer.endswith(b"\n"):
                return json.loads(buffer)
        return None

    def call(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to one job; None if it took too long. Leaves a process that is ready for the next."""
        with contextlib.suppress(BrokenPipeError):  # its end is read below
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        answer = self.answer()
        if answer is None or self.process.poll() is not None:
            _stop([self])
            self.start()
            self.answer()  # ready
        return answer



def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.process.kill()
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
