"""What flows from phase to phase: problems, requests, completions, groups and batches; and the seeds that tell streams apart.

Imports nothing of the project.
"""
from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor


def derive_seed(run_seed: int, purpose: str, *parts: int | str) -> int:
    """64 bits that depend on every argument: streams of different purpose, step or problem never meet."""
    text = "\x1f".join(map(str, (run_seed, purpose, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")



def hash_seeds(seeds: np.ndarray, counter: np.ndarray | int) -> np.ndarray:
    """The splitmix64 hash of (seed, counter), elementwise, uint64. Overflow wraps, as it should."""
    with np.errstate(over="ignore"):
        z = seeds + (np.asarray(counter, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))



@dataclass(frozen=True)
class Problem:
    """One question. `answer` is the bare reference; `prompt_ids` are the tokens that the sampler continues."""

    id: str
    prompt: str
    prompt_ids: tuple[int, ...]
    answer: str



@dataclass(frozen=True)
class Request:
    """`n` completions of one prompt. `seed` is a 64-bit hash (`derive_seed`); sample i uses a further hash with i."""

    prompt_ids: tuple[int, ...]
    seed: int
    n: int = 1
    max_tokens: int = 1024
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    stop: tuple[str, ...] = ()



@dataclass(frozen=True)
class Completion:
    """One sample. `ids` holds the end token if it was sampled; `logps` are the sampler's, at the sampling temperature.

    `text` is cut at the stop string; `ids` go to the end of the token that completed it.
    """

    ids: list[int]
    logps: list[float]
    finish_reason: Literal["stop", "length"]
    text: str

SUCCESS_ABOVE = 0.5  # a reward above this is a success; the verifier's are 0 and 1


@dataclass
class Group:
    """A problem, the completions wanted of it, and those there are, with their rewards."""

    problem: Problem
    wanted: int  # completions
    seed: int  # of the first ones; later ones hash it with how many there are
    completions: list[Completion] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)  # of the first completions: those that have been verified
    scores: list[float] = field(default_factory=list)  # the rewards of all completions ever verified, those since dropped included
    first: float = math.nan  # learnability when it was first verified: how often it is tried later may depend on that

    @property
    def attempts(self) -> int:
        """Completions verified."""
        return len(self.scores)

    @property
    def successes(self) -> int:
        """Those with a reward above a half."""
        return sum(score > SUCCESS_ABOVE for score in self.scores)

    @property
    def mixed(self) -> bool:
        """The rewards differ."""
        return min(self.scores) < max(self.scores)

    def resize(self, wanted: int) -> None:
        """Another number of completions: what is too many is dropped, what is missing is sampled with the next call."""
        self.wanted = wanted
        del self.completions[wanted:], self.rewards[wanted:]



@dataclass(frozen=True)
class Batch:
    """Everything sampled in a step: B completions, group-major (row i belongs to problem `group_ids[i]`)."""

    problems: list[Problem]  # one per row
    completions: list[Completion]
    group_ids: Tensor  # (B,) int64

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: tokens of each completion, the end token included."""
        return torch.tensor([len(completion.ids) for completion in self.completions])

    @property
    def truncated(self) -> Tensor:
        """(B,) bool: stopped by the length limit."""
        return torch.tensor([completion.finish_reason == "length" for completion in self.completions])

    def loss_mask(self, drop: Tensor | None = None) -> Tensor:
        """(B, T) bool: the sampled tokens, none for the rows where `drop` (B,) is True."""
        mask = torch.arange(int(self.lengths.max()))[None] < self.lengths[:, None]
        return mask if drop is None else mask & ~drop[:, None]



def make_batch(problems: list[Problem], completions: list[list[Completion]]) -> Batch:
    """The batch of a step: completions[i] are the samples of problems[i]."""
    return Batch([p for p, group in zip(problems, completions, strict=True) for _ in group],
                 [c for group in completions for c in group],
                 torch.repeat_interleave(torch.arange(len(problems)), torch.tensor([len(group) for group in completions])))
