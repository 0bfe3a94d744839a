import json
from dataclasses import replace
from math import exp

import pytest
import torch
from helpers import completions, documented_flag_sets, metrics, run
from torch.testing import assert_close

import train_grpo
from common.errors import UserError
from common.launch import parse_config
from common.policy.loss import aggregate, loss_divisor
from common.run.saved_config import read_config
from train_grpo import Config, clipped_tokens, group_advantages, grpo_token_loss, overlong_penalty

CLIP = {"epsilon": 0.2, "epsilon_high": 0.2}


def test_docstring_numbers():
    rewards, groups = torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long)
    assert_close(group_advantages(rewards, groups), torch.tensor([1.732, -0.577, -0.577, -0.577]), atol=1e-3, rtol=0)
    assert group_advantages(rewards, groups, scale_rewards="none").tolist() == [0.75, -0.25, -0.25, -0.25]
    assert overlong_penalty(torch.tensor([768, 800, 1024]), 1024, 256).tolist() == [0, -0.125, -1]
    assert overlong_penalty(torch.tensor([5, 6]), 6, 0).tolist() == [0, 0]


@pytest.mark.parametrize("size", [2, 3, 7, 8, 64])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 0.7, -0.3])
def test_equal_rewards_give_exactly_zero(size, value):
    """Not nearly: a mean of equal floats may round, and what is not 0 costs a pass and is blown up by the division."""
    rewards, groups = torch.full((size,), value), torch.zeros(size, dtype=torch.long)
    for options in ({}, {"scale_rewards": "none"}, {"scale_rewards": "none", "leave_one_out": True}):
        assert torch.equal(group_advantages(rewards, groups, **options), torch.zeros(size))


def test_the_scale_of_advantages_is_that_of_group_batch_or_mean():
    rewards, groups = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0]), torch.tensor([0] * 4 + [1] * 4)
    maxrl = [3, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1]
    assert_close(group_advantages(rewards, groups, scale_rewards="mean"), torch.tensor(maxrl))
    batch = [1.499997, *[-0.499999] * 3, *[0.499999] * 3, -1.499997]
    assert_close(group_advantages(rewards, groups, scale_rewards="batch"), torch.tensor(batch), atol=1e-6, rtol=0)
    assert_close(group_advantages(rewards[:4], groups[:4], scale_rewards="batch"), group_advantages(rewards[:4], groups[:4]))
    half = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 0])
    assert_close(group_advantages(half, groups, scale_rewards="mean"), 2 * group_advantages(half, groups, scale_rewards="none"))
    with pytest.raises(UserError, match="rewards of 0 and 1"):
        group_advantages(torch.tensor([1.0, 0.5]), groups[:2], scale_rewards="mean")


@pytest.mark.parametrize(
    "words, value",
    [
        ([], "group"),
        (["--scale_rewards"], "group"),
        (["--scale_rewards", "true"], "group"),
        (["--scale_rewards", "no"], "none"),
        (["--scale_rewards=False"], "none"),
        (["--no_scale_rewards"], "none"),
        (["--no-scale-rewards"], "none"),
        (["--scale-rewards", "mean"], "mean"),
        (["--scale_rewards", "batch"], "batch"),
    ],
)
def test_the_scale_was_a_truth_value_once(words, value, tmp_path):
    assert parse_config(Config, words, "train_grpo").scale_rewards == value
    with pytest.raises(UserError, match="the choices are group, batch, mean, none"):
        parse_config(Config, ["--scale_rewards", "median"], "train_grpo")
    assert Config(scale_rewards=False) == Config(scale_rewards="none") and Config(scale_rewards=True) == Config()
    for old, new in ((True, "group"), (False, "none")):
        (tmp_path / "config.json").write_text(json.dumps({"script": "train_grpo", "flags": {"scale_rewards": old}}))
        assert read_config(tmp_path / "config.json", Config).flags == {"scale_rewards": new}


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others():
    rewards, groups = torch.tensor([1.0, 0, 3, 2, 5, 5]), torch.tensor([0, 0, 0, 1, 1, 2])
    expected = [1 - 1.5, 0 - 2.0, 3 - 0.5, 2 - 5.0, 5 - 2.0, 0]
    assert_close(group_advantages(rewards, groups, scale_rewards="none", leave_one_out=True), torch.tensor(expected))
    centred = group_advantages(rewards, groups, scale_rewards="none")
    assert_close(torch.tensor(expected[:3]), centred[:3] * 3 / 2)


def test_advantages_do_not_depend_on_the_order_of_the_rows():
    rewards, groups = torch.rand(12, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2] * 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert_close(group_advantages(rewards[order], groups[order]), group_advantages(rewards, groups)[order])


def test_on_policy_the_gradient_is_reinforce_and_nothing_is_clipped():
    logps = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    advantages = torch.tensor([1.5, -0.5])
    loss = grpo_token_loss(logps, logps.detach(), advantages, **CLIP)
    loss.sum().backward()
    assert_close(logps.grad, -advantages[:, None].expand(2, 2))
    assert not clipped_tokens(logps, logps.detach(), advantages, **CLIP).any()


def test_clipped_tokens_are_those_without_gradient():
    generator = torch.Generator().manual_seed(0)
    logps = torch.randn(6, 50, generator=generator).mul(0.5).requires_grad_()
    advantages = torch.tensor([1.0, -1, 0.5, -2, 1, -1])
    clip = {"epsilon": 0.2, "epsilon_high": 0.28}
    grpo_token_loss(logps, torch.zeros(6, 50), advantages, **clip).sum().backward()
    clipped = clipped_tokens(logps, torch.zeros(6, 50), advantages, **clip)
    assert torch.equal(clipped, logps.grad == 0) and 0 < clipped.sum() < clipped.numel()


