"""Loading the policy of a run: the base in the precision of --dtype or --load_in_4bit, and its adapter."""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from common import parallel
from common.config import CommonConfig, SamplingConfig
from common.console import say
from common.errors import UserError
from common.policy.adapters import with_saved_adapter
from common.policy.families import check_family
from common.policy.model_files import words
from common.policy.new_adapter import check_plain_lora, check_readable, with_adapter
from common.policy.policy import REFERENCE, Policy
from common.policy.pretrained import first_adapter, model_folder, public_name
from common.policy.self_checks import fit_head, keeps_packed_rows_apart
from common.policy.shared_base import Holder, NotShared, shared_base, weight_bytes
from common.policy.stream import default_stream


def load_base(config: SamplingConfig, model_config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The base of `--model`, as from_pretrained loads it with these options. Raises UserError for weights that cannot be read or lack
    a part of the model, and for quantizations that cannot be trained.
    """
    stored = getattr(model_config, "quantization_config", None)
    if stored and not (stored.get("quant_method") == "bitsandbytes" and stored.get("load_in_4bit")):
        raise UserError(f"--model {config.model}: its weights are stored in the quantization {str(stored.get('quant_method'))[:80]!r}, "
                        "which cannot be trained here; give the model that it was made from, with --load_in_4bit if memory is short")
    if stored and not importlib.util.find_spec("bitsandbytes"):
        raise UserError(f"--model {config.model}: its weights are stored in 4 bits, which needs bitsandbytes: pip install bitsandbytes")
    try:  # a pickle could run code, and is never read
        base, found = AutoModelForCausalLM.from_pretrained(model_folder(config), trust_remote_code=False, use_safetensors=True,
                                                           output_loading_info=True, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # libraries that read damaged files raise whatever they like
        raise UserError(f"--model {config.model}: its weights could not be read: {words(error)}. Only safetensors are read; if they are "
                        "there, download them again") from error
    lacking = sorted(found["missing_keys"])
    if lacking:  # from_pretrained fills them with random numbers
        raise UserError(f"--model {config.model}: its weights lack {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}: this is "
                        "not a whole language model; give one with all layers and its output head")
    return base


def base_of(engine: Holder | None, config: SamplingConfig, model_config: PretrainedConfig,
            options: dict[str, Any]) -> tuple[PreTrainedModel, int]:
    """The base for the trainer, and how many bytes of it are the engine's own tensors. Options as for from_pretrained.

    These are all or none: what cannot be shared is read a second time, whole, and a line says why.
    """
    held, why = engine.held_base() if engine is not None else None, None
    if held is not None:
        try:
            base = shared_base(held, config, model_config, **options)
            return base, weight_bytes(base)
        except NotShared as error:
            why = str(error)
    try:
        with default_stream(options["device_map"][""]):
            base = load_base(config, model_config, **options)
    except torch.OutOfMemoryError as error:
        needed = f", which it needs as {why}" if why else ""
        raise UserError(f"--model {config.model}: the card has no room for a base of the trainer's own{needed}. Give a "
                        "smaller model, --load_in_4bit, a lower --vllm_gpu_memory_utilization or --engine transformers") from error
    if why:
        say(f"note: the trainer has a base of its own, {weight_bytes(base) / 1e9:.2f} GB beside the sampler's, as {why}")
    return base, 0


def load_policy(config: CommonConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, engine: Holder | None = None, *,
                policy_class: type[Policy] = Policy, adapt: Callable[[PreTrainedModel, CommonConfig], PeftModel] = with_adapter) -> Policy:
    """The policy of a run: the base in `--dtype` or 4 bits, with a fresh adapter or the adapter of `--adapter`.

    If `engine` holds the base in this process, the policy's base is made of the engine's tensors (shared_base.py). A fork may hand over
    its own class of policy, and its own function that puts a fresh adapter on the base. Raises UserError for weights that cannot be
    read, and for adapters that are not plain LoRA.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    others = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    dtype = getattr(torch, config.dtype if config.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=dtype) if config.load_in_4bit else None
    fit = check_family(config, model_config)
    options = {"dtype": dtype, "quantization_config": quantization, "device_map": {"": device}, "attn_implementation": fit.attention}
    base, shared_bytes = base_of(engine, config, model_config, options)
    base.requires_grad_(False)
    torch.manual_seed(config.seed)  # the adapter's first values
    if config.adapter:
        model = with_saved_adapter(base, first_adapter(config), ("default", REFERENCE) if config.needs_reference else ("default",))
        config.derive(lora_r=model.peft_config["default"].r, lora_alpha=model.peft_config["default"].lora_alpha)
        say(f"adapter: {config.adapter}, r {config.lora_r}, alpha {config.lora_alpha}")
    else:
        if fit.adapted and not config.lora_target_modules:
            say(f"note: experts and their router stay as they are: the adapter is on {', '.join(fit.adapted)}")
        model = adapt(base, config)
    check_plain_lora(model)
    check_readable(model, model_config)
    for settings in model.peft_config.values():
        settings.base_model_name_or_path = public_name(config)  # checkpoints are given away, and must not name a folder of this machine
        if isinstance(settings.target_modules, set):
            settings.target_modules = sorted(settings.target_modules)  # peft would write them in an order that differs between processes
    policy = policy_class(model, tokenizer, config.temperature, config.gradient_checkpointing)
    policy.others_bytes, policy.shared_bytes = others, shared_bytes
    policy.lacks_reference = bool(config.adapter) and not config.needs_reference
    if not config.gradient_checkpointing:
        policy.checkpoint(config.planned.get("checkpointed_layers", 0))
    policy.activate("default")
    fit_head(policy)
    padded = not (policy.packs and fit.packs and keeps_packed_rows_apart(policy))
    policy.packs = not parallel.anywhere(padded, "whether rows are padded")  # it decides which rows are whose
    if not (padded or policy.packs):
        say("note: rows are padded and prompts not shared in the update, as another process of this run needs that")
    return policy
