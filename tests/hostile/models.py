"""Models that other people made: damaged, malicious, or with code of their own. They stand for `--model`."""
from __future__ import annotations

import functools
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import save_random_model
from safetensors.torch import load_file, save_file

from common.tiny.model import build_tokenizer
from common.tiny.task import Arithmetic


class Call:
    """An object whose unpickling writes a file RAN into the folder."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "RAN")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (self.path, "w")


@functools.cache
def _made() -> Path:
    return save_random_model(Path(tempfile.mkdtemp(prefix="vinery-hostile-")), "llama", build_tokenizer(Arithmetic()))


def base(folder: Path, **settings: Any) -> Path:
    """A small Llama in `folder` with nothing wrong, whose config.json gets these settings."""
    shutil.copytree(_made(), folder, dirs_exist_ok=True)
    return edit(folder, "config.json", **settings)


def edit(folder: Path, name: str, **settings: Any) -> Path:
    """Puts settings into a JSON file of the folder."""
    old = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**old, **settings}))
    return folder


def code(folder: Path) -> None:
    """Modules in `folder` that write a file RAN there when they are executed."""
    for name in ("theirs", "modeling_theirs", "configuration_theirs", "tokenization_theirs"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'RAN')!r}, 'w').close()\nclass Theirs: ...\n")
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text((folder / "theirs.py").read_text())


AUTO_MAP = {"AutoConfig": "configuration_theirs.Theirs", "AutoModelForCausalLM": "modeling_theirs.Theirs",
            "AutoTokenizer": ["tokenization_theirs.Theirs", "tokenization_theirs.Theirs"]}


def make_code_unknown_type(folder: Path) -> Path:
    """A type of model that only code in its folder knows."""
    code(base(folder, model_type="theirs", architectures=["Theirs"], auto_map=AUTO_MAP))
    return folder


def make_code_known_type(folder: Path) -> Path:
    code(base(folder, auto_map=AUTO_MAP))
    return folder


def make_code_of_tokenizer(folder: Path) -> Path:
    code(base(folder))
    return edit(folder, "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="Theirs")


def make_code_of_generation(folder: Path) -> Path:
    code(base(folder))
    return edit(folder, "generation_config.json", custom_generate="custom_generate/generate.py", auto_map=AUTO_MAP)


def make_code_of_kernel(folder: Path) -> Path:
    """An attention that is to be loaded from a hub repository."""
    code(base(folder, attn_implementation="somebody/kernel", _attn_implementation="somebody/kernel", use_kernels=True))
    return folder


def make_code_of_another_repository(folder: Path) -> Path:
    code(base(folder, model_type="theirs", auto_map={"AutoConfig": "somebody/theirs--theirs.Theirs"}))
    return folder


def make_adapter_inside(folder: Path) -> Path:
    """A model folder that is also an adapter of another model, with a module to import."""
    code(base(folder))
    return edit(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(folder), megatron_config={"a": 1},
                megatron_core="theirs", target_modules=["q_proj"])


def make_pickle(folder: Path) -> Path:
    """pytorch_model.bin alone, whose reading would write a file RAN."""
    (base(folder) / "model.safetensors").unlink()
    torch.save({"a": Call(folder)}, folder / "pytorch_model.bin")
    return folder


def make_pickle_beside(folder: Path) -> Path:
    torch.save({"a": Call(base(folder))}, folder / "pytorch_model.bin")
    return folder


def make_pickle_shards(folder: Path) -> Path:
    """An index of safetensors that names a pickle."""
    (base(folder) / "model.safetensors").unlink()
    torch.save({"a": Call(folder)}, folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_pickle_of_tokenizer(folder: Path) -> Path:
    """A tokenizer in files of other names, one of them a pickle."""
    (base(folder) / "tokenizer.json").unlink()
    torch.save({"a": Call(folder)}, folder / "vocab.pkl")
    torch.save({"a": Call(folder)}, folder / "tokenizer.model")
    return edit(folder, "tokenizer_config.json", tokenizer_class="TransfoXLTokenizer")


def make_gguf(folder: Path) -> Path:
    (base(folder) / "model.safetensors").rename(folder / "model-q4.gguf")
    return folder


def make_no_weights(folder: Path) -> Path:
    (base(folder) / "model.safetensors").unlink()
    return folder


def sharded(folder: Path) -> Path:
    """The model in two files and an index."""
    weights = load_file(base(folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def make_shard_missing(folder: Path) -> Path:
    (sharded(folder) / "model-00002-of-00002.safetensors").unlink()
    return folder


def make_shard_broken_link(folder: Path) -> Path:
    """As in a hub cache from which a file was deleted."""
    shard = sharded(folder) / "model-00002-of-00002.safetensors"
    shard.unlink()
    shard.symlink_to("../blobs/gone")
    return folder


def make_shard_elsewhere(folder: Path) -> Path:
    index = json.loads((sharded(folder) / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "../../../../../../../../dev/zero"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_index_not_a_map(folder: Path) -> Path:
    (sharded(folder) / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    return folder


def make_header_length(folder: Path) -> Path:
    (base(folder) / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}" + bytes(64))
    return folder


def make_weights_cut_off(folder: Path) -> Path:
    file = base(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder


def make_weights_a_device(folder: Path) -> Path:
    (base(folder) / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")
    return folder


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The model after `change` of its tensors."""
    tensors = load_file(base(folder) / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def make_weights_nan(folder: Path) -> Path:
    return weights(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")))


def make_weights_lacking(folder: Path) -> Path:
    """Without the output head, as in a model that was saved for another task."""
    return weights(folder, lambda tensors: tensors.pop("lm_head.weight"))


def make_weights_of_another_shape(folder: Path) -> Path:
    return weights(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(7, 64)}))


