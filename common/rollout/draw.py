"""Drawing tokens: one uniform number for each sample and position, and the token that it selects."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.records import hash_seeds


def uniforms(seeds: np.ndarray, position: int) -> Tensor:
    """One float64 in [0, 1) per row, from its seed and the position of the token."""
    return torch.from_numpy((hash_seeds(seeds, position) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def draw_tokens(logits: Tensor, u: Tensor, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (R,), drawn by inverting the CDF at u (R,) in float64, and their log-probs (R,) float32, nats.

    logits (R, V); temperature, top_p (R,). A row at temperature 0 takes its most likely token, with its log-prob at
    temperature 1. The log-probs are those before top_p cuts the tail, which is what the trainer computes.
    """
    greedy = temperature == 0
    scaled = logits.double().div_(torch.where(greedy, 1.0, temperature).double()[:, None])
    scaled -= scaled.amax(-1, keepdim=True)
    weights = scaled.exp()
    total = (cdf := weights.cumsum(-1))[:, -1:]  # (R, 1)
    if (top_p < 1).any():
        ordered, index = torch.sort(weights, dim=-1, descending=True, stable=True)
        # top_p keeps the smallest set of most likely tokens whose sum reaches it: a token is cut if the tokens before it reach it
        outside = ordered.cumsum(-1) - ordered >= top_p.double()[:, None] * total
        cdf = weights.masked_fill(outside.gather(-1, index.argsort(-1)) & (top_p < 1)[:, None], 0.0).cumsum(-1)
    tokens = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)
    if greedy.any():
        tokens = torch.where(greedy[:, None], scaled.argmax(-1, keepdim=True), tokens)
    return tokens[:, 0], (scaled.gather(-1, tokens) - total.log())[:, 0].float()
