"""Sampling completions: the engine interface; an engine that needs nothing but transformers, and one that is vLLM's.

With the transformers engine what is sampled depends on a request's seed and on nothing else: not on the other requests,
their order, or how they were batched (token for token on CPU; on a GPU the seeds are the same and the kernels' rounding is
not). vLLM is given the same seeds and promises less.
"""
from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from common.config import SamplingConfig, UserError
from common.parity import check_parity
from common.policy import Policy
from common.prefill import Prompts, drop_padding, trunks_of, window_of
from common.pretrained import adapter_settings, load_generation_config, model_folder, stop_token_ids

# Keys and values of one batch may take: on CPU a constant, so that batches do not depend on what else runs (2 GiB is 256 rows
# of 700 tokens for a 0.5B model); on a GPU this share of what is free, as growing them by a token holds them twice
CPU_CACHE_BYTES = 2 * 2**30
GPU_CACHE_SHARE = 0.4
MAX_ROWS = {"cpu": 256, "cuda": 1024}  # on CPU larger batches were slower: 4.1k tokens/s at 256 rows, 2.9k at 512
PREFILL_TOKENS = 2**15  # padded prompt tokens in one forward: bounds its activations, 0.6 GB an MLP tensor at width 9,000 in bf16
LOGITS_BYTES = 2**26  # of float64 probabilities in one piece (55 rows of a 152k vocabulary); about five such tensors exist at a time

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has buffers for
CPU_KV_GIB = 2  # for vLLM's keys and values without a GPU, as CPU_CACHE_BYTES
CPU_BLOCK = 32  # tokens in a cache block without a GPU, where vLLM's default of 128 never shares a short prompt; a multiple of 32


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
    """What samples. `connect` names the policy to follow; `sync` makes its current adapter the one that is sampled from.

    `sleep` frees what the trainer may need; `generate` wakes up by itself. `chunk`: completions that keep the engine busy.
    """

    chunk: int

    def connect(self, policy: Policy) -> None: ...

    def sync(self) -> None: ...

    def sleep(self) -> None: ...

    def generate(self, requests: list[Request]) -> list[list[Completion]]: ...


