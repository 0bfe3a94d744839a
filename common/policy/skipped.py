"""A guard for phase 4: completions that get no forward pass must have no gradient."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.policy.micro_batches import MicroBatch, microbatches
from common.policy.policy import Policy
from common.records import Batch


def check_skipped(loss_of: Callable[[MicroBatch, float], tuple[Tensor, Any]], policy: Policy, batch: Batch, mask: Tensor,
                  needs_pass: Tensor, step: int) -> None:
    """Raises UserError if a completion that `needs_pass` leaves out would have had a gradient. One such completion is tried each step.

    loss_of: gives the loss of a micro-batch, and numbers to log. mask (B, T) bool: tokens in the loss. needs_pass (B,) bool. Without this
    check, a term of the loss that does not depend on the advantage would be lost in silence for completions with advantage 0.
    """
    skipped = (mask.any(dim=1) & ~needs_pass).nonzero()[:, 0]
    if not len(skipped):
        return
    (micro,) = microbatches(batch, skipped[step % len(skipped)][None], 1, policy, mask, shared=False)
    loss, _ = loss_of(micro, 1.0)
    parameters = list(policy.parameters_of().values())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if loss.requires_grad else ()
    # NaN and infinities are left to `Run.stop_if_not_finite`
    if any(gradient is not None and gradient.nan_to_num(0.0, 0.0, 0.0).any() for gradient in gradients):
        raise UserError(f"step {step}: the loss has a gradient for a completion that needs_pass leaves out of the update. Widen needs_pass "
                        "in phase 4, for example to mask.any(dim=1), which trains on all completions")
