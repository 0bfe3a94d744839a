"""Adapters in PEFT folders that somebody else may have made: checked without the base's weights, then put on a base.

PEFT never reads such a folder. The settings that plain LoRA has are taken from it, and the layers are those that its tensors name: so
regular expressions of the settings are not run, and modules that they name are not imported.
"""
from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from common.config import SamplingConfig
from common.errors import UserError
from common.policy.model_files import check_plain, read_json, words

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NOT_LANGUAGE = r".*(vision|visual|image|multi_modal|audio).*"  # text never reaches these parts of multimodal models, so they get no adapter
LARGEST_RANK = 2**14
# what plain LoRA is made of; and what has no influence on a finished adapter: on which layers it was put, how its first values were found
PLAIN = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"}
WITHOUT_INFLUENCE = {"auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
                     "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "megatron_core", "parent_library",
                     "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"}
UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")  # values of init_lora_weights that leave the base as it is
# the name of a tensor: around it may be the names of other wrappings, which the model had when it was saved
KEY = re.compile(r"(?:module\.|_orig_mod\.|base_model\.model\.(?=base_model))*base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")


def linear_layers(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the layers that can have an adapter, by name: all linear layers but the output head.

    GPT-2's Conv1D is a linear layer with a transposed weight.
    """
    sizes, head = {}, model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, nn.Linear):
            sizes[name] = module.in_features, module.out_features
        elif isinstance(module, Conv1D):
            sizes[name] = module.nx, module.nf
    return sizes


def adapter_settings(folder: str) -> dict[str, Any]:
    """The checked settings in a PEFT folder: `r`, `lora_alpha`, ... Raises UserError, also for an adapter that is not plain LoRA."""
    path = Path(folder) / SETTINGS
    if not os.path.lexists(path):
        raise UserError(f"--adapter {folder}: not a PEFT folder with {SETTINGS} and {WEIGHTS}; give {_nearby(Path(folder))}")
    return check_settings(read_json(path), folder)


def check_settings(settings: dict[str, Any], folder: str) -> dict[str, Any]:
    """The settings of the adapter in `folder`, checked. Raises UserError."""
    path = Path(folder) / SETTINGS
    if settings.get("peft_type") != "LORA":
        raise UserError(f"--adapter {folder}: a LoRA adapter is needed, and this one is {str(settings.get('peft_type'))[:80]}")
    extras = [key for key in sorted(set(settings) - PLAIN - WITHOUT_INFLUENCE) if settings[key]]
    extras += ["bias"] if settings.get("bias", "none") != "none" else []
    if settings.get("init_lora_weights", True) not in UNCHANGED_BASE:
        extras.append(f"init_lora_weights {str(settings['init_lora_weights'])[:80]!r}, which changes the base")
    if extras:
        raise UserError(f"--adapter {folder}: a plain LoRA adapter is needed (no DoRA, bias or further modules); this one is LORA with "
                        f"{', '.join(extras)[:200]}")
    patterns = [settings.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
    for name, pattern in zip(("rank_pattern", "alpha_pattern"), patterns, strict=True):
        if not isinstance(pattern, dict) or not all(re.fullmatch(r"\^?[\w.]+", key) for key in pattern):
            raise UserError(f"{path}: {name} has regular expressions, which are not run; write the names of the layers in their place")
    ranks, alphas = ([settings.get(key, 8), *pattern.values()] for key, pattern in zip(("r", "lora_alpha"), patterns, strict=True))
    dropout = settings.get("lora_dropout") or 0
    wrong = [f"r {rank!r}" for rank in ranks if type(rank) is not int or not 0 < rank <= LARGEST_RANK]
    wrong += [f"lora_alpha {alpha!r}" for alpha in alphas if type(alpha) not in (int, float) or not 0 < alpha < 2**24]
    wrong += [f"lora_dropout {dropout!r}"] if type(dropout) not in (int, float) or not 0 <= dropout < 1 else []
    if wrong:
        raise UserError(f"{path}: {wrong[0][:80]} is not possible: the rank is a whole number from 1 to {LARGEST_RANK}, alpha a number "
                        "above 0, and the dropout a share below 1")
    return {**settings, "r": ranks[0], "lora_alpha": alphas[0], "lora_dropout": dropout, "rank_pattern": patterns[0],
            "alpha_pattern": patterns[1], "use_rslora": settings.get("use_rslora") is True}


def one_rank(config: SamplingConfig) -> int | None:
    """The rank of the run's adapters, None without one. vLLM has one rank for all layers: raises UserError for an adapter with several."""
    if not config.adapter:
        return getattr(config, "lora_r", None)  # eval.py has no such flag
    settings = adapter_settings(config.adapter)
    several = [name for name in ("rank_pattern", "alpha_pattern") if settings[name]]
    if several:
        raise UserError(f"--adapter {config.adapter} has {several[0]}, and vLLM has one rank and scale for all layers; give --engine "
                        "transformers")
    return settings["r"]


def copy_adapter(folder: Path, to: Path) -> None:
    """Copies the two files of a PEFT folder into another folder. Raises OSError."""
    for name in (SETTINGS, WEIGHTS):
        shutil.copyfile(folder / name, to / name)


def write_zero_adapter(folder: Path, model_config: PretrainedConfig, rank: int, targets: Sequence[str]) -> None:
    """Writes an adapter that changes nothing: one layer of this rank, all zero. targets: ends of the names of layers to choose from."""
    with torch.device("meta"):
        layers = linear_layers(AutoModelForCausalLM.from_config(model_config, trust_remote_code=False))
    layer = [name for name in layers if not re.fullmatch(NOT_LANGUAGE, name) and any(name.endswith(end) for end in targets or [""])][-1]
    inputs, outputs = layers[layer]
    weights = {"A": torch.zeros(rank, inputs), "B": torch.zeros(outputs, rank)}
    save_file({f"base_model.model.{layer}.lora_{side}.weight": weight for side, weight in weights.items()}, folder / WEIGHTS)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
                "target_modules": [layer.rpartition(".")[2]], "base_model_name_or_path": None}
    (folder / SETTINGS).write_text(json.dumps(settings))


