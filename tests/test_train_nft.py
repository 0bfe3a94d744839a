import json
import math

import pytest
import torch
from helpers import documented_flag_sets, make_policy, metrics, random_batch, run, save_random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.testing import assert_close

from common.errors import UserError
from common.policy.loss import aggregate, loss_divisor
from common.policy.micro_batches import microbatches
from train_grpo import group_advantages, grpo_token_loss
from train_nft import (
    Config,
    completion_old_logps,
    floored_tokens,
    implied_advantages,
    negative_ratio,
    nft_token_loss,
    prompt_weights,
    success_rates,
)

WEIGHTS = ["1-r", "sqrt", "none"]
RIGHT, WRONG = torch.tensor([True]), torch.tensor([False])


def loss_and_slope(ratio, correct, rate, **options):
    """Of one token, in float64."""
    logps = torch.tensor([[math.log(ratio)]], dtype=torch.double, requires_grad=True)
    loss = nft_token_loss(logps, torch.zeros(1, 1), correct, torch.tensor([rate], dtype=torch.double), **options)
    loss.sum().backward()
    return loss.item(), logps.grad.item()


def test_docstring_numbers():
    correct, groups = torch.tensor([True, False, False, False]), torch.zeros(4, dtype=torch.long)
    rate = success_rates(correct, groups)
    assert rate.tolist() == [0.25] * 4
    for weight, expected in [("1-r", 0.75), ("sqrt", 3**0.5), ("none", 1.0)]:
        assert_close(prompt_weights(rate, weight), torch.full((4,), expected), atol=1e-5, rtol=0)
    assert implied_advantages(correct, rate, neg_weight=1.0, prompt_weight="1-r").tolist() == [0.75, -0.25, -0.25, -0.25]
    ratios = negative_ratio(torch.tensor([[0.5, 1, 1.25, 2.5]]), torch.tensor([0.5]))
    assert ratios.tolist() == [[1.5, 1, 0.75, -0.5]]
    assert loss_and_slope(0.8, WRONG, 0.5, prompt_weight="none") == pytest.approx((-0.182322, 2 / 3), abs=1e-6)
    assert loss_and_slope(1.25, WRONG, 0.5, prompt_weight="none") == pytest.approx((0, 1.25), abs=1e-6)
    old = completion_old_logps(torch.tensor([[-1.0, -2]]), torch.tensor([[-1.5, -2.25]]), torch.ones(1, 2, dtype=torch.bool))
    assert old.tolist() == [[-1.75, -2.75]]


def test_success_rates_of_ragged_and_interleaved_groups():
    correct = torch.tensor([True, False, True, True, False, False, True])
    groups = torch.tensor([9, 4, 9, 4, 4, 7, 9])
    assert_close(success_rates(correct, groups), torch.tensor([1, 1 / 3, 1, 1 / 3, 1 / 3, 0, 1]))


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_the_implicit_negative_policy_sums_to_one_over_the_vocabulary(vocabulary, rate, seed):
    """Even where it takes a token below zero: that is what the floor is for."""
    generator = torch.Generator().manual_seed(seed)
    old, new = torch.randn(2, 3, vocabulary, generator=generator, dtype=torch.double).mul(2).softmax(-1)
    negative = old * negative_ratio(new / old, torch.full((3,), rate, dtype=torch.double))
    assert_close(negative.sum(-1), torch.ones(3, dtype=torch.double), atol=1e-9, rtol=0)


def test_the_implicit_negative_policy_of_a_mixture_is_its_other_half():
    """Vector 4.4, and Bayes: old = r positive + (1 - r) negative, so that with the positive policy it gives the negative one."""
    old, new = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.8, 0.1, 0.1]])
    ratio = negative_ratio(new / old, torch.tensor([0.4]))
    assert_close(ratio, torch.tensor([[0.6, 1.444444, 1.333333]]))
    assert_close(old * ratio, torch.tensor([[0.3, 0.433333, 0.266667]]))
    positive, negative = torch.rand(2, 1, 7, generator=torch.Generator().manual_seed(0)).softmax(-1)
    old = 0.3 * positive + 0.7 * negative
    assert_close(old * negative_ratio(positive / old, torch.tensor([0.3])), negative)


