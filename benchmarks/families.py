"""Which families of models work, and which are refused in one line: every decoder that transformers knows, on a miniature.

Prints the table of docs/models.md. Each class is tried in a process of its own, with the checks that a run makes before it reads weights
(common/policy/families.py, common/rollout/trial.py), and with one more: the merged model is written, read and compared.

    python -m benchmarks.families            # all, about ten minutes on one core
    python -m benchmarks.families llama phi  # some
"""
from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig

from common.console import bar, say
from common.errors import UserError
from common.policy.families import ALLOWED, Misfit, adapted, short, small_policy, texts, trial
from common.policy.miniature import miniature, random_model
from common.policy.pretrained import check_decoder
from common.rollout.trial import try_sampling

SECONDS = 120  # for one family
LINEAR, FULL, SLIDING = "linear_attention", "full_attention", "sliding_attention"
# Settings that the models of a family have and the defaults of its config class lack, or that show more of it than the defaults
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3], "num_hidden_layers": 4},
    "cohere": {"logit_scale": 0.0625, "use_qk_norm": True},
    "cohere_compass_text": {"layer_types": [FULL, SLIDING] * 2, "num_hidden_layers": 4, "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in (FULL, SLIDING)}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"lm_head_multiplier": 0.02},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1},
    "granitemoe": {"logits_scaling": 6.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"], "num_hidden_layers": 4, "logits_scaling": 6.0},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hyperclovax": {"logits_scaling": 0.5},
    "lfm2": {"layer_types": ["conv", FULL, "conv", FULL], "num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": ["conv", FULL, "conv", FULL], "num_hidden_layers": 4, "num_dense_layers": 1},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "phi3": {"original_max_position_embeddings": 4096, "max_position_embeddings": 131072},
    "qwen2": {"use_sliding_window": False},
    "reformer": {"is_decoder": True},
}


@dataclass
class Row:
    """A family in the table."""

    kind: str
    works: bool
    how: str


def settings_of(config_class: type[PretrainedConfig]) -> PretrainedConfig:
    """A config as the family's models have it."""
    classes = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    name = (classes[0] if isinstance(classes, tuple) else classes).__name__
    return config_class(**SETTINGS.get(config_class.model_type, {}), architectures=[name])


def try_family(config_class: type[PretrainedConfig]) -> Row:
    """What a run with such a model would do."""
    kind = config_class.model_type
    try:
        config = settings_of(config_class)
        check_decoder("MODEL", config)
    except UserError as error:
        return Row(kind, False, "it does not write text token by token" if "token by token" in str(error) else str(error))
    except Exception as error:
        return Row(kind, False, f"not tried: its config class has no complete defaults ({short(error)})")
    try:
        small = miniature(config)
        random_model(small, "eager")
    except Exception as error:
        return Row(kind, False, f"not tried: no miniature can be made ({short(error)}); a run tries it after the weights are read")
    try:
        fit = trial(small)
        tokenizer = SimpleNamespace(eos_token_id=0, chat_template=None, decode=lambda ids, **_: "")
        why = try_sampling(small_policy(small, fit, (), tokenizer)) or try_merged(small)
    except Misfit as misfit:
        return Row(kind, False, str(misfit))
    if why:
        return Row(kind, False, f"--engine transformers cannot sample from it: {why}")
    parts = ["packed rows" if fit.packs else "padded rows"]
    parts += [f"{fit.attention} attention"] if fit.attention in ("eager", "sdpa") else []
    parts += [f"adapter on {', '.join(fit.adapted)}"] if fit.adapted else []
    return Row(kind, True, "; ".join(parts))


@torch.no_grad()
def try_merged(small: PretrainedConfig) -> str | None:
    """None if the merged model gives the same logits after it was written and read, else why not."""
    model, ids = adapted(random_model(small, "eager"), ()), torch.tensor([texts()[-1][0]])
    expected = model(input_ids=ids, use_cache=False).logits
    with tempfile.TemporaryDirectory() as folder:
        model.merge_and_unload().save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False)
    apart = (again(input_ids=ids, use_cache=False).logits - expected).abs().max().item()
    return None if apart < 10 * ALLOWED else f"a merged model that was written and read is off by {apart:.2g}"


def rows(kinds: list[str]) -> Iterator[Row]:
    """One row for each family, tried in a process of its own."""
    classes = {config_class.model_type: config_class for config_class in MODEL_FOR_CAUSAL_LM_MAPPING}
    for kind in kinds or sorted(classes):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (the process ends soon)
            try:
                row = try_family(classes[kind])
            except Exception as error:
                row = Row(kind, False, short(error))
            os.write(writer, f"{row.works:d}{row.how}".encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read().decode() or f"0not tried: it took more than {SECONDS} s, or the process died"
        os.waitpid(child, 0)
        yield Row(kind, text[0] == "1", text[1:])


def table(found: list[Row]) -> list[str]:
    """The two tables of docs/models.md. Families of which the same is true share a line."""
    lines = []
    for works, head in ((True, "| works | how |"), (False, "| refused | why |")):
        groups: dict[str, list[str]] = {}
        for row in found:
            if row.works == works:
                groups.setdefault(row.how.replace("|", "/"), []).append(row.kind)
        largest = sorted(groups.items(), key=lambda group: -len(group[1]))
        lines += [head, "|---|---|", *(f"| {', '.join(kinds)} | {how} |" for how, kinds in largest), ""]
    return lines


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    unknown = [kind for kind in sys.argv[1:] if kind not in CONFIG_MAPPING]
    if unknown:
        say(f"unknown to transformers: {', '.join(unknown)}")
        sys.exit(1)
    found = []
    for row in bar(rows(sys.argv[1:]), disable=False):
        found.append(row)
    say(*table(found))


if __name__ == "__main__":
    main()
