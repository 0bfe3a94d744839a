"""Sampling completions: the engine interface, and the transformers engine that needs nothing but the policy.

What is sampled depends on a request's seed and on nothing else: not on the other requests, their order, or how they were
batched (token for token on CPU; on a GPU the seeds are the same and the kernels' rounding is not).
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from common.config import CommonConfig
from common.policy import Policy

# Keys and values of one batch may take: on CPU a constant, so that batches do not depend on what else runs (2 GiB is 256 rows
# of 700 tokens for a 0.5B model); on a GPU this share of what is free, as growing them by a token holds them twice
CPU_CACHE_BYTES = 2 * 2**30
GPU_CACHE_SHARE = 0.4
MAX_ROWS = {"cpu": 256, "cuda": 1024}  # on CPU larger batches were slower: 4.1k tokens/s at 256 rows, 2.9k at 512
PREFILL_TOKENS = 2**15  # padded prompt tokens in one forward: bounds its activations, 0.6 GB an MLP tensor at width 9,000 in bf16
LOGITS_BYTES = 2**26  # of float64 probabilities in one piece (55 rows of a 152k vocabulary); about five such tensors exist at a time


@dataclass(frozen=True)
class Request:
    """`n` completions of one prompt. `seed` is a 64-bit hash (`derive_seed`); sample i uses a further hash with i."""

    prompt_ids: tuple[int, ...]
    seed: int
    n: int = 1
    max_tokens: int = 1024
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One sample. `ids` holds the end token if it was sampled; `logps` are the sampler's, at the sampling temperature.

    `text` is cut at the stop string; `ids` go to the end of the token that completed it.
    """

    ids: list[int]
    logps: list[float]
    finish_reason: Literal["stop", "length"]
    text: str


class Engine(Protocol):
    """What samples. `sync` makes the current adapter the one that is sampled from."""

    def sync(self) -> None: ...

    def generate(self, requests: list[Request]) -> list[list[Completion]]: ...


