"""python -m common.policy merge: the merged model is whole, or nothing of it is there."""

import json
import re
import resource
import runpy
import shutil
import signal
import sys
import types

import pytest
import torch
from helpers import make_policy, save_random_model
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from common.policy.merge import rounded_away

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
        base = half_of(base, tmp_path / "half", dtype)
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


def half_of(base, folder, dtype=torch.bfloat16):
    """A copy of the base whose weights are stored in 16 bits."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model.generation_config.temperature = model.generation_config.top_p = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_float32_keeps_what_rounding_takes_away_and_the_merge_says_so(pair, tmp_path, monkeypatch, capsys):
    base = half_of(pair[0], tmp_path / "half")
    small = tmp_path / "small"  # an adapter that moves the weights little, as one that was trained for some steps
    small.mkdir()
    weights = load_file(pair[1] / "adapter_model.safetensors")
    save_file({name: value * (0.02 if "lora_B" in name else 1) for name, value in weights.items()}, small / "adapter_model.safetensors")
    (small / "adapter_config.json").write_bytes((pair[1] / "adapter_config.json").read_bytes())
    exact = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), small)(input_ids=IDS).logits
    off = {}
    for dtype, kept in (("auto", torch.bfloat16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        out = tmp_path / dtype
        assert merge("--model", base, "--adapter", small, "--out", out, "--dtype", dtype, monkeypatch=monkeypatch) == 0
        found = re.findall(r"note: rounding to torch.bfloat16 moved the merged weights by (\d+) %", capsys.readouterr().out)
        assert len(found) == (kept == torch.bfloat16) and all(5 < int(percent) < 500 for percent in found)
        merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
        assert merged.dtype == kept
        off[dtype] = (merged.float()(input_ids=IDS).logits - exact).abs().max().item()
    assert off["float32"] < 1e-4 < off["auto"] == off["bfloat16"]
    size = {dtype: (tmp_path / dtype / "model.safetensors").stat().st_size for dtype in off}
    assert size["float32"] > 1.9 * size["bfloat16"]


@pytest.mark.parametrize("dtype, step", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_the_share_that_rounding_takes_away(dtype, step, pair):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.float32), pair[1])
    layers = [layer for layer in model.modules() if "default" in getattr(layer, "lora_A", {})]
    for layer in layers:  # every weight is 1, and every change the same
        for part in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]):
            part.weight.data.fill_(1.0)
    for change, share in ((step / 2, 1.0), (2 * step, 0.0), (3 * step, 1 / 3), (64 * step, 0.0)):  # above 1 the numbers lie 2 * step apart
        for layer in layers:
            layer.scaling["default"] = change / layer.r["default"]
        assert rounded_away(model, dtype) == pytest.approx(share, abs=1e-3)
    assert rounded_away(model, torch.float32) == 0.0


def test_room_for_float32_is_twice_that_of_the_base(pair, tmp_path, monkeypatch):
    base = half_of(pair[0], tmp_path / "half")
    size = (base / "model.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1.5 * size))
    arguments = ["--model", base, "--adapter", pair[1], "--out", tmp_path / "merged"]
    assert "takes" in merge(*arguments, "--dtype", "float32", monkeypatch=monkeypatch) and not (tmp_path / "merged").exists()
    assert merge(*arguments, monkeypatch=monkeypatch) == 0


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
