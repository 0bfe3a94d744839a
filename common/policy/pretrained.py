"""A model before its weights are read: its tokenizer, config and end tokens, and whether an adapter fits it."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from common.config import SamplingConfig
from common.console import say
from common.errors import UserError
from common.flags import CHAT_TEXT
from common.policy.adapters import check_adapter, linear_layers
from common.policy.chat import end_of_turn
from common.policy.model_files import check_texts, check_tokenizer_files, check_weights, words
from common.policy.smollm2 import smollm2
from common.tiny.model import SHIPPED, tiny_model
from common.tiny.task import Arithmetic

BY_LENGTH = ("longrope", "dynamic")  # kinds of rotary positions that transformers computes anew for a longer batch


def model_folder(config: SamplingConfig) -> str:
    """The argument for from_pretrained: `--model`, or the folder of a registered model, which is made now if it is not there."""
    if config.model == "smollm2":
        return str(smollm2())
    if config.model != "tiny":
        return config.model
    disable_progress_bar()  # the embedded model loads in milliseconds
    return str(tiny_model(Arithmetic.parse(config.dataset.partition(":")[2])))


def public_name(config: SamplingConfig) -> str:
    """The name of the base for people elsewhere: the hub id, or the last name of a folder of this machine."""
    folder = model_folder(config)
    return Path(folder).resolve().name if Path(folder).exists() else folder


def load_tokenizer(config: SamplingConfig) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """The tokenizer and the model's config. Raises UserError for all that can be known to be wrong before the weights are read.

    That is a model that is not there, is damaged or needs code of its own, and a tokenizer or an `--adapter` that does not fit it.
    """
    model_config = load_model_config(config)
    if config.model != "tiny":
        check_tokenizer_files(model_folder(config))
    tokenizer = _loaded(config, AutoTokenizer)
    skeleton = check_against_shapes(config, model_config)
    if config.model != "tiny":
        check_weights(model_folder(config), skeleton)
    generation_config = load_generation_config(config, model_config)
    check_tokens(config, tokenizer, generation_config, skeleton.get_input_embeddings().weight.shape[0])
    note_end_of_turn(config, tokenizer, generation_config)
    whole = getattr(model_config.get_text_config(), "max_position_embeddings", None) or 0
    if context_length(model_config) < whole:
        say(f"note: {context_length(model_config)} of the model's {whole} tokens of context are used: in longer texts its log-probs would "
            "depend on the other texts of a batch")
    return tokenizer, model_config


def load_model_config(config: SamplingConfig) -> PretrainedConfig:
    """The model's config alone. Raises UserError if the model is not there, or is no language model."""
    if config.model != "tiny":
        check_texts(model_folder(config))
    model_config = _loaded(config, AutoConfig)
    check_decoder(config.model, model_config)
    return model_config


def check_decoder(model: str, model_config: PretrainedConfig) -> None:
    """Raises UserError if the model does not write text token by token, by its config."""
    names = getattr(model_config, "architectures", None) or ["CausalLM"]
    whole = any(part in name for name in names for part in ("CausalLM", "LMHead", "ConditionalGeneration"))
    # models that read a text in both directions have a field that says whether they are used as a decoder; GPT-NeoX has it too, unused
    one_way = getattr(model_config, "is_decoder", True) or any("ForCausalLM" in name for name in names)
    one_way = one_way and not getattr(model_config, "is_encoder_decoder", False)
    if not (whole and one_way and type(model_config) in MODEL_FOR_CAUSAL_LM_MAPPING):
        raise UserError(f"--model {model} is a {model_config.model_type} model ({', '.join(map(str, names))}), which does not write text "
                        "token by token; give a decoder model with its output head, such as Llama, Qwen, Mistral, Gemma")


def _loaded(config: SamplingConfig, kind: Any) -> Any:
    folder = model_folder(config)
    try:
        return kind.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # libraries that read damaged files raise whatever they like
        cause = words(error)
        if "custom code" in cause or "trust_remote_code" in cause:
            cause = "its files need code of their own (auto_map), which is never run"
        raise UserError(f"--model {config.model} could not be loaded: {cause}; give a hub id, or a folder with config.json "
                        "and a tokenizer") from error


