"""The engine of a run of several processes: each samples a share of the requests with an engine of its own, and all get all completions."""
from __future__ import annotations

import atexit
from collections.abc import Sequence
from typing import Any

from common import parallel
from common.policy.policy import Policy
from common.records import Completion, Request
from common.rollout.engine import Ended, Engine


class SharedEngine:
    """Around the engine of this process. What is sampled does not depend on who samples it, as requests have their own seeds."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        atexit.register(lambda: engine)  # lives as long as the process: a vLLM that is collected takes the connections of all with it

    def __getattr__(self, name: str) -> Any:
        """What the engine of this process has besides."""
        return getattr(self.engine, name)

    @property
    def chunk(self) -> int:
        """Completions that keep the engines of all processes busy."""
        return self.engine.chunk * parallel.count()

    @property
    def probe_prompts(self) -> Sequence[tuple[int, ...]]:
        """Prompts on which sampler and trainer are compared, in each process for itself."""
        return self.engine.probe_prompts

    def connect(self, policy: Policy) -> None:
        """Samples from this policy."""
        self.engine.connect(policy)
        self.policy = policy

    def sync(self) -> None:
        """Samples from the current adapter from now on. Raises UserError as `compare`."""
        self.compare()
        self.engine.sync()

    def compare(self) -> None:
        """Raises UserError if the adapters of the processes are not equal to the last bit."""
        parallel.agree({f"adapter {name} (its checksum)": self.policy.checksum(name) for name in self.policy.model.peft_config})

    def sleep(self) -> None:
        """Frees the memory that the trainer may need."""
        self.engine.sleep()

    def generate(self, requests: list[Request], ended: Ended | None = None) -> list[list[Completion]]:
        """completions[i] are the `n` samples of requests[i]. ended: is told of the completions of this process."""
        # prompts that begin alike stay together, so that one engine reads the beginning once
        order = sorted(range(len(requests)), key=lambda i: (requests[i].prompt_ids, requests[i].seed))
        mine = order[parallel.part([requests[i].n * requests[i].max_tokens for i in order])]
        found = parallel.gather(self.engine.generate([requests[i] for i in mine], ended) if mine else [], "completions",
                                [(requests[i].seed, requests[i].n, requests[i].max_tokens, len(requests[i].prompt_ids)) for i in order])
        completions: list[list[Completion]] = [[] for _ in requests]
        for i, group in zip(order, found, strict=True):
            completions[i] = group
        return completions
