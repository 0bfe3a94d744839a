"""A miniature of a model: the same class with the same kinds of layers, and so small that a CPU runs it in milliseconds.

It shows how a family computes before the weights of a real model are read. Windows, factors, biases, states and experts are those of the
model. Widths, heads, experts and layers are few, and windows are so short that a few tokens reach beyond them.
"""
from __future__ import annotations

import copy
import re
from typing import Any

import torch
import torch.nn as nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

HEADS, HEAD = 4, 16
WIDTH = HEADS * HEAD
VOCABULARY, WINDOW, POSITIONS, LAYERS, SOFTCAP = 96, 8, 512, 4, 2.0
# The largest value of a number in a config, by the number's name. The first pattern that matches the whole name counts.
SIZES = {
    r".*(token_id|token_index)|patch_size|temporal_patch_size|num_channels|in_channels|seed": 2**31,  # stay as they are
    r"vocab_size(_per_layer_input|_base)?|ngram_vocab_size_base|encoder_hash_byte_group_vocab": VOCABULARY,
    r"(original_)?max_position_embeddings|max_seq_len|n_positions|n_ctx|context_length|model_max_length|max_target_positions": POSITIONS,
    r"sliding_window(_size)?|attention_chunk_size|attention_window_size|index_topk|window_size|local_attention|keep_window_size"
    r"|floor_scale|chunk_size|mamba_chunk_size|rel_extent|index_block_size": WINDOW,
    r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts|index_topk_blocks": 2,
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts": 4,
    r"n_group|topk_group|num_expert_group|mamba_n_?groups|n_groups|o_groups|zero_expert_num|first_k_dense_replace|num_dense_layers"
    r"|num_nextn_predict_layers|n_shared_experts|(moe_)?num_shared_experts|moe_layer_start_index|num_kv_shared_layers|.*_offset": 1,
    r".*_(period|interval|every_n_layers|sparse_step|pattern|layer_step)": 2,
    r"(num_)?(hidden_|encoder_|decoder_)?layers|n_layers?|depth|num_blocks|num_layers_per_stack": LAYERS,
    r"linear_num_key_heads|index_n_heads|num_kv_heads|(swa_)?num_key_value_heads|num_query_groups": 2,
    r"(num_)?(encoder_|decoder_|swa_)?(attention_)?heads|n_heads?|linear_num_(value_)?heads|mamba_n(um)?_heads|n_mamba_heads": HEADS,
    r"(swa_|global_|v_|linear_|linear_key_|linear_value_|qk_rope_|qk_nope_|index_|attention_)?head_dim|dim_head|d_head|kv_channels"
    r"|rotary_dim|attention_head_size": HEAD,
    r"qk_head_dim": 2 * HEAD,
    r"(q_lora|kv_lora|o_lora|adapter|laurel|gated_norm)_rank|hc_lowrank|d_rel|router_hidden_size|hidden_size_per_layer_input"
    r"|mamba_d_state|(ssm_)?state_size|time_step_rank|mamba_dt_rank|ple_embed_dim": HEAD,
    r"mamba_(d_head|head_?dim)": 2 * WIDTH // HEADS,
    r"mamba_d_ssm|.*(intermediate|ffn|feed_forward).*(size|dim)|intermediate_size_mlp|dim_ff|dff|d_inner|n_inner": 2 * WIDTH,
    r"(input_|output_|backbone_|attention_)?(hidden_size|embedding_size)|d_model|n_embd|emb_dim|embedding_dim|word_embed_proj_dim"
    r"|lru_width": WIDTH,
}
UNKNOWN = ("_name_or_path", "output_attentions")  # in the dictionary of an inner config, and not known to its class
COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks")  # names of the number of layers


def miniature(model_config: PretrainedConfig) -> PretrainedConfig:
    """The config of a small model of the same family. Raises whatever a config class raises that has no such sizes."""
    small = _small(model_config.to_dict())
    small.pop("quantization_config", None)
    return type(model_config).from_dict(small)


