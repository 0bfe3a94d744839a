"""From completions to rewards, and from held-out problems to pass@1. One rule for both: cut off at the length limit is wrong."""
from __future__ import annotations

import torch
from torch import Tensor

from common.config import CommonConfig, SamplingConfig
from common.data import Problem
from common.rollout import Completion, Engine, Request, derive_seed
from common.verify import is_correct


def score(problems: list[Problem], completions: list[Completion]) -> Tensor:
    """(B,) float32: 1 where completion i ended by itself and its answer is that of problems[i], else 0."""
    return torch.tensor([float(c.finish_reason == "stop" and is_correct(c.text, p.answer))
                         for p, c in zip(problems, completions, strict=True)])


def make_requests(problems: list[Problem], config: SamplingConfig, purpose: str, step: int, n: int, temperature: float) -> list[Request]:
    """`n` completions of each problem under the run's sampling flags; the seed tells purpose, step and place apart."""
    return [Request(p.prompt_ids, derive_seed(config.seed, purpose, step, p.id, place), n, config.max_completion_length,
                    temperature, config.top_p, tuple(config.stop or ())) for place, p in enumerate(problems)]


def evaluate(engine: Engine, problems: list[Problem], config: CommonConfig) -> dict[str, float]:
    """`eval/pass@1` (one sample a problem at the training temperature, the same seeds every time) and `eval/greedy`."""
    sampled = make_requests(problems, config, "evaluation", 0, 1, config.temperature)
    greedy = make_requests(problems, config, "evaluation", 0, 1, 0.0)
    completions = [group[0] for group in engine.generate(sampled + greedy)]
    scores = score(problems + problems, completions).double()
    return {"eval/pass@1": scores[:len(problems)].mean().item(), "eval/greedy": scores[len(problems):].mean().item()}
