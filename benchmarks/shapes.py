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
    "Qwen2.5-14B": shape(QWEN2, 152064, 5120, 13824, 48, 40, 32768),
    "Qwen2.5-32B": shape(QWEN2, 152064, 5120, 27648, 64, 40, 32768),
}

# What the README says fits: GB of the card, the model, and the flags beside --model and --dataset
FITS: list[tuple[int, str, str]] = [
    (12, "Qwen2.5-7B", "--load_in_4bit"),
    (16, "Qwen2.5-14B", "--load_in_4bit --lora_r 16 --max_completion_length 512"),
    (24, "Qwen2.5-7B", ""),
    (24, "Qwen3-8B", ""),
    (32, "Qwen2.5-32B", "--load_in_4bit --lora_r 16"),
    (48, "Qwen2.5-14B", ""),
    (80, "Qwen2.5-32B", "--lora_r 16"),
]

GEMMA2 = {"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 256, "sliding_window": 4096,
          "query_pre_attn_scalar": 256, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "tie_word_embeddings": True}
# further models, for the simulation of a GPU alone
OTHERS: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": shape(QWEN2, 151936, 896, 4864, 24, 14, 32768, num_key_value_heads=2, tie_word_embeddings=True),
    "Qwen2.5-1.5B": shape(QWEN2, 151936, 1536, 8960, 28, 12, 32768, num_key_value_heads=2, tie_word_embeddings=True),
    "Qwen2.5-3B": shape(QWEN2, 151936, 2048, 11008, 36, 16, 32768, num_key_value_heads=2, tie_word_embeddings=True),
    "Gemma-2-9B": shape(GEMMA2, 256000, 3584, 14336, 42, 16, 8192),
}


def write_config(name: str, folder: Path) -> Path:
    """A folder that holds the config.json of one shape and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps((SHAPES | OTHERS)[name]))
    return folder
