"""python -m common.policy merge: base and adapter as one model, for serving."""
from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig

from common.config import CommonConfig
from common.console import fail, guard, hide_bars_of_libraries, say
from common.errors import UserError
from common.files import new_folder, probe
from common.interrupt import Stop, Stopped
from common.policy.adapters import with_saved_adapter
from common.policy.load import load_base
from common.policy.model_files import GENERATION, text_folder, words
from common.policy.pretrained import load_tokenizer, model_folder


def merge(config: CommonConfig, model_config: PretrainedConfig, out: Path) -> None:
    """Writes base + adapter as one model for serving, merged in float32 and stored in `--dtype`; auto: in the base's own precision.

    A line says how much rounding takes away of what the adapter adds. The folder is whole or not there.

    Raises UserError, and OSError or SafetensorError if it cannot be written.
    """
    base, folder = load_base(config, model_config, dtype="auto"), model_folder(config)
    if getattr(base.config, "quantization_config", None):
        raise UserError(f"--model {config.model} is stored in 4 bits, and merging would round; give the model that it was made from")
    stored = base.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    adapted = with_saved_adapter(base.float(), config.adapter or "")
    lost = rounded_away(adapted, stored)
    merged = adapted.merge_and_unload().to(stored)
    merged.generation_config = GenerationConfig()  # its own may hold settings that transformers reads but does not write
    texts = text_folder(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as unfinished:
        merged.save_pretrained(unfinished)
        (unfinished / GENERATION).unlink(missing_ok=True)
        if texts is not None and (texts / GENERATION).exists():
            shutil.copyfile(texts / GENERATION, unfinished / GENERATION)
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False).save_pretrained(unfinished)
    say(f"wrote {out} ({stored})")
    if lost > 0.01:
        say(f"note: rounding to {stored} moved the merged weights by {100 * lost:.0f} % of what the adapter moves them (root mean square). "
            "--dtype float32 loses nothing and takes twice the space; so does a server that has base and adapter apart. docs/models.md "
            "says what rounding cost in our runs")


@torch.no_grad()
def rounded_away(model: PeftModel, dtype: torch.dtype) -> float:
    """The root mean square of what rounding changes in the merged weights, divided by that of what the adapter changes in them.

    0 if `model`, which is in float32, stays in float32. Example: weights 1 + .001 are 1 in bfloat16, so it is 1.
    """
    if dtype == torch.float32:
        return 0.0
    rounded = added = 0.0
    for layer in model.modules():
        if "default" in getattr(layer, "lora_A", {}):
            delta = layer.get_delta_weight("default")
            merged = layer.get_base_layer().weight + delta
            rounded += (merged.to(dtype).float() - merged).double().square().sum().item()
            added += delta.double().square().sum().item()
    return math.sqrt(rounded / added) if added else 0.0


def check_room(config: CommonConfig, model_config: PretrainedConfig, out: Path) -> None:
    """Raises UserError if there is less room than the weights of a local model take, and OSError if nothing can be written there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    probe(out.parent)
    needed = sum(path.stat().st_size for path in Path(model_folder(config)).glob("*.safetensors"))
    if config.dtype != "auto":
        stored = getattr(model_config, "dtype", None) or torch.float32
        needed = needed * torch.finfo(getattr(torch, config.dtype)).bits // torch.finfo(stored).bits
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise UserError(f"--out {out}: the merged model takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; free some "
                        "space, or name another folder")


def main() -> None:
    guard()
    if not sys.stderr.isatty():
        hide_bars_of_libraries()
    parser = argparse.ArgumentParser(prog="python -m common.policy", allow_abbrev=False)
    command = parser.add_subparsers(required=True).add_parser("merge", help="write base + adapter as one model")
    command.add_argument("--model", required=True, help="hub id or folder of the base; tiny: the embedded model")
    command.add_argument("--adapter", required=True, help="PEFT folder")
    command.add_argument("--out", required=True, help="folder to write")
    command.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="number type of what is written; "
                         "auto: that of the base. In bfloat16, rounding takes away a part of what the adapter has learnt")
    arguments = parser.parse_args()
    config, out = CommonConfig(model=arguments.model, adapter=arguments.adapter, dtype=arguments.dtype), Path(arguments.out)
    try:
        with Stop():  # not at once, so that nothing half written stays
            if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
                raise UserError(f"--out {out} is there and no empty folder; name a new folder")
            _, model_config = load_tokenizer(config)  # checks model and adapter
            check_room(config, model_config, out)
            merge(config, model_config, out)
    except UserError as error:
        fail(*error.lines)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        fail(f"error: --out {out} could not be written, and nothing is left of it: {words(error)}; free some space, or name another folder")
    except Stopped as stopped:
        sys.exit(128 + stopped.number)
