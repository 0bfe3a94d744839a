"""LoRA on a bfloat16 base: two products a layer, with copies of the adapter's weights that are renewed when the weights have changed.

PEFT's own path casts the two float32 weights of a layer in every forward. It makes the second product, its scaling and the sum with the
base's output one after the other, each over the full width of the layer. Here the sum is part of the product.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class Copies:
    """bfloat16 copies of an adapter's parameters, in one tensor, so that all of them are renewed or moved at once."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.whole = torch.empty(sum(p.numel() for p in self.parameters), dtype=torch.bfloat16, device=self.parameters[0].device)
        self.versions: list[int] = []
        self.parts = self._parts(self.whole)
        self.renew()

    def renew(self) -> None:
        """Copies the parameters, if one has changed since the last call. Optimisers that torch does not see must say so (`take_step`)."""
        versions = [parameter._version for parameter in self.parameters]
        if versions != self.versions:
            with torch.no_grad():
                torch._foreach_copy_(self.parts, self.parameters)
            self.versions = versions

    def on_cpu(self) -> dict[str, Tensor]:
        """The copies by name, after one transfer from the device."""
        self.renew()
        return dict(zip(self.names, self._parts(self.whole.cpu()), strict=True))

    def _parts(self, whole: Tensor) -> list[Tensor]:
        pieces = whole.split([parameter.numel() for parameter in self.parameters])
        return [piece.view_as(parameter) for piece, parameter in zip(pieces, self.parameters, strict=True)]


def use_copies(layer: nn.Module, adapter: str, copies: dict[nn.Parameter, Tensor]) -> None:
    """Makes a layer with plain LoRA compute with these copies of its parameters whenever `adapter` is on."""
    if "forward" not in vars(layer):
        layer.copies, layer.forward = {}, lambda x, *inputs, **options: _forward(layer, x, *inputs, **options)
    weights = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    layer.copies[adapter] = *weights, *(copies[weight] for weight in weights), layer.scaling[adapter]


def _forward(layer: nn.Module, x: Tensor, *inputs: Any, **options: Any) -> Tensor:
    output = layer.base_layer(x, *inputs, **options)
    if not layer.disable_adapters:
        for adapter in layer.active_adapters:
            if adapter in layer.copies:
                output = AddLora.apply(output, x, *layer.copies[adapter])
    return output


class AddLora(torch.autograd.Function):
    """output (..., out) + scale (x A^T) B^T, in place, for x (..., in), A (r, in) and B (out, r).

    The products use the copies `low_a` and `low_b`. The parameters A and B get the gradient, in their own type.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, low_a: Tensor, low_b: Tensor, scale: float) -> Tensor:
        x = x.to(low_a.dtype)
        inner = F.linear(x, low_a)  # (..., r)
        output.view(-1, output.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), low_b.T, alpha=scale)
        ctx.save_for_backward(x, inner, low_a, low_b)
        ctx.scale, ctx.types = scale, (a.dtype, b.dtype)
        return output.detach()  # to autograd a new tensor: a view of the base's output that was written to would be copied in backward

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, low_a, low_b = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])  # (N, out)
        grad_inner = (flat @ low_b).mul_(ctx.scale)  # (N, r)
        grad_b = (flat.T @ inner.view(-1, inner.shape[-1])).to(ctx.types[1]).mul_(ctx.scale)
        grad_a = (grad_inner.T @ x.reshape(-1, x.shape[-1])).to(ctx.types[0])
        grad_x = (grad_inner @ low_a).view_as(x) if ctx.needs_input_grad[1] else None
        return grad, grad_x, grad_a, grad_b, None, None, None
