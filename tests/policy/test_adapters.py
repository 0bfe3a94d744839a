"""Adapters as people have them: taken exactly as PEFT takes them, with dropout off, or refused by the name of what is not plain LoRA."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import SIZES, evaluate, make_policy, random_batch, run, save_random_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from common.config import CommonConfig
from common.errors import UserError
from common.policy.adapters import with_saved_adapter
from common.policy.load import load_policy
from common.policy.micro_batches import microbatches
from common.policy.pretrained import load_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
WEIGHTS = "adapter_model.safetensors"


def by_peft(base_folder, folder, noise=0.1, **settings):
    """An adapter that PEFT itself made and saved; and the logits of IDS that PEFT then computes."""
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    plain = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(base, LoraConfig(**plain))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(noise * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model.eval()(input_ids=IDS).logits.detach()


def policy_of(model, adapter, **flags):
    config = CommonConfig(model=str(model), adapter=str(adapter), **flags)
    return load_policy(config, *load_tokenizer(config))


TAKEN = {
    "dropout": {"lora_dropout": 0.05},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"up_proj": 2, "layers.1.self_attn.q_proj": 3}, "alpha_pattern": {"up_proj": 5, "q_proj": 3}},
    "anchored pattern": {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32}},
    "all-linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.(q|k)_proj"},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"exclude_modules": ["model.layers.0.mlp.up_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
    "all together": {"lora_dropout": 0.1, "use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"o_proj": 1}},
}


@pytest.mark.parametrize("name", TAKEN)
def test_plain_lora_of_every_kind_is_taken_exactly(name, random_models, tokenizer, tmp_path, capsys):
    expected = by_peft(random_models["llama"], tmp_path / "theirs", **TAKEN[name])
    policy = policy_of(random_models["llama"], tmp_path / "theirs", beta=0.1)
    assert_close(policy.model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    with policy.merged(policy.merged_weights()):  # what the sampler runs
        assert_close(policy.base(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
    with policy.reference():
        reference = policy.logps(micro)[0]
    assert torch.equal(policy.logps(micro)[0], reference)
    assert torch.equal(policy.logps(micro)[0], policy.logps(micro)[0])  # dropout is off
    assert ("was trained with dropout" in capsys.readouterr().out) == ("lora_dropout" in TAKEN[name])
    policy.save(tmp_path / "ours")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(random_models["llama"]), tmp_path / "ours")
    assert_close(again(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert_close(policy_of(random_models["llama"], tmp_path / "ours").model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["lora_dropout"] == 0


REFUSED = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "trainable_token_indices": {"trainable_token_indices": [3]},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_plain_lora_is_refused_by_its_name_before_weights_are_read(name, random_models, tmp_path):
    by_peft(random_models["llama"], tmp_path, **REFUSED[name])
    with pytest.raises(UserError, match=rf"{tmp_path}.*{name}"):
        load_tokenizer(CommonConfig(model=str(random_models["llama"]), adapter=str(tmp_path)))


@pytest.mark.parametrize("change", [
    lambda key: key.replace("base_model.model.", "base_model.model.base_model.model.", 1),
    lambda key: f"module.{key}",
    lambda key: f"_orig_mod.{key}",
    lambda key: key.replace(".weight", ".default.weight"),
])
def test_names_of_other_wrappings_are_understood(change, random_models, tmp_path):
    expected = by_peft(random_models["llama"], tmp_path)
    save_file({change(key): value for key, value in load_file(tmp_path / WEIGHTS).items()}, tmp_path / WEIGHTS)
    assert_close(policy_of(random_models["llama"], tmp_path).model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_settings_that_say_where_it_was_made_have_no_influence(random_models, tmp_path):
    expected = by_peft(random_models["llama"], tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    gone = {"base_model_name_or_path": "/home/somebody/gone", "revision": "main", "inference_mode": False, "task_type": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, **gone, "target_modules": "something else"}))
    assert_close(policy_of(random_models["llama"], tmp_path).model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_adapters_are_trained_in_float32(random_models, tmp_path):
    by_peft(random_models["llama"], tmp_path)
    save_file({key: value.to(torch.bfloat16) for key, value in load_file(tmp_path / WEIGHTS).items()}, tmp_path / WEIGHTS)
    assert {p.dtype for p in policy_of(random_models["llama"], tmp_path).parameters_of().values()} == {torch.float32}


def test_an_adapter_in_a_subfolder_is_pointed_to(random_models, tmp_path):
    expected = by_peft(random_models["llama"], tmp_path / "checkpoint-100" / "default")
    with pytest.raises(UserError, match=rf"give {tmp_path}/checkpoint-100/default$"):
        load_tokenizer(CommonConfig(model=str(random_models["llama"]), adapter=str(tmp_path)))
    policy = policy_of(random_models["llama"], tmp_path / "checkpoint-100" / "default")
    assert_close(policy.model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"give a folder that exists\. An adapter on the hub"):
        load_tokenizer(CommonConfig(model=str(random_models["llama"]), adapter="somebody/adapter"))


def test_the_advice_for_a_pickled_adapter_works(random_models, tmp_path):
    expected = by_peft(random_models["llama"], tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "adapter_model.bin")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError) as caught:
        policy_of(random_models["llama"], tmp_path)
    command = str(caught.value).partition("Convert it once: python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True)
    assert_close(policy_of(random_models["llama"], tmp_path).model(input_ids=IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_a_rank_that_its_settings_do_not_have_is_refused(random_models, tmp_path):
    by_peft(random_models["llama"], tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "r": 8}))
    with pytest.raises(UserError, match=r"A of .* is \(4, 64\), the model needs .* rank in adapter_config.json is 8"):
        load_tokenizer(CommonConfig(model=str(random_models["llama"]), adapter=str(tmp_path)))


def test_layers_for_images_are_refused_by_name(tokenizer, tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config={**SIZES, "vocab_size": len(tokenizer), "sliding_window": 16}, vision_config=vision,
                          mm_tokens_per_image=4, image_token_index=5, boi_token_index=6, eoi_token_index=7)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    by_peft(tmp_path / "base", tmp_path / "both", target_modules=["q_proj"])
    with pytest.raises(UserError, match=r"adapts .*vision.*, which text never reaches"):
        load_tokenizer(CommonConfig(model=str(tmp_path / "base"), adapter=str(tmp_path / "both")))


# ---- GPT-2, whose layers are Conv1D ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=len(tokenizer), n_embd=64, n_layer=2, n_head=4, n_positions=256, eos_token_id=0,
                                  bos_token_id=None, initializer_range=0.2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_conv1d_layers_are_adapted_as_by_peft(gpt2, tmp_path, tokenizer):
    expected = by_peft(gpt2, tmp_path, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True, lora_dropout=0.1)
    policy = policy_of(gpt2, tmp_path)
    assert_close(policy.model(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
    with policy.merged(policy.merged_weights()):
        assert_close(policy.base(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
    fresh = make_policy(gpt2, tokenizer, lora_target_modules=["c_attn"])
    (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, fresh)
    fresh.logps(micro)[0].sum().backward()
    assert len(fresh.parameters_of()) == 2 * 2 and all(p.grad.abs().max() > 0 for p in fresh.parameters_of().values())
    with pytest.raises(UserError, match=r"q_proj: .* has no such linear layer; it has c_attn, c_fc, c_proj"):
        load_tokenizer(CommonConfig(model=str(gpt2), lora_target_modules=["q_proj"]))


def test_a_run_on_conv1d_layers_ends_in_an_adapter_that_evaluates_and_merges(gpt2, tmp_path, monkeypatch):
    (tmp_path / "reward.py").write_text("def even(completion, problem):\n    return float(len(completion) % 2)\n")
    flags = ["--model", str(gpt2), "--max_completion_length", "64", "--reward", f"{tmp_path / 'reward.py'}:even", "--eval_steps", "0"]
    assert run("train_grpo", tmp_path / "run", *flags, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    adapter = tmp_path / "run" / "checkpoint-2"
    weights = load_file(adapter / WEIGHTS)
    assert any("c_attn" in key for key in weights) and any(value.abs().max() > 0 for key, value in weights.items() if "lora_B" in key)
    shared = ["--model", str(gpt2), "--max_completion_length", "8", "--max_problems", "2", "--num_samples", "0"]
    assert evaluate(tmp_path / "eval", *shared, "--adapter", str(adapter), monkeypatch=monkeypatch)["problems"] == 2
    base = AutoModelForCausalLM.from_pretrained(gpt2)
    ours = with_saved_adapter(base, str(adapter))(input_ids=IDS).logits
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2), adapter)(input_ids=IDS).logits
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_adapter_trained_on_a_4bit_base_is_taken_on_every_base(random_models, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    make_policy(random_models["llama"], tokenizer, load_in_4bit=True).save(tmp_path)
    for four in (False, True):
        assert policy_of(random_models["llama"], tmp_path, load_in_4bit=four).quantized == four


def test_a_tied_head_is_no_missing_weight(tokenizer, tmp_path):
    folder = save_random_model(tmp_path / "tied", "llama", tokenizer, tie_word_embeddings=True)
    by_peft(folder, tmp_path / "adapter")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    policy_of(folder, tmp_path / "adapter")
