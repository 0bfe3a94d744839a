"""A trial at full length, so that a run that will not fit fails before its first step."""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence, Set

import torch

from common import parallel
from common.config import CommonConfig
from common.console import say
from common.errors import UserError
from common.flags import PLANNED
from common.policy.critic import SecondAdapter
from common.policy.micro_batches import microbatches
from common.policy.policy import Policy
from common.records import Completion, Problem, make_batch, prompts_of
from common.rollout.engine import Engine
from common.run.memory_plan import BUDGETS, GB, STATES, make_plan, shape_of, table


def preflight(engine: Engine, policy: Policy, config: CommonConfig, problems: Sequence[Problem],
              critic: SecondAdapter | None = None) -> None:
    """On a GPU, does one forward and backward over the largest micro-batch that can occur. Does nothing without a GPU.

    The sampler has given up its keys and values then, as in every update. If the trial does not fit, tries again with more checkpointing
    and then with smaller micro-batches, as far as nobody typed these flags. Raises UserError, with the memory plan and the measured
    memory, if none of this fits, or if the sampler could not take its keys and values back.
    """
    if policy.device.type != "cuda":
        return
    engine.sleep()
    prompt = prompts_of(problems).longest
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info()
    cache = config.planned.get("cache_bytes", 0) if config.vllm_enable_sleep_mode else 0
    if free < cache + _state_bytes(policy, config):  # the plan counted one base, and there are two; or other programs took memory
        cause = (f"{free / GB:.1f} GB are free, and sampling needs {cache / GB:.1f} GB for keys and values beside the optimiser's state. "
                 "Start again with the --vllm_gpu_memory_utilization of a plan for what is there")
        raise _too_little(policy, config, whole, cause, config.given)
    while not all(parallel.gather([taken := _taken(policy, config, prompt, critic)], "how the trial went")):  # all cards take the same
        took = f"out of memory in a trial at full length with micro-batches of {config.max_tokens_per_microbatch} tokens"
        change = take_less(policy, config)
        if change is None:
            raise _too_little(policy, config, whole, f"{took}: {free / GB:.1f} of {whole / GB:.1f} GB were free before it")
        say(f"{took}: going on with {change}")
    own = f"{(torch.cuda.memory_allocated() - policy.others_bytes) / GB:.1f}"
    base = f"{own} GB of base and"
    if policy.shared_bytes:
        base = f"{policy.shared_bytes / GB:.1f} GB of base, which the sampler holds too, {own} of"
    say(f"the largest micro-batch takes {taken / GB:.1f} GB beside {base} adapters, optimiser's state and gradients; "
        f"{torch.cuda.mem_get_info()[0] / GB:.1f} GB of the card stay free")


def _too_little(policy: Policy, config: CommonConfig, whole: int, cause: str, given: Set[str] = frozenset(PLANNED)) -> UserError:
    """The error that shows the plan, for a base or two as there are. The flags in `given` stay as they are."""
    shape = dataclasses.replace(shape_of(policy.base.config, config), shared=policy.shared_bytes > 0)
    return UserError(f"{cause}. The plan is:", *table(make_plan(config, shape, whole, given), config))


def take_less(policy: Policy, config: CommonConfig) -> str | None:
    """Changes the run so that its update takes less memory, and returns the flag that says so. None: what is left was typed."""
    if policy.checkpointed < len(policy.layers) and "gradient_checkpointing" not in config.given:
        policy.checkpoint(len(policy.layers))
        config.derive(gradient_checkpointing=True)
        return "--gradient_checkpointing"
    smaller = [budget for budget in BUDGETS if budget < config.max_tokens_per_microbatch]
    if not smaller or "max_tokens_per_microbatch" in config.given:
        return None
    config.derive(max_tokens_per_microbatch=smaller[0])
    return f"--max_tokens_per_microbatch {smaller[0]}"


def _taken(policy: Policy, config: CommonConfig, prompt_length: int, critic: SecondAdapter | None) -> int | None:
    """The memory that the largest micro-batch takes beside optimiser's state and gradients, bytes; None if there is not enough."""
    try:
        # stands for the optimiser's state, which is made at the first step
        state = torch.empty(_state_bytes(policy, config), dtype=torch.uint8, device=policy.device)
        add_gradients(policy, critic)  # as after the first micro-batch of a step
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        largest_microbatch(policy, config, prompt_length, critic)
        del state
        return torch.cuda.max_memory_allocated() - before
    except torch.OutOfMemoryError:
        drop_gradients(policy, critic)
    torch.cuda.empty_cache()  # here, as the error above held on to everything that its forward had made
    return None


def _state_bytes(policy: Policy, config: CommonConfig) -> int:
    """The memory of the optimiser's state, bytes."""
    return config.trained_adapters * sum(p.numel() for p in policy.parameters_of().values()) * STATES[config.optim]


def largest_microbatch(policy: Policy, config: CommonConfig, prompt_length: int, critic: SecondAdapter | None = None) -> None:
    """Runs a forward and a backward over rows that fill the token budget, or over one row of full length; also for the critic.

    No gradient is kept. The rows share no prompt; rows that do may take as much memory again for their keys and values.
    """
    longest = prompt_length + config.max_completion_length
    rows = max(1, math.ceil(config.max_tokens_per_microbatch / longest))
    length = max(2, min(longest, config.max_tokens_per_microbatch // rows)) if rows > 1 else longest
    prompt = min(prompt_length, length - 1)
    token = min(5, policy.vocabulary - 1)
    completion = Completion([token] * (length - prompt), [0.0] * (length - prompt), "length", "")
    problems = [Problem(str(i), "", (i % policy.vocabulary, *[token] * (prompt - 1)), "") for i in range(rows)]
    batch = make_batch(problems, [[completion]] * rows)
    for micro in microbatches(batch, torch.arange(rows), max(config.max_tokens_per_microbatch, rows * length), policy, shared=False):
        logps, _ = policy.logps(micro, entropy=True)
        logps.sum().backward()
        if critic is not None:
            with critic.active():
                critic.values(micro).sum().backward()
    drop_gradients(policy, critic)


def _trained(policy: Policy, critic: SecondAdapter | None) -> list[torch.nn.Parameter]:
    return [*policy.parameters_of().values(), *(critic.parameters().values() if critic is not None else ())]


def add_gradients(policy: Policy, critic: SecondAdapter | None) -> None:
    """Gives every trained parameter a gradient of zeros."""
    for parameter in _trained(policy, critic):
        parameter.grad = torch.zeros_like(parameter)


def drop_gradients(policy: Policy, critic: SecondAdapter | None) -> None:
    for parameter in _trained(policy, critic):
        parameter.grad = None