def make_weights_integers(folder: Path) -> Path:
    return weights(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].to(torch.int8)}))


def make_config_empty(folder: Path) -> Path:
    (base(folder) / "config.json").write_text("{}")
    return folder


def make_config_deep(folder: Path) -> Path:
    (base(folder) / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    return folder


def make_config_a_pipe(folder: Path) -> Path:
    (base(folder) / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    return folder


def make_config_a_device(folder: Path) -> Path:
    (base(folder) / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    return folder


def make_config_a_loop(folder: Path) -> Path:
    (base(folder) / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    return folder


def make_generation_config_a_pipe(folder: Path) -> Path:
    (base(folder) / "generation_config.json").unlink(missing_ok=True)
    os.mkfifo(folder / "generation_config.json")
    return folder


def make_tokenizer_a_pipe(folder: Path) -> Path:
    (base(folder) / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    return folder


def make_width_huge(folder: Path) -> Path:
    return base(folder, hidden_size=10**9)


def make_layers_huge(folder: Path) -> Path:
    return base(folder, num_hidden_layers=10**7)


def make_layers_more_than_memory(folder: Path) -> Path:
    return base(folder, model_type="qwen2", num_hidden_layers=10**12)


def make_labels_huge(folder: Path) -> Path:
    return base(folder, num_labels=10**10)


def make_vocabulary_negative(folder: Path) -> Path:
    return base(folder, vocab_size=-1)


def make_heads_nought(folder: Path) -> Path:
    return base(folder, num_attention_heads=0)


def make_size_in_quotes(folder: Path) -> Path:
    return base(folder, hidden_size="64")


def make_dtype_call(folder: Path) -> Path:
    return base(folder, torch_dtype="os.system", dtype="os.system")


def make_dtype_function(folder: Path) -> Path:
    return base(folder, torch_dtype="load", dtype="load")


def make_architecture_of_nothing(folder: Path) -> Path:
    return base(folder, architectures=["NothingForNoOne"])


def make_type_a_path(folder: Path) -> Path:
    return base(folder, model_type="../../theirs")


def make_quantization_without_package(folder: Path) -> Path:
    return base(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})


def make_quantization_unknown(folder: Path) -> Path:
    return base(folder, quantization_config={"quant_method": "theirs"})


def make_generation_config_types(folder: Path) -> Path:
    return edit(base(folder), "generation_config.json", eos_token_id="two", temperature=[], max_length={"a": 1})


def make_end_token_out_of_range(folder: Path) -> Path:
    return edit(base(folder), "generation_config.json", eos_token_id=10**12)


def make_tokenizer_huge(folder: Path) -> Path:
    os.truncate(base(folder) / "tokenizer.json", 100_000_000)
    return folder


def tokenizer(folder: Path, **settings: Any) -> Path:
    """The model with a byte-level tokenizer of a vocabulary as large as its own, and these settings in its tokenizer.json."""
    return edit(base(folder), "tokenizer.json", **settings)


def make_tokenizer_pattern_invalid(folder: Path) -> Path:
    return tokenizer(folder, pre_tokenizer={"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False})


def make_tokenizer_pattern_slow(folder: Path) -> Path:
    """Time exponential in the length of a word."""
    return tokenizer(folder, pre_tokenizer={"type": "Split", "pattern": {"Regex": "(?=([a-z]+)+#)"}, "behavior": "Isolated",
                                            "invert": False})


def make_tokenizer_normalizer_slow(folder: Path) -> Path:
    return tokenizer(folder, normalizer={"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": "z"})


def make_tokenizer_normalizer_long(folder: Path) -> Path:
    """Each character becomes a thousand, three times."""
    return tokenizer(folder, normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": "a" * 1000}] * 4})


def make_tokenizer_deep(folder: Path) -> Path:
    (base(folder) / "tokenizer.json").write_text('{"normalizer":' * 100_000)
    return folder


def make_tokenizer_settings_types(folder: Path) -> Path:
    return edit(base(folder), "tokenizer_config.json", eos_token=7, model_max_length="a", added_tokens_decoder=[1])


def make_tokenizer_beyond_embedding(folder: Path) -> Path:
    base(folder)
    old = json.loads((folder / "tokenizer.json").read_text())
    size = len(old["model"]["vocab"])
    old["added_tokens"].append({"id": size, "content": "<think>", "single_word": False, "lstrip": False, "rstrip": False,
                                "normalized": False, "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(old))
    return folder


def make_no_tokenizer(folder: Path) -> Path:
    for path in base(folder).glob("*token*"):
        path.unlink()
    return folder


def make_no_end_token(folder: Path) -> Path:
    base(folder, eos_token_id=None)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return edit(folder, "tokenizer_config.json", eos_token=None)


def make_tokenizer_of_another_class(folder: Path) -> Path:
    return edit(base(folder), "tokenizer_config.json", tokenizer_class="AutoModel")


def make_tokenizer_of_another_name(folder: Path) -> Path:
    """Not tried as tokenizer.json is: the slow pattern is in the file that the settings name."""
    make_tokenizer_pattern_slow(folder).joinpath("tokenizer.json").rename(folder / "tokenizer.4.0.json")
    shutil.copy(_made() / "tokenizer.json", folder)
    return edit(folder, "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.json"])


def make_tokenizer_many_tokens(folder: Path) -> Path:
    tokens = {str(i): {"content": f"<{i}>", "special": False} for i in range(138, 200_000)}
    return edit(base(folder), "tokenizer_config.json", added_tokens_decoder=tokens)


def make_sentencepiece_a_pipe(folder: Path) -> Path:
    (base(folder) / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.model")
    return folder


def make_template_without_end(folder: Path) -> Path:
    """A template beside the one that is used: 100 GB that take no room on the disk."""
    (base(folder) / "additional_chat_templates").mkdir()
    with open(folder / "additional_chat_templates" / "tools.jinja", "wb") as file:
        file.truncate(10**11)
    return folder


def make_weights_of_another_name(folder: Path) -> Path:
    os.mkfifo(base(folder, transformers_weights="other.safetensors") / "other.safetensors")
    return folder
