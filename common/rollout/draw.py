"""Drawing tokens: the uniform numbers of each sample and position, and the token that they select.

A small vocabulary needs one number: the token is where the CDF reaches it. In a large vocabulary this is fragile. Rounding depends on what
else is in a batch and moves logits by about 1e-6. Every weight moves all boundaries of the CDF after it, and another token comes once in
some hundreds of draws.

There the token is the winner of a race: of independent exponential times E_i / w_i, that of i is the first with probability w_i / sum(w).
(This is the Gumbel-max trick without logarithms.) The vocabulary is laid out as a square. One race is between the rows of the square,
with the sums of their weights, and one within the row that won. So each token has exactly its probability, W_r / sum(W) times w_i / W_r,
and a draw needs two numbers for each row of the square, not one for each token. The same rounding gives another winner once in a million
draws (benchmarks/batch_invariance.py).
"""
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from common.records import hash_seeds

RACE_VOCABULARY = 4096  # from here on a race is as fast (docs/engines.md); below, rounding by 1e-6 changes fewer than one draw in 5,000


def uniforms(seeds: np.ndarray, position: int, vocabulary: int) -> Tensor:
    """Float64 numbers of each row, from its seed and the position of the token: (R, 1) in [0, 1), or (R, 2 S) in (0, 1) for a race.

    S is the side of the vocabulary's square.
    """
    streams = hash_seeds(seeds, position)[:, None]
    if vocabulary < RACE_VOCABULARY:
        return torch.from_numpy((streams >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    side = math.isqrt(vocabulary - 1) + 1
    bits = hash_seeds(streams, np.arange(2 * side, dtype=np.uint64)) >> np.uint64(12)
    return torch.from_numpy((bits + 0.5) * 2.0**-52)  # 52 bits and a half: exact in float64, and neither 0 nor 1


def draw_tokens(logits: Tensor, u: Tensor, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (R,), each with its probability if u is uniform, and their log-probs (R,) float32, nats. Sums are in float64.

    logits (R, V); u (R, 1) or (R, 2 S) as from `uniforms`; temperature, top_p (R,). A row at temperature 0 takes its most likely token,
    with its log-prob at temperature 1. The log-probs are those before top_p cuts the tail, which is what the trainer computes.
    """
    (rows, vocabulary), greedy = logits.shape, temperature == 0
    scaled = torch.empty(rows, max(vocabulary, (u.shape[-1] // 2) ** 2), dtype=torch.float64, device=logits.device)
    scaled[:, :vocabulary], scaled[:, vocabulary:] = logits, -torch.inf  # what fills the square has no weight and never wins
    scaled /= torch.where(greedy, 1.0, temperature).double()[:, None]
    scaled -= scaled.amax(-1, keepdim=True)
    weights = scaled.exp()
    tokens, total = _select(weights, u)
    if (top_p < 1).any():
        ordered, index = torch.sort(weights, dim=-1, descending=True, stable=True)
        # top_p keeps the smallest set of most likely tokens whose sum reaches it: a token is cut if the tokens before it reach it
        outside = ordered.cumsum(-1) - ordered >= top_p.double()[:, None] * total
        tokens, _ = _select(weights.masked_fill(outside.gather(-1, index.argsort(-1)) & (top_p < 1)[:, None], 0.0), u)
    if greedy.any():
        tokens = torch.where(greedy[:, None], scaled.argmax(-1, keepdim=True), tokens)
    return tokens[:, 0], (scaled.gather(-1, tokens) - total.log())[:, 0].float()


def _select(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens (R, 1) that u selects, each with probability weight / sum, and the sums (R, 1) of the weights: (R, V) or (R, S^2)."""
    if u.shape[-1] == 1:
        cdf = weights.cumsum(-1)
        return torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp_(max=weights.shape[-1] - 1), cdf[:, -1:]
    side, times = u.shape[-1] // 2, -u.log()  # exponential with mean 1, and never 0
    square = weights.view(-1, side, side)
    sums = square.sum(-1)  # (R, S)
    best = (sums / times[:, :side]).argmax(-1, keepdim=True)  # (R, 1)
    within = square.take_along_dim(best[:, None], 1)[:, 0]  # (R, S)
    return best * side + (within / times[:, side:]).argmax(-1, keepdim=True), sums.sum(-1, keepdim=True)
