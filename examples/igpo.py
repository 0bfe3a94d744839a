"""IGPO: a reasoning step is rewarded if it makes the reference answer more likely.

Base: train_vineppo.py, changed in phases 4, 5 and 6
Paper: IGPO (arXiv 2510.14967), information gain, here within a single turn
Changes: V of a state is the probability of the reference answer, forced behind it; gains and outcome are standardised in the group
Cost: one forward pass per state over prompt, prefix and answer; no continuations are sampled
When: step-level credit is wanted and VinePPO's continuations cost too much; it is a biased estimate of the same thing

V(s) = exp(mean log-prob of the tokens of the reference answer behind s and --answer_cue). The reward of a step is its gain V(next state) -
V(state). The last step has the reward of the completion in its place. Gains and outcomes are standardised within the problem's completions.
The advantage of a step is the sum of its own reward and those of the later steps (gamma 1).

Deviations: those of train_vineppo.py on the policy's side. A step is a line of one completion, and in the paper a turn of a dialogue.
- Gains and outcomes are standardised apart from each other, and the gains weigh --gain_weight 0.1. The paper standardises them together
  with weight 1: --joint_scale --gain_weight 1. Others report that runs with weights of 0.5 and more diverged.
- There is no KL term by default (--beta).
What to know: the probability of one spelling is not the probability of success: 1/2 is not 0.5. It rewards a policy that blurts the answer
out early. Behind the answer V is near 1. --answer_cue must be how the completions lead to the answer: \n#### for the form of GSM8K.
With --gain_weight 0 the advantages are GRPO's.

    python examples/igpo.py --gain_weight 0.1
"""
from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/examples/")[0])  # finds common/ from anywhere

from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports, which take seconds, is no stack trace

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import for_programs, parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    num_iterations: int = flag(2, "update", "Passes over the completions of a step.")
    num_minibatches: int = flag(8, "update", "Optimiser steps per pass.")
    gain_weight: float = flag(0.1, "algorithm", "Weight of the standardised gains of steps, beside 1 of the outcome. Paper: 1.")
    joint_scale: bool = flag(False, "algorithm", "Standardise gains and outcomes of a problem together (paper), not apart.")
    answer_cue: str = flag(
        "\n\nThe final answer is \\boxed{", "algorithm", "Text before the answer when its probability is asked for. \\n is a newline.")
    step_split: str = flag(
        "lines", "algorithm", "Where steps begin: lines, math (sentences, as the paper does for MATH), or tokens:N (every N tokens).")
    epsilon: float = flag(0.2, "algorithm", "The ratio is clipped to the range 1 - epsilon to 1 + epsilon.")

    tiny_defaults: ClassVar[dict[str, Any]] = {
        **CommonConfig.tiny_defaults, "answer_cue": "\n#### ", "num_iterations": 1, "num_minibatches": 4}

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        super().check()
        if self.num_generations < 2 or self.gain_weight < 0 or self.reward:
            raise UserError(f"--num_generations {self.num_generations} --gain_weight {self.gain_weight} --reward {self.reward}: give 2 or "
                            "more completions and a weight of 0 or more; leave --reward out, which may have no reference answers")
        if not re.fullmatch("lines|math|tokens:[1-9][0-9]*", self.step_split):
            raise UserError(f"--step_split {self.step_split}: give lines, math, or tokens:N as tokens:100")
        if not 0 <= self.epsilon < 1:
            raise UserError(f"--epsilon {self.epsilon}: give a number from 0 to below 1, as 0.2")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.policy.load import load_policy
from common.policy.loss import aggregate, importance_weights, kl_estimate, loss_divisor
from common.policy.micro_batches import MicroBatch, microbatches, minibatches
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step
from common.policy.policy import Policy, all_logps
from common.policy.pretrained import context_length, load_tokenizer
from common.policy.skipped import check_skipped
from common.problems.choose import ProblemSampler
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import Completion, Problem, make_batch, prompts_of
from common.rollout.choose_engine import connect, make_engine
from common.rollout.reasoning_steps import split_steps
from common.rollout.rounds import evaluate, sample, verify
from common.rollout.text import token_offsets
from common.run.metrics import TokenMeans, batch_metrics
from common.run.preflight import preflight
from common.run.run import Run
from common.verify.rewards import make_reward

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


def forced_tokens(tokenizer: PreTrainedTokenizerBase, cue: str, answer: str) -> tuple[list[int], list[int]]:
    """(tokens of the cue, tokens of the answer as it stands behind the cue). A token with parts of both belongs to the answer."""
    ids = tokenizer.encode(cue + answer, add_special_tokens=False)
    first = bisect_right(token_offsets(tokenizer, ids), len(cue)) - 1
    return ids[:first], ids[first:]


def answer_values(logps: Tensor, mask: Tensor) -> Tensor:
    """exp(mean of the answer's log-probs), (S,), in 0 to 1. logps (S, A) nats, mask (S, A) bool. [-2, -1] -> 0.223130."""
    return torch.exp(torch.where(mask, logps, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1))


