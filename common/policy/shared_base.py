"""The trainer's base made of the tensors that the sampler holds already, so that a card holds the base once.

Nobody writes to the base: policy, reference and critic are adapters beside it. What a sampler holds is not believed: each tensor is
compared with the checkpoint's files first. A base is shared whole, or not at all.
"""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn as nn
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from common.config import SamplingConfig
from common.errors import UserError
from common.policy.fingerprint import weight_files
from common.policy.model_files import words
from common.policy.pretrained import load_generation_config, model_folder
from common.policy.stream import default_stream

PIECE = 2**25  # numbers of a checkpoint that are compared at a time: 64 MB in 16 bits
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # types without NaN, by bytes of a number


class Held(NamedTuple):
    """One tensor of a base that somebody holds."""

    data: Tensor  # as in the checkpoint; vocabularies may have further rows. In 4 bits: bitsandbytes' packed numbers
    state: Any = None  # in 4 bits, bitsandbytes' QuantState of them


class HeldBase(NamedTuple):
    """A base that somebody holds."""

    tensors: dict[str, Held]  # by their names in transformers' model
    files: list[tuple[Any, ...]]  # `stamps` of the checkpoint from before it was read


class Holder(Protocol):
    """A sampler, as far as `load_policy` needs it."""

    def held_base(self) -> HeldBase | None:
        """The base that the sampler holds in this process, or None."""


class NotShared(Exception):
    """Why a base cannot be shared; words that follow "as"."""


