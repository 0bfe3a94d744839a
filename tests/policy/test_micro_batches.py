import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers import make_policy, random_batch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from common.policy import attention
from common.policy.attention import can_pack
from common.policy.loss import aggregate, importance_weights, loss_divisor
from common.policy.micro_batches import microbatches, minibatches
from common.policy.packing import on_device
from common.policy.policy import all_logps
from common.policy.self_checks import keeps_packed_rows_apart
from common.run.metrics import TokenMeans

PADDED, PACKED = (SimpleNamespace(device=torch.device("cpu"), packs=packs) for packs in (False, True))
SIZES = ((5, 7), (3, 1), (9, 4), (20, 11), (2, 2), (8, 8))


def groups_of(batch, size):
    """The same completions, the first `size` of them with the first one's prompt, the next with the next one's."""
    problems = [batch.problems[row - row % size] for row in range(len(batch))]
    return dataclasses.replace(batch, problems=problems)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"])
def test_the_update_does_not_depend_on_the_microbatches(mode, size, random_models, tokenizer):
    """Budgets of one sequence, two, and everything, padded and packed, prompts shared or not: the same gradient to 1e-6."""
    policy = make_policy(random_models["qwen3"], tokenizer)
    policy.model.double()  # padded and packed attention add up in another order
    batch = groups_of(random_batch(tokenizer, SIZES), size)
    divisor = loss_divisor(batch.loss_mask(), mode, 16)
    gradients, counts = [], []
    for policy.packs in (False, True):
        for budget in (1, 62, 10_000):
            losses = []
            for micro in microbatches(batch, torch.arange(len(SIZES)), budget, policy):
                losses.append(aggregate(-policy.logps(micro)[0], micro.completion_mask, mode, divisor))
                losses[-1].backward()
            counts.append(len(losses))
            gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters_of().values()]))
            policy.model.zero_grad()
    assert counts[0] == counts[3] == 6 and counts[2] == counts[5] == 1 and 6 > counts[1] >= counts[4] > (1 if size == 1 else 0)
    for gradient in gradients[1:]:
        assert ((gradient - gradients[0]).norm() / gradients[0].norm()).item() < 1e-6


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("size", [1, 3])
def test_packed_rows_do_not_see_each_other(size, architecture, random_models, tokenizer):
    """Whether their prompt is their own, or is computed once for three of them."""
    policy = make_policy(random_models[architecture], tokenizer)
    batch = groups_of(random_batch(tokenizer, SIZES), size)
    policy.packs = False
    padded = all_logps(policy, batch, torch.arange(6), 10_000)
    policy.packs = True
    for budget in (1, 40, 10_000):
        assert_close(all_logps(policy, batch, torch.arange(6), budget), padded, atol=1e-5, rtol=0)


def test_a_shared_prompt_is_computed_once(tokenizer):
    batch = groups_of(random_batch(tokenizer, SIZES), 3)
    (micro,) = microbatches(batch, torch.arange(6), 10_000, PACKED)
    prompts = [len(batch.problems[row].prompt_ids) for row in (0, 3)]
    assert micro.input_ids.shape == (1, sum(prompts) + int(batch.lengths.sum()))
    assert micro.tokens.tolist() == [token for row in micro.rows.tolist() for token in batch.completions[row].ids]
    for budget in (25, 30, 45):
        micros = list(microbatches(batch, torch.arange(6), budget, PACKED))
        assert sorted(row for micro in micros for row in micro.rows.tolist()) == list(range(6))
        assert all(micro.input_ids.numel() <= budget or len(micro.rows) == 1 for micro in micros)


class NoWaiting(TorchDispatchMode):
    """Fails where the program needs a number that, on a GPU, it would have to wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2"), name
        return func(*args, **(kwargs or {}))


def test_packed_microbatches_never_wait_for_the_gpu(random_models, tokenizer):
    """All that the scripts do with a micro-batch; checkpointed, too. What the CPU's attention pads is of its own making."""
    for checkpointing in (False, True):
        policy = make_policy(random_models["qwen2"], tokenizer, gradient_checkpointing=checkpointing)
        policy.packs = True
        batch = random_batch(tokenizer, SIZES)
        advantages, means = torch.linspace(-1, 1, len(SIZES)), TokenMeans()
        for micro in microbatches(batch, torch.arange(len(SIZES)), 40, policy):
            with NoWaiting():
                logps, entropy = policy.logps(micro, entropy=True)
                weights = importance_weights(logps, micro.sampling_logps, micro.mask, cap=2.0, mode="sequence", bound="mask")
                token_loss = -logps * micro.take(advantages)[:, None] * weights
                aggregate(token_loss, micro.completion_mask, "token-mean", 33.0).backward()
                means.add(micro.completion_mask, entropy=entropy)
        assert means.mean("entropy") > 0 and all(p.grad is not None for p in policy.parameters_of().values())
    with pytest.raises(AssertionError, match="nonzero"), NoWaiting():
        torch.ones(3).nonzero()


