"""A trainer whose base is made of a sampler's tensors: the same to the bit, and refused whole if a single number is another."""

import pytest
import torch
from helpers import ARCHITECTURES, make_policy, random_batch, save_random_model
from hostile.models import sharded
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from common.config import CommonConfig
from common.errors import UserError
from common.policy import load, shared_base
from common.policy.critic import Critic
from common.policy.load import load_policy
from common.policy.micro_batches import microbatches
from common.policy.pretrained import load_tokenizer
from common.policy.shared_base import Held, HeldBase, stamps


class Sampler:
    """Holds the base of a folder as vLLM does: with further rows of the vocabulary, and a tied head once."""

    def __init__(self, folder, dtype=torch.float32, four_bits=False):
        self.files = stamps(CommonConfig(model=str(folder)))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.tensors = {name: Held(parameter.data) for name, parameter in model.named_parameters()}
        for name in [name for name in self.tensors if "embed" in name or "lm_head" in name]:
            data = self.tensors[name].data
            self.tensors[name] = Held(torch.cat([data, data.new_zeros(7, data.shape[1])]))
        for name, (data, _) in list(self.tensors.items()) if four_bits else []:
            if "proj" in name and data.ndim == 2:
                self.tensors[name] = in_4_bits(data)

    def held_base(self):
        return HeldBase(self.tensors, self.files)

    def holds(self, tensor):
        """Whether a tensor lies in memory of the sampler's."""
        starts = {held.data.untyped_storage().data_ptr() for held in self.tensors.values()}
        return tensor.untyped_storage().data_ptr() in starts


def in_4_bits(data):
    from bitsandbytes.functional import dequantize_blockwise, quantize_4bit

    packed, state = quantize_4bit(data, quant_type="nf4", compress_statistics=True)
    state.absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset  # as vllm-bnb-plugin does
    state.nested, state.offset, state.state2 = False, None, None
    return Held(packed, state)


def policies(folder, sampler, tokenizer, **flags):
    """The policy on the sampler's tensors, and one on a base of its own. Their adapters are the same and not zero."""
    config = CommonConfig(model=str(folder), lora_r=4, lora_alpha=8, **flags)
    found = [load_policy(config, tokenizer, AutoConfig.from_pretrained(folder), engine) for engine in (sampler, None)]
    for policy in found:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.parameters_of().values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return found


def check_equal(ours, theirs, tokenizer):
    """Base, buffers, log-probs and gradients of two policies are the same to the bit."""
    for kind in ("named_parameters", "named_buffers"):
        mine, other = (dict(getattr(policy.base, kind)()) for policy in (ours, theirs))
        assert mine.keys() == other.keys()
        assert all(mine[name].dtype == other[name].dtype and torch.equal(mine[name], other[name]) for name in mine)
    results = []
    for policy in (ours, theirs):
        (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
        logps, entropy = policy.logps(micro, entropy=True)
        (logps.sum() + entropy.sum()).backward()
        results.append([logps, entropy, *(parameter.grad for parameter in policy.parameters_of().values())])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    assert ours.stop_ids == theirs.stop_ids and ours.packs == theirs.packs and not ours.model.training
    assert ours.base.config.to_dict() == theirs.base.config.to_dict()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "qwen2 tied"])
def test_a_shared_base_is_the_sampler_s_memory_and_computes_as_its_own_would(architecture, tokenizer, tmp_path, capsys):
    tied = {"tie_word_embeddings": True} if "tied" in architecture else {}
    folder = save_random_model(tmp_path, architecture.partition(" ")[0], tokenizer, **tied)
    sampler = Sampler(folder)
    ours, theirs = policies(folder, sampler, tokenizer)
    base = [parameter for name, parameter in ours.base.named_parameters() if "lora_" not in name]
    assert all(map(sampler.holds, base)) and ours.shared_bytes == sum(p.nbytes for p in base) and theirs.shared_bytes == 0
    check_equal(ours, theirs, tokenizer)
    assert "base of its own" not in capsys.readouterr().out


