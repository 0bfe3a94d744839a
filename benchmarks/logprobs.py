"""Log-probs in bounded chunks of the vocabulary beside log-probs from all logits at once: error, peak memory and time.

    python benchmarks/logprobs.py [--tokens 2048] [--hidden 896] [--vocabulary 151936] [--entropy]

Each variant goes forward and backward in a process of its own. Peak memory is what the process holds above the head and the hidden
states. The defaults are the sizes of Qwen2.5-0.5B's head. With --entropy the loss also holds the mean entropy of the policy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from measure import parser, resident_gb, result_of, show

from common.console import say
from common.policy.loss import selected_logps

VARIANTS = ("full", "chunked")


def inputs(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random hidden states (N, H), head (V, H) and tokens (N,)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(arguments.tokens, arguments.hidden, generator=generator).requires_grad_()
    weight = torch.randn(arguments.vocabulary, arguments.hidden, generator=generator).mul_(arguments.hidden**-0.5)
    return hidden, weight, torch.randint(arguments.vocabulary, (arguments.tokens,), generator=generator)


def run(variant: str, hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, entropy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs (N,), and the gradient for the hidden states (N, H) of their mean, plus the mean entropy if asked for."""
    if variant == "chunked":
        logps, entropies = selected_logps(hidden, weight, tokens, temperature=1.0, entropy=entropy)
    else:
        every = torch.log_softmax(hidden @ weight.T, -1)
        logps, entropies = every.gather(-1, tokens[:, None])[:, 0], -(every.exp() * every).sum(-1) if entropy else None
    (logps.mean() + (entropies.mean() if entropies is not None else 0.0)).backward()
    gradient, hidden.grad = hidden.grad, None
    return logps.detach(), gradient


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tokens", type=int, default=2048)
    options.add_argument("--hidden", type=int, default=896)
    options.add_argument("--vocabulary", type=int, default=151_936)
    options.add_argument("--entropy", action="store_true")
    options.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    data = inputs(arguments)
    if arguments.variant:  # one of the two processes
        before, began = resident_gb("VmRSS"), time.perf_counter()
        run(arguments.variant, *data, arguments.entropy)
        say(json.dumps({"seconds": time.perf_counter() - began, "peak GB": resident_gb("VmHWM") - before}))
        return
    show(f"{arguments.tokens} tokens, hidden {arguments.hidden}, vocabulary {arguments.vocabulary}, float32\n")
    full, chunked = (result_of([sys.executable, __file__, *sys.argv[1:], "--variant", variant]) for variant in VARIANTS)
    for name in full:
        say(f"{name}: full {full[name]:.4g}, chunked {chunked[name]:.4g}, ratio {chunked[name] / full[name]:.4g}")
    (expected, expected_gradient), (logps, gradient) = (run(variant, *data, arguments.entropy) for variant in VARIANTS)
    say(f"largest error of a log-prob: {(logps - expected).abs().max():.4g} nats")
    say(f"largest error of the gradient, relative to its largest entry: "
        f"{(gradient - expected_gradient).abs().max() / expected_gradient.abs().max():.4g}")


if __name__ == "__main__":
    main()
