"""A model before its weights are read: its tokenizer, config and end tokens, and whether an adapter fits it."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from common.config import SamplingConfig
from common.errors import UserError
from common.tiny.model import tiny_model
from common.tiny.task import Arithmetic


def model_folder(config: SamplingConfig) -> str:
    """The argument for from_pretrained: `--model`, or the folder of the embedded model, which is made now if it is not there."""
    if config.model != "tiny":
        return config.model
    disable_progress_bar()  # the embedded model loads in milliseconds
    return str(tiny_model(Arithmetic.parse(config.dataset.partition(":")[2])))


def load_tokenizer(config: SamplingConfig) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """The tokenizer and the model's config. Raises UserError if the model is not there or `--adapter` does not fit it."""
    model_config = load_model_config(config)
    tokenizer = _loaded(config, AutoTokenizer)
    check_against_shapes(config, model_config)
    return tokenizer, model_config


def load_model_config(config: SamplingConfig) -> PretrainedConfig:
    """The model's config alone. Raises UserError if the model is not there."""
    return _loaded(config, AutoConfig)


def _loaded(config: SamplingConfig, kind: Any) -> Any:
    try:
        return kind.from_pretrained(model_folder(config))
    except (OSError, ValueError) as error:
        cause = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(f"--model {config.model} could not be loaded: {cause}; give a hub id, or a folder with config.json "
                        "and a tokenizer") from error


def context_length(model_config: PretrainedConfig) -> int:
    """The context length of the model in tokens, for prompt and completion together."""
    return getattr(model_config.get_text_config(), "max_position_embeddings", None) or 4096


def load_generation_config(config: SamplingConfig, model_config: PretrainedConfig) -> GenerationConfig:
    """The model's generation config. Only its end tokens are used."""
    try:
        return GenerationConfig.from_pretrained(model_folder(config))
    except OSError:  # the model has none, and from_pretrained of the model would do the same
        return GenerationConfig.from_model_config(model_config)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> set[int]:
    """Ids of all tokens that end a completion: the tokenizer's end token, and the end tokens of the model's generation config."""
    listed = generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}
    if not ids:
        raise UserError("the tokenizer has no end-of-sequence token, so completions could not end; set eos_token in its config")
    return ids


def check_against_shapes(config: SamplingConfig, model_config: PretrainedConfig) -> None:
    """Raises UserError if `--adapter` or `--lora_target_modules` do not fit the model. Only the shapes of its layers are needed."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(model_config)
    linear = {name: m for name, m in skeleton.named_modules() if isinstance(m, nn.Linear)}
    kinds = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
    wanted = getattr(config, "lora_target_modules", None) or ()  # eval.py has no such flag
    unknown = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if unknown:
        raise UserError(f"--lora_target_modules {unknown[0]}: {config.model} has no such linear layer; it has {', '.join(kinds)}")
    if not config.adapter:
        return
    folder = Path(config.adapter)
    try:
        settings = adapter_settings(config.adapter)
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, ValueError) as error:
        raise UserError(f"--adapter {config.adapter}: not a PEFT folder with adapter_config.json and adapter_model.safetensors; "
                        "give the checkpoint-N of a run") from error
    extras = [name for name in ("lora_dropout", "use_dora", "lora_bias", "modules_to_save") if settings.get(name)]
    if settings.get("peft_type") != "LORA" or extras:
        raise UserError(f"--adapter {config.adapter}: a plain LoRA adapter is needed (no dropout, DoRA, bias or further modules); this "
                        f"one is {settings.get('peft_type')} with {', '.join(extras) or 'nothing else'}")
    base = str(settings.get("base_model_name_or_path"))
    if config.model == "tiny" and Path(base).name.startswith("tiny-") and Path(base).name != Path(model_folder(config)).name:
        raise UserError(f"--adapter {config.adapter} was made for the embedded model of another --dataset, whose settings shape its warm "
                        f"start: give that --dataset, or --model {base}")
    for key, shape in shapes.items():
        layer = linear.get(key.removeprefix("base_model.model.").partition(".lora_")[0])
        wanted = layer and (layer.in_features if ".lora_A." in key else layer.out_features)
        if layer is None or shape[1 if ".lora_A." in key else 0] != wanted:
            needs = "has no such layer" if layer is None else f"needs {wanted}"
            raise UserError(f"--adapter {config.adapter} does not match {config.model}: {key} is {tuple(shape)}, the model {needs}; "
                            f"it was made for {base}")


def adapter_settings(folder: str) -> dict[str, Any]:
    """The settings in a PEFT folder: `r`, `lora_alpha`, ..."""
    return json.loads((Path(folder) / "adapter_config.json").read_text())
