import copy

import pytest
import torch
from helpers import make_policy, random_batch, save_random_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from common.policy.critic import Critic
from common.policy.loss import aggregate
from common.policy.micro_batches import microbatches
from common.policy.optim import clip_gradients, make_optimizer, take_step


@pytest.fixture
def policy(random_models, tokenizer):
    return make_policy(random_models["qwen3"], tokenizer)


def micro_of(tokenizer, policy, sizes=((5, 7), (3, 1), (9, 4))):
    batch = random_batch(tokenizer, sizes)
    (micro,) = microbatches(batch, torch.arange(len(batch)), 10_000, policy)
    return batch, micro


def train_critic(critic, micro, targets, steps, rate=0.02):
    optimizer = make_optimizer(critic.parameters(), rate)
    for _ in range(steps):
        with critic.active():
            loss = aggregate((critic.values(micro) - targets).square(), micro.completion_mask, "token-mean", 10.0)
            loss.backward()
            clip_gradients(optimizer, 1.0, 1)
            take_step(optimizer, rate)
    return loss.item()


def test_the_critic_learns_and_the_policy_and_the_base_do_not_move(policy, tokenizer):
    _, micro = micro_of(tokenizer, policy)
    critic = Critic(policy, seed=0)
    before = {name: parameter.clone() for name, parameter in policy.model.named_parameters() if ".critic." not in name}
    logps = policy.logps(micro)[0].detach()
    targets = torch.rand(micro.completion_mask.shape, generator=torch.Generator().manual_seed(0))
    first = train_critic(critic, micro, targets, 1)
    assert train_critic(critic, micro, targets, 60) < 0.2 * first
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.model.named_parameters() if name in before)
    assert torch.equal(policy.logps(micro)[0], logps)  # the policy's adapter is the one that is on
    moved = [p.abs().max() for name, p in critic.parameters().items() if "lora_B" in name]
    assert len(moved) == len([n for n in policy.parameters_of() if "lora_B" in n]) and min(moved) > 0
    assert all(p.requires_grad for p in policy.parameters_of().values()) and not any(
        p.grad is not None for p in policy.parameters_of().values()
    )


def test_values_stand_before_their_token_and_do_not_see_it(policy, tokenizer):
    """The value of the first token is a function of the prompt; micro-batching and padding change nothing."""
    batch, micro = micro_of(tokenizer, policy)
    critic = Critic(policy, seed=0)
    train_critic(critic, micro, torch.rand(micro.completion_mask.shape), 5)
    with torch.no_grad(), critic.active():
        values = torch.zeros(3, 7)
        values[micro.rows] = critic.values(micro)
        changed = copy.deepcopy(batch)
        changed.completions[0].ids[3] = (changed.completions[0].ids[3] + 1) % 40 + 3
    assert_close(critic.all_values(batch, torch.arange(3), 1), values)
    other = critic.all_values(changed, torch.arange(3), 1000)
    assert_close(other[0, :4], values[0, :4])
    assert (other[0, 4:] - values[0, 4:]).abs().min() > 1e-6
    assert (values[~batch.loss_mask()] == 0).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_switching_back_before_the_backward_is_found_out(checkpointing, random_models, tokenizer):
    policy = make_policy(random_models["qwen3"], tokenizer, gradient_checkpointing=checkpointing)
    _, micro = micro_of(tokenizer, policy)
    critic = Critic(policy, seed=0)
    train_critic(critic, micro, torch.rand(micro.completion_mask.shape), 2)  # so that the head hands gradients on
    optimizer = make_optimizer(critic.parameters(), 0.1)
    with critic.active():
        loss = critic.values(micro).sum()
    with pytest.raises((RuntimeError, torch.utils.checkpoint.CheckpointError), match=r"got no gradient|different"):
        loss.backward()
        clip_gradients(optimizer, 1.0, 1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_switching_away_before_the_policys_backward_is_found_out(checkpointing, random_models, tokenizer):
    policy = make_policy(random_models["qwen3"], tokenizer, gradient_checkpointing=checkpointing)
    _, micro = micro_of(tokenizer, policy)
    critic = Critic(policy, seed=0)
    optimizer = make_optimizer(policy.parameters_of(), 0.1)
    loss = policy.logps(micro)[0].sum()
    with critic.active(), pytest.raises((RuntimeError, torch.utils.checkpoint.CheckpointError), match=r"got no gradient|different"):
        loss.backward()
        clip_gradients(optimizer, 1.0, 1)


def test_the_reference_takes_no_gradients_whoever_was_active(tmp_path, tokenizer):
    model = save_random_model(tmp_path / "model", "llama", tokenizer)
    make_policy(model, tokenizer).save(tmp_path / "adapter")
    policy = make_policy(model, tokenizer, adapter=str(tmp_path / "adapter"), beta=0.1)
    critic = Critic(policy, seed=0)
    for context in (critic.active, policy.reference, critic.active):
        with context():
            assert not any(p.requires_grad for p in policy.parameters_of("reference").values())
    assert all(p.requires_grad for p in policy.parameters_of("default").values())
    assert not any(p.requires_grad for p in policy.parameters_of("critic").values())


def test_a_saved_critic_comes_back_and_leaves_the_policys_folder_plain(policy, tokenizer, tmp_path):
    batch, micro = micro_of(tokenizer, policy)
    critic = Critic(policy, seed=0)
    train_critic(critic, micro, torch.rand(micro.completion_mask.shape), 3)
    values = critic.all_values(batch, torch.arange(3), 100)
    policy.save(tmp_path)
    plain = sorted(path.name for path in tmp_path.iterdir())
    critic.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*plain, "critic"])
    assert not any("critic" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert {path.name for path in (tmp_path / "critic").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "value_head.safetensors",
    }
    with torch.no_grad():
        for parameter in critic.parameters().values():
            parameter.add_(1.0)
    assert not torch.allclose(critic.all_values(batch, torch.arange(3), 100), values)
    critic.load(tmp_path)
    assert torch.equal(critic.all_values(batch, torch.arange(3), 100), values)


def test_the_critic_costs_an_adapter_its_optimizer_state_and_a_head(policy, tokenizer):
    """Parameter bytes on the tiny model, and for the shape of a 7B from its config alone."""

    def size(parameters):
        return sum(parameter.numel() * parameter.element_size() for parameter in parameters)

    before = size(policy.model.parameters())
    critic = Critic(policy, seed=0)
    own = size(policy.parameters_of().values())
    head = size(critic.head.parameters())
    assert head == 4 * (64 + 1) and size(policy.model.parameters()) - before == own
    assert size(critic.parameters().values()) == own + head
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        base = size(model.parameters())
        model = get_peft_model(model, LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM"))
        adapter = size(model.parameters()) - base
    assert base == pytest.approx(15.23e9, rel=1e-3)
    assert adapter + 4 * 3585 < 0.025 * base  # in float32; a second copy of the weights would be all of it