def _nearby(folder: Path) -> str:
    """What to give in place of a folder that is no adapter."""
    inner = sorted({path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{SETTINGS}")})
    if inner:
        return " or ".join(str(path) for path in inner[-3:])
    return "the checkpoint-N of a run" if folder.exists() else \
        "a folder that exists. An adapter on the hub is downloaded with: hf download NAME --local-dir FOLDER"


def read_weights(folder: Path) -> dict[tuple[str, str], Tensor]:
    """The tensors of an adapter by layer and side, "A" or "B". Raises UserError for damage, and for what is not A or B of a layer."""
    path = folder / WEIGHTS
    if not os.path.lexists(path):
        pickled = folder / "adapter_model.bin"
        convert = (f"import torch; from safetensors.torch import save_file; save_file({{k: v.contiguous() for k, v in "
                   f"torch.load({str(pickled)!r}, weights_only=True).items()}}, {str(path)!r})")
        remedy = f"a pickle can run code and is not read. Convert it once: python -c {shlex.quote(convert)}" if pickled.exists() else \
            f"it needs {WEIGHTS}; save or download it again"
        raise UserError(f"--adapter {folder}: {remedy}")
    check_plain(path, None)
    weights = {}
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                weights[layer_and_side(key, path)] = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({words(error)}); save or download it again") from error
    if not weights:
        raise UserError(f"{path} holds no tensors; save or download it again")
    for (layer, side), tensor in weights.items():
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16) or tensor.ndim != 2:
            raise UserError(f"{path}: {side} of {layer[:200]} is {tensor.dtype} of shape {tuple(tensor.shape)}, and not a matrix of "
                            "floating-point numbers; save it again")
        if not tensor.isfinite().all():
            kind = "NaN" if tensor.isnan().any() else "infinite numbers"
            raise UserError(f"{path}: {side} of {layer[:200]} holds {kind}: the training that made this adapter had diverged; give an "
                            "earlier checkpoint")
    return weights


def layer_and_side(key: str, path: Path) -> tuple[str, str]:
    """The layer of a tensor in the file `path`, and "A" or "B". Raises UserError."""
    match = KEY.fullmatch(key)
    if match is None:
        raise UserError(f"{path}: {key[:200]} is not A or B of a LoRA layer; a plain LoRA adapter is needed")
    return match[1], match[2]


def rank_and_alpha(settings: dict[str, Any], layer: str) -> tuple[int, float]:
    """Of a layer: as in PEFT, the first name in a pattern counts that is the end of the layer's name."""
    def first(pattern: dict[str, Any], default: Any) -> Any:
        return next((value for key, value in pattern.items()
                     if layer == key.removeprefix("^") or (key[0] != "^" and layer.endswith(f".{key}"))), default)

    return first(settings["rank_pattern"], settings["r"]), first(settings["alpha_pattern"], settings["lora_alpha"])


def check_adapter(folder: str, layers: dict[str, tuple[int, int]], model: str) -> dict[str, Any]:
    """The settings of an adapter that fits the layers (inputs, outputs) of `model`. Raises UserError if it does not fit."""
    settings, weights = adapter_settings(folder), read_weights(Path(folder))
    check_layers(settings, weights, layers, folder, model)
    return settings


def check_layers(settings: dict[str, Any], weights: dict[tuple[str, str], Tensor], layers: dict[str, tuple[int, int]], folder: str,
                 model: str) -> None:
    """Raises UserError if the weights of the adapter in `folder` do not fit the layers (inputs, outputs) of `model`."""
    for (layer, side), tensor in weights.items():
        rank = rank_and_alpha(settings, layer)[0]
        if re.fullmatch(NOT_LANGUAGE, layer):
            raise UserError(f"--adapter {folder} adapts {layer}, which text never reaches; train an adapter of the language layers alone")
        if layer not in layers:
            needs = "has no such linear layer below its output head"
        elif (layer, "B" if side == "A" else "A") not in weights:
            raise UserError(f"--adapter {folder}: {layer} has {side} and not both A and B; save or download it again")
        else:
            wanted = (rank, layers[layer][0]) if side == "A" else (layers[layer][1], rank)
            if tuple(tensor.shape) == wanted:
                continue
            needs = f"needs {wanted[side == 'A']} and the rank in {SETTINGS} is {rank}"
        raise UserError(f"--adapter {folder} does not match {model}: {side} of {layer} is {tuple(tensor.shape)}, the model {needs}; "
                        f"it was made for {settings.get('base_model_name_or_path')}")


def with_saved_adapter(base: PreTrainedModel, folder: str, names: tuple[str, ...] = ("default",)) -> PeftModel:
    """The base with the adapter of a PEFT folder, once under each name. Dropout is off. Raises UserError."""
    settings, weights = adapter_settings(folder), read_weights(Path(folder))
    layers = {layer for layer, _ in weights}
    ends = {layer.rpartition(".")[2] for layer in layers}
    short = {layer for layer in linear_layers(base) if layer.rpartition(".")[2] in ends} == layers  # then the checkpoints have short names
    each = {layer: rank_and_alpha(settings, layer) for layer in layers}
    shape = LoraConfig(r=settings["r"], lora_alpha=settings["lora_alpha"], lora_dropout=0.0, task_type="CAUSAL_LM",
                       use_rslora=settings["use_rslora"], target_modules=sorted(ends if short else layers),
                       rank_pattern={layer: rank for layer, (rank, _) in each.items() if rank != settings["r"]},
                       alpha_pattern={layer: alpha for layer, (_, alpha) in each.items() if alpha != settings["lora_alpha"]})
    model = get_peft_model(base, shape)
    for name in names[1:]:
        model.add_adapter(name, copy.copy(shape))
    for name in names:
        put_weights(model, weights, name)
    return model


def put_weights(model: PeftModel, weights: dict[tuple[str, str], Tensor], adapter: str) -> None:
    """Copies the tensors of `read_weights` into an adapter. Raises KeyError if one is missing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            match = re.fullmatch(rf"base_model\.model\.(.+)\.lora_([AB])\.{adapter}\.weight", name)
            if match:
                parameter.copy_(weights[match[1], match[2]])
