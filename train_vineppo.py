"""VinePPO: trains a LoRA policy with PPO's loss. The advantages belong to reasoning steps and come from Monte-Carlo values.

The value V(s) of a state s is the mean reward of K continuations that are sampled from s. The advantage of a reasoning step is the value
after the step minus the value before it. Paper: VinePPO (arXiv 2410.01679), section 4. docs/vineppo.md has the equations and the flag
set of the paper.

Deviations from the official code:
- LoRA instead of full fine-tuning.
- A state is a list of token ids, cut before the first token of a step. The official code cuts the text and tokenises it again.
- A continuation may be as long as the rest of the completion's length limit. In the official code it has the whole limit again.
- No completion is dropped because of its form.
- No KL term by default (--beta).
- Importance weights correct for the difference between sampler and trainer (--importance_cap).

    python train_vineppo.py                                                        # tiny model, CPU, a few minutes
    python train_vineppo.py --model Qwen/Qwen2.5-1.5B-Instruct --dataset gsm8k     # one GPU; --plan_memory 24: does it fit 24 GB?
"""
from __future__ import annotations

from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports, which take seconds, is no stack trace

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import for_programs, parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    num_iterations: int = flag(2, "update", "Passes over the completions of a step.")
    num_minibatches: int = flag(8, "update", "Optimiser steps per pass.")
    mc_samples: int = flag(9, "algorithm", "Continuations per state, K. Paper: 9.")
    mc_max_states: int = flag(
        0, "algorithm", "Number of states per completion, from the first, that get a value. Later ones take the reward. 0: all.")
    step_split: str = flag(
        "lines", "algorithm", "Where steps begin: lines, math (sentences, as the paper does for MATH), or tokens:N (every N tokens).")
    v0: Literal["fresh", "group"] = flag(
        "fresh", "algorithm", "Value of the bare prompt. fresh: by continuations (paper). group: mean reward of the other completions.")
    whiten_advantages: bool = flag(True, "algorithm", "Shift and scale advantages to mean 0 and variance 1 over all tokens of a step.")
    epsilon: float = flag(0.2, "algorithm", "The ratio is clipped to the range 1 - epsilon to 1 + epsilon.")

    tiny_defaults: ClassVar[dict[str, Any]] = {**CommonConfig.tiny_defaults, "mc_samples": 3, "num_iterations": 1, "num_minibatches": 4}

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        super().check()
        if self.mc_samples < 1 or self.mc_max_states < 0:
            raise UserError(f"--mc_samples {self.mc_samples} --mc_max_states {self.mc_max_states}: give 1 or more samples (9 in the "
                            "paper), and 0 (all) or more states")
        if not re.fullmatch("lines|math|tokens:[1-9][0-9]*", self.step_split):
            raise UserError(f"--step_split {self.step_split}: give lines, math, or tokens:N as tokens:100")
        if self.v0 == "group" and self.num_generations < 2:
            raise UserError("--v0 group needs a group: give --num_generations 2 or more, or --v0 fresh")
        if not 0 <= self.epsilon < 1:
            raise UserError(f"--epsilon {self.epsilon}: give a number from 0 to below 1, as 0.2")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.policy.load import load_policy
from common.policy.loss import aggregate, importance_weights, kl_estimate, loss_divisor, whiten
from common.policy.micro_batches import MicroBatch, microbatches, minibatches
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step
from common.policy.policy import all_logps
from common.policy.pretrained import context_length, load_tokenizer
from common.policy.skipped import check_skipped
from common.problems.choose import ProblemSampler
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import Problem, Request, derive_seed, make_batch, prompts_of
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

MAX_KL = 10.0  # highest KL of a token that enters the loss, nats; as in the official code


def step_starts(text: str, offsets: list[int], rule: str) -> list[int]:
    r"""The token index at which each reasoning step begins: strictly increasing from 0. No tokens give an empty list.

    offsets: for each token the place of its first character in the text (see `token_offsets`). rule: as `--step_split`.
    A step begins with the first token whose first character is at the step's boundary or after it. Steps that would begin with the
    same token become one step. A stop string cuts the text but not the tokens: tokens after the end of the text belong to the last step.
    The text "A\nB\nC" in tokens "A", "\n", "B", "\nC", end token has offsets [0, 1, 2, 3, 5]. Its steps start at [0, 1, 3].

    With the rule "tokens:N" every N-th token begins a step, and the text does not matter.
    """
    if rule.startswith("tokens:"):
        return list(range(0, len(offsets), int(rule.removeprefix("tokens:"))))
    starts = {bisect_left(offsets, cut) for cut in split_steps(text, rule)[1:-1]}
    return [0, *sorted(i for i in starts if 0 < i < len(offsets) and offsets[i] < len(text))] if offsets else []


