"""The numbers of a step: means over the tokens that were trained on, the statistics of the rollout batch, the memory."""
from __future__ import annotations

import itertools
import resource
import sys

import torch
from torch import Tensor

from common import parallel
from common.policy.policy import Policy
from common.records import Batch


class TokenMeans:
    """Means over the tokens of a whole step, from sums over its micro-batches, those of other processes included.

    The sums stay on the device until a mean is asked for, so that a GPU does not wait.
    """

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
        """The mean over the step's tokens; None if no token was added, since nothing was trained on in this step."""
        sums = parallel.gather([self.sums[name].cpu()] if name in self.sums else [], f"sums of {name}")
        tokens = sum(parallel.gather([self.tokens.cpu()] if name in self.sums else [], "numbers of tokens"))
        return float(sum(sums) / tokens) if tokens else None

    def max(self, name: str) -> float | None:
        """The largest value of the step; None if no token was added."""
        found = parallel.gather([self.maxima[name].cpu()] if name in self.maxima else [], f"maxima of {name}")
        return float(max(found)) if found else None


def batch_metrics(batch: Batch, rewards: Tensor) -> dict[str, float]:
    """The statistics of a rollout batch under TRL's names: rewards (B,) and their spread within groups, lengths, truncation.

    `neg_logp` is the mean of -log p over all sampled tokens, in nats: an estimate of the entropy of the sampling policy.
    """
    groups = [rewards[batch.group_ids == group] for group in batch.group_ids.unique()]
    # the spread of equal rewards is 0, while their computed standard deviation may be 1e-9
    spread = torch.stack([group.std(correction=0) if group.min() < group.max() else torch.tensor(0.0) for group in groups])
    return {"reward": rewards.mean().item(), "reward_std": spread.mean().item(),
            "frac_reward_zero_std": (spread == 0).float().mean().item(),
            "completions/mean_length": batch.num_sampled.float().mean().item(),
            "completions/clipped_ratio": batch.truncated.float().mean().item(),
            "neg_logp": -sum(sum(itertools.compress(c.logps, c.sampled) if c.sampled else c.logps) for c in batch.completions)
            / max(1, int(batch.num_sampled.sum()))}


def peak_gb(policy: Policy) -> float:
    """The most memory that was in use, in GB: of the trainer on a GPU since the last call, or of a process where there is no GPU.

    The base counts, also where it is the sampler's as well. Of several processes, the number is that of the largest.
    """
    if torch.cuda.is_available():
        # vLLM runs in this process, and torch counts its memory too
        most = torch.cuda.max_memory_allocated() - policy.others_bytes + policy.shared_bytes
        torch.cuda.reset_peak_memory_stats()
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return max(parallel.gather([most], "memory")) / 1e9
