"""Shapes of published models, as in their config.json: for memory plans without access to a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SAME = {"tie_word_embeddings": False, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5, "rope_theta": 5e5}
QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def shape(family: dict[str, Any], *sizes: int, **different: Any) -> dict[str, Any]:
    """A config.json of this family with the sizes in the order of SIZES."""
    return {**SAME, **family, **dict(zip(SIZES, sizes, strict=True)), **different}


SHAPES: dict[str, dict[str, Any]] = {
    "Qwen2.5-7B": shape(QWEN2, 152064, 3584, 18944, 28, 28, 32768, num_key_value_heads=4),
    "Llama-3.1-8B": shape(LLAMA, 128256, 4096, 14336, 32, 32, 131072),
    "Qwen3-8B": shape(QWEN3, 151936, 4096, 12288, 36, 32, 40960),
}


def write_config(name: str, folder: Path) -> Path:
    """A folder that holds the config.json of one shape and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[name]))
    return folder
