"""Which families of models work: tried on miniatures, before weights are read. And that the trial sees what would go wrong."""

import json

import pytest
import torch
from helpers import evaluate, make_policy, run, save_random_model
from torch.testing import assert_close
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import common.rollout.prefill as prefill
import common.rollout.transformers_engine as transformers_engine
from benchmarks.families import settings_of, try_family
from common.config import CommonConfig
from common.errors import UserError
from common.policy import load, merge, self_checks
from common.policy.attention import attention, register
from common.policy.families import Fit, Misfit, adapted, check_family, small_policy, trial
from common.policy.load import load_policy
from common.policy.miniature import expert_blocks, miniature, random_model
from common.policy.new_adapter import with_adapter
from common.policy.pretrained import BY_LENGTH, context_length, load_tokenizer
from common.rollout.transformers_engine import TransformersEngine
from common.rollout.trial import try_sampling


def small(kind, **settings):
    return miniature(CONFIG_MAPPING[kind](**settings))


# One of each kind: plain, Conv1D, a bias or a factor in the head, soft-caps, windows, alibi, sinks, experts, states
@pytest.mark.parametrize("kind, how", [
    ("llama", "packed rows"), ("gpt2", "packed rows"), ("phi", "packed rows"), ("granite", "packed rows"),
    ("gemma2", "padded rows; eager attention"), ("mpt", "padded rows; eager attention"),
    ("gpt_oss", "padded rows; eager attention; adapter on k_proj, o_proj, q_proj, v_proj"),
    ("qwen3_moe", "packed rows; adapter on k_proj, o_proj, q_proj, v_proj"),
    ("deepseek_v3", "packed rows; adapter on kv_a_proj_with_mqa, kv_b_proj, o_proj, q_a_proj, q_b_proj"),
    ("qwen3_5_text", "padded rows"), ("lfm2", "padded rows"),
])
def test_families_that_work(kind, how):
    row = try_family(CONFIG_MAPPING[kind])
    assert (row.works, row.how) == (True, how)


@pytest.mark.parametrize("kind, why", [
    ("bert", "it does not write text token by token"), ("cpmant", "depend on the tokens after it"),
    ("mamba", "with its cache the log-probs are off by"), ("rwkv", "its cache is not that of other models"),
    ("modernbert-decoder", "changes its logits in a way that is not supported"),
])
def test_families_that_are_refused(kind, why):
    row = try_family(CONFIG_MAPPING[kind])
    assert not row.works and why in row.how and "\n" not in row.how


