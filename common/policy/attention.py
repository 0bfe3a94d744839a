"""Attention as in transformers' "sdpa", with two additions: sampling makes no copies of keys and values, and rows may be packed."""
from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from common.errors import UserError
from common.policy.packing import Packing

NAME = "sdpa_without_copies"
# What models hand to their attention that has no influence on it, or that the mask has already
WITHOUT_INFLUENCE = {"is_causal", "position_ids", "sliding_window", "use_cache", "cache_position", "past_key_values", "deterministic",
                     "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep",
                     "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}


def register() -> str:
    """Registers the implementation with transformers and returns its name for `attn_implementation`.

    Also switches cuDNN's attention off. On Hopper and newer torch prefers it, and it takes some 0.1 s to plan each new shape: our lengths
    are new with every sampled token and every padded micro-batch.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
              scaling: float | None = None, packing: Packing | None = None, **options: Any) -> tuple[Tensor, None]:
    """(B, L, heads, D) of query (B, heads, L, D), key and value (B, groups, S, D), mask (B, 1, L, S) or None.

    With a mask, transformers first copies each key and value once for every query head of its group, which takes a third to a half of
    the time of sampling. For L = 1 the heads of a group can take the place of the query's tokens, and nothing is copied.

    With `packing`, B is 1 and the L tokens belong to many rows (packing.py).

    Raises UserError for anything else that a model hands to its attention, such as a soft-cap or gpt-oss's sinks: without it the
    result would be wrong.
    """
    bias = options.get("position_bias")
    given = {name for name, value in options.items() if value is not None} - WITHOUT_INFLUENCE - {"position_bias"}
    if packing is not None:
        given |= {name for name in ("sliding_window", "position_bias") if options.get(name) is not None}
    if given:
        raise UserError(f"{type(module).__name__} computes its attention with {', '.join(sorted(given))}, which is not known here")
    if packing is not None:
        return packed(query, key, value, packing, scaling), None
    rows, heads, length, size = query.shape
    groups = key.shape[1]
    if length > 1 or heads == groups or bias is not None or (attention_mask is not None and attention_mask.shape[1] > 1):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
    query = query.reshape(rows, groups, heads // groups, size)
    if query.device.type == "cpu" and query.dtype == torch.float32 and attention_mask is not None and attention_mask.is_floating_point():
        # with so few queries per row, plain products are faster than the fused kernel
        scores = torch.matmul(query * (scaling or size**-0.5), key.transpose(-1, -2)).add_(attention_mask)
        output = torch.matmul(scores.softmax(-1), value)
    else:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling)
    return output.reshape(rows, 1, heads, size), None


def packed(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None) -> Tensor:
    """(1, L, heads, D): causal attention of query (1, heads, L, D) and key and value (1, groups, L, D), each piece to its own keys."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (L, heads or groups, D)
    if query.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(query, key[packing.keys], value[packing.keys], packing.starts, packing.key_starts, packing.longest,
                           packing.most_keys, scale=scaling, window_size=(-1, 0), enable_gqa=True)[None]
    blocks, way_back = packing.cpu_blocks
    outputs = []
    for queries, keys, mask in blocks:
        # the backward of index_select adds whole rows; the backward of advanced indexing adds number by number
        states = (x.index_select(0, i.flatten()).unflatten(0, i.shape).transpose(1, 2)
                  for x, i in ((query, queries), (key, keys), (value, keys)))  # (n, heads or groups, Q or K, D)
        outputs.append(F.scaled_dot_product_attention(*states, attn_mask=mask.to(query.dtype), scale=scaling, enable_gqa=True)
                       .transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, way_back)[None]


def can_pack(text_config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `packed` can replace the model's attention: it has no sliding windows and no soft-capped scores.

    On a GPU the kernel also needs bfloat16, heads of at most 256 numbers, and a version of torch that has it.
    """
    windows = "sliding_attention" in (getattr(text_config, "layer_types", None) or ()) or (
        getattr(text_config, "layer_types", None) is None and getattr(text_config, "sliding_window", None))
    if windows or getattr(text_config, "attn_logit_softcapping", None):
        return False
    if device.type == "cpu":
        return True
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return dtype == torch.bfloat16 and size <= 256 and "enable_gqa" in inspect.signature(varlen_attn).parameters
