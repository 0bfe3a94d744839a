"""A trainer on the very tensors of vLLM's CPU build, in float32: all numbers are those of a trainer with a base of its own.

vLLM's CPU build packs its weights for the processor and drops them. Here it keeps them, as on a GPU. Runs where vllm is installed:
`make test-vllm`.
"""

import gc
import hashlib
import importlib

import pytest
import torch

pytest.importorskip("vllm")

import vllm.model_executor.layers.utils as layers
from helpers import QUICK, SCRIPTS, completions, metrics, random_batch, run, save_random_model
from safetensors.torch import load_file, save_file

from common.config import CommonConfig
from common.errors import UserError
from common.policy.load import load_policy
from common.policy.micro_batches import microbatches
from common.policy.pretrained import load_tokenizer
from common.rollout.choose_engine import connect
from common.rollout.vllm_engine import VLLMEngine

PACK = layers.dispatch_cpu_unquantized_gemm
PROMPTS = [tuple((7 * i + 3 * k) % 90 + 3 for k in range(40 + i)) for i in range(4)]
FAMILIES = {
    "llama": {"attention_bias": True}, "mistral": {}, "qwen2": {"num_key_value_heads": 4}, "qwen2 tied": {"tie_word_embeddings": True},
    "qwen3": {}, "phi3": {}, "gemma": {"tie_word_embeddings": True}, "gemma2": {"tie_word_embeddings": True},
    "gemma3_text": {"tie_word_embeddings": True}}
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}  # vLLM's kernels need heads of 32


@pytest.fixture(scope="module", autouse=True)
def weights_are_kept():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setattr(layers, "dispatch_cpu_unquantized_gemm", lambda layer, remove_weight: PACK(layer, remove_weight=False))
        yield


