"""VinePPO: trains a LoRA policy on advantages of reasoning steps, from Monte-Carlo estimates of the value before each step.

Paper: VinePPO (arXiv 2410.01679), section 4: V(s) is the mean reward of K fresh completions from s, an advantage is the
difference that a step makes, and PPO's clipped loss does the rest; docs/vineppo.md has the equations and the paper's flag set.

Deviations from the official code: LoRA instead of full fine-tuning; states are token ids, cut where a step's first token begins,
not text that is tokenised again; continuations have the tokens that the completion had left, not a full budget; no
completion is dropped for its form; no KL term unless asked for (--beta); importance weights against the sampler.

    python train_vineppo.py                                                        # tiny model, CPU, a few minutes
    python train_vineppo.py --model Qwen/Qwen2.5-1.5B-Instruct --dataset gsm8k     # one GPU
"""
from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    num_iterations: int = flag(2, "update", "Passes over each rollout batch.")
    num_minibatches: int = flag(8, "update", "Optimiser steps per pass.")
    mc_samples: int = flag(9, "algorithm", "Continuations per state (K; the paper's is 9).")
    mc_max_states: int = flag(0, "algorithm", "States valued per completion, the first ones (0: all); after them the value is the reward.")
    step_split: str = flag("lines", "algorithm", "Where steps begin: lines, math (sentences, as for MATH in the paper), tokens:N.")
    v0: Literal["fresh", "group"] = flag(
        "fresh", "algorithm", "Value of the bare prompt: fresh continuations (the paper), or the mean of the group's other rewards.")
    whiten_advantages: bool = flag(True, "algorithm", "Advantages to mean 0 and variance 1 over the tokens of the rollout batch.")
    epsilon: float = flag(0.2, "algorithm", "The ratio is clipped to 1 - epsilon .. 1 + epsilon.")

    tiny_defaults: ClassVar[dict[str, Any]] = {**CommonConfig.tiny_defaults, "mc_samples": 3, "num_iterations": 1, "num_minibatches": 4}

    def check(self) -> None:
        """Raises UserError for what cannot work with this algorithm."""
        super().check()
        if self.mc_samples < 1 or self.mc_max_states < 0:
            raise UserError(f"--mc_samples {self.mc_samples} --mc_max_states {self.mc_max_states}: give 1 or more samples (9 is the "
                            "paper's), and 0 (all) or more states")
        if not re.fullmatch("lines|math|tokens:[1-9][0-9]*", self.step_split):
            raise UserError(f"--step_split {self.step_split}: give lines, math, or tokens:N as tokens:100")
        if self.v0 == "group" and self.num_generations < 2:
            raise UserError("--v0 group needs a group: give --num_generations 2 or more, or --v0 fresh")
        if not 0 <= self.epsilon < 1:
            raise UserError(f"--epsilon {self.epsilon}: give a number from 0 to below 1, as 0.2")


if __name__ == "__main__":  # before torch and transformers are imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.policy.load import load_policy
from common.policy.loss import aggregate, kl_estimate, loss_divisor, truncated_importance_weights, whiten
from common.policy.micro_batches import microbatches, minibatches
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step
from common.policy.policy import all_logps
from common.policy.pretrained import context_length, load_tokenizer
from common.problems.choose import ProblemSampler
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import Problem, Request, derive_seed, make_batch
from common.rollout.choose_engine import connect, make_engine
from common.rollout.engine import Engine
from common.rollout.reasoning_steps import split_steps
from common.rollout.rounds import evaluate, sample, verify
from common.rollout.text import join, token_offsets
from common.run.metrics import TokenMeans, batch_metrics
from common.run.preflight import preflight
from common.run.run import Run
from common.verify.rewards import Reward, make_reward

# ---- the algorithm --------------------------------------------------------------------------------------------------

MAX_KL = 10.0  # of a token, in the loss: as in the official code


