"""The optimiser's side of an update: which parameters, at which learning rate, from which gradients."""
from __future__ import annotations

import contextlib
import math

import torch
import torch.nn as nn
from torch import Tensor

from common import parallel
from common.config import CommonConfig
from common.policy.stream import default_stream


def adamw_8bit(paged: bool) -> type[torch.optim.Optimizer]:
    """bitsandbytes' AdamW with its state in 8 bits. If `paged`, the state moves to the host while the GPU is short of memory."""
    import bitsandbytes  # not everyone has it

    return bitsandbytes.optim.PagedAdamW8bit if paged else bitsandbytes.optim.AdamW8bit


def make_optimizer(parameters: dict[str, nn.Parameter], learning_rate: float, name: str = "adamw_torch") -> torch.optim.Optimizer:
    """AdamW over the named parameters, without weight decay: that would pull the policy to the base. `name`: as `--optim`."""
    if name == "adamw_torch":
        return torch.optim.AdamW(list(parameters.values()), lr=learning_rate, weight_decay=0.0)
    return adamw_8bit(paged=name.startswith("paged"))(list(parameters.values()), lr=learning_rate, weight_decay=0.0)


def learning_rate_at(step: int, config: CommonConfig) -> float:
    """The learning rate of a step (1..max_steps): linear warm-up, then constant, or falling to 0 after the last step."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    # the share of the fall still to come; max_steps + 1, so that the last step is not done at rate 0
    left = (config.max_steps + 1 - step) / (config.max_steps + 1 - config.warmup_steps)
    factor = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[config.lr_scheduler_type]
    return config.learning_rate * factor


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float, passes: int) -> Tensor:
    """The gradient norm before clipping to `max_norm`, after `passes` backward passes in this process. Adds up those of all processes.

    A gradient of exactly 0, or none because no completion needed a pass, leaves parameters and optimiser as they are: `take_step` then
    does nothing. Adam would move on its momentum. Raises RuntimeError if a parameter got no gradient from the passes: an adapter was
    switched before its backward.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    missing = [p for p in parameters if p.grad is None]
    if missing and (passes or len(missing) < len(parameters)):
        raise RuntimeError(f"{len(missing)} of {len(parameters)} parameters got no gradient: was the adapter switched before backward?")
    if parallel.count() > 1:  # a process may have had no share in the minibatch
        for parameter in missing:
            parameter.grad = torch.zeros_like(parameter)
        parallel.add_up([p.grad for p in parameters], "gradients")
    norm = nn.utils.clip_grad_norm_(parameters, max_norm).to(parameters[0].device)  # without gradients it comes from the CPU
    if norm == 0:
        optimizer.zero_grad(set_to_none=True)  # an optimiser passes over parameters without a gradient
    return norm


def take_step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Moves the parameters that have a gradient, and drops the gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    with contextlib.nullcontext() if isinstance(optimizer, torch.optim.AdamW) else default_stream(parameters[0].device):
        optimizer.step()
    # bitsandbytes writes past torch, which then does not know that the parameters have changed; copies of them are renewed by that
    torch.autograd.graph.increment_version(parameters)
    optimizer.zero_grad(set_to_none=True)
