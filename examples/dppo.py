"""DPPO: a token is held back by how far its probability has moved, and not by the ratio.

Base: train_grpo.py, changed in phases 5 and 6
Paper: arXiv 2602.04879, the binary divergences
Changes: loss of a token = -ratio A, or 0 if it has moved by more than delta in the direction that A pushes to; moved: |p - q| (tv), or the
  KL divergence of the two-way choice between this token and all others (kl); q is the probability by the sampler, p the present one
Cost: as the base, less the log-probs before the update
When: several updates per batch; a clip of the ratio holds rare tokens back too early and frequent ones too late

Deviations: those of train_grpo.py, except that there are no importance weights: the ratio itself is against the sampler, capped at 20.
- The variants with the divergence over the most likely tokens are left out.
- Written from public code of others (slime, TRL's experimental trainer) and from memory of the paper, which was not at hand.
What to know: --delta 0.15 is usual for tv, 0.05 for kl. A frequent token that falls from 0.7 to 0.5 is held back by tv, and not by
--epsilon 0.3; a rare one that rises from 0.001 to 0.01 is not held back.

    python examples/dppo.py --num_minibatches 4
"""
from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/examples/")[0])  # finds common/ from anywhere

from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports, which take seconds, is no stack trace

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import for_programs, parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    scale_rewards: Literal["group", "batch", "mean", "none"] = flag(
        "group", "algorithm", "Divide advantages by the standard deviation of the group or batch, by the mean of the group, or by nothing.",
        once_bool=("group", "none"))
    leave_one_out: bool = flag(False, "algorithm", "Baseline of a completion: the mean reward of the others in its group (RLOO).")
    divergence: Literal["tv", "kl"] = flag("tv", "algorithm", "How far a token has moved: total variation, or KL.")
    delta: float = flag(0.15, "algorithm", "A token that has moved further is held back. Usual: tv 0.15, kl 0.05.")
    importance_cap: float = flag(0.0, "update", "No importance weights: the ratio is against the sampler. 0 alone works.")
    overlong_buffer: int = flag(
        0, "algorithm", "The reward falls over this many tokens before the length limit (DAPO section 3.4). 0: it does not fall.")
    overlong_factor: float = flag(1.0, "algorithm", "How far the reward falls within --overlong_buffer.")

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        if self.importance_cap or self.importance_floor or self.sample_ahead:
            raise UserError("--importance_cap, --importance_floor and --sample_ahead do nothing here: leave them out")
        super().check()
        if self.num_generations < 2:
            raise UserError("--num_generations 1: a group of one has no baseline; give 2 or more (8 is usual)")
        if self.overlong_factor < 0:
            raise UserError(f"--overlong_factor {self.overlong_factor}: give 0 or more; it is subtracted from the reward")
        if not 0 <= self.overlong_buffer < self.max_completion_length:
            raise UserError(f"--overlong_buffer {self.overlong_buffer}: give 0, or less than the {self.max_completion_length} tokens of "
                            "--max_completion_length")
        if self.scale_rewards == "mean" and self.overlong_buffer:
            raise UserError("--scale_rewards mean is for rewards of 0 and 1, and --overlong_buffer changes them: leave one of the two out")
        if self.delta <= 0:
            raise UserError(f"--delta {self.delta}: give a number above 0, as 0.15")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
from torch import Tensor

from common.policy.load import load_policy
from common.policy.loss import aggregate, kl_estimate, loss_divisor
from common.policy.micro_batches import MicroBatch, microbatches, minibatches
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step
from common.policy.policy import all_logps
from common.policy.pretrained import context_length, load_tokenizer
from common.policy.skipped import check_skipped
from common.problems.choose import ProblemSampler
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import make_batch, prompts_of
from common.rollout.choose_engine import connect, make_engine
from common.rollout.rounds import evaluate, sample, verify
from common.run.metrics import TokenMeans, batch_metrics
from common.run.preflight import preflight
from common.run.run import Run
from common.verify.rewards import make_reward

# ---- the algorithm --------------------------------------------------------------------------------------------------

def group_advantages(rewards: Tensor, group_ids: Tensor, *, scale_rewards: str = "group", leave_one_out: bool = False) -> Tensor:
    """Advantages (B,): (reward - mean of the group) / (standard deviation of the group + 1e-6). GRPO (arXiv 2402.03300) 4.1.2.

    rewards (B,). group_ids (B,) int64, any numbers: rows with equal numbers are one group. Groups may differ in size, and their rows
    may be mixed. The standard deviation is that of the population.
    scale_rewards "none": reward - mean, without the division. Dr. GRPO (2503.20783). "batch": the standard deviation of all rewards,
    as in Lite PPO (2508.08221) and ScaleRL (2510.13786). "mean": divided by the group's mean, for rewards of 0 and 1 alone, else
    UserError. MaxRL (2602.02710).
    leave_one_out: the mean is that of the other completions of the group, which multiplies by G / (G - 1). RLOO (2402.14740).
    A group with equal rewards, or with one completion, gets exactly 0.
    Rewards [1, 0, 0, 0] -> [1.732, -0.577, -0.577, -0.577]. "none": [0.75, -0.25, -0.25, -0.25]. "mean": [3, -1, -1, -1].
    """
    _, group = group_ids.unique(return_inverse=True)
    size = torch.bincount(group).to(rewards)  # (groups,)
    mean = torch.zeros_like(size).index_add(0, group, rewards) / size
    centred = rewards - mean[group]
    low = torch.full_like(size, torch.inf).scatter_reduce(0, group, rewards, "amin")
    high = torch.full_like(size, -torch.inf).scatter_reduce(0, group, rewards, "amax")
    advantages = torch.where((low == high)[group], 0.0, centred)  # the mean of equal rewards may differ by rounding
    if leave_one_out:
        advantages = advantages * (size / (size - 1).clamp(min=1))[group]
    if scale_rewards == "mean":
        if not ((rewards == 0) | (rewards == 1)).all():
            raise UserError("--scale_rewards mean is for rewards of 0 and 1; this reward gave others: use group, batch or none")
        advantages = advantages / torch.where(mean > 0, mean, 1.0)[group]
    elif scale_rewards == "batch":
        advantages = advantages / (rewards.std(correction=0) + 1e-6)
    elif scale_rewards == "group":
        variance = torch.zeros_like(size).index_add(0, group, centred.square()) / size
        advantages = advantages / (variance.sqrt() + 1e-6)[group]
    return advantages


