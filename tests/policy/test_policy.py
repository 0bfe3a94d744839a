import runpy
import sys

import pytest
import torch
from helpers import ARCHITECTURES, SIZES, make_policy, random_batch, save_random_model
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from common.config import CommonConfig
from common.errors import UserError
from common.policy.load import load_policy
from common.policy.micro_batches import microbatches
from common.policy.pretrained import check_against_shapes

TEMPERATURE = 0.7


def test_soft_capped_attention_is_computed(random_models, tokenizer, tmp_path):
    """Gemma 2 caps attention scores too, which sdpa leaves out: compared with eager attention on scores that reach the cap."""
    folder = save_random_model(tmp_path, "gemma2", tokenizer, attn_logit_softcapping=1.0)
    policy = make_policy(folder, tokenizer, noise=0.0)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    eager = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    sdpa = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    assert_close(policy.model(input_ids=ids).logits, eager(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    assert (sdpa(input_ids=ids).logits - eager(input_ids=ids).logits).abs().max() > 0.01


def test_a_model_that_can_see_is_adapted_where_text_goes(tokenizer, tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {**SIZES, "vocab_size": len(tokenizer), "sliding_window": 16}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    config = Gemma3Config(text_config=text, vision_config=vision, **tokens)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    policy = make_policy(tmp_path, tokenizer)
    assert len(policy.parameters_of()) == 2 * 2 * 7 and not [name for name in policy.parameters_of() if "vision" in name]
    (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
    policy.logps(micro)[0].sum().backward()
    assert all(p.grad is not None for p in policy.parameters_of().values())


def full_logps(model, batch):
    """Log-probs from the logits of the whole model, one unpadded sequence at a time."""
    rows = []
    for problem, completion in zip(batch.problems, batch.completions, strict=True):
        ids = torch.tensor([[*problem.prompt_ids, *completion.ids]])
        logps = torch.log_softmax(model(input_ids=ids).logits[0].float() / TEMPERATURE, -1)
        start = len(problem.prompt_ids)
        rows.append(logps[start - 1 : -1].gather(-1, ids[0, start:, None])[:, 0])
    return rows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logps_match_a_full_logits_computation(architecture, random_models, tokenizer):
    policy = make_policy(random_models[architecture], tokenizer, temperature=TEMPERATURE)
    batch = random_batch(tokenizer)
    (micro,) = microbatches(batch, torch.arange(3), 10_000, policy)  # one padded micro-batch
    with torch.no_grad():
        logps, entropy = policy.logps(micro, entropy=True)
        on, off = full_logps(policy.model, batch), None
        with policy.model.disable_adapter():
            off = full_logps(policy.model, batch)
        with policy.reference():
            reference, _ = policy.logps(micro)
    for i, row in enumerate(micro.rows.tolist()):
        length = len(on[row])
        assert_close(logps[i, :length], on[row], atol=1e-5, rtol=0)
        assert_close(reference[i, :length], off[row], atol=1e-5, rtol=0)
        assert (logps[i, length:] == 0).all()
        assert (entropy[i, :length] > -1e-5).all()
    assert (logps - reference).abs().max() > 0.01  # the adapter does something


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_adapter_loads_in_plain_peft_and_merges_for_plain_transformers(architecture, random_models, tokenizer, tmp_path, monkeypatch):
    policy = make_policy(random_models[architecture], tokenizer)
    policy.save(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    ours = policy.model(input_ids=ids).logits
    plain = {"dtype": torch.float32, "attn_implementation": policy.base.config._attn_implementation}  # Gemma 2: eager
    base = AutoModelForCausalLM.from_pretrained(random_models[architecture], **plain)
    assert_close(PeftModel.from_pretrained(base, tmp_path / "adapter")(input_ids=ids).logits, ours, atol=1e-5, rtol=1e-5)
    folders = {"--model": random_models[architecture], "--adapter": tmp_path / "adapter", "--out": tmp_path / "merged"}
    monkeypatch.setattr(sys, "argv", ["common.policy", "merge", *(str(word) for flag in folders.items() for word in flag)])
    runpy.run_module("common.policy", run_name="__main__")  # python -m common.policy merge ...
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", **plain)
    assert_close(merged(input_ids=ids).logits, ours, atol=1e-4, rtol=1e-4)


def test_merged_weights_are_swapped_in_and_the_base_comes_back_bit_for_bit(random_models, tokenizer):
    policy = make_policy(random_models["qwen3"], tokenizer)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        adapted = policy.hidden_states(ids).last_hidden_state
        for _ in range(20):
            with policy.merged(policy.merged_weights()):
                merged = policy.hidden_states(ids).last_hidden_state
        assert_close(merged, adapted, atol=1e-5, rtol=1e-5)
        assert torch.equal(policy.hidden_states(ids).last_hidden_state, adapted)
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.requires_grad == ("lora_" in name), name


def test_only_the_adapter_is_trained_and_checkpointing_changes_nothing(random_models, tokenizer):
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(random_models["llama"], tokenizer, gradient_checkpointing=checkpointing)
        (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
        policy.logps(micro)[0].sum().backward()
        gradients.append({name: p.grad for name, p in policy.parameters_of().items()})
        assert all(p.grad is None for name, p in policy.model.named_parameters() if "lora_" not in name)
        assert len(policy.parameters_of()) == 2 * 2 * 7  # A and B, two layers, seven linear layers each; no lm_head
    for name in gradients[0]:
        assert_close(gradients[0][name], gradients[1][name])


def test_a_run_can_start_from_an_adapter_which_is_then_its_reference(random_models, tokenizer, tmp_path):
    make_policy(random_models["llama"], tokenizer).save(tmp_path)
    policy = make_policy(random_models["llama"], tokenizer, adapter=str(tmp_path), beta=0.1)
    (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
    start = policy.logps(micro)[0].detach()
    with policy.reference():
        assert_close(policy.logps(micro)[0], start)
    with torch.no_grad():
        for parameter in policy.parameters_of().values():
            parameter.add_(0.05)
    with policy.reference():
        assert_close(policy.logps(micro)[0], start)
    policy.logps(micro)[0].sum().backward()  # the switch there and back left the right parameters trainable
    assert all(p.grad is not None for p in policy.parameters_of().values())
    assert all(p.grad is None and not p.requires_grad for p in policy.parameters_of("reference").values())
    policy.save(tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir() if p.is_dir()) == []  # the reference is not saved


def test_adapters_and_targets_that_do_not_fit_are_named_before_the_model_is_read(random_models, tokenizer, tmp_path):
    make_policy(random_models["llama"], tokenizer).save(tmp_path / "adapter")
    other = AutoConfig.from_pretrained(random_models["llama"])
    other.intermediate_size = 192
    with pytest.raises(UserError, match=r"does not match .* needs 192"):
        check_against_shapes(CommonConfig(model="x", adapter=str(tmp_path / "adapter")), other)
    with pytest.raises(UserError, match=r"no_such: .*it has down_proj, gate_proj"):
        check_against_shapes(CommonConfig(lora_target_modules=["no_such"]), other)
    with pytest.raises(UserError, match="not a PEFT folder"):
        check_against_shapes(CommonConfig(adapter=str(tmp_path / "nothing")), other)


def test_a_model_that_does_more_to_its_logits_is_refused(random_models, tokenizer, monkeypatch):
    monkeypatch.setattr("common.policy.policy.logit_softcap", lambda text_config: None)  # as if soft-caps were not known
    folder = str(random_models["gemma2"])
    with pytest.raises(UserError, match="changes its logits in a way that is not supported"):
        load_policy(CommonConfig(model=folder, lora_target_modules=["q_proj"]), tokenizer, AutoConfig.from_pretrained(folder))


def test_4bit_base_trains_as_its_dequantised_copy_does_and_its_reference_repeats(random_models, tokenizer):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    policy = make_policy(random_models["llama"], tokenizer, load_in_4bit=True)
    assert policy.quantized and policy.merged_weights() == {}
    layers = {name: m for name, m in policy.model.named_modules() if hasattr(m, "base_layer")}
    assert {type(m.base_layer).__name__ for m in layers.values()} == {"Linear4bit"}
    plain = make_policy(random_models["llama"], tokenizer)  # the same adapter on the weights that four bits stand for
    for name, layer in plain.model.named_modules():
        if name in layers:
            weight = layers[name].base_layer.weight
            layer.base_layer.weight.data = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    for name, parameter in plain.parameters_of().items():
        parameter.data = policy.parameters_of()[name].data.clone()
    (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
    with policy.reference():
        first, second = policy.logps(micro)[0], policy.logps(micro)[0]
    assert torch.equal(first, second)
    logps, expected = policy.logps(micro)[0], plain.logps(micro)[0]
    assert_close(logps, expected, atol=1e-3, rtol=1e-3)
    logps.sum().backward()
    expected.sum().backward()
    for name, parameter in plain.parameters_of().items():
        assert_close(policy.parameters_of()[name].grad, parameter.grad, atol=1e-3, rtol=1e-2)
