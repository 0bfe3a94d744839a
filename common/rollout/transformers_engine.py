"""The engine that needs nothing but transformers: it samples from the trainer's own model."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from common.policy.policy import Policy
from common.records import Completion, Request, hash_seeds
from common.rollout.draw import draw_tokens, uniforms
from common.rollout.engine import Ended
from common.rollout.prefill import Prompts, cache_bytes, drop_padding, select_rows, trunks_of, window_of
from common.rollout.text import decode, stop_at

# Memory for the keys and values of one batch. On CPU it is a constant, so that batches do not depend on other programs; 2 GiB hold 256
# rows of 700 tokens of a 0.5B model. On a GPU it is a share of the free memory, below a half because a cache that grows exists twice.
CPU_CACHE_BYTES = 2 * 2**30
GPU_CACHE_SHARE = 0.4
MAX_ROWS = {"cpu": 256, "cuda": 1024}  # on CPU larger batches were slower: 4.1k tokens/s at 256 rows, 2.9k at 512
PREFILL_TOKENS = 2**15  # prompt tokens in one forward, padding included: an MLP tensor of width 9,000 then has 0.6 GB in bfloat16
LOGITS_BYTES = 2**26  # of float64 probabilities computed at once: 55 rows of a 152k vocabulary; about five such tensors exist at a time


class _Rows:
    """The completions of one batch while they grow: R rows, each a sample of one request."""

    def __init__(self, requests: list[Request], where: list[tuple[int, int]]) -> None:
        """requests: one per row. where: for each row the index of its request in the caller's list, and the number of its sample."""
        self.requests, self.where = requests, where
        self.seeds = hash_seeds(np.array([request.seed for request in requests], dtype=np.uint64),
                         np.array([sample for _, sample in where], dtype=np.uint64))
        self.max_tokens = np.array([request.max_tokens for request in requests])
        self.stops = [row for row, request in enumerate(requests) if request.stop]
        self.ids = np.zeros((len(requests), self.max_tokens.max()), dtype=np.int64)
        self.logps = np.zeros(self.ids.shape, dtype=np.float32)
        self.lengths = np.zeros(len(requests), dtype=np.int64)
        self.stopped = np.zeros(len(requests), dtype=bool)  # by an end token or a stop string
        self.ended = np.zeros(len(requests), dtype=bool)  # stopped, or at the length limit


