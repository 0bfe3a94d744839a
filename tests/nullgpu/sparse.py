"""Sparse checkpoints: models of published shapes whose weights are a hole in a file. They take no room on disk and read as zeros."""
from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from common.tiny.model import build_tokenizer
from common.tiny.task import Arithmetic

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from shapes import OTHERS, SHAPES

FILE_BYTES = 5e9  # a file is begun when the last one has more: one that is larger than the memory cannot be mapped


def sparse_model(name: str, folder: Path, **different: Any) -> Path:
    """A folder with a model of the shape `name` of benchmarks/shapes.py in bfloat16, and the tokenizer of the embedded task.

    different: entries of config.json that replace those of the shape.
    """
    if list(folder.glob("model*.safetensors")):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(Arithmetic())
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps({**(SHAPES | OTHERS)[name], **tokens, "dtype": "bfloat16", **different}))
    (folder / "generation_config.json").write_text(json.dumps(tokens))
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False)
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    files: list[dict[str, Any]] = [{}]
    end = 0
    for key, weight in model.state_dict().items():
        if key not in tied:
            if end > FILE_BYTES:
                files.append({})
                end = 0
            files[-1][key] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [end, end + 2 * weight.numel()]}
            end += 2 * weight.numel()
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))] if len(files) > 1 else ["model.safetensors"]
    for name_of_file, tensors in zip(names, files, strict=True):
        write_holes(folder / name_of_file, tensors)
    if len(files) > 1:
        weight_map = {key: name_of_file for name_of_file, tensors in zip(names, files, strict=True) for key in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_holes(path: Path, tensors: dict[str, Any]) -> None:
    """A safetensors file with these tensors, whose numbers are a hole."""
    text = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + max(tensor["data_offsets"][1] for tensor in tensors.values()))
