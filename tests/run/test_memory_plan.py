import dataclasses
import importlib
import json
import sys

import pytest
import torch
from helpers import ROOT, SCRIPTS, make_policy, run, save_random_model
from transformers import AutoConfig

from common.config import CommonConfig
from common.errors import UserError
from common.run.memory_plan import (
    GB,
    NF4,
    NF4_VLLM,
    STATES,
    WASTE,
    Option,
    Settings,
    make_plan,
    parts_of,
    plan_run,
    table,
    totals,
)
from common.run.model_shape import saved_bytes, shape_of

sys.path.insert(0, str(ROOT / "benchmarks"))
from shapes import SHAPES, write_config

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 141)
# the smallest of CARDS that each model fits, in 16 bits and in 4
FITS = {"Qwen2.5-7B": (24, 12), "Llama-3.1-8B": (24, 12), "Qwen3-8B": (24, 16), "Qwen2.5-14B": (40, 24), "Qwen2.5-32B": (80, 32)}


def shape(name, tmp_path, **flags):
    config = CommonConfig(model=str(write_config(name, tmp_path)), dataset="gsm8k", **flags)
    return config, shape_of(AutoConfig.from_pretrained(config.model), config)


@pytest.mark.parametrize(
    ("name", "parameters", "lora", "kv_bytes"),
    [
        ("Qwen2.5-7B", 7_615_616_512, 80_740_352, 57_344),
        ("Llama-3.1-8B", 8_030_261_248, 83_886_080, 131_072),
        ("Qwen3-8B", 8_190_735_360, 87_293_952, 147_456),
        ("Qwen2.5-14B", 14_770_033_664, 137_625_600, 196_608),
        ("Qwen2.5-32B", 32_763_876_352, 268_435_456, 262_144),
    ],
)
def test_sizes_of_published_models(name, parameters, lora, kv_bytes, tmp_path):
    """Parameters as the model cards have them; adapter and cache from the shapes by hand."""
    _, found = shape(name, tmp_path)
    assert (found.parameters, found.lora, found.kv_bytes) == (parameters, lora, kv_bytes)
    sizes = SHAPES[name]
    head = 2 * sizes["vocab_size"] * sizes["hidden_size"]
    assert found.parameters - head > found.linear > 0.99 * (found.parameters - head)
    assert found.largest == sizes["hidden_size"] * sizes["intermediate_size"] and found.layers == sizes["num_hidden_layers"]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_activations_are_those_that_autograd_keeps(architecture, tmp_path, tokenizer):
    """Counted on a real model in bfloat16, as the trainer runs it."""
    kept = {}
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    for layers in (1, 3):
        folder = save_random_model(tmp_path / str(layers), architecture, tokenizer, num_hidden_layers=layers, **sizes)
        policy = make_policy(folder, tokenizer, dtype="bfloat16")
        weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
        storages = {}

        def pack(tensor, weights=weights, storages=storages):
            if tensor.untyped_storage().data_ptr() not in weights:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            policy.hidden_states(torch.full((2, 128), 5), use_cache=False)
        kept[layers] = sum(storage.nbytes() for storage in storages.values()) / 256
    config = CommonConfig(model=str(folder), lora_r=4)
    model_config = AutoConfig.from_pretrained(folder)
    counted = saved_bytes(model_config, config, 2) - saved_bytes(model_config, config, 1)
    assert counted == pytest.approx((kept[3] - kept[1]) / 2, rel=0.02)


def test_four_bit_weights_take_what_bitsandbytes_makes_them():
    bnb = pytest.importorskip("bitsandbytes")
    weight, state = bnb.functional.quantize_4bit(torch.randn(1024, 1024), quant_type="nf4", compress_statistics=True)
    held = weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert held / 1024**2 == pytest.approx(NF4, rel=0.001)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("four_bit", [False, True])
