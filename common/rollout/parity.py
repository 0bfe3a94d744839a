"""Does the sampler sample from the policy that the trainer trains? A lost adapter or a stale cache would otherwise go unnoticed."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.errors import UserError
from common.policy.policy import Policy, all_logps
from common.records import Completion, Problem, Request, derive_seed, make_batch
from common.rollout.engine import Engine

# A difference between the log-probs of sampler and trainer that nobody needs to hear of, nats. In float32 it holds for every token, and a
# larger one stops the run. Otherwise it is that of the mean over the tokens, and the trainer's own noise may allow more.
ALLOWED = {"float32": 1e-4, "bfloat16": 0.02, "4-bit": 0.1}
NOISE = 3  # how often the trainer's own noise a difference may be without a word
NEARER = 4  # how often nearer the sampler must be to the policy than to the base, and than to the policy of before

Text = tuple[tuple[int, ...], Completion]  # the tokens of a prompt, and a completion of it


def probes(prompts: Sequence[tuple[int, ...]], temperature: float) -> list[Request]:
    """The requests that the check samples: two completions of 16 tokens of each prompt."""
    return [Request(prompt, derive_seed(0, "parity", i), 2, 16, temperature) for i, prompt in enumerate(prompts)]


def check_parity(engine: Engine, policy: Policy, requests: list[Request]) -> str:
    """Syncs the engine and returns a line on how well sampler and trainer agree on `requests`.

    The check samples twice: under the policy as it is, which also fills the prefix cache, and then with an adapter that has been moved
    until it matters. At the start of a run the adapter is zero, so that its loss would not show. Raises UserError if the sampler lost the
    adapter or has an older one: it is then not much nearer to the policy than to the base or to the policy of before. In float32 any
    difference raises UserError. In other types the kernels of the two round differently, and a large difference adds a warning.
    """
    movable = any("lora_B" in name for name in policy.parameters_of())
    kind = kind_of(policy)
    texts = sampled(engine, requests)
    far = max(0.5, 15 * allowed(policy, texts) / NOISE, 15 * ALLOWED[kind])
    with moved_adapter(policy, texts[::2], far) if movable else contextlib.nullcontext():
        texts = sampled(engine, requests)
        on, most = difference(policy, texts), allowed(policy, texts)
        with policy.adapters_off():
            off = difference(policy, texts).mean()
    before = difference(policy, texts).mean()
    engine.sync()
    measured = f"mean {on.mean():.2g}, largest {on.max():.2g}; without the adapter {off:.2g}"
    if kind == "float32":
        agree = on.max() <= ALLOWED[kind] and (not movable or 10 * on.mean() <= off)
    else:
        measured += f", with that of before {before:.2g}; usual here: up to {most:.2g}"
        agree = NEARER * on.mean() <= min(off, before) if movable else on.mean() <= 10 * most
    if not agree:
        raise UserError(f"the sampler does not sample from the policy that is trained: their log-probs differ by {measured} nats. In "
                        f"float32 they may differ by {ALLOWED['float32']}. In other types they must be {NEARER} times nearer than without "
                        "the adapter. With vLLM, use --engine transformers; a server needs --logprobs-mode processed_logprobs; in a fork, "
                        "look at Policy.merged_weights")
    notes = ["4-bit weights are not quite the same in sampler and trainer: keep --importance_cap above 0"] if kind == "4-bit" else []
    if on.mean() > most:
        notes.append("sampler and trainer differ by more than this model's own rounding explains: keep --importance_cap above 0, and watch "
                     "sampling/sampling_logp_difference/mean")
    return f"parity: |sampler - trainer| over {len(on)} tokens in {kind}, nats: {measured}" + "".join(f"; {note}" for note in notes)


def sampled(engine: Engine, requests: list[Request]) -> list[Text]:
    """What the engine samples from the policy as it is now. Afterwards the trainer has the memory that only sampling needs."""
    engine.sync()
    texts = prompts_and_completions(requests, engine.generate(requests))
    engine.sleep()
    return texts


def kind_of(policy: Policy) -> str:
    """The key of ALLOWED for this policy."""
    return "4-bit" if policy.quantized else "bfloat16" if policy.dtype == torch.bfloat16 else "float32"


def difference(policy: Policy, texts: list[Text]) -> Tensor:
    """|trainer's log-prob - sampler's| of every sampled token (N,), nats, on the CPU."""
    return (alone(policy, texts) - logps_of(texts)).abs()


def logps_of(texts: list[Text]) -> Tensor:
    """The sampler's log-prob of every sampled token (N,), nats."""
    return torch.tensor([logp for _, completion in texts for logp in completion.logps])


