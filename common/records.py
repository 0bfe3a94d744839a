"""The records that flow from phase to phase: problems, requests, completions, groups and batches. Also the seeds of random draws.

Phase 1 makes a `Group` for each problem of the step. Phase 2 asks the engine for completions with a `Request` for each group, and puts
them all into a `Batch`. This file imports nothing of the project.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor


def derive_seed(run_seed: int, purpose: str, *parts: int | str) -> int:
    """A 64-bit seed: a hash of all arguments. Draws with a different purpose, step or problem get unrelated seeds.

    The run seed is `--seed`. Example: derive_seed(0, "rollouts", step, problem.id, place).
    """
    text = "\x1f".join(map(str, (run_seed, purpose, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash_seeds(seeds: np.ndarray, counter: np.ndarray | int) -> np.ndarray:
    """The splitmix64 hash of each pair (seed, counter), uint64. Products overflow and wrap around, as the hash intends."""
    with np.errstate(over="ignore"):
        z = seeds + (np.asarray(counter, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@dataclass(frozen=True)
class Problem:
    """One question. `answer` is the reference answer without its solution. `prompt_ids` are the tokens that the sampler continues.

    `question` is the text of the question as the data has it, without a prompt template. `row` is the whole row of the data. Rewards of
    the user read these two. They do not count when two problems are compared.
    """

    id: str
    prompt: str
    prompt_ids: tuple[int, ...]
    answer: str
    question: str = field(default="", compare=False, repr=False)
    row: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # column -> value


class Problems(Sequence[Problem]):
    """The problems of a large data set, which are made when they are asked for: one, a slice, or all in turn, in parts."""

    longest: int  # no prompt has more tokens
    examples: list[Problem]  # some problems, among them those with the longest and the shortest prompts

    def pick(self, numbers: Sequence[int]) -> list[Problem]:
        """The problems with these numbers, made together, which is faster than one by one."""
        raise NotImplementedError

    def ids(self) -> list[str]:
        """The ids of all problems."""
        raise NotImplementedError

    def number_of(self, id: str) -> int | None:
        """The number of the problem with this id, or None if there is none."""
        raise NotImplementedError

    def fingerprints(self) -> tuple[int, bytes]:
        """(a number of problems, 6 bytes for each so many): a hash of their ids, questions and references, in their order."""
        raise NotImplementedError


class PromptList(list[tuple[int, ...]]):
    """Token ids of prompts of the run: all, or of a large data set some. No prompt of the run has more than `longest` tokens."""

    def __init__(self, prompts: Iterable[tuple[int, ...]], longest: int) -> None:
        super().__init__(prompts)
        self.longest = longest


def prompts_of(problems: Sequence[Problem]) -> PromptList:
    """The prompts of these problems; of a large data set some, among them the longest and the shortest."""
    some = [problem.prompt_ids for problem in (problems.examples if isinstance(problems, Problems) else problems)]
    return PromptList(some, problems.longest if isinstance(problems, Problems) else longest_of(some))


def longest_of(prompts: list[tuple[int, ...]]) -> int:
    """A number of tokens that no prompt of the run exceeds: of a plain list, the length of the longest."""
    return prompts.longest if isinstance(prompts, PromptList) else max(map(len, prompts), default=0)


@dataclass(frozen=True)
class Request:
    """An order for `n` completions of one prompt. `seed` comes from `derive_seed`. Completion i is drawn with a hash of `seed` and i."""

    prompt_ids: tuple[int, ...]
    seed: int
    n: int = 1
    max_tokens: int = 1024
    temperature: float = 1.0  # 0: greedy, that is, always the most likely token
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One sampled completion of a prompt.

    A stop string cuts `text` but not `ids`: `text` ends before the stop string, `ids` ends with the token that completes it.

    A completion may hold tokens that the policy did not sample: the second question of a dialogue, the output of a tool, a beginning
    that was given. `sampled` tells them apart. They are read by the model, but they are in no loss, weight, mean or count.
    """

    ids: list[int]  # the tokens after the prompt; the end token is among them if it was sampled
    logps: list[float]  # log-prob of each token by the sampler, at the sampling temperature, nats; any number where not sampled
    finish_reason: Literal["stop", "length"]  # length: cut off at the length limit
    text: str
    sampled: tuple[bool, ...] | None = None  # for each token whether the policy sampled it; None: all tokens

    @property
    def num_sampled(self) -> int:
        """The number of tokens that the policy sampled."""
        return len(self.ids) if self.sampled is None else sum(self.sampled)


