"""The engine interface: what the training scripts ask of a sampler."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from common.policy.policy import Policy
from common.policy.shared_base import HeldBase
from common.records import Completion, Request

Ended = Callable[[int], object]


class Engine(Protocol):
    """Samples completions of token prompts.

    With the transformers engine a sample depends on its request's seed and on nothing else: not on the other requests, their order
    or their batches (token for token on CPU; on a GPU the seeds are the same, but kernels round differently from batch to batch).
    vLLM gets the same seeds and promises less.
    """

    chunk: int  # completions that keep the engine busy
    probe_prompts: Sequence[tuple[int, ...]]  # prompts on which sampler and trainer are compared

    def held_base(self) -> HeldBase | None:
        """The base that the engine holds in this process, for `load_policy`. None: the trainer's model is the only one."""

    def connect(self, policy: Policy) -> None:
        """Names the policy to sample from. Scripts call `choose_engine.connect`, which also checks the result."""

    def sync(self) -> None:
        """Samples from the policy's current adapter from now on."""

    def sleep(self) -> None:
        """Gives up memory that only sampling needs. The next `generate` takes it back."""

    def begin(self, requests: list[Request]) -> None:
        """Samples in the background, from the adapter of now: `generate` of the same requests gives what came. Only servers have this."""

    def generate(self, requests: list[Request], ended: Ended | None = None) -> list[list[Completion]]:
        """completions[i] are the `n` samples of requests[i]. ended: is told, during the call, how many more completions have ended."""
