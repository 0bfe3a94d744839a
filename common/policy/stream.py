"""CUDA's default stream, for bitsandbytes."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def default_stream(device: torch.device) -> Iterator[None]:
    """Inside, torch works on CUDA's default stream. Without a GPU it does nothing.

    bitsandbytes quantises, and updates with 8-bit state, on the default stream, whatever stream torch is on. vLLM in the same process may
    leave torch on a stream of its own (in 4 bits it does), and the two do not wait for each other.
    """
    if device.type != "cuda":
        yield
        return
    current, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    default.wait_stream(current)
    with torch.cuda.stream(default):
        yield
    current.wait_stream(default)
