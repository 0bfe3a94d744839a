import copy
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


def learn(named, optimizer, scale):
    """A step of the optimiser. scale: of the gradient; None: nothing needed a pass. The norm."""
    if scale is not None:
        (sum(p.sum() for p in named.values()) * scale).backward()
    norm = clip_gradients(optimizer, 1.0, int(scale is not None))
    take_step(optimizer, 0.1)
    return norm


@pytest.mark.parametrize("empty", [None, 0.0], ids=["no pass", "a pass that gives zeros"])
@pytest.mark.parametrize("learnt", [0, 2], ids=["at the start", "with momentum"])
def test_a_step_that_learns_nothing_changes_nothing(empty, learnt):
    named = parameters()
    optimizer = make_optimizer(named, 0.1)
    for _ in range(learnt):
        learn(named, optimizer, 1.0)
    weights, state = copy.deepcopy(named), copy.deepcopy(optimizer.state_dict())
    for _ in range(3):
        norm = learn(named, optimizer, empty)
        assert norm == 0 and norm.device == named["a"].device
    assert all(torch.equal(named[name], weights[name]) for name in named)
    assert optimizer.state_dict()["state"].keys() == state["state"].keys()
    for key, own in state["state"].items():
        assert all(torch.equal(optimizer.state_dict()["state"][key][name], value) for name, value in own.items())
    # what comes after is as if the empty steps had not been there
    other = parameters()
    other_optimizer = make_optimizer(other, 0.1)
    for _ in range(learnt):
        learn(other, other_optimizer, 1.0)
    for own, its in ((named, optimizer), (other, other_optimizer)):
        assert learn(own, its, 3.0) > 0
    assert all(torch.equal(named[name], other[name]) for name in named) and not torch.equal(named["a"], weights["a"])


@pytest.mark.parametrize("script", ["train_grpo", "train_nft", "train_vineppo"])  # the critic of PPO always learns
def test_a_run_that_learns_nothing_ends_with_the_adapter_it_began_with(script, tmp_path, monkeypatch):
    (tmp_path / "reward.py").write_text("def never(completion, problem):\n    return 0.0\n")
    flags = ["--reward", f"{tmp_path / 'reward.py'}:never", "--num_minibatches", "2", "--eval_steps", "0", "--warmup_steps", "2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    again = str(resumed / "checkpoint-1")
    assert run(script, whole, *flags, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    shutil.copytree(whole, resumed)
    assert run(script, resumed, "--resume_from_checkpoint", again, *flags[:2], monkeypatch=monkeypatch, quick=[]) == 0
    rows = metrics(whole)
    assert [row["grad_norm"] for row in rows] == [0, 0] and rows[1]["learning_rate"] == 2 * rows[0]["learning_rate"]
    first, second = (load_file(whole / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (1, 2))
    assert all(torch.equal(first[key], second[key]) for key in first) and not any(v.any() for key, v in first.items() if "lora_B" in key)
    assert metrics(resumed) == rows


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