def test_what_fits_fits_larger_cards_too_and_only_harmless_flags_are_set(name, four_bit, tmp_path):
    config, found = shape(name, tmp_path, load_in_4bit=four_bit)
    before, fits = dataclasses.asdict(config), []
    for card in CARDS:
        plan = make_plan(config, found, card * GB, set())
        fits.append(plan.settings is not None)
        if plan.settings:
            assert plan.peak <= card * GB and plan.option.rows >= 8
            parts = parts_of(found, config, plan.option)
            assert plan.settings.gradient_checkpointing == (plan.option.checkpointed == found.layers)
            assert parts == plan.parts and plan.peak == max(totals(parts)) + WASTE * card * GB
            assert card * plan.settings.vllm_gpu_memory_utilization * GB >= sum(part.sampling for part in parts if part.vllm)
        else:
            assert "does not fit" in table(plan, config)
    assert fits == [card >= FITS[name][four_bit] for card in CARDS]
    assert dataclasses.asdict(config) == before
    assert {spec.name for spec in dataclasses.fields(Settings)} < CommonConfig.resumable  # what a resumed run may change, so may the plan


def test_every_remedy_is_one(tmp_path):
    config, found = shape("Qwen2.5-7B", tmp_path)
    plan = make_plan(config, found, 20 * GB, set())
    assert plan.settings is None and "--load_in_4bit" in plan.remedies
    changes = {
        "--load_in_4bit": {"load_in_4bit": True},
        "--engine transformers": {"engine": "transformers"},
        "--optim adamw_8bit": {"optim": "adamw_8bit"},
        "--max_completion_length 512": {"max_completion_length": 512},
    }
    for remedy, change in changes.items():
        changed = make_plan(dataclasses.replace(config, **change), found, 20 * GB, set())
        assert (changed.settings is not None) == (remedy in plan.remedies)
    assert "would fit with --load_in_4bit" in " ".join(table(plan, config))
    wide = dataclasses.replace(config, max_tokens_per_microbatch=131072)
    plan = make_plan(wide, found, 48 * GB, {"max_tokens_per_microbatch"})
    assert plan.remedies == ["the plan's own --max_tokens_per_microbatch"]  # what was typed stays: nothing else is enough
    hopeless = make_plan(config, found, 4 * GB, set())
    assert hopeless.remedies == [] and "a smaller model" in " ".join(table(hopeless, config))


def test_flags_that_were_given_stay(tmp_path):
    config, found = shape("Qwen2.5-7B", tmp_path, max_tokens_per_microbatch=3000, gradient_checkpointing=True)
    plan = make_plan(config, found, 80 * GB, {"max_tokens_per_microbatch", "gradient_checkpointing"})
    assert plan.settings.max_tokens_per_microbatch == 3000 and plan.settings.gradient_checkpointing
    plan = make_plan(config, found, 80 * GB, set())
    assert not plan.settings.gradient_checkpointing and plan.option.checkpointed == 0
    plan = make_plan(dataclasses.replace(config, gradient_checkpointing=False), found, 48 * GB, {"gradient_checkpointing"})
    assert plan.option.checkpointed == 0


def of(parts, beginning):
    """(sampling, update) of the part whose name begins so."""
    (part,) = (part for part in parts if part.name.startswith(beginning))
    return part.sampling, part.update


def test_each_phase_has_what_lives_in_it(tmp_path):
    config, found = shape("Qwen2.5-7B", tmp_path)
    option = Option(4096, 14, 16)
    parts = parts_of(found, config, option)
    both = [part.name for part in parts if part.sampling == part.update > 0]
    assert both == ["base, one for sampler and trainer", "adapters, state of the optimiser", "vLLM's adapter",
                    "vLLM's buffers and CUDA graphs", "CUDA"]
    assert of(parts, "base") == (found.parameters * 2,) * 2
    assert of(parts, "keys and values")[1] == of(parts, "vLLM's forward")[1] == 0 < of(parts, "keys and values")[0]
    assert of(parts, "gradients") == (0, 4 * found.lora) and of(parts, "activations")[0] == of(parts, "log-probs")[0] == 0
    critic = dataclasses.replace(config)
    critic.trained_adapters = 2
    more = parts_of(found, critic, option)
    assert totals(more) == (totals(parts)[0] + found.lora * 14, totals(parts)[1] + found.lora * 18)