def stamps(config: SamplingConfig) -> list[tuple[Any, ...]]:
    """What changes when somebody writes to the weights of `--model`: names, sizes and times of its files."""
    found = [(path.name, path.stat()) for path in weight_files(model_folder(config))]
    return [(name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for name, status in found]


def shared_base(held: HeldBase, config: SamplingConfig, model_config: PretrainedConfig, *, dtype: torch.dtype,
                quantization_config: BitsAndBytesConfig | None, device_map: dict[str, torch.device],
                attn_implementation: str) -> PreTrainedModel:
    """The base of `--model` made of the tensors of `held`: no memory is allocated for its weights. Options as for from_pretrained.

    Raises NotShared if they are not exactly those of the checkpoint (from_pretrained converts to `dtype` before it quantises to 4 bits, and
    vLLM does not: after a file of another type a few numbers differ between the two), and UserError if the checkpoint's files were
    changed after `held` was read from them: nobody knows then what a second reading would give.
    """
    device = device_map[""]
    with init_empty_weights(include_buffers=False):
        base = AutoModelForCausalLM.from_config(copy.deepcopy(model_config), dtype=dtype, attn_implementation=attn_implementation,
                                                trust_remote_code=False)
    try:
        if why := own_base(base, dtype):
            raise NotShared(why)
        if quantization_config is not None:
            quantizer = base.hf_quantizer = Bnb4BitHfQuantizer(quantization_config)
            quantizer.preprocess_model(model=base, dtype=dtype, device_map=device_map)
            quantizer.postprocess_model(base)
        found = {name: match(held, name, parameter, dtype, device) for name, parameter in base.named_parameters()
                 if name not in base.all_tied_weights_keys}
        with default_stream(device):
            compare(found, base, weight_files(model_folder(config)))
    except (NotShared, OSError, SafetensorError) as error:
        if held.files and stamps(config) != held.files:  # none: the sampler was the first to download them
            raise UserError(f"--model {config.model}: its files were changed while the run started: what the sampler has read is not what "
                            "they hold now. Start again when nobody writes to them") from error
        raise NotShared(words(error)) from error
    for name, (data, state) in found.items():
        module, leaf = base.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if state is None:
            setattr(module, leaf, nn.Parameter(data, requires_grad=False))
        else:
            module.weight = type(module.weight)(data, requires_grad=False, quant_state=state, blocksize=state.blocksize,
                                                quant_type=state.quant_type, bnb_quantized=True, module=module)
            module.quant_state = state
    base.tie_weights()
    for module in base.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.to(device)
    base.generation_config = load_generation_config(config, model_config)
    return base.eval()


def weight_bytes(base: PreTrainedModel) -> int:
    """The memory that a base's weights take, bytes."""
    states = [getattr(parameter, "quant_state", None) for parameter in base.parameters()]
    return sum(parameter.nbytes for parameter in base.parameters()) + sum(state.absmax.nbytes for state in states if state is not None)


def own_base(base: PreTrainedModel, dtype: torch.dtype) -> str | None:
    """Why a trainer in `dtype` cannot use vLLM's weights of this model, which needs no weights for the question; None if it may."""
    if getattr(base.config, "quantization_config", None):
        return "its weights are stored in 4 bits"
    if getattr(base.config, "vision_config", None):
        return "vLLM holds its language part alone"
    if any(isinstance(change, WeightConverter) for change in get_model_conversion_mapping(base, add_legacy=False)):
        return "transformers arranges its weights in another way than the checkpoint"
    if dtype != torch.float32 and getattr(base, "_keep_in_fp32_modules_strict", None):
        return "some of its weights stay in float32"
    if set(base.state_dict()) - {name for name, _ in base.named_parameters(remove_duplicate=False)}:
        return "its checkpoint holds more than weights"
    return None


def match(held: HeldBase, name: str, parameter: nn.Parameter, dtype: torch.dtype, device: torch.device) -> Held:
    """The tensor that is to be the parameter `name`. Raises NotShared if there is none of its shape, in `dtype` or in the same 4 bits."""
    if name not in held.tensors:
        raise NotShared(f"the sampler has no {name}")
    data, state = held.tensors[name]
    if hasattr(parameter, "quant_state") != (state is not None):
        raise NotShared(f"sampler and trainer do not both hold {name} in 4 bits")
    if state is not None:
        same = (tuple(state.shape), state.quant_type, state.blocksize, data.numel(), data.dtype) == (
            tuple(parameter.shape), parameter.quant_type, parameter.blocksize, (parameter.numel() + 1) // 2, parameter.quant_storage)
    else:
        data = data[:len(parameter)] if parameter.ndim else data  # vocabularies may be padded
        same = (data.shape, data.dtype) == (parameter.shape, dtype)
    if not same or data.device.type != device.type or not data.is_contiguous():
        raise NotShared(f"the sampler holds {name} in another form")
    return Held(data, state)


@torch.no_grad()
def compare(found: dict[str, Held], base: PreTrainedModel, files: list[Path]) -> None:
    """Compares every tensor with the checkpoint, to the bit; those in 4 bits with what bitsandbytes makes of the checkpoint once more.

    A file is read piece by piece. Raises NotShared for the first tensor that differs or is in no file.
    """
    wanted = found | {head: found[source] for head, source in base.all_tied_weights_keys.items()}  # may be in the files, too
    seen, prefix = set(), f"{base.base_model_prefix}."
    for path in files:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                name = next((name for name in (key, prefix + key, key.removeprefix(prefix)) if name in wanted), None)
                if name is not None and not same_numbers(wanted[name], file, key):
                    raise NotShared(f"the sampler's {name} is not that of {path.name}: it was changed or put in another order")
                seen.add(name)
    if lacking := found.keys() - seen:
        raise NotShared(f"{min(lacking)} is in no file of the checkpoint")


def same_numbers(held: Held, file: Any, key: str) -> bool:
    """Whether a tensor is the one of the name `key` in an open file, in the type in which it is held."""
    data, state = held
    stored = file.get_slice(key)
    shape = tuple(stored.get_shape())
    if shape != tuple(data.shape if state is None else state.shape):
        return False
    if state is not None:
        return same_in_4_bits(data, state, file.get_tensor(key).to(data.device))
    if data.numel() <= PIECE:
        return same_bits(data, file.get_tensor(key))
    rows = max(1, PIECE // (data.numel() // len(data)))
    return all(same_bits(data[row:row + rows], stored[row:row + rows]) for row in range(0, len(data), rows))


def same_bits(data: Tensor, stored: Tensor) -> bool:
    """Whether `stored`, brought to device and type of `data`, has the very bits of `data`: NaN included, and -0 is not 0."""
    stored = stored.to(data.device).to(data.dtype)
    return torch.equal(data.reshape(-1).view(BITS[data.element_size()]), stored.reshape(-1).view(BITS[data.element_size()]))


def same_in_4_bits(data: Tensor, state: Any, stored: Tensor) -> bool:
    """Whether `stored` (out, in), brought to NF4 with double quantisation, is the packed `data` with this state."""
    from bitsandbytes.functional import dequantize_blockwise, quantize_4bit

    packed, wanted = quantize_4bit(stored, blocksize=state.blocksize, quant_type=state.quant_type, compress_statistics=True)
    (ours, code), (theirs, codes) = ((dequantize_blockwise(s.absmax, s.state2) + s.offset if s.nested else s.absmax, s.code)
                                     for s in (wanted, state))  # vLLM keeps the factors of the blocks in float32
    return torch.equal(packed.reshape(-1), data.reshape(-1)) and torch.equal(ours, theirs) and torch.equal(code, codes)