def test_a_refused_family_is_one_line_before_weights(tokenizer, tmp_path, monkeypatch):
    config = small("rwkv")
    config.vocab_size, config.eos_token_id = len(tokenizer), 0
    random_model(config, "eager").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    flags = ["--model", str(tmp_path / "model"), "--max_completion_length", "8"]
    line = run("train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch)
    assert "is a rwkv model, which cannot be sampled from with --engine transformers: its cache is not" in line
    assert "\n" not in line and "docs/models.md" in line


# ---- what the trial sees ---------------------------------------------------------------------------------------------


def test_a_soft_cap_that_an_attention_leaves_out_is_seen():
    config = small("gemma2")
    assert trial(config).attention == "eager"
    policy = small_policy(config, Fit("sdpa", False))
    eager = small_policy(config, Fit("eager", False))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    assert (policy.model(input_ids=ids).logits - eager.model(input_ids=ids).logits).abs().max() > 1e-3


def test_a_factor_of_the_logits_that_is_not_known_is_seen(monkeypatch):
    config = miniature(settings_of(CONFIG_MAPPING["granite"]))
    assert small_policy(config, Fit(register(), True)).logit_scale == pytest.approx(1 / 8, rel=1e-6)
    monkeypatch.setattr(self_checks, "_logit_scale", lambda *_: 1.0)
    with pytest.raises(Misfit, match="changes its logits in a way that is not supported"):
        trial(config)


def test_a_state_that_a_row_loses_is_seen(tokenizer, monkeypatch):
    policy = small_policy(small("qwen3_5_text"), Fit(register(), False), tokenizer=tokenizer)
    assert try_sampling(policy) is None
    real = prefill.select_rows

    def forgetful(cache, rows):
        real(cache, rows)
        for layer in cache.layers:
            for state in getattr(layer, "recurrent_states", {}).values():
                state.zero_()

    monkeypatch.setattr(prefill, "select_rows", forgetful)
    assert "with its cache the log-probs are off by" in try_sampling(policy)


def test_a_prompt_cut_from_a_longer_one_without_its_state_is_seen(tokenizer, monkeypatch):
    for module in (prefill, transformers_engine):
        monkeypatch.setattr(module, "window_of", lambda policy: 10**9)
    assert try_sampling(small_policy(small("qwen3_5_text"), Fit(register(), False), tokenizer=tokenizer)) is not None


def test_rows_of_a_model_with_states_take_memory_whatever_their_length(tokenizer):
    engine = TransformersEngine()
    engine.connect(small_policy(small("llama"), Fit(register(), True)))
    assert engine.state_tokens == 0
    engine.connect(small_policy(small("qwen3_5_text"), Fit(register(), False)))
    assert engine.state_tokens > 10


@pytest.mark.parametrize("given", [{"s_aux": torch.zeros(2)}, {"softcap": 30.0}, {"something_new": True}])
def test_what_attention_does_not_know_is_refused(given):
    query = torch.randn(1, 2, 3, 8)
    expected, _ = attention(torch.nn.Identity(), query, query, query, None, sliding_window=4, output_router_logits=False)
    assert expected.shape == (1, 3, 2, 8)
    with pytest.raises(UserError, match=f"Identity computes its attention with {next(iter(given))}, which is not known"):
        attention(torch.nn.Identity(), query, query, query, None, **given)
    attention(torch.nn.Identity(), query, query, query, None, **dict.fromkeys(given))  # None: not used


def test_the_head_of_a_bfloat16_model_is_measured_well(tokenizer, tmp_path):
    folder = save_random_model(tmp_path, "granite", tokenizer, logits_scaling=3.7)
    for dtype, close in (("float32", 1e-6), ("bfloat16", 1e-3)):
        assert make_policy(folder, tokenizer, dtype=dtype).logit_scale == pytest.approx(1 / 3.7, rel=close)


# ---- experts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "deepseek_v3", "granitemoe", "gpt_oss", "olmoe"])
def test_experts_and_routers_get_no_adapter(kind):
    base = random_model(small(kind), "eager")
    assert expert_blocks(base)
    names = [name for name, _ in adapted(base, ()).named_parameters() if "lora_A" in name]
    assert names and not [name for name in names if "expert" in name or "router" in name or "mlp" in name or ".gate." in name]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "qwen3_5_text"])
def test_models_without_experts_are_adapted_everywhere(kind):
    assert expert_blocks(random_model(small(kind), "eager")) == []


def test_an_adapter_that_nothing_could_read_again_is_refused_when_the_policy_is_made(random_models, tokenizer):
    """For a fork's own function: PEFT would save such an adapter, and refuse or ignore it later."""
    def on_the_head(base, config):
        config.lora_target_modules = ["q_proj", "lm_head"]
        return with_adapter(base, config)

    folder = str(random_models["llama"])
    with pytest.raises(UserError, match=r"no checkpoint of this run could be read again .*lm_head"):
        load_policy(CommonConfig(model=folder), tokenizer, AutoConfig.from_pretrained(folder), adapt=on_the_head)