def alone(policy: Policy, texts: list[Text]) -> Tensor:
    """The trainer's log-prob of every sampled token (N,), nats, on the CPU, with each text computed alone."""
    tokens = torch.tensor([token for _, completion in texts for token in completion.ids], device=policy.device)[:, None]
    return distributions(policy, texts).gather(-1, tokens)[:, 0].cpu()


def together(policy: Policy, texts: list[Text]) -> Tensor:
    """The trainer's log-prob of every sampled token (N,), nats, on the CPU, with all texts in one micro-batch."""
    batch = make_batch([Problem(str(i), "", prompt, "") for i, (prompt, _) in enumerate(texts)], [[completion] for _, completion in texts])
    tokens = len(texts) * max(len(prompt) + len(completion.ids) for prompt, completion in texts)
    return all_logps(policy, batch, torch.arange(len(batch)), tokens, shared=False)[batch.loss_mask()]


def why_apart(policy: Policy, requests: list[Request], groups: list[list[Completion]]) -> str:
    """Why these completions cannot be of the policy with its adapter as it is, in words; "" if they can be.

    The adapter is not moved for this. So the loss of an adapter that does not matter yet is not noticed.
    """
    texts, most = prompts_and_completions(requests, groups), ALLOWED[kind_of(policy)]
    on = difference(policy, texts)
    with policy.adapters_off():
        off = difference(policy, texts).mean()
    found = on.max() if kind_of(policy) == "float32" else on.mean()
    if found <= 10 * most and (found <= most or on.mean() <= 2 * off):
        return ""
    return f"their log-probs differ by {found:.2g} nats, without the adapter by {off:.2g}; usual here: {most:.2g}"


def allowed(policy: Policy, texts: list[Text]) -> float:
    """The difference that needs no warning on this model, nats.

    It is relative to the trainer's own noise: the mean difference between a text in a micro-batch with others and the same text alone.
    In bfloat16 that noise is a matter of the model; 30-layer models were seen at 0.02 to 0.03 nats.
    """
    kind = kind_of(policy)
    if kind == "float32":
        return ALLOWED[kind]
    noise = (together(policy, texts) - alone(policy, texts)).abs().mean().item()
    return max(ALLOWED[kind], NOISE * noise)


def prompts_and_completions(requests: list[Request], groups: list[list[Completion]]) -> list[Text]:
    """Pairs of a prompt's tokens and one of its completions."""
    return [(request.prompt_ids, completion) for request, group in zip(requests, groups, strict=True) for completion in group]


@torch.no_grad()
def distributions(policy: Policy, texts: list[Text]) -> Tensor:
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
def moved_adapter(policy: Policy, texts: list[Text], wanted: float) -> Iterator[None]:
    """Inside, noise on the adapter moves a sampled token's log-prob by `wanted` nats on average, or a bit more.

    It is not moved much more, because the bfloat16 log-probs of a model that was moved further depend more on the order of a sum.
    """
    kept = {parameter: parameter.clone() for name, parameter in policy.parameters_of().items() if "lora_B" in name}
    generator = torch.Generator().manual_seed(0)
    noise = {parameter: torch.randn(parameter.shape, generator=generator).to(parameter) for parameter in kept}
    start = distributions(policy, texts)

    def enough(power: float) -> bool:
        for parameter, value in kept.items():
            parameter.copy_(value + 2.0**power * noise[parameter])
        moved = distributions(policy, texts)
        return bool((moved.exp() * (moved - start).abs()).sum(-1).mean() >= wanted)

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
