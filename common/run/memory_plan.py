"""Will it fit? What a run takes on a GPU, from the model's config alone; settings that fit; and a trial at full length.

`--plan_memory 24` prints the plan for a card of 24 GB and ends. On a GPU every run is planned for the card found. The plan sets what
does not change the result: token budget, checkpointing, sleep mode, the sampler's share. For the rest it stops and recommends.
"""
from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PretrainedConfig

from common.config import CommonConfig
from common.errors import UserError
from common.policy.load import with_adapter
from common.policy.loss import CHUNK_ELEMENTS
from common.policy.pretrained import adapter_settings, load_model_config
from common.rollout.choose_engine import choose_engine

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes of a weight: 4 bits, a byte per 64 of them, four per 256 of those (double quantisation)
STATES = {"adamw_torch": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # bytes of the optimiser, per parameter
PROMPT = 256  # tokens, assumed: no data has been read
BUDGETS = (8192, 4096, 2048, 1024, 512)  # tokens of a micro-batch that are tried
BUSY = 4096  # tokens that keep a GPU busy
ROWS = (256, 128, 64, 32, 16)  # completions at a time that are tried; with fewer, sampling takes too long
LOGIT_BYTES = 12  # of an element of a chunk of logits: bfloat16, float32, and what is computed from them
# assumed, not calculated: CUDA and its libraries; vLLM's buffers and graphs; the share that the allocator cannot use
CUDA_BYTES, VLLM_BYTES, WASTE = 0.8e9, 1.5e9, 0.05
ASSUMED = ("CUDA", "its buffers")
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A model in numbers. Bytes are those of bfloat16."""

    parameters: int
    linear: int  # of them, in the layers that 4 bits can hold
    largest: int  # of them, in the largest such layer
    lora: int  # parameters of an adapter
    layers: int
    hidden: int
    kv_bytes: int  # keys and values of a token
    layer_bytes: float  # what backward needs of a layer, per token



@dataclass(frozen=True)
class Settings:
    """What the plan may set: none of it changes what a run computes."""

    max_tokens_per_microbatch: int
    gradient_checkpointing: bool
    vllm_enable_sleep_mode: bool
    vllm_gpu_memory_utilization: float



@dataclass(frozen=True)
class Parts:
    """Bytes by name: what is there all the time, what only while sampling, and what only during the update."""

    always: dict[str, float]
    sampling: dict[str, float]
    update: dict[str, float]

    def peak(self, sleep: bool) -> float:
        """The most that is there at once; without sleep mode the sampler keeps what it has during the update."""
        always, sampling, update = (sum(part.values()) for part in (self.always, self.sampling, self.update))
        return always + (max(sampling, update) if sleep else sampling + update)



@dataclass(frozen=True)
class Plan:
    """`settings` is None if nothing fits: then `parts` are those of the smallest choice, and `remedies` say what would fit."""

    parts: Parts
    peak: float  # bytes
    card: float
    settings: Settings | None
    rows: int  # completions whose keys and values are there at once
    remedies: list[str]



def shape_of(model_config: PretrainedConfig, config: CommonConfig) -> Shape:
    """The numbers of a model, from skeletons without weights: a whole one for its size, two short ones for its activations."""
    text = model_config.get_text_config()
    with torch.device("meta"):
        whole = with_adapter(AutoModelForCausalLM.from_config(model_config).requires_grad_(False), config)
    lora = sum(p.numel() for p in whole.parameters() if p.requires_grad)
    linear = [m.weight.numel() for name, m in whole.named_modules()
              if isinstance(m, nn.Linear) and "lora_" not in name and "lm_head" not in name]
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(parameters=sum(p.numel() for p in whole.parameters()) - lora, linear=sum(linear), largest=max(linear), lora=lora,
                 layers=text.num_hidden_layers, hidden=text.hidden_size, kv_bytes=2 * text.num_hidden_layers * heads * size * 2,
                 layer_bytes=saved_bytes(model_config, config, 2) - saved_bytes(model_config, config, 1))



def saved_bytes(model_config: PretrainedConfig, config: CommonConfig, layers: int, tokens: int = 64) -> float:
    """Bytes per token that a forward of the model's first `layers` keeps for backward, in bfloat16 and with fused attention.

    Counted on a model without data: shapes and what autograd saves are the real ones.
    """
    short = copy.deepcopy(model_config)
    text = short.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = layers, 256, None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    AttentionInterface.register("planned", _attention)
    AttentionMaskInterface.register("planned", lambda *_, **__: None)
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(short, attn_implementation="planned").requires_grad_(False)
        model = with_adapter(base, config).to(torch.bfloat16).eval()
        ids, mask = torch.zeros(1, tokens, dtype=torch.long), torch.zeros(1, 1, tokens, tokens, dtype=torch.bool)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Any] = {}  # storages, which stay alive so that none is counted under another's address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_base_model().base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values()) / tokens



class _FusedAttention(torch.autograd.Function):
    """Keeps for backward what a fused kernel keeps: query, keys, values and output, no scores. Computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError("this model is only looked at")



def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return _FusedAttention.apply(query, key, value).transpose(1, 2), None



def parts_of(shape: Shape, config: CommonConfig, settings: Settings, rows: int) -> Parts:
    """What a run under these settings takes, with the keys and values of `rows` completions at a time."""
    width = 2 if config.dtype == "float32" else 1  # against bfloat16
    base = (shape.parameters - shape.linear) * 2 * width + shape.linear * (NF4 if config.load_in_4bit else 2 * width)
    adapters = {"adapters, gradients, optimiser": config.trained_adapters * shape.lora * (4 + 4 + STATES[config.optim])}
    if config.adapter and config.beta > 0:
        adapters["reference adapter"] = shape.lora * 4
    length = PROMPT + config.max_completion_length
    tokens, layer = max(settings.max_tokens_per_microbatch, length), shape.layer_bytes * width
    # a layer's gradients take about what its activations do; checkpointed, one layer's activations come back at a time
    activations = shape.layers * shape.hidden * 2 * width + 2 * layer if settings.gradient_checkpointing else (shape.layers + 1) * layer
    update = {f"activations of {tokens} tokens{', checkpointed' if settings.gradient_checkpointing else ''}": tokens * activations,
              "log-probs": CHUNK_ELEMENTS * LOGIT_BYTES}
    if config.load_in_4bit:
        update["a layer's weights in 16 bits"] = shape.largest * 2
    cache = {"keys and values": rows * length * shape.kv_bytes * width}
    sampler = {"base in the sampler": base, "its adapter": shape.lora * 2, "its buffers": VLLM_BYTES} if uses_vllm(config) else {}
    return Parts({"base in the trainer": base, **adapters, "CUDA": CUDA_BYTES}, sampler | cache, update)



def uses_vllm(config: CommonConfig) -> bool:
    """Whether vLLM samples, where there is a GPU for it."""
    return config.engine == "vllm" or (config.engine == "auto" and config.dtype != "float32" and config.model != "tiny")



def make_plan(config: CommonConfig, shape: Shape, card: float, given: Set[str], recommend: bool = True) -> Plan:
    """The plan for `card` bytes. The flags in `given` stay as they are."""
    def choices(flag: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return (getattr(config, flag),) if flag in given else values

    budgets = choices("max_tokens_per_microbatch", BUDGETS)
    checkpointing = choices("gradient_checkpointing", (False, True))
    sleep = choices("vllm_enable_sleep_mode", (False, True) if uses_vllm(config) and not config.load_in_4bit else (False,))
    all_rows = config.problems_per_step * config.num_generations
    # the first that fits: sleeping costs seconds a step, small micro-batches leave a GPU idle, so do few completions at a time, and
    # checkpointing costs a third of the update
    options = [(budget, checkpoint, asleep, rows) for asleep in sleep for small in (False, True)
               for rows in sorted({min(most, all_rows) for most in (all_rows, *ROWS)}, reverse=True) for checkpoint in checkpointing
               for budget in budgets if (budget < BUSY) == small or len(budgets) == 1]
    smallest = None
    for budget, checkpoint, asleep, rows in options:
        settings = Settings(budget, checkpoint, asleep, config.vllm_gpu_memory_utilization)
        parts = parts_of(shape, config, settings, rows)
        peak = parts.peak(asleep) + card * WASTE
        if peak <= card:
            share = sum(parts.sampling.values()) / card
            if uses_vllm(config) and "vllm_gpu_memory_utilization" not in given:
                settings = dataclasses.replace(settings, vllm_gpu_memory_utilization=math.ceil(100 * share) / 100)
            return Plan(parts, peak, card, settings, rows, [])
        if smallest is None or peak <= smallest.peak:
            smallest = Plan(parts, peak, card, None, rows, [])
    assert smallest is not None
    return dataclasses.replace(smallest, remedies=_remedies(config, shape, card, given) if recommend else [])



def _remedies(config: CommonConfig, shape: Shape, card: float, given: Set[str]) -> list[str]:
    """What would make it fit: every change that is enough alone, else as many of them as it takes."""
    half = config.max_completion_length // 2
    changes: dict[str, dict[str, Any]] = {
        "--load_in_4bit": {"load_in_4bit": True}, f"--max_completion_length {half}": {"max_completion_length": half},
        "--optim adamw_8bit": {"optim": "adamw_8bit"}, "--engine transformers": {"engine": "transformers"}}
    changes = {text: change for text, change in changes.items() if any(getattr(config, k) != v for k, v in change.items())}
    typed = sorted(given & {spec.name for spec in dataclasses.fields(Settings)})

    def fits(texts: list[str], flags: Set[str] = given) -> bool:
        changed = dataclasses.replace(config, **{k: v for text in texts for k, v in changes[text].items()})
        return make_plan(changed, shape, card, flags, recommend=False).settings is not None

    left_out = [f"the plan's own --{' --'.join(typed)}"] if typed and fits([], given - set(typed)) else []
    alone = left_out + [text for text in changes if fits([text])]
    several = next((list(changes)[:n] for n in range(2, len(changes) + 1) if fits(list(changes)[:n])), [])
    return alone or ([" ".join(several)] if several else [])



def table(plan: Plan, config: CommonConfig) -> str:
    """The plan as text: each part in GB (10^9 bytes), the total, and the flags or remedies."""
    sleep = plan.settings is not None and plan.settings.vllm_enable_sleep_mode
    lines = [f"memory plan: {config.model} on a card of {plan.card / GB:.1f} GB"]
    for title, part in (("all the time", plan.parts.always), ("sampling", plan.parts.sampling), ("update", plan.parts.update)):
        lines += [f"  {title:<14}{name:<44}{value / GB:7.2f} GB{'  assumed' if name in ASSUMED else ''}" for name, value in part.items()]
    lines.append(f"  {'':<14}{'what the allocator cannot use':<44}{plan.card * WASTE / GB:7.2f} GB  assumed")
    lines.append(f"  {'at once, at most' + (' (sampling and update in turn)' if sleep else ''):<58}{plan.peak / GB:7.2f} GB")
    if plan.settings is None:
        lines.append("does not fit" + "".join(f"\n  would fit with {remedy}" for remedy in plan.remedies))
        if not plan.remedies:
            lines.append("  nor with any of 4 bits, half the length, an 8-bit optimiser, no vLLM: take a smaller model or a larger card")
    else:
        flags = [f"--{name}" if value is True else f"--{name} {value}" for name, value in dataclasses.asdict(plan.settings).items()
                 if value is not False and (uses_vllm(config) or "vllm" not in name)]
        lines.append(f"fits, with {plan.rows} completions of {PROMPT} + {config.max_completion_length} tokens at a time, under\n"
                     f"  {' '.join(flags)}")
    return "\n".join(lines)



def plan_run(config: CommonConfig) -> Plan | None:
    """The plan of a run: for `--plan_memory`, or for the GPU found, whose settings are then put into `config`; None without either.

    Flags that were typed, or come from `--config` or the resumed run, stay. Raises UserError if the run does not fit the GPU found.
    """
    asked = config.plan_memory is not None
    if not asked and (not torch.cuda.is_available() or config.model == "tiny"):
        return None
    wanted = config if asked else dataclasses.replace(config, engine=choose_engine(config)[0])
    if config.adapter:
        wanted = dataclasses.replace(wanted, lora_r=adapter_settings(config.adapter)["r"])
    model_config = load_model_config(config)
    try:
        shape = shape_of(model_config, wanted)
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        cause = f"the memory of {config.model} could not be worked out ({type(error).__name__}: {str(error).splitlines()[0][:100]})"
        if asked:
            raise UserError(f"--plan_memory: {cause}; plans are for decoder models such as Llama, Qwen, Mistral, Gemma") from error
        print(f"note: {cause}; going on without a plan", flush=True)
        return None
    free, whole = (config.plan_memory * GB,) * 2 if asked else torch.cuda.mem_get_info()
    plan = make_plan(wanted, shape, free, config.given)
    if not asked:
        if plan.settings is None:
            raise UserError(table(plan, wanted))
        for name, value in dataclasses.asdict(plan.settings).items():
            setattr(config, name, value)
        if "vllm_gpu_memory_utilization" not in config.given:  # vLLM counts in shares of the whole card, whatever is free of it
            config.vllm_gpu_memory_utilization = round(plan.settings.vllm_gpu_memory_utilization * free / whole, 3)
    return plan
