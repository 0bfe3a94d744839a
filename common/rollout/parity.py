"""Does the sampler sample from the policy that the trainer trains? A lost adapter or a stale cache would otherwise go unnoticed."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.errors import UserError
from common.policy.policy import Policy
from common.records import Completion, Request, derive_seed
from common.rollout.engine import Engine

# The largest difference allowed between the log-probs of sampler and trainer, nats. In float32 it holds for every token, otherwise for
# the mean over the tokens.
ALLOWED = {"float32": 1e-4, "bfloat16": 0.02, "4-bit": 0.1}


def probes(prompts: Sequence[tuple[int, ...]], temperature: float) -> list[Request]:
    """The requests that the check samples: two completions of 16 tokens of each prompt."""
    return [Request(prompt, derive_seed(0, "parity", i), 2, 16, temperature) for i, prompt in enumerate(prompts)]


def check_parity(engine: Engine, policy: Policy, requests: list[Request]) -> str:
    """Syncs the engine and returns a line on how well sampler and trainer agree on `requests`. Raises UserError if they do not agree.

    The check samples twice: under the policy as it is, which also fills the prefix cache, and then with an adapter that has been moved
    until it matters. At the start of a run the adapter is zero, so that its loss would not show.
    """
    movable = any("lora_B" in name for name in policy.parameters_of())
    kind = "4-bit" if policy.quantized else "bfloat16" if policy.dtype == torch.bfloat16 else "float32"
    engine.sync()
    texts = prompts_and_completions(requests, engine.generate(requests))
    with moved_adapter(policy, texts[::2], max(0.5, 15 * ALLOWED[kind])) if movable else contextlib.nullcontext():
        engine.sync()
        texts = prompts_and_completions(requests, engine.generate(requests))
        sampled = torch.tensor([logp for _, completion in texts for logp in completion.logps])
        tokens = torch.tensor([token for _, completion in texts for token in completion.ids], device=policy.device)[:, None]
        on = (distributions(policy, texts).gather(-1, tokens)[:, 0].cpu() - sampled).abs()  # (N,), N sampled tokens
        with policy.adapters_off():
            off = (distributions(policy, texts).gather(-1, tokens)[:, 0].cpu() - sampled).abs()
    engine.sync()
    measured = f"mean {on.mean():.2g}, largest {on.max():.2g}; without the adapter {off.mean():.2g}"
    if not (on.max() if kind == "float32" else on.mean()) <= ALLOWED[kind] or (movable and not 10 * on.mean() <= off.mean()):
        raise UserError(f"the sampler does not sample from the policy that is trained: their log-probs differ by {measured} nats. Allowed "
                        f"in {kind}: {'at most' if kind == 'float32' else 'a mean of'} {ALLOWED[kind]}, and a tenth of the difference "
                        "without the adapter. With vLLM, use --engine transformers; in a fork, look at Policy.merged_weights")
    note = "; 4-bit weights are not quite the same in sampler and trainer: keep --importance_cap above 0" if kind == "4-bit" else ""
    return f"parity: |sampler - trainer| over {len(on)} tokens in {kind}, nats: {measured}{note}"


def prompts_and_completions(requests: list[Request], groups: list[list[Completion]]) -> list[tuple[tuple[int, ...], Completion]]:
    """Pairs of a prompt's tokens and one of its completions."""
    return [(request.prompt_ids, completion) for request, group in zip(requests, groups, strict=True) for completion in group]


@torch.no_grad()
def distributions(policy: Policy, texts: list[tuple[tuple[int, ...], Completion]]) -> Tensor:
    """Log-probs (N, V) of the whole vocabulary at each of the N completion tokens, by the trainer's model, nats, float32.

    One completion is computed at a time and without the chunks of `Policy.logps`, so that this is a second way to the same numbers.
    """
    parts = []
    for prompt, completion in texts:
        ids = torch.tensor([[*prompt, *completion.ids]], device=policy.device)
        hidden = policy.hidden_states(ids, use_cache=False).last_hidden_state[0, len(prompt) - 1:-1]
        parts.append((policy.logits(hidden) / policy.temperature).log_softmax(-1))
    return torch.cat(parts)


@contextlib.contextmanager
@torch.no_grad()
def moved_adapter(policy: Policy, texts: list[tuple[tuple[int, ...], Completion]], wanted: float) -> Iterator[None]:
    """Inside, noise on the adapter moves a sampled token's log-prob away from the base's by `wanted` nats on average, or a bit more.

    It is not moved much more, because the bfloat16 log-probs of a model that was moved further depend more on the order of a sum.
    """
    kept = {parameter: parameter.clone() for name, parameter in policy.parameters_of().items() if "lora_B" in name}
    generator = torch.Generator().manual_seed(0)
    noise = {parameter: torch.randn(parameter.shape, generator=generator).to(parameter) for parameter in kept}
    with policy.adapters_off():
        base = distributions(policy, texts)

    def enough(power: float) -> bool:
        for parameter, value in kept.items():
            parameter.copy_(value + 2.0**power * noise[parameter])
        moved = distributions(policy, texts)
        return bool((moved.exp() * (moved - base).abs()).sum(-1).mean() >= wanted)

    try:
        high = next((power for power in range(-12, 4) if enough(power)), 4.0)
        low = high - 1.0
        for _ in range(4):  # halves the interval: the power of two is then known to 1/16
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        enough(high)
        yield
    finally:
        for parameter, value in kept.items():
            parameter.copy_(value)