@pytest.mark.parametrize("stored, run", [("float16", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16")])
def test_a_checkpoint_in_another_type_is_compared_after_the_conversion(stored, run, random_models, tokenizer, tmp_path):
    AutoModelForCausalLM.from_pretrained(random_models["qwen3"], dtype=getattr(torch, stored)).save_pretrained(tmp_path)
    sampler = Sampler(tmp_path, getattr(torch, run))
    ours, theirs = policies(tmp_path, sampler, tokenizer, dtype=run)
    assert ours.shared_bytes and ours.dtype == getattr(torch, run)
    check_equal(ours, theirs, tokenizer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_in_4_bits_is_shared_with_its_states(dtype, random_models, tokenizer, monkeypatch, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    AutoModelForCausalLM.from_pretrained(random_models["qwen2"], dtype=getattr(torch, dtype)).save_pretrained(tmp_path)  # has biases
    sampler = Sampler(tmp_path, getattr(torch, dtype), four_bits=True)
    ours, theirs = policies(tmp_path, sampler, tokenizer, dtype=dtype, load_in_4bit=True)
    assert ours.shared_bytes and ours.quantized and ours.base.hf_quantizer is not None
    weights = [m.base_layer.weight for m in ours.model.modules() if type(getattr(m, "base_layer", None)).__name__ == "Linear4bit"]
    assert len(weights) == 2 * 7 and all(sampler.holds(weight) for weight in weights)
    assert all(isinstance(weight, bitsandbytes.nn.Params4bit) and weight.bnb_quantized for weight in weights)
    check_equal(ours, theirs, tokenizer)
    name = "model.layers.1.mlp.up_proj.weight"
    data, state = sampler.tensors[name]
    other = in_4_bits(torch.randn(state.shape).to(state.dtype))
    for wrong in (Held(data.roll(1), state), Held(data, other.state), Held(data), sampler.tensors[name.replace("up", "gate")]):
        monkeypatch.setitem(sampler.tensors, name, wrong)
        assert policies(tmp_path, sampler, tokenizer, dtype=dtype, load_in_4bit=True)[0].shared_bytes == 0


def changed(data, place, value):
    copy = data.clone()
    copy.view(-1)[place] = value
    return copy


Q, K = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"
NORM = "model.norm.weight"
WRONG = {
    "q and k are swapped": lambda t: {Q: t[K], K: t[Q]},
    "two layers are swapped": lambda t: {Q: t[Q.replace("1", "0")], Q.replace("1", "0"): t[Q]},
    "the last number is another": lambda t: {K: Held(changed(t[K].data, -1, 0.25))},
    "a row of the vocabulary is another": lambda t: {"lm_head.weight": Held(changed(t["lm_head.weight"].data, 64 * 50, 0.0))},
    "a norm is 1 + w": lambda t: {NORM: Held(t[NORM].data + 1)},
    "NaN": lambda t: {NORM: Held(changed(t[NORM].data, 0, torch.nan))},
    "a zero has a sign": lambda t: {"model.layers.0.self_attn.q_proj.bias": Held(-t["model.layers.0.self_attn.q_proj.bias"].data)},
    "heads in another order": lambda t: {Q: Held(t[Q].data.view(4, 16, 64).flip(0).reshape(64, 64))},
    "transposed": lambda t: {Q: Held(t[Q].data.T)},
    "transposed and copied": lambda t: {Q: Held(t[Q].data.T.contiguous())},
    "packed and dropped": lambda t: {Q: Held(torch.empty(0))},
    "too few rows": lambda t: {Q: Held(t[Q].data[:-1])},
    "another type": lambda t: {Q: Held(t[Q].data.double())},
    "fused": lambda t: {Q: None, K: None},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_match_is_loaded_again_whole_and_said(wrong, tokenizer, tmp_path, capsys):
    folder = save_random_model(tmp_path, "qwen2", tokenizer, num_key_value_heads=4)  # q and k have the same shape
    sampler = Sampler(folder)
    assert not sampler.tensors["model.layers.0.self_attn.q_proj.bias"].data.any()
    wrongly = WRONG[wrong](sampler.tensors)
    sampler.tensors = {name: held for name, held in {**sampler.tensors, **wrongly}.items() if held is not None}
    ours, theirs = policies(folder, sampler, tokenizer)
    check_equal(ours, theirs, tokenizer)
    assert ours.shared_bytes == 0 and not any(sampler.holds(parameter) for parameter in ours.base.parameters())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "base of its own" in line]
    assert line.startswith("note: the trainer has a base of its own, 0.00 GB beside the sampler's, as the sampler")
    assert any(name in line for name in wrongly)


def test_a_difference_in_a_later_piece_is_found(random_models, tokenizer, monkeypatch):
    monkeypatch.setattr(shared_base, "PIECE", 1000)
    sampler = Sampler(random_models["qwen3"])
    assert policies(random_models["qwen3"], sampler, tokenizer)[0].shared_bytes
    sampler.tensors[Q].data[-1, -1] += 1
    assert not policies(random_models["qwen3"], sampler, tokenizer)[0].shared_bytes


def test_files_that_change_after_the_sampler_has_read_them_stop_the_run(tokenizer, tmp_path):
    folder = save_random_model(tmp_path, "llama", tokenizer)
    sampler, file = Sampler(folder), folder / "model.safetensors"
    weights = load_file(file)
    save_file({name: weight.clone() for name, weight in weights.items()}, file, {"format": "pt"})  # written again, the same
    assert policies(folder, sampler, tokenizer)[0].shared_bytes
    for content in (weights | {Q: changed(weights[Q], 0, 1.0)}, {name: weight for name, weight in weights.items() if name != Q}):
        save_file(content, file, {"format": "pt"})
        with pytest.raises(UserError, match="its files were changed while the run started"):
            policies(folder, sampler, tokenizer)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="its files were changed while the run started"):
        policies(folder, sampler, tokenizer)


def test_shards_and_names_without_the_prefix_are_found(tokenizer, tmp_path):
    for name in ("shards", "bare"):
        (tmp_path / name).mkdir()
    folder = sharded(tmp_path / "shards")
    assert policies(folder, Sampler(folder), load_tokenizer(CommonConfig(model=str(folder)))[0])[0].shared_bytes
    folder = save_random_model(tmp_path / "bare", "qwen2", tokenizer, tie_word_embeddings=True)
    file = folder / "model.safetensors"
    save_file({name.removeprefix("model."): weight for name, weight in load_file(file).items()}, file, {"format": "pt"})
    ours, theirs = policies(folder, Sampler(folder), tokenizer)
    assert ours.shared_bytes
    check_equal(ours, theirs, tokenizer)


def test_a_tied_head_that_the_files_have_apart_is_not_tied_in_silence(tokenizer, tmp_path, capsys):
    folder = save_random_model(tmp_path, "qwen2", tokenizer, tie_word_embeddings=True)
    sampler, file = Sampler(folder), folder / "model.safetensors"
    weights = load_file(file)
    for head, shared in ((weights["model.embed_tokens.weight"].clone(), True), (weights["model.embed_tokens.weight"] + 1, False)):
        save_file({**weights, "lm_head.weight": head}, file, {"format": "pt"})
        sampler.files = stamps(CommonConfig(model=str(folder)))
        assert bool(policies(folder, sampler, tokenizer)[0].shared_bytes) == shared
    assert "the sampler's lm_head.weight is not that of" in capsys.readouterr().out


@pytest.mark.parametrize("name, sizes, target, why", [
    ("mixtral", {"num_local_experts": 2}, "q_proj", "transformers arranges its weights in another way"),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4}, "c_attn", "c_attn.weight in another form"),  # vLLM's are transposed
])
def test_families_that_vllm_arranges_in_another_way_keep_a_base_of_their_own(name, sizes, target, why, tokenizer, tmp_path, capsys):
    folder = save_random_model(tmp_path, name, tokenizer, **sizes)
    sampler = Sampler(folder)
    if name == "gpt2":
        sampler.tensors = {key: Held(data.T if "c_" in key and data.ndim == 2 else data) for key, (data, _) in sampler.tensors.items()}
    ours, theirs = policies(folder, sampler, tokenizer, lora_target_modules=[target])
    check_equal(ours, theirs, tokenizer)
    assert not ours.shared_bytes and why in capsys.readouterr().out


def test_no_room_for_a_second_base_is_said_in_one_line(random_models, tokenizer, monkeypatch):
    sampler = Sampler(random_models["llama"])
    del sampler.tensors[NORM]

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(load, "load_base", full)
    with pytest.raises(UserError, match=r"no room for a base of the trainer's own, which it needs as the sampler has no model\.norm"):
        policies(random_models["llama"], sampler, tokenizer)


def test_adapter_reference_and_critic_lie_beside_a_shared_base(random_models, tokenizer, tmp_path):
    folder = random_models["qwen3"]
    make_policy(folder, tokenizer).save(tmp_path / "adapter")
    sampler = Sampler(folder)
    before = {name: held.data.clone() for name, held in sampler.tensors.items()}
    ours, theirs = policies(folder, sampler, tokenizer, adapter=str(tmp_path / "adapter"), beta=0.1)
    check_equal(ours, theirs, tokenizer)
    (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, ours)
    values = []
    for policy in (ours, theirs):
        critic = Critic(policy, 0)
        with policy.reference():
            logps = policy.logps(micro)[0]
        with critic.active():
            critic.values(micro).sum().backward()
        values.append((logps, policy.merged_weights()))
    assert torch.equal(values[0][0], values[1][0]) and all(map(torch.equal, values[0][1].values(), values[1][1].values()))
    assert all(torch.equal(held.data, before[name]) for name, held in sampler.tensors.items())
