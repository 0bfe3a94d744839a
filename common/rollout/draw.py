"""Drawing tokens: the uniform numbers of each sample and position, and the token that they select.

The token is the winner of a race: of independent exponential times E_i / w_i, that of i is the first with probability w_i / sum(w).
(This is the Gumbel-max trick without logarithms.) The vocabulary is laid out as a square. One race is between the rows of the square,
with the sums of their weights, and one within the row that won. So each token has exactly its probability, W_r / sum(W) times w_i / W_r,
and a draw needs two numbers for each row of the square, not one for each token.

Rounding depends on what else is in a batch. It moves logits by about 1e-6, and then a race has another winner once in a million draws,
whatever the size of the vocabulary. Inverting the CDF gives another token once in some hundreds of draws from a large vocabulary, because
every weight moves all boundaries after it (benchmarks/batch_invariance.py).
"""
from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from common.records import hash_seeds


def uniforms(seeds: np.ndarray, position: int, vocabulary: int) -> Tensor:
    """(R, 2 S) float64 in (0, 1), from the seed of each row and the position of the token. S is the side of the vocabulary's square."""
    side = math.isqrt(vocabulary - 1) + 1
    streams = hash_seeds(seeds, position)[:, None]
    bits = hash_seeds(streams, np.arange(2 * side, dtype=np.uint64)) >> np.uint64(12)
    return torch.from_numpy((bits + 0.5) * 2.0**-52)  # 52 bits and a half: exact in float64, and neither 0 nor 1


def draw_tokens(logits: Tensor, u: Tensor, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (R,), each with its probability if u (R, 2 S) is uniform, and their log-probs (R,) float32, nats.

    logits (R, V); u as from `uniforms`; temperature, top_p (R,). A row at temperature 0 takes its most likely token, with its log-prob
    at temperature 1. The log-probs are those before top_p cuts the tail, which is what the trainer computes.
    """
    (rows, vocabulary), side, greedy = logits.shape, u.shape[-1] // 2, temperature == 0
    scaled = torch.empty(rows, side * side, dtype=torch.float64, device=logits.device)
    scaled[:, :vocabulary], scaled[:, vocabulary:] = logits, -torch.inf  # what fills the square has no weight and never wins
    scaled /= torch.where(greedy, 1.0, temperature).double()[:, None]
    scaled -= scaled.amax(-1, keepdim=True)
    weights = scaled.exp()
    square = weights.view(rows, side, side)
    sums = square.sum(-1)  # (R, S)
    total = sums.sum(-1, keepdim=True)  # (R, 1)
    if (top_p < 1).any():
        ordered, index = torch.sort(weights, dim=-1, descending=True, stable=True)
        # top_p keeps the smallest set of most likely tokens whose sum reaches it: a token is cut if the tokens before it reach it
        outside = ordered.cumsum(-1) - ordered >= top_p.double()[:, None] * total
        weights.masked_fill_(outside.gather(-1, index.argsort(-1)) & (top_p < 1)[:, None], 0.0)  # in the square as well
        sums = square.sum(-1)
    times = -u.log()  # exponential with mean 1, and never 0
    best = (sums / times[:, :side]).argmax(-1, keepdim=True)  # (R, 1)
    within = square.take_along_dim(best[:, None], 1)[:, 0]  # (R, S)
    tokens = best * side + (within / times[:, side:]).argmax(-1, keepdim=True)
    if greedy.any():
        tokens = torch.where(greedy[:, None], scaled.argmax(-1, keepdim=True), tokens)
    return tokens[:, 0], (scaled.gather(-1, tokens) - total.log())[:, 0].float()
