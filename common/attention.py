"""Attention as transformers' "sdpa" does it, but without copies of keys and values in sampling, and for rows packed without padding."""
from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_without_copies"


def register() -> str:
    """Makes the implementation known to transformers, and gives its name for `attn_implementation`."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
              scaling: float | None = None, cu_seq_lens_q: Tensor | None = None, max_length_q: int = 0, **options: Any,
              ) -> tuple[Tensor, None]:
    """(B, L, heads, D) of query (B, heads, L, D), key and value (B, groups, S, D), mask (B, 1, L, S) or None.

    With a mask, transformers first copies each key and value once per query head of its group: a third to a half of the
    time of sampling. For L = 1 the heads of a group can stand where the query's tokens do, and nothing is copied.

    With `cu_seq_lens_q` (rows + 1), B is 1 and L holds rows one after the other, from each of its numbers to the next.
    """
    if cu_seq_lens_q is not None:
        return packed(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    rows, heads, length, size = query.shape
    groups = key.shape[1]
    if length > 1 or heads == groups or (attention_mask is not None and attention_mask.shape[1] > 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
    output = F.scaled_dot_product_attention(query.reshape(rows, groups, heads // groups, size), key, value, attn_mask=attention_mask,
                                            dropout_p=dropout, scale=scaling)
    return output.reshape(rows, 1, heads, size), None


def packed(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scaling: float | None) -> Tensor:
    """Causal attention (1, L, heads, D) within rows that lie one after the other, at most `longest` tokens each.

    query (1, heads, L, D), key and value (1, groups, L, D), starts (rows + 1,) int32.
    """
    if query.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        states = (x[0].transpose(0, 1) for x in (query, key, value))  # (L, heads or groups, D)
        return varlen_attn(*states, starts, starts, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=True)[None]
    rows = [slice(start, end) for start, end in pairwise(starts.tolist())]
    outputs = [F.scaled_dot_product_attention(query[:, :, row], key[:, :, row], value[:, :, row], is_causal=True, scale=scaling,
                                              enable_gqa=True) for row in rows]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def can_pack(text_config: PretrainedConfig) -> bool:
    """Whether this torch has the kernel, and the model nothing that it lacks: windows, soft-capped scores, large heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    windows = "sliding_attention" in (getattr(text_config, "layer_types", None) or ()) or (
        getattr(text_config, "layer_types", None) is None and getattr(text_config, "sliding_window", None))
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return ("enable_gqa" in inspect.signature(varlen_attn).parameters and not windows and size <= 256
            and not getattr(text_config, "attn_logit_softcapping", None))
