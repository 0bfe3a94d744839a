"""How a rollout batch is cut: into minibatches (one optimiser step each), and these into micro-batches (what fits in memory).

Micro-batches matter for memory and speed alone. The sums over them do not depend on how a minibatch was cut, nor on how it was shared out
among several processes.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from common import parallel
from common.policy.packing import Ids, on_device, pack
from common.records import Batch, derive_seed

# A prompt that many completions share is computed once, but attention reads it once for each completion. The tokens that attention
# reads are therefore capped as well, at this many times the token budget.
ATTENTION_READS = 2


@dataclass(frozen=True)
class MicroBatch:
    """b rows of a Batch, T = the longest completion among them; padded on the right to (b, L), or packed to (1, L).

    The places of all tokens were worked out on the CPU, so a GPU never waits for them.
    """

    rows: Tensor  # (b,) int64, into the Batch
    input_ids: Tensor  # (b, L) or (1, L) int64
    inputs: dict[str, Any]  # the model's further inputs
    before: Tensor  # (N,) int64, into the flattened input_ids: the token before each of the N completion tokens, row by row
    tokens: Tensor  # (N,) int64: the completion tokens
    places: Tensor  # (N,) int64: where each completion token stands in a flattened (b, T)
    completion_mask: Tensor  # (b, T) bool: the tokens of the completions
    mask: Tensor  # (b, T) bool: the tokens in the loss, as phase 4 made the mask
    sampling_logps: Tensor  # (b, T) float32, 0 where there is no token

    def take(self, per_row: Tensor) -> Tensor:
        """The micro-batch's part of a (B,) or (B, T of the batch) tensor, on its device: (b,) or (b, T)."""
        part = per_row[self.rows]
        return on_device((part[:, :self.completion_mask.shape[1]] if part.ndim == 2 else part).contiguous(), self.input_ids.device)

    def spread(self, values: Tensor) -> Tensor:
        """(b, T) of values (N,), one for each completion token row by row; 0 where masked."""
        shape = self.completion_mask.shape
        return values.new_zeros(shape.numel()).index_copy(0, self.places, values).reshape(shape)


class Placement(Protocol):
    """What a micro-batch must know of the policy that will run it."""

    device: torch.device
    packs: bool  # whether its attention can tell packed rows apart


def microbatches(batch: Batch, rows: Tensor, max_tokens: int, policy: Placement, mask: Tensor | None = None, *, shared: bool = True,
                 ) -> Iterator[MicroBatch]:
    """Micro-batches over `rows` of the batch, the longest first, each of at most `max_tokens` tokens (or of one row).

    mask (B, T) bool: the tokens in the loss; None: all sampled tokens. shared: in a run of several processes, over this one's share of the
    rows, which may be none.

    If the policy packs, rows stand without padding, and a prompt is computed once for all its completions in the micro-batch. If it
    does not, rows are padded, and the padding counts. The longest come first, so that what does not fit in memory fails at once.
    """
    prompts = [problem.prompt_ids for problem in batch.problems]
    new = [len(completion.ids) for completion in batch.completions]
    mask = batch.loss_mask() if mask is None else mask
    order = (_by_prompt if policy.packs else _by_length)(rows.tolist(), prompts, new)
    if shared:
        order = order[parallel.part([new[row] + len(prompts[row]) for row in order])]
    for part in (_packed_parts if policy.packs else _padded_parts)(order, prompts, new, max_tokens):
        yield _microbatch(batch, part, policy, mask)


def _by_length(rows: list[int], prompts: list[Ids], new: list[int]) -> list[int]:
    """The longest first, so that little is padding."""
    return sorted(rows, key=lambda row: len(prompts[row]) + new[row], reverse=True)


def _by_prompt(rows: list[int], prompts: list[Ids], new: list[int]) -> list[int]:
    """The completions of a prompt stay together, those with the longest row first."""
    longest: dict[Ids, int] = {}  # row of each prompt
    for row in rows:
        longest[prompts[row]] = max(len(prompts[row]) + new[row], longest.get(prompts[row], 0))
    return sorted(rows, key=lambda row: (longest[prompts[row]], prompts[row], new[row]), reverse=True)


def _padded_parts(order: list[int], prompts: list[Ids], new: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Every row of a part counts as long as its longest, the first one."""
    length = {row: len(prompts[row]) + new[row] for row in order}
    while order:
        count = max(1, max_tokens // length[order[0]])
        yield order[:count]
        order = order[count:]


def _packed_parts(order: list[int], prompts: list[Ids], new: list[int], max_tokens: int) -> Iterator[list[int]]:
    """A prompt counts once in a part."""
    length = {row: len(prompts[row]) + new[row] for row in order}
    part: list[int] = []
    present: set[Ids] = set()  # prompts of the part
    computed = read = 0  # tokens that the model computes, and that attention reads
    for row in order:
        cost = new[row] if prompts[row] in present else length[row]
        if part and (computed + cost > max_tokens or read + length[row] > ATTENTION_READS * max_tokens):
            yield part
            part, present, computed, read, cost = [], set(), 0, 0, length[row]
        part.append(row)
        present.add(prompts[row])
        computed, read = computed + cost, read + length[row]
    if part:
        yield part


def _microbatch(batch: Batch, rows: list[int], policy: Placement, mask: Tensor) -> MicroBatch:
    prompts, completions = [batch.problems[row].prompt_ids for row in rows], [batch.completions[row] for row in rows]
    present = np.arange(max(len(c.ids) for c in completions)) < np.array([[len(c.ids)] for c in completions])  # (b, T)
    logps = np.zeros(present.shape, dtype=np.float32)
    logps[present] = np.concatenate([c.logps for c in completions])
    for row, completion in enumerate(completions):
        if completion.sampled is not None:  # whatever stands there must not reach a gradient
            logps[row, :len(completion.ids)][~np.array(completion.sampled, dtype=bool)] = 0.0
    ids = [c.ids for c in completions]
    input_ids, before, inputs = pack(prompts, ids, policy.device) if policy.packs else (*_pad(prompts, ids), {})
    arrays = {"input_ids": input_ids, "before": np.concatenate(before), "tokens": np.concatenate(ids), "places": np.flatnonzero(present),
              "completion_mask": present, "mask": mask[rows, :present.shape[1]].numpy(), "sampling_logps": logps}
    return MicroBatch(rows=torch.tensor(rows), inputs=inputs,
                      **{name: on_device(torch.from_numpy(array), policy.device) for name, array in arrays.items()})


def _pad(prompts: list[Ids], completions: list[list[int]]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Token ids (b, L) with zeros on the right, which causal attention never looks at; and for each row the places `before`."""
    width = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt, completion in zip(ids, prompts, completions, strict=True):
        row[:len(prompt) + len(completion)] = [*prompt, *completion]
    # the state at position j predicts token j + 1
    return ids, [i * width + len(p) - 1 + np.arange(len(c)) for i, (p, c) in enumerate(zip(prompts, completions, strict=True))]


def minibatches(size: int, num_iterations: int, num_minibatches: int, seed: int, step: int) -> Iterator[Tensor]:
    """Row indices of each optimiser step on one rollout batch of `size` rows.

    Each of the `num_iterations` passes is shuffled anew and cut into `num_minibatches` near-equal parts, none of them empty.
    """
    num_minibatches = min(num_minibatches, size)
    for iteration in range(num_iterations):
        if num_minibatches == 1:
            yield torch.arange(size)
            continue
        generator = torch.Generator().manual_seed(derive_seed(seed, "minibatches", step, iteration) % 2**63)
        yield from torch.randperm(size, generator=generator).tensor_split(num_minibatches)
