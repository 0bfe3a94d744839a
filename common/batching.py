"""Rollout batches, and how they are cut: into minibatches (one optimiser step each) and micro-batches (what fits in memory).

Micro-batches are a matter of memory and speed alone: sums over them do not depend on how a minibatch was cut.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
    """b rows of a Batch as right-padded tensors: L = longest prompt + completion, T = longest completion among them."""

    rows: Tensor  # (b,) int64, into the Batch
    input_ids: Tensor  # (b, L) int64
    attention_mask: Tensor | None  # (b, L) int64; None where no row is padded: the causal mask alone is faster
    prompt_lengths: Tensor  # (b,) int64
    completion_mask: Tensor  # (b, T) bool
    sampling_logps: Tensor  # (b, T) float32, 0 where masked

    def take(self, per_row: Tensor) -> Tensor:
        """The micro-batch's part of a (B,) or (B, T of the batch) tensor, on its device: (b,) or (b, T)."""
        part = per_row[self.rows.to(per_row.device)].to(self.input_ids.device)
        return part[:, :self.completion_mask.shape[1]] if part.ndim == 2 else part

    def spread(self, values: Tensor) -> Tensor:
        """(b, T): one value (N,) for each completion token, row by row, at its place; 0 where masked."""
        return values.new_zeros(self.completion_mask.shape).index_put(self.completion_mask.nonzero(as_tuple=True), values)


def microbatches(batch: Batch, rows: Tensor, max_tokens: int, device: torch.device) -> Iterator[MicroBatch]:
    """Micro-batches over `rows` of the batch, longest first, each at most `max_tokens` padded tokens (or one row).

    Sorted by length, so that little is padding; longest first, so that what does not fit in memory fails at once.
    """
    def length(row: int) -> int:
        return len(batch.problems[row].prompt_ids) + len(batch.completions[row].ids)

    order = sorted(rows.tolist(), key=length, reverse=True)
    start = 0
    while start < len(order):
        count = max(1, max_tokens // length(order[start]))
        yield _pad(batch, order[start:start + count], device)
        start += count


def _pad(batch: Batch, rows: list[int], device: torch.device) -> MicroBatch:
    prompts = [batch.problems[row].prompt_ids for row in rows]
    completions = [batch.completions[row] for row in rows]
    lengths = np.array([len(p) + len(c.ids) for p, c in zip(prompts, completions, strict=True)])
    longest = max(len(c.ids) for c in completions)
    ids = np.zeros((len(rows), lengths.max()), dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=bool)
    logps = np.zeros((len(rows), longest), dtype=np.float32)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[i, :lengths[i]] = [*prompt, *completion.ids]
        mask[i, :len(completion.ids)] = True
        logps[i, :len(completion.ids)] = completion.logps
    attention = torch.from_numpy((np.arange(lengths.max())[None] < lengths[:, None]).astype(np.int64))
    return MicroBatch(
        rows=torch.tensor(rows), input_ids=torch.from_numpy(ids).to(device),
        attention_mask=None if attention.all() else attention.to(device),
        prompt_lengths=torch.tensor([len(p) for p in prompts], device=device),
        completion_mask=torch.from_numpy(mask).to(device), sampling_logps=torch.from_numpy(logps).to(device))


def minibatches(size: int, num_iterations: int, num_minibatches: int, seed: int, step: int) -> Iterator[Tensor]:
    """Row indices of each optimiser step of one rollout batch: every pass is shuffled and cut into near-equal parts."""
    for iteration in range(num_iterations):
        if num_minibatches == 1:
            yield torch.arange(size)
            continue
        generator = torch.Generator().manual_seed(derive_seed(seed, "minibatches", step, iteration) % 2**63)
        yield from torch.randperm(size, generator=generator).tensor_split(num_minibatches)


def all_logps(policy: Policy, batch: Batch, rows: Tensor, max_tokens: int) -> Tensor:
    """Log-probs (B, T) of the given rows of a batch, in float32 on the CPU, without gradient; 0 elsewhere."""
    return per_token(lambda micro: policy.logps(micro)[0], batch, rows, max_tokens, policy.device)


@torch.no_grad()
def per_token(function: Callable[[MicroBatch], Tensor], batch: Batch, rows: Tensor, max_tokens: int, device: torch.device) -> Tensor:
    """(B, T) of a function that gives (b, T) for a micro-batch: the given rows, float32 on the CPU, no gradient; 0 elsewhere."""
    result = torch.zeros(len(batch), int(batch.lengths.max()))
    for micro in microbatches(batch, rows, max_tokens, device):
        result[micro.rows, :micro.completion_mask.shape[1]] = function(micro).float().cpu()
    return result