def test_a_release_that_is_typed_off_adds_the_phases_up(tmp_path):
    config, found = shape("Qwen2.5-7B", tmp_path)
    off = dataclasses.replace(config, vllm_enable_sleep_mode=False)
    option = Option(4096, 14, 16)
    cache = of(parts_of(found, off, option), "keys and values")
    assert cache[0] == cache[1]
    assert totals(parts_of(found, off, option)) == pytest.approx((totals(parts_of(found, config, option))[0],
                                                                  totals(parts_of(found, config, option))[1] + cache[0]))
    plans = [make_plan(made, found, 24 * GB, {"vllm_enable_sleep_mode"}) for made in (config, off)]
    assert plans[0].option.rows > plans[1].option.rows
    alone = dataclasses.replace(off, engine="transformers")  # the flag is vLLM's: this engine's keys and values are gone before the update
    assert of(parts_of(found, alone, option), "keys and values")[1] == 0


@pytest.mark.parametrize("four_bit", [False, True])
def test_a_base_that_cannot_be_shared_is_there_twice(four_bit, tmp_path):
    config, found = shape("Qwen2.5-7B", tmp_path, load_in_4bit=four_bit)
    assert found.shared
    option = Option(4096, 14, 16)
    once, twice = (totals(parts_of(dataclasses.replace(found, shared=shared), config, option)) for shared in (True, False))
    trainers = (found.parameters - found.linear) * 2 + found.linear * (NF4 if four_bit else 2)
    assert [b - a for a, b in zip(once, twice, strict=True)] == pytest.approx([trainers] * 2)
    assert make_plan(config, dataclasses.replace(found, shared=False), 16 * GB, set()).settings is None
    alone = parts_of(found, dataclasses.replace(config, engine="transformers"), option)
    assert of(alone, "base") == pytest.approx((trainers,) * 2)