MAX_RATIO = 20.0  # highest weight of a token, as in published code


def moved_too_far(logps: Tensor, sampling_logps: Tensor, advantages: Tensor, *, divergence: str, delta: float) -> Tensor:
    """(B, T) bool: True on tokens that have moved by more than delta in the direction of their advantage. arXiv 2602.04879.

    logps, sampling_logps (B, T) nats: now, and by the sampler. advantages (B,). "tv": |p - q|. "kl": q log(q / p) + (1 - q) log((1 - q) /
    (1 - p)). Probability 0.5 -> 0.9: 0.4, and 0.5108 nats.
    """
    p, q = logps.exp(), sampling_logps.exp()
    if divergence == "tv":
        moved = (p - q).abs()
    else:
        rest_p, rest_q = (torch.log1p(-x.clamp(max=1 - 1e-7)) for x in (p, q))
        moved = q * (sampling_logps - logps) + (1 - q) * (rest_q - rest_p)
    return (moved > delta) & ((logps - sampling_logps) * advantages[:, None] > 0)


def dppo_token_loss(logps: Tensor, sampling_logps: Tensor, advantages: Tensor, held: Tensor) -> Tensor:
    """Loss of each token (B, T): -min(ratio, 20) A, with the gradient of -ratio A also where it is capped; 0 where `held` (B, T)."""
    difference = logps - sampling_logps
    ratio = torch.exp(difference.detach()).clamp(max=MAX_RATIO) * torch.exp(difference - difference.detach())
    return torch.where(held, 0.0, -ratio * advantages[:, None])


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int, factor: float = 1.0) -> Tensor:
    """The penalty (B,) <= 0 that is added to the reward. DAPO (arXiv 2503.14476) equation 13.

    It is 0 for up to max_length - buffer tokens, and then falls in a straight line to -factor at max_length.
    lengths (B,) in tokens. With max_length 1024 and buffer 256: 768 -> 0, 800 -> -0.125, 1024 -> -1.
    """
    if buffer <= 0:
        return torch.zeros(lengths.shape)
    return -factor * ((lengths - (max_length - buffer)) / buffer).clamp(min=0.0)

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
        # a completion is compared with its group, and all its tokens get the same advantage
        rewards += overlong_penalty(batch.lengths, config.max_completion_length, config.overlong_buffer, config.overlong_factor)
        advantages = group_advantages(rewards, batch.group_ids, scale_rewards=config.scale_rewards, leave_one_out=config.leave_one_out)
        run.log_completions(batch, rewards, advantages)  # rewards (B,), advantages (B,)
        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T): tokens in the loss
        # without a KL term a completion with advantage 0 has gradient 0: it gets no forward pass, but it counts in the loss divisor
        needs_pass = mask.any(dim=1) & ((advantages != 0) | (config.beta > 0))  # (B,)

        # 5 log-probs before the update
        engine.sleep()  # gives up memory that only sampling needs, until it samples again
        ref_logps = None  # (B, T) nats: by the reference policy; None: not needed
        with run.timer("update"):
            trained = needs_pass.nonzero()[:, 0]  # numbers of the rows that get a pass
            if config.beta > 0:
                with policy.reference():  # the policy before training: the base model, or the adapter of --adapter
                    ref_logps = all_logps(policy, batch, trained, config.max_tokens_per_microbatch)

        # 6 update
        def loss_of(micro: MicroBatch, divisor: float) -> tuple[Tensor, dict[str, Tensor]]:
            """The loss of b completions, and numbers (b, T) to log. It may use all of phase 4, and entropy and kl with their gradients."""
            logps, entropy = policy.logps(micro, entropy=True)  # (b, T) nats, both with a gradient
            before, values = micro.sampling_logps, micro.take(advantages)
            held = moved_too_far(logps.detach(), before, values, divergence=config.divergence, delta=config.delta)  # (b, T)
            token_loss = dppo_token_loss(logps, before, values, held)  # (b, T)
            kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")  # (b, T)
            loss = aggregate(token_loss + config.beta * kl, micro.mask, config.loss_aggregation, divisor)
            return loss, {"entropy": entropy, "kl": kl, "difference": (logps.detach() - before).abs(), "clipped": held}

        with run.timer("update"):
            check_skipped(loss_of, policy, batch, mask, needs_pass, step)
            means, norms = TokenMeans(), []
            # one optimiser step per minibatch; a minibatch is cut into micro-batches of b completions that fit in memory
            for minibatch in minibatches(len(batch), config.num_iterations, config.num_minibatches, config.seed, step):
                divisor = loss_divisor(mask[minibatch], config.loss_aggregation, config.max_completion_length)  # of all micro-batches
                losses = []
                for micro in microbatches(batch, minibatch[needs_pass[minibatch]], config.max_tokens_per_microbatch, policy, mask):
                    loss, numbers = loss_of(micro, divisor)
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
                "sampling/sampling_logp_difference/mean": means.mean("difference"),
                "sampling/sampling_logp_difference/max": means.max("difference")}

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