def step_starts(text: str, offsets: list[int], rule: str) -> list[int]:
    r"""The token index at which each step begins, strictly increasing from 0; none where there are no tokens.

    `offsets` (of `token_offsets`) may go on behind the text, which is cut at a stop string: those tokens belong to the last step.
    A step begins with the first token whose first character is in it or behind it; of steps that begin with the same token one is
    left. "A\nB\nC" in tokens "A", "\n", "B", "\nC", the end has offsets [0, 1, 2, 3, 5] and starts [0, 1, 3].

    With rule "tokens:N" every N-th token begins a step, whatever the text.
    """
    if rule.startswith("tokens:"):
        return list(range(0, len(offsets), int(rule.removeprefix("tokens:"))))
    starts = {bisect_left(offsets, cut) for cut in split_steps(text, rule)[1:-1]}
    return [0, *sorted(i for i in starts if 0 < i < len(offsets) and offsets[i] < len(text))] if offsets else []


class State(NamedTuple):
    """A place before a step: the problem and the completion's tokens up to it."""

    problem: Problem
    prefix: tuple[int, ...]


def states_of(problem: Problem, ids: list[int], starts: list[int], most: int) -> list[State]:
    """The states before a completion's steps, the bare prompt first, at most `most` of them (0: all).

    The end of the completion is none: nothing is left to choose there, and its value is 0 (section 4.1).
    """
    return [State(problem, tuple(ids[:start])) for start in starts[:most or None]]


def step_advantages(state_values: list[float], reward: float, num_steps: int) -> list[float]:
    """What each step changed: V(next state) - V(state), and reward - V(state) for the last; VinePPO section 4.1, gamma 1.

    state_values: V before the first 1..num_steps steps (else ValueError); where there is none, the value is the reward itself. The
    advantages add up to reward - V(first). [5/9, 7/9, 4/9], 1, 3 -> [0.222, -0.333, 0.556]; [4/9, 6/9], 0, 4 -> [0.222, -0.667, 0, 0].
    """
    if not 1 <= len(state_values) <= num_steps:
        raise ValueError(f"{len(state_values)} values for {num_steps} steps: give 1 to {num_steps}")
    values = [*state_values, *[reward] * (num_steps + 1 - len(state_values))]  # the last one: what was reached in the end
    return [after - before for before, after in pairwise(values)]


def token_advantages(advantages: list[float], starts: list[int], length: int) -> list[float]:
    """Each token's: that of the step it lies in, the end token's included. [0.5, -1], [0, 3], 5 -> [0.5, 0.5, 0.5, -1, -1]."""
    return [advantage for advantage, (start, end) in zip(advantages, pairwise([*starts, length]), strict=True)
            for _ in range(start, end)]


def others_mean(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """(B,): the mean reward of the other completions of the group, for --v0 group. [1, 0, 0] -> [0, 0.5, 0.5]; alone: 0."""
    _, group = group_ids.unique(return_inverse=True)
    total, size = (torch.bincount(group, weights)[group] for weights in (rewards.double(), None))
    return ((total - rewards) / (size - 1).clamp(min=1)).float()


def ppo_token_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, epsilon: float) -> Tensor:
    """Loss (B, T) of each token: -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A), PPO equation 7.

    logps, old_logps (B, T) nats, advantages (B, T). Ratio 1.35, A 1: -1.2 without gradient; A -1: 1.35.
    """
    ratio = torch.exp(logps - old_logps)  # (B, T)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)


def clipped_tokens(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, epsilon: float) -> Tensor:
    """(B, T) bool: the tokens that the clip leaves without gradient."""
    ratio = torch.exp(logps - old_logps)
    return ((ratio > 1 + epsilon) & (advantages > 0)) | ((ratio < 1 - epsilon) & (advantages < 0))

# ---------------------------------------------------------------------------------------------------------------------