def standardised(x: Tensor) -> Tensor:
    """(x - mean) / (standard deviation of the population + 1e-6), (N,). All 0 if the numbers are equal."""
    return (x - x.mean()) / (x.std(correction=0) + 1e-6) if len(x) and x.min() < x.max() else torch.zeros_like(x)


def igpo_advantages(gains: list[list[float]], rewards: list[float], *, weight: float, joint: bool) -> list[list[float]]:
    """The advantages of the steps of each completion of one problem. IGPO section 3.

    gains: of each step but the last. rewards: one for each completion. Both are standardised, the gains multiplied by `weight`, and the
    numbers of a step and of all later ones added up. joint: gains and rewards are standardised together.
    Gains [0.1, 0.3] and [-0.2], rewards 1 and 0, weight 1: [2.297763, 2.135542, 0.999998] and [-2.297763, -0.999998].
    """
    parts = torch.tensor([gain for row in gains for gain in row]), torch.tensor(rewards)
    steps, last = standardised(torch.cat(parts)).split([len(part) for part in parts]) if joint else map(standardised, parts)
    queue = iter((weight * steps).tolist())
    rows = [[*(next(queue) for _ in row), outcome] for row, outcome in zip(gains, last.tolist(), strict=True)]
    return [list(accumulate(reversed(row)))[::-1] for row in rows]


def token_advantages(advantages: list[float], starts: list[int], length: int) -> list[float]:
    """The advantage of each token: that of its step. advantages: one per step. starts: first token of each step. length: tokens.

    [0.5, -1], starts [0, 3], length 5 -> [0.5, 0.5, 0.5, -1, -1]. The end token belongs to the last step.
    """
    return [advantage for advantage, (start, end) in zip(advantages, pairwise([*starts, length]), strict=True)
            for _ in range(start, end)]


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


def estimate_values(states: list[State], policy: Policy, tokenizer: PreTrainedTokenizerBase, config: Config) -> dict[State, float]:
    """The value of each state: the probability per token that the policy gives to the reference answer behind it and the cue."""
    states = list(dict.fromkeys(states))  # each state once; completions of a problem may begin alike
    cue = config.answer_cue.replace("\\n", "\n")  # as typed in a shell
    forced = {problem: forced_tokens(tokenizer, cue, problem.answer) for problem, _ in states}
    asked = [replace(problem, prompt_ids=(*problem.prompt_ids, *prefix, *forced[problem][0])) for problem, prefix in states]
    answers = [[Completion(ids, [0.0] * len(ids), "stop", "")] for ids in (forced[problem][1] for problem, _ in states)]
    batch = make_batch(asked, answers)
    logps = all_logps(policy, batch, torch.arange(len(batch)), config.max_tokens_per_microbatch)  # (S, A)
    return dict(zip(states, answer_values(logps, batch.loss_mask()).tolist(), strict=True))


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
        # cut completions into steps, ask for the probability of the answer before each step, and take differences
        engine.sleep()  # gives up memory that only sampling needs, until it samples again
        with run.timer("value"):
            starts = [step_starts(c.text, token_offsets(tokenizer, c.ids), config.step_split) for c in batch.completions]
            # states[i][j]: before step j of completion i; state_values has the same shape
            states = [[State(p, tuple(c.ids[:x])) for x in s] for p, c, s in zip(batch.problems, batch.completions, starts, strict=True)]
            values = estimate_values([state for row in states for state in row], policy, tokenizer, config)
            state_values = [[values[state] for state in row] for row in states]
        gains = [[after - before for before, after in pairwise(row)] for row in state_values]
        # steps[i][j]: the advantage of step j of completion i; each token gets that of its step
        steps = [row for group in batch.group_ids.unique() for row in igpo_advantages(
            *([x[i] for i in (batch.group_ids == group).nonzero()[:, 0]] for x in (gains, rewards.tolist())),
            weight=config.gain_weight, joint=config.joint_scale)]
        advantages = torch.zeros(mask.shape)  # (B, T)
        for i, (a, s, c) in enumerate(zip(steps, starts, batch.completions, strict=True)):
            advantages[i, :len(c.ids)] = torch.tensor(token_advantages(a, s, len(c.ids)))
        run.log_completions(batch, rewards, torch.where(mask, advantages, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1),
                            token_advantages=advantages, step_starts=starts, state_values=state_values)
        # without a KL term a completion whose advantages are all 0 has gradient 0: it gets no pass, but counts in the loss divisor
        needs_pass = mask.any(dim=1) & ((advantages != 0).any(dim=1) | (config.beta > 0))  # (B,)

        # 5 log-probs before the update
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
                "value/states": len(values), "value/mean_gain": sum(map(sum, gains)) / max(1, sum(map(len, gains))),
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
