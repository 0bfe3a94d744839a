"""A problem of a step with what has been sampled of it so far: what phases 1 to 3 hand on."""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.config import SamplingConfig
from common.data import Problem
from common.rewards import Reward
from common.rollout import Completion, Engine, Request, derive_seed

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


def sample(groups: list[Group], engine: Engine, config: SamplingConfig) -> list[Completion]:
    """Samples what the groups lack, all in one call of the engine. Returns the new completions."""
    lacking = [group for group in groups if len(group.completions) < group.wanted]
    requests = [
        Request(group.problem.prompt_ids, derive_seed(group.seed, "more", len(group.completions)) if group.completions else group.seed,
                group.wanted - len(group.completions), config.max_completion_length, config.temperature, config.top_p,
                tuple(config.stop or ()))
        for group in lacking]
    new = engine.generate(requests) if requests else []
    for group, completions in zip(lacking, new, strict=True):
        group.completions += completions
    return [completion for completions in new for completion in completions]


def verify(groups: list[Group], reward: Reward) -> Tensor:
    """Scores the completions that have no reward yet. Returns all rewards (B,) float32, in the order of `make_batch`."""
    new = [(group, completion) for group in groups for completion in group.completions[len(group.rewards):]]
    scores = reward([group.problem for group, _ in new], [completion for _, completion in new]).tolist() if new else []
    for (group, _), score in zip(new, scores, strict=True):
        group.rewards.append(score)
        group.scores.append(score)
    return torch.tensor([score for group in groups for score in group.rewards])