class TransformersEngine:
    """Samples from the trainer's own model. The adapter is merged into separate float32 tensors; where that would round, it stays on.

    Each prompt goes through the model once for all its samples (prefill.py). Samples are sorted by length and batched by the memory of
    their keys and values. Rows that are finished are dropped.
    """

    def __init__(self, prompts: list[tuple[int, ...]] | None = None) -> None:
        """`prompts`: all prompts of the run. Two short ones show whether the merged adapter is the one that is trained."""
        self.probe_prompts = sorted(prompts or [], key=len)[:2]

    def held_base(self) -> None:
        """None: the trainer's model is the only one."""

    def connect(self, policy: Policy) -> None:
        """Samples from this policy's model."""
        self.policy = policy
        self.device = policy.device
        self.chunk = MAX_ROWS[self.device.type]
        self.stop_ids = np.array(sorted(policy.stop_ids), dtype=np.int64)
        per_token, fixed = cache_bytes(policy)
        self.cache_bytes_per_token = max(1, per_token)  # a model may have states alone
        self.state_tokens = -(-fixed // self.cache_bytes_per_token)  # a row's states take as much memory as so many tokens
        self.sync()

    def sync(self) -> None:
        """Samples from the current adapter from now on."""
        self.weights = self.policy.merged_weights()

    def sleep(self) -> None:
        """Nothing to free: model and memory are the trainer's."""

    @torch.inference_mode()
    def generate(self, requests: list[Request], ended: Ended | None = None) -> list[list[Completion]]:
        """completions[i] are the `n` samples of requests[i]. ended: is told, during the call, how many more completions have ended."""
        results: list[list[Completion | None]] = [[None] * request.n for request in requests]
        with self.policy.merged(self.weights):
            for together in self._prefills(requests):
                prompts = Prompts(self.policy, [requests[i].prompt_ids for i in together])
                for rows in self._batches(requests, together, prompts):
                    self._run(rows, prompts, ended or (lambda count: None))
                    for (i, sample), completion in zip(rows.where, self._completions(rows), strict=True):
                        results[i][sample] = completion
        return results  # type: ignore[return-value]  # every place has been filled

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _prefills(self, requests: list[Request]) -> Iterator[list[int]]:
        """Indices of the requests whose prompts go through the model together.

        A family is all requests whose prompts are beginnings of one prompt, the trunk; one forward over the trunk serves them all.
        """
        trunks = trunks_of([request.prompt_ids for request in requests], window_of(self.policy))
        families: dict[tuple[int, ...], list[int]] = {}
        for i, request in enumerate(requests):
            families.setdefault(trunks[request.prompt_ids], []).append(i)
        # by seed last, so that the caller's order does not show even in the last bits of the log-probs
        order = sorted(families, key=lambda trunk: (len(trunk), min(requests[i].seed for i in families[trunk])))
        limit = min(PREFILL_TOKENS, self._room() // 4)  # the rest of the room is for the completions' keys and values
        for part in cut_padded([(len(trunk) + self.state_tokens,) for trunk in order], limit, len(order)):
            yield [i for trunk in order[part] for i in families[trunk]]

    def _batches(self, requests: list[Request], together: list[int], prompts: Prompts) -> Iterator[_Rows]:
        """Batches of rows of similar length, one row for each sample, as many as the room for keys and values allows."""
        # the prompts' own keys and values take room too; on a GPU the memory that is free does not hold them any more
        room = self._room() - (prompts.tokens if self.device.type == "cpu" else 0)
        order = sorted(together, key=lambda i: (requests[i].max_tokens, len(requests[i].prompt_ids), requests[i].seed))
        waiting = [(i, sample) for i in order for sample in range(requests[i].n)]
        sizes = [(max(len(requests[i].prompt_ids), prompts.min_columns) + self.state_tokens, requests[i].max_tokens) for i, _ in waiting]
        for part in cut_padded(sizes, room, MAX_ROWS[self.device.type]):
            yield _Rows([requests[i] for i, _ in waiting[part]], waiting[part])

    def _room(self) -> int:
        """Tokens whose keys and values may be in memory at once."""
        budget = CPU_CACHE_BYTES if self.device.type == "cpu" else int(GPU_CACHE_SHARE * self._free_gpu_bytes())
        return max(1, budget // self.cache_bytes_per_token)

    def _free_gpu_bytes(self) -> int:
        """Bytes that sampling may use: the free memory of the device, and the memory that torch's allocator holds but does not use."""
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + held

    def _run(self, rows: _Rows, prompts: Prompts, ended: Ended) -> None:
        """Grows every row of a batch to its end, from its prompt's keys and values. ended: as in `generate`."""
        hidden, attention, positions, cache = prompts.take([request.prompt_ids for request in rows.requests])
        alive = np.arange(len(rows.requests))  # the rows still in the tensors below, in their order
        temperature = torch.tensor([request.temperature for request in rows.requests], device=self.device)
        top_p = torch.tensor([request.top_p for request in rows.requests], device=self.device)
        for position in range(rows.ids.shape[1]):
            tokens, logps = self._sample(hidden, rows.seeds[alive], position, temperature, top_p)
            before = int(rows.ended.sum())
            self._append(rows, alive, position, tokens, logps)
            if count := int(rows.ended.sum()) - before:
                ended(count)
            going = ~rows.ended[alive]
            if not going.any():
                return
            if going.mean() < 0.9:  # dropping rows copies the cache, which is not worth it for a few rows
                kept = torch.from_numpy(np.flatnonzero(going)).to(self.device)
                select_rows(cache, kept)
                alive, tokens, attention, positions = alive[going], tokens[kept], attention[kept], positions[kept]
                temperature, top_p = temperature[kept], top_p[kept]
                attention = drop_padding(attention, cache)
            attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
            # plain attention gets the mask in the form that is added to the scores, so that transformers need not compute it
            mask = attention
            if self.policy.packs:
                mask = torch.zeros(mask.shape, device=self.device, dtype=self.policy.dtype).masked_fill_(mask == 0, -torch.inf)
                mask = mask[:, None, None]
            hidden = self.policy.hidden_states(tokens[:, None], attention_mask=mask, position_ids=positions[:, None],
                                               past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            positions = positions + 1

    def _sample(self, hidden: Tensor, seeds: np.ndarray, position: int, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
        """Next tokens (R,) and their log-probs (R,), a bounded number of rows at a time."""
        u = uniforms(seeds, position, self.policy.vocabulary).to(self.device)
        size = max(1, LOGITS_BYTES // (8 * self.policy.vocabulary))
        parts = [draw_tokens(self.policy.logits(hidden[i:i + size]), u[i:i + size], temperature[i:i + size], top_p[i:i + size])
                 for i in range(0, len(hidden), size)]
        return torch.cat([tokens for tokens, _ in parts]), torch.cat([logps for _, logps in parts])

    def _append(self, rows: _Rows, alive: np.ndarray, position: int, tokens: Tensor, logps: Tensor) -> None:
        """Adds a token to every unfinished row and marks those that it finishes."""
        going = ~rows.ended[alive]
        grown = alive[going]
        rows.ids[grown, position], rows.logps[grown, position] = tokens.cpu().numpy()[going], logps.cpu().numpy()[going]
        rows.lengths[grown] = position + 1
        rows.stopped[grown] = (rows.ids[grown, position, None] == self.stop_ids).any(axis=1)
        for row in rows.stops:
            if not rows.ended[row]:
                rows.stopped[row] |= self._stopped(rows.ids[row, :position + 1], rows.requests[row].stop)
        rows.ended |= rows.stopped | (rows.lengths >= rows.max_tokens)

    def _stopped(self, ids: np.ndarray, stop: tuple[str, ...]) -> bool:
        """Whether the last of `ids` (T,) completed a stop string, or is itself one: a special token such as <|im_end|> has no text."""
        tokenizer = self.policy.tokenizer
        end = ids[-4 * max(map(len, stop)) - 8:].tolist()  # a character has at most four bytes, and so at most four tokens
        tail = decode(tokenizer, end)
        if any(text in tail for text in stop) and stop_at(decode(tokenizer, ids.tolist()), stop) is not None:
            return True
        return tokenizer.convert_ids_to_tokens(end[-1]) in stop

    def _completions(self, rows: _Rows) -> Iterator[Completion]:
        for row, request in enumerate(rows.requests):
            own = row, slice(rows.lengths[row])
            ids = rows.ids[own].tolist()
            text = decode(self.policy.tokenizer, ids)
            yield Completion(ids, rows.logps[own].tolist(), "stop" if rows.stopped[row] else "length", text[:stop_at(text, request.stop)])


def cut_padded(sizes: list[tuple[int, ...]], limit: int, most: int) -> Iterator[slice]:
    """Cuts a list into consecutive parts of at most `most` items, each of which takes at most `limit` when padded (or is one item).

    Padded, an item takes the largest of each size in its part. [(2, 1), (3, 1), (3, 9)], 8, 3 -> the first two, then the third.
    """
    start = 0
    while start < len(sizes):
        end, largest = start, sizes[start]
        for size in sizes[start:start + most]:
            wider = tuple(map(max, largest, size))
            if end > start and (end + 1 - start) * sum(wider) > limit:
                break
            end, largest = end + 1, wider
        yield slice(start, end)
        start = end
