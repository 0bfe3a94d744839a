"""A second LoRA adapter on the policy's frozen base; the critic is one with a scalar head. There is no second copy of the weights."""
from __future__ import annotations

import contextlib
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError
from common.policy.micro_batches import MicroBatch
from common.policy.model_files import words
from common.policy.policy import Policy, per_token
from common.records import Batch

ADAPTER = "critic"
HEAD = "value_head.safetensors"


class SecondAdapter:
    """A LoRA adapter beside the policy's, on the same frozen base; one of them is on at a time.

    Everything about its loss, its backward() included, happens inside `active()`: switched back too early, the adapter would get no
    gradient, and `clip_gradients` stops the run.
    """

    def __init__(self, policy: Policy, name: str, seed: int) -> None:
        """Adds the adapter to `policy`, with fresh weights that change nothing. name: that of its folder in a checkpoint."""
        policy.add_adapter(name, seed)
        self.policy, self.name = policy, name

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model runs with this adapter."""
        return self.policy.using(self.name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return self.policy.parameters_of(self.name)

    def values(self, batch: MicroBatch) -> Tensor:
        """(b, T): what the adapter says of each completion token, its log-prob in nats; 0 where masked. Only inside `active()`."""
        return self.policy.logps(batch)[0]

    def all_values(self, batch: Batch, rows: Tensor, max_tokens: int) -> Tensor:
        """Values (B, T) of the given rows of a batch, float32 on the CPU, without gradient; 0 elsewhere."""
        with self.active():
            return per_token(self.values, batch, rows, max_tokens, self.policy)

    def save(self, folder: Path) -> None:
        """Writes a PEFT adapter into the folder, under the adapter's name."""
        self.policy.save(folder, adapter=self.name)

    def load(self, folder: Path) -> None:
        """Puts what `save` wrote into the adapter."""
        self.policy.load(folder / self.name, self.name)


class Critic(SecondAdapter):
    """Values of the states before each token: a second adapter with a scalar head."""

    def __init__(self, policy: Policy, seed: int) -> None:
        """Adds the adapter to `policy`. The head starts at zero: until it has learned, every value is 0."""
        super().__init__(policy, ADAPTER, seed)
        self.head = nn.Linear(policy.base.config.get_text_config().hidden_size, 1, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's and the head's, by name."""
        return super().parameters() | {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}

    def values(self, batch: MicroBatch) -> Tensor:
        """(b, T): the value before each completion token is chosen, float32; 0 where masked. Only inside `active()`."""
        hidden, _ = self.policy.states_before(batch)  # (N, H)
        return batch.spread(self.head(hidden.float())[:, 0])

    def save(self, folder: Path) -> None:
        """Writes `critic/` into the folder: a PEFT adapter, and the head beside it."""
        super().save(folder)
        save_file({name: parameter.detach().cpu() for name, parameter in self.head.named_parameters()}, folder / ADAPTER / HEAD)

    def load(self, folder: Path) -> None:
        """Puts what `save` wrote into adapter and head."""
        super().load(folder)
        try:
            self.head.load_state_dict(load_file(folder / ADAPTER / HEAD))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{folder / ADAPTER / HEAD} is not the critic's head ({words(error)}); use another checkpoint") from error
