"""Phase 1: which problems to train on."""
from __future__ import annotations

import random
from typing import Any

import numpy as np

from common.data import Problem
from common.rollout import derive_seed


def learnability(successes: Any, attempts: Any, *, unbiased: bool = False) -> Any:
    """p (1 - p) with p = successes / attempts: how much a problem can teach (arXiv 2502.12272). Numbers or arrays.

    For comparing problems; the uniform sampler below does not need it.

    `unbiased` multiplies by k / (k - 1), k = attempts, so that the mean over samples is the true p (1 - p). One attempt
    tells nothing: 0. (1, 8) -> 0.109375, unbiased 0.125; (4, 8) -> 0.25, unbiased 0.285714.
    """
    successes, attempts = np.asarray(successes, dtype=np.float64), np.asarray(attempts, dtype=np.float64)
    p = successes / np.maximum(attempts, 1)
    score = p * (1 - p) * (attempts / np.maximum(attempts - 1, 1) if unbiased else 1.0)
    score = np.where(attempts > 1, score, 0.0)
    return float(score) if score.ndim == 0 else score


class ProblemSampler:
    """Uniform: every problem once per epoch, in an order drawn anew for each from the seed."""

    def __init__(self, problems: list[Problem], seed: int) -> None:
        self.problems, self.seed = problems, seed
        self.drawn = 0  # problems handed out so far: with the seed, all there is to know
        self.epoch, self.order = -1, []  # the order of that epoch

    def choose(self, count: int) -> list[Problem]:
        """The next `count` problems."""
        chosen = []
        for i in range(self.drawn, self.drawn + count):
            epoch, place = divmod(i, len(self.problems))
            if epoch != self.epoch:
                self.epoch, self.order = epoch, list(range(len(self.problems)))
                random.Random(derive_seed(self.seed, "epoch", epoch)).shuffle(self.order)
            chosen.append(self.problems[self.order[place]])
        self.drawn += count
        return chosen

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]
