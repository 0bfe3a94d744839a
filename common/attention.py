"""Attention as transformers' "sdpa" does it, but without copying keys and values when one token at a time is sampled."""
from __future__ import annotations

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_without_copies"


def register() -> str:
    """Makes the implementation known to transformers, and gives its name for `attn_implementation`."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
              scaling: float | None = None, **options: Any) -> tuple[Tensor, None]:
    """(B, L, heads, D) of query (B, heads, L, D), key and value (B, groups, S, D), mask (B, 1, L, S) or None.

    With a mask, transformers first copies each key and value once per query head of its group: a third to a half of the
    time of sampling. For L = 1 the heads of a group can stand where the query's tokens do, and nothing is copied.
    """
    rows, heads, length, size = query.shape
    groups = key.shape[1]
    if length > 1 or heads == groups or (attention_mask is not None and attention_mask.shape[1] > 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
    output = F.scaled_dot_product_attention(query.reshape(rows, groups, heads // groups, size), key, value, attn_mask=attention_mask,
                                            dropout_p=dropout, scale=scaling)
    return output.reshape(rows, 1, heads, size), None
