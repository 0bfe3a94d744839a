"""PRIME: a second adapter learns which completions are right, and its log-ratios to the reference are the rewards of tokens.

Base: train_ppo.py, changed in the set-up and phases 4, 5 and 6
Paper: PRIME (arXiv 2502.01456), implicit process rewards
Changes: in place of a critic a reward model; token rewards and outcome, each against the rest of the group; returns to go are advantages
Cost: the reward model has one pass with a gradient for each batch, where the critic has --num_iterations; one pass more without gradient
  (the reference, where the base has none)
When: long solutions, in which the outcome says little about a step, and no extra samples for values can be paid

The reward model phi starts as the policy. beta * sum over the tokens of (logp of phi - logp of the reference) is its logit that the
completion is right. Each step phi first takes one optimiser step on the outcomes of the step's completions, with cross-entropy. Then beta
* (logp of phi - logp of the reference) is the reward of each token but the last, divided by the largest |return to go| of the batch.

Deviations: those of train_ppo.py on the policy's side.
- phi is a second adapter on the frozen base. The reference is the base with the adapters off, or the frozen adapter of --adapter.
- Problems with few or many right completions stay. The paper keeps success rates of 0.2 to 0.8: --sampling dynamic or lilo is near that.
- phi takes one optimiser step for each batch, at ten times the paper's learning rate, as LoRA needs.
What to know: with whitening only the ratio of the weights of process and outcome matters, here --process_weight to 1. prm/accuracy is the
share of completions whose logit has the sign of the outcome, before phi learned from them. While it is near that of a constant guess,
the token rewards mean nothing. --process_weight 0 is RLOO, whitened over the tokens.

    python examples/prime.py --process_weight 1
"""
from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/examples/")[0])  # finds common/ from anywhere

from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports, which take seconds, is no stack trace

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import for_programs, parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    num_iterations: int = flag(2, "update", "Passes over the completions of a step.")
    num_minibatches: int = flag(8, "update", "Optimiser steps per pass.")
    process_weight: float = flag(1.0, "algorithm", "Weight of the token rewards, beside 1 of the outcome. Paper: equal weights.")
    process_beta: float = flag(0.05, "algorithm", "Scale of the log-ratios of the reward model to the reference.")
    prm_learning_rate: float = flag(2e-5, "algorithm", "Peak learning rate of the reward model. It has the schedule of the policy.")
    whiten_advantages: bool = flag(True, "algorithm", "Shift and scale advantages to mean 0 and variance 1 over all tokens of a step.")
    epsilon: float = flag(0.2, "algorithm", "The ratio is clipped to the range 1 - epsilon to 1 + epsilon.")

    tiny_defaults: ClassVar[dict[str, Any]] = {
        **CommonConfig.tiny_defaults, "num_iterations": 1, "num_minibatches": 4, "prm_learning_rate": 1e-3}
    trained_adapters: ClassVar[int] = 2
    needs_reference = True  # also without --beta
    resumable: ClassVar[set[str]] = CommonConfig.resumable | {"prm_learning_rate"}

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        super().check()
        above = self.process_beta, self.prm_learning_rate, self.num_generations - 1
        if not 0 <= self.epsilon < 1 or self.process_weight < 0 or min(above) <= 0:
            raise UserError(f"--epsilon {self.epsilon} --process_weight {self.process_weight} --process_beta {self.process_beta} "
                            f"--prm_learning_rate {self.prm_learning_rate} --num_generations {self.num_generations}: give 0 <= epsilon "
                            "< 1, a weight of 0 or more, a beta and a rate above 0, and 2 or more completions per problem")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
import torch.nn.functional as F
from torch import Tensor

from common import parallel
from common.policy.critic import SecondAdapter
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
from common.records import SUCCESS_ABOVE, make_batch, prompts_of
from common.rollout.choose_engine import connect, make_engine
from common.rollout.rounds import evaluate, sample, verify
from common.run.metrics import TokenMeans, batch_metrics
from common.run.preflight import preflight
from common.run.run import Run
from common.verify.rewards import make_reward