def test_a_policy_packs_only_what_it_keeps_apart(random_models, tokenizer, monkeypatch):
    for architecture in ("llama", "qwen2", "qwen3"):
        assert keeps_packed_rows_apart(make_policy(random_models[architecture], tokenizer))
    policy = make_policy(random_models["llama"], tokenizer)
    real = policy.hidden_states
    monkeypatch.setattr(policy, "hidden_states", lambda ids, packing=None, **rest: real(ids, **rest))
    assert not keeps_packed_rows_apart(policy)  # as with models that do not hand on where rows begin
    monkeypatch.undo()
    packed = attention.packed
    monkeypatch.setattr(attention, "packed", lambda query, key, value, *rest: packed(query, key.detach(), value, *rest))
    assert not keeps_packed_rows_apart(policy)  # as with a kernel whose backward is wrong


def test_models_whose_attention_cannot_be_packed_are_padded(random_models):
    configs = {name: AutoConfig.from_pretrained(folder).get_text_config() for name, folder in random_models.items()}
    able = {name: can_pack(config, torch.device("cpu"), torch.float32) for name, config in configs.items()}
    assert able == {"llama": True, "qwen2": True, "qwen3": True, "mistral": False, "gemma2": False, "gemma3_text": False}


def test_microbatches_hold_every_row_once_within_the_budget(tokenizer):
    batch = random_batch(tokenizer, SIZES)
    rows = torch.tensor([5, 0, 3, 2])
    seen = []
    for micro in microbatches(batch, rows, 30, PADDED):
        assert len(micro.rows) == 1 or micro.input_ids.numel() <= 30
        for i, row in enumerate(micro.rows.tolist()):
            prompt, ids = list(batch.problems[row].prompt_ids), batch.completions[row].ids
            assert micro.input_ids[i, : len(prompt) + len(ids)].tolist() == prompt + ids
            assert micro.completion_mask[i].sum() == len(ids) and micro.completion_mask[i, : len(ids)].all()
        ids = [token for row in micro.rows.tolist() for token in batch.completions[row].ids]
        assert micro.tokens.tolist() == micro.input_ids.flatten()[micro.before + 1].tolist() == ids
        assert micro.completion_mask.flatten()[micro.places].all() and len(micro.places) == len(ids) == micro.completion_mask.sum()
        seen += micro.rows.tolist()
    assert seen[0] == 3  # the longest first: what does not fit in memory fails at once
    assert sorted(seen) == sorted(rows.tolist())


def test_take_picks_the_rows_of_a_microbatch(tokenizer):
    batch = random_batch(tokenizer, SIZES)
    per_token = torch.arange(6 * 11).reshape(6, 11)
    for micro in microbatches(batch, torch.arange(6), 30, PADDED):
        width = micro.completion_mask.shape[1]
        assert micro.take(per_token).tolist() == [per_token[row, :width].tolist() for row in micro.rows.tolist()]
        assert micro.take(torch.arange(6)).tolist() == micro.rows.tolist()


def test_all_logps_has_the_rows_in_their_places(random_models, tokenizer):
    policy = make_policy(random_models["llama"], tokenizer)
    batch = random_batch(tokenizer, SIZES)
    some = all_logps(policy, batch, torch.tensor([1, 4]), 30)
    every = all_logps(policy, batch, torch.arange(6), 10_000)
    assert (some[[0, 2, 3, 5]] == 0).all() and (every[~batch.loss_mask()] == 0).all() and not every.requires_grad
    assert_close(some[[1, 4]], every[[1, 4]], atol=1e-5, rtol=0)


def test_minibatches_are_a_partition_of_every_pass_and_repeat_under_a_seed():
    parts = list(minibatches(10, 2, 3, seed=0, step=5))
    assert [len(part) for part in parts] == [4, 3, 3] * 2
    for one_pass in (parts[:3], parts[3:]):
        assert sorted(torch.cat(one_pass).tolist()) == list(range(10))
    assert torch.cat(parts[:3]).tolist() != torch.cat(parts[3:]).tolist()
    again = list(minibatches(10, 2, 3, seed=0, step=5))
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert [part.tolist() for part in minibatches(4, 1, 1, 0, 0)] == [[0, 1, 2, 3]]
    assert [len(part) for part in minibatches(3, 2, 8, 0, 0)] == [1] * 6  # a step with fewer completions than that: none is empty


def test_nothing_is_copied_where_there_is_no_gpu():
    tensor = torch.arange(3)
    assert on_device(tensor, torch.device("cpu")) is tensor
