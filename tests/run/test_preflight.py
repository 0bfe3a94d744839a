import dataclasses
import re

import pytest
import torch
from helpers import make_policy, random_batch

from common.config import CommonConfig
from common.errors import UserError
from common.policy.critic import Critic
from common.policy.micro_batches import microbatches
from common.run import preflight as trial
from common.run.memory_plan import make_plan
from common.run.model_shape import Shape
from common.run.preflight import largest_microbatch, preflight


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


@pytest.fixture
def a_full_card(random_models, tokenizer, monkeypatch):
    """A policy that believes that it is on a card, and a trial that runs out of memory as long as `fits(policy, config)` is not true."""
    policy = make_policy(random_models["qwen3"], tokenizer)

    def make(fits, free=10**9, **flags):
        config = CommonConfig(model="x", max_tokens_per_microbatch=4096, **flags)
        tried = []

        def microbatch(policy, config, prompt_length, critic):
            tried.append((config.max_tokens_per_microbatch, policy.checkpointed))
            parameter = next(iter(policy.parameters_of().values()))
            parameter.grad = torch.ones_like(parameter)
            if not fits(policy, config):
                raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(policy, "device", torch.device("cuda"))
        for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda: 0)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 10**9)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 24 * 10**9))
        monkeypatch.setattr(torch, "empty", lambda *_, real=torch.empty, **__: real(1))
        monkeypatch.setattr(trial, "largest_microbatch", microbatch)
        return policy, config, tried

    return make


class Sleeper:
    def sleep(self):
        pass


PROBLEMS = [type("Problem", (), {"prompt_ids": (1, 2)})]


def test_a_trial_that_runs_out_of_memory_goes_on_with_the_next_option(a_full_card, capsys):
    policy, config, tried = a_full_card(lambda policy, config: config.max_tokens_per_microbatch <= 1024)
    preflight(Sleeper(), policy, config, PROBLEMS)
    assert tried == [(4096, 0), (4096, 2), (2048, 2), (1024, 2)]
    assert config.derived == {"gradient_checkpointing": True, "max_tokens_per_microbatch": 1024}
    assert "going on with --max_tokens_per_microbatch 1024" in capsys.readouterr().out
    policy, config, tried = a_full_card(lambda policy, config: policy.checkpointed == 2)
    policy.checkpoint(1)
    preflight(Sleeper(), policy, config, PROBLEMS)
    assert tried == [(4096, 1), (4096, 2)] and config.max_tokens_per_microbatch == 4096


def test_the_trial_has_the_gradients_of_an_earlier_microbatch(a_full_card, capsys, monkeypatch):
    policy, config, _ = a_full_card(lambda policy, config: True)
    seen = []
    monkeypatch.setattr(trial, "largest_microbatch", lambda policy, *_: seen.extend(p.grad for p in policy.parameters_of().values()))
    preflight(Sleeper(), policy, config, PROBLEMS)
    assert seen and all(not gradient.any() for gradient in seen)


@pytest.mark.parametrize("of_base", [0, 600_000_000])
def test_the_figures_name_what_is_whose(of_base, a_full_card, capsys, monkeypatch):
    policy, config, _ = a_full_card(lambda policy, config: True)
    policy.others_bytes, policy.shared_bytes = 700_000_000, of_base
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 900_000_000)
    preflight(Sleeper(), policy, config, PROBLEMS)
    said = "0.6 GB of base, which the sampler holds too, 0.2 of adapters" if of_base else "0.2 GB of base and adapters"
    assert f"takes 0.1 GB beside {said}, optimiser's state and gradients; 1.0 GB of the card stay free" in capsys.readouterr().out


def test_keys_and_values_that_have_no_room_are_named_before_anything_is_sampled(a_full_card, monkeypatch):
    """As when the plan counted one base and there are two."""
    shapes = []
    monkeypatch.setattr(trial, "shape_of", lambda *_: Shape(10**9, 9 * 10**8, 10**7, 10**7, 24, 2048, 10**5, 3e5))
    monkeypatch.setattr(trial, "make_plan", lambda config, shape, *rest: shapes.append(shape) or make_plan(config, shape, *rest))
    policy, config, tried = a_full_card(lambda policy, config: True, free=2 * 10**9, engine="vllm")
    config.planned = {"cache_bytes": 3 * 10**9}
    with pytest.raises(UserError, match=r"2.0 GB are free, and sampling needs 3.0 GB for keys and values") as error:
        preflight(Sleeper(), policy, config, PROBLEMS)
    assert "base in the sampler" in str(error.value)
    assert re.search(r"fits, with .*\n.*--vllm_gpu_memory_utilization 0\.", str(error.value))
    assert not tried and not shapes[0].shared
    config.planned = {"cache_bytes": 10**9}
    preflight(Sleeper(), policy, config, PROBLEMS)
    assert tried
    config.planned, config.vllm_enable_sleep_mode = {"cache_bytes": 3 * 10**9}, False  # they have been there since vLLM's start
    preflight(Sleeper(), policy, config, PROBLEMS)


def test_flags_that_were_typed_stay_and_then_the_plan_is_shown(a_full_card, monkeypatch):
    monkeypatch.setattr(trial, "make_plan", lambda *_: "the plan")
    monkeypatch.setattr(trial, "shape_of", lambda *_: Shape(10**9, 9 * 10**8, 10**7, 10**7, 24, 2048, 10**5, 3e5))
    monkeypatch.setattr(trial, "table", lambda *_: ["the table"])
    policy, config, tried = a_full_card(lambda policy, config: False)
    config.given = {"max_tokens_per_microbatch", "gradient_checkpointing"}
    with pytest.raises(UserError, match="out of memory in a trial at full length with micro-batches of 4096 tokens"):
        preflight(Sleeper(), policy, config, PROBLEMS)
    assert tried == [(4096, 0)]
    assert all(p.grad is None for p in policy.parameters_of().values())


@pytest.mark.parametrize("layers", [0, 1, 2, 9])
def test_checkpointing_some_layers_changes_no_gradient(layers, random_models, tokenizer):
    gradients = []
    for count in (0, layers):
        policy = make_policy(random_models["qwen3"], tokenizer)
        policy.checkpoint(count)
        assert policy.checkpointed == min(count, 2)
        (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x):
            loss = policy.logps(micro)[0].sum()
        loss.backward()
        gradients.append((sum(kept), [p.grad for p in policy.parameters_of().values()]))
    (whole, plain), (less, ours) = gradients
    assert all(torch.equal(x, y) for x, y in zip(plain, ours, strict=True))
    assert (less < whole) == (layers > 0)