def derive_seed(run_seed: int, purpose: str, *parts: int | str) -> int:
    """64 bits that depend on every argument: streams of different purpose, step or problem never meet."""
    text = "\x1f".join(map(str, (run_seed, purpose, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def make_engine(config: SamplingConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig,
                prompts: list[tuple[int, ...]]) -> Engine:
    """The engine of `--engine`, started; a trainer then calls `connect`. `prompts`: what will be asked at most.

    Called before the trainer's model is loaded, as vLLM measures the free memory of the GPU and takes its share.
    """
    name, why = choose_engine(config)
    print(f"engine: {name} on {'cuda' if torch.cuda.is_available() else 'cpu'} ({why})", flush=True)
    if config.top_p < 1:
        print("note: with --top_p below 1 the tokens come from a truncated distribution that the trainer does not reproduce: "
              "the importance weights are biased")
    return TransformersEngine() if name == "transformers" else VLLMEngine(config, tokenizer, model_config, prompts)


def choose_engine(config: SamplingConfig) -> tuple[str, str]:
    """What `--engine` means here, and why."""
    if config.engine != "auto":
        return config.engine, f"--engine {config.engine}"
    missing = ("there is no CUDA device" if not torch.cuda.is_available() else
               "vllm is not installed" if not importlib.util.find_spec("vllm") else
               "vLLM's adapters need --dtype bfloat16 on a GPU" if config.dtype == "float32" else
               "the embedded model is done before vLLM has started" if config.model == "tiny" else None)
    return ("transformers", f"auto: {missing}") if missing else ("vllm", "auto: there are a CUDA device and vllm")


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of sampled tokens, special ones left out."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stop_at(text: str, stop: tuple[str, ...]) -> int | None:
    """Character at which the first stop string begins, or None."""
    return min((text.find(end) for end in stop if end in text), default=None)


def join(tokenizer: PreTrainedTokenizerBase, prefix: tuple[int, ...], rest: Completion, stop: list[str] | None) -> Completion:
    """The completion that `prefix` and its continuation `rest` make, as if it had been sampled whole: for scoring, without log-probs.

    A stop string that began in the prefix ends it here, though the engine, which saw its end alone, went on.
    """
    ids = [*prefix, *rest.ids]
    text = decode(tokenizer, ids)
    end = stop_at(text, tuple(stop or ()))
    return Completion(ids, [], "stop" if end is not None else rest.finish_reason, text[:end])


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
    scaled = logits.double().div_(torch.where(greedy, 1.0, temperature).double()[:, None])
    scaled -= scaled.amax(-1, keepdim=True)
    weights = scaled.exp()
    total = (cdf := weights.cumsum(-1))[:, -1:]  # (R, 1)
    if (top_p < 1).any():
        ordered, index = torch.sort(weights, dim=-1, descending=True, stable=True)
        # the smallest set of most likely tokens that holds top_p: a token goes if those before it already do
        outside = ordered.cumsum(-1) - ordered >= top_p.double()[:, None] * total
        cdf = weights.masked_fill(outside.gather(-1, index.argsort(-1)) & (top_p < 1)[:, None], 0.0).cumsum(-1)
    tokens = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)
    if greedy.any():
        tokens = torch.where(greedy[:, None], scaled.argmax(-1, keepdim=True), tokens)
    return tokens[:, 0], (scaled.gather(-1, tokens) - total.log())[:, 0].float()


class _Rows:
    """The completions of one batch while they grow: R rows, each a sample of one request."""

    def __init__(self, requests: list[Request], where: list[tuple[int, int]]) -> None:
        """requests: one per row; where: (request, sample) in the caller's list."""
        self.requests, self.where = requests, where
        self.seeds = mix(np.array([request.seed for request in requests], dtype=np.uint64),
                         np.array([sample for _, sample in where], dtype=np.uint64))
        self.max_tokens = np.array([request.max_tokens for request in requests])
        self.stops = [row for row, request in enumerate(requests) if request.stop]
        self.ids = np.zeros((len(requests), self.max_tokens.max()), dtype=np.int64)
        self.logps = np.zeros(self.ids.shape, dtype=np.float32)
        self.lengths = np.zeros(len(requests), dtype=np.int64)
        self.stopped, self.ended = np.zeros((2, len(requests)), dtype=bool)  # by an end token or string; by that or by the limit


class TransformersEngine:
    """Samples from the trainer's own model: adapter merged into separate float32 tensors, or left on where that would round.

    Each prompt is prefilled once for all its samples, and a prompt with which another one begins not at all. Samples are
    sorted by length and batched by the memory of their keys and values; finished rows are dropped.
    """

    def connect(self, policy: Policy) -> None:
        """Samples from this policy's model."""
        self.policy = policy
        self.device = policy.device
        self.chunk = MAX_ROWS[self.device.type]
        config = policy.base.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = 2 if policy.dtype == torch.bfloat16 else 4
        self.stop_ids = np.array(sorted(policy.stop_ids), dtype=np.int64)
        self.cache_bytes_per_token = 2 * config.num_hidden_layers * heads * head_size * width
        self.sync()

    def sync(self) -> None:
        """Samples from the current adapter from now on."""
        self.weights = self.policy.merged_weights()

    def sleep(self) -> None:
        """Nothing to free: model and memory are the trainer's."""

    @torch.inference_mode()
    def generate(self, requests: list[Request]) -> list[list[Completion]]:
        """completions[i] are the `n` samples of requests[i]."""
        results: list[list[Completion | None]] = [[None] * request.n for request in requests]
        with self.policy.merged(self.weights):
            for some in self._parts(requests):
                prompts = Prompts(self.policy, [requests[i].prompt_ids for i in some])
                for rows in self._batches(requests, some, prompts.tokens, prompts.least):
                    self._run(rows, prompts)
                    for (i, sample), completion in zip(rows.where, self._completions(rows), strict=True):
                        results[i][sample] = completion
        return results  # type: ignore[return-value]  # every place has been filled

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _parts(self, requests: list[Request]) -> Iterator[list[int]]:
        """Indices of requests whose prompts are prefilled together; those that one forward serves are not parted."""
        trunks = trunks_of([request.prompt_ids for request in requests], window_of(self.policy))
        families: dict[tuple[int, ...], list[int]] = {}
        for i, request in enumerate(requests):
            families.setdefault(trunks[request.prompt_ids], []).append(i)
        # by seed last: the caller's order does not show even in the last bits of the log-probs
        order = sorted(families, key=lambda trunk: (len(trunk), min(requests[i].seed for i in families[trunk])))
        limit = min(PREFILL_TOKENS, self._room() // 4)  # of what there is for keys and values, rows need the most
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(order[count]) <= limit:  # the longest so far: they are padded to it
                count += 1
            part, order = order[:count], order[count:]
            yield [i for trunk in part for i in families[trunk]]

    def _batches(self, requests: list[Request], some: list[int], held: int, least: int = 0) -> Iterator[_Rows]:
        """Rows of similar length of some of the requests, as many as the memory for keys and values allows beside `held` tokens.

        Each starts with `least` columns or more.
        """
        tokens = self._room() - (held if self.device.type == "cpu" else 0)  # on a GPU they are not free any more as it is
        order = sorted(some, key=lambda i: (requests[i].max_tokens, len(requests[i].prompt_ids), requests[i].seed))
        waiting = [(i, sample) for i in order for sample in range(requests[i].n)]
        while waiting:
            count, prompt_length, new = 0, least, 0
            for i, _ in waiting[:MAX_ROWS[self.device.type]]:
                prompt_length, new = max(prompt_length, len(requests[i].prompt_ids)), max(new, requests[i].max_tokens)
                if count and (count + 1) * (prompt_length + new) > tokens:
                    break
                count += 1
            where, waiting = waiting[:count], waiting[count:]
            yield _Rows([requests[i] for i, _ in where], where)

    def _room(self) -> int:
        """Tokens whose keys and values may be in memory at once."""
        budget = CPU_CACHE_BYTES if self.device.type == "cpu" else int(GPU_CACHE_SHARE * self._free_gpu_bytes())
        return max(1, budget // self.cache_bytes_per_token)

    def _free_gpu_bytes(self) -> int:
        """What sampling may use: what the device has left, and what torch's allocator holds unused after an update."""
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + held

    def _run(self, rows: _Rows, prompts: Prompts) -> None:
        """Grows every row of a batch to its end, from its prompt's keys and values."""
        hidden, attention, positions, cache = prompts.take([request.prompt_ids for request in rows.requests])
        alive = np.arange(len(rows.requests))  # the rows still in the tensors below, in their order
        temperature = torch.tensor([request.temperature for request in rows.requests], device=self.device)
        top_p = torch.tensor([request.top_p for request in rows.requests], device=self.device)
        for position in range(rows.ids.shape[1]):
            tokens, logps = self._sample(hidden, rows.seeds[alive], position, temperature, top_p)
            self._append(rows, alive, position, tokens, logps)
            going = ~rows.ended[alive]
            if not going.any():
                return
            if going.mean() < 0.9:  # dropping rows copies the cache, and so does each further token: not for a few rows
                kept = torch.from_numpy(np.flatnonzero(going)).to(self.device)
                cache.batch_select_indices(kept)
                alive, tokens, attention, positions = alive[going], tokens[kept], attention[kept], positions[kept]
                temperature, top_p = temperature[kept], top_p[kept]
                attention = drop_padding(attention, cache)
            attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
            # where attention is plain, transformers is given the mask as it is added to the scores, and need not work it out
            mask = attention
            if self.policy.packs:
                mask = torch.zeros(mask.shape, device=self.device, dtype=self.policy.dtype).masked_fill_(mask == 0, -torch.inf)
                mask = mask[:, None, None]
            hidden = self.policy.hidden_states(tokens[:, None], attention_mask=mask, position_ids=positions[:, None],
                                               past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            positions = positions + 1

    def _sample(self, hidden: Tensor, seeds: np.ndarray, position: int, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
        """Next tokens (R,) and their log-probs (R,), a bounded number of rows at a time."""
        u = uniforms(seeds, position).to(self.device)
        size = max(1, LOGITS_BYTES // (8 * self.policy.vocabulary))
        parts = [sample_tokens(self.policy.logits(hidden[i:i + size]), u[i:i + size], temperature[i:i + size], top_p[i:i + size])
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
                rows.stopped[row] |= self._stopped(rows.ids[row, :position + 1].tolist(), rows.requests[row].stop)
        rows.ended |= rows.stopped | (rows.lengths >= rows.max_tokens)

    def _stopped(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        """Whether the last token completed a stop string, or is one (a special token such as <|im_end|>, which no text shows)."""
        tokenizer = self.policy.tokenizer
        tail = decode(tokenizer, ids[-4 * max(map(len, stop)) - 8:])  # a character is at most four bytes, and so four tokens
        if any(end in tail for end in stop) and stop_at(decode(tokenizer, ids), stop) is not None:
            return True
        return tokenizer.convert_ids_to_tokens(ids[-1]) in stop

    def _completions(self, rows: _Rows) -> Iterator[Completion]:
        for row, request in enumerate(rows.requests):
            own = row, slice(rows.lengths[row])
            ids = rows.ids[own].tolist()
            text = decode(self.policy.tokenizer, ids)
            yield Completion(ids, rows.logps[own].tolist(), "stop" if rows.stopped[row] else "length", text[:stop_at(text, request.stop)])


class VLLMEngine:
    """Samples with vLLM, in this process. On a GPU it is handed the adapter alone, on CPU the merged weights.

    A new adapter gets a name, id and path of its own, and the prefix cache is emptied at each `sync`: the keys and values in
    it are the old policy's. `connect`, and waking up, check that vLLM samples from what the trainer trains.
    """

    chunk = 1024  # a few times what runs at once, so that few places are empty while the last completions end

    def __init__(self, config: SamplingConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig,
                 prompts: list[tuple[int, ...]]) -> None:
        """Starts vLLM on the base, with `--adapter` if there is one. Raises UserError if it does not start."""
        self.tokenizer, self.policy, self.asleep, self.version = tokenizer, None, False, 0
        self.stop_ids = stop_token_ids(tokenizer, load_generation_config(config, model_config))
        self.sleeps = getattr(config, "vllm_enable_sleep_mode", False)  # eval.py has no such flag, nor a rank
        rank = adapter_settings(config.adapter)["r"] if config.adapter else getattr(config, "lora_r", None)
        self.longest = sorted(prompts, key=len)[-4:]  # what parity is checked on: as far over a cache block as prompts go
        on_gpu = torch.cuda.is_available()
        options: dict[str, Any] = {"gpu_memory_utilization": config.vllm_gpu_memory_utilization, "enable_sleep_mode": self.sleeps}
        if not on_gpu:
            # a prompt that is prefilled in pieces has its random numbers wound back, which only CUDA's generators can
            options = {"block_size": CPU_BLOCK, "enforce_eager": True, "enable_chunked_prefill": False}
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_KV_GIB))
        if rank:
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": min((r for r in LORA_RANKS if r >= rank), default=rank)}
        if config.load_in_4bit:  # the same NF4 with double quantisation as the trainer's
            options["quantization"] = "bitsandbytes"
        # in this process: merged weights need no copy, and Ctrl-C reaches the run alone, not an engine beside it
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM  # seconds, and only here: a script can be imported without vllm

        dtype = config.dtype if config.dtype != "auto" else "bfloat16" if on_gpu else "float32"
        try:
            self.llm = LLM(model=model_folder(config), dtype=dtype, seed=config.seed % 2**31, enable_prefix_caching=True,
                           max_model_len=max(map(len, prompts)) + config.max_completion_length, logprobs_mode="processed_logprobs",
                           generation_config="vllm", use_tqdm_on_load=False, **options)  # sampling parameters are the requests' alone
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"vLLM did not start: {str(error).strip() or type(error).__name__}. If memory is short: another "
                            f"--vllm_gpu_memory_utilization (now {config.vllm_gpu_memory_utilization}), --load_in_4bit, a smaller "
                            "--max_completion_length; else --engine transformers. VLLM_LOGGING_LEVEL=INFO shows more") from error
        self.lora = self._lora_request(config.adapter) if config.adapter else None

    def connect(self, policy: Policy) -> None:
        """Samples from this policy from now on. Raises UserError if that is not what vLLM does."""
        self.policy = policy
        size = 4 * sum(parameter.numel() for parameter in policy.parameters_of().values())
        self.folder = memory_folder(4 * size)
        weakref.finalize(self, shutil.rmtree, self.folder, True)  # at exit, too
        print(check_parity(self, policy, self._probes()), flush=True)

    @torch.no_grad()
    def sync(self) -> None:
        """Samples from the current adapter from now on."""
        merged = self.policy.merged_weights() if self.policy.device.type == "cpu" else {}  # vLLM's LoRA is twice as slow on CPU
        if merged:
            names = {module: name for name, module in self.policy.base.named_modules()}
            weights = iter([(f"{names[layer]}.weight", weight) for layer, weight in merged.items()])
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights, "is_checkpoint_format": True})
            self.lora = None
        else:
            old, folder = self.lora, self.folder / str(self.version + 1)
            self.policy.save(folder, self.policy.dtype)
            self.lora = self._lora_request(str(folder))  # read by vLLM at its next request
            self._drop(old)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache, so it would sample from two policies at once")

    def sleep(self) -> None:
        """With `--vllm_enable_sleep_mode`, moves vLLM's weights to host memory and gives up its keys and values."""
        if self.sleeps and not self.asleep:
            self.llm.sleep(level=1)  # level 2 drops the weights, and was seen to crash with LoRA
            self.asleep = True

    def generate(self, requests: list[Request]) -> list[list[Completion]]:
        """completions[i] are the `n` samples of requests[i]."""
        if self.asleep:
            torch.cuda.empty_cache()  # what the trainer's allocator holds unused is vLLM's again
            self.llm.wake_up()
            self.asleep = False
            check_parity(self, self.policy, self._probes())  # which syncs: an adapter from before the sleep is not trusted
        from vllm import SamplingParams

        # each sample is a request with a seed of its own: vLLM would count up from the first; a prompt is shared through the cache
        samples = [(request, int(mix(np.uint64(request.seed), sample))) for request in requests for sample in range(request.n)]
        parameters = [SamplingParams(
            max_tokens=request.max_tokens, temperature=request.temperature, top_p=request.top_p, seed=seed % 2**63, logprobs=0,
            stop=list(request.stop), stop_token_ids=sorted(self.stop_ids | self._named(request.stop)), detokenize=bool(request.stop),
        ) for request, seed in samples]
        outputs = self.llm.generate([{"prompt_token_ids": list(request.prompt_ids)} for request, _ in samples], parameters,
                                    use_tqdm=False, lora_request=self.lora)
        completions = iter([self._completion(request, output.outputs[0]) for (request, _), output in zip(samples, outputs, strict=True)])
        return [[next(completions) for _ in range(request.n)] for request in requests]

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _lora_request(self, folder: str) -> Any:
        from vllm.lora.request import LoRARequest

        self.version += 1
        return LoRARequest(f"policy-{self.version}", self.version, folder)

    def _drop(self, lora: Any) -> None:
        """Deletes the folder of an adapter that `sync` wrote; the one of `--adapter` is not ours."""
        if lora is not None and Path(lora.lora_path).parent == self.folder:
            shutil.rmtree(lora.lora_path)

    def _named(self, stop: tuple[str, ...]) -> set[int]:
        """Tokens that are called like a stop string: special ones such as <|im_end|>, which no text shows."""
        vocabulary = self.tokenizer.get_vocab() if stop else {}
        return {vocabulary[end] for end in stop if end in vocabulary}

    def _completion(self, request: Request, output: Any) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a completion with finish reason {output.finish_reason!r}")
        ids = list(output.token_ids)
        logps = [chosen[token].logprob for chosen, token in zip(output.logprobs, ids, strict=True)]
        text = decode(self.tokenizer, ids)
        return Completion(ids, logps, output.finish_reason, text[:stop_at(text, request.stop)])

    def _probes(self) -> list[Request]:
        return [Request(prompt, derive_seed(0, "parity", i), 2, 16, self.policy.temperature) for i, prompt in enumerate(self.longest)]


def memory_folder(size: int) -> Path:
    """A new folder in memory-backed storage where that has `size` bytes left, else where temporary files go."""
    shared = Path("/dev/shm")  # 64 MB in a container that was not told otherwise
    fits = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > size
    return Path(tempfile.mkdtemp(prefix="vinery-", dir=shared if fits else None))