def context_length(model_config: PretrainedConfig) -> int:
    """The context length of the model in tokens, for prompt and completion together.

    Some models turn the positions of all rows by the longest row of a batch, once it is longer than the texts of their pre-training. The
    log-probs of a text would depend on its batch, by up to 5 nats in a random model. For them it is the length up to which they do not.
    """
    longest = getattr(model_config.get_text_config(), "max_position_embeddings", None) or 4096
    rope = getattr(model_config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    steady = [kind.get("original_max_position_embeddings") or longest for kind in kinds if kind.get("rope_type") in BY_LENGTH]
    return min(longest, *steady) if steady else longest


def load_generation_config(config: SamplingConfig, model_config: PretrainedConfig) -> GenerationConfig:
    """The model's generation config. Only its end tokens are used."""
    try:
        return GenerationConfig.from_pretrained(model_folder(config), trust_remote_code=False)
    except OSError:  # the model has none, and from_pretrained of the model would do the same
        return GenerationConfig.from_model_config(model_config)
    except Exception as error:
        raise UserError(f"--model {config.model}: its generation_config.json cannot be used: {words(error)}; correct it, or delete "
                        "it") from error


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> set[int]:
    """Ids of all tokens that end a completion: the end tokens of tokenizer, generation config and chat template.

    The base models of Qwen2.5 have a chat template that ends an answer with <|im_end|>, and another end token.
    """
    ids = end_token_ids(tokenizer, generation_config) | {end_of_turn(tokenizer)[0]} - {None}
    if not ids:
        raise UserError("the tokenizer has no end-of-sequence token, so completions could not end; set eos_token in its config")
    return ids


def end_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> set[int]:
    """Ids of the end tokens of tokenizer and generation config."""
    listed = generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}


def note_end_of_turn(config: SamplingConfig, tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig) -> None:
    """Says so if the prompts have a chat template that ends answers with something else than the model's end tokens.

    Many base models have such a template and have never seen what ends an answer in it.
    """
    token, end = end_of_turn(tokenizer)
    own = end_token_ids(tokenizer, generation_config)
    if end and token not in own and (config.prompt_template in ("auto", "chat") or config.prompt_template.startswith(CHAT_TEXT)):
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(own))) or "none"
        passed = token is None and config.stop and end not in config.stop  # --stop replaces a text that is no token
        say(f"note: the chat template of {config.model} ends answers with {end}, which is no end token of the model ({names}). "
            + (f"Completions do not end there, as --stop does not name it; add {end} to --stop" if passed else
               "Completions end at either. A base model may not know it and write on: look at completions/clipped_ratio, and if it is "
               "high, give --prompt_template plain. A server of the trained model must be told to stop there"))


def check_tokens(config: SamplingConfig, tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig, rows: int) -> None:
    """Raises UserError if a token that a text can have, or an end token, has no row in the embedding, which has `rows` rows."""
    listed = generation_config.eos_token_id
    ends = listed if isinstance(listed, list) else [] if listed is None else [listed]
    wrong = [end for end in ends if type(end) is not int or not 0 <= end < rows]
    if wrong:
        raise UserError(f"--model {config.model}: the end token {str(wrong[0])[:80]!r} of its generation config is not one of the model's "
                        f"{rows} tokens; correct eos_token_id in generation_config.json")
    # Gemma 3 without vision has the token of an image: no row, and no use in a text
    without = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= rows)
    beyond = [f"{token} ({index})" for index, token in without
              if not (re.search("image|audio|video|vision", token) and tokenizer.added_tokens_decoder[index].special)]
    if beyond:
        raise UserError(f"--model {config.model}: its tokenizer has tokens without a row in the embedding, which has {rows}: "
                        f"{', '.join(beyond[:3])[:200]}; give the model its own tokenizer, or resize its embedding and save it again")
    stop_token_ids(tokenizer, generation_config)


def check_against_shapes(config: SamplingConfig, model_config: PretrainedConfig) -> PreTrainedModel:
    """A skeleton of the model, which has shapes and no weights.

    Raises UserError if `--adapter` or `--lora_target_modules` do not fit the model.
    """
    try:
        skeleton = skeleton_of(model_config)
    except Exception as error:  # a config may hold numbers with which a model cannot be made in a hundred ways
        raise UserError(f"--model {config.model}: no model can be made from its config.json: {words(error)}; download it again") from error
    layers = linear_layers(skeleton)
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    wanted = getattr(config, "lora_target_modules", None) or ()  # eval.py has no such flag
    unknown = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if unknown:
        raise UserError(f"--lora_target_modules {unknown[0]}: {config.model} has no such linear layer; it has {', '.join(kinds)}")
    if config.adapter:
        settings = check_adapter(first_adapter(config), layers, config.model)
        base, own = Path(str(settings.get("base_model_name_or_path"))).name, Path(model_folder(config))
        if config.model == "tiny" and base.startswith("tiny-") and base != own.name:
            made = [folder / base for folder in (own.parent, SHIPPED) if (folder / base).is_dir()]
            raise UserError(f"--adapter {config.adapter} was made for the embedded model of another --dataset, whose settings shape its "
                            f"warm start: give that --dataset{f', or --model {made[0]}' if made else ''}")
        if settings["lora_dropout"]:
            say(f"note: the adapter {config.adapter} was trained with dropout {settings['lora_dropout']}; here dropout is off")
    return skeleton


def skeleton_of(model_config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights. Raises whatever a model class raises."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)


def first_adapter(config: SamplingConfig) -> str | None:
    """The folder of the adapter that the policy begins with: `--adapter`.

    A resumed run has its own adapter in the checkpoint. It needs the first one as the reference policy alone.
    """
    resumed = getattr(config, "resume_from_checkpoint", None)  # eval.py has neither this flag nor a reference
    return resumed if config.adapter and resumed not in (None, "auto") and not config.needs_reference else config.adapter
