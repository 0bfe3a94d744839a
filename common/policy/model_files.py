"""The files of a model before a library reads them. Somebody else made them: they may be damaged, and they may be meant to do harm.

Nothing that stands in them is executed, and no weights are read. What a library would check by itself, and say in one line, is left to it.
"""
from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, PreTrainedModel

from common.errors import UserError

CONFIG, GENERATION, TOKENIZER, INDEX = "config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEXTS = (CONFIG, GENERATION, TOKENIZER, INDEX, TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "vocab.json",
         "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json", "adapter_config.json", "processor_config.json",
         "preprocessor_config.json")
VOCABULARIES = (TOKENIZER, "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model",
                "tekken.json")
FLOATS = ("F64", "F32", "F16", "BF16")
LARGEST = 64_000_000  # bytes of such a file. The largest that are in use are tokenizers of 35 MB
# the largest numbers that a library is asked to make a model of, by the end of their name: their time and memory would have no limit
LIMITS = {r"(layers?|experts|depth)$": 2_000, r"(^num_(?!param)|^n_|labels)": 1_000_000, r"(size|dim|embd|model|inner|width)$": 2**24}
# Reading a text with the tokenizer, in a process of its own: its regular expressions may take any time, and its replacements any memory
TRIAL = """
import sys
from tokenizers import Tokenizer
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30,) * 2)
except ImportError:  # Windows
    pass
tokenizer = Tokenizer.from_file(sys.argv[1])
for text in ("a", "A", "0", " ", "-", "\\n", "ab 1, ", "x" * 60 + " "):
    tokenizer.encode(text * 200)
"""
CLASSES = re.compile(r"\w*(Tokenizer|TokenizerFast|Backend)")  # names of tokenizers; a library would call any of its classes by its name
MOST_TOKENS = 50_000  # added tokens of a tokenizer_config.json: each takes a library longer than the one before
PATIENCE = 60.0  # seconds. The largest tokenizers take 5


