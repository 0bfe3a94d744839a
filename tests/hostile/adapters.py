"""Adapters that other people made: damaged, malicious, or naming code. They stand for `--adapter`, with `base()` as `--model`."""
from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hostile.models import Call, base, code

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def adapter(folder: Path, **settings: Any) -> Path:
    """A LoRA adapter of `base()` in `folder`, on q_proj and up_proj, whose settings are replaced by the given ones."""
    plain = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
             "target_modules": ["q_proj", "up_proj"], "base_model_name_or_path": "somebody/model", "inference_mode": True}
    (folder / SETTINGS).write_text(json.dumps({**plain, **settings}))
    generator = torch.Generator().manual_seed(0)
    save_file({f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight": 0.1 * torch.randn(shape, generator=generator)
               for layer in range(2) for name, rows in (("self_attn.q_proj", 64), ("mlp.up_proj", 128))
               for side, shape in (("A", (4, 64)), ("B", (rows, 4)))}, folder / WEIGHTS)
    return folder


def changed(folder: Path, function: Any) -> Path:
    """The adapter with `function` applied to one of its tensors."""
    weights = load_file(adapter(folder) / WEIGHTS)
    weights["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"] = function(torch.ones(128, 4))
    save_file(weights, folder / WEIGHTS)
    return folder


def header(folder: Path, text: bytes, length: int | None = None, data: int = 64) -> Path:
    """The adapter with a safetensors file of this header: its length, as it is or as it is claimed to be, its text, and some data."""
    (adapter(folder) / WEIGHTS).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return folder


def tensors(**offsets: tuple[int, int]) -> bytes:
    """A header whose float32 tensors of two numbers lie at these offsets."""
    return json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": place} for name, place in offsets.items()}).encode()


def make_huge_rank(folder: Path) -> Path:
    """A rank that would take terabytes."""
    return adapter(folder, r=2_000_000_000)


def make_negative_rank(folder: Path) -> Path:
    return adapter(folder, r=-1)


def make_rank_in_quotes(folder: Path) -> Path:
    return adapter(folder, r="8")


def make_rank_nought(folder: Path) -> Path:
    return adapter(folder, r=0)


def make_alpha_not_finite(folder: Path) -> Path:
    return adapter(folder, lora_alpha=float("nan"))


def make_rank_pattern_huge(folder: Path) -> Path:
    return adapter(folder, rank_pattern={"q_proj": 2**40})


def make_deep(folder: Path) -> Path:
    """Settings nested deeper than a parser's recursion goes."""
    (adapter(folder) / SETTINGS).write_text("[" * 100_000 + "]" * 100_000)
    return folder


def make_settings_a_list(folder: Path) -> Path:
    (adapter(folder) / SETTINGS).write_text("[1, 2]")
    return folder


def make_settings_not_text(folder: Path) -> Path:
    (adapter(folder) / SETTINGS).write_bytes(b"\xff\xfe\x00{")
    return folder


def make_settings_a_pipe(folder: Path) -> Path:
    """A named pipe, which nobody writes to."""
    (adapter(folder) / SETTINGS).unlink()
    os.mkfifo(folder / SETTINGS)
    return folder


def make_settings_a_device(folder: Path) -> Path:
    (adapter(folder) / SETTINGS).unlink()
    (folder / SETTINGS).symlink_to("/dev/zero")
    return folder


def make_weights_a_device(folder: Path) -> Path:
    (adapter(folder) / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")
    return folder


def make_weights_a_loop(folder: Path) -> Path:
    (adapter(folder) / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)
    return folder


def make_slow_pattern(folder: Path) -> Path:
    """A regular expression that takes time exponential in the length of a layer's name."""
    return adapter(folder, target_modules="([a-z_.0-9]+)+#")


def make_slow_exclude_pattern(folder: Path) -> Path:
    return adapter(folder, exclude_modules="([a-z_.0-9]+)+#")


def make_slow_alpha_pattern(folder: Path) -> Path:
    return adapter(folder, alpha_pattern={"([a-z_.0-9]+)+#": 4})


def make_header_length(folder: Path) -> Path:
    return header(folder, b"{}", length=2**60)


def make_header_deep(folder: Path) -> Path:
    return header(folder, b'{"a":' + b"[" * 1_000_000)


def make_header_not_json(folder: Path) -> Path:
    return header(folder, b"\xff" * 64)


def make_header_overlapping(folder: Path) -> Path:
    return header(folder, tensors(a=(0, 8), b=(4, 12)), data=12)


def make_header_out_of_range(folder: Path) -> Path:
    return header(folder, tensors(a=(0, 8), b=(2**40, 2**40 + 8)), data=16)


def make_header_shape(folder: Path) -> Path:
    """A shape whose number of elements does not fit into 64 bits."""
    return header(folder, tensors(a=(0, 8)).replace(b"[2]", b"[%d, %d]" % (2**62, 2**62)))


def make_weights_cut_off(folder: Path) -> Path:
    (adapter(folder) / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    return folder


def make_weights_empty(folder: Path) -> Path:
    (adapter(folder) / WEIGHTS).write_bytes(b"")
    return folder


def make_no_tensors(folder: Path) -> Path:
    save_file({}, adapter(folder) / WEIGHTS)
    return folder


def make_integers(folder: Path) -> Path:
    return changed(folder, lambda tensor: tensor.to(torch.int64))


def make_nan(folder: Path) -> Path:
    return changed(folder, lambda tensor: tensor * float("nan"))


def make_infinite(folder: Path) -> Path:
    return changed(folder, lambda tensor: tensor * float("-inf"))


def make_wild(folder: Path) -> Path:
    """Finite weights that make infinite logits."""
    return changed(folder, lambda tensor: tensor * 1e38)


def make_one_side(folder: Path) -> Path:
    """A layer with B and no A."""
    weights = load_file(adapter(folder) / WEIGHTS)
    del weights["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]
    save_file(weights, folder / WEIGHTS)
    return folder


def make_pickle(folder: Path) -> Path:
    """adapter_model.bin, whose reading would write a file RAN."""
    (adapter(folder) / WEIGHTS).unlink()
    torch.save({"a": Call(folder)}, folder / "adapter_model.bin")
    return folder


def make_pickle_named_safetensors(folder: Path) -> Path:
    (adapter(folder) / WEIGHTS).write_bytes(pickle.dumps(Call(folder)))
    return folder


def make_pickle_beside(folder: Path) -> Path:
    """A good adapter with pickles beside it that nothing needs."""
    adapter(folder)
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt", "trainer_state.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": Call(folder)}, folder / name)
    return folder


def make_megatron(folder: Path) -> Path:
    """Settings with a module to import, which lies in the adapter's folder and would write a file RAN."""
    code(folder)
    return adapter(folder, megatron_config={"tensor_model_parallel_size": 1}, megatron_core="theirs")


def make_auto_mapping(folder: Path) -> Path:
    code(folder)
    return adapter(folder, auto_mapping={"base_model_class": "Theirs", "parent_library": "theirs"})


def make_runtime_code(folder: Path) -> Path:
    """Names of code in settings of which nobody has heard."""
    code(folder)
    return adapter(folder, auto_map={"AutoConfig": "theirs.Theirs"}, custom_module="theirs")


def make_changed_base(folder: Path) -> Path:
    return adapter(folder, init_lora_weights="pissa")


def make_base_model_in_folder(folder: Path) -> Path:
    """An adapter whose base_model_name_or_path is a folder with code."""
    code(folder)
    base(folder / "base")
    return adapter(folder, base_model_name_or_path=str(folder / "base"))
