"""The check that the sampler samples from the policy that is trained, against samplers that are wrong in known ways."""

import dataclasses

import pytest
import torch
from helpers import make_policy

from common.errors import UserError
from common.rollout.parity import allowed, check_parity, probes, prompts_and_completions
from common.rollout.transformers_engine import TransformersEngine

PROMPTS = [(5, 6, 7, 8), (9, 10, 11), (12, 13), (14, 15, 16, 17, 18)]


class Faulty(TransformersEngine):
    """A sampler with one fault: its kernels round (`noise`, nats), it lost the adapter, or it keeps that of an older sync."""

    def __init__(self, policy, noise=0.0, lost=False, stale=False):
        super().__init__(PROMPTS)
        self.noise, self.lost, self.stale, self.kept = noise, lost, stale, None
        self.random = torch.Generator().manual_seed(0)
        self.connect(policy)

    def sync(self):
        super().sync()
        if self.kept is None or not self.stale:
            self.kept = {p: p.detach().clone() for p in self.policy.parameters_of().values()}

    def generate(self, requests):
        now = {p: p.detach().clone() for p in self.kept}
        with torch.no_grad():
            for parameter, value in self.kept.items():
                parameter.copy_(torch.zeros_like(value) if self.lost else value)
            self.weights = self.policy.merged_weights()
            groups = super().generate(requests)
            for parameter, value in now.items():
                parameter.copy_(value)
        return [[dataclasses.replace(c, logps=[x + self.noise * torch.randn((), generator=self.random).item() for x in c.logps])
                 for c in group] for group in groups]


@pytest.fixture(params=["float32", "bfloat16"])
def policy(request, random_models, tokenizer):
    return make_policy(random_models["qwen3"], tokenizer, noise=0.0, dtype=request.param)


REQUESTS = probes(PROMPTS, 1.0)


def test_the_right_policy_passes_and_is_left_as_it_was(policy):
    before = {name: p.clone() for name, p in policy.parameters_of().items()}
    text = check_parity(Faulty(policy), policy, REQUESTS)
    assert "parity: |sampler - trainer|" in text and "own rounding" not in text
    assert all(torch.equal(p, before[name]) for name, p in policy.parameters_of().items())


def test_kernels_that_round_are_warned_of_in_bfloat16_and_stop_a_run_in_float32(policy):
    """0.05 nats on average, as 30-layer models have in bfloat16; a limit of 0.02 refused them."""
    if policy.dtype == torch.float32:
        with pytest.raises(UserError, match="does not sample from the policy"):
            check_parity(Faulty(policy, noise=1e-3), policy, REQUESTS)
        return
    quiet = allowed(policy, prompts_and_completions(REQUESTS, Faulty(policy).generate(REQUESTS)))
    text = check_parity(Faulty(policy, noise=2 * quiet), policy, REQUESTS)
    assert "sampler and trainer differ by more than this model's own rounding explains" in text
    assert f"usual here: up to {quiet:.1g}"[:20] in text  # both numbers are told
    with pytest.raises(UserError, match="does not sample from the policy"):
        check_parity(Faulty(policy, noise=1.0), policy, REQUESTS)


@pytest.mark.parametrize("fault", ["lost", "stale"])
@pytest.mark.parametrize("trained", [0.0, 0.1])
def test_a_lost_or_stale_adapter_stops_the_run(policy, fault, trained):
    """Also in a run that goes on from an adapter that matters already."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.parameters_of().items():
            if "lora_B" in name:
                parameter.copy_(trained * torch.randn(parameter.shape, generator=generator))
    with pytest.raises(UserError, match="does not sample from the policy"):
        check_parity(Faulty(policy, **{fault: True}), policy, REQUESTS)


def test_the_sampler_gives_up_its_memory_before_the_trainer_computes(policy):
    order = []
    engine = Faulty(policy)
    for name in ("sync", "generate", "sleep"):
        real = getattr(engine, name)
        setattr(engine, name, lambda *inputs, name=name, real=real: order.append(name) or real(*inputs))
    check_parity(engine, policy, REQUESTS)
    assert order == ["sync", "generate", "sleep"] * 2 + ["sync"]
