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
from common.run.memory_plan import GB, STATES, make_plan, shape_of, table


def preflight(engine: Engine, policy: Policy, config: CommonConfig, problems: list[Problem], critic: Critic | None = None) -> None:
    """On a GPU, does one forward and backward over the largest micro-batch that can occur. Does nothing without a GPU.

    Raises UserError, with the memory plan and the measured memory, if the micro-batch does not fit.
    """
    if policy.device.type != "cuda":
        return
    engine.sleep()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.mem_get_info()
    parameters = sum(p.numel() for p in policy.parameters_of().values())
    try:
        state = torch.empty(config.trained_adapters * parameters * STATES[config.optim], dtype=torch.uint8, device=policy.device)
        largest_microbatch(policy, config, max(len(problem.prompt_ids) for problem in problems), critic)
    except torch.OutOfMemoryError as error:
        plan = make_plan(config, shape_of(policy.base.config, config), before[1], set(PLANNED))
        raise UserError(f"out of memory in a trial at full length: {torch.cuda.max_memory_allocated() / GB:.1f} GB were in use by the "
                        f"trainer, {before[0] / GB:.1f} of {before[1] / GB:.1f} GB were free before it. The plan was:",
                        *table(plan, config)) from error
    del state  # it stood for the optimiser's state, which is made at the first step
    say(f"the largest micro-batch takes {torch.cuda.max_memory_allocated() / GB:.1f} GB in the trainer; "
        f"{torch.cuda.mem_get_info()[0] / GB:.1f} GB stay free")


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
    for parameter in (*policy.parameters_of().values(), *(critic.parameters().values() if critic is not None else ())):
        parameter.grad = None