def text_folder(model: str) -> Path | None:
    """The folder with the model's files other than weights, which are downloaded if `model` is a hub id. None if there is no model."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, allow_patterns=list(TEXTS)))
    except Exception:  # whatever it is, transformers will meet it too, and it says more about it
        return None


def check_texts(model: str) -> None:
    """Raises UserError if a file of the model is no file to read, or asks for code, or for a model without bounds."""
    folder = text_folder(model)
    if folder is None:
        return
    if os.path.lexists(folder / "adapter_config.json"):
        raise UserError(f"--model {model}: the folder holds an adapter. Give its base as --model, and this folder as --adapter. If "
                        "it also holds a whole model, move adapter_config.json to another place")
    for path in (*(folder / name for name in TEXTS), *folder.glob("additional_chat_templates/*")):
        if os.path.lexists(path):
            check_plain(path)
    for name in VOCABULARIES:  # without it a library may begin with an empty vocabulary
        if os.path.lexists(folder / name):
            check_plain(folder / name, None if name in TEXTS else LARGEST)
    if os.path.lexists(folder / CONFIG):
        check_config(folder / CONFIG)
    if os.path.lexists(folder / GENERATION):
        read_json(folder / GENERATION)
    if os.path.lexists(folder / TOKENIZER_CONFIG):
        check_tokenizer_config(folder / TOKENIZER_CONFIG)


def check_config(path: Path) -> None:
    """Raises UserError for a config.json that needs code of its own, or that would make a library work without bounds."""
    settings = read_json(path)
    _check_class(path, settings)
    if settings.get("transformers_weights"):
        raise UserError(f"{path}: transformers_weights names another file than model.safetensors, which would be read unchecked; "
                        "give it that name, and remove the entry")
    kind = settings.get("model_type")
    if kind is not None and kind not in CONFIG_MAPPING:
        own = " and comes with code of its own (auto_map), which is never run" if "auto_map" in settings else ""
        raise UserError(f"{path}: the model type {str(kind)[:80]!r} is unknown to transformers {transformers.__version__}{own}; give a "
                        "model of a type that transformers knows, or install a version that knows it")
    for key, value in _items(settings):
        if isinstance(value, str) and "_implementation" in key and "/" in value:
            raise UserError(f"{path}: {key} {value[:80]!r} names code on the hub, which is never run; remove that entry")
        if isinstance(value, str) and key in ("dtype", "torch_dtype") and not isinstance(getattr(torch, value, None), torch.dtype):
            raise UserError(f"{path}: {key} {value[:80]!r} is not a type of numbers; write float32, float16 or bfloat16")
        most = next((most for end, most in LIMITS.items() if re.search(end, key)), None)
        if most is not None and isinstance(value, int | float) and value > most:
            raise UserError(f"{path}: {key} is {value:.6g}, more than any model has ({most:,} at most); the file is damaged or hostile")


def check_tokenizer_config(path: Path) -> None:
    """Raises UserError for settings that would make a library use something else than a tokenizer, or another file, or take very long."""
    settings = read_json(path)
    _check_class(path, settings)
    if settings.get("fast_tokenizer_files"):
        raise UserError(f"{path}: fast_tokenizer_files names other files than tokenizer.json, which would be read unchecked; remove the "
                        "entry")
    for key, value in settings.items():
        if isinstance(value, list | dict) and len(value) > MOST_TOKENS:
            raise UserError(f"{path}: {key[:80]} has {len(value):,} entries, and no tokenizer has more than {MOST_TOKENS:,}; the file is "
                            "damaged or hostile")


def _check_class(path: Path, settings: dict[str, Any]) -> None:
    name = settings.get("tokenizer_class")
    if name is not None and not (isinstance(name, str) and CLASSES.fullmatch(name)):
        raise UserError(f"{path}: tokenizer_class {str(name)[:80]!r} is not a tokenizer of transformers, and code of its own is never "
                        "run; correct it, or remove the entry")


def _items(value: Any) -> list[tuple[str, Any]]:
    """All (key, value) of nested dictionaries, but not of those in lists."""
    own = list(value.items()) if isinstance(value, dict) else []
    return own + [item for _, inner in own for item in _items(inner)]


def check_weights(model: str, skeleton: PreTrainedModel) -> None:
    """Raises UserError if the weights in a local folder are no safetensors, are not all there, or are not of the model's shapes.

    Only their headers are read. skeleton: a model without weights.
    """
    folder = Path(model)
    if not folder.is_dir():  # transformers looks for safetensors on the hub
        return
    files = [folder / "model.safetensors"]
    if not os.path.lexists(files[0]):
        if not os.path.lexists(folder / INDEX):
            raise UserError(f"--model {model}: {what_weights(folder)}")
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{folder / INDEX}: its weight_map is not a list of tensors and files; download the file again")
        names = sorted(set(places.values()))
        bad = next((name for name in names if Path(name).name != name or not name.endswith(".safetensors")), None)
        if bad is not None:
            raise UserError(f"{folder / INDEX}: it names {bad[:200]!r}, which is no .safetensors file of this folder; nothing else is read")
        files = [folder / name for name in names]
    stored = read_json(folder / CONFIG).get("quantization_config") if os.path.lexists(folder / CONFIG) else None
    shapes = {name: list(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    for path in files:  # first whether all are there: reading the headers may take long on a network
        if not path.exists():
            raise UserError(f"--model {model}: {path.name} is missing, one of {len(files)} files with its weights; download it again")
        check_plain(path, None)
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    tensor = file.get_slice(name)
                    if not stored and name.endswith(".weight") and tensor.get_dtype() not in FLOATS:
                        raise UserError(f"{path}: {name[:200]} holds no floating-point numbers, and config.json names no quantization; "
                                        "this is not a whole model")
                    if not stored and shapes.get(name, tensor.get_shape()) != tensor.get_shape():
                        raise UserError(f"{path}: {name[:200]} has the shape {tensor.get_shape()}, and by config.json it has "
                                        f"{shapes[name]}; the files are not of one model: download it again")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged ({words(error)}); download it again") from error


def what_weights(folder: Path) -> str:
    """What is in the folder in place of safetensors, and what to do about it."""
    names = [path.name for path in folder.iterdir()]
    if any(name.endswith(".gguf") for name in names):
        return "a GGUF file is for llama.cpp and cannot be trained; give the model that it was made from"
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        target = f"{folder.resolve().name}-safetensors"
        convert = (f"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; m, t = {str(folder)!r}, {target!r}; "
                   "M.from_pretrained(m, dtype='auto').save_pretrained(t); T.from_pretrained(m).save_pretrained(t)")
        return ("its weights are Python pickles, which can run code and are not read. If you trust them, convert them once: python -c "
                f"{shlex.quote(convert)}, then give --model {target}")
    return "the folder has no model.safetensors and no model.safetensors.index.json; download the model again"


def check_tokenizer_files(model: str) -> None:
    """Raises UserError if a folder has no tokenizer, or if its tokenizer.json cannot be read or takes time or memory without bounds."""
    folder = text_folder(model)
    if folder is None:
        return
    if Path(model).is_dir() and not any(os.path.lexists(folder / name) for name in VOCABULARIES):
        raise UserError(f"--model {model}: the folder has no tokenizer; copy tokenizer.json and tokenizer_config.json of the model that it "
                        "was made from into it")
    path = folder / TOKENIZER
    if not path.exists():
        return
    quiet = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    try:
        trial = subprocess.run([sys.executable, "-P", "-c", TRIAL, str(path)], timeout=PATIENCE, stdin=subprocess.DEVNULL, env=quiet,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{path} took more than {PATIENCE:g} s for a short text; give a model with another tokenizer") from error
    if trial.returncode:
        lines = [line for line in trial.stderr.decode(errors="replace").splitlines() if line and not line.startswith("note:")]
        why = "a short text takes more than 4 GB of memory" if trial.returncode < 0 or not lines else lines[-1][:200]
        raise UserError(f"{path} cannot be used: {why}; download the tokenizer again")


def check_plain(path: Path, largest: int | None = LARGEST) -> None:
    """Raises UserError if the path is no plain file, or a link to none, or larger than `largest` bytes."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; download it again") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is no file but a folder, a pipe or a device; download it again")
    if largest is not None and found.st_size > largest:
        raise UserError(f"{path} has {found.st_size / 1e6:.0f} MB, and at most {largest / 1e6:.0f} MB are read; download it again")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that somebody else wrote. Raises UserError."""
    check_plain(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {words(error)}; download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__} in place of settings by name; download it again")
    return value


def words(error: BaseException) -> str:
    """What an error says, on one line of at most 300 characters."""
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:300]