class State(NamedTuple):
    """A place at which a reasoning step begins: the problem, and the tokens of the completion before this place."""

    problem: Problem
    prefix: tuple[int, ...]  # token ids; empty for the bare prompt


def states_of(problem: Problem, ids: list[int], starts: list[int], most: int) -> list[State]:
    """The states before the steps of a completion. The first one is the bare prompt. At most `most` states (0: all).

    ids: tokens of the completion. starts: as from `step_starts`. The end of a completion is not a state, because nothing is sampled
    there (section 4.1).
    """
    return [State(problem, tuple(ids[:start])) for start in starts[:most or None]]


def step_advantages(state_values: list[float], reward: float, num_steps: int) -> list[float]:
    """The advantage of each step: V(next state) - V(state). For the last step: reward - V(state). VinePPO section 4.1, gamma 1.

    state_values: V before the first steps, for 1 to num_steps of them; else ValueError. Later states have the reward as their value.
    The advantages add up to reward - V(first state).
    [5/9, 7/9, 4/9], reward 1, 3 steps -> [0.222, -0.333, 0.556]. [4/9, 6/9], reward 0, 4 steps -> [0.222, -0.667, 0, 0].
    """
    if not 1 <= len(state_values) <= num_steps:
        raise ValueError(f"{len(state_values)} values for {num_steps} steps: give 1 to {num_steps}")
    values = [*state_values, *[reward] * (num_steps + 1 - len(state_values))]  # the last value is the reward, which belongs to the end
    return [after - before for before, after in pairwise(values)]


def token_advantages(advantages: list[float], starts: list[int], length: int) -> list[float]:
    """The advantage of each token: that of its step. advantages: one per step. starts: first token of each step. length: tokens.

    [0.5, -1], starts [0, 3], length 5 -> [0.5, 0.5, 0.5, -1, -1]. The end token belongs to the last step.
    """
    return [advantage for advantage, (start, end) in zip(advantages, pairwise([*starts, length]), strict=True)
            for _ in range(start, end)]


def others_mean(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """The mean reward (B,) of the other completions in the group, for `--v0 group`.

    rewards (B,), group_ids (B,) int64. One group [1, 0, 0] -> [0, 0.5, 0.5]. A completion alone in its group gets 0.
    """
    _, group = group_ids.unique(return_inverse=True)
    total, size = (torch.bincount(group, weights)[group] for weights in (rewards.double(), None))
    return ((total - rewards) / (size - 1).clamp(min=1)).float()


def ppo_token_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, epsilon: float) -> Tensor:
    """Loss of each token (B, T): -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A). PPO (arXiv 1707.06347) equation 7.

    ratio = exp(logps - old_logps); logps, old_logps (B, T) nats. A: advantages (B, T).
    Ratio 1.35 and epsilon 0.2: with A 1 the loss is -1.2 and has no gradient. With A -1 it is 1.35 and has one.
    """
    ratio = torch.exp(logps - old_logps)  # (B, T)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)


def clipped_tokens(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, epsilon: float) -> Tensor:
    """(B, T) bool: True on tokens without gradient, because their ratio is beyond the clip. Arguments as in `ppo_token_loss`."""
    ratio = torch.exp(logps - old_logps)
    return ((ratio > 1 + epsilon) & (advantages > 0)) | ((ratio < 1 - epsilon) & (advantages < 0))

# ---------------------------------------------------------------------------------------------------------------------


def estimate_values(states: list[State], engine: Engine, reward: Reward, tokenizer: PreTrainedTokenizerBase, config: Config, run: Run,
                    ) -> tuple[dict[State, float], float]:
    """The value of each state: the mean reward of K continuations that are sampled from it. Equal states get one value.

    The second result is the share of mixed states, whose continuations do not all have the same reward.

    A continuation may have as many tokens as the length limit leaves after the prefix. Its reward is that of prefix and continuation
    together. The run counts the tokens of continuations too.
    """
    states = list(dict.fromkeys(states))  # each state once; completions of a problem may begin alike
    requests = [
        Request((*problem.prompt_ids, *prefix), derive_seed(config.seed, "values", run.step, problem.id, *prefix), config.mc_samples,
                config.max_completion_length - len(prefix), config.temperature, config.top_p, tuple(config.stop or ()))
        for problem, prefix in states]
    groups = engine.generate(requests) if requests else []  # no request: --v0 group, and every completion has one step
    run.count([completion for group in groups for completion in group])
    # prefix and continuation joined into one completion, whose text the reward judges
    whole = [join(tokenizer, state.prefix, completion, config.stop)
             for state, group in zip(states, groups, strict=True) for completion in group]
    scores = reward([state.problem for state in states for _ in range(config.mc_samples)], whole).reshape(len(states), config.mc_samples)
    mixed = int((scores != scores[:, :1]).any(dim=1).sum()) / max(1, len(states))
    return dict(zip(states, scores.mean(dim=1).tolist(), strict=True)), mixed


