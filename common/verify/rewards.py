"""Turns completions into rewards: the built-in verifier, or a function of the user in processes of its own.

One rule holds for both: a completion that was cut off at the length limit has reward 0.
"""
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

MAX_SECONDS = 10.0  # for one call of a custom reward
MAX_PROCESSES = 8  # of a custom reward; on a machine with fewer processors, one for each
MAX_FAILURES_SHOWN = 3  # in one call, on the console; metrics.jsonl counts all failures


class Reward(Protocol):
    """Scores completions. `failures` counts the failed calls of a custom reward since the start, under the names of their metrics."""

    failures: dict[str, int]

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor:
        """(B,) float32: the reward of each completion. Completion i answers problems[i]."""


def make_reward(config: CommonConfig) -> Reward:
    """The reward function that `--reward` names, or the verifier without that flag. Raises UserError if the function does not load."""
    return CustomReward(config.reward) if config.reward else VerifierReward()


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
    """A function of the user, `function(completion: str, problem) -> float`, called in processes that can be killed.

    `problem` has the fields id, prompt and answer of `Problem`. A call fails if it raises, returns no finite number or takes more than
    `seconds`. A failed call scores 0, is counted in `failures` and is shown on the console. The process of a slow call is killed.
    """

    def __init__(self, file_and_function: str, seconds: float = MAX_SECONDS) -> None:
        """`file_and_function`: path/to/file.py:function. `seconds`: the time limit of a call. Raises UserError if it does not load."""
        path, _, self.name = file_and_function.rpartition(":")
        if not path.endswith(".py") or not Path(path).is_file():
            raise UserError(f"--reward {file_and_function}: give path/to/file.py:function, with a file that exists")
        self.seconds, self.failures = seconds, {"reward/errors": 0, "reward/timeouts": 0}
        self.workers = [Worker(path, self.name, seconds) for _ in range(min(MAX_PROCESSES, os.cpu_count() or 1))]
        weakref.finalize(self, _stop, self.workers)
        for worker in self.workers:
            answer = worker.answer()
            if answer is None or "error" in answer:
                cause = answer["error"] if answer else f"it was not ready after {seconds:g} s"
                raise UserError(f"--reward {file_and_function} does not load: {cause}")

    def __call__(self, problems: list[Problem], completions: list[Completion]) -> Tensor:
        """(B,) float32."""
        jobs = [(i, problem, completion.text) for i, (problem, completion) in enumerate(zip(problems, completions, strict=True))
                if completion.finish_reason == "stop"]
        shares = [jobs[k::len(self.workers)] for k in range(len(self.workers))]
        with ThreadPoolExecutor(len(self.workers)) as threads:  # one thread waits for each process
            results = sorted(result for share in threads.map(self._run_jobs, self.workers, shares) for result in share)
        rewards = torch.zeros(len(problems))
        num_shown = 0
        for i, value, failed_metric, cause in results:
            rewards[i] = value
            if failed_metric:
                self.failures[failed_metric] += 1
                num_shown += 1
                if num_shown <= MAX_FAILURES_SHOWN:
                    tqdm.write(f"note: the reward of {problems[i].id} is 0: {self.name}: {cause}")
        return rewards

    def _run_jobs(self, worker: Worker, jobs: list[tuple[int, Problem, str]]) -> list[tuple[int, float, str, str]]:
        """The jobs of one process, one after the other: (index, reward, metric that counts its failure or "", cause or "") of each."""
        results = []
        for i, problem, text in jobs:
            answer = worker.call({"completion": text, "problem": {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer}})
            if answer is None:
                results.append((i, 0.0, "reward/timeouts", f"no result within {self.seconds:g} s"))
            elif "error" in answer:
                results.append((i, 0.0, "reward/errors", answer["error"]))
            else:
                results.append((i, answer["score"], "", ""))
        return results


class Worker:
    """A process that runs reward_worker.py. After a call that took too long it is killed and started again."""

    def __init__(self, path: Path | str, function: str, seconds: float) -> None:
        """Starts the process. `seconds`: the time limit of loading the file, and of each call."""
        self.arguments, self.seconds = [str(path), function, str(seconds)], seconds
        self.start()

    def start(self) -> None:
        """Starts the process. Its first answer says whether the function was loaded."""
        script = str(Path(__file__).with_name("reward_worker.py"))
        # in a session of its own, so that Ctrl-C reaches only the run, which then finishes its step
        self.process = subprocess.Popen([sys.executable, script, *self.arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        start_new_session=True)

    def answer(self) -> dict[str, Any] | None:
        """The next answer of the process, or None if there is none in time. If the process has ended, an answer with "error"."""
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
        """The answer to one call of the function, or None if it took too long. Afterwards the process is ready for the next call."""
        with contextlib.suppress(BrokenPipeError):  # the process has ended; `answer` reports it
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        answer = self.answer()
        if answer is None or self.process.poll() is not None:
            _stop([self])
            self.start()
            self.answer()  # "ready"
        return answer


def _stop(workers: list[Worker]) -> None:
    """Ends the processes."""
    for worker in workers:
        worker.process.kill()
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