@pytest.mark.parametrize("clip", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("rate", [0.125, 0.5, 0.875])
def test_the_slope_is_that_of_the_argument_over_the_floored_value(rate, clip):
    for ratio in (0.01, 0.5, 0.9, 1.0, 1.1, 1.6, 2.5, 30.0):
        x = (1 - rate * ratio) / (1 - rate)
        loss, slope = loss_and_slope(ratio, WRONG, rate, clip=clip, prompt_weight="none")
        assert loss == pytest.approx(-math.log(max(x, clip)), abs=1e-6)
        assert slope == pytest.approx(rate * ratio / (1 - rate) / max(x, clip), rel=1e-6)
        if x > clip + 1e-3:  # above the floor it is the derivative
            above, below = (loss_and_slope(ratio * math.exp(h), WRONG, rate, clip=clip, prompt_weight="none")[0] for h in (1e-5, -1e-5))
            assert slope == pytest.approx((above - below) / 2e-5, rel=1e-4)
        assert loss_and_slope(ratio, RIGHT, rate, clip=clip, prompt_weight="none") == pytest.approx((-math.log(ratio), -1), abs=1e-6)
        logps = torch.tensor([[math.log(ratio)]])
        floored = floored_tokens(logps, torch.zeros(1, 1), WRONG, torch.tensor([rate]), clip=clip)
        assert floored.item() == (x < clip) and not floored_tokens(logps, torch.zeros(1, 1), RIGHT, torch.tensor([rate]), clip=clip)


def test_ratios_beyond_all_bounds_stay_finite_and_a_floored_token_keeps_its_value():
    for log_ratio in (-500.0, 9.9, 10.1, 500.0):
        logps = torch.full((2, 1), log_ratio, requires_grad=True)
        loss = nft_token_loss(logps, torch.zeros(2, 1), torch.tensor([True, False]), torch.tensor([0.96, 0.96]), clip=0.1)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(logps.grad).all()
        assert (logps.grad == 0).all() == (log_ratio > 10)
        if log_ratio > 0:  # x is about -500,000 here: the floor must not drown in its rounding
            assert loss[1].item() == pytest.approx(-0.04 * math.log(0.1))


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("neg_weight", [0.0, 0.3, 1.0])
def test_implied_advantages_are_minus_the_slope_on_policy(weight, neg_weight):
    correct, rate = torch.tensor([True, False] * 5), torch.tensor([0.0, 0.0, 0.01, 0.01, 0.25, 0.25, 0.99, 0.99, 1.0, 1.0])
    logps = torch.full((10, 1), -1.0, requires_grad=True)
    options = {"neg_weight": neg_weight, "prompt_weight": weight}
    nft_token_loss(logps, logps.detach(), correct, rate, **options).sum().backward()
    advantages = implied_advantages(correct, rate, **options)
    assert_close(-logps.grad[:, 0], advantages)
    assert (advantages[[0, 1, 8, 9]] == 0).all() and (advantages[[2, 4, 6]] > 0).all()
    assert ((advantages[[3, 5, 7]] < 0) == (neg_weight > 0)).all() and advantages.min() >= -49.001 and advantages.max() < 7.001


def test_groups_all_right_or_all_wrong_have_neither_loss_nor_slope_wherever_the_policy_went():
    logps = torch.tensor([[0.5, -0.5], [0.5, -0.5]], requires_grad=True)
    for weight in WEIGHTS:
        loss = nft_token_loss(logps, torch.zeros(2, 2), torch.tensor([True, False]), torch.tensor([1.0, 0.0]), prompt_weight=weight)
        loss.sum().backward()
        assert (loss == 0).all() and (logps.grad == 0).all()


def test_between_rft_and_nft_the_loss_is_linear_in_the_weight():
    generator = torch.Generator().manual_seed(0)
    logps, old = torch.randn(2, 6, 4, generator=generator)
    correct, rate = torch.tensor([True, False, False] * 2), torch.full((6,), 1 / 3)
    rft, half, nft = (nft_token_loss(logps, old, correct, rate, neg_weight=w, prompt_weight="none") for w in (0.0, 0.5, 1.0))
    assert_close(half, (rft + nft) / 2)
    assert_close(rft, torch.where(correct[:, None], old - logps, 0.0))  # the NLL of right completions, but for a constant
    assert not torch.equal(rft, nft)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"])
@pytest.mark.parametrize("weight", ["sqrt", "1-r"])
def test_on_policy_the_parameter_gradients_are_grpos_and_dr_grpos(weight, mode, tmp_path, tokenizer):
    """The whole adapter of a real model, three groups with 1, 2 and 3 of 4 right: propositions 4.1 and 4.2."""
    policy = make_policy(save_random_model(tmp_path, "qwen2", tokenizer), tokenizer)
    lengths = torch.randint(1, 12, (12,), generator=torch.Generator().manual_seed(2)).tolist()
    batch = random_batch(tokenizer, [(4, length) for length in lengths])
    groups = torch.arange(12) // 4
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0])
    rate = success_rates(rewards > 0.5, groups)
    advantages = group_advantages(rewards, groups, scale_rewards="group" if weight == "sqrt" else "none")
    divisor = loss_divisor(batch.loss_mask(), mode, 12)

    def gradients(token_loss):
        for parameter in policy.parameters_of("default").values():
            parameter.grad = None
        for micro in microbatches(batch, torch.arange(12), 60, policy):
            logps, _ = policy.logps(micro)
            aggregate(token_loss(micro, logps, logps.detach()), micro.completion_mask, mode, divisor).backward()
        return torch.cat([parameter.grad.flatten() for parameter in policy.parameters_of("default").values()])

    grpo = gradients(lambda micro, new, old: grpo_token_loss(new, old, micro.take(advantages), epsilon=0.2, epsilon_high=0.2))
    nft = gradients(lambda micro, new, old: nft_token_loss(new, old, micro.take(rewards > 0.5), micro.take(rate), prompt_weight=weight))
    assert grpo.norm() > 1e-3
    assert ((nft - grpo).norm() / grpo.norm()).item() < 1e-6
    other = gradients(lambda micro, new, old: nft_token_loss(new, old, micro.take(rewards > 0.5), micro.take(rate), prompt_weight="none"))
    assert (other - grpo).norm() / grpo.norm() > 0.1


