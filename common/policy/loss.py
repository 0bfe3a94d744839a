"""Pure functions between log-probs and a scalar loss. Masked positions, NaN included, never reach a result."""
from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
# A chunk of logits may have this many elements: 64 MB in float32, whatever the vocabulary
CHUNK_ELEMENTS = 2**24
MAX_LOG_RATIO = 20.0  # exp() of more than this is an overflow on its way, and any clip has long since acted


def loss_divisor(mask: Tensor, mode: Aggregation, max_completion_length: int | None = None) -> float:
    """What the loss of a whole optimiser step is divided by; pass it to `aggregate` for each of its micro-batches.

    mask: (B, T) bool of all completions of the step, those that get no pass included. "token-mean": their tokens;
    "seq-mean-*": the completions with at least one token; "constant" (Dr. GRPO, arXiv 2503.20783): completions x
    `max_completion_length`. Never 0: an empty mask gives 1.
    """
    if mode == "token-mean":
        divisor = mask.sum().item()
    elif mode in ("seq-mean-token-mean", "seq-mean-token-sum"):
        divisor = mask.any(dim=1).sum().item()
    elif mode == "constant":
        if max_completion_length is None:
            raise ValueError('mode "constant" needs max_completion_length')
        divisor = mask.any(dim=1).sum().item() * max_completion_length
    else:
        raise ValueError(f"unknown aggregation {mode!r}")
    return float(divisor) or 1.0


def aggregate(token_loss: Tensor, mask: Tensor, mode: Aggregation, divisor: float) -> Tensor:
    """The scalar loss of a micro-batch; those of all micro-batches of an optimiser step add up to the step's loss.

    token_loss, mask: (B, T). With l = [[-1, -0.5], [0.2, 0.4, 0.6, 0.8]] and 8 tokens allowed: token-mean 0.083333,
    seq-mean-token-mean -0.125, seq-mean-token-sum 0.25, constant 0.03125.
    """
    kept = torch.where(mask, token_loss, 0.0)
    if mode == "seq-mean-token-mean":
        kept = kept / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return kept.sum() / divisor


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: Literal["k1", "k2", "k3"] = "k3") -> Tensor:
    """Per-token estimate (B, T) of KL(policy || reference) from sampled tokens, nats, with gradient.

    With d = logps - ref_logps: k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1 >= 0 (Schulman, "Approximating KL Divergence").
    As a loss on on-policy samples, k2 has the gradient of this KL, k3 that of the forward KL, k1 none in expectation.
    logps [-1, -0.2], ref [-1.3, -0.1] -> k3 [0.040818, 0.005171].
    """
    d = (logps - ref_logps).clamp(min=-MAX_LOG_RATIO)
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.exp(-d) + d - 1
    raise ValueError(f"unknown KL estimator {kind!r}")


def importance_weights(old_logps: Tensor, sampling_logps: Tensor, mask: Tensor, *, cap: float, floor: float = 0.0,
                       mode: Literal["token", "sequence"] = "token", bound: Literal["truncate", "mask"] = "truncate") -> Tensor:
    """exp(old_logps - sampling_logps), bounded, (B, T), no gradient: the trainer's policy against the sampler's.

    Multiplies the policy loss, not the KL term. mask (B, T) bool: the tokens in the loss. mode "sequence": the ratio of the whole
    completion, the product over its tokens in the loss, on each token. bound "truncate": a ratio above `cap` counts as cap, one below
    `floor` as floor. "mask": a ratio outside floor to cap has weight 0. Names for them: truncate TIS, mask MIS, mask with a floor IcePop
    (arXiv 2510.18855). Ratios [2.459603, 0.9] at cap 2 -> [2, 0.9]; with "mask" [0, 0.9]. Cap 0: no weights, so that all are 1.
    """
    if cap == 0:
        return torch.ones_like(old_logps)
    difference = (old_logps - sampling_logps).detach()
    if mode == "sequence":
        difference = torch.where(mask, difference, 0.0).sum(dim=1, keepdim=True).clamp(min=-MAX_LOG_RATIO).expand_as(difference)
    ratio = torch.exp(difference.clamp(max=MAX_LOG_RATIO))
    return torch.where((ratio >= floor) & (ratio <= cap), ratio, 0.0) if bound == "mask" else ratio.clamp(floor, cap)


