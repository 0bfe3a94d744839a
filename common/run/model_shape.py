"""A model in numbers, from its config alone: what the memory plan needs to know of it. No weights are read."""
from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from common.config import CommonConfig
from common.policy.load import with_adapter
from common.policy.shared_base import own_base

PROMPT = 256  # tokens of a prompt; assumed, since no data has been read


@dataclass(frozen=True)
class Shape:
    """A model in numbers. Bytes are those of bfloat16."""

    parameters: int  # of the base
    linear: int  # base parameters in the layers that 4 bits can hold
    largest: int  # base parameters of the largest such layer
    lora: int  # parameters of one adapter
    layers: int
    hidden: int  # width of a hidden state
    kv_bytes: int  # keys and values of one token
    layer_bytes: float  # activations of one layer that backward needs, per token
    shared: bool = True  # vLLM and the trainer may have one base


def shape_of(model_config: PretrainedConfig, config: CommonConfig) -> Shape:
    """The numbers of a model, from skeletons without weights: a whole one for its size, two short ones for its activations."""
    text = model_config.get_text_config()
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(model_config, trust_remote_code=False).requires_grad_(False)
        shared = own_base(base, torch.bfloat16) is None  # vLLM runs in bfloat16
        whole = with_adapter(base, config)
    lora = sum(p.numel() for p in whole.parameters() if p.requires_grad)
    linear = [m.weight.numel() for name, m in whole.named_modules()
              if isinstance(m, (nn.Linear, Conv1D)) and "lora_" not in name and "lm_head" not in name]
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(parameters=sum(p.numel() for p in whole.parameters()) - lora, linear=sum(linear), largest=max(linear), lora=lora,
                 layers=text.num_hidden_layers, hidden=text.hidden_size, kv_bytes=2 * text.num_hidden_layers * heads * size * 2,
                 layer_bytes=saved_bytes(model_config, config, 2) - saved_bytes(model_config, config, 1), shared=shared)


def saved_bytes(model_config: PretrainedConfig, config: CommonConfig, layers: int) -> float:
    """Bytes per token that a forward of the model's first `layers` keeps for backward, in bfloat16 and with fused attention.

    Counted on a model without data: shapes and what autograd saves are the real ones. Where attention is not fused, as its scores are
    soft-capped, it keeps the scores, and these grow with the length of a row.
    """
    fused = not getattr(model_config.get_text_config(), "attn_logit_softcapping", None)
    tokens = 64 if fused else PROMPT + config.max_completion_length
    short = copy.deepcopy(model_config)
    text = short.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = layers, 256, None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    AttentionInterface.register("planned", _attention)
    AttentionMaskInterface.register("planned", lambda *_, **__: None)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(short, attn_implementation="planned" if fused else "eager", trust_remote_code=False)
        base.requires_grad_(False)
        model = with_adapter(base, config).to(torch.bfloat16).eval()
        ids, mask = torch.zeros(1, tokens, dtype=torch.long), torch.zeros(1, 1, tokens, tokens, dtype=torch.bool)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}  # storages, which stay alive so that none is counted under another's address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_base_model().base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values()) / tokens


class _FusedAttention(torch.autograd.Function):
    """Keeps for backward what a fused kernel keeps: query, keys, values and output, no scores. Computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("this model is only looked at")


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value).transpose(1, 2), None
