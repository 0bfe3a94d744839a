"""A fresh adapter on a base: on which layers it is put, and whether it can be sampled with, saved and read back."""
from __future__ import annotations

import json
import re
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import PretrainedConfig, PreTrainedModel

from common.config import CommonConfig
from common.errors import UserError
from common.policy.adapters import NOT_LANGUAGE, SETTINGS, WEIGHTS, check_layers, check_settings, layer_and_side, linear_layers
from common.policy.miniature import expert_blocks
from common.policy.pretrained import skeleton_of

FUSED = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")  # peft takes these names for experts, in any part of a model with experts

BYPASSED = "dt_proj"  # Mamba's layers read its weight themselves, so that an adapter would do nothing
MAMBA, REFUSED = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), ("out_proj", "conv1d")  # peft refuses these layers there


def with_adapter(base: PreTrainedModel, config: CommonConfig) -> PeftModel:
    """The base with a fresh LoRA adapter of the run's shape, named "default"."""
    sees = any(re.fullmatch(NOT_LANGUAGE, name) for name, _ in base.named_modules())
    return get_peft_model(base, LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=0.0, task_type="CAUSAL_LM",
                                           target_modules=config.lora_target_modules or targets_of(base),
                                           exclude_modules=NOT_LANGUAGE if sees else None))


def targets_of(base: PreTrainedModel) -> str | list[str]:
    """The layers that get an adapter if nobody named any: all linear layers, apart from those of blocks that choose among experts.

    Experts are no linear layers but one large tensor, which plain LoRA does not know. Layers that peft refuses are left out too.
    """
    blocks = expert_blocks(base)
    layers = linear_layers(base)
    left_out = {*(FUSED if blocks else ()), *(REFUSED if base.config.model_type in MAMBA else ()), BYPASSED}
    if not blocks and not any(layer.rpartition(".")[2] in left_out for layer in layers):
        return "all-linear"
    return sorted(layer for layer in layers if not any(layer.startswith(f"{block}.") for block in blocks)
                  and layer.rpartition(".")[2] not in left_out and not re.fullmatch(NOT_LANGUAGE, layer))


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


def check_readable(model: PeftModel, model_config: PretrainedConfig) -> None:
    """Raises UserError if eval.py, merge and --adapter could not read the adapter that a checkpoint of this policy would hold.

    The names and shapes that would be written go through the code that reads adapters. Nothing is written.
    """
    shapes = {name: parameter.to("meta") for name, parameter in model.named_parameters() if "lora_" in name}
    saved = get_peft_model_state_dict(model, state_dict=shapes, adapter_name="default", save_embedding_layers=False)
    settings = {**model.peft_config["default"].to_dict(), "peft_type": "LORA"}
    try:
        checked = check_settings(json.loads(json.dumps(settings, default=sorted)), "checkpoint-N")
        weights = {layer_and_side(key, Path(WEIGHTS)): tensor for key, tensor in saved.items()}
        check_layers(checked, weights, linear_layers(skeleton_of(model_config)), "checkpoint-N", "the model")
    except UserError as error:
        raise UserError(f"no checkpoint of this run could be read again ({SETTINGS}: {error}); name layers of the model's attention with "
                        "--lora_target_modules") from error
