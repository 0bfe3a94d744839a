"""Rollout batches, and how they are cut: into minibatches (one optimiser step each) and micro-batches (what fits in memory).

Micro-batches are a matter of memory and speed alone: sums over them do not depend on how a minibatch was cut.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data import Problem
from common.packing import Ids, on_device, pack
from common.policy import Policy
from common.rollout import Completion, derive_seed

MOST_SEEN = 2  # attention gathers keys and values for each completion: long prompts with short completions are not free


@dataclass(frozen=True)
class Batch:
    """Everything sampled in a step: B completions, group-major (row i belongs to problem `group_ids[i]`)."""

    problems: list[Problem]  # one per row
    completions: list[Completion]
    group_ids: Tensor  # (B,) int64

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: tokens of each completion, the end token included."""
        return torch.tensor([len(completion.ids) for completion in self.completions])

    @property
    def truncated(self) -> Tensor:
        """(B,) bool: stopped by the length limit."""
        return torch.tensor([completion.finish_reason == "length" for completion in self.completions])

    def loss_mask(self, drop: Tensor | None = None) -> Tensor:
        """(B, T) bool: the sampled tokens, none for the rows where `drop` (B,) is True."""
        mask = torch.arange(int(self.lengths.max()))[None] < self.lengths[:, None]
        return mask if drop is None else mask & ~drop[:, None]


def make_batch(problems: list[Problem], completions: list[list[Completion]]) -> Batch:
    """The batch of a step: completions[i] are the samples of problems[i]."""
    return Batch([p for p, group in zip(problems, completions, strict=True) for _ in group],
                 [c for group in completions for c in group],
                 torch.repeat_interleave(torch.arange(len(problems)), torch.tensor([len(group) for group in completions])))


@dataclass(frozen=True)
class MicroBatch:
    """b rows of a Batch, T = the longest completion among them; padded on the right to (b, L), or packed to (1, L).

    Which tokens are whose was worked out on the CPU: nothing here makes a GPU wait.
    """

    rows: Tensor  # (b,) int64, into the Batch
    input_ids: Tensor  # (b, L) or (1, L) int64
    inputs: dict[str, Any]  # what the model needs beside them
    before: Tensor  # (N,) int64: into the flattened input_ids, the token before each of the N completion tokens, row by row
    tokens: Tensor  # (N,) int64: the completion tokens
    places: Tensor  # (N,) int64: where each of them stands in a flattened (b, T)
    completion_mask: Tensor  # (b, T) bool
    sampling_logps: Tensor  # (b, T) float32, 0 where masked

    def take(self, per_row: Tensor) -> Tensor:
        """The micro-batch's part of a (B,) or (B, T of the batch) tensor, on its device: (b,) or (b, T)."""
        part = per_row[self.rows]
        return on_device((part[:, :self.completion_mask.shape[1]] if part.ndim == 2 else part).contiguous(), self.input_ids.device)

    def spread(self, values: Tensor) -> Tensor:
        """(b, T): one value (N,) for each completion token, row by row, at its place; 0 where masked."""
        shape = self.completion_mask.shape
        return values.new_zeros(shape.numel()).index_copy(0, self.places, values).reshape(shape)


