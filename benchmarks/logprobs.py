"""Log-probs in vocabulary-bounded chunks against the full-logits computation: error, peak memory, time.

    python benchmarks/logprobs.py [--tokens 2048] [--hidden 896] [--vocabulary 151936]

Each variant runs forward and backward in a process of its own; peak memory is what the process held at most above what it
held before (the head and the hidden states). The defaults are the head of Qwen2.5-0.5B.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.policy.loss import selected_logps


def resident_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (the most so far) of this process, from /proc."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def inputs(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(arguments.tokens, arguments.hidden, generator=generator).requires_grad_()
    weight = torch.randn(arguments.vocabulary, arguments.hidden, generator=generator).mul_(arguments.hidden**-0.5)
    return hidden, weight, torch.randint(arguments.vocabulary, (arguments.tokens,), generator=generator)


def run(variant: str, hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs (N,) and the gradient of their mean for the hidden states (N, H)."""
    if variant == "chunked":
        logps, _ = selected_logps(hidden, weight, tokens, temperature=1.0)
    else:
        logps = torch.log_softmax(hidden @ weight.T, -1).gather(-1, tokens[:, None])[:, 0]
    logps.mean().backward()
    gradient, hidden.grad = hidden.grad, None
    return logps.detach(), gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--variant", choices=["full", "chunked"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:  # one of the two processes
        data = inputs(arguments)
        before = resident_mb("VmRSS")
        start = time.perf_counter()
        run(arguments.variant, *data)
        print(json.dumps({"seconds": time.perf_counter() - start, "peak_mb": resident_mb("VmHWM") - before}))
        return
    measured = {}
    for variant in ("full", "chunked"):
        out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--variant", variant], capture_output=True, text=True, check=True)
        measured[variant] = json.loads(out.stdout)
    data = inputs(arguments)
    (logps, gradient), (expected, expected_gradient) = run("chunked", *data), run("full", *data)
    result = {
        **{f"{variant}/{name}": value for variant, values in measured.items() for name, value in values.items()},
        "memory_ratio": measured["chunked"]["peak_mb"] / measured["full"]["peak_mb"],
        "time_ratio": measured["chunked"]["seconds"] / measured["full"]["seconds"],
        "max_logp_error": (logps - expected).abs().max().item(),
        "max_relative_gradient_error": ((gradient - expected_gradient).abs().max() / expected_gradient.abs().max()).item(),
    }
    sizes = f"{arguments.tokens} tokens, hidden {arguments.hidden}, vocabulary {arguments.vocabulary}"
    print(f"{sizes}, float32, {torch.get_num_threads()} threads\n")
    for name, value in result.items():
        print(f"{name:30} {value:.4g}")


if __name__ == "__main__":
    main()
