"""Adapters and models that other people made: damaged, malicious, or with code of their own."""
from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def adapter(folder: Path, **settings: object) -> Path:
    """A plain LoRA adapter in `folder`, whose settings are replaced by the given ones."""
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
             "target_modules": ["q_proj"], "base_model_name_or_path": "somebody/model"}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **settings}))
    save_file({f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": torch.zeros(shape)
               for side, shape in (("A", (4, 64)), ("B", (128, 4)))}, folder / "adapter_model.safetensors")
    return folder


def make_adapter_huge_rank(folder: Path) -> Path:
    """A rank that would take terabytes."""
    return adapter(folder, r=2_000_000_000)


def make_adapter_deep(folder: Path) -> Path:
    """Settings nested deeper than a parser's recursion goes."""
    adapter(folder)
    (folder / "adapter_config.json").write_text("[" * 100_000 + "]" * 100_000)
    return folder


def make_adapter_slow_pattern(folder: Path) -> Path:
    """A regular expression that takes time exponential in the length of a layer's name."""
    return adapter(folder, target_modules="([a-z_.0-9]+)+#")