def microbatches(batch: Batch, rows: Tensor, max_tokens: int, policy: Policy) -> Iterator[MicroBatch]:
    """Micro-batches over `rows` of the batch, longest first, each at most `max_tokens` tokens, padding included (or one row).

    Where the policy's attention can tell rows apart they are packed: no padding, and a prompt once for all its completions, which
    stay together; what all of them see, prompts counted for each, is at most MOST_SEEN times `max_tokens`. Else they are sorted by
    length, so that little is padding. Longest first: what does not fit in memory fails at once.
    """
    prompts, new = ([get(row) for row in range(len(batch))] for get in (
        lambda row: batch.problems[row].prompt_ids, lambda row: len(batch.completions[row].ids)))
    length = [len(prompt) + tokens for prompt, tokens in zip(prompts, new, strict=True)]
    longest: dict[Ids, int] = {}  # row with this prompt
    for row in rows.tolist():
        longest[prompts[row]] = max(length[row], longest.get(prompts[row], 0))
    order = sorted(rows.tolist(), key=lambda row: (longest[prompts[row]], prompts[row], length[row]) if policy.packs else length[row],
                   reverse=True)
    while order:
        held: set[Ids] = set()
        count = total = seen = 0
        for row in order:
            seen += length[row]
            total += length[order[0]] if not policy.packs else new[row] if prompts[row] in held else length[row]
            if count and (total > max_tokens or seen > MOST_SEEN * max_tokens):
                break
            held.add(prompts[row])
            count += 1
        yield _together(batch, order[:count], policy.device, policy.packs)
        order = order[count:]


def _together(batch: Batch, rows: list[int], device: torch.device, packs: bool) -> MicroBatch:
    prompts, completions = [batch.problems[row].prompt_ids for row in rows], [batch.completions[row] for row in rows]
    mask = np.arange(max(len(c.ids) for c in completions)) < np.array([[len(c.ids)] for c in completions])  # (b, T)
    logps = np.zeros(mask.shape, dtype=np.float32)
    logps[mask] = np.concatenate([c.logps for c in completions])
    ids = [c.ids for c in completions]
    input_ids, before, inputs = pack(prompts, ids, device) if packs else (*_padded(prompts, ids), {})
    arrays = {"input_ids": input_ids, "before": np.concatenate(before), "tokens": np.concatenate(ids), "places": np.flatnonzero(mask),
              "completion_mask": mask, "sampling_logps": logps}
    return MicroBatch(rows=torch.tensor(rows), inputs=inputs,
                      **{name: on_device(torch.from_numpy(array), device) for name, array in arrays.items()})


def _padded(prompts: list[Ids], completions: list[list[int]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Token ids (b, L), zeros on the right, which the causal mask hides from what is before them; and `before` by row."""
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt, completion in zip(ids, prompts, completions, strict=True):
        row[:len(prompt) + len(completion)] = [*prompt, *completion]
    # logits at position j are about token j + 1
    return ids, [i * width + len(p) - 1 + np.arange(len(c)) for i, (p, c) in enumerate(zip(prompts, completions, strict=True))]


def minibatches(size: int, num_iterations: int, num_minibatches: int, seed: int, step: int) -> Iterator[Tensor]:
    """Row indices of each optimiser step of one rollout batch: every pass is shuffled and cut into near-equal parts, none empty."""
    num_minibatches = min(num_minibatches, size)
    for iteration in range(num_iterations):
        if num_minibatches == 1:
            yield torch.arange(size)
            continue
        generator = torch.Generator().manual_seed(derive_seed(seed, "minibatches", step, iteration) % 2**63)
        yield from torch.randperm(size, generator=generator).tensor_split(num_minibatches)


def all_logps(policy: Policy, batch: Batch, rows: Tensor, max_tokens: int) -> Tensor:
    """Log-probs (B, T) of the given rows of a batch, in float32 on the CPU, without gradient; 0 elsewhere."""
    return per_token(lambda micro: policy.logps(micro)[0], batch, rows, max_tokens, policy)


@torch.no_grad()
def per_token(function: Callable[[MicroBatch], Tensor], batch: Batch, rows: Tensor, max_tokens: int, policy: Policy) -> Tensor:
    """(B, T) of a function that gives (b, T) for a micro-batch: the given rows, float32 on the CPU, no gradient; 0 elsewhere."""
    result = torch.zeros(len(batch), int(batch.lengths.max()))
    for micro in microbatches(batch, rows, max_tokens, policy):
        result[micro.rows, :micro.completion_mask.shape[1]] = function(micro).float().cpu()
    return result
