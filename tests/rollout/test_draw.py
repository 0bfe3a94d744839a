"""Drawn tokens have their probabilities, in both ways; in a race small changes of the logits do not change them."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from common.records import derive_seed, hash_seeds
from common.rollout import draw as drawing
from common.rollout.draw import RACE_VOCABULARY, draw_tokens, uniforms

ROWS = 4000
WAYS = {"inverted CDF": 10**9, "race": 1}  # smallest vocabulary of a race


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    monkeypatch.setattr(drawing, "RACE_VOCABULARY", WAYS[request.param])
    return request.param


def seeds(count=ROWS, purpose="a"):
    return hash_seeds(np.full(count, derive_seed(0, purpose), dtype=np.uint64), np.arange(count, dtype=np.uint64))


def draw(logits, position=0, temperature=1.0, top_p=1.0, count=ROWS):
    """Tokens and log-probs of `count` rows that have the same logits (V,)."""
    u = uniforms(seeds(count), position, len(logits))
    return draw_tokens(logits.expand(count, -1), u, torch.full((count,), temperature), torch.full((count,), top_p))


def fits(tokens, probabilities):
    """Whether the frequencies are those of the probabilities; tokens that are expected less than five times count as one."""
    counts, expected = torch.bincount(tokens, minlength=len(probabilities)).double(), probabilities.double() * len(tokens)
    rare = expected < 5
    if rare.any():
        counts, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, expected))
    kept = expected > 0
    assert counts[~kept].sum() == 0
    return kept.sum() == 1 or chisquare(counts[kept], expected[kept] * counts.sum() / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 4, 5, 16, 17, 138, 1000])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 3.0])
def test_tokens_have_their_probabilities(vocabulary, temperature, way):
    logits = 2 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    expected = (logits.double() / temperature).log_softmax(-1)
    for position in (0, 1, 1000):
        tokens, logps = draw(logits, position, temperature)
        assert fits(tokens, expected.exp())
        torch.testing.assert_close(logps, expected[tokens].float())


def test_frequencies_that_are_wrong_do_not_fit(way):
    """The check above can fail: a tenth more of one token is found."""
    logits = torch.zeros(16)
    moved = torch.full((16,), 1 / 16)
    moved[3] *= 1.5
    assert not fits(draw(logits)[0], moved / moved.sum())


def test_neighbours_in_position_and_row_are_unrelated(way):
    """All pairs of tokens at two positions of a row, and in two rows, are equally likely where the tokens are."""
    logits = torch.zeros(6)
    first, second = draw(logits, 0)[0], draw(logits, 1)[0]
    assert fits(6 * first + second, torch.full((36,), 1 / 36))
    assert fits(6 * first[:-1] + first[1:], torch.full((36,), 1 / 36))


@pytest.mark.parametrize("top_p, kept", [(0.7, 2), (0.79, 2), (0.81, 3), (1e-6, 1), (0.999, 5)])
def test_top_p_keeps_the_smallest_set_that_holds_it(top_p, kept, way):
    probabilities = torch.tensor([0.1, 0.5, 0.03, 0.3, 0.07], dtype=torch.float64)
    within = torch.zeros(5, dtype=torch.float64)
    best = probabilities.argsort(descending=True)[:kept]
    within[best] = probabilities[best] / probabilities[best].sum()
    tokens, logps = draw(probabilities.log().float(), top_p=top_p)
    assert fits(tokens, within)
    torch.testing.assert_close(logps, probabilities.log()[tokens].float())  # before the cut


def test_rows_keep_their_own_temperature_and_top_p(way):
    logits = torch.tensor([0.0, 1.0, 2.0, 1.5, -1.0])
    temperature, top_p = torch.tensor([0.0, 1.0, 0.5]), torch.tensor([1.0, 1e-6, 1.0])
    u = uniforms(np.repeat(seeds(), 3), 0, 5)
    tokens, logps = (x.view(ROWS, 3) for x in draw_tokens(logits.expand(3 * ROWS, -1), u, temperature.repeat(ROWS), top_p.repeat(ROWS)))
    assert (tokens[:, :2] == 2).all() and fits(tokens[:, 2], (2 * logits).softmax(-1))
    torch.testing.assert_close(logps[:, 0], logits.log_softmax(-1)[2].expand(ROWS))  # greedy: at temperature 1


def test_tokens_without_probability_are_never_drawn(way):
    """Nor is what fills the square: 5 tokens stand in a square of 9."""
    logits = torch.tensor([-torch.inf, -1e30, 0.0, -800.0, -torch.inf])
    for position in range(5):
        tokens, logps = draw(logits, position)
        assert (tokens == 2).all() and (logps == 0).all()


def test_the_size_of_the_vocabulary_decides_the_way():
    assert uniforms(seeds(3), 0, RACE_VOCABULARY - 1).shape == (3, 1)
    assert uniforms(seeds(3), 0, RACE_VOCABULARY).shape == (3, 2 * math.ceil(math.sqrt(RACE_VOCABULARY)))


def test_a_row_draws_the_same_token_wherever_it_stands(way):
    logits = 2 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    u, temperature, top_p = uniforms(seeds(200), 3, 50), torch.tensor([0.0, 0.7, 1.0, 1.0] * 50), torch.tensor([1.0, 1.0, 0.8, 1.0] * 50)
    tokens, logps = draw_tokens(logits, u, temperature, top_p)
    for rows in (torch.randperm(200, generator=torch.Generator().manual_seed(1)), torch.tensor([17]), torch.arange(100, 103)):
        some = draw_tokens(logits[rows], u[rows], temperature[rows], top_p[rows])
        assert torch.equal(some[0], tokens[rows])
        torch.testing.assert_close(some[1], logps[rows])
    assert len(tokens.unique()) > 10


def test_small_changes_of_the_logits_change_no_token():
    """Ten times those that another shape of the batch makes. Inverting the CDF at one number gives other tokens here."""
    vocabulary, generator = RACE_VOCABULARY, torch.Generator().manual_seed(0)
    logits = torch.randn(vocabulary, generator=generator)
    moved = logits + 1e-5 * torch.randn(vocabulary, generator=generator)
    changed, flipped = 0, 0
    cdf = [x.double().softmax(-1).cumsum(-1) for x in (logits, moved)]
    for position in range(20):
        changed += (draw(logits, position, count=1000)[0] != draw(moved, position, count=1000)[0]).sum().item()
        u = uniforms(seeds(1000), position, vocabulary)[:, 0].contiguous()
        flipped += (torch.searchsorted(cdf[0], u) != torch.searchsorted(cdf[1], u)).sum().item()
    assert changed == 0 and flipped > 5


def test_uniforms_are_uniform_and_unrelated(way):
    first, second = uniforms(seeds(), 0, 9).numpy(), uniforms(seeds(), 1, 9).numpy()
    for numbers in (*first.T, second[:, 0]):
        assert numbers.min() >= 0 and numbers.max() < 1
        assert np.abs(np.histogram(numbers, 10, (0, 1))[0] - 400).max() < 80  # four standard deviations
    for others in (second[:, 0], *first.T[1:]):
        assert abs(np.corrcoef(first[:, 0], others)[0, 1]) < 0.06


def test_a_race_has_two_numbers_for_each_row_of_the_square(monkeypatch):
    monkeypatch.setattr(drawing, "RACE_VOCABULARY", 1)
    for vocabulary in (1, 2, 4, 5, 152_064):
        side = math.ceil(math.sqrt(vocabulary))
        assert uniforms(seeds(3), 0, vocabulary).shape == (3, 2 * side) and side**2 >= vocabulary > (side - 1) ** 2


@pytest.mark.parametrize("bits", [0, 2**64 - 1])
def test_the_least_and_the_largest_number_give_times(bits, monkeypatch):
    monkeypatch.setattr(drawing, "RACE_VOCABULARY", 1)
    monkeypatch.setattr(drawing, "hash_seeds", lambda *_: np.full((1, 2), bits, dtype=np.uint64))
    u = uniforms(seeds(1), 0, 1)
    assert (u > 0).all() and (u < 1).all() and (-u.log() > 0).all() and torch.isfinite(u.log()).all()
