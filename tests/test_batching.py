import pytest
import torch
from helpers import make_policy, random_batch
from torch.testing import assert_close

from common.batching import all_logps, microbatches, minibatches
from common.loss import aggregate, loss_divisor

SIZES = ((5, 7), (3, 1), (9, 4), (20, 11), (2, 2), (8, 8))


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"])
def test_the_update_does_not_depend_on_the_microbatches(mode, random_models, tokenizer):
    """Budgets of one sequence, two, and everything: the same gradient to 1e-6."""
    policy = make_policy(random_models["qwen3"], tokenizer)
    batch = random_batch(tokenizer, SIZES)
    divisor = loss_divisor(batch.loss_mask(), mode, 16)
    gradients, counts = [], []
    for budget in (1, 62, 10_000):
        losses = []
        for micro in microbatches(batch, torch.arange(len(SIZES)), budget, policy.device):
            losses.append(aggregate(-policy.logps(micro)[0], micro.completion_mask, mode, divisor))
            losses[-1].backward()
        counts.append(len(losses))
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters_of().values()]))
        policy.model.zero_grad()
    assert counts[0] == 6 and counts[2] == 1 and counts[0] > counts[1] > 1
    for gradient in gradients[1:]:
        assert ((gradient - gradients[0]).norm() / gradients[0].norm()).item() < 1e-6


def test_microbatches_hold_every_row_once_within_the_budget(tokenizer):
    batch = random_batch(tokenizer, SIZES)
    rows = torch.tensor([5, 0, 3, 2])
    seen = []
    for micro in microbatches(batch, rows, 30, torch.device("cpu")):
        assert len(micro.rows) == 1 or micro.input_ids.numel() <= 30
        for i, row in enumerate(micro.rows.tolist()):
            prompt, ids = list(batch.problems[row].prompt_ids), batch.completions[row].ids
            assert micro.input_ids[i, : len(prompt) + len(ids)].tolist() == prompt + ids
            assert micro.completion_mask[i].sum() == len(ids) and micro.completion_mask[i, : len(ids)].all()
            assert micro.prompt_lengths[i] == len(prompt)
        seen += micro.rows.tolist()
    assert seen[0] == 3  # the longest first: what does not fit in memory fails at once
    assert sorted(seen) == sorted(rows.tolist())


def test_take_picks_the_rows_of_a_microbatch(tokenizer):
    batch = random_batch(tokenizer, SIZES)
    per_token = torch.arange(6 * 11).reshape(6, 11)
    for micro in microbatches(batch, torch.arange(6), 30, torch.device("cpu")):
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


def test_truncated_rows_can_be_masked_out(tokenizer):
    batch = random_batch(tokenizer, SIZES)
    drop = torch.tensor([False, True, False, False, False, False])
    assert batch.loss_mask().sum(1).tolist() == [7, 1, 4, 11, 2, 8]
    assert batch.loss_mask(drop).sum(1).tolist() == [7, 0, 4, 11, 2, 8]
