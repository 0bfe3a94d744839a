import torch
from helpers import random_batch

from common.records import derive_seed


def test_seeds_of_different_purposes_are_different():
    assert len({derive_seed(s, p, t, i) for s in range(5) for p in ("a", "b") for t in range(5) for i in ("x", "y")}) == 100
    assert derive_seed(1, "a", 11) != derive_seed(1, "a", 1, 1)


def test_truncated_rows_can_be_masked_out(tokenizer):
    batch = random_batch(tokenizer, ((5, 7), (3, 1), (9, 4), (20, 11), (2, 2), (8, 8)))
    drop = torch.tensor([False, True, False, False, False, False])
    assert batch.loss_mask().sum(1).tolist() == [7, 1, 4, 11, 2, 8]
    assert batch.loss_mask(drop).sum(1).tolist() == [7, 0, 4, 11, 2, 8]
