
import pytest
import torch
from helpers import QUICK, documented_flag_sets, make_policy, metrics, random_batch, run, save_random_model
from safetensors.torch import load_file
from torch.testing import assert_close

from common.errors import UserError
from common.policy.critic import Critic
from common.policy.loss import aggregate, loss_divisor, whiten
from common.policy.micro_batches import microbatches
from train_ppo import Config, clipped_tokens, explained_variance, gae, ppo_token_loss, terminal_rewards, value_token_loss


@pytest.fixture
def policy(random_models, tokenizer):
    return make_policy(random_models["qwen3"], tokenizer)


def micro_of(tokenizer, policy, sizes=((5, 7), (3, 1), (9, 4))):
    batch = random_batch(tokenizer, sizes)
    (micro,) = microbatches(batch, torch.arange(len(batch)), 10_000, policy)
    return batch, micro


# ---- the algorithm --------------------------------------------------------------------------------------------------


def test_docstring_numbers():
    mask = torch.ones(1, 3, dtype=torch.bool)
    rewards, values = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.5, 0.6, 0.8]])
    assert_close(gae(rewards, values, mask)[0], torch.tensor([[0.5, 0.4, 0.2]]))
    assert_close(gae(rewards, values, mask, lam=0.95)[0], torch.tensor([[0.4705, 0.39, 0.2]]))
    new, old, returns = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.4]]), torch.ones(1, 2)
    assert_close(value_token_loss(new, old, returns, epsilon=0.2), torch.tensor([[0.045, 0.405]]))
    x = torch.tensor([[0.5, 0.4, 0.2, -0.3, 9.0]])
    assert_close(whiten(x, x < 5)[0, :4], torch.tensor([0.842927, 0.561951, 0, -1.404879]), atol=1e-5, rtol=0)


def test_gae_against_the_sum_it_stands_for():
    """A_t = sum over k of (gamma lam)^k delta_(t+k), written out; ragged rows, NaN in the padding."""
    generator = torch.Generator().manual_seed(0)
    lengths = [6, 1, 4]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    rewards, values = (torch.where(mask, torch.rand(3, 6, generator=generator), torch.nan) for _ in range(2))
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    for row, length in enumerate(lengths):
        v = [*values[row, :length].tolist(), 0.0]
        delta = [rewards[row, t].item() + 0.9 * v[t + 1] - v[t] for t in range(length)]
        expected = [sum((0.9 * 0.8) ** k * delta[t + k] for k in range(length - t)) for t in range(length)]
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-6)
        assert returns[row, :length].tolist() == pytest.approx([a + b for a, b in zip(expected, v, strict=False)], abs=1e-6)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_the_reward_comes_with_the_last_token():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    rewards = terminal_rewards(torch.tensor([1.0, 0.5, 7, -1]), mask)
    assert rewards.tolist() == [[0, 1, 0], [0.5, 0, 0], [0, 0, 0], [0, 0, -1]]


def test_clipped_tokens_are_those_without_gradient():
    generator = torch.Generator().manual_seed(0)
    logps = torch.randn(6, 50, generator=generator).mul(0.5).requires_grad_()
    advantages = torch.randn(6, 50, generator=generator)
    ppo_token_loss(logps, torch.zeros(6, 50), advantages, epsilon=0.2).sum().backward()
    clipped = clipped_tokens(logps, torch.zeros(6, 50), advantages, epsilon=0.2)
    assert torch.equal(clipped, logps.grad == 0) and 0 < clipped.sum() < clipped.numel()


def test_explained_variance():
    returns, mask = torch.tensor([[0.0, 1, 0, 1, 9]]), torch.tensor([[1, 1, 1, 1, 0]], dtype=torch.bool)
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full((1, 5), 0.3), returns, mask) == pytest.approx(0, abs=1e-6)
    assert explained_variance(1 - returns, returns, mask) < 0
    assert explained_variance(returns, torch.ones(1, 5), mask) == 0
    values, whole = 0.1 * torch.randn(64, 200, generator=torch.Generator().manual_seed(0)), torch.ones(64, 200, dtype=torch.bool)
    _, equal = gae(terminal_rewards(torch.ones(64), whole), values, whole)
    assert 0 < equal.var() < 1e-10 and explained_variance(values, equal, whole) == 0  # equal but for rounding