def derive_seed(run_seed: int, purpose: str, *parts: int | str) -> int:
    """64 bits that depend on every argument: streams of different purpose, step or problem never meet."""
    text = "\x1f".join(map(str, (run_seed, purpose, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def make_engine(config: CommonConfig, policy: Policy) -> Engine:
    """The engine of `--engine`, with the current adapter."""
    why = "" if config.engine == "transformers" else " (auto: it is the only one in this version)"
    print(f"engine: transformers on {policy.device.type}{why}")
    if config.top_p < 1:
        print("note: with --top_p below 1 the tokens come from a truncated distribution that the trainer does not reproduce: "
              "the importance weights are biased")
    return TransformersEngine(policy)


def mix(values: np.ndarray, counter: np.ndarray | int) -> np.ndarray:
    """The splitmix64 hash of (value, counter), elementwise, uint64. Overflow wraps, as it should."""
    with np.errstate(over="ignore"):
        z = values + (np.asarray(counter, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniforms(seeds: np.ndarray, position: int) -> Tensor:
    """One float64 in [0, 1) per row, from its seed and the position of the token."""
    return torch.from_numpy((mix(seeds, position) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def sample_tokens(logits: Tensor, u: Tensor, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (R,) by inversion of the CDF at u (R,), in float64, and their log-probs (R,) float32, nats.

    logits (R, V); temperature, top_p (R,). A row at temperature 0 takes its most likely token, with its log-prob at
    temperature 1. The log-probs are those before top_p cuts the tail, which is what the trainer computes.
    """
    greedy = temperature == 0
    scaled = logits.double() / torch.where(greedy, 1.0, temperature).double()[:, None]
    normaliser = scaled.logsumexp(-1, keepdim=True)
    kept = probs = (scaled - normaliser).exp_()
    if (top_p < 1).any():
        ordered, index = torch.sort(probs, dim=-1, descending=True, stable=True)
        # the smallest set of most likely tokens that holds top_p: a token goes if those before it already do
        outside = ordered.cumsum(-1) - ordered >= top_p.double()[:, None]
        kept = probs.masked_fill(outside.gather(-1, index.argsort(-1)) & (top_p < 1)[:, None], 0.0)
    cdf = kept.cumsum(-1)
    tokens = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    tokens = torch.where(greedy, scaled.argmax(-1), tokens)
    return tokens, (scaled.gather(-1, tokens[:, None]) - normaliser)[:, 0].float()


@dataclass
class _Rows:
    """The completions of one batch while they grow: R rows, each a sample of one request."""

    requests: list[Request]  # one per row
    where: list[tuple[int, int]]  # (request, sample) in the caller's list
    prompt: list[int]  # row -> index into the batch's different prompts
    seeds: np.ndarray = field(init=False)
    ids: list[list[int]] = field(init=False)
    logps: list[list[float]] = field(init=False)
    reason: list[Literal["stop", "length"] | None] = field(init=False)

    def __post_init__(self) -> None:
        own = np.array([request.seed for request in self.requests], dtype=np.uint64)
        self.seeds = mix(own, np.array([sample for _, sample in self.where], dtype=np.uint64))
        self.ids, self.logps = [[] for _ in self.requests], [[] for _ in self.requests]
        self.reason = [None] * len(self.requests)


class TransformersEngine:
    """Samples from the trainer's own model: adapter merged into separate float32 tensors, or left on where that would round.

    Requests are sorted by length and batched by the memory of their keys and values. Each prompt of a batch is prefilled
    once for all its samples; finished rows are dropped.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.device = policy.device
        config = policy.base.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = 2 if policy.dtype == torch.bfloat16 else 4
        self.cache_bytes_per_token = 2 * config.num_hidden_layers * heads * head_size * width
        self.sync()

    def sync(self) -> None:
        """Samples from the current adapter from now on."""
        self.weights = self.policy.merged_weights()

    @torch.no_grad()
    def generate(self, requests: list[Request]) -> list[list[Completion]]:
        """completions[i] are the `n` samples of requests[i]."""
        results: list[list[Completion | None]] = [[None] * request.n for request in requests]
        with self.policy.merged(self.weights):
            for rows in self._batches(requests):
                self._run(rows)
                for (i, sample), completion in zip(rows.where, self._completions(rows), strict=True):
                    results[i][sample] = completion
        return results  # type: ignore[return-value]  # every place has been filled

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _batches(self, requests: list[Request]) -> Iterator[_Rows]:
        """Rows of similar length, as many as the memory for keys and values allows."""
        budget = CPU_CACHE_BYTES if self.device.type == "cpu" else int(GPU_CACHE_SHARE * self._free_gpu_bytes())
        tokens = max(1, budget // self.cache_bytes_per_token)
        # by seed last: the caller's order does not show even in the last bits of the log-probs
        order = sorted(range(len(requests)), key=lambda i: (requests[i].max_tokens, len(requests[i].prompt_ids), requests[i].seed))
        waiting = [(i, sample) for i in order for sample in range(requests[i].n)]
        while waiting:
            count, prompt_length, new, distinct = 0, 0, 0, set()
            for i, _ in waiting[:MAX_ROWS[self.device.type]]:
                prompt_length, new = max(prompt_length, len(requests[i].prompt_ids)), max(new, requests[i].max_tokens)
                distinct.add(i)
                if count and ((count + 1) * (prompt_length + new) > tokens or len(distinct) * prompt_length > PREFILL_TOKENS):
                    break
                count += 1
            where, waiting = waiting[:count], waiting[count:]
            prompts = {i: k for k, i in enumerate(dict.fromkeys(i for i, _ in where))}
            yield _Rows([requests[i] for i, _ in where], where, [prompts[i] for i, _ in where])

    def _free_gpu_bytes(self) -> int:
        """What sampling may use: what the device has left, and what torch's allocator holds unused after an update."""
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + held

    def _run(self, rows: _Rows) -> None:
        """Grows every row of a batch to its end."""
        prompts = list({k: request.prompt_ids for k, request in zip(rows.prompt, rows.requests, strict=True)}.values())
        cache = DynamicCache(config=self.policy.base.config.get_text_config())
        hidden, attention, positions = self._prefill(prompts, cache)
        alive = np.arange(len(rows.requests))  # the rows still in the tensors below, in their order
        select = torch.tensor(rows.prompt, device=self.device)
        cache.batch_select_indices(select)
        hidden, attention, positions = hidden[select], attention[select], positions[select]
        temperature = torch.tensor([request.temperature for request in rows.requests], device=self.device)
        top_p = torch.tensor([request.top_p for request in rows.requests], device=self.device)
        position = 0
        while True:
            tokens, logps = self._sample(hidden, rows.seeds[alive], position, temperature, top_p)
            self._append(rows, alive, tokens, logps)
            position += 1
            going = np.array([rows.reason[row] is None for row in alive])
            if not going.any():
                return
            if going.mean() < 0.9:  # dropping rows copies the cache, and so does each further token: not for a few rows
                kept = torch.from_numpy(np.flatnonzero(going)).to(self.device)
                cache.batch_select_indices(kept)
                alive, tokens, attention, positions = alive[going], tokens[kept], attention[kept], positions[kept]
                temperature, top_p = temperature[kept], top_p[kept]
            attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
            hidden = self._forward(tokens[:, None], attention, positions[:, None], cache)
            positions = positions + 1

    def _prefill(self, prompts: list[tuple[int, ...]], cache: DynamicCache) -> tuple[Tensor, Tensor, Tensor]:
        """Last hidden state (P, H), attention mask (P, L) and next position (P,) of the prompts, padded on the left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=self.device)
        attention = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        hidden = self._forward(ids, attention, (attention.cumsum(-1) - 1).clamp(min=0), cache)
        return hidden, attention, attention.sum(-1)

    def _forward(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        output = self.policy.hidden_states(ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True)
        return output.last_hidden_state[:, -1]

    def _sample(self, hidden: Tensor, seeds: np.ndarray, position: int, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
        """Next tokens (R,) and their log-probs (R,), a bounded number of rows at a time."""
        u = uniforms(seeds, position).to(self.device)
        size = max(1, LOGITS_BYTES // (8 * self.policy.vocabulary))
        parts = [sample_tokens(self.policy.logits(hidden[i:i + size]), u[i:i + size], temperature[i:i + size], top_p[i:i + size])
                 for i in range(0, len(hidden), size)]
        return torch.cat([tokens for tokens, _ in parts]), torch.cat([logps for _, logps in parts])

    def _append(self, rows: _Rows, alive: np.ndarray, tokens: Tensor, logps: Tensor) -> None:
        """Adds a token to every unfinished row and marks those that it finishes."""
        for row, token, logp in zip(alive.tolist(), tokens.tolist(), logps.tolist(), strict=True):
            if rows.reason[row] is not None:
                continue
            rows.ids[row].append(token)
            rows.logps[row].append(logp)
            request = rows.requests[row]
            if token in self.policy.stop_ids or (request.stop and self._stopped(rows.ids[row], request.stop)):
                rows.reason[row] = "stop"
            elif len(rows.ids[row]) >= request.max_tokens:
                rows.reason[row] = "length"

    def _stopped(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        """Whether the last token completed a stop string, or is one (a special token such as <|im_end|>, which no text shows)."""
        tail = self._decode(ids[-4 * max(map(len, stop)) - 8:])  # a character is at most four bytes, and so four tokens
        if any(end in tail for end in stop) and self._stop_at(self._decode(ids), stop) is not None:
            return True
        return self.policy.tokenizer.convert_ids_to_tokens(ids[-1]) in stop

    @staticmethod
    def _stop_at(text: str, stop: tuple[str, ...]) -> int | None:
        """Character at which the first stop string begins, or None."""
        return min((text.find(end) for end in stop if end in text), default=None)

    def _decode(self, ids: list[int]) -> str:
        return self.policy.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _completions(self, rows: _Rows) -> Iterator[Completion]:
        for request, ids, logps, reason in zip(rows.requests, rows.ids, rows.logps, rows.reason, strict=True):
            text = self._decode(ids)
            cut = self._stop_at(text, request.stop)
            yield Completion(ids, logps, reason or "length", text[:cut])
