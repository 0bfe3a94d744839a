"""Models as people have them, and what is known to be wrong with one before its weights are read."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import save_random_model
from hostile.models import base, edit, sharded
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel, PreTrainedTokenizerFast, T5Config, ViTConfig

from common.config import CommonConfig
from common.errors import UserError
from common.policy import load
from common.policy.load import load_policy
from common.policy.pretrained import load_tokenizer


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test if weights are read."""
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))


def loaded(folder):
    config = CommonConfig(model=str(folder))
    return load_policy(config, *load_tokenizer(config))


def test_shards_and_half_precision_load(tmp_path):
    whole, parts = (loaded(make(tmp_path / name)) for make, name in ((base, "whole"), (sharded, "parts")) if not (tmp_path / name).mkdir())
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(whole.model(input_ids=ids).logits, parts.model(input_ids=ids).logits)
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float16).save_pretrained(tmp_path / "whole")
    assert loaded(tmp_path / "whole").dtype == torch.float32


def test_links_as_in_the_hub_cache_are_followed(tmp_path):
    blobs = base(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in blobs.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    loaded(tmp_path / "snapshot")


def test_a_slow_tokenizer_alone_is_read(tmp_path):
    """vocab.json and merges.txt without tokenizer.json, as older models have them."""
    vocabulary = {character: i for i, character in enumerate(["<|endoftext|>", *map(chr, range(33, 127)), "Ġ", "Ċ"])}
    folder = base(tmp_path, vocab_size=len(vocabulary), eos_token_id=0)
    for path in folder.glob("token*"):
        path.unlink()
    config = AutoConfig.from_pretrained(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    edit(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    tokenizer, _ = load_tokenizer(CommonConfig(model=str(folder)))
    assert tokenizer("ab")["input_ids"] == [vocabulary["a"], vocabulary["b"]]


@pytest.mark.parametrize("config, kind", [
    (T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=200, architectures=["T5ForConditionalGeneration"]), "t5"),
    (BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=200), "bert"),
    (ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16), "vit"),
])
def test_models_that_write_no_text_are_refused_by_name(config, kind, tmp_path, no_weights):
    base(tmp_path)
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"is a {kind} model .*, which does not write text token by token"):
        load_tokenizer(CommonConfig(model=str(tmp_path)))
    if kind == "bert":  # with an output head it is no better: it reads a text in both directions
        BertLMHeadModel(config).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"is a bert model \(BertLMHeadModel\)"):
            load_tokenizer(CommonConfig(model=str(tmp_path)))


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForSequenceClassification"])
def test_models_without_an_output_head_are_refused_by_name(name, tmp_path, no_weights):
    with pytest.raises(UserError, match=rf"is a llama model \({name}\)"):
        load_tokenizer(CommonConfig(model=str(base(tmp_path, architectures=[name]))))


def test_an_adapter_given_as_model_is_said_to_be_one(tmp_path, no_weights):
    edit(tmp_path, "adapter_config.json", peft_type="LORA")
    with pytest.raises(UserError, match=r"the folder holds an adapter\. Give its base as --model"):
        load_tokenizer(CommonConfig(model=str(tmp_path)))


def test_the_advice_for_pickled_weights_works(tmp_path, monkeypatch):
    folder = base(tmp_path / "old")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="Python pickles") as caught:
        load_tokenizer(CommonConfig(model=str(folder)))
    command, _, model = str(caught.value).partition("once: python ")[2].partition(", then give --model ")
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded(model)


def byte_level(size: int, special: list[str]) -> PreTrainedTokenizerFast:
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"w{i}" for i in range(size))][:size - len(special)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate([*special, *pieces])}, unk_token=special[0]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], unk_token=special[0])


def test_a_tokenizer_that_does_not_fit_the_embedding_is_seen_before_the_weights(tmp_path, no_weights):
    def refused(tokenizer, rows: int) -> str:
        folder = tmp_path / f"{rows}-{len(tokenizer)}"
        save_random_model(folder, "llama", tokenizer, vocab_size=rows)
        with pytest.raises(UserError, match=rf"tokens without a row in the embedding, which has {rows}") as caught:
            load_tokenizer(CommonConfig(model=str(folder)))
        return str(caught.value)

    refused(byte_level(300, ["<eos>"]), 200)  # another model's tokenizer
    added = byte_level(300, ["<eos>"])
    added.add_tokens(["<think>", "</think>"])  # tokens added without new rows
    assert "<think> (300), </think> (301)" in refused(added, 300)
    padded = byte_level(310, ["<eos>"])
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert "[PAD] (310)" in refused(padded, 310)


def test_rows_without_tokens_and_tokens_of_images_are_no_fault(tmp_path):
    """Many models have more rows than tokens. Gemma 3 without vision has the token of an image and no row for it."""
    tokenizer = byte_level(300, ["<eos>"])
    load_tokenizer(CommonConfig(model=str(save_random_model(tmp_path / "rows", "llama", tokenizer, vocab_size=320))))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    load_tokenizer(CommonConfig(model=str(save_random_model(tmp_path / "image", "llama", tokenizer, vocab_size=300))))


def test_modules_beside_a_folder_named_like_a_hub_id_do_not_run(tmp_path, monkeypatch):
    from hostile.models import AUTO_MAP, code

    folder = tmp_path / "somebody" / "model"
    folder.mkdir(parents=True)
    code(base(folder, auto_map=AUTO_MAP))
    monkeypatch.chdir(tmp_path)
    loaded("somebody/model")
    assert not (folder / "RAN").exists()
