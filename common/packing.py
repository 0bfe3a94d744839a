"""Rows one after the other instead of padded beside each other, and their prompts once for all completions."""
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
    """Where rows lie in a flat sequence of L tokens: first their prompts, each different one once, then their completions.

    A piece is a prompt or a completion; what it sees are a prompt's own tokens, or the prompt's and then the completion's. Shared
    prompts are not computed again for each completion, forward or backward, and there is no padding outside the attention.
    """

    starts: Tensor  # (pieces + 1,) int32: of the pieces in the L tokens
    seen: Tensor  # (S,) int64 into the L tokens: what the pieces see, one after the other
    seen_starts: Tensor  # (pieces + 1,) int32: of each piece in `seen`
    longest: int  # piece
    longest_seen: int
    prompts: int  # pieces that are prompts

    @cached_property
    def padded(self) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        """For the CPU: pieces of similar length padded together; and where each of the L tokens then stands in all queries (L,).

        (n, Q) queries and (n, K) what they see, both into the L tokens, and the mask to add, (n, 1, Q, K).
        """
        starts, seen, seen_starts = self.starts.numpy(), self.seen.numpy(), self.seen_starts.numpy()
        blocks, tokens = [], []  # tokens: the places of the real queries, in the blocks' order
        for pieces in self._similar(np.diff(starts)):
            lengths, widths = np.diff(starts)[pieces, None], np.diff(seen_starts)[pieces, None]  # (n, 1)
            query, key = np.arange(lengths.max())[None], np.arange(widths.max())[None]
            queries = starts[pieces, None] + np.minimum(query, lengths - 1)  # where there is none, the last one again
            keys = seen[seen_starts[pieces, None] + np.minimum(key, widths - 1)]
            hidden = key[None] > (query + widths - lengths)[..., None]  # (n, Q, K): what comes later, padding included
            mask = torch.zeros(hidden.shape).masked_fill_(torch.from_numpy(hidden), -torch.inf)[:, None]
            blocks.append((torch.from_numpy(queries.astype(np.int64)), torch.from_numpy(keys), mask))
            tokens.append(np.where(query < lengths, queries, -1).flatten())
        flat = np.concatenate(tokens)
        places = np.empty(starts[-1], dtype=np.int64)
        places[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
        return blocks, torch.from_numpy(places)

    def _similar(self, lengths: np.ndarray) -> list[np.ndarray]:
        """The prompts, then the completions, in sets whose shortest has more than half the tokens of the longest."""
        sets = []
        for part in (np.arange(self.prompts), np.arange(self.prompts, len(lengths))):
            order = part[np.argsort(-lengths[part], kind="stable")]
            while len(order):
                count = int((2 * lengths[order] > lengths[order[0]]).sum())
                sets.append(order[:count])
                order = order[count:]
        return sets


def pack(prompts: list[Ids], completions: list[list[int]], device: torch.device) -> tuple[np.ndarray, list[np.ndarray], dict[str, Any]]:
    """Of rows, each a prompt and its completion: token ids (1, L), a transformers model's other inputs, and, between them, for each row

    the place before each of its completion tokens, into the L tokens: for the first one the end of the prompt.
    """
    which = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    pieces = [*which, *completions]
    own = [np.arange(start, end) for start, end in pairwise(np.cumsum([0, *map(len, pieces)]))]  # places of each piece's tokens
    rows = [(own[which[prompt]], places) for prompt, places in zip(prompts, own[len(which):], strict=True)]
    seen = [*own[:len(which)], *map(np.concatenate, rows)]
    before = [np.concatenate([prompt[-1:], places[:-1]]) for prompt, places in rows]
    positions = np.concatenate([np.arange(len(s) - len(o), len(s)) for s, o in zip(seen, own, strict=True)])
    starts, seen_starts = (np.cumsum([0, *map(len, parts)]).astype(np.int32) for parts in (own, seen))
    packing = Packing(*(on_device(torch.from_numpy(x), device) for x in (starts, np.concatenate(seen), seen_starts)),
                      max(map(len, own)), max(map(len, seen)), len(which))
    inputs = {"packing": packing, "position_ids": on_device(torch.from_numpy(positions)[None], device),
              # of four dimensions, so that transformers takes it as it is and reads no numbers that a GPU is still working on
              "attention_mask": torch.zeros(1, 1, 1, 1, device=device)}
    return np.concatenate(pieces)[None], before, inputs


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor's copy on the device, for which nobody waits: through memory that the GPU can read by itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
