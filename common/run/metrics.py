"""The numbers of a step: means over its tokens, and what its rollout batch says."""
from __future__ import annotations

import torch
from torch import Tensor

from common.records import Batch


class TokenMeans:
    """Means over the tokens of a whole step, from the sums of its micro-batches. Stays on the device until one of them is asked for."""

    def __init__(self) -> None:
        self.tokens: Tensor | float = 0.0
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, mask: Tensor, **values: Tensor) -> None:
        """mask, values (b, T): each value counts where the mask is True."""
        self.tokens = self.tokens + mask.sum()
        for name, value in values.items():
            kept = torch.where(mask, value.float(), 0.0)
            self.sums[name] = self.sums.get(name, 0.0) + kept.sum()
            self.maxima[name] = torch.maximum(self.maxima.get(name, kept.max()), kept.max())

    def mean(self, name: str) -> float | None:
        """None if no token was added: nothing was trained on in this step."""
        return float(self.sums[name] / self.tokens) if name in self.sums and self.tokens else None

    def max(self, name: str) -> float | None:
        """The largest value of the step; None if no token was added."""
        return float(self.maxima[name]) if name in self.maxima else None



def batch_metrics(batch: Batch, rewards: Tensor) -> dict[str, float]:
    """What a rollout batch says of itself, TRL's names: rewards (B,) and their spread within groups, lengths, cut-offs.

    `neg_logp`: -log p of all sampled tokens, nats per token: what the sampling policy's entropy is on average, estimated.
    """
    groups = [rewards[batch.group_ids == group] for group in batch.group_ids.unique()]
    # equal rewards have spread 0; their computed standard deviation may be 1e-9
    spread = torch.stack([group.std(correction=0) if group.min() < group.max() else torch.tensor(0.0) for group in groups])
    return {"reward": rewards.mean().item(), "reward_std": spread.mean().item(),
            "frac_reward_zero_std": (spread == 0).float().mean().item(),
            "completions/mean_length": batch.lengths.float().mean().item(),
            "completions/clipped_ratio": batch.truncated.float().mean().item(),
            "neg_logp": -sum(sum(completion.logps) for completion in batch.completions) / int(batch.lengths.sum())}
