"""Prompts through the model, each token once: the samples of a prompt start from its keys and values, and so do those of its beginnings.

Monte-Carlo values ask for many beginnings of few completions; only the longest of each goes through the model.
"""
from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor
from transformers import DynamicCache

from common.policy.packing import Ids
from common.policy.policy import Policy


def window_of(policy: Policy) -> int:
    """Tokens that every layer's cache holds at least: a layer that sees a window of the last ones keeps no others."""
    layers = DynamicCache(config=policy.base.config.get_text_config()).layers
    return min((layer.sliding_window for layer in layers if layer.is_sliding), default=sys.maxsize)



def trunks_of(prompts: list[Ids], window: int) -> dict[Ids, Ids]:
    """For each prompt one that begins with it and is not itself the beginning of another; none is if one is as long as `window`.

    (1,), (1, 2), (1, 3) -> (1, 2), (1, 2), (1, 3).
    """
    trunks, longer, shares = {}, (), max(map(len, prompts), default=0) < window
    for prompt in sorted(set(prompts), reverse=True):  # in this order a prompt comes right after those that begin with it
        longer = longer if shares and longer[:len(prompt)] == prompt else prompt
        trunks[prompt] = longer
    return trunks



class Prompts:
    """Hidden states, keys and values of some prompts, padded on the left. Made by one forward pass over their trunks."""

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
        # each prompt's trunk, and how many tokens that goes on after it
        self.where = {p: (run[trunk], len(trunk) - len(p)) for p, trunk in trunks.items()}
        self.tokens = ids.numel()  # whose keys and values are held, padding included
        self.min_columns = longest if longest >= self.window else 0  # columns that a row has at least when it is taken

    def take(self, wanted: list[Ids]) -> tuple[Tensor, Tensor, Tensor, DynamicCache]:
        """A row for each of `wanted`: last hidden state (R, H), attention mask (R, L), next position (R,), and a cache of their own."""
        rows, beyond = torch.tensor([self.where[p] for p in wanted], device=self.hidden.device).T  # (R,) each
        width, length = self.attention.shape[1], max(map(len, wanted))
        hidden = self.hidden[rows, width - 1 - beyond]
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]  # their tensors are replaced below, not changed
        if width >= self.window or (width == length and not beyond.any()):
            cache.batch_select_indices(rows)
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
    """The mask (R, L) without the first columns that no row attends to; the cache loses them as well."""
    unused = int(attention.any(dim=0).int().argmax())
    if not unused or any(layer.is_sliding for layer in cache.layers):  # a window's layer counts what it has seen
        return attention
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]
    return attention[:, unused:]
