"""The model that is trained: one frozen base, LoRA adapters on it, and how to run, save and merge them.

The policy is the adapter named "default" (so that PEFT saves it at the root of its folder); the reference policy is the
same base with the adapter off, or with the frozen adapter that the run started from.
"""
from __future__ import annotations

import argparse
import contextlib
import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn as nn
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from common.attention import can_pack, register
from common.config import CommonConfig, UserError
from common.loss import head_logits, selected_logps
from common.packing import pack
from common.pretrained import load_tokenizer, model_folder, stop_token_ids

if TYPE_CHECKING:  # batching needs the engine's completions, the engine needs the policy
    from common.batching import MicroBatch

REFERENCE = "reference"  # the frozen copy of the adapter that a run starts from
NOT_LANGUAGE = r".*(vision|multi_modal|audio).*"  # parts of Gemma 3 and the like that text never reaches: no adapter there


class Policy:
    """A frozen base with LoRA adapters. `model` is the PeftModel; parameters are reached by adapter name."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, temperature: float, checkpointing: bool = False) -> None:
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        self.base = model.get_base_model()
        text_config = self.base.config.get_text_config()
        self.softcap: float | None = getattr(text_config, "final_logit_softcapping", None)
        self.device = next(model.parameters()).device
        self.quantized = bool(getattr(self.base, "is_loaded_in_4bit", False))
        self.dtype = self.base.get_output_embeddings().weight.dtype
        self.vocabulary = self.base.get_output_embeddings().weight.shape[0]
        self.stop_ids = stop_token_ids(tokenizer, self.base.generation_config)
        self.checkpointing = checkpointing
        self.packs = can_pack(text_config, self.device, self.dtype)
        model.eval()  # dropout off everywhere: the ratio of a policy to itself must be 1
        for layer in self._lora_layers():
            # PEFT would take inputs to the adapter's float32, and autocast back, to a copy for each layer that backward keeps
            layer.cast_input_dtype_enabled = self.dtype != torch.bfloat16
        for layer in model.modules():
            if type(layer).__name__ == "Linear4bit":  # in eval mode bitsandbytes repacks it for a CPU kernel without a gradient
                layer.training = True
        if checkpointing:
            self.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._check_head()
        self.packs = self.packs and self.keeps_packed_rows_apart()

    # ---- running --------------------------------------------------------------------------------------------------

    def hidden_states(self, input_ids: Tensor, **inputs: Any) -> Any:
        """The backbone's output for `input_ids` (B, L): last_hidden_state (B, L, H), past_key_values if asked for."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            # PEFT holds LoRA weights in float32: without autocast a bfloat16 base would compute them in float32
            return self.base.base_model(input_ids=input_ids, **inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) float32 of a few hidden states (N, H), before any temperature."""
        return head_logits(hidden, self.base.get_output_embeddings().weight, self.softcap)

    def logps(self, batch: MicroBatch, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probs (B, T) of a MicroBatch's completion tokens at the sampling temperature, nats; 0 where masked.

        With `entropy`, also the policy's entropy (B, T), nats, without gradient.
        """
        hidden, tokens = self.states_before(batch)
        chosen, entropies = selected_logps(hidden, self.base.get_output_embeddings().weight, tokens,
                                           temperature=self.temperature, softcap=self.softcap, entropy=entropy)
        return batch.spread(chosen), batch.spread(entropies) if entropies is not None else None

    def states_before(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Hidden states (N, H) from which a MicroBatch's N completion tokens were chosen, row by row, and these tokens (N,)."""
        with self._recompute(torch.is_grad_enabled()):
            hidden = self.hidden_states(batch.input_ids, use_cache=False, **batch.inputs).last_hidden_state
        return hidden.flatten(0, 1)[batch.before], batch.tokens

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the reference policy; no gradients."""
        with torch.no_grad():
            if REFERENCE not in self.model.peft_config:
                with self.adapters_off():
                    yield
                return
            with self.using(REFERENCE):
                yield

    @contextlib.contextmanager
    def using(self, adapter: str) -> Iterator[None]:
        """Inside, the model runs with this adapter, and it alone takes gradients: its backward() belongs inside as well."""
        self._activate(adapter)
        try:
            yield
        finally:
            self._activate("default")

    @contextlib.contextmanager
    def adapters_off(self) -> Iterator[None]:
        """Inside, the model is the base alone."""
        # PEFT's own context manager walks the model several times; this only flips the layers' switch
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

        The base tensors are put back untouched: adding an adapter and subtracting it again would wear them away.
        """
        if not weights:
            yield
            return
        parents = [(parent, name, layer) for parent in self.base.modules() for name, layer in parent.named_children() if layer in weights]
        kept = {layer: layer.base_layer.weight.data for layer in weights}
        for parent, name, layer in parents:  # the adapter's layers stand aside: each costs a few Python calls a token
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
        """W + delta of every adapted layer, as new tensors; empty where merging would round (not unquantised float32)."""
        if self.quantized or self.dtype != torch.float32:
            return {}
        return {layer: layer.base_layer.weight + layer.get_delta_weight("default") for layer in self._lora_layers("default")}

    # ---- parameters -----------------------------------------------------------------------------------------------

    def parameters_of(self, adapter: str = "default") -> dict[str, nn.Parameter]:
        """The adapter's parameters by name. By name, not by requires_grad, which PEFT flips when adapters are switched."""
        return {name: p for name, p in self.model.named_parameters() if f".{adapter}." in name and "lora_" in name}

    def add_adapter(self, adapter: str, seed: int) -> None:
        """A second adapter of the policy's shape, freshly started and switched off."""
        torch.manual_seed(seed)
        shape = copy.copy(self.model.peft_config["default"])
        shape.init_lora_weights, shape.inference_mode = True, False  # of an adapter that was read from a folder they differ
        self.model.add_adapter(adapter, shape)
        self._activate("default")

    def save(self, folder: Path, dtype: torch.dtype = torch.float32, adapter: str = "default") -> None:
        """Writes an adapter as a plain PEFT folder: the policy's is `folder` itself, another is `folder`/its name."""
        weights = {name: parameter.detach().to(dtype) for name, parameter in self.parameters_of(adapter).items()}
        self.model.save_pretrained(str(folder), state_dict=weights, selected_adapters=[adapter], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is an empty form with a path of this machine in it

    def load(self, folder: Path, adapter: str = "default") -> None:
        """Puts the weights of a PEFT folder written by `save` into an adapter."""
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        with torch.no_grad():
            for name, parameter in self.parameters_of(adapter).items():
                parameter.copy_(saved[name.replace(f".{adapter}.", ".")])

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _lora_layers(self, adapter: str = "default") -> list[nn.Module]:
        return [m for m in self.model.modules() if hasattr(m, "lora_A") and adapter in m.lora_A]

    def _activate(self, adapter: str) -> None:
        self.model.set_adapter(adapter)
        for name in self.model.peft_config:  # set_adapter flips these too, the reference's included
            for parameter in self.parameters_of(name).values():
                parameter.requires_grad_(name == adapter != REFERENCE)

    @contextlib.contextmanager
    def _recompute(self, wanted: bool) -> Iterator[None]:
        """Inside, layers checkpoint their activations. Only their own switch is set to training, so dropout stays off."""
        layers = [m for m in self.base.modules() if getattr(m, "gradient_checkpointing", False)] if self.checkpointing and wanted else []
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def keeps_packed_rows_apart(self) -> bool:
        """Whether packed rows give the states and the gradient that they give alone.

        Not where layers carry a state from token to token, or do not hand on where rows begin.
        """
        vocabulary = self.base.config.get_text_config().vocab_size
        *prompts, a, b, c = (tuple(((np.arange(n) * n + n) % vocabulary).tolist()) for n in (6, 9, 5, 8, 7))
        rows = [(prompts[0], a), (prompts[0], b), (prompts[1], c)]  # two of them share a prompt
        parameters = list(self.parameters_of().values())

        def run(ids: Tensor, places: list[np.ndarray], **inputs: Any) -> list[Tensor]:
            states = self.hidden_states(ids.to(self.device), use_cache=False, **inputs).last_hidden_state[0][np.concatenate(places)].float()
            loss = (states * torch.linspace(-1, 1, states.shape[1], device=self.device)).sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            whole = [torch.zeros_like(p) if gradient is None else gradient for p, gradient in zip(parameters, gradients, strict=True)]
            return [states.detach(), torch.cat([gradient.flatten() for gradient in whole])]

        ids, before, inputs = pack([prompt for prompt, _ in rows], [list(own) for _, own in rows], self.device)
        try:
            packed = run(torch.from_numpy(ids), before, **inputs)
        except Exception as error:  # a kernel or a model that does not know these inputs, in whatever way it says so
            print(f"note: rows are padded and prompts not shared in the update: {type(error).__name__}: {error}", flush=True)
            return False
        alone = [run(torch.tensor([prompt + own]), [len(prompt) - 1 + np.arange(len(own))]) for prompt, own in rows]
        expected = [torch.cat([states for states, _ in alone]), sum(gradient for _, gradient in alone)]
        allowed = (1e-4, 1e-3) if self.dtype == torch.float32 else (0.03, 0.1)
        return all((ours - theirs).norm() < most * theirs.norm() for ours, theirs, most in zip(packed, expected, allowed, strict=True))

    @torch.no_grad()
    def _check_head(self) -> None:
        """Stops for architectures that do more to the logits than a head and a soft-cap: our log-probs would be wrong."""
        ids = torch.tensor([[min(3, self.base.config.get_text_config().vocab_size - 1)] * 4], device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            theirs = self.base(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        hidden = self.hidden_states(ids, use_cache=False).last_hidden_state[0]
        best = theirs.argmax(-1)
        ours, _ = selected_logps(hidden, self.base.get_output_embeddings().weight, best, temperature=1.0, softcap=self.softcap)
        difference = (ours - theirs.gather(-1, best[:, None])[:, 0]).abs().max().item()
        if not difference < (1e-3 if self.dtype == torch.float32 else 0.1):
            raise UserError(f"{type(self.base).__name__} changes its logits in a way that is not supported (log-probs off by "
                            f"{difference:.3g}); Llama, Qwen 2/2.5/3, Mistral and Gemma 2/3 work")


def with_adapter(base: PreTrainedModel, config: CommonConfig) -> PeftModel:
    """The base with a fresh LoRA adapter of the run's shape, named "default"."""
    sees = any(re.fullmatch(NOT_LANGUAGE, name) for name, _ in base.named_modules())
    return get_peft_model(base, LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=0.0, task_type="CAUSAL_LM",
                                           target_modules=config.lora_target_modules or "all-linear",
                                           exclude_modules=NOT_LANGUAGE if sees else None))


def load_policy(config: CommonConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig) -> Policy:
    """The policy of a run: base in `--dtype` or 4 bit, and a fresh adapter or the one in `--adapter`.

    Raises UserError for weights that cannot be read.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, config.dtype if config.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=dtype) if config.load_in_4bit else None
    # sdpa leaves out the soft-cap on attention scores (Gemma 2) without a word
    attention = "eager" if getattr(model_config.get_text_config(), "attn_logit_softcapping", None) else register()
    try:
        base = AutoModelForCausalLM.from_pretrained(model_folder(config), dtype=dtype, quantization_config=quantization,
                                                    device_map={"": device}, attn_implementation=attention)
    except OSError as error:
        raise UserError(f"--model {config.model}: its weights could not be read: {str(error).strip().splitlines()[0]}") from error
    base.requires_grad_(False)
    torch.manual_seed(config.seed)  # the adapter's first values
    if config.adapter:
        model = PeftModel.from_pretrained(base, config.adapter, is_trainable=True)
        config.lora_r, config.lora_alpha = model.peft_config["default"].r, model.peft_config["default"].lora_alpha
        print(f"adapter: {config.adapter}, r {config.lora_r}, alpha {config.lora_alpha}")
        if config.beta > 0:
            model.load_adapter(config.adapter, REFERENCE)
    else:
        model = with_adapter(base, config)
    policy = Policy(model, tokenizer, config.temperature, config.gradient_checkpointing)
    policy._activate("default")
    return policy


def adamw_8bit(paged: bool) -> type[torch.optim.Optimizer]:
    """bitsandbytes' AdamW with its state in 8 bits; paged, the state moves to the host while the GPU is short of memory."""
    import bitsandbytes  # only where it is wanted: not everyone has it

    return bitsandbytes.optim.PagedAdamW8bit if paged else bitsandbytes.optim.AdamW8bit


def merge(model: str, adapter: str, out: str) -> None:
    """Writes base + adapter as one model for serving, merged in float32 and stored in the base's own precision."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    stored = base.dtype
    merged = PeftModel.from_pretrained(base.float(), adapter).merge_and_unload().to(stored)
    merged.save_pretrained(out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)
    print(f"wrote {out} ({stored})")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m common.policy", allow_abbrev=False)
    command = parser.add_subparsers(required=True).add_parser("merge", help="write base + adapter as one model")
    command.add_argument("--model", required=True, help="hub id or folder of the base; tiny: the embedded model")
    command.add_argument("--adapter", required=True, help="PEFT folder")
    command.add_argument("--out", required=True, help="folder to write")
    arguments = parser.parse_args()
    config = CommonConfig(model=arguments.model, adapter=arguments.adapter)
    try:
        if Path(arguments.out).exists() and any(Path(arguments.out).iterdir()):
            raise UserError(f"--out {arguments.out} is not empty; name a new folder")
        load_tokenizer(config)  # checks model and adapter
        merge(model_folder(config), arguments.adapter, arguments.out)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
