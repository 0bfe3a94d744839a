"""Whether the transformers engine can sample from a family of models: tried on a miniature, before weights are read."""
from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from common.config import SamplingConfig
from common.errors import UserError
from common.policy.families import Fit, miniature_of, one_thread, short, small_policy
from common.policy.miniature import VOCABULARY
from common.policy.policy import Policy
from common.policy.self_checks import WORKING
from common.records import Request
from common.rollout.parity import ALLOWED, difference, prompts_and_completions
from common.rollout.transformers_engine import TransformersEngine

TOKENS = 14  # of each completion: more than the windows of a miniature


def check_sampling(config: SamplingConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, fit: Fit) -> None:
    """Raises UserError if sampling with a cache gives other log-probs than the model without one. No weights are read."""
    small = miniature_of(config, model_config)
    if small is None:
        return
    targets = tuple(getattr(config, "lora_target_modules", None) or ())  # eval.py has no such flag
    with one_thread():
        why = try_sampling(small_policy(small, fit, targets, tokenizer))
    if why is not None:
        raise UserError(f"--model {config.model} is a {model_config.model_type} model, which cannot be sampled from with --engine "
                        f"transformers: {why}. {WORKING}")


@torch.no_grad()
def try_sampling(policy: Policy) -> str | None:
    """None if the engine's log-probs are those of the model without a cache, else why not.

    Prompts have different lengths, and some are beginnings of others. Rows end at different times.
    """
    line = [3 + (7 * i * i + i) % (VOCABULARY - 3) for i in range(12)]
    prompts = [line[:length] for length in (2, 5, 12)] + [line[4:7], line[3:11]]
    requests = [Request(tuple(prompt), 17 * i, 2, TOKENS - i, 0.7 if i else 0.0) for i, prompt in enumerate(prompts)]
    engine = TransformersEngine()
    try:
        engine.connect(policy)
        groups = engine.generate(requests)
    except Exception as error:  # a model whose cache is of another kind raises whatever it likes
        return f"its cache is not that of other models ({short(error)})"
    greedy, drawn = prompts_and_completions(requests[:1], groups[:1]), prompts_and_completions(requests[1:], groups[1:])
    apart = difference(policy, drawn).max().item()
    policy.temperature = 1.0  # that of the log-probs of greedy tokens
    apart = max(apart, difference(policy, greedy).max().item())
    return None if apart <= ALLOWED["float32"] else f"with its cache the log-probs are off by {apart:.2g} nats"
