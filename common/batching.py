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
from common.policy import Policy
from common.rollout import Completion, derive_seed


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
    """b rows of a Batch, T = the longest completion among them; padded on the right to (b, L), or packed one after the other to (1, L).

    Which tokens are whose was worked out on the CPU: nothing here makes a GPU wait.
    """

    rows: Tensor  # (b,) int64, into the Batch
    input_ids: Tensor  # (b, L) or (1, L) int64
    inputs: dict[str, Any]  # what the model needs beside them
    before: Tensor  # (N,) int64: into the flattened input_ids, the token before each of the N completion tokens, row by row
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

    Sorted by length, so that little is padding; longest first, so that what does not fit in memory fails at once. Packed where the
    policy's attention can tell the rows apart, which leaves no padding at all.
    """
    def length(row: int) -> int:
        return len(batch.problems[row].prompt_ids) + len(batch.completions[row].ids)

    order = sorted(rows.tolist(), key=length, reverse=True)
    while order:
        count, total = 1, length(order[0])
        while count < len(order) and total + length(order[count if policy.packs else 0]) <= max_tokens:
            total += length(order[count if policy.packs else 0])
            count += 1
        yield _together(batch, order[:count], policy.device, policy.packs)
        order = order[count:]


def _together(batch: Batch, rows: list[int], device: torch.device, packed: bool) -> MicroBatch:
    prompts, completions = [batch.problems[row].prompt_ids for row in rows], [batch.completions[row] for row in rows]
    lengths = np.array([len(p) + len(c.ids) for p, c in zip(prompts, completions, strict=True)])
    longest, widest = max(len(c.ids) for c in completions), int(lengths.max())
    starts = np.concatenate([[0], lengths.cumsum()]) if packed else np.arange(len(rows) + 1) * widest  # of each row, in flat ids
    ids = np.zeros(starts[-1], dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=bool)
    logps = np.zeros((len(rows), longest), dtype=np.float32)
    before = []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[starts[i]:starts[i] + lengths[i]] = [*prompt, *completion.ids]
        mask[i, :len(completion.ids)] = True
        logps[i, :len(completion.ids)] = completion.logps
        before.append(starts[i] + len(prompt) - 1 + np.arange(len(completion.ids)))  # logits at position j are about token j + 1
    inputs: dict[str, Any] = {}  # padding on the right is behind everything that looks back: the causal mask hides it
    if packed:
        positions = np.concatenate([np.arange(length) for length in lengths])
        inputs = {"position_ids": on_device(torch.from_numpy(positions)[None], device),
                  "cu_seq_lens_q": on_device(torch.from_numpy(starts.astype(np.int32)), device), "max_length_q": widest,
                  # of four dimensions, so that transformers takes it as it is and reads no numbers that a GPU is still working on
                  "attention_mask": torch.zeros(1, 1, 1, 1, device=device)}
    return MicroBatch(
        rows=torch.tensor(rows), input_ids=on_device(torch.from_numpy(ids).reshape(1 if packed else len(rows), -1), device), inputs=inputs,
        before=on_device(torch.from_numpy(np.concatenate(before)), device),
        places=on_device(torch.from_numpy(np.flatnonzero(mask)), device),
        completion_mask=on_device(torch.from_numpy(mask), device), sampling_logps=on_device(torch.from_numpy(logps), device))


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor's copy on the device, for which nobody waits: through memory that the GPU can read by itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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
