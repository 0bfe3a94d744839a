"""Prefill: prompts go through the model once, and all their samples start from the keys and values of that pass.

A prompt that is the beginning of a longer one, its trunk, needs no pass of its own. Monte-Carlo values ask for many beginnings of few
completions, of which only the longest go through the model:

    prompts          (1,)   (1, 2)   (1, 3)
    their trunks     (1, 2) (1, 2)   (1, 3)        two prompts are run instead of three
"""
from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from common.policy.packing import Ids
from common.policy.policy import Policy


def window_of(policy: Policy) -> int:
    """The number of tokens that the cache of every layer holds. A sliding-window layer keeps only the last tokens, its window.

    0 for models with a layer that has a state in place of keys and values: what the state was at an earlier token cannot be had.
    """
    layers = DynamicCache(config=policy.base.config.get_text_config()).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return 0
    return min((layer.sliding_window for layer in layers if layer.is_sliding), default=sys.maxsize)


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Makes the cache that of these rows alone, (R,) int64. Tensors are replaced and never changed in place."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):  # written to in place later on
            layer.conv_states, layer.recurrent_states = ({i: state if state is None else state[rows] for i, state in states.items()}
                                                         for states in (layer.conv_states, layer.recurrent_states))
        if isinstance(layer, DynamicLayer):
            layer.batch_select_indices(rows)


@torch.inference_mode()
def cache_bytes(policy: Policy) -> tuple[int, int]:
    """Bytes of a row of the model's cache: of keys and values for each token, and of states, whatever the row's length."""
    cache = DynamicCache(config=policy.base.config.get_text_config())
    policy.hidden_states(torch.zeros(1, 1, dtype=torch.long, device=policy.device), past_key_values=cache, use_cache=True)
    growing = [x for layer in cache.layers if isinstance(layer, DynamicLayer) for x in (layer.keys, layer.values)]
    states = [state for layer in cache.layers if isinstance(layer, LinearAttentionCacheLayerMixin)
              for state in (*layer.conv_states.values(), *layer.recurrent_states.values())]
    per_token, fixed = (sum(x.numel() * x.element_size() for x in tensors if x is not None) for tensors in (growing, states))
    return per_token, fixed


def trunks_of(prompts: list[Ids], window: int) -> dict[Ids, Ids]:
    """The trunk of each prompt: the prompt itself, or a longer prompt that begins with it.

    A trunk is not the beginning of another prompt. If a prompt is as long as `window`, every prompt is its own trunk.
    (1,), (1, 2), (1, 3) -> (1, 2), (1, 2), (1, 3).
    """
    trunks, longer, shares = {}, (), max(map(len, prompts), default=0) < window
    for prompt in sorted(set(prompts), reverse=True):  # in this order a prompt comes right after the longer ones that begin with it
        longer = longer if shares and longer[:len(prompt)] == prompt else prompt
        trunks[prompt] = longer
    return trunks


class Prompts:
    """Hidden states, keys and values of some prompts, from one forward pass over their trunks. P trunks are padded left to width W."""

    def __init__(self, policy: Policy, prompts: list[Ids]) -> None:
        config, self.window = policy.base.config.get_text_config(), window_of(policy)
        trunks = trunks_of(prompts, self.window)
        run = {trunk: k for k, trunk in enumerate(dict.fromkeys(trunks.values()))}
        longest = max(map(len, run))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in run], device=policy.device)
        self.attention = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in run], device=policy.device)  # (P, W)
        self.cache = DynamicCache(config=config)
        self.hidden = policy.hidden_states(ids, attention_mask=self.attention, position_ids=(self.attention.cumsum(-1) - 1).clamp(min=0),
                                           past_key_values=self.cache, use_cache=True).last_hidden_state  # (P, W, H)
        # of each prompt: the row of its trunk, and how many tokens the trunk goes on after the prompt's end
        self.where = {p: (run[trunk], len(trunk) - len(p)) for p, trunk in trunks.items()}
        self.tokens = ids.numel()  # tokens whose keys and values are held, padding included
        self.min_columns = longest if longest >= self.window else 0  # a row that is taken has at least so many columns

    def take(self, wanted: list[Ids]) -> tuple[Tensor, Tensor, Tensor, DynamicCache]:
        """One row for each wanted prompt: last hidden state (R, H), attention mask (R, L), next position (R,), and a cache for R rows."""
        rows, beyond = torch.tensor([self.where[p] for p in wanted], device=self.hidden.device).T  # (R,) each
        width, length = self.attention.shape[1], max(map(len, wanted))
        hidden = self.hidden[rows, width - 1 - beyond]
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # below, tensors are replaced and never changed in place
        if width >= self.window or (width == length and not beyond.any()):
            select_rows(cache, rows)
            attention = self.attention[rows]
        else:  # each prompt moves to the right end
            columns = width - length + torch.arange(length, device=rows.device)[None] - beyond[:, None]  # (R, L)
            place = rows[:, None], columns.clamp(min=0)
            attention = torch.where(columns >= 0, self.attention[place], 0)
            for layer in cache.layers:  # (P, heads, W, D) -> (R, heads, L, D)
                layer.keys, layer.values = (x.transpose(1, 2)[place].transpose(1, 2) for x in (layer.keys, layer.values))
                if layer.is_sliding:
                    layer.cumulative_length = length
        return hidden, attention, attention.sum(-1), cache


def drop_padding(attention: Tensor, cache: DynamicCache) -> Tensor:
    """The mask (R, L) without its first columns, if no row attends to them. The cache loses these columns as well."""
    unused = int(attention.any(dim=0).int().argmax())
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    if not unused or not plain:  # a sliding-window layer counts the tokens that it has seen
        return attention
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]
    return attention[:, unused:]
