"""python -m common.policy merge: base and adapter as one model, for serving."""
from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig

from common.config import CommonConfig
from common.console import fail, guard, say
from common.errors import UserError
from common.files import new_folder, probe
from common.interrupt import Stop, Stopped
from common.policy.adapters import with_saved_adapter
from common.policy.load import load_base
from common.policy.model_files import GENERATION, text_folder, words
from common.policy.pretrained import load_tokenizer, model_folder


def merge(config: CommonConfig, model_config: PretrainedConfig, out: Path) -> None:
    """Writes base + adapter as one model for serving, merged in float32 and stored in the base's own precision.

    The folder is whole or not there. Raises UserError, and OSError or SafetensorError if it cannot be written.
    """
    base, folder = load_base(config, model_config, dtype="auto"), model_folder(config)
    if getattr(base.config, "quantization_config", None):
        raise UserError(f"--model {config.model} is stored in 4 bits, and merging would round; give the model that it was made from")
    stored = base.dtype
    merged = with_saved_adapter(base.float(), config.adapter or "").merge_and_unload().to(stored)
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


def check_room(config: CommonConfig, out: Path) -> None:
    """Raises UserError if there is less room than the weights of a local model take, and OSError if nothing can be written there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    probe(out.parent)
    needed = sum(path.stat().st_size for path in Path(model_folder(config)).glob("*.safetensors"))
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise UserError(f"--out {out}: the merged model takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there; free some "
                        "space, or name another folder")


def main() -> None:
    guard()
    parser = argparse.ArgumentParser(prog="python -m common.policy", allow_abbrev=False)
    command = parser.add_subparsers(required=True).add_parser("merge", help="write base + adapter as one model")
    command.add_argument("--model", required=True, help="hub id or folder of the base; tiny: the embedded model")
    command.add_argument("--adapter", required=True, help="PEFT folder")
    command.add_argument("--out", required=True, help="folder to write")
    arguments = parser.parse_args()
    config, out = CommonConfig(model=arguments.model, adapter=arguments.adapter), Path(arguments.out)
    try:
        with Stop():  # not at once, so that nothing half written stays
            if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
                raise UserError(f"--out {out} is there and no empty folder; name a new folder")
            _, model_config = load_tokenizer(config)  # checks model and adapter
            check_room(config, out)
            merge(config, model_config, out)
    except UserError as error:
        fail(*error.lines)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        fail(f"error: --out {out} could not be written, and nothing is left of it: {words(error)}; free some space, or name another folder")
    except Stopped as stopped:
        sys.exit(128 + stopped.number)
