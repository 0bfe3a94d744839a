"""python -m common.policy merge: the merged model is whole, or nothing of it is there."""

import json
import resource
import runpy
import signal
import sys

import pytest
import torch
from helpers import make_policy, save_random_model
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

IDS = torch.tensor([[5, 6, 7, 8]])


def merge(*arguments: object, monkeypatch) -> object:
    """The merge as from the command line. Returns its exit code or message."""
    monkeypatch.setattr(sys, "argv", ["merge", "merge", *map(str, arguments)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        runpy.run_module("common.policy", run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tokenizer):
    """(base, adapter). The base's generation config sets a temperature without sampling, as those of many models do."""
    base, adapter = (tmp_path_factory.mktemp(name) for name in ("base", "adapter"))
    save_random_model(base, "llama", tokenizer)
    make_policy(base, tokenizer).save(adapter)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2], "temperature": 0.7, "top_p": 0.8, "do_sample": False}))
    return base, adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_base_with_a_temperature_and_no_sampling(dtype, pair, tmp_path, monkeypatch):
    base, adapter = pair
    if dtype != torch.float32:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        model.generation_config.temperature = model.generation_config.top_p = None
        model.save_pretrained(tmp_path / "half")
        AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "half")
        base = tmp_path / "half"
    out = tmp_path / "new" / "merged"
    assert merge("--model", base, "--adapter", adapter, "--out", out, monkeypatch=monkeypatch) == 0
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert merged.dtype == dtype
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    exact = 1e-5 if dtype == torch.float32 else 0.05
    assert_close(merged.float()(input_ids=IDS).logits, expected(input_ids=IDS).logits, atol=exact, rtol=exact)
    assert (out / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_a_failed_merge_leaves_nothing(pair, tmp_path, monkeypatch):
    arguments = ["--model", pair[0], "--adapter", pair[1], "--out", tmp_path / "merged"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk: the weights do not fit
    try:
        found = merge(*arguments, monkeypatch=monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "could not be written, and nothing is left of it" in found and "\n" not in found
    assert list(tmp_path.iterdir()) == []

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    ends = ((lambda *_, **__: signal.raise_signal(signal.SIGINT), 130), (lambda *_, **__: signal.raise_signal(signal.SIGTERM), 143))
    for end, code in (*ends, (full, "No space left")):
        with monkeypatch.context() as patch:
            patch.setattr(PreTrainedTokenizerFast, "save_pretrained", end)  # after the weights were written
            found = merge(*arguments, monkeypatch=patch)
        assert found == code or code in found
        assert list(tmp_path.iterdir()) == []
    assert merge(*arguments, monkeypatch=monkeypatch) == 0


def test_a_place_that_is_taken_stays_as_it_is(pair, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for name in ("file", "full"):
        found = merge("--model", pair[0], "--adapter", pair[1], "--out", tmp_path / name, monkeypatch=monkeypatch)
        assert "is there and no empty folder" in found
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert merge("--model", pair[0], "--adapter", pair[1], "--out", tmp_path / "empty", monkeypatch=monkeypatch) == 0


def test_gpt2_merges(tokenizer, tmp_path, monkeypatch):
    from transformers import AutoConfig

    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=64, eos_token_id=0)
    config.bos_token_id = None
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    policy = make_policy(tmp_path / "base", tokenizer)
    policy.save(tmp_path / "adapter")
    folders = ["--model", tmp_path / "base", "--adapter", tmp_path / "adapter", "--out", tmp_path / "merged"]
    assert merge(*folders, monkeypatch=monkeypatch) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_close(merged(input_ids=IDS).logits, policy.model(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