def test_with_a_zero_critic_and_lambda_1_it_is_reinforce(tmp_path, tokenizer):
    """Whole-adapter gradients of a real model: a critic that has not learned gives advantages equal to the reward."""
    policy = make_policy(save_random_model(tmp_path, "llama", tokenizer), tokenizer)
    batch, micro = micro_of(tokenizer, policy)
    critic = Critic(policy, seed=0)
    values = critic.all_values(batch, torch.arange(3), 20)
    assert (values == 0).all()
    rewards, mask = torch.tensor([1.0, 0.0, 1.0]), batch.loss_mask()
    advantages, returns = gae(terminal_rewards(rewards, mask), values, mask)
    assert torch.equal(advantages, torch.where(mask, rewards[:, None], 0.0)) and torch.equal(returns, advantages)
    divisor, gradients = loss_divisor(mask, "token-mean"), []
    for loss_of in (
        lambda logps: ppo_token_loss(logps, logps.detach(), micro.take(advantages), epsilon=0.2),
        lambda logps: -micro.take(rewards)[:, None] * logps,
    ):
        for parameter in policy.parameters_of().values():
            parameter.grad = None
        aggregate(loss_of(policy.logps(micro)[0]), micro.completion_mask, "token-mean", divisor).backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in policy.parameters_of().values()]))
    assert gradients[0].norm() > 1e-3 and ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item() < 1e-6


# ---- end to end -----------------------------------------------------------------------------------------------------


def test_the_critic_warms_up_while_the_policy_stands_still(tmp_path, monkeypatch):
    flags = ["--max_steps", "3", "--critic_warmup_steps", "2", "--save_total_limit", "0", "--eval_steps", "0"]
    assert run("train_ppo", tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    adapters = [load_file(tmp_path / "run" / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (1, 2, 3)]
    heads = [load_file(tmp_path / "run" / f"checkpoint-{step}" / "critic" / "value_head.safetensors") for step in (1, 2, 3)]
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])
    assert all((value == 0).all() for key, value in adapters[1].items() if "lora_B" in key)
    assert any(not torch.equal(adapters[1][key], adapters[2][key]) for key in adapters[1])
    assert not torch.equal(heads[0]["weight"], heads[1]["weight"])
    rows = metrics(tmp_path / "run")
    assert ["grad_norm" in row for row in rows] == [False, False, True]
    assert all(row["value/loss"] > 0 for row in rows) and rows[0]["value/mean"] == 0 != rows[1]["value/mean"]


@pytest.mark.parametrize("flags", [["--beta", "0.1"], ["--beta", "0.1", "--kl_in_reward"]], ids=["loss", "reward"])
def test_the_kl_pulls_the_policy_back_in_the_loss_and_in_the_reward(flags, finished, tmp_path, monkeypatch):
    """A strong KL term leaves the policy nearer to where it started."""
    plain = ["--max_steps", "4", "--no_whiten_advantages", "--eval_steps", "0"]
    folders = [finished("train_ppo", *plain), tmp_path / "with"]
    strong = [flag if flag != "0.1" else "30" for flag in flags]
    assert run("train_ppo", folders[1], *plain, *strong, monkeypatch=monkeypatch) == 0
    moved = []
    for folder in folders:
        adapter = load_file(folder / "checkpoint-4" / "adapter_model.safetensors")
        moved.append(sum(value.square().sum() for key, value in adapter.items() if "lora_B" in key).item())
    assert "kl" in metrics(folders[1])[-1] and moved[0] != moved[1] and moved[0] > 0


def test_what_makes_no_sense_for_this_algorithm_is_refused():
    for flags, message in [
        ({"lam": 1.5}, "from 0 to 1"),
        ({"gamma": -0.1}, "from 0 to 1"),
        ({"epsilon": 1.0}, "0.2 and 0.2"),
        ({"cliprange_value": 0.0}, "0.2 and 0.2"),
        ({"critic_learning_rate": 0.0}, "above 0"),
        ({"critic_warmup_steps": -1}, "0 or more"),
        ({"kl_in_reward": True}, "give --beta too"),
    ]:
        with pytest.raises(UserError, match=message):
            Config(**flags).check()


@pytest.mark.parametrize("name", documented_flag_sets("ppo"))
def test_every_documented_flag_set_trains(name, tmp_path, monkeypatch):
    assert len(documented_flag_sets("ppo")) == 4
    flags = [*documented_flag_sets("ppo")[name], "--problems_per_step", "4", "--num_generations", "4", "--max_steps", "2"]
    flags += ["--num_minibatches", "2", "--prompt_template", "question", "--max_completion_length", "30", "--eval_steps", "0"]
    assert run("train_ppo", tmp_path / "run", *flags, monkeypatch=monkeypatch, quick=QUICK[:2]) == 0
    assert metrics(tmp_path / "run")[-1]["grad_norm"] > 0
