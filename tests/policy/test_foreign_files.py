"""Adapters and models that other people made: each is refused in one line that names the file, or does no harm. No code of them runs."""

import re

import hostile.adapters
import hostile.models
import pytest
from hostile import makers

from common.config import CommonConfig
from common.errors import UserError
from common.policy import model_files
from common.policy.load import load_policy
from common.policy.pretrained import load_tokenizer

HARMLESS = None  # loads, and what is hostile in it is not used
ADAPTERS = {
    "huge_rank": r"adapter_config.json: r 2000000000 is not possible",
    "negative_rank": r"r -1 is not possible",
    "rank_in_quotes": r"r '8' is not possible",
    "rank_nought": r"r 0 is not possible",
    "alpha_not_finite": r"lora_alpha nan is not possible",
    "rank_pattern_huge": r"r 1099511627776 is not possible",
    "deep": r"adapter_config.json cannot be read as JSON",
    "settings_a_list": r"adapter_config.json holds a list",
    "settings_not_text": r"adapter_config.json cannot be read as JSON",
    "settings_a_pipe": r"adapter_config.json is no file but a folder, a pipe or a device",
    "settings_a_device": r"adapter_config.json is no file but a folder, a pipe or a device",
    "weights_a_device": r"adapter_model.safetensors is no file but a folder, a pipe or a device",
    "weights_a_loop": r"adapter_model.safetensors cannot be read",
    "slow_pattern": HARMLESS,
    "slow_exclude_pattern": HARMLESS,
    "slow_alpha_pattern": r"alpha_pattern has regular expressions, which are not run",
    "header_length": r"adapter_model.safetensors is damaged .*header too large",
    "header_deep": r"adapter_model.safetensors is damaged",
    "header_not_json": r"adapter_model.safetensors is damaged",
    "header_overlapping": r"adapter_model.safetensors is damaged",
    "header_out_of_range": r"adapter_model.safetensors is damaged",
    "header_shape": r"adapter_model.safetensors is damaged",
    "weights_cut_off": r"adapter_model.safetensors is damaged",
    "weights_empty": r"adapter_model.safetensors is damaged",
    "no_tensors": r"adapter_model.safetensors holds no tensors",
    "integers": r"adapter_model.safetensors: B of model.layers.1.mlp.up_proj is torch.int64",
    "nan": r"adapter_model.safetensors: B of model.layers.1.mlp.up_proj holds NaN",
    "infinite": r"adapter_model.safetensors: B of model.layers.1.mlp.up_proj holds infinite numbers",
    "wild": r"the adapter makes the model's logits infinite or NaN: .* \(the largest weight is 1e\+38\)",
    "one_side": r"model.layers.1.mlp.up_proj has B and not both A and B",
    "pickle": r"a pickle can run code and is not read. Convert it once: python -c ",
    "pickle_named_safetensors": r"adapter_model.safetensors is damaged",
    "pickle_beside": HARMLESS,
    "megatron": r"LORA with megatron_config",
    "auto_mapping": HARMLESS,
    "runtime_code": r"LORA with auto_map, custom_module",
    "changed_base": r"init_lora_weights 'pissa', which changes the base",
    "base_model_in_folder": HARMLESS,
}
MODELS = {
    "tokenizer_of_another_class": r"tokenizer_config.json: tokenizer_class 'AutoModel' is not a tokenizer of transformers",
    "tokenizer_of_another_name": r"tokenizer_config.json: fast_tokenizer_files names other files than tokenizer.json",
    "tokenizer_many_tokens": r"tokenizer_config.json: added_tokens_decoder has 199,862 entries",
    "sentencepiece_a_pipe": r"tokenizer.model is no file but a folder, a pipe or a device",
    "template_without_end": r"tools.jinja has 100000 MB, and at most 64 MB are read",
    "weights_of_another_name": r"config.json: transformers_weights names another file than model.safetensors",
    "code_unknown_type": r"config.json: the model type 'theirs' is unknown .* code of its own \(auto_map\), which is never run",
    "code_known_type": HARMLESS,
    "code_of_tokenizer": r"tokenizer_class 'Theirs' is not a tokenizer of transformers, and code of its own is never run",
    "code_of_generation": HARMLESS,
    "code_of_kernel": r"attn_implementation 'somebody/kernel' names code on the hub, which is never run",
    "code_of_another_repository": r"which is never run",
    "adapter_inside": r"the folder holds an adapter",
    "pickle": r"its weights are Python pickles, which can run code and are not read",
    "pickle_beside": HARMLESS,
    "pickle_shards": r"model.safetensors.index.json: it names 'pytorch_model-00001-of-00001.bin'",
    "pickle_of_tokenizer": r"could not be loaded",
    "gguf": r"a GGUF file is for llama.cpp",
    "no_weights": r"the folder has no model.safetensors",
    "shard_missing": r"model-00002-of-00002.safetensors is missing, one of 2 files",
    "shard_broken_link": r"model-00002-of-00002.safetensors is missing, one of 2 files",
    "shard_elsewhere": r"model.safetensors.index.json: it names '.*dev/zero'",
    "index_not_a_map": r"model.safetensors.index.json: its weight_map is not a list",
    "header_length": r"model.safetensors is damaged .*header too large",
    "weights_cut_off": r"model.safetensors is damaged",
    "weights_a_device": r"model.safetensors is no file but a folder, a pipe or a device",
    "weights_nan": r"its weights \(.*up_proj.*\): NaN",
    "weights_lacking": r"its weights lack lm_head.weight",
    "weights_of_another_shape": r"model.safetensors: lm_head.weight has the shape \[7, 64\]",
    "weights_integers": r"model.safetensors: lm_head.weight holds no floating-point numbers",
    "config_empty": r"could not be loaded",
    "config_deep": r"config.json cannot be read as JSON",
    "config_a_pipe": r"config.json is no file but a folder, a pipe or a device",
    "config_a_device": r"config.json is no file but a folder, a pipe or a device",
    "config_a_loop": r"config.json cannot be read",
    "generation_config_a_pipe": r"generation_config.json is no file but a folder, a pipe or a device",
    "tokenizer_a_pipe": r"tokenizer.json is no file but a folder, a pipe or a device",
    "width_huge": r"config.json: hidden_size is 1e\+09, more than any model has",
    "layers_huge": r"config.json: num_hidden_layers is 1e\+07",
    "layers_more_than_memory": r"config.json: num_hidden_layers is 1e\+12",
    "labels_huge": r"config.json: num_labels is 1e\+10",
    "vocabulary_negative": r"no model can be made from its config.json",
    "heads_nought": r"could not be loaded",
    "size_in_quotes": r"could not be loaded: .*'hidden_size'",
    "dtype_call": r"config.json: dtype 'os.system' is not a type of numbers",
    "dtype_function": r"config.json: dtype 'load' is not a type of numbers",
    "architecture_of_nothing": r"is a llama model \(NothingForNoOne\), which does not write text token by token",
    "type_a_path": r"config.json: the model type '../../theirs' is unknown",
    "quantization_without_package": r"the quantization 'gptq', which cannot be trained here",
    "quantization_unknown": r"the quantization 'theirs', which cannot be trained here",
    "generation_config_types": r"the end token 'two' of its generation config is not one of the model's",
    "end_token_out_of_range": r"the end token '1000000000000' of its generation config",
    "tokenizer_huge": r"tokenizer.json has 100 MB, and at most 64 MB are read",
    "tokenizer_pattern_invalid": r"tokenizer.json cannot be used: Exception: Oniguruma error",
    "tokenizer_pattern_slow": r"tokenizer.json cannot be used: .*retry-limit-in-match",
    "tokenizer_normalizer_slow": r"tokenizer.json cannot be used: .*retry-limit-in-match",
    "tokenizer_normalizer_long": r"tokenizer.json cannot be used: a short text takes more than",
    "tokenizer_deep": r"tokenizer.json cannot be used",
    "tokenizer_settings_types": r"could not be loaded",
    "tokenizer_beyond_embedding": r"tokens without a row in the embedding, which has \d+: <think>",
    "no_tokenizer": r"the folder has no tokenizer",
    "no_end_token": r"has no end-of-sequence token",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return hostile.models.base(tmp_path_factory.mktemp("base"))


def outcome(folder, **flags) -> str | None:
    """None if the policy loads, else the error. The folder's own code was not run."""
    config = CommonConfig(lora_r=4, lora_alpha=8, **flags)
    try:
        load_policy(config, *load_tokenizer(config))
    except UserError as error:
        return str(error)
    finally:
        assert not (folder / "RAN").exists(), "code of the folder was run"
    return None


def check(error: str | None, expected: str | None) -> None:
    if expected is HARMLESS:
        assert error is None
        return
    assert error is not None
    assert "\n" not in error
    assert re.search(expected, error), error


@pytest.mark.parametrize("case", makers(hostile.adapters))
def test_adapters(case, base, tmp_path):
    folder = makers(hostile.adapters)[case](tmp_path)
    check(outcome(folder, model=str(base), adapter=str(folder)), ADAPTERS[case])


@pytest.mark.parametrize("case", makers(hostile.models))
def test_models(case, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "TRIAL", model_files.TRIAL.replace("4 * 2**30", "2**30"))  # filling 4 GiB takes long
    folder = makers(hostile.models)[case](tmp_path)
    check(outcome(folder, model=str(folder)), MODELS[case])
