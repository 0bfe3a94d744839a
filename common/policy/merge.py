"""python -m common.policy merge: base and adapter as one model, for serving."""
from __future__ import annotations

import argparse
from pathlib import Path

from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from common.config import CommonConfig
from common.console import fail, guard, say
from common.errors import UserError
from common.policy.pretrained import load_tokenizer, model_folder


def merge(model: str, adapter: str, out: str) -> None:
    """Writes base + adapter as one model for serving, merged in float32 and stored in the base's own precision."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    stored = base.dtype
    merged = PeftModel.from_pretrained(base.float(), adapter).merge_and_unload().to(stored)
    merged.save_pretrained(out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)
    say(f"wrote {out} ({stored})")


def main() -> None:
    guard()
    parser = argparse.ArgumentParser(prog="python -m common.policy", allow_abbrev=False)
    command = parser.add_subparsers(required=True).add_parser("merge", help="write base + adapter as one model")
    command.add_argument("--model", required=True, help="hub id or folder of the base; tiny: the embedded model")
    command.add_argument("--adapter", required=True, help="PEFT folder")
    command.add_argument("--out", required=True, help="folder to write")
    arguments = parser.parse_args()
    config = CommonConfig(model=arguments.model, adapter=arguments.adapter)
    try:
        if Path(arguments.out).exists() and any(Path(arguments.out).iterdir()):
            raise UserError(f"--out {arguments.out} is not empty; name a new folder")
        load_tokenizer(config)  # checks model and adapter
        merge(model_folder(config), arguments.adapter, arguments.out)
    except UserError as error:
        fail(*error.lines)
