"""Rows packed one after the other in one sequence, without padding; a prompt that several completions share stands there once.

Two rows that share the prompt P P P, with the completions a a and b b b:

    padded           P P P a a .        packed    P P P a a b b b         L = 8 tokens
    (2, 6)           P P P b b b        piece     0 0 0 1 1 2 2 2         a piece is a prompt or a completion

    piece            its tokens (queries)         the tokens that it attends to (keys), causally
    0  prompt        P P P                        P P P
    1  completion    a a                          P P P a a
    2  completion    b b b                        P P P b b b

    before           row 0: 2 3    row 1: 2 5 6   places in L: the token before each completion token, whose state predicts it
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Packing:
    """Where the pieces of a packed sequence of L tokens lie, and which tokens each piece attends to. Prompts come first."""

    starts: Tensor  # (pieces + 1,) int32: where each piece begins in the L tokens
    keys: Tensor  # (K,) int64, places in the L tokens: what each piece attends to, one piece after the other
    key_starts: Tensor  # (pieces + 1,) int32: where each piece's part of `keys` begins
    longest: int  # tokens of the longest piece
    most_keys: int  # keys of the piece that has the most
    prompts: int  # number of pieces that are prompts

    @cached_property
    def cpu_blocks(self) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        """For attention on the CPU: blocks of pieces of similar length, padded within the block; and the way back.

        A block of n pieces is its queries (n, Q) and its keys (n, K), both as places in the L tokens, and the mask to add to the
        scores (n, 1, Q, K). The way back (L,) says where each of the L tokens stands among the queries of all blocks, flattened.
        """
        blocks, query_places = [], []
        for pieces in self._similar_pieces():
            queries, keys, mask, real = self._block(pieces)
            blocks.append((torch.from_numpy(queries.astype(np.int64)), torch.from_numpy(keys), mask))
            query_places.append(np.where(real, queries, -1).flatten())
        flat = np.concatenate(query_places)  # a place in the L tokens, or -1 for padding
        way_back = np.empty(self.starts.numpy()[-1], dtype=np.int64)
        way_back[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
        return blocks, torch.from_numpy(way_back)

    def _similar_pieces(self) -> list[np.ndarray]:
        """Sets of pieces, prompts and completions apart: the shortest of a set has more than half the tokens of its longest."""
        lengths = np.diff(self.starts.numpy())
        sets = []
        for kind in (np.arange(self.prompts), np.arange(self.prompts, len(lengths))):
            order = kind[np.argsort(-lengths[kind], kind="stable")]
            while len(order):
                count = int((2 * lengths[order] > lengths[order[0]]).sum())
                sets.append(order[:count])
                order = order[count:]
        return sets

    def _block(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor, np.ndarray]:
        """Queries (n, Q), keys (n, K), the mask (n, 1, Q, K), and which queries are real (n, Q); padding repeats the last token."""
        starts, key_starts = self.starts.numpy(), self.key_starts.numpy()
        lengths, widths = np.diff(starts)[pieces, None], np.diff(key_starts)[pieces, None]  # (n, 1)
        query, key = np.arange(lengths.max())[None], np.arange(widths.max())[None]
        queries = starts[pieces, None] + np.minimum(query, lengths - 1)
        keys = self.keys.numpy()[key_starts[pieces, None] + np.minimum(key, widths - 1)]
        later = key[None] > (query + widths - lengths)[..., None]  # (n, Q, K): keys behind the query, and padding
        mask = torch.zeros(later.shape).masked_fill_(torch.from_numpy(later), -torch.inf)[:, None]
        return queries, keys, mask, query < lengths


def pack(prompts: list[Ids], completions: list[list[int]], device: torch.device) -> tuple[np.ndarray, list[np.ndarray], dict[str, Any]]:
    """Packs rows. Returns the token ids (1, L); for each row the places before its completion tokens; the model's other inputs.

    prompts, completions: one of each per row. The drawing at the top of this file shows all three.
    """
    prompt_piece = {prompt: piece for piece, prompt in enumerate(dict.fromkeys(prompts))}
    pieces = [*prompt_piece, *completions]
    places = [np.arange(start, end) for start, end in pairwise(np.cumsum([0, *map(len, pieces)]))]  # of each piece's tokens in L
    rows = [(places[prompt_piece[prompt]], own) for prompt, own in zip(prompts, places[len(prompt_piece):], strict=True)]
    keys = [*places[:len(prompt_piece)], *map(np.concatenate, rows)]
    before = [np.concatenate([prompt[-1:], own[:-1]]) for prompt, own in rows]
    positions = np.concatenate([np.arange(len(seen) - len(own), len(seen)) for seen, own in zip(keys, places, strict=True)])
    starts, key_starts = (np.cumsum([0, *map(len, parts)]).astype(np.int32) for parts in (places, keys))
    packing = Packing(*(on_device(torch.from_numpy(x), device) for x in (starts, np.concatenate(keys), key_starts)),
                      max(map(len, places)), max(map(len, keys)), len(prompt_piece))
    inputs = {"packing": packing, "position_ids": on_device(torch.from_numpy(positions)[None], device),
              # transformers takes a mask of four dimensions as it is, and so reads no numbers that a GPU is still working on
              "attention_mask": torch.zeros(1, 1, 1, 1, device=device)}
    return np.concatenate(pieces)[None], before, inputs


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on the device. On a GPU nobody waits for the copy: it goes through pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
