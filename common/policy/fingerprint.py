"""Fingerprints of models and adapters: whether files hold what a run was trained on. They do not depend on where the files lie."""
from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from common.config import SamplingConfig
from common.files import sha256
from common.policy.pretrained import model_folder

WHOLE = 2**26  # bytes: smaller weights are read whole
PIECE = 2**12  # bytes that are read in one place of larger ones
PLACES = 2**12  # at most, in all weights together
# keys of a model's config.json that say who wrote it and how the weights are kept, and not what the model computes
ABOUT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


def base_fingerprint(config: SamplingConfig) -> dict[str, str | None] | None:
    """Of the base model: its "config", its "end tokens" and its "weights". None if its weights are not on this machine (yet).

    Weights of up to 64 MiB are read whole. Of larger ones, which would take minutes, these are read: names, types and shapes of all
    tensors, and 4 KiB at the beginning and in the middle of each, or of every second, third, ... where there are more than 2,048. So
    another training, merge or version of a model is found; a change of a few numbers, or of a few rows of a tensor, may not be. How the
    tensors are spread over files does not count.
    """
    files = weight_files(model_folder(config))
    if not files:
        return None
    folder = files[0].parent
    settings = _json(folder / "config.json")
    end = _json(folder / "generation_config.json").get("eos_token_id")
    return {"config": _hash({key: value for key, value in settings.items() if key not in ABOUT}), "end tokens": _hash(end),
            "weights": _weights(files)}


def adapter_fingerprint(folder: Path) -> str:
    """Of a PEFT adapter: its weights and settings, the name of its base apart. Raises OSError."""
    settings = {key: value for key, value in _json(folder / "adapter_config.json").items() if key != "base_model_name_or_path"}
    return _hash([settings, sha256(folder / "adapter_model.safetensors")])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of a tokenizer: its tokens, and which of them are special. How it cuts texts is seen in the ids of the prompts."""
    return _hash([sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids)])


def _folder_of(name: str) -> Path | None:
    """The folder of a model: `name`, or where the hub's cache has its newest version. None if it is not there."""
    if Path(name).is_dir():
        return Path(name)
    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def weight_files(model: str) -> list[Path]:
    """The files of weights that transformers would load for a hub id or a folder. An empty list if one of them is not on this machine."""
    folder = _folder_of(model)
    for kind in ("model.safetensors", "pytorch_model.bin") if folder else ():
        if (folder / kind).is_file():
            return [folder / kind]
        names = _json(folder / f"{kind}.index.json").get("weight_map")
        if isinstance(names, dict):
            files = [folder / name for name in sorted(set(map(str, names.values())))]
            return files if all(file.is_file() for file in files) else []
    return []


def _weights(files: list[Path]) -> str:
    whole = sum(file.stat().st_size for file in files) <= WHOLE
    tensors = [tensor for file in files for tensor in _tensors(file)]
    tensors.sort(key=lambda tensor: tensor[0])
    every = -(-2 * len(tensors) // PLACES)  # of so many tensors, one is read
    found = []
    for number, (name, kind, file, begin, size) in enumerate(tensors):
        places = [(begin, size)] if whole else [(begin, PIECE), (begin + size // 2, PIECE)] if number % every == 0 else []
        found.append([name, kind, size, [_piece(file, place, min(count, begin + size - place)) for place, count in places]])
    return _hash(found)


def _tensors(file: Path) -> list[tuple[str, str, Path, int, int]]:
    """(name, type and shape, file, first byte, number of bytes) of the tensors in a file. A file of another format: 64 equal parts."""
    size = file.stat().st_size
    if file.suffix == ".safetensors":
        try:
            with open(file, "rb") as opened:
                length = struct.unpack("<Q", opened.read(8))[0]
                header = json.loads(opened.read(min(length, size)))
            return [(name, f"{entry['dtype']} {entry['shape']}", file, 8 + length + entry["data_offsets"][0],
                     entry["data_offsets"][1] - entry["data_offsets"][0]) for name, entry in header.items() if name != "__metadata__"]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            pass  # the file is damaged; whoever loads it says so
    part = -(-size // 64)
    return [(f"{file.name} {number:02d}", "", file, number * part, max(0, min(part, size - number * part))) for number in range(64)]


def _piece(file: Path, place: int, count: int) -> str:
    try:
        with open(file, "rb") as opened:
            opened.seek(place)
            return hashlib.sha256(opened.read(min(count, WHOLE))).hexdigest()
    except (ValueError, TypeError, OverflowError):  # as above
        return "cannot be read"


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file with an object, else {}."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
