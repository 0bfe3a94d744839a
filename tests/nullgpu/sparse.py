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


def sparse_model(name: str, folder: Path, **different: Any) -> Path:
    """A folder with a model of the shape `name` of benchmarks/shapes.py in bfloat16, and the tokenizer of the embedded task.

    different: entries of config.json that replace those of the shape.
    """
    if (folder / "model.safetensors").exists():
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
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, weight in model.state_dict().items():
        if key not in tied:
            header[key] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [end, end + 2 * weight.numel()]}
            end += 2 * weight.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder
