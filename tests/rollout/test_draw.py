import numpy as np
import pytest
import torch

from common.records import derive_seed, hash_seeds
from common.rollout.draw import draw_tokens, uniforms


def test_top_p_keeps_the_smallest_set_that_holds_it():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    u = uniforms(np.arange(2000, dtype=np.uint64), 0)
    ones = torch.ones(2000)
    tokens, logps = draw_tokens(logits, u, ones, 0.7 * ones)
    assert set(tokens.tolist()) == {0, 1}  # 0.5 alone does not hold 0.7
    assert (tokens == 0).float().mean().item() == pytest.approx(0.5 / 0.8, abs=0.04)
    assert logps[tokens == 0][0].item() == pytest.approx(np.log(0.5), abs=1e-5)  # before the cut
    tokens, _ = draw_tokens(logits, u, ones, ones)
    frequencies = torch.bincount(tokens, minlength=4) / 2000
    torch.testing.assert_close(frequencies, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.04, rtol=0)


def test_uniforms_are_uniform_and_unrelated():
    seeds = hash_seeds(np.full(4000, derive_seed(0, "a"), dtype=np.uint64), np.arange(4000, dtype=np.uint64))
    first, second = uniforms(seeds, 0).numpy(), uniforms(seeds, 1).numpy()
    assert first.min() >= 0 and first.max() < 1
    assert np.abs(np.histogram(first, 10, (0, 1))[0] - 400).max() < 80  # four standard deviations
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