@pytest.mark.parametrize("correct", [True, False])
def test_a_completions_own_ratio_gives_the_gradient_of_its_own_loss(correct):
    """Against the loss written out for one number per completion; padding holds NaN and counts as nothing."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 1])[:, None]
    old = torch.randn(3, 5, generator=generator, dtype=torch.double)
    logps = (old + 0.1 * torch.randn(3, 5, generator=generator, dtype=torch.double)).requires_grad_()
    padded, rate = torch.where(mask, logps, torch.nan), torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)
    right = torch.full((3,), correct)
    start = completion_old_logps(padded, old, mask)
    loss = nft_token_loss(padded, start, right, rate, clip=0.5, prompt_weight="none")
    (ours,) = torch.autograd.grad(torch.where(mask, loss, 0.0).sum(), logps)
    ratio = torch.where(mask, logps - old, 0.0).sum(1).exp()
    whole = -ratio.log() if correct else -((1 - rate * ratio) / (1 - rate)).log()
    (theirs,) = torch.autograd.grad(whole.sum(), logps)
    assert_close(ours[mask], theirs[mask])
    assert_close(loss[mask], whole[:, None].expand(3, 5)[mask])
    assert torch.equal(completion_old_logps(old, old, mask), old)  # on-policy nothing changes


def test_what_makes_no_sense_for_this_algorithm_is_refused():
    for flags, message in [
        ({"num_generations": 1}, "give 2 or more"),
        ({"neg_weight": -1.0}, "give 0"),
        ({"nft_clip": 0.0}, "above 0 and at most 1"),
        ({"nft_clip": 1.5}, "above 0 and at most 1"),
    ]:
        with pytest.raises(UserError, match=message):
            Config(**flags).check()


@pytest.mark.parametrize("name", documented_flag_sets("nft"))
def test_every_documented_flag_set_trains(name, tmp_path, monkeypatch):
    assert len(documented_flag_sets("nft")) == 6
    flags = [*documented_flag_sets("nft")[name], "--problems_per_step", "4", "--num_generations", "8", "--max_completion_length", "40"]
    flags += ["--num_minibatches", "2", "--max_steps", "2", "--eval_steps", "0"]
    assert run("train_nft", tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")
    assert len(rows) == 2 and all(row["grad_norm"] > 0 for row in rows)


def test_rewards_of_minus_one_and_one_mean_the_same_as_none_and_one(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def signed(completion, problem):\n    return 1.0 if completion.endswith(f'#### {problem.answer}') else -1.0\n"
    )
    runs = {"plain": [], "signed": ["--reward", f"{tmp_path / 'mine.py'}:signed"]}
    told = {}
    for name, flags in runs.items():
        assert run("train_nft", tmp_path / name, "--max_steps", "2", "--eval_steps", "0", *flags, monkeypatch=monkeypatch) == 0
        told[name] = [json.loads(line) for line in (tmp_path / name / "completions.jsonl").read_text().splitlines()]
    assert [row["advantage"] for row in told["plain"]] == [row["advantage"] for row in told["signed"]]
    assert any(row["advantage"] for row in told["plain"]) and min(row["reward"] for row in told["signed"]) == -1
    adapters = [load_file(tmp_path / name / "checkpoint-2" / "adapter_model.safetensors") for name in runs]
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])


def test_with_the_roots_weight_and_one_update_per_batch_it_is_grpo_token_for_token(tmp_path, monkeypatch):
    """For as long as the adapters differ by rounding alone, which here is all the way."""
    steps = 6
    # the default batch: where a weight's gradient is nearly nothing Adam makes a full step of its rounding, the more the fewer completions
    flags = [
        "--max_steps",
        str(steps),
        "--problems_per_step",
        "16",
        "--num_generations",
        "8",
        "--save_total_limit",
        "0",
        "--eval_steps",
        "0",
    ]
    assert run("train_grpo", tmp_path / "grpo", *flags, monkeypatch=monkeypatch) == 0
    assert run("train_nft", tmp_path / "nft", "--prompt_weight", "sqrt", *flags, monkeypatch=monkeypatch) == 0
    told = [[json.loads(line) for line in (tmp_path / name / "completions.jsonl").read_text().splitlines()] for name in ("grpo", "nft")]
    compared = 0
    for step in range(1, steps + 1):
        ours, theirs = ([(row["problem"], row["completion"]) for row in rows if row["step"] == step] for rows in told)
        assert ours == theirs
        compared += 1
        left, right = (load_file(tmp_path / name / f"checkpoint-{step}" / "adapter_model.safetensors") for name in ("grpo", "nft"))
        if max((left[key] - right[key]).abs().max() for key in left) >= 1e-5:
            break
    assert compared == steps and any(value.abs().max() > 1e-3 for key, value in left.items() if "lora_B" in key)
    assert_close(*(torch.tensor([row["advantage"] for row in rows if row["step"] <= compared]) for rows in told))
