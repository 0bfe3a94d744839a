import shutil

import pytest
import torch
from helpers import metrics, run
from safetensors.torch import load_file

from common.config import CommonConfig
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.5, 1, 0.904508, 0.654508, 0.345492, 0.095492]),
    ],
)
def test_learning_rate_schedules(kind, expected):
    config = CommonConfig(learning_rate=1.0, warmup_steps=2, max_steps=6, lr_scheduler_type=kind)
    assert [learning_rate_at(step, config) for step in range(1, 7)] == pytest.approx(expected, abs=1e-6)


def test_no_step_is_wasted_without_a_warm_up():
    assert learning_rate_at(1, CommonConfig(learning_rate=1.0, warmup_steps=0, lr_scheduler_type="linear", max_steps=4)) == pytest.approx(
        0.8
    )


def parameters():
    return {name: torch.nn.Parameter(torch.ones(2)) for name in "ab"}


def test_the_norm_is_that_before_clipping_and_gradients_are_clipped():
    named = parameters()
    optimizer = make_optimizer(named, 0.1)
    (named["a"].sum() * 3 + named["b"].sum() * 4).backward()
    assert clip_gradients(optimizer, 1.0, 1).item() == pytest.approx((2 * 9 + 2 * 16) ** 0.5)
    assert torch.cat([p.grad for p in named.values()]).norm().item() == pytest.approx(1.0, abs=1e-5)
    take_step(optimizer, 0.5)
    assert named["a"].grad is None and named["a"][0].item() == pytest.approx(0.5)  # Adam's first step is the learning rate


def test_a_lost_gradient_stops_the_run():
    named = parameters()
    optimizer = make_optimizer(named, 0.1)
    named["a"].sum().backward()
    with pytest.raises(RuntimeError, match="1 of 2 parameters got no gradient"):
        clip_gradients(optimizer, 1.0, 1)


def test_a_pass_that_leaves_no_gradient_anywhere_stops_the_run():
    optimizer = make_optimizer(parameters(), 0.1)
    with pytest.raises(RuntimeError, match="2 of 2 parameters got no gradient"):
        clip_gradients(optimizer, 1.0, 1)
    assert clip_gradients(optimizer, 1.0, 0) == 0


def test_a_step_in_which_nothing_needed_a_pass_is_a_step_with_zero_gradients():
    steps = []
    for zero in (False, True):
        named = parameters()
        optimizer = make_optimizer(named, 0.1)
        sum(p.sum() for p in named.values()).backward()
        clip_gradients(optimizer, 1.0, 1)
        take_step(optimizer, 0.1)
        if zero:
            (sum(p.sum() for p in named.values()) * 0).backward()
        assert clip_gradients(optimizer, 1.0, int(zero)) == 0
        take_step(optimizer, 0.1)
        steps.append(torch.cat([p.detach() for p in named.values()]))
    assert torch.equal(*steps)


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_optimisers_with_state_in_eight_bits_train_and_resume(optim, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    flags = ["--optim", optim, "--save_total_limit", "0", "--eval_steps", "0", "--max_steps", "2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run("train_grpo", whole, *flags, monkeypatch=monkeypatch) == 0
    shutil.copytree(whole, resumed)
    assert run("train_grpo", resumed, "--resume_from_checkpoint", str(resumed / "checkpoint-1"), monkeypatch=monkeypatch, quick=[]) == 0
    assert metrics(resumed) == metrics(whole)
    first, second = (load_file(folder / "checkpoint-2" / "adapter_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)
    state = torch.load(resumed / "checkpoint-2" / "trainer_state.pt", weights_only=True)["optimizer"]["state"]
    assert any(value["__bnb_optimizer_quant_state__"]["state1"].dtype == torch.uint8 for value in state.values())
