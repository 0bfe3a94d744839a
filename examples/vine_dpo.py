"""Vine-DPO: from each state of a completion continuations are sampled, and a right one is preferred to a wrong one.

Base: train_vineppo.py, changed in phases 4, 5 and 6
Paper: MCTS-DPO (arXiv 2405.00451) for step-level preferences; the states and continuations are those of VinePPO (2410.01679)
Changes: the continuations are trained on, in pairs, with DPO's loss (2305.18290); the completions only make the states
Cost: the sampling of the base; passes over two continuations per state that has both kinds, and the reference pass
When: values by continuations are paid for anyway, and credit as a preference is to be compared with credit as a difference of values

A state is the prompt and the first steps of a completion. Its K continuations are right or wrong. If there are both, the first right and
the first wrong one are a pair. h = sum of the logps over the continuation - the same of the reference policy. The loss of a pair is
-log sigmoid(beta (h of the right one - h of the wrong one)). The tokens before the fork are prompt, and have no loss.

Deviations: LoRA instead of full fine-tuning.
- The paper finds steps with tree search and compares the best and the worst child. Here whole continuations are compared.
- The paper smooths the label of a pair by the visits of its children in the tree. Each continuation is visited once. The smoothing would
  always be 1/2, which has no gradient at the reference policy. The verifier's labels are exact: --label_smoothing is 0 by default.
- Two states with the same right and the same wrong text give one pair. A step without a pair has no update.
- There are no importance weights (--importance_cap 0).
What to know: states with values near 0 or 1 seldom have both kinds of continuations: at K 9 a state of value 0.1 has a pair with
probability 0.61. Watch pairs/number. Wrong continuations are often longer, and DPO may learn the length: see pairs/length_right and
pairs/length_wrong. With --mc_max_states 1 this is online DPO on groups of K.

    python examples/vine_dpo.py --beta 0.1
"""
from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/examples/")[0])  # finds common/ from anywhere

from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports, which take seconds, is no stack trace

import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import for_programs, parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    num_iterations: int = flag(2, "update", "Passes over the completions of a step.")
    num_minibatches: int = flag(8, "update", "Optimiser steps per pass.")
    mc_samples: int = flag(9, "algorithm", "Continuations per state, K. Paper: 9.")
    mc_max_states: int = flag(
        0, "algorithm", "Number of states per completion, from the first, that get continuations. 0: all.")
    step_split: str = flag(
        "lines", "algorithm", "Where steps begin: lines, math (sentences, as the paper does for MATH), or tokens:N (every N tokens).")
    beta: float = flag(0.1, "algorithm", "Scale of log-ratios to the reference policy. Shorter steps away from it: a larger beta.")
    label_smoothing: float = flag(0.0, "algorithm", "Probability with which a pair counts the other way round.")
    importance_cap: float = flag(0.0, "update", "No importance weights: the loss is not a policy gradient of tokens. 0 alone works.")

    tiny_defaults: ClassVar[dict[str, Any]] = {**CommonConfig.tiny_defaults, "mc_samples": 3, "num_iterations": 1, "num_minibatches": 4}

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        if self.importance_cap or self.importance_floor or self.sample_ahead or self.loss_aggregation != "token-mean":
            raise UserError("--importance_cap, --importance_floor, --sample_ahead and --loss_aggregation do nothing here: leave them out")
        super().check()
        if self.mc_samples < 2 or self.mc_max_states < 0:
            raise UserError(f"--mc_samples {self.mc_samples} --mc_max_states {self.mc_max_states}: give 2 or more samples (9 in the "
                            "paper), and 0 (all) or more states")
        if not re.fullmatch("lines|math|tokens:[1-9][0-9]*", self.step_split):
            raise UserError(f"--step_split {self.step_split}: give lines, math, or tokens:N as tokens:100")
        if self.beta <= 0 or not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"--beta {self.beta} --label_smoothing {self.label_smoothing}: give a beta above 0, and 0 or less than 0.5")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.policy.load import load_policy