def train(config: Config) -> None:
    """Runs `config.max_steps` steps. Writes metrics, completions and checkpoints to the run folder. Raises UserError."""
    run = Run(config, Path(__file__))  # the run folder, its files, and the number of the step
    reward = make_reward(config)  # everything that can fail without a model comes before the model
    rows = load_rows(config)  # (training rows, held-out rows): questions and reference answers as text
    tokenizer, model_config = load_tokenizer(config)
    template = load_template(config, tokenizer)  # turns a question into a prompt
    config.derive(stop=config.stop or list(template.stop))  # strings that end a completion
    problems, held_out = make_problems(rows, config, template, tokenizer, context_length(model_config))
    run.identify(tokenizer, template.render("?"), problems, held_out)  # a resumed run must be made of the same as before
    engine = make_engine(config, tokenizer, model_config, prompts_of(problems + held_out))
    policy = load_policy(config, tokenizer, model_config, engine)  # the frozen base, and the LoRA adapter "default" that is trained
    optimizer = make_optimizer(policy.parameters_of("default"), config.learning_rate, config.optim)
    fill = partial(sample, engine=engine, config=config)  # samples the completions that groups still lack
    sampler = ProblemSampler(problems, config, fill, reward, run)  # chooses the problems of each step
    preflight(engine, policy, config, problems + held_out)  # on a GPU: does the largest micro-batch fit?
    run.start(policy, {"optimizer": optimizer, "sampler": sampler, "reward": reward})
    connect(engine, policy)  # the engine now samples from the policy; a check compares their log-probs
    if config.eval_steps and run.step == 0:  # step 0: the model before training
        run.log(evaluate(fill, held_out, config, reward))

    for step in run.steps():
        # 1 choose problems
        chosen = sampler.choose(step)  # one Group per problem; some ways of --sampling have already sampled and scored completions

        # 2 sample completions
        with run.timer("sample"):
            run.count(fill(chosen))  # samples the completions that the groups still lack
            batch = make_batch([group.problem for group in chosen], [group.completions for group in chosen])  # B completions

        # 3 verify
        with run.timer("verify"):
            rewards = verify(chosen, reward)  # (B,) float32: one reward per completion, in the order of the batch
            sampler.record()  # remembers how often each problem was solved

        # 4 advantages
        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T): tokens in the loss
        # cut completions into steps, estimate the value of each state before a step, and take differences
        with run.timer("value"):
            starts = [step_starts(c.text, token_offsets(tokenizer, c.ids), config.step_split) for c in batch.completions]
            most = [config.mc_max_states if used else 1 for used in mask.any(dim=1).tolist()]  # not in the loss: only V(prompt)
            # states[i][j]: before step j of completion i; state_values has the same shape
            # a fork's completion may be longer than a continuation can reach: no value is sampled there
            reached = [[x for x in s if x < config.max_completion_length] for s in starts]
            states = [states_of(p, c.ids, s, m) for p, c, s, m in zip(batch.problems, batch.completions, reached, most, strict=True)]
            sampled = [state for row in states for state in row[config.v0 == "group":]]
            values, frac_mixed = estimate_values(sampled, engine, reward, tokenizer, config, run)
            rewards = verify(chosen, reward)  # the continuations may have lowered the reward of completions that were cut off
            known = others_mean(rewards, batch.group_ids).tolist() if config.v0 == "group" else None  # V(prompt), not sampled
            state_values = [[values[state] if known is None or state.prefix else known[i] for state in row] for i, row in enumerate(states)]
        # steps[i][j]: the advantage of step j of completion i; each token gets that of its step
        steps = [step_advantages(v, r, len(s)) for v, r, s in zip(state_values, rewards.tolist(), starts, strict=True)]
        advantages = torch.zeros(mask.shape)  # (B, T)
        for i, (a, s, c) in enumerate(zip(steps, starts, batch.completions, strict=True)):
            advantages[i, :len(c.ids)] = torch.tensor(token_advantages(a, s, len(c.ids)))
        run.log_completions(batch, rewards, rewards - torch.tensor([v[0] for v in state_values]),
                            token_advantages=advantages, step_starts=starts, state_values=state_values)
        if config.whiten_advantages:  # after the log, which keeps advantages as differences of values
            advantages = whiten(advantages, mask)
        # without a KL term a completion whose advantages are all 0 has gradient 0: it gets no pass, but counts in the loss divisor
        needs_pass = mask.any(dim=1) & ((advantages != 0).any(dim=1) | (config.beta > 0))  # (B,)

        # 5 log-probs before the update
        engine.sleep()  # gives up memory that only sampling needs, until it samples again
        old_logps = ref_logps = None  # (B, T) nats: by the policy before the update, and by the reference policy; None: not needed
        with run.timer("update"):
            trained = needs_pass.nonzero()[:, 0]  # numbers of the rows that get a pass
            if config.num_iterations * config.num_minibatches > 1:  # with a single update, its own forward pass gives the old log-probs
                old_logps = all_logps(policy, batch, trained, config.max_tokens_per_microbatch)
            if config.beta > 0:
                with policy.reference():  # the policy before training: the base model, or the adapter of --adapter
                    ref_logps = all_logps(policy, batch, trained, config.max_tokens_per_microbatch)

        # 6 update
        def loss_of(micro: MicroBatch, divisor: float, sequences: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
            """The loss of b completions, and numbers (b, T) to log. It may use all of phase 4, and entropy and kl with their gradients."""
            logps, entropy = policy.logps(micro, entropy=True)  # (b, T) nats, both with a gradient
            old = logps.detach() if old_logps is None else micro.take(old_logps)  # (b, T)
            token_loss = ppo_token_loss(logps, old, micro.take(advantages), epsilon=config.epsilon)  # (b, T)
            importance = importance_weights(old, micro.sampling_logps, micro.mask, **config.importance)  # (b, T)
            kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")  # (b, T)
            loss = aggregate(token_loss * importance, micro.mask, config.loss_aggregation, divisor) + config.beta * aggregate(
                kl.clamp(max=MAX_KL), micro.mask, "seq-mean-token-sum", sequences)
            return loss, {"entropy": entropy, "kl": kl, "kept": importance > 0, "difference": (old - micro.sampling_logps).abs(),
                          "clipped": clipped_tokens(logps, old, micro.take(advantages), epsilon=config.epsilon)}

        with run.timer("update"):
            check_skipped(loss_of, policy, batch, mask, needs_pass, step)
            means, norms = TokenMeans(), []
            # one optimiser step per minibatch; a minibatch is cut into micro-batches of b completions that fit in memory
            for minibatch in minibatches(len(batch), config.num_iterations, config.num_minibatches, config.seed, step):
                divisor = loss_divisor(mask[minibatch], config.loss_aggregation, config.max_completion_length)  # of all micro-batches
                sequences, losses = loss_divisor(mask[minibatch], "seq-mean-token-sum"), []  # sequences: divisor of the KL term
                for micro in microbatches(batch, minibatch[needs_pass[minibatch]], config.max_tokens_per_microbatch, policy, mask):
                    loss, numbers = loss_of(micro, divisor, sequences)
                    loss.backward()  # gradients of the micro-batches add up
                    losses.append((micro.rows, loss.detach()))
                    means.add(micro.mask, **numbers)
                norms.append(clip_gradients(optimizer, config.max_grad_norm, len(losses)))
                run.stop_if_not_finite(losses, norms[-1], batch)  # ends the run before NaN can reach the weights
                take_step(optimizer, learning_rate_at(step, config))
            metrics = {
                "entropy": means.mean("entropy"), "kl": means.mean("kl") if config.beta > 0 else None,
                "clip_ratio/region_mean": means.mean("clipped"), "grad_norm": torch.stack(norms).mean().item(),
                "learning_rate": learning_rate_at(step, config),
                "sampling/importance_weights/kept": means.mean("kept") if config.importance_bound == "mask" else None,
                "sampling/sampling_logp_difference/mean": means.mean("difference"),
                "sampling/sampling_logp_difference/max": means.max("difference"),
                "value/states": len(values), "value/continuations": len(values) * config.mc_samples, "value/frac_mixed": frac_mixed,
                "value/mean_abs_advantage": sum(abs(a) for row in steps for a in row) / sum(map(len, steps))}

        # 7 sync the sampler
        with run.timer("sync"):
            engine.sync()  # from now on the engine samples with the updated adapter

        # 8 evaluate, log, save
        with run.timer("evaluate"):  # every --eval_steps and after the last step, on held-out problems
            evaluation = evaluate(fill, held_out, config, reward) if run.due_for_evaluation else {}
        run.log({**batch_metrics(batch, rewards), **sampler.metrics(chosen), **metrics, **reward.failures, **evaluation})
        run.save_if_due()  # every --save_steps, after the last step, and when the run is stopped


train = for_programs(train)  # also after an error its folder is given free


if __name__ == "__main__":
    run_script(train, CONFIG)
