"""The critic: a second LoRA adapter on the policy's frozen base, and a scalar head. There is no second copy of the weights."""
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


class Critic:
    """Values of the states before each token. It shares the policy's model, and one adapter is on at a time.

    Everything about a value's loss, its backward() included, happens inside `active()`: switched back too early, the
    adapter would get no gradient, and `clip_gradients` stops the run.
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        """Adds the adapter to `policy`. The head starts at zero: until it has learned, every value is 0."""
        policy.add_adapter(ADAPTER, seed)
        self.policy = policy
        self.head = nn.Linear(policy.base.config.get_text_config().hidden_size, 1, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model runs with the critic's adapter."""
        return self.policy.using(ADAPTER)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's and the head's, by name."""
        return self.policy.parameters_of(ADAPTER) | {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}

    def values(self, batch: MicroBatch) -> Tensor:
        """(b, T): the value before each completion token is chosen, float32; 0 where masked. Only inside `active()`."""
        hidden, _ = self.policy.states_before(batch)  # (N, H)
        return batch.spread(self.head(hidden.float())[:, 0])

    def all_values(self, batch: Batch, rows: Tensor, max_tokens: int) -> Tensor:
        """Values (B, T) of the given rows of a batch, float32 on the CPU, without gradient; 0 elsewhere."""
        with self.active():
            return per_token(self.values, batch, rows, max_tokens, self.policy)

    def save(self, folder: Path) -> None:
        """Writes `critic/` into the folder: a PEFT adapter, and the head beside it."""
        self.policy.save(folder, adapter=ADAPTER)
        save_file({name: parameter.detach().cpu() for name, parameter in self.head.named_parameters()}, folder / ADAPTER / HEAD)

    def load(self, folder: Path) -> None:
        """Puts what `save` wrote into adapter and head."""
        self.policy.load(folder / ADAPTER, ADAPTER)
        try:
            self.head.load_state_dict(load_file(folder / ADAPTER / HEAD))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{folder / ADAPTER / HEAD} is not the critic's head ({words(error)}); use another checkpoint") from error