SUCCESS_ABOVE = 0.5  # a reward above this counts as a success; the built-in verifier gives 0 or 1


@dataclass
class Group:
    """A problem of the step, with its completions and their rewards.

    Phase 2 samples until there are `wanted` completions. Phase 3 verifies the completions that have no reward yet.
    """

    problem: Problem
    wanted: int  # number of completions that the group should have
    seed: int  # seed of the first request; a later request uses a hash of it and of the number of completions so far
    temperature: float | None = None  # of sampling; None: as `--temperature`
    completions: list[Completion] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)  # rewards[i] belongs to completions[i]; shorter until all are verified
    scores: list[float] = field(default_factory=list)  # rewards of all completions ever verified; keeps those of dropped completions
    # The learnability of the first verified completions. How many more are sampled may depend on it, so that the learnability of all
    # completions would be biased. NaN: none is verified yet.
    first_learnability: float = math.nan

    @property
    def attempts(self) -> int:
        """The number of completions ever verified."""
        return len(self.scores)

    @property
    def successes(self) -> int:
        """The number of completions ever verified with a reward above 0.5."""
        return sum(score > SUCCESS_ABOVE for score in self.scores)

    @property
    def mixed(self) -> bool:
        """Whether the rewards differ: for rewards of 0 and 1, whether there are right and wrong completions."""
        return min(self.scores) < max(self.scores)

    def resize(self, wanted: int) -> None:
        """Changes the number of wanted completions.

        Surplus completions are dropped at once. Missing completions are sampled by the next `rounds.sample`.
        """
        self.wanted = wanted
        del self.completions[wanted:], self.rewards[wanted:]


@dataclass(frozen=True)
class Batch:
    """The B completions of a step, one per row. The rows of a group stand together, in the order of the groups."""

    problems: list[Problem]  # length B: the problem of each row
    completions: list[Completion]  # length B
    group_ids: Tensor  # (B,) int64: the number of each row's group, 0, 1, ...

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: the length of each completion in tokens, the end token and tokens that were not sampled included."""
        return torch.tensor([len(completion.ids) for completion in self.completions])

    @property
    def num_sampled(self) -> Tensor:
        """(B,) int64: the number of sampled tokens of each completion."""
        return torch.tensor([completion.num_sampled for completion in self.completions])

    @property
    def truncated(self) -> Tensor:
        """(B,) bool: True where the completion was cut off at the length limit."""
        return torch.tensor([completion.finish_reason == "length" for completion in self.completions])

    def loss_mask(self, drop: Tensor | None = None) -> Tensor:
        """(B, T) bool: True on sampled tokens, where T is the longest completion. Rows with `drop` (B,) True are False throughout.

        Lengths 2 and 3, drop None: [[True, True, False], [True, True, True]].
        """
        mask = torch.arange(int(self.lengths.max()))[None] < self.lengths[:, None]
        for row, completion in enumerate(self.completions):
            if completion.sampled is not None:
                mask[row, :len(completion.ids)] = torch.tensor(completion.sampled, dtype=torch.bool)
        return mask if drop is None else mask & ~drop[:, None]


def make_batch(problems: list[Problem], completions: list[list[Completion]]) -> Batch:
    """The batch of a step. completions[i] are all completions of problems[i], so that they get group id i."""
    return Batch([p for p, group in zip(problems, completions, strict=True) for _ in group],
                 [c for group in completions for c in group],
                 torch.repeat_interleave(torch.arange(len(problems)), torch.tensor([len(group) for group in completions])))