def truncated_importance_weights(old_logps: Tensor, sampling_logps: Tensor, cap: float) -> Tensor:
    """`importance_weights` of each token, truncated at `cap` (TIS), (B, T), no gradient: the default of the scripts, for one's own."""
    return importance_weights(old_logps, sampling_logps, torch.ones_like(old_logps, dtype=torch.bool), cap=cap)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x (B, T) to mean 0 and variance 1 over the masked tokens (variance with ddof 1, plus 1e-8); 0 where the mask is False.

    As in PPO (arXiv 1707.06347)'s code and in VinePPO's (2410.01679). All values equal, or only one: all 0.
    [0.5, 0.4, 0.2, -0.3] -> [0.842927, 0.561951, 0, -1.404879].
    """
    values = x[mask]
    if len(values) < 2 or values.min() == values.max():  # else rounding of the mean would be blown up
        return torch.zeros_like(x)
    return torch.zeros_like(x).masked_scatter(mask, (values - values.mean()) / (values.var() + 1e-8).sqrt())


def selected_logps(hidden: Tensor, weight: Tensor, tokens: Tensor, *, temperature: float, softcap: float | None = None,
                   bias: Tensor | None = None, scale: float = 1.0, entropy: bool = False,
                   chunk_elements: int = CHUNK_ELEMENTS) -> tuple[Tensor, Tensor | None]:
    """log softmax(logits / temperature) of one token per row: (N,) float32, nats; and, if asked for, the entropy (N,), nats.

    hidden (N, H), weight (V, H) and bias (V,) of the output head, tokens (N,) int64. logits = scale (hidden @ weight.T + bias),
    soft-capped if the model does (Gemma 2). Logits exist only for `chunk_elements` / V rows at a time, and again in the backward
    pass: no (N, V) tensor is ever made. The head is frozen and gets no gradient.

    Both results have a gradient. That of the entropy is computed only if a loss uses the entropy; it then needs one more chunk.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("the output head must be frozen: no gradient is computed for it")
    rows = max(1, chunk_elements // weight.shape[0])
    logps, entropies = _SelectedLogps.apply(hidden, weight, tokens, temperature, (softcap, bias, scale), entropy, rows)
    return logps, entropies if entropy else None


class _SelectedLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, head: tuple[Any, ...],
                entropy: bool, rows: int) -> tuple[Tensor, Tensor]:
        logps = hidden.new_empty(len(hidden), dtype=torch.float32)
        normalisers, entropies = torch.empty_like(logps), torch.zeros_like(logps)
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            logits = head_logits(hidden[part], weight, *head).div_(temperature)  # (rows, V)
            normalisers[part] = logits.logsumexp(-1)
            logps[part] = logits.gather(-1, tokens[part, None])[:, 0] - normalisers[part]
            if entropy:  # log Z - E[logit]
                mean = torch.softmax(logits, -1).mul_(logits.clamp_(min=torch.finfo(torch.float32).min)).sum(-1)
                entropies[part] = normalisers[part] - mean
        ctx.save_for_backward(hidden, weight, tokens, normalisers, entropies)
        ctx.options = temperature, head, rows
        ctx.set_materialize_grads(False)  # the gradient of a result that no loss uses is None instead of zeros
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor | None, grad_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens, normalisers, entropies = ctx.saved_tensors
        temperature, (softcap, bias, scale), rows = ctx.options
        if grad_logps is None:
            grad_logps = torch.zeros_like(normalisers)
        grad_hidden = torch.empty_like(hidden)
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            logits = head_logits(hidden[part], weight, softcap, bias, scale).div_(temperature)
            slope = 1 - (logits * (temperature / softcap)).square_() if softcap else None  # of the soft-cap
            log_probs = logits.sub_(normalisers[part, None])
            if grad_entropies is None:
                grads = log_probs.exp_().neg_()  # in place: one (rows, V) tensor at a time
                grads[torch.arange(len(grads), device=grads.device), tokens[part]] += 1  # d logp / d logits = onehot - p
                grads.mul_((grad_logps[part] / temperature)[:, None])
            else:  # and d entropy / d logits = -p (log p + entropy)
                grads = log_probs.exp()
                log_probs.clamp_(min=torch.finfo(torch.float32).min).add_(entropies[part, None])
                grads.mul_(log_probs.mul_(grad_entropies[part, None]).add_(grad_logps[part, None])).neg_()
                grads[torch.arange(len(grads), device=grads.device), tokens[part]] += grad_logps[part]
                grads.div_(temperature)
            if slope is not None:
                grads.mul_(slope)
            if scale != 1.0:
                grads.mul_(scale)
            grad_hidden[part] = grads.to(weight.dtype) @ weight
        return grad_hidden, None, None, None, None, None, None


def head_logits(hidden: Tensor, weight: Tensor, softcap: float | None, bias: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Logits (N, V) float32 of hidden states (N, H) under the output head (V, H) and its bias (V,), scaled, then soft-capped."""
    logits = (hidden.to(weight.dtype) @ weight.T).float()
    if bias is not None:
        logits += bias
    if scale != 1.0:
        logits *= scale
    return torch.tanh_(logits.div_(softcap)).mul_(softcap) if softcap else logits