def estimate_values(states: list[State], engine: Engine, reward: Reward, tokenizer: PreTrainedTokenizerBase, config: Config, run: Run,
                    ) -> dict[State, float]:
    """The mean reward of K continuations of each different state, all asked for in one call.

    They are sampled and scored as completions are, with the tokens that are left; what they cost is counted in the run.
    """
    states = list(dict.fromkeys(states))
    requests = [
        Request((*problem.prompt_ids, *prefix), derive_seed(config.seed, "values", run.step, problem.id, *prefix), config.mc_samples,
                config.max_completion_length - len(prefix), config.temperature, config.top_p, tuple(config.stop or ()))
        for problem, prefix in states]
    groups = engine.generate(requests) if requests else []  # none: every completion is one step, and --v0 group
    run.count([completion for group in groups for completion in group])
    whole = [join(tokenizer, state.prefix, completion, config.stop)
             for state, group in zip(states, groups, strict=True) for completion in group]
    scores = reward([state.problem for state in states for _ in range(config.mc_samples)], whole).reshape(len(states), config.mc_samples)
    return dict(zip(states, scores.mean(dim=1).tolist(), strict=True))


def train(config: Config) -> None:
    """Runs `config.max_steps` steps and leaves metrics, completions and checkpoints in the run folder. Raises UserError."""
    run = Run(config, Path(__file__))
    reward = make_reward(config)  # whatever can fail cheaply comes before the model
    rows = load_rows(config)
    tokenizer, model_config = load_tokenizer(config)
    template = load_template(config, tokenizer)
    config.stop = config.stop or list(template.stop)
    problems, held_out = make_problems(rows, config, template, tokenizer, context_length(model_config))
    engine = make_engine(config, tokenizer, model_config, [problem.prompt_ids for problem in problems + held_out])
    policy = load_policy(config, tokenizer, model_config)
    optimizer = make_optimizer(policy.parameters_of("default"), config.learning_rate, config.optim)
    sampler = ProblemSampler(problems, config, engine, reward, run)
    run.start(policy, {"optimizer": optimizer, "sampler": sampler})
    connect(engine, policy)
    preflight(engine, policy, config, problems + held_out)
    if config.eval_steps and run.step == 0:
        run.log(evaluate(engine, held_out, config, reward))

    for step in run.steps():
        # 1 choose problems
        chosen = sampler.choose(step)  # groups: a problem, and what choosing it took in completions and rewards

        # 2 sample completions
        with run.timer("sample"):
            run.count(sample(chosen, engine, config))
            batch = make_batch([group.problem for group in chosen], [group.completions for group in chosen])

        # 3 verify
        with run.timer("verify"):
            rewards = verify(chosen, reward)  # (B,)
            sampler.record()

        # 4 advantages
        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T)
        with run.timer("value"):
            starts = [step_starts(c.text, token_offsets(tokenizer, c.ids), config.step_split) for c in batch.completions]
            most = [config.mc_max_states if used else 1 for used in mask.any(dim=1).tolist()]  # what is masked needs no values
            states = [states_of(p, c.ids, s, m) for p, c, s, m in zip(batch.problems, batch.completions, starts, most, strict=True)]
            known = others_mean(rewards, batch.group_ids).tolist() if config.v0 == "group" else None  # of the bare prompts
            unknown = [state for row in states for state in row[known is not None:]]
            values = estimate_values(unknown, engine, reward, tokenizer, config, run)
            state_values = [[values[state] if known is None or state.prefix else known[i] for state in row] for i, row in enumerate(states)]
        steps = [step_advantages(v, r, len(s)) for v, r, s in zip(state_values, rewards.tolist(), starts, strict=True)]
        advantages = torch.zeros(mask.shape)  # (B, T)
        for i, (a, s, c) in enumerate(zip(steps, starts, batch.completions, strict=True)):
            advantages[i, :len(c.ids)] = torch.tensor(token_advantages(a, s, len(c.ids)))
        run.log_completions(batch, rewards, rewards - torch.tensor([v[0] for v in state_values]),
                            token_advantages=advantages, step_starts=starts, state_values=state_values)
        if config.whiten_advantages:
            advantages = whiten(advantages, mask)
        # without a KL term, what has advantage 0 throughout has gradient 0: it stays in the divisor and gets no pass
        needs_pass = mask.any(dim=1) & ((advantages != 0).any(dim=1) | (config.beta > 0))  # (B,)

        # 5 log-probs before the update
        engine.sleep()  # from here to the sync its memory is the update's
        old_logps = ref_logps = None  # (B, T)
        with run.timer("update"):
            trained = needs_pass.nonzero()[:, 0]
            if config.num_iterations * config.num_minibatches > 1:  # else the update's own pass gives them
                old_logps = all_logps(policy, batch, trained, config.max_tokens_per_microbatch)
            if config.beta > 0:
                with policy.reference():
                    ref_logps = all_logps(policy, batch, trained, config.max_tokens_per_microbatch)

        # 6 update
        with run.timer("update"):
            means, norms = TokenMeans(), []
            for minibatch in minibatches(len(batch), config.num_iterations, config.num_minibatches, config.seed, step):
                divisor = loss_divisor(mask[minibatch], config.loss_aggregation, config.max_completion_length)
                sequences, losses = loss_divisor(mask[minibatch], "seq-mean-token-sum"), []
                for micro in microbatches(batch, minibatch[needs_pass[minibatch]], config.max_tokens_per_microbatch, policy):
                    logps, entropy = policy.logps(micro, entropy=True)  # (b, T)
                    old = logps.detach() if old_logps is None else micro.take(old_logps)
                    token_loss = ppo_token_loss(logps, old, micro.take(advantages), epsilon=config.epsilon)
                    if config.importance_cap > 0:
                        token_loss = token_loss * truncated_importance_weights(old, micro.sampling_logps, config.importance_cap)
                    kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")
                    loss = aggregate(token_loss, micro.completion_mask, config.loss_aggregation, divisor) + config.beta * aggregate(
                        kl.clamp(max=MAX_KL), micro.completion_mask, "seq-mean-token-sum", sequences)
                    loss.backward()
                    losses.append((micro.rows, loss.detach()))
                    means.add(micro.completion_mask, entropy=entropy, kl=kl, difference=(old - micro.sampling_logps).abs(),
                              clipped=clipped_tokens(logps, old, micro.take(advantages), epsilon=config.epsilon))
                norms.append(clip_gradients(optimizer, config.max_grad_norm, len(losses)))
                run.stop_if_not_finite(losses, norms[-1], batch)
                take_step(optimizer, learning_rate_at(step, config))
            metrics = {
                "entropy": means.mean("entropy"), "kl": means.mean("kl") if config.beta > 0 else None,
                "clip_ratio/region_mean": means.mean("clipped"), "grad_norm": torch.stack(norms).mean().item(),
                "learning_rate": learning_rate_at(step, config),
                "sampling/sampling_logp_difference/mean": means.mean("difference"),
                "sampling/sampling_logp_difference/max": means.max("difference"),
                "value/states": len(values), "value/continuations": len(values) * config.mc_samples,
                "value/frac_mixed": sum(0 < value < 1 for value in values.values()) / max(1, len(values)),
                "value/mean_abs_advantage": sum(abs(a) for row in steps for a in row) / sum(map(len, steps))}

        # 7 sync the sampler
        with run.timer("sync"):
            engine.sync()

        # 8 evaluate, log, save
        with run.timer("evaluate"):
            evaluation = evaluate(engine, held_out, config, reward) if run.due_for_evaluation else {}
        run.log({**batch_metrics(batch, rewards), **sampler.metrics(chosen), **metrics, **reward.failures, **evaluation})
        run.save_if_due()


if __name__ == "__main__":
    run_script(train, CONFIG)
