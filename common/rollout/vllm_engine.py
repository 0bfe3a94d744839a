"""The engine that samples with vLLM in this process. No other file imports vllm."""
from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from common.config import CommonConfig, SamplingConfig
from common.console import say
from common.errors import UserError
from common.policy.adapters import one_rank
from common.policy.policy import Policy
from common.policy.pretrained import load_generation_config, model_folder, stop_token_ids
from common.policy.shared_base import Held, HeldBase, stamps
from common.records import Completion, Request, hash_seeds, longest_of
from common.rollout.engine import Ended
from common.rollout.text import decode, stop_at, tokens_named

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # vLLM has buffers for these ranks
CPU_KV_GIB = 2  # GiB for vLLM's keys and values without a GPU; the transformers engine has as much (CPU_CACHE_BYTES)
# Tokens in a cache block without a GPU, a multiple of 32. With vLLM's default of 128 a short prompt is never shared.
CPU_BLOCK = 32
# vLLM's own limits depend on the card and take up to 2 GB from its keys and values. Fewer sequences would leave memory unused when most
# completions end long before their limit.
SEQUENCES = 256  # completions that grow at a time, at least
BATCHED_TOKENS = 4096  # tokens in one forward


class VLLMEngine:
    """Samples with vLLM in this process. vLLM gets the adapter alone; on a CPU, if the policy has a base of its own, merged weights.

    A new adapter gets a name, id and path of its own, and the prefix cache is emptied at each `sync`: the keys and values in
    it are the old policy's.
    """

    chunk = 1024  # a few times the completions that run at once, so that vLLM is idle only while the last ones end

    def __init__(self, config: SamplingConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig,
                 prompts: list[tuple[int, ...]]) -> None:
        """Starts vLLM on the base, with `--adapter` if there is one. Raises UserError if it does not start."""
        self.tokenizer, self.policy, self.asleep, self.version = tokenizer, None, False, 0
        self.stop_ids = stop_token_ids(tokenizer, load_generation_config(config, model_config))
        on_gpu = torch.cuda.is_available()
        self.sleeps = on_gpu and isinstance(config, CommonConfig) and config.vllm_enable_sleep_mode  # eval.py has no trainer and no rank
        rank = one_rank(config)
        self.probe_prompts = sorted(prompts, key=len)[-4:]  # the longest prompts, which fill whole cache blocks
        self.files = stamps(config)
        options: dict[str, Any] = {"gpu_memory_utilization": config.vllm_gpu_memory_utilization, "enable_sleep_mode": self.sleeps}
        if on_gpu:
            sequences = max(SEQUENCES, config.planned.get("rows", 0))
            options |= {"max_num_seqs": sequences, "max_num_batched_tokens": max(BATCHED_TOKENS, sequences),
                        "kv_cache_memory_bytes": config.planned.get("cache_bytes"),
                        # graphs for as many sequences as there can be, and with the adapter alone: it is always on
                        "compilation_config": {"max_cudagraph_capture_size": min(sequences, 512), "cudagraph_specialize_lora": False}}
            say("vLLM starts and captures its CUDA graphs: this takes a minute or two")
        else:
            # for a prompt that is prefilled in pieces vLLM winds its random numbers back, which only CUDA's generators can do
            options = {"block_size": CPU_BLOCK, "enforce_eager": True, "enable_chunked_prefill": False}
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_KV_GIB))
        if rank:
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": min((r for r in LORA_RANKS if r >= rank), default=rank)}
        if config.load_in_4bit:  # the same NF4 with double quantisation as the trainer's
            options["quantization"] = "bitsandbytes"
        if getattr(model_config, "vision_config", None) is not None:
            options["language_model_only"] = True  # else vLLM loads the part that sees, too
        # vLLM stays in this process: merged weights need no copy, and Ctrl-C reaches the run alone and no engine beside it
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM  # takes seconds, and a script must be importable without vllm

        dtype = config.dtype if config.dtype != "auto" else "bfloat16" if on_gpu else "float32"
        try:
            self.llm = LLM(model=model_folder(config), trust_remote_code=False, dtype=dtype,
                           seed=config.seed % 2**31, enable_prefix_caching=True,
                           max_model_len=longest_of(prompts) + config.max_completion_length, logprobs_mode="processed_logprobs",
                           generation_config="vllm", use_tqdm_on_load=False, **options)  # no sampling defaults of the model
        except (ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
            four_bits = "" if config.load_in_4bit else "--load_in_4bit, "
            raise UserError(f"vLLM did not start: {str(error).strip() or type(error).__name__}. If memory is short: another "
                            f"--vllm_gpu_memory_utilization (now {config.vllm_gpu_memory_utilization}), {four_bits}a smaller "
                            "--max_completion_length; else --engine transformers. VLLM_LOGGING_LEVEL=INFO shows more") from error
        self.lora = self._lora_request(config.adapter) if config.adapter else None
        self.sleep()  # until the first completions: the start of the trainer has its own peaks of memory

    def held_base(self) -> HeldBase:
        """vLLM's tensors of the base, and which rows of a fused one are which tensor of the checkpoint. They must not be written to."""
        tensors: dict[str, Held] = {}

        def collect(model: torch.nn.Module) -> None:
            for name, parameter in model.named_parameters():
                sizes = getattr(model.get_submodule(name.rpartition(".")[0]), "output_sizes", [])
                tensors.update(in_checkpoint(name, parameter, sizes, getattr(model, "packed_modules_mapping", {})))

        self.llm.apply_model(collect)
        return HeldBase(tensors, self.files)

    def connect(self, policy: Policy) -> None:
        """Samples from this policy from now on."""
        self.policy = policy
        size = 4 * sum(parameter.numel() for parameter in policy.parameters_of().values())
        self.folder = memory_folder(4 * size)
        weakref.finalize(self, shutil.rmtree, self.folder, True)  # also called at exit

    @torch.no_grad()
    def sync(self) -> None:
        """Samples from the current adapter from now on."""
        merge = self.policy.device.type == "cpu" and not self.policy.shared_bytes  # vLLM's LoRA is twice as slow on a CPU
        merged = self.policy.merged_weights() if merge else {}
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
        """With `--vllm_enable_sleep_mode`, gives up the memory of keys and values. The weights stay where they are."""
        if self.sleeps and not self.asleep:
            for _ in range(self.llm.llm_engine.vllm_config.max_concurrent_batches):
                self.llm.llm_engine.step()  # a batch that vLLM scheduled ahead is still in its queue
            self.llm.sleep(level=0)
            self.llm.release_kv_cache_memory()
            self.asleep = True

    def generate(self, requests: list[Request], ended: Ended | None = None) -> list[list[Completion]]:
        """completions[i] are the `n` samples of requests[i]. ended: is told, during the call, how many more completions have ended."""
        if self.asleep:
            self._wake()
        from vllm import SamplingParams

        # Each sample is a request of its own, because vLLM would count its seeds up from the first. The prefix cache shares the prompt.
        samples = [(request, int(hash_seeds(np.uint64(request.seed), sample))) for request in requests for sample in range(request.n)]
        parameters = [SamplingParams(
            max_tokens=request.max_tokens, temperature=request.temperature, top_p=request.top_p, seed=seed % 2**63, logprobs=0,
            stop=list(request.stop), stop_token_ids=sorted(self.stop_ids | tokens_named(self.tokenizer, request.stop)),
            detokenize=bool(request.stop),
        ) for request, seed in samples]
        outputs = self.llm.generate([{"prompt_token_ids": list(request.prompt_ids)} for request, _ in samples], parameters,
                                    use_tqdm=partial(Counter, ended=ended) if ended else False, lora_request=self.lora)
        completions = iter([self._completion(request, output.outputs[0]) for (request, _), output in zip(samples, outputs, strict=True)])
        return [[next(completions) for _ in range(request.n)] for request in requests]

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Takes the memory of keys and values back. Raises UserError if others have it."""
        torch.cuda.empty_cache()  # what the trainer's allocator holds but does not use
        try:
            self.llm.wake_up(tags=["kv_cache"])
            awake = self.llm.wake_up(tags=["scheduling"])
        except RuntimeError as error:
            raise UserError(f"vLLM does not get the memory of its keys and values back ({error}), with "
                            f"{torch.cuda.mem_get_info()[0] / 1e9:.1f} GB free: give a lower --vllm_gpu_memory_utilization, or leave more "
                            "of the card free") from error
        if not awake:
            raise RuntimeError("vLLM did not wake up")
        self.asleep = False

    def _lora_request(self, folder: str) -> Any:
        from vllm.lora.request import LoRARequest

        self.version += 1
        return LoRARequest(f"policy-{self.version}", self.version, folder)

    def _drop(self, lora: Any) -> None:
        """Deletes the folder of an adapter that `sync` wrote. The folder of `--adapter` belongs to the user and stays."""
        if lora is not None and Path(lora.lora_path).parent == self.folder:
            shutil.rmtree(lora.lora_path)

    def _completion(self, request: Request, output: Any) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a completion with finish reason {output.finish_reason!r}")
        ids = list(output.token_ids)
        logps = [chosen[token].logprob for chosen, token in zip(output.logprobs, ids, strict=True)]
        text = decode(self.tokenizer, ids)
        return Completion(ids, logps, output.finish_reason, text[:stop_at(text, request.stop)])


class Counter:
    """Stands in for vLLM's progress bars: of those that count what has ended, it tells `ended`. The others count nothing."""

    def __init__(self, items: Iterable[Any] = (), *, ended: Ended, **_: Any) -> None:
        self.items, self.ended, self.n, self.postfix, self.format_dict = items, ended, 0, "", {"elapsed": 1.0}

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def update(self, count: int) -> None:
        self.n += count
        self.ended(count)

    def refresh(self) -> None:
        """Shows nothing."""

    close = refresh


def in_checkpoint(name: str, parameter: torch.nn.Parameter, sizes: list[int], fused: dict[str, list[str]]) -> dict[str, Held]:
    """The tensors of a checkpoint, by name, of which vLLM has made one parameter.

    sizes: numbers of rows that were put together. fused: what vLLM calls layers that were put together, and their own names.
    """
    path, _, leaf = name.rpartition(".")
    parent, _, last = path.removesuffix(".base_layer").rpartition(".")  # vLLM's LoRA lies around the layer
    parts, data, states = fused.get(last, [last]), parameter.data, getattr(parameter, "bnb_quant_state", None)
    found = [Held(data)]
    if isinstance(states, dict):
        rows = itertools.pairwise(int(offset) for offset in parameter.bnb_shard_offsets)
        found = [Held(data[begin:end], states[i]) for i, (begin, end) in enumerate(rows)]
    elif len(parts) == len(sizes) > 1 and sum(sizes) == len(data):
        found = [Held(rows) for rows in data.split(sizes)]
    names = parts if len(parts) == len(found) else [last] * len(found)
    return {".".join(filter(None, (parent, part, leaf))): held for part, held in zip(names, found, strict=True)}


def memory_folder(size: int) -> Path:
    """A new folder in memory-backed storage if `size` bytes are free there, else in the folder for temporary files."""
    shared = Path("/dev/shm")  # in a container it has 64 MB by default
    fits = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > size
    return Path(tempfile.mkdtemp(prefix="vinery-", dir=shared if fits else None))