@pytest.mark.parametrize("kind, dtype", [("mixtral", "bfloat16"), ("qwen3_5_text", "float32")])
def test_a_run_ends_in_a_checkpoint_that_resumes_evaluates_and_merges(kind, dtype, tokenizer, tmp_path, monkeypatch, capsys):
    config = small(kind)
    config.vocab_size, config.eos_token_id, config.pad_token_id, config.bos_token_id = len(tokenizer), 0, 1, None
    model = random_model(config, "eager")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id, model.generation_config.bos_token_id = 0, None, None
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "reward.py").write_text("def even(completion, problem):\n    return float(len(completion) % 2)\n")
    flags = ["--model", str(tmp_path / "model"), "--dtype", dtype, "--max_completion_length", "12", "--eval_steps", "0", "--reward",
             f"{tmp_path / 'reward.py'}:even", "--problems_per_step", "2"]
    assert run("train_grpo", tmp_path / "run", *flags, "--max_steps", "1", monkeypatch=monkeypatch) == 0
    assert ("note: experts and their router stay as they are" in capsys.readouterr().out) == (kind == "mixtral")
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert run("train_grpo", tmp_path / "run", *flags, "--max_steps", "2", "--resume_from_checkpoint", str(checkpoint),
               monkeypatch=monkeypatch) == 0
    adapter = str(tmp_path / "run" / "checkpoint-2")
    assert run("train_grpo", tmp_path / "second", *flags, "--max_steps", "1", "--adapter", adapter, "--beta", "0.1",
               monkeypatch=monkeypatch) == 0
    shared = [*flags[:4], "--adapter", adapter]
    few = ["--max_completion_length", "8", "--max_problems", "2", "--num_samples", "0"]
    assert evaluate(tmp_path / "eval", *shared, *few, monkeypatch=monkeypatch)["problems"] == 2
    monkeypatch.setattr("sys.argv", ["merge", "merge", *flags[:2], *shared[-2:], "--out", str(tmp_path / "out")])
    merge.main()
    ids = torch.tensor([[5, 6, 7, 8]])
    policy = make_policy(tmp_path / "model", tokenizer, adapter=adapter)
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(input_ids=ids).logits,
                 policy.model(input_ids=ids).logits, atol=1e-3, rtol=1e-3)


# ---- positions that depend on the length of a batch -------------------------------------------------------------------


def rope(kind: str) -> dict:
    settings = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8}
    extra = {"longrope": {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}, "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}
    return settings | extra.get(kind, {})


@pytest.mark.parametrize("kind", sorted({*ROPE_INIT_FUNCTIONS, "default"} - {"proportional"}))
def test_only_the_lengths_are_used_at_which_a_text_does_not_depend_on_its_batch(kind, tmp_path, tokenizer, capsys):
    config = small("llama")
    config.rope_parameters, config.max_position_embeddings = rope(kind), 32 if kind != "dynamic" else 8
    model = adapted(random_model(config, "eager"), ())
    ids = torch.arange(3, 27)[None]
    short, long = (model(input_ids=x, use_cache=False).logits[0, :6] for x in (ids[:, :6], ids))
    depends = (short - long).abs().max().item() > 1e-3
    assert depends == (kind in BY_LENGTH)
    assert context_length(config) == (8 if depends else 32)


def test_a_shorter_context_is_said(tmp_path, tokenizer, capsys):
    save_random_model(tmp_path, "llama", tokenizer, rope_parameters=rope("longrope"))
    load_tokenizer(CommonConfig(model=str(tmp_path)))
    assert "note: 8 of the model's 256 tokens of context are used" in capsys.readouterr().out


def test_a_model_of_which_no_miniature_can_be_made_is_tried_after_it_is_loaded(tmp_path, tokenizer, monkeypatch):
    def broken(config):
        raise ValueError("sizes")

    monkeypatch.setattr("common.policy.families.miniature", broken)
    folder = save_random_model(tmp_path, "llama", tokenizer, vocab_size=len(tokenizer) + 7)  # a config that nobody has asked about
    assert check_family(CommonConfig(model=str(folder)), AutoConfig.from_pretrained(folder)) == Fit(register(), True)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
