"""A trial at full length, so that a run that will not fit fails before its first step."""
from __future__ import annotations

import math

import torch

from common.config import PLANNED, CommonConfig
from common.console import say
from common.errors import UserError
from common.policy.critic import Critic
from common.policy.micro_batches import microbatches
from common.policy.policy import Policy
from common.records import Completion, Problem, make_batch
from common.rollout.engine import Engine
from common.run.memory_plan import BUDGETS, GB, STATES, make_plan, shape_of, table


def preflight(engine: Engine, policy: Policy, config: CommonConfig, problems: list[Problem], critic: Critic | None = None) -> None:
    """On a GPU, does one forward and backward over the largest micro-batch that can occur. Does nothing without a GPU.

    If it does not fit, tries again with more checkpointing and then with smaller micro-batches, as far as nobody typed these flags.
    Raises UserError, with the memory plan and the measured memory, if none of this fits.
    """
    if policy.device.type != "cuda":
        return
    engine.sleep()
    prompt = max(len(problem.prompt_ids) for problem in problems)
    free, whole = torch.cuda.mem_get_info()
    while not (taken := _taken(policy, config, prompt, critic)):
        took = f"out of memory in a trial at full length with micro-batches of {config.max_tokens_per_microbatch} tokens"
        change = take_less(policy, config)
        if change is None:
            plan = make_plan(config, shape_of(policy.base.config, config), whole, set(PLANNED))
            raise UserError(f"{took}: {free / GB:.1f} of {whole / GB:.1f} GB were free before it. The plan was:", *table(plan, config))
        say(f"{took}: going on with {change}")
    before = torch.cuda.memory_allocated() - policy.others_bytes
    say(f"the largest micro-batch takes {taken / GB:.1f} GB beside {before / GB:.1f} GB of base and adapters and the optimiser's state; "
        f"{torch.cuda.mem_get_info()[0] / GB:.1f} GB of the card stay free")


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


def _taken(policy: Policy, config: CommonConfig, prompt_length: int, critic: Critic | None) -> int | None:
    """The memory that the largest micro-batch takes beside the optimiser's state, bytes; None if there is not enough."""
    parameters = sum(p.numel() for p in policy.parameters_of().values())
    try:
        # stands for the optimiser's state, which is made at the first step
        state = torch.empty(config.trained_adapters * parameters * STATES[config.optim], dtype=torch.uint8, device=policy.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        largest_microbatch(policy, config, prompt_length, critic)
        del state
        return torch.cuda.max_memory_allocated() - before
    except torch.OutOfMemoryError:
        drop_gradients(policy, critic)
    torch.cuda.empty_cache()  # here, as the error above held on to everything that its forward had made
    return None


def largest_microbatch(policy: Policy, config: CommonConfig, prompt_length: int, critic: Critic | None = None) -> None:
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
    for micro in microbatches(batch, torch.arange(rows), max(config.max_tokens_per_microbatch, rows * length), policy):
        logps, _ = policy.logps(micro, entropy=True)
        logps.sum().backward()
        if critic is not None:
            with critic.active():
                critic.values(micro).sum().backward()
    drop_gradients(policy, critic)


def drop_gradients(policy: Policy, critic: Critic | None) -> None:
    for parameter in (*policy.parameters_of().values(), *(critic.parameters().values() if critic is not None else ())):
        parameter.grad = None