def test_whether_a_base_is_shared_is_asked_where_it_is_decided(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("common.run.model_shape.own_base", lambda base, dtype: asked.append((type(base).__name__, dtype)) or "a reason")
    _, found = shape("Qwen2.5-7B", tmp_path)
    assert not found.shared and asked == [("Qwen2ForCausalLM", torch.bfloat16)]


@pytest.mark.parametrize("engine", ["auto", "vllm"])
def test_with_servers_the_card_holds_no_sampler(engine, tmp_path):
    servers = {"vllm_server_base_url": ["http://a:8000"], "engine": engine}
    option = Option(4096, 0, 64)
    config, sizes = shape("Qwen2.5-7B", tmp_path, **servers)
    parts = parts_of(sizes, config, option)
    assert not any(part.vllm for part in parts)
    alone = parts_of(sizes, dataclasses.replace(config, vllm_server_base_url=None, engine="transformers"), option)
    cache = next(part for part in alone if part.name.startswith("keys and values"))
    assert totals(parts)[0] == totals(alone)[0] - cache.sampling and totals(parts)[1] == totals(alone)[1] and cache.sampling > 1e9
    plan = make_plan(config, sizes, 24 * GB, set())
    assert plan.settings is not None and "fits, while servers sample, under" in table(plan, config)


def test_parts_grow_with_what_causes_them(tmp_path):
    config, found = shape("Qwen2.5-7B", tmp_path)

    def changed(name, tokens=4096, checkpointed=0, rows=16, **flags):
        return max(of(parts_of(found, dataclasses.replace(config, **flags), Option(tokens, checkpointed, rows)), name))

    def update(tokens, layers):
        return sum(part.update - part.sampling for part in parts_of(found, config, Option(tokens, layers, 0)))

    assert changed("adapters") == found.lora * (6 + STATES["adamw_torch"])
    assert changed("adapters", optim="adamw_8bit") == found.lora * 8
    assert changed("adapters", dtype="float32", engine="transformers") == found.lora * 12  # needs no copy in bfloat16
    assert changed("reference adapter", adapter="some", beta=0.1) == 6 * found.lora
    assert changed("keys and values", rows=32) == 2 * changed("keys and values")
    assert not [part for part in parts_of(found, dataclasses.replace(config, engine="transformers"), Option(4096, 0, 16)) if part.vllm]
    assert changed("base", load_in_4bit=True) < 0.4 * changed("base")
    # in vLLM, the scales of the blocks are float32
    assert changed("base", load_in_4bit=True) - changed("base", load_in_4bit=True, engine="transformers") == pytest.approx(
        found.linear * (NF4_VLLM - NF4), rel=0.01)
    assert changed("keys and values", num_generations=1) == 16 * 1280 * found.kv_bytes  # a prompt is there once for its group
    assert changed("keys and values") == 16 * (1024 + 256 / 8) * found.kv_bytes
    taken = [update(tokens, layers) + 0.5 * GB for tokens, layers in ((4096, 0), (8192, 0), (4096, 28), (4096, 14))]
    assert taken[1] > 1.9 * taken[0] and taken[2] < 0.2 * taken[0]
    assert taken[3] == pytest.approx((taken[0] + taken[2]) / 2, rel=0.1)


def test_no_more_layers_are_checkpointed_than_must_be(tmp_path):
    config, found = shape("Qwen2.5-7B", tmp_path)
    counts = []
    for card in (24, 28, 32, 36, 40, 46, 52):
        plan = make_plan(config, found, card * GB, {"max_tokens_per_microbatch"})  # 4096 tokens
        counts.append(plan.option.checkpointed)
        if plan.option.checkpointed:
            less = parts_of(found, config, plan.option._replace(checkpointed=plan.option.checkpointed - 1))
            assert max(totals(less)) + WASTE * card * GB > card * GB
    assert 0 in counts and len(set(counts)) > 3


def test_scores_that_are_kept_are_counted(tmp_path):
    """Gemma 2 caps its attention scores, so its attention is not fused and keeps them: they grow with the length of a row."""
    config, _ = shape("Gemma-2-9B", tmp_path)
    model_config = AutoConfig.from_pretrained(config.model)
    long, short = (shape_of(model_config, dataclasses.replace(config, max_completion_length=n)).layer_bytes for n in (1024, 256))
    assert (long - short) / 768 == pytest.approx(16 * 8, rel=0.1)  # 8 bytes for each of 16 heads' scores


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_plan_needs_a_config_alone_and_leaves_nothing(script, tmp_path, monkeypatch, capsys):
    folder = str(write_config("Qwen2.5-7B", tmp_path / "model"))
    flags = ["--model", folder, "--dataset", "gsm8k", "--plan_memory"]
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "load_rows", lambda *_: pytest.fail("the data was read"))
    assert run(script, tmp_path / "run", *flags, "20", monkeypatch=monkeypatch, quick=[]) == 1
    text = capsys.readouterr().out
    assert "does not fit" in text and "would fit with --load_in_4bit" in text
    assert run(script, tmp_path / "run", *flags, "20", "--load_in_4bit", monkeypatch=monkeypatch, quick=[]) == 0
    assert "one for sampler and trainer (vllm-bnb-plugin)" in capsys.readouterr().out
    assert run(script, tmp_path / "run", *flags, "24", monkeypatch=monkeypatch, quick=[]) == 0
    text = capsys.readouterr().out
    assert "fits, with" in text and "layers checkpointed" in text and "--vllm_gpu_memory_utilization 0." in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("memory plan")) <= 80
    (line,) = (line for line in text.splitlines() if "adapters" in line)
    assert [float(word) for word in line.split()[-2:]] == pytest.approx([80_740_352 * 14 / 1e9 * (2 if script == "train_ppo" else 1)] * 2,
                                                                        abs=0.01)
    (line,) = (line for line in text.splitlines() if "together" in line)
    assert f"at once, at most {max(map(float, line.split()[-2:])):.2f} GB" in text
    assert not (tmp_path / "run").exists()
    elsewhere = run(script, tmp_path / "run", "--model", "no/such-model", *flags[2:], "24", monkeypatch=monkeypatch, quick=[])
    assert "--model no/such-model could not be loaded" in elsewhere