@pytest.fixture
def engine_on(tokenizer, tmp_path):
    """`engine_on(family)`: the config of a random model and a vLLM on it, which ends with the test: one has 1 GB of keys and values."""
    engines = []

    def start(family):
        sizes = WIDE | FAMILIES[family]
        folder = save_random_model(tmp_path / "model", family.partition(" ")[0], tokenizer, **sizes)
        weights = load_file(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(0)  # biases are 0 and norms 1 or 0 in a fresh model
        weights = {name: w + 0.1 * torch.randn(w.shape, generator=generator) if w.ndim == 1 else w for name, w in weights.items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        config = CommonConfig(model=str(folder), engine="vllm", max_completion_length=20, lora_r=8)
        engines.append(VLLMEngine(config, *load_tokenizer(config), PROMPTS))
        return config, engines[0]

    yield start
    engines.clear()
    gc.collect()


def policies(config, engine):
    """The policy on vLLM's tensors, and one on a base of its own. Their adapters are the same and not zero."""
    found = [load_policy(config, *load_tokenizer(config), holder) for holder in (engine, None)]
    for policy in found:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.parameters_of().values():  # a bit: of a model that is moved far, vLLM's kernels round another way
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_that_of_a_base_of_its_own(family, engine_on, tokenizer, capsys):
    config, engine = engine_on(family)
    ours, theirs = policies(config, engine)
    starts = {held.data.untyped_storage().data_ptr() for held in engine.held_base().tensors.values()}
    base = {name: parameter for name, parameter in ours.base.named_parameters() if "lora_" not in name}
    assert ours.shared_bytes and all(parameter.untyped_storage().data_ptr() in starts for parameter in base.values())
    for kind in ("named_parameters", "named_buffers"):
        mine, other = (dict(getattr(policy.base, kind)()) for policy in (ours, theirs))
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    results = []
    for policy in (ours, theirs):
        (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
        logps, _ = policy.logps(micro)
        logps.sum().backward()
        results.append([logps, *(parameter.grad for parameter in policy.parameters_of().values())])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    before = {name: parameter.clone() for name, parameter in base.items()}
    connect(engine, ours)  # vLLM takes the adapter as an adapter: merged weights would land in the trainer's base
    assert engine.lora is not None and "nats: mean" in capsys.readouterr().out
    assert all(torch.equal(parameter, before[name]) for name, parameter in base.items())


def test_a_wrong_mapping_is_caught_at_the_start(engine_on, monkeypatch, capsys):
    """q and k have the same shape in this model."""
    config, engine = engine_on("qwen2")
    held = engine.held_base()
    swapped = {name: held.tensors[name.replace("q_proj", "-").replace("k_proj", "q_proj").replace("-", "k_proj")] for name in held.tensors}
    assert all(swapped[name].data.shape == held.tensors[name].data.shape for name in held.tensors)
    monkeypatch.setattr(engine, "held_base", lambda: held._replace(tensors=swapped))
    ours, theirs = policies(config, engine)
    assert not ours.shared_bytes and "is not that of model.safetensors" in capsys.readouterr().out
    assert all(torch.equal(x, y) for x, y in zip(ours.base.parameters(), theirs.base.parameters(), strict=True))


def test_a_checkpoint_that_changed_after_vllm_read_it_stops_the_run(engine_on):
    config, engine = engine_on("mistral")
    file = f"{config.model}/model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] += 1e-6
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match="its files were changed while the run started"):
        load_policy(config, *load_tokenizer(config), engine)


def test_weights_that_vllm_has_packed_and_dropped_are_loaded_again(engine_on, monkeypatch, capsys):
    """What vLLM's CPU build really does."""
    monkeypatch.setattr(layers, "dispatch_cpu_unquantized_gemm", PACK)
    config, engine = engine_on("qwen3")
    policy = load_policy(config, *load_tokenizer(config), engine)
    connect(engine, policy)
    assert "the sampler has no model.layers.0.self_attn.q_proj" in capsys.readouterr().out
    assert not policy.shared_bytes and engine.lora is None


@pytest.fixture(scope="module")
def task(weights_are_kept):
    """A list with the one engine on which all runs of the embedded task sample."""
    made = []

    def make_engine(*inputs):
        made.extend([] if made else [VLLMEngine(*inputs)])
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        for script in SCRIPTS:
            patch.setattr(importlib.import_module(script), "make_engine", make_engine)
        yield made
        made.clear()
        gc.collect()


held_base = VLLMEngine.held_base
EXTRA = {"train_grpo": ["--beta", "0.05", "--num_minibatches", "2"], "train_ppo": ["--critic_warmup_steps", "1"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_six_steps_are_those_of_a_base_of_its_own(script, task, tmp_path, monkeypatch):
    monkeypatch.setattr("common.policy.policy.Policy.merged_weights", lambda self: {})  # in both runs vLLM gets the adapter
    bases = []
    for own in (False, True):
        with monkeypatch.context() as patch:
            if own:
                patch.setattr(VLLMEngine, "held_base", lambda self: None)
            flags = ["--engine", "vllm", "--max_steps", "6", "--eval_steps", "3", "--save_steps", "6", *EXTRA.get(script, [])]
            assert run(script, tmp_path / str(own), *flags, monkeypatch=patch, quick=QUICK[:-4]) == 0
        bases.append(hashlib.sha256(b"".join(held.data.numpy().tobytes() for held in held_base(task[0]).tensors.values())).hexdigest())
    ours, theirs = tmp_path / "False", tmp_path / "True"
    assert metrics(ours) == metrics(theirs) and len(metrics(ours)) == 7
    assert completions(ours) == completions(theirs)
    for name in ("adapter_model.safetensors", *(["critic/adapter_model.safetensors"] if script == "train_ppo" else [])):
        mine, other = (load_file(folder / "checkpoint-6" / name) for folder in (ours, theirs))
        assert any(weight.any() for key, weight in mine.items() if "lora_B" in key) and all(torch.equal(mine[k], other[k]) for k in other)
    assert bases[0] == bases[1]