@torch.no_grad()
def random_model(small: PretrainedConfig, attention: str) -> PreTrainedModel:
    """A frozen model of the config of a miniature, always with the same random weights, float32 on the CPU.

    They are so large that every part of a layer matters, biases, sinks and gates included.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = copy.deepcopy(small)  # a model writes its attention into its config, and reads it there
        model = AutoModelForCausalLM.from_config(own, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False)
        for parameter in dict.fromkeys(model.parameters()):
            noise = torch.randn(parameter.shape)
            if parameter.ndim > 1:
                parameter.copy_(noise * WIDTH**-0.5)
            else:  # the weight of a norm stays near 1
                parameter.add_(noise * 0.1)
    return model.requires_grad_(False).eval()


def expert_blocks(model: nn.Module) -> list[str]:
    """Names of the modules that choose among experts for each token: those that hold the experts, and so the router too."""
    return sorted({name.rpartition(".")[0] for name, module in model.named_modules() if _holds_experts(name, module)})


def _holds_experts(name: str, module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList):
        return name.rpartition(".")[2] == "experts"
    return "Expert" in type(module).__name__ and any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


def _small(settings: dict[str, Any]) -> dict[str, Any]:
    layers = next((settings[name] for name in COUNTS if isinstance(settings.get(name), int)), 0)
    kept = _kept_layers(settings, layers)
    small = {key: _value(key, value, layers, kept, settings) for key, value in settings.items() if key not in UNKNOWN}
    return small | _products(settings, small)


def _products(settings: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """The sizes that must be products of other sizes."""
    found = {}
    if type(wide := settings.get("attention_hidden_size")) is int:  # Zamba's attention reads two states side by side
        found["attention_hidden_size"] = wide // settings["hidden_size"] * WIDTH
        found["attention_head_dim"] = found["attention_hidden_size"] // HEADS
    inner = small.get("mamba_d_ssm") or small.get("mamba_expand", small.get("expand", 2)) * small.get("hidden_size", WIDTH)
    pairs = [("mamba_n_heads", "mamba_d_head"), ("n_mamba_heads", "mamba_headdim"), ("mamba_num_heads", "mamba_head_dim")]
    pairs += [("num_heads", "head_dim")] if "state_size" in small else []  # Mamba 2
    return found | {size: inner // small[heads] for heads, size in pairs if type(small.get(heads)) is type(small.get(size)) is int}


def _value(key: str, value: Any, layers: int, kept: list[int], settings: dict[str, Any]) -> Any:
    if key.endswith(("id2label", "label2id")):
        return value
    if _of_single_layers(value):
        return {str(place): value[name] for place, i in enumerate(kept) for name in value if int(name) == i}
    if isinstance(value, dict):
        return _small(value)
    if key in ("short_factor", "long_factor"):  # one for each pair of numbers in a head
        return value[:int(HEAD * settings.get("partial_rotary_factor", 1.0)) // 2]
    if isinstance(value, list) and layers and len(value) == layers:
        return [_value(key, value[i], 0, kept, settings) if type(value[i]) is int else value[i] for i in kept]
    if key.endswith(("token_id", "token_index")):
        return [min(token, VOCABULARY - 1) for token in value] if isinstance(value, list) else \
            min(value, VOCABULARY - 1) if type(value) is int else value
    if isinstance(value, float) and key.endswith(("softcapping", "soft_cap")):
        return min(value, SOFTCAP)
    if type(value) is not int:
        return value
    if "key_value_heads" in key or key in ("num_kv_heads", "num_query_groups"):  # as many as queries, where they are as many
        heads = next((settings[name] for name in ("num_attention_heads", "n_head") if name in settings), None)
        return min(value, HEADS if value == heads else 2)
    largest = next((most for pattern, most in SIZES.items() if re.fullmatch(pattern, key)), value)
    return len(kept) if key in COUNTS and kept else min(value, largest)


def _of_single_layers(value: Any) -> bool:
    """Whether it is a dictionary of settings by the number of a layer."""
    return isinstance(value, dict) and len(value) > 0 and all(str(key).isdigit() for key in value)


def _kept_layers(settings: dict[str, Any], layers: int) -> list[int]:
    """The places of some layers: two of each kind if there are so many, and then the first ones."""
    lists = [value for value in settings.values() if isinstance(value, list) and layers and len(value) == layers]
    single = [set(map(str, value)) for value in settings.values() if _of_single_layers(value)]
    kinds: dict[str, list[int]] = {}
    for i in range(layers):
        kinds.setdefault(str([value[i] for value in lists] + [str(i) in names or f"{i:02}" in names for names in single]), []).append(i)
    chosen = [places[turn] for turn in (0, 1) for places in kinds.values() if len(places) > turn][:2 * LAYERS]
    return sorted([*chosen, *(i for i in range(layers) if i not in chosen)][:max(LAYERS, len(chosen))])