def test_dr_grpo_is_grpo_without_the_two_divisions():
    rewards, groups = torch.tensor([1.0, 0, 0, 1, 1, 1, 1, 0]), torch.tensor([0] * 4 + [1] * 4)
    mask = torch.arange(5)[None] < torch.tensor([5, 1, 2, 3, 4, 5, 1, 2])[:, None]
    logps = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    plain = group_advantages(rewards, groups, scale_rewards="none")
    std = torch.stack([rewards[groups == g].std(correction=0) for g in (0, 1)])[groups]
    assert_close(group_advantages(rewards, groups), plain / (std + 1e-6))
    loss = grpo_token_loss(logps, logps, plain, **CLIP)
    dr = aggregate(loss, mask, "constant", loss_divisor(mask, "constant", 5))
    assert_close(dr, torch.where(mask, -plain[:, None], 0.0).sum() / (8 * 5))


def test_what_makes_no_sense_for_this_algorithm_is_refused():
    for flags, message in [
        ({"num_generations": 1}, "give 2 or more"),
        ({"overlong_buffer": 2000}, "less than the 1024"),
        ({"epsilon": 1.5}, "0.2 and 0.28"),
        ({"scale_rewards": "mean", "overlong_buffer": 4}, "leave one of the two out"),
        ({"importance_cap": 0.0, "importance_mode": "sequence"}, "do nothing with --importance_cap 0"),
        ({"importance_floor": 2.5}, "at most the cap"),
    ]:
        with pytest.raises(UserError, match=message):
            Config(**flags).check()


@pytest.mark.parametrize("name", documented_flag_sets("grpo"))
def test_every_documented_flag_set_trains(name, tmp_path, monkeypatch):
    assert len(documented_flag_sets("grpo")) == 6
    flags = [*documented_flag_sets("grpo")[name], "--num_generations", "8", "--num_minibatches", "1", "--max_steps", "2"]
    assert run("train_grpo", tmp_path / "run", *flags, "--eval_steps", "0", monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")
    assert len(rows) == 2 and all(row["grad_norm"] > 0 for row in rows)


def errors_of(place, length):
    """Of the log-probs of a completion, by its place in the group: two of five tokens get a weight beyond 0.5 to 2."""
    return [(0.9, -0.9, 0.1, 0.0, 0.05)[(place + j) % 5] for j in range(length)]


@pytest.mark.parametrize("mode", ["token", "sequence"])
@pytest.mark.parametrize("bound", ["truncate", "mask"])
def test_importance_weights_of_every_mode_reach_the_update(mode, bound, finished, tmp_path, monkeypatch):
    """The sampler's log-probs are falsified, so that weights lie beyond both bounds; what is kept follows from how they were falsified."""
    batches, real, make = [], train_grpo.sample, train_grpo.make_batch

    def falsified(groups, **options):
        real(groups, **options)
        for group in groups:
            for i, one in enumerate(group.completions):
                errors = errors_of(i, len(one.ids))
                group.completions[i] = replace(one, logps=[x - error for x, error in zip(one.logps, errors, strict=True)])
        return [completion for group in groups for completion in group.completions]

    monkeypatch.setattr(train_grpo, "sample", falsified)
    monkeypatch.setattr(train_grpo, "make_batch", lambda *parts: batches.append(make(*parts)) or batches[-1])
    steps = ("--max_steps", "3", "--eval_steps", "0")
    flags = ("--importance_mode", mode, "--importance_bound", bound, "--importance_floor", "0.5", "--importance_cap", "2")
    assert run("train_grpo", tmp_path / "run", *steps, *flags, monkeypatch=monkeypatch) == 0
    rows, plain = metrics(tmp_path / "run"), metrics(finished("train_grpo", *steps, "--importance_cap", "0"))
    assert plain[0]["grad_norm"] > 0 and rows[0]["grad_norm"] != pytest.approx(plain[0]["grad_norm"], rel=1e-2)
    assert rows[0]["reward"] == plain[0]["reward"] and all(row["grad_norm"] > 0 for row in rows)
    if bound == "truncate":
        assert all("sampling/importance_weights/kept" not in row for row in rows)
        return
    logged = completions(tmp_path / "run")
    for step, (row, batch) in enumerate(zip(rows, batches, strict=True)):
        kept = tokens = 0
        for i, (one, line) in enumerate(zip(batch.completions, [x for x in logged if x["step"] == step + 1], strict=True)):
            if line["advantage"]:
                errors = errors_of(i % 4, len(one.ids))
                sums = [sum(errors)] * len(errors) if mode == "sequence" else errors
                kept, tokens = kept + sum(0.5 <= exp(x) <= 2 for x in sums), tokens + len(sums)
        assert row["sampling/importance_weights/kept"] == pytest.approx(kept / tokens, abs=1e-6) and 0 < kept < tokens


def test_weights_that_are_all_cut_to_one_number_scale_the_gradient(finished):
    steps = ("--max_steps", "1", "--eval_steps", "0")
    (plain,) = metrics(finished("train_grpo", *steps, "--importance_cap", "0"))
    (half,) = metrics(finished("train_grpo", *steps, "--importance_cap", "0.5"))
    assert half["grad_norm"] == pytest.approx(plain["grad_norm"] / 2, rel=1e-4)
    assert "sampling/importance_weights/kept" not in half
