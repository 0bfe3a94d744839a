"""Two checks of a freshly loaded policy against a slower way to the same numbers."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.console import say
from common.errors import UserError
from common.policy.loss import head_logits, selected_logps
from common.policy.packing import pack
from common.policy.policy import Policy

# for the messages about models that do not work
WORKING = "Llama, Qwen 2, 2.5, 3 and 3.5, Mistral, Mixtral, Gemma 2 and 3, Phi, Granite, OLMo, SmolLM and more work: see docs/models.md"


@torch.no_grad()
def fit_head(policy: Policy) -> None:
    """Measures the factor by which the model multiplies its logits, and sets `policy.logit_scale`.

    Raises UserError if the model does more to its logits than a head, its bias, a factor and a soft-cap: our log-probs would be wrong.
    """
    vocabulary = policy.base.config.get_text_config().vocab_size
    ids = torch.arange(3, 7, device=policy.device)[None] % vocabulary
    with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.dtype == torch.bfloat16):
        logits = policy.base(input_ids=ids, use_cache=False).logits[0].float()
    hidden = policy.hidden_states(ids, use_cache=False).last_hidden_state[0]
    if not logits.isfinite().all():
        raise UserError(not_finite(policy, ids))
    head = policy.base.get_output_embeddings()
    if logits.shape[-1] == len(head.weight):
        policy.logit_scale = _logit_scale(logits, head_logits(hidden, head.weight, None, head.bias), policy.softcap)
    expected = logits.log_softmax(-1)
    best = expected.argmax(-1)
    ours, _ = selected_logps(hidden, head.weight, best, temperature=1.0, softcap=policy.softcap, bias=head.bias, scale=policy.logit_scale)
    difference = (ours - expected.gather(-1, best[:, None])[:, 0]).abs().max().item()
    if not difference < (1e-3 if policy.dtype == torch.float32 else 0.1):
        raise UserError(f"{type(policy.base).__name__} changes its logits in a way that is not supported (log-probs off by "
                        f"{difference:.3g}); {WORKING}")


def _logit_scale(logits: Tensor, plain: Tensor, softcap: float | None) -> float:
    """The factor between the head's own results `plain` (N, V) and the model's logits (N, V), by least squares; 1.0 if it is about 1.

    From so many numbers it is known to more digits than one of them has. Logits near the soft-cap say little and are left out.
    """
    logits, plain = logits.double(), plain.double()
    if softcap:
        free = logits.abs() < 0.9 * softcap
        logits, plain = softcap * (logits[free] / softcap).atanh(), plain[free]
    scale = ((logits * plain).sum() / plain.square().sum()).item()
    return 1.0 if not math.isfinite(scale) or abs(scale - 1) < 0.01 else scale


@torch.no_grad()
def not_finite(policy: Policy, ids: Tensor) -> str:
    """Whose fault it is that the logits of `ids` (1, L) are not finite, and what to do about it."""
    base = f"--model {policy.base.config._name_or_path}"
    for name, parameter in policy.model.named_parameters():
        if parameter.is_floating_point() and not parameter.isfinite().all():
            kind = "NaN" if parameter.isnan().any() else "infinite numbers"
            whose = "the adapter" if "lora_" in name else f"{base}: its weights"
            return f"{whose} ({name}): {kind} in place of numbers; it is damaged, or its training had diverged: give another one"
    with policy.adapters_off():
        alone = policy.base(input_ids=ids, use_cache=False).logits.isfinite().all()
    if alone:
        largest = max(parameter.abs().max().item() for parameter in policy.parameters_of().values())
        return (f"the adapter makes the model's logits infinite or NaN: its weights or its scale are too large (the largest weight is "
                f"{largest:.3g}); its training had diverged: give an earlier checkpoint")
    return (f"{base}: its logits are infinite or NaN in {policy.dtype}, although its weights are finite: give another --dtype; if that "
            "does not help, the weights are damaged")


def keeps_packed_rows_apart(policy: Policy) -> bool:
    """Whether packed rows give the same states and the same gradient as each row alone. Says so if they do not.

    Raises UserError if the card has no room even for these few rows.
    """
    try:
        why = packs_alike(policy)
    except torch.OutOfMemoryError as error:
        raise UserError("out of memory after the model was loaded: nothing is left for an update. Give vLLM less "
                        "(--vllm_gpu_memory_utilization), or take --load_in_4bit or a smaller model") from error
    if why is not None:
        say(f"note: rows are padded and prompts not shared in the update: {why}")
    return why is None


def packs_alike(policy: Policy) -> str | None:
    """None if packed rows give the same states and the same gradient as each row alone, else why not.

    They do not in models whose layers carry a state from token to token, or that do not hand on where rows begin.
    """
    vocabulary = policy.base.config.get_text_config().vocab_size
    first, second, a, b, c = (((np.arange(n) * n + n) % vocabulary).tolist() for n in (6, 9, 5, 8, 7))
    rows = [(tuple(first), a), (tuple(first), b), (tuple(second), c)]  # two of the rows share a prompt
    ids, before, inputs = pack([prompt for prompt, _ in rows], [completion for _, completion in rows], policy.device)
    try:
        packed = _states_and_gradient(policy, torch.from_numpy(ids), np.concatenate(before), **inputs)
        alone = [_states_and_gradient(policy, torch.tensor([[*prompt, *completion]]), len(prompt) - 1 + np.arange(len(completion)))
                 for prompt, completion in rows]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a kernel or a model that does not know these inputs raises whatever it likes
        return f"{type(error).__name__}: {error}"
    expected = torch.cat([states for states, _ in alone]), sum(gradient for _, gradient in alone)
    allowed = (1e-4, 1e-3) if policy.dtype == torch.float32 else (0.03, 0.1)  # relative, of the states and of the gradient
    apart = [((ours - theirs).norm() / theirs.norm()).item() for ours, theirs in zip(packed, expected, strict=True)]
    if all(found < most for found, most in zip(apart, allowed, strict=True)):
        return None
    return (f"packed rows differ from rows alone by {apart[0]:.2g} in their states and {apart[1]:.2g} in their gradient (allowed: "
            f"{allowed[0]:g} and {allowed[1]:g})")


def _states_and_gradient(policy: Policy, ids: Tensor, places: np.ndarray, **inputs: Any) -> tuple[Tensor, Tensor]:
    """The states (N, H) at `places` of a sequence (1, L), and the gradient of a weighted sum of them.

    The gradient is that of the adapter's first and last layers. The first layer's comes through all layers, and both take little memory.
    """
    parameters = list(policy.parameters_of().values())
    some = -(-len(parameters) // policy.base.config.get_text_config().num_hidden_layers)
    parameters = parameters[:some] + parameters[some:][-some:]
    states = policy.hidden_states(ids.to(policy.device), use_cache=False, **inputs).last_hidden_state[0][places].float()
    loss = (states * torch.linspace(-1, 1, states.shape[1], device=policy.device)).sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    whole = [torch.zeros_like(p) if gradient is None else gradient for p, gradient in zip(parameters, gradients, strict=True)]
    return states.detach(), torch.cat([gradient.flatten() for gradient in whole])