from common.policy.loss import aggregate, kl_estimate
from common.policy.micro_batches import MicroBatch, microbatches, minibatches
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step
from common.policy.policy import all_logps
from common.policy.pretrained import context_length, load_tokenizer
from common.problems.choose import ProblemSampler
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import SUCCESS_ABOVE, Completion, Problem, Request, derive_seed, make_batch, prompts_of
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


def pair_of(continuations: list[Completion], rewards: list[float], keep_cut_off: bool = True) -> list[Completion]:
    """[the first right, the first wrong continuation] of a state. Empty if there are not both. One with a reward above 0.5 is right.

    rewards: one for each continuation. keep_cut_off: whether those at the length limit may be the wrong one.
    """
    right = [c for c, reward in zip(continuations, rewards, strict=True) if reward > SUCCESS_ABOVE]
    wrong = [c for c in continuations if c not in right and (keep_cut_off or c.finish_reason != "length")]
    return [right[0], wrong[0]] if right and wrong else []


def dpo_loss(logps: Tensor, ref_logps: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Loss of each pair (P,): -(1 - s) log sigmoid(m) - s log sigmoid(-m), s the label smoothing. DPO (arXiv 2305.18290) equation 7.

    m = beta (h of the right one - h of the wrong one), h = logps - ref_logps. logps, ref_logps (P, 2) nats: sums over the tokens of the
    right and of the wrong continuation. logps [-4, -5], ref_logps [-4.4, -4.8], beta 0.1: 0.663597; with smoothing 0.2: 0.675597.
    """
    margin = beta * (logps - ref_logps).diff(dim=1)[:, 0]  # (P,): -m
    return (1 - label_smoothing) * F.softplus(margin) + label_smoothing * F.softplus(-margin)

# ---------------------------------------------------------------------------------------------------------------------


def compare_continuations(states: list[State], engine: Engine, reward: Reward, tokenizer: PreTrainedTokenizerBase, config: Config, run: Run,
                          ) -> tuple[dict[State, float], list[tuple[Problem, list[Completion]]]]:
    """The value of each state, and the pairs: a problem whose prompt is prompt and prefix, with a right and a wrong continuation.

    The value of a state is the mean reward of K continuations that are sampled from it. Equal states get one value.

    A continuation may have as many tokens as the length limit leaves after the prefix. Its reward is that of prefix and continuation
    together. The run counts the tokens of continuations too.
    """
    states = list(dict.fromkeys(states))  # each state once; completions of a problem may begin alike
    requests = [
        Request((*problem.prompt_ids, *prefix), derive_seed(config.seed, "values", run.step, problem.id, *prefix), config.mc_samples,
                config.max_completion_length - len(prefix), config.temperature, config.top_p, tuple(config.stop or ()))
        for problem, prefix in states]
    groups = engine.generate(requests)
    run.count([completion for group in groups for completion in group])
    # prefix and continuation joined into one completion, whose text the reward judges
    whole = [join(tokenizer, state.prefix, completion, config.stop)
             for state, group in zip(states, groups, strict=True) for completion in group]
    scores = reward([state.problem for state in states for _ in range(config.mc_samples)], whole).reshape(len(states), config.mc_samples)
    pairs = {}  # by their texts
    for (problem, prefix), group, row in zip(states, groups, scores.tolist(), strict=True):
        if pair := pair_of(group, row, not config.mask_truncated_completions):
            asked = replace(problem, prompt_ids=(*problem.prompt_ids, *prefix))
            pairs.setdefault((problem.id, *((*prefix, *continuation.ids) for continuation in pair)), (asked, pair))
    return dict(zip(states, scores.mean(dim=1).tolist(), strict=True)), list(pairs.values())


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
        # cut completions into steps, sample continuations of each state before a step, and pair a right one with a wrong one
        with run.timer("value"):
            starts = [step_starts(c.text, token_offsets(tokenizer, c.ids), config.step_split) for c in batch.completions]
            # states[i][j]: before step j of completion i; state_values has the same shape
            # a fork's completion may be longer than a continuation can reach: no value is sampled there
            reached = [[x for x in s if x < config.max_completion_length] for s in starts]
            most = config.mc_max_states
            states = [states_of(p, c.ids, s, most) for p, c, s in zip(batch.problems, batch.completions, reached, strict=True)]
            values, found = compare_continuations([state for row in states for state in row], engine, reward, tokenizer, config, run)
            rewards = verify(chosen, reward)  # the continuations may have lowered the reward of completions that were cut off
            state_values = [[values[state] for state in row] for row in states]
        run.log_completions(batch, rewards, rewards - torch.tensor([v[0] for v in state_values]),
                            step_starts=starts, state_values=state_values)
        # a row for each continuation: that of pair i which is right is 2 i, and the wrong one 2 i + 1
        pairs = make_batch([problem for problem, _ in found], [pair for _, pair in found]) if found else None

        # 5 log-probs before the update
        engine.sleep()  # gives up memory that only sampling needs, until it samples again
        if pairs is not None:
            mask, rows = pairs.loss_mask(), torch.arange(len(pairs))
            with run.timer("update"):
                old_logps = all_logps(policy, pairs, rows, config.max_tokens_per_microbatch)  # (2 P, T) nats
                with policy.reference():  # the policy before training: the base model, or the adapter of --adapter
                    ref_logps = all_logps(policy, pairs, rows, config.max_tokens_per_microbatch)
            ref = (ref_logps * mask).sum(dim=1).reshape(-1, 2)  # (P, 2): of whole continuations

        # 6 update
        def loss_of(micro: MicroBatch, divisor: float) -> tuple[Tensor, dict[str, Tensor]]:
            """The loss of b continuations, and numbers (b, T) to log. Their coefficients are dloss / dlogps of the step's pairs."""
            logps, entropy = policy.logps(micro, entropy=True)  # (b, T) nats, both with a gradient
            loss = aggregate(micro.take(coefficients)[:, None] * logps, micro.mask, "seq-mean-token-sum", divisor)
            return loss, {"entropy": entropy, "kl": kl_estimate(logps, micro.take(ref_logps), "k3"),
                          "difference": (micro.take(old_logps) - micro.sampling_logps).abs()}

        with run.timer("update"):
            means, norms = TokenMeans(), []
            # one optimiser step per minibatch; a minibatch is cut into micro-batches of b completions that fit in memory
            for part in minibatches(len(found), config.num_iterations, config.num_minibatches, config.seed, step) if found else ():
                minibatch = torch.cat([2 * part, 2 * part + 1])  # both rows of each pair
                logps = all_logps(policy, pairs, minibatch, config.max_tokens_per_microbatch) if norms else old_logps
                totals = (logps * mask).sum(dim=1).requires_grad_()  # (2 P,), whose gradient is asked for
                each = dpo_loss(totals.reshape(-1, 2)[part], ref[part], beta=config.beta, label_smoothing=config.label_smoothing)
                (coefficients,), losses = torch.autograd.grad(each.mean(), totals), []  # coefficients (2 P,)
                for micro in microbatches(pairs, minibatch, config.max_tokens_per_microbatch, policy, mask):
                    loss, numbers = loss_of(micro, 1.0)
                    loss.backward()  # gradients of the micro-batches add up
                    losses.append((micro.rows, loss.detach()))
                    means.add(micro.mask, **numbers)
                norms.append(clip_gradients(optimizer, config.max_grad_norm, len(losses)))
                run.stop_if_not_finite(losses, norms[-1], pairs)  # ends the run before NaN can reach the weights
                take_step(optimizer, learning_rate_at(step, config))
            metrics = {
                "entropy": means.mean("entropy"), "kl": means.mean("kl"), "grad_norm": torch.stack(norms).mean().item() if found else None,
                "learning_rate": learning_rate_at(step, config),
                "sampling/sampling_logp_difference/mean": means.mean("difference"),
                "sampling/sampling_logp_difference/max": means.max("difference"),
                "value/states": len(values), "value/continuations": len(values) * config.mc_samples, "pairs/number": len(found),
                **({f"pairs/length_{kind}": pairs.lengths[i::2].float().mean().item() for i, kind in enumerate(("right", "wrong"))}
                   if found else {})}

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
