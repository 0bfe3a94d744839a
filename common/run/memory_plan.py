"""Will a run fit on a card? The memory that it needs, from the model's config alone, and settings that fit.

`--plan_memory 24` prints the plan for a card of 24 GB and ends. On a GPU every run is planned for the card that was found. A run is in one
of two phases: it samples, or it updates. The plan counts both and takes the larger one. It sets the flags that do not change the result:
token budget, checkpointing, the sampler's share. If these are not enough, the run stops, and the plan recommends other changes.
"""
from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from common import parallel
from common.config import CommonConfig
from common.console import say
from common.errors import UserError
from common.flags import PLANNED
from common.policy.adapters import adapter_settings
from common.policy.loss import CHUNK_ELEMENTS
from common.policy.pretrained import first_adapter, load_model_config
from common.rollout.choose_engine import choose_engine
from common.run.model_shape import PROMPT, Shape, shape_of

GB = 1e9
# Bytes of a weight in NF4 with double quantisation: 4 bits, a byte for every 64 weights, four bytes for every 256 of these bytes
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
NF4_VLLM = 0.5 + 4 / 64  # in vLLM: four bytes for every 64 weights
STATES = {"adamw_torch": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # bytes of the optimiser's state, per parameter
LOGIT_BYTES = 12  # per element of a chunk of logits: its value in bfloat16 and in float32, and float32 results of these
# Assumed, not calculated:
CUDA_BYTES = 0.8e9  # CUDA and its libraries
CONTEXT_BYTES = 0.4e9  # of it, what a process has as soon as it asks a card for its free memory
VLLM_BYTES = 1.0e9  # vLLM's buffers and CUDA graphs, which stay during the update
FORWARD_BYTES = 0.8e9  # a forward of vLLM, as far as torch's free memory does not hold it
WASTE = 0.04  # share of the card that the allocator cannot use
KEYS_AND_VALUES = "keys and values"  # the beginning of this part's name
# What a plan tries:
BUDGETS = (8192, 4096, 2048, 1024, 512)  # tokens of a micro-batch
BUSY = 1024  # tokens of a micro-batch that keep a GPU busy
ROWS = (256, 128, 64, 32, 16, 8)  # completions of full length sampled at a time; with fewer, sampling takes too long
MANY = 64  # of these that are enough: most completions end long before their limit, and then more than these have room
RECOMPUTED = 0.45  # share of an update's products that is computed again if every layer is checkpointed
# Tokens whose products take as long as what a micro-batch costs once: reading weights, launching kernels, prompts that others have too
PER_MICROBATCH = 200


@dataclass(frozen=True)
class Settings:
    """The flags of PLANNED, which a plan may set. None of them changes what a run computes."""

    max_tokens_per_microbatch: int
    gradient_checkpointing: bool
    vllm_gpu_memory_utilization: float


class Option(NamedTuple):
    """One way to run on a card."""

    max_tokens: int  # of a micro-batch
    checkpointed: int  # layers, counted from the first, whose activations are computed again in the backward pass
    rows: int  # completions sampled at a time


class Part(NamedTuple):
    """A part of a run's memory, in bytes."""

    name: str
    sampling: float  # while completions are sampled
    update: float  # during the update
    vllm: bool = False  # vLLM counts it in its share of the card
    assumed: bool = False  # and not calculated


@dataclass(frozen=True)
class Plan:
    """How a run uses a card. If nothing fits, the plan is that of the smallest option."""

    option: Option
    parts: list[Part]
    peak: float  # bytes, of the larger phase
    card: float  # bytes
    settings: Settings | None  # None: nothing fits
    remedies: list[str]  # changes of flags that would make it fit


def parts_of(shape: Shape, config: CommonConfig, option: Option) -> list[Part]:
    """The memory of a run that does so."""
    width = 2 if config.dtype == "float32" else 1  # bytes per number, relative to bfloat16
    parts = _bases(shape, config, width)
    copies = 2 if width == 1 else 0  # of the adapter, in bfloat16
    held = config.trained_adapters * shape.lora * (4 + copies + STATES[config.optim])
    parts.append(Part("adapters, state of the optimiser", held, held))
    if config.adapter and config.needs_reference:
        parts.append(Part("reference adapter", *2 * (shape.lora * (4 + copies),)))
    vllm = uses_vllm(config)
    if vllm:
        forward = FORWARD_BYTES + (shape.largest * 2 if config.load_in_4bit else 0)  # a layer's weights are there in 16 bits
        parts += [Part("vLLM's adapter", *2 * (shape.lora * 2,), vllm=True),
                  Part("vLLM's buffers and CUDA graphs", VLLM_BYTES, VLLM_BYTES, vllm=True, assumed=True),
                  Part("vLLM's forward", forward, 0, vllm=True, assumed=True)]
    cached = config.max_completion_length + (PROMPT / config.num_generations if vllm else PROMPT)  # vLLM shares prompts
    cache = 0 if config.vllm_server_base_url else option.rows * cached * shape.kv_bytes * width
    stays = vllm and not config.vllm_enable_sleep_mode
    parts.append(Part(f"{KEYS_AND_VALUES} of {option.rows} completions", cache, cache if stays else 0, vllm))
    parts.append(Part("gradients", 0, config.trained_adapters * shape.lora * 4))
    tokens = max(option.max_tokens, PROMPT + config.max_completion_length)
    parts += _update_parts(shape, tokens, option.checkpointed, width, config.load_in_4bit)
    return [*parts, Part("CUDA", CUDA_BYTES, CUDA_BYTES, assumed=True)]


def _bases(shape: Shape, config: CommonConfig, width: int) -> list[Part]:
    """The base, once or twice."""
    rest = (shape.parameters - shape.linear) * 2 * width
    trainers, samplers = (rest + shape.linear * (four_bits if config.load_in_4bit else 2 * width) for four_bits in (NF4, NF4_VLLM))
    plugin = " (vllm-bnb-plugin)" if config.load_in_4bit else ""
    if not uses_vllm(config):
        return [Part("base", trainers, trainers)]
    if shape.shared:
        return [Part(f"base, one for sampler and trainer{plugin}", samplers, samplers, vllm=True)]
    return [Part("base in the trainer", trainers, trainers), Part(f"base in the sampler{plugin}", samplers, samplers, vllm=True)]


def _update_parts(shape: Shape, tokens: int, checkpointed: int, width: int, four_bits: bool) -> list[Part]:
    """The memory of a forward and backward over `tokens` tokens."""
    layer, states = tokens * shape.layer_bytes * width, tokens * shape.hidden * 2 * width  # of one layer: all it keeps, its input alone
    kept = (shape.layers - checkpointed) * layer + checkpointed * states
    # The backward pass begins with everything that was kept, and some gradients of activations. When it reaches the checkpointed layers,
    # the other layers are gone, and each is computed again. The factors 0.7 and 1.45 are those of the simulated GPU (docs/memory.md).
    activations = max(kept + 0.7 * layer, checkpointed * states + 1.45 * layer if checkpointed else 0)
    name = f"activations, {tokens} tokens" + (f", {checkpointed} of {shape.layers} layers checkpointed" if checkpointed else "")
    # the log-probs come before the backward pass of the layers
    parts = [Part(name, 0, activations), Part("log-probs", 0, max(0.0, kept + CHUNK_ELEMENTS * LOGIT_BYTES - activations))]
    # a layer's weights are there in 16 bits during its products
    return parts + ([Part("a layer's weights in 16 bits", 0, shape.largest * 2)] if four_bits else [])


def totals(parts: list[Part]) -> tuple[float, float]:
    """The memory of the two phases, sampling and update, in bytes."""
    return sum(part.sampling for part in parts), sum(part.update for part in parts)


def uses_vllm(config: CommonConfig) -> bool:
    """Whether vLLM samples on the card of a machine with a GPU. Servers sample on other cards."""
    if config.vllm_server_base_url:
        return False
    return config.engine == "vllm" or (config.engine == "auto" and config.dtype != "float32" and config.model != "tiny")


def make_plan(config: CommonConfig, shape: Shape, card: float, given: Set[str], recommend: bool = True) -> Plan:
    """The plan for `card` bytes: the first of `options` that fits. The flags in `given` stay as they are.

    If none fits, the plan is that of the option that needs least, without settings and (if `recommend`) with remedies.
    """
    smallest: Plan | None = None
    planned = uses_vllm(config) and "vllm_gpu_memory_utilization" not in given
    for option in options(config, shape, given, card):
        parts = parts_of(shape, config, option)
        peak = max(totals(parts)) + card * WASTE
        vllm = sum(part.sampling for part in parts if part.vllm)
        share = math.ceil(100 * vllm / card) / 100 if planned else config.vllm_gpu_memory_utilization
        if peak <= card and vllm <= share * card:
            settings = Settings(option.max_tokens, option.checkpointed == shape.layers, share)
            return Plan(option, parts, peak, card, settings, [])
        if smallest is None or peak <= smallest.peak:
            smallest = Plan(option, parts, peak, card, None, [])
    assert smallest is not None
    return dataclasses.replace(smallest, remedies=_remedies(config, shape, card, given) if recommend else [])


def options(config: CommonConfig, shape: Shape, given: Set[str], card: float) -> Iterator[Option]:
    """What a plan may choose, the quickest first. A flag in `given` has its one value.

    The order is by what a choice costs. Micro-batches below BUSY tokens leave a GPU idle, and so does sampling fewer than MANY completions
    at a time. The rest is chosen for the quickest update.
    """
    def values(flag: str, usual: tuple[Any, ...]) -> tuple[Any, ...]:
        return (getattr(config, flag),) if flag in given else usual

    budgets = values("max_tokens_per_microbatch", BUDGETS)
    counts = range(shape.layers + 1)
    if "gradient_checkpointing" in given:
        counts = counts[-1:] if config.gradient_checkpointing else counts[:1]
    completions = config.problems_per_step * config.num_generations
    all_rows = sorted({completions, *(rows for rows in ROWS if rows < completions)}, reverse=True)
    if uses_vllm(config) and "vllm_gpu_memory_utilization" in given:  # vLLM fills the share that was typed
        without, one = (sum(part.sampling for part in parts_of(shape, config, Option(1, 0, rows)) if part.vllm) for rows in (0, 1))
        all_rows = [max(1, int((config.vllm_gpu_memory_utilization * card - without) / (one - without)))]
    large = budgets if len(budgets) == 1 else tuple(budget for budget in budgets if budget >= BUSY)
    small = budgets if len(budgets) == 1 else tuple(budget for budget in budgets if budget < BUSY)
    many = tuple(rows for rows in all_rows if rows >= MANY)
    row_counts = ((many,) if many else ()) + tuple((rows,) for rows in all_rows if rows < MANY)

    def cost(option: Option) -> tuple[float, int]:
        update = (1 + RECOMPUTED * option.checkpointed / shape.layers) * (1 + PER_MICROBATCH / option.max_tokens)
        return update, -option.rows

    for some_budgets, some_rows in itertools.product((large, small), row_counts):
        yield from sorted(itertools.starmap(Option, itertools.product(some_budgets, counts, some_rows)), key=cost)


def _remedies(config: CommonConfig, shape: Shape, card: float, given: Set[str]) -> list[str]:
    """Changes of flags that make the run fit: every change that is enough alone, else the shortest list of changes that is enough."""
    half = config.max_completion_length // 2
    changes: dict[str, dict[str, Any]] = {
        "--optim adamw_8bit": {"optim": "adamw_8bit"}, "--load_in_4bit": {"load_in_4bit": True},
        f"--max_completion_length {half}": {"max_completion_length": half}, "--engine transformers": {"engine": "transformers"}}
    changes = {text: change for text, change in changes.items() if any(getattr(config, k) != v for k, v in change.items())}
    typed = sorted(given & set(PLANNED))

    def fits(texts: list[str], flags: Set[str] = given) -> bool:
        changed = dataclasses.replace(config, **{k: v for text in texts for k, v in changes[text].items()})
        return make_plan(changed, shape, card, flags, recommend=False).settings is not None

    left_out = [f"the plan's own --{' --'.join(typed)}"] if typed and fits([], given - set(typed)) else []
    alone = left_out + [text for text in changes if fits([text])]
    together = itertools.chain.from_iterable(itertools.combinations(changes, n) for n in range(2, len(changes) + 1))
    several = [] if alone else next((texts for texts in map(list, together) if fits(texts)), [])
    return alone or ([" ".join(several)] if several else [])


def table(plan: Plan, config: CommonConfig) -> list[str]:
    """The lines of the plan: each part in GB (10^9 bytes) in both phases, the sums, and the flags or remedies."""
    parts = [*plan.parts, Part("what the allocator cannot use", *2 * (plan.card * WASTE,), assumed=True)]
    rows = [(part.name, *(f"{value / GB:.2f}" if value else "-" for value in (part.sampling, part.update)), part.assumed)
            for part in parts if part.sampling or part.update]
    lines = [f"memory plan: {config.model} on a card of {plan.card / GB:.1f} GB", f"  {'GB':<53}{'sampling':>8}{'update':>8}"]
    lines += [f"  {name:<53}{sampling:>8}{update:>8}{'  assumed' if assumed else ''}" for name, sampling, update, assumed in rows]
    sampling, update = totals(parts)
    lines.append(f"  {'together':<53}{sampling / GB:>8.2f}{update / GB:>8.2f}")
    lines.append(f"  at once, at most {plan.peak / GB:.2f} GB")
    if plan.settings is None:
        lines += ["does not fit", *(f"  would fit with {remedy}" for remedy in plan.remedies)]
        if not plan.remedies:
            lines.append("  nor with any of 4 bits, half the length, an 8-bit optimiser, no vLLM: take a smaller model or a larger card")
        return lines
    flags = [f"--{name}" if value is True else f"--{name} {value}" for name, value in dataclasses.asdict(plan.settings).items()
             if value is not False and (uses_vllm(config) or "vllm" not in name)]
    where = "while servers sample" if config.vllm_server_base_url else \
        f"with {plan.option.rows} completions of {PROMPT} + {config.max_completion_length} tokens at a time"
    return [*lines, f"fits, {where}, under", f"  {' '.join(flags)}"]


def card_memory() -> tuple[int, int]:
    """The free memory of the GPU and all of it, bytes."""
    return torch.cuda.mem_get_info()


def plan_run(config: CommonConfig) -> Plan | None:
    """The plan of a run: for `--plan_memory`, or for the GPU found, whose settings `config` then gets; None without either.

    Flags that were typed stay. Those of the file of `--config` and of the resumed run stay if they were typed there. Raises UserError
    if the run does not fit the GPU found.
    """
    asked = config.plan_memory is not None
    if not asked and (not torch.cuda.is_available() or config.model == "tiny"):
        return None
    wanted = config if asked else dataclasses.replace(config, engine=choose_engine(config)[0])
    if config.adapter:
        wanted = dataclasses.replace(wanted, lora_r=adapter_settings(first_adapter(config))["r"])
    model_config = load_model_config(config)
    try:
        shape = shape_of(model_config, wanted)
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        cause = f"the memory of {config.model} could not be worked out ({type(error).__name__}: {str(error).splitlines()[0][:100]})"
        if asked:
            raise UserError(f"--plan_memory: {cause}; plans are for decoder models such as Llama, Qwen, Mistral, Gemma") from error
        say(f"note: {cause}; going on without a plan")
        return None
    if asked:
        return make_plan(wanted, shape, config.plan_memory * GB, config.given)
    free, whole = card_memory()
    # all processes make the same plan: the one for the card with the least free memory
    card, smallest = map(min, zip(*parallel.gather([(free + min(CONTEXT_BYTES, whole - free), whole)], "memory"), strict=True))
    # vLLM counts in shares of the whole card, whatever is free of it
    wanted = dataclasses.replace(wanted, vllm_gpu_memory_utilization=min(1.0, config.vllm_gpu_memory_utilization * smallest / card))
    plan = make_plan(wanted, shape, card, config.given)
    if plan.settings is None:
        raise UserError(*table(plan, wanted))
    settings = dataclasses.asdict(plan.settings)
    settings["vllm_gpu_memory_utilization"] = round(plan.settings.vllm_gpu_memory_utilization * card / whole, 3)
    config.derive(**{name: value for name, value in settings.items() if name not in config.given})
    config.planned = {"checkpointed_layers": plan.option.checkpointed,
                      "rows": min(plan.option.rows, config.problems_per_step * config.num_generations)}
    if uses_vllm(wanted) and "vllm_gpu_memory_utilization" not in config.given:
        config.planned["cache_bytes"] = int(sum(part.sampling for part in plan.parts if part.name.startswith(KEYS_AND_VALUES)))
    return plan
