import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.config import CommonConfig
from common.policy import fingerprint
from common.policy.fingerprint import base_fingerprint, tokenizer_fingerprint


@pytest.fixture
def model(random_models, tmp_path):
    return shutil.copytree(random_models["llama"], tmp_path / "model")


def of(folder):
    return base_fingerprint(CommonConfig(model=str(folder)))


def change(folder, name, place, value=1.0):
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[place] += value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


NAME = "model.layers.1.mlp.up_proj.weight"


def test_any_number_of_a_small_model_counts_and_its_place_does_not(model, tmp_path):
    first = of(model)
    assert first == of(shutil.copytree(model, tmp_path / "elsewhere"))
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "transformers_version": "9.9.9", "dtype": "bfloat16"}))
    (model / "README.md").write_text("# a card")
    assert of(model) == first
    (model / "config.json").write_text(json.dumps({**settings, "rope_theta": 123.0}))
    assert {name for name, value in of(model).items() if value != first[name]} == {"config"}
    (model / "config.json").write_text(json.dumps(settings))
    change(model, NAME, 1234, 1e-3)
    assert {name for name, value in of(model).items() if value != first[name]} == {"weights"}


def test_of_a_large_model_the_beginning_and_the_middle_of_each_tensor_count(model, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE", 1000)
    monkeypatch.setattr(fingerprint, "PIECE", 16)
    first, size = of(model), load_file(model / "model.safetensors")[NAME].numel()
    change(model, NAME, 100)
    assert of(model) == first  # the docstring says so
    change(model, NAME, size // 2)
    second = of(model)
    assert second != first
    change(model, NAME, 0)
    assert of(model) not in (first, second)
    weights = load_file(model / "model.safetensors")
    save_file({name: value.to(torch.bfloat16) for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    assert of(model)["weights"] not in (first["weights"], second["weights"])


def test_a_model_that_is_not_here_has_none_and_one_in_the_hubs_cache_has(model, tmp_path, monkeypatch):
    snapshot = tmp_path / "cache" / "models--some--model" / "snapshots" / "abc"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert of("some/model") is None
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    shutil.copytree(model, snapshot)
    assert of("some/model") == of(model)
    (snapshot / "model.safetensors").unlink()  # not downloaded yet
    assert of("some/model") is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x10" + b"\0" * 7 + b'{"a": {"dtype":1}}'])
def test_damaged_files_have_a_fingerprint_too(content, model):
    (model / "model.safetensors").write_bytes(content)
    first = of(model)
    (model / "model.safetensors").write_bytes(content + b"x")
    assert first and of(model) != first
    for name in ("config.json", "generation_config.json"):
        (model / name).write_text("[" * 100_000)
    assert of(model)


def test_a_tokenizer_is_its_tokens(tokenizer, random_models):
    from transformers import AutoTokenizer

    first = AutoTokenizer.from_pretrained(random_models["llama"])
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(AutoTokenizer.from_pretrained(random_models["qwen2"]))
    before = tokenizer_fingerprint(first)
    first.add_special_tokens({"additional_special_tokens": ["<more>"]})
    assert tokenizer_fingerprint(first) != before
