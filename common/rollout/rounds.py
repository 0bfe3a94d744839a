"""What a step does with its groups of completions: sample, verify. And the evaluation on held-out problems."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.config import CommonConfig, SamplingConfig
from common.records import Completion, Group, Problem, Request, derive_seed
from common.rollout.engine import Engine
from common.verify.rewards import Reward, VerifierReward

# Samples the completions that groups still lack, adds them to the groups, and returns the new completions: `sample`, without the engine
Fill = Callable[..., list[Completion]]


def sample(groups: list[Group], engine: Engine, config: SamplingConfig, ahead: bool = False) -> list[Completion]:
    """Samples the completions that the groups still lack, in one call of the engine, and adds them. Returns the new completions.

    ahead: only begins to sample, in the background. The next call for the same groups gives the completions.
    """
    lacking = [group for group in groups if len(group.completions) < group.wanted]
    requests = [
        Request(group.problem.prompt_ids, derive_seed(group.seed, "more", len(group.completions)) if group.completions else group.seed,
                group.wanted - len(group.completions), config.max_completion_length,
                config.temperature if group.temperature is None else group.temperature, config.top_p, tuple(config.stop or ()))
        for group in lacking]
    if ahead:
        engine.begin(requests)
        return []
    new = engine.generate(requests) if requests else []
    for group, completions in zip(lacking, new, strict=True):
        group.completions += completions
    return [completion for completions in new for completion in completions]


def verify(groups: list[Group], reward: Reward) -> Tensor:
    """Scores the completions that have no reward yet. Returns the rewards of all completions (B,) float32, in `make_batch`'s order.

    Completions that were cut off all get what the reward gives to such ones now: it may have got lower since they were scored.
    """
    new = [(group, completion) for group in groups for completion in group.completions[len(group.rewards):]]
    scores = reward([group.problem for group, _ in new], [completion for _, completion in new]).tolist() if new else []
    for (group, _), score in zip(new, scores, strict=True):
        group.rewards.append(score)
        group.scores.append(score)
    for group in groups:
        group.rewards = [reward.cut_off if completion.finish_reason == "length" and reward.cut_off is not None else score
                         for completion, score in zip(group.completions, group.rewards, strict=True)]
    return torch.tensor([score for group in groups for score in group.rewards])


def make_requests(problems: list[Problem], config: SamplingConfig, purpose: str, step: int, n: int, temperature: float) -> list[Request]:
    """Requests for `n` completions of each problem under the run's flags. Purpose, step and place in the list make the seeds differ."""
    return [Request(p.prompt_ids, derive_seed(config.seed, purpose, step, p.id, place), n, config.max_completion_length,
                    temperature, config.top_p, tuple(config.stop or ())) for place, p in enumerate(problems)]


def evaluate(fill: Fill, problems: list[Problem], config: CommonConfig, reward: Reward) -> dict[str, float]:
    """`eval/pass@1` (one sample a problem at the training temperature, the same seeds every time) and `eval/greedy`.

    `fill` samples for the groups, as in training. Any reward but the verifier gives `eval/reward` and `eval/reward_greedy`: means of that
    reward, which are not shares.
    """
    groups = [Group(problem, 1, derive_seed(config.seed, "evaluation", 0, problem.id, place), temperature)
              for temperature in (config.temperature, 0.0) for place, problem in enumerate(problems)]
    fill(groups)
    # in two calls: a reward that compares the completions of a problem must not compare the greedy one with the sampled one
    halves = groups[:len(problems)], groups[len(problems):]
    scores = torch.cat([reward([g.problem for g in half], [g.completions[0] for g in half]) for half in halves]).double()
    names = ("eval/pass@1", "eval/greedy") if isinstance(reward, VerifierReward) else ("eval/reward", "eval/reward_greedy")
    means = scores[:len(problems)].mean().item(), scores[len(problems):].mean().item()
    return {**dict(zip(names, means, strict=True)), "eval/problems": len(problems)}
