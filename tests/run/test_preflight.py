import dataclasses

import pytest
import torch
from helpers import make_policy

from common.config import CommonConfig
from common.policy.critic import Critic
from common.run.preflight import largest_microbatch


@pytest.mark.parametrize("critic", [False, True])
def test_the_trial_is_of_full_length_and_keeps_nothing(critic, random_models, tokenizer, monkeypatch):
    policy = make_policy(random_models["qwen3"], tokenizer)
    judge = Critic(policy, 0) if critic else None
    config = CommonConfig(model="x", max_completion_length=20, max_tokens_per_microbatch=100)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    random_state, seen = torch.get_rng_state(), []
    real = type(policy).logps
    monkeypatch.setattr(type(policy), "logps", lambda self, micro, entropy: seen.append(micro) or real(self, micro, entropy))
    largest_microbatch(policy, config, 12, judge)
    (micro,) = seen
    assert micro.input_ids.numel() == 100 and micro.completion_mask.sum() == 4 * 13  # though rows of 32 would leave 4
    largest_microbatch(policy, dataclasses.replace(config, max_tokens_per_microbatch=10), 12, judge)
    assert seen[1].input_ids.shape == (1, 32) and seen[1].completion_mask.sum() == 20  # one row goes whatever the budget
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    assert all(p.grad is None for p in (judge.parameters().values() if judge else ()))