def a_gpu(monkeypatch, free, whole, engine):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * GB, whole * GB))
    monkeypatch.setattr("common.run.memory_plan.choose_engine", lambda config: (engine, "a test"))


def test_a_run_on_a_gpu_takes_over_the_plan_for_what_is_free(tmp_path, monkeypatch):
    config, found = shape("Qwen2.5-7B", tmp_path)
    a_gpu(monkeypatch, 50, 80, "vllm")
    plan = plan_run(config)
    assert plan == make_plan(dataclasses.replace(config, engine="vllm"), found, 50.4 * GB, set())  # the context is there already
    assert config.max_tokens_per_microbatch == plan.settings.max_tokens_per_microbatch
    cache = int(of(plan.parts, "keys and values")[0])
    assert config.planned == {"checkpointed_layers": plan.option.checkpointed, "rows": plan.option.rows, "cache_bytes": cache}
    # vLLM takes its share of the whole card
    assert config.vllm_gpu_memory_utilization * 80 == pytest.approx(plan.settings.vllm_gpu_memory_utilization * 50.4, abs=0.1)

    config = CommonConfig(model=config.model, dataset="gsm8k", max_tokens_per_microbatch=1024, vllm_gpu_memory_utilization=0.4)
    config.given = {"max_tokens_per_microbatch", "vllm_gpu_memory_utilization"}
    plan_run(config)
    assert (config.max_tokens_per_microbatch, config.vllm_gpu_memory_utilization) == (1024, 0.4)
    assert "cache_bytes" not in config.planned  # what was typed decides


def test_a_share_that_was_typed_is_filled_with_keys_and_values(tmp_path, monkeypatch):
    config, found = shape("Qwen2.5-7B", tmp_path)
    typed = {"vllm_gpu_memory_utilization"}

    def made(share):
        return make_plan(dataclasses.replace(config, vllm_gpu_memory_utilization=share), found, 40 * GB, typed)

    for share in (0.5, 0.6, 0.8):
        vllm = sum(part.sampling for part in made(share).parts if part.vllm)
        row = (1024 + 256 / 8) * found.kv_bytes
        assert share * 40 * GB - row <= vllm <= share * 40 * GB and made(share).settings.vllm_gpu_memory_utilization == share
    for share in (0.97, 0.3):  # nothing is left for adapters and CUDA; not even the base has room
        assert made(share).settings is None and made(share).remedies[0] == "the plan's own --vllm_gpu_memory_utilization"
    a_gpu(monkeypatch, 40, 80, "vllm")  # half of the card is free; the share is one of the whole card
    config.vllm_gpu_memory_utilization, config.given = 0.3, typed
    assert plan_run(config).option.rows == make_plan(dataclasses.replace(config, vllm_gpu_memory_utilization=0.3 * 80 / 40.4), found,
                                                     40.4 * GB, typed).option.rows


def test_a_run_that_does_not_fit_its_gpu_stops_and_without_vllm_needs_less(tmp_path, monkeypatch):
    config, _ = shape("Qwen2.5-7B", tmp_path)
    a_gpu(monkeypatch, 20, 20, "vllm")
    with pytest.raises(UserError, match=r"would fit with --load_in_4bit"):
        plan_run(config)
    a_gpu(monkeypatch, 20, 20, "transformers")
    assert plan_run(config).settings is not None and config.load_in_4bit is False


def test_models_without_a_plan_run_all_the_same(tmp_path, monkeypatch, capsys):
    a_gpu(monkeypatch, 80, 80, "vllm")
    folder = write_config("Llama-3.1-8B", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "pad_token_id": 128004}))
    assert plan_run(CommonConfig(model=str(folder))).settings is not None
    sizes = {"hidden_size": 64, "num_hidden_layers": 2}  # it has no attention
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba", "architectures": ["MambaForCausalLM"], **sizes}))
    assert plan_run(CommonConfig(model=str(folder))) is None
    assert "going on without a plan" in capsys.readouterr().out
    with pytest.raises(UserError, match="could not be worked out"):
        plan_run(CommonConfig(model=str(folder), plan_memory=24))
