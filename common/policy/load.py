"""Loading the policy of a run: the base in the precision of --dtype or --load_in_4bit, and its adapter."""
from __future__ import annotations

import re
from collections.abc import Callable

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from common.config import CommonConfig
from common.console import say
from common.errors import UserError
from common.policy.attention import register
from common.policy.policy import REFERENCE, Policy
from common.policy.pretrained import model_folder
from common.policy.self_checks import check_head, keeps_packed_rows_apart

NOT_LANGUAGE = r".*(vision|multi_modal|audio).*"  # text never reaches these parts of multimodal models, so they get no adapter


def with_adapter(base: PreTrainedModel, config: CommonConfig) -> PeftModel:
    """The base with a fresh LoRA adapter of the run's shape, named "default"."""
    sees = any(re.fullmatch(NOT_LANGUAGE, name) for name, _ in base.named_modules())
    return get_peft_model(base, LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=0.0, task_type="CAUSAL_LM",
                                           target_modules=config.lora_target_modules or "all-linear",
                                           exclude_modules=NOT_LANGUAGE if sees else None))


def check_plain_lora(model: PeftModel) -> None:
    """Raises UserError for an adapter whose merged weights would not be base + scale * B A, or that trains more than A and B."""
    for name, settings in model.peft_config.items():
        kind = str(getattr(settings.peft_type, "value", settings.peft_type))
        beyond = ("lora_dropout", "use_dora", "lora_bias", "modules_to_save", "alora_invocation_tokens", "trainable_token_indices",
                  "target_parameters", "layer_replication")
        extras = [key for key in beyond if getattr(settings, key, None)]
        if getattr(settings, "bias", "none") != "none":
            extras.append("bias")
        if getattr(settings, "init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
            extras.append(f"init_lora_weights={settings.init_lora_weights!r}, which changes the base")
        if kind != "LORA" or extras:
            raise UserError(f"the adapter {name!r} is {kind} with {', '.join(extras) or 'no extras'}: sampling, saving and resuming are "
                            "made for plain LoRA (no dropout, DoRA, bias or further modules). Leave the extras out")


def load_policy(config: CommonConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, *,
                policy_class: type[Policy] = Policy, adapt: Callable[[PreTrainedModel, CommonConfig], PeftModel] = with_adapter) -> Policy:
    """The policy of a run: the base in `--dtype` or 4 bits, with a fresh adapter or the adapter of `--adapter`.

    A fork may hand over its own class of policy, and its own function that puts a fresh adapter on the base. Raises UserError for
    weights that cannot be read, and for adapters that are not plain LoRA.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, config.dtype if config.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=dtype) if config.load_in_4bit else None
    # "sdpa" silently leaves out the soft-cap on attention scores that Gemma 2 has
    attention = "eager" if getattr(model_config.get_text_config(), "attn_logit_softcapping", None) else register()
    try:
        base = AutoModelForCausalLM.from_pretrained(model_folder(config), dtype=dtype, quantization_config=quantization,
                                                    device_map={"": device}, attn_implementation=attention)
    except OSError as error:
        raise UserError(f"--model {config.model}: its weights could not be read: {str(error).strip().splitlines()[0]}") from error
    base.requires_grad_(False)
    torch.manual_seed(config.seed)  # the adapter's first values
    if config.adapter:
        model = PeftModel.from_pretrained(base, config.adapter, is_trainable=True)
        config.derive(lora_r=model.peft_config["default"].r, lora_alpha=model.peft_config["default"].lora_alpha)
        say(f"adapter: {config.adapter}, r {config.lora_r}, alpha {config.lora_alpha}")
        if config.beta > 0:
            model.load_adapter(config.adapter, REFERENCE)
    else:
        model = adapt(base, config)
    check_plain_lora(model)
    policy = policy_class(model, tokenizer, config.temperature, config.gradient_checkpointing)
    policy.activate("default")
    check_head(policy)
    policy.packs = policy.packs and keeps_packed_rows_apart(policy)
    return policy