# ---- the algorithm --------------------------------------------------------------------------------------------------

MAX_KL = 10.0  # highest KL of a token that enters the loss, nats; as in the code of VinePPO


def terminal_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """The reward of each token (B, T): the reward of the completion at its last token, and 0 elsewhere.

    rewards (B,), mask (B, T) bool. Reward 1 and mask [True, True, False] -> [0, 1, 0].
    """
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = mask & (columns == (columns * mask).amax(dim=1, keepdim=True))  # the last True of each row
    return torch.where(last, rewards[:, None], 0.0)


def implicit_rewards(logps: Tensor, ref_logps: Tensor, mask: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """(rewards of tokens (B, T), logits (B,) that completions are right): beta (logps - ref_logps), and its sum over the tokens.

    logps, ref_logps (B, T) nats: of the reward model and of the reference. mask (B, T) bool. PRIME equation 3.
    logps [-1, -0.5, -2], ref_logps [-1.3, -0.4, -2.6], beta 0.05: rewards [0.015, -0.005, 0.03], logit 0.04.
    """
    rewards = torch.where(mask, beta * (logps - ref_logps), 0.0)
    return rewards, rewards.sum(dim=1)


def returns_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """The sum (B, T) of the rewards of each token and of those after it; 0 where masked. rewards (B, T), mask (B, T) bool."""
    return torch.where(mask, torch.where(mask, rewards, 0.0).flip(1).cumsum(dim=1).flip(1), 0.0)


def process_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """The rewards (B, T) without that of the last token, over the largest |return to go| of the batch + 1e-6.

    rewards (B, T), mask (B, T) bool. [0.015, -0.005, 0.03] alone: the largest is 0.01, so [1.49985, -0.49995, 0].
    """
    kept = torch.where(mask & (terminal_rewards(torch.ones(len(mask)), mask) == 0), rewards, 0.0)
    return kept / (returns_to_go(kept, mask).abs().max() + 1e-6)


def against_others(x: Tensor, means: Tensor, group_ids: Tensor) -> Tensor:
    """x n / (n - 1) - sum of the group's means / (n - 1), (B, K): each completion against the other ones of its group of n.

    x (B, K). means (B,): of each completion. Rewards x = [[1], [0], [0]] of one group, which are their own means -> [[1], [-0.5], [-0.5]].
    """
    _, group = group_ids.unique(return_inverse=True)
    size, total = (torch.bincount(group, weights)[group, None].to(x) for weights in (None, means))  # (B, 1)
    return (x * size - total) / (size - 1).clamp(min=1)


def prime_advantages(process: Tensor, rewards: Tensor, mask: Tensor, group_ids: Tensor, process_weight: float) -> Tensor:
    """Advantages (B, T): returns to go of token rewards and outcome, each against the others of the group. 0 where masked.

    process (B, T): as from `process_rewards`. rewards (B,), mask (B, T) bool, group_ids (B,) int64.
    """
    tokens = against_others(process, process.sum(dim=1) / mask.sum(dim=1).clamp(min=1), group_ids)
    return returns_to_go(process_weight * tokens + terminal_rewards(against_others(rewards[:, None], rewards, group_ids)[:, 0], mask), mask)


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
    prm = SecondAdapter(policy, "prm", config.seed)  # the reward model, which starts as the policy
    if config.adapter:
        policy.load(Path(config.adapter), "prm")
    prm_optimizer = make_optimizer(prm.parameters(), config.prm_learning_rate, config.optim)
    fill = partial(sample, engine=engine, config=config)  # samples the completions that groups still lack
    sampler = ProblemSampler(problems, config, fill, reward, run)  # chooses the problems of each step
    preflight(engine, policy, config, problems + held_out, prm)  # on a GPU: does the largest micro-batch fit?
    run.start(policy, {"optimizer": optimizer, "prm_optimizer": prm_optimizer, "sampler": sampler, "reward": reward}, prm)
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
        # the reward model learns from the outcomes of this batch; then its log-ratios to the reference are the rewards of the tokens
        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T): tokens in the loss
        rows = mask.any(dim=1).nonzero()[:, 0]  # completions with tokens in the loss
        engine.sleep()  # gives up memory that only sampling needs, until it samples again
        right, rate = (rewards > SUCCESS_ABOVE).float(), learning_rate_at(step, config)
        with run.timer("value"):
            with policy.reference():  # the policy before training: the base model, or the adapter of --adapter
                ref_logps = all_logps(policy, batch, rows, config.max_tokens_per_microbatch)  # (B, T) nats
            logits, losses = torch.zeros(len(batch)), []
            with prm.active():  # its forward, backward and step end before the policy's adapter is switched on
                for micro in microbatches(batch, rows, config.max_tokens_per_microbatch, policy, mask):
                    _, logit = implicit_rewards(prm.values(micro), micro.take(ref_logps), micro.mask, config.process_beta)  # (b,)
                    loss = F.binary_cross_entropy_with_logits(logit, micro.take(right), reduction="sum") / len(rows)
                    loss.backward()
                    losses.append((micro.rows, loss.detach()))
                    logits[micro.rows] = logit.detach().cpu()
                run.stop_if_not_finite(losses, clip_gradients(prm_optimizer, 10.0, len(losses)), batch)  # 10: the norm in the paper's code
                take_step(prm_optimizer, config.prm_learning_rate * rate / config.learning_rate)
            parallel.add_up([logits], "logits of the reward model")
            learned = prm.all_values(batch, rows, config.max_tokens_per_microbatch)  # (B, T) log-probs, nats
            token_rewards, _ = implicit_rewards(learned, ref_logps, mask, config.process_beta)  # (B, T)
        advantages = prime_advantages(process_rewards(token_rewards, mask), rewards, mask, batch.group_ids, config.process_weight)
        run.log_completions(batch, rewards, torch.where(mask, advantages, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1),
                            token_advantages=advantages, token_values=returns_to_go(token_rewards, mask))
        advantages = whiten(advantages, mask) if config.whiten_advantages else advantages  # after the log, which is in units of reward
        # without a KL term a completion whose advantages are all 0 has gradient 0: it gets no pass, but counts in the loss divisor
        needs_pass = mask.any(dim=1) & ((advantages != 0).any(dim=1) | (config.beta > 0))  # (B,)

        # 5 log-probs before the update
        several = config.num_iterations * config.num_minibatches > 1  # else the update's own forward pass gives them
        with run.timer("update"):
            old_logps = all_logps(policy, batch, needs_pass.nonzero()[:, 0], config.max_tokens_per_microbatch) if several else None

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
                    loss.backward()
                    losses.append((micro.rows, loss.detach()))
                    means.add(micro.mask, **numbers)
                norms.append(clip_gradients(optimizer, config.max_grad_norm, len(losses)))
                run.stop_if_not_finite(losses, norms[-1], batch)  # ends the run before NaN can reach the weights
                take_step(optimizer, rate)
            metrics = {"entropy": means.mean("entropy"), "kl": means.mean("kl") if config.beta > 0 else None,
                       "clip_ratio/region_mean": means.mean("clipped"), "grad_norm": torch.stack(norms).mean().item() if norms else None,
                       "learning_rate": rate, "sampling/sampling_logp_difference/mean": means.mean("difference"),
                       "sampling/importance_weights/kept": means.mean("kept") if config.importance_bound == "mask" else None,
                       "sampling/sampling_logp_difference/max": means.max("difference"),
                       "prm/loss": F.binary_cross_entropy_with_logits(logits[rows], right[rows]).item() if len(rows) else None,
                       "prm/accuracy": ((logits > 0) == (right > 0))[rows].float().mean().item() if len(rows) else None}

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
