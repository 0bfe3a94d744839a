"""The model that is trained: one frozen base and LoRA adapters on it; how to run, save and merge them.

The policy is the adapter named "default", because PEFT saves an adapter of this name at the root of its folder. The reference policy is
the same base with the adapter off, or with a frozen copy of the adapter that the run started from.
"""
from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from peft import PeftModel
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from common import parallel
from common.errors import UserError
from common.policy.adapters import put_weights, read_weights
from common.policy.attention import can_pack
from common.policy.lora import Copies, use_copies
from common.policy.loss import head_logits, selected_logps
from common.policy.micro_batches import MicroBatch, microbatches
from common.policy.pretrained import stop_token_ids
from common.records import Batch

REFERENCE = "reference"  # name of the frozen copy of the adapter that a run started from


class Policy:
    """A frozen base with LoRA adapters. `model` is the PeftModel; parameters are reached by adapter name."""

    others_bytes = 0  # GPU memory that torch had given to others, such as vLLM, before this model was loaded
    lacks_reference = False  # whether the run began with --adapter and has no frozen copy of it, because it said that it needs none
    shared_bytes = 0  # of the base, if it is made of the sampler's tensors: then nobody may write to the sampler's weights either

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, temperature: float, checkpointing: bool = False) -> None:
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        self.base = model.get_base_model()
        self.backbone = backbone_of(self.base)
        text_config = self.base.config.get_text_config()
        self.softcap = logit_softcap(text_config)
        self.logit_scale = 1.0  # a factor of the logits, as in Granite and Cohere: `fit_head` measures it
        self.device = next(model.parameters()).device
        self.quantized = bool(getattr(self.base, "is_loaded_in_4bit", False))
        self.dtype = self.base.get_output_embeddings().weight.dtype
        self.vocabulary = self.base.get_output_embeddings().weight.shape[0]
        self.stop_ids = stop_token_ids(tokenizer, self.base.generation_config)
        self.packs = can_pack(text_config, self.device, self.dtype)
        model.eval()  # dropout off everywhere: the ratio of a policy to itself must be 1
        self.copies: dict[str, Copies] = {}  # bfloat16 copies of the adapters, on a bfloat16 base
        for adapter in model.peft_config:
            self._copy_adapter(adapter)
        self.backbone.register_forward_pre_hook(self._renew_copies)
        for layer in model.modules():
            if type(layer).__name__ == "Linear4bit":  # in eval mode bitsandbytes repacks the weight for a CPU kernel that has no gradient
                layer.training = True
        adapted = set(self._lora_layers())
        self.layers = [m for m in self.base.modules() if isinstance(m, GradientCheckpointingLayer) and adapted & set(m.modules())]
        self.checkpoint(len(self.layers) if checkpointing else 0)

    def checkpoint(self, layers: int) -> None:
        """From now on the first `layers` layers compute their activations again in the backward pass. The gradient stays the same.

        The first layers and not the last: in the backward pass their turn comes when the others' activations are gone.
        """
        self.checkpointed = min(layers, len(self.layers))
        if layers:
            self.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    # ---- running --------------------------------------------------------------------------------------------------

    def hidden_states(self, input_ids: Tensor, **inputs: Any) -> Any:
        """The backbone's output for `input_ids` (B, L): last_hidden_state (B, L, H), past_key_values if asked for."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            # some norms calculate in float32; autocast brings their results back to bfloat16 for the next product
            return self.backbone(input_ids=input_ids, **inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) float32 of a few hidden states (N, H), before any temperature."""
        head = self.base.get_output_embeddings()
        return head_logits(hidden, head.weight, self.softcap, head.bias, self.logit_scale)

    def logps(self, batch: MicroBatch, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probs (B, T) of a MicroBatch's completion tokens at the sampling temperature, nats; 0 where masked.

        With `entropy`, the second result is the policy's entropy (B, T), nats; else it is None. Both results have a gradient.
        """
        hidden, tokens = self.states_before(batch)
        head = self.base.get_output_embeddings()
        chosen, entropies = selected_logps(hidden, head.weight, tokens, temperature=self.temperature, softcap=self.softcap,
                                           bias=head.bias, scale=self.logit_scale, entropy=entropy)
        return batch.spread(chosen), batch.spread(entropies) if entropies is not None else None

    def states_before(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Hidden states (N, H) from which a MicroBatch's N completion tokens were chosen, row by row, and these tokens (N,)."""
        with self._recompute(torch.is_grad_enabled()):
            hidden = self.hidden_states(batch.input_ids, use_cache=False, **batch.inputs).last_hidden_state
        return hidden.flatten(0, 1)[batch.before], batch.tokens

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference policy, and no gradients are computed.

        Raises RuntimeError if weights of the base are trained: with the adapter off they are not the reference. Also if the run began
        with an adapter and has no copy of it.
        """
        if self.lacks_reference:
            raise RuntimeError("the adapter of --adapter is the reference policy, and it was not loaded: a script that uses the reference "
                               "without --beta sets needs_reference = True in its Config")
        with torch.no_grad():
            if REFERENCE not in self.model.peft_config:
                trained = [name for name, p in self.model.named_parameters() if p.requires_grad and "lora_" not in name]
                if trained:
                    raise RuntimeError(f"{trained[0]} is trained, so the model without its adapter is not the reference policy: "
                                       "a policy that trains more than adapters must override reference()")
                with self.adapters_off():
                    yield
                return
            with self.using(REFERENCE):
                yield

    def activate(self, adapter: str) -> None:
        """Switches to an adapter for good: the model runs with it, and it alone takes gradients (the reference takes none)."""
        self.model.set_adapter(adapter)
        for name in self.model.peft_config:  # set_adapter flips these too, the reference's included
            for parameter in self.parameters_of(name).values():
                parameter.requires_grad_(name == adapter != REFERENCE)

    @contextlib.contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        """Inside, the model runs with this adapter, and it alone takes gradients. Its backward() must be called inside as well."""
        self.activate(adapter)
        try:
            yield
        finally:
            self.activate("default")

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Inside, the model is the base alone."""
        # PEFT's own context manager walks through the model several times; this one only flips the switch of each layer
        layers = [m for m in self.model.modules() if hasattr(m, "_disable_adapters")]
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    @contextlib.contextmanager
    def merged(self, weights: dict[nn.Module, Tensor]) -> Iterator[None]:
        """Inside, each layer uses its tensor of `weights` (from `merged_weights`) instead of base and adapter.

        Afterwards the base tensors are put back untouched. Adding an adapter and subtracting it again would change them by rounding.
        """
        if not weights:
            yield
            return
        parents = [(parent, name, layer) for parent in self.base.modules() for name, layer in parent.named_children() if layer in weights]
        kept = {layer: layer.base_layer.weight.data for layer in weights}
        for parent, name, layer in parents:  # a layer with an adapter is replaced, as it costs a few Python calls per token
            layer.base_layer.weight.data = weights[layer]
            setattr(parent, name, layer.base_layer)
        try:
            yield
        finally:
            for parent, name, layer in parents:
                setattr(parent, name, layer)
                layer.base_layer.weight.data = kept[layer]

    @torch.no_grad()
    def merged_weights(self) -> dict[nn.Module, Tensor]:
        """New tensors W + delta of every adapted layer. Empty unless the base is unquantised float32: merging would round."""
        if self.quantized or self.dtype != torch.float32:
            return {}
        return {layer: layer.base_layer.weight + layer.get_delta_weight("default") for layer in self._lora_layers("default")}

    # ---- parameters -----------------------------------------------------------------------------------------------

    def parameters_of(self, adapter: str = "default") -> dict[str, nn.Parameter]:
        """The adapter's parameters by name. They are chosen by name because PEFT flips requires_grad when adapters are switched."""
        return {name: p for name, p in self.model.named_parameters() if f".{adapter}." in name and "lora_" in name}

    @torch.no_grad()
    def checksum(self, adapter: str = "default") -> int:
        """A number that follows from every bit of the adapter, and that is computed where the adapter is."""
        total = 0
        for parameter in self.parameters_of(adapter).values():
            bits = parameter.view(torch.int32).flatten().long()
            total = 31 * total + int((bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum())  # whole numbers wrap around
        return total

    def add_adapter(self, adapter: str, seed: int) -> None:
        """Adds a second adapter of the policy's shape, with fresh weights and switched off."""
        torch.manual_seed(seed)
        shape = copy.copy(self.model.peft_config["default"])
        shape.init_lora_weights, shape.inference_mode = True, False  # an adapter that was read from a folder has other values
        self.model.add_adapter(adapter, shape)
        self._copy_adapter(adapter)
        self.activate("default")

    def save(self, folder: Path, dtype: torch.dtype = torch.float32, adapter: str = "default") -> None:
        """Writes an adapter as a plain PEFT folder: the policy's is `folder` itself, another is `folder`/its name."""
        if dtype == torch.bfloat16 and adapter in self.copies:
            weights = self.copies[adapter].on_cpu()
        else:
            weights = {name: parameter.detach().to(dtype) for name, parameter in self.parameters_of(adapter).items()}
        self.model.save_pretrained(str(folder), state_dict=weights, selected_adapters=[adapter], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is an empty form with a local path in it

    def load(self, folder: Path, adapter: str = "default") -> None:
        """Puts the weights of a PEFT folder written by `save` into an adapter."""
        put_weights(self.model, read_weights(folder), adapter)

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _lora_layers(self, adapter: str = "default") -> list[nn.Module]:
        return [m for m in self.model.modules() if hasattr(m, "lora_A") and adapter in m.lora_A]

    def _copy_adapter(self, adapter: str) -> None:
        """On a bfloat16 base, makes the adapter's layers compute with bfloat16 copies of its parameters."""
        if self.dtype == torch.bfloat16:
            self.copies[adapter] = Copies(self.parameters_of(adapter))
            parts = dict(zip(self.copies[adapter].parameters, self.copies[adapter].parts, strict=True))
            for layer in self._lora_layers(adapter):
                use_copies(layer, adapter, parts)

    def _renew_copies(self, *_: Any) -> None:
        for copies in self.copies.values():
            copies.renew()

    @contextlib.contextmanager
    def _recompute(self, wanted: bool) -> Iterator[None]:
        """Inside, layers checkpoint their activations, if `wanted` and asked for. Only their own switch moves, so dropout stays off."""
        layers = self.layers[:self.checkpointed] if wanted else []
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False


def backbone_of(base: PreTrainedModel) -> nn.Module:
    """The part of a model before its head. Raises UserError if there is none that gives hidden states."""
    parts = (base.base_model, base.get_decoder(), getattr(base, "model", None))  # the first is the whole model if its class misnames it
    part = next((part for part in parts if part is not None and part is not base and part is not base.get_output_embeddings()), None)
    if part is None:
        raise UserError(f"{type(base).__name__} has no part before its output head that gives hidden states")
    return part


def logit_softcap(text_config: PretrainedConfig) -> float | None:
    """The soft-cap of the model's logits, if it has one: c tanh(logits / c)."""
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    return next((cap for name in names if (cap := getattr(text_config, name, None))), None)


def all_logps(policy: Policy, batch: Batch, rows: Tensor, max_tokens: int, *, shared: bool = True) -> Tensor:
    """Log-probs (B, T) of the given rows of a batch, in float32 on the CPU, without gradient; 0 elsewhere."""
    return per_token(lambda micro: policy.logps(micro)[0], batch, rows, max_tokens, policy, shared=shared)


@torch.no_grad()
def per_token(function: Callable[[MicroBatch], Tensor], batch: Batch, rows: Tensor, max_tokens: int, policy: Policy, *,
              shared: bool = True) -> Tensor:
    """(B, T) of a function that gives (b, T) for a micro-batch: the given rows, float32 on the CPU, no gradient; 0 elsewhere.

    shared: several processes share out the rows, and all get the whole result.
    """
    result = torch.zeros(len(batch), int(batch.lengths.max()))
    for micro in microbatches(batch, rows, max_tokens, policy, shared=shared):
        result[micro.rows, :micro.completion_mask.shape[1]] = function(micro).float().cpu()
    if shared:
        parallel.add_up([result], "values of tokens")
    return result
