"""NFT: trains a LoRA policy on its right completions, and on its wrong ones through the negative policy that they imply.

Paper: Negative-aware Fine-Tuning (arXiv 2505.18116), equation 10. As flags: RFT (right completions alone), anything between
the two, the paper's three prompt weights, and whole-completion ratios; docs/nft.md has the exact flag sets.

Deviations from the paper: LoRA instead of full fine-tuning; one update per batch (--num_minibatches); groups that are all
right or all wrong are not sampled again but stay in the loss's divisor; importance weights against the sampler. From the
official code: one divisor for the whole update, where it adds sums over 1000 up.

    python train_nft.py                                                        # tiny model, CPU, a minute or two
    python train_nft.py --model Qwen/Qwen2.5-1.5B-Instruct --dataset gsm8k     # one GPU
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    prompt_weight: Literal["1-r", "sqrt", "none"] = flag(
        "1-r", "algorithm", "Weight of a problem with success rate r; sqrt: sqrt((1-r)/r). On-policy: Dr. GRPO's, GRPO's advantages.")
    neg_weight: float = flag(1.0, "algorithm", "Weight of wrong completions; 0 with --prompt_weight none is RFT.")
    nft_clip: float = flag(1.0, "algorithm", "Floor of the implicit negative policy's ratio (appendix C; above 0 and at most 1).")
    ratio_level: Literal["token", "sequence"] = flag("token", "algorithm", "Whether a ratio is of one token or of a whole completion.")

    def check(self) -> None:
        """Raises UserError for what cannot work with this algorithm."""
        super().check()
        if self.num_generations < 2:
            raise UserError("--num_generations 1: a group of one is all right or all wrong; give 2 or more (8 is usual)")
        if self.neg_weight < 0:
            raise UserError(f"--neg_weight {self.neg_weight}: give 0 (right completions alone) or more; 1 is NFT")
        if not 0 < self.nft_clip <= 1:
            raise UserError(f"--nft_clip {self.nft_clip}: give a number above 0 and at most 1, as 1.0 (the paper's) or 0.5")


if __name__ == "__main__":  # before torch and transformers are imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
from torch import Tensor

from common.policy.load import load_policy
from common.policy.loss import aggregate, kl_estimate, loss_divisor, truncated_importance_weights
from common.policy.micro_batches import microbatches, minibatches
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step
from common.policy.policy import all_logps
from common.policy.pretrained import context_length, load_tokenizer
from common.problems.choose import ProblemSampler
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import make_batch
from common.rollout.choose_engine import connect, make_engine
from common.rollout.rounds import evaluate, sample, verify
from common.run.metrics import TokenMeans, batch_metrics
from common.run.preflight import preflight
from common.run.run import Run
from common.verify.rewards import make_reward

# ---- the algorithm --------------------------------------------------------------------------------------------------

CORRECT_ABOVE = 0.5  # a completion is right if its reward is above this: for rewards of 0 / 1, and of -1 / 1, the same
RATE_RANGE = (0.02, 0.98)  # as in the official code: bounds 1 / (1 - r) and 1 / r
MAX_LOG_RATIO = 10.0  # as in the official code: beyond it no gradient, whatever the sign


def success_rates(correct: Tensor, group_ids: Tensor) -> Tensor:
    """(B,): the share of right completions in each completion's group, NFT section 3.1's r_q.

    correct (B,) bool, group_ids (B,) int64: groups may be ragged and interleaved. [True, False, False, False] -> 0.25 each.
    """
    _, group = group_ids.unique(return_inverse=True)
    size = torch.bincount(group)
    return (torch.bincount(group[correct], minlength=len(size)) / size)[group]


def prompt_weights(success_rate: Tensor, prompt_weight: str) -> Tensor:
    """(B,): w(q) of NFT equation 10, "1-r", "sqrt" ((1-r)/r under the root) or "none" (1); 0 where the rate is 0 or 1.

    The root is (1-r) / (std + 1e-6), std of a group's 0/1 rewards, so that GRPO's advantages come out to the last digit.
    Rate 0.25 -> 0.75, 1.732, 1.
    """
    rate = success_rate.clamp(*RATE_RANGE)
    weights = {"1-r": 1 - rate, "sqrt": (1 - rate) / ((rate * (1 - rate)).sqrt() + 1e-6), "none": torch.ones_like(rate)}[prompt_weight]
    return torch.where((success_rate > 0) & (success_rate < 1), weights, 0.0)


def negative_ratio(ratio: Tensor, success_rate: Tensor) -> Tensor:
    """(B, T): implicit negative policy over old policy, (1 - r ratio) / (1 - r), NFT equation 8; its mean under the latter is 1.

    ratio (B, T), success_rate (B,) < 1. At rate 0.5: ratio 0.5 -> 1.5, 1 -> 1, 1.25 -> 0.75, 2.5 -> -0.5 (no probability).
    """
    rate = success_rate[:, None]
    return (1 - rate * ratio) / (1 - rate)


def nft_token_loss(logps: Tensor, old_logps: Tensor, correct: Tensor, success_rate: Tensor, *, clip: float = 1.0,
                   neg_weight: float = 1.0, prompt_weight: str = "1-r") -> Tensor:
    """Loss (B, T) of each token, NFT equation 10: -w log ratio if right, -neg_weight w log max_v(negative ratio, clip) if wrong.

    logps, old_logps (B, T) nats, correct (B,) bool, success_rate (B,) in [0, 1]. max_v: the value of max, the gradient of its
    argument, so that a wrong token at the floor is still pushed down. Rate 0.5, w 1, wrong, ratio 0.8: -0.182, slope 0.667;
    ratio 1.25: 0, slope 1.25.
    """
    log_ratio = (logps - old_logps).clamp(max=MAX_LOG_RATIO)  # (B, T)
    negative = negative_ratio(log_ratio.exp(), success_rate.clamp(*RATE_RANGE))
    floored = negative.detach().clamp(min=clip)
    log_negative = floored.log() + (negative - negative.detach()) / floored  # value log(floored), slope that of negative
    loss = torch.where(correct[:, None], -log_ratio, -neg_weight * log_negative)
    return prompt_weights(success_rate, prompt_weight)[:, None] * loss


def implied_advantages(correct: Tensor, success_rate: Tensor, *, neg_weight: float, prompt_weight: str) -> Tensor:
    """(B,): minus the slope of `nft_token_loss` where the ratio is 1, in [-49 neg_weight, 7]; NFT propositions 4.1 and 4.2.

    "1-r" gives r - mean, Dr. GRPO's; "sqrt" GRPO's. Rate 0.25, "1-r": right 0.75, wrong -0.25.
    """
    rate = success_rate.clamp(*RATE_RANGE)
    return prompt_weights(success_rate, prompt_weight) * torch.where(correct, 1.0, -neg_weight * rate / (1 - rate))


def floored_tokens(logps: Tensor, old_logps: Tensor, correct: Tensor, success_rate: Tensor, *, clip: float) -> Tensor:
    """(B, T) bool: tokens of wrong completions whose negative ratio is below the floor."""
    ratio = (logps - old_logps).clamp(max=MAX_LOG_RATIO).exp()
    return ~correct[:, None] & (negative_ratio(ratio, success_rate.clamp(*RATE_RANGE)) < clip)


def completion_old_logps(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """(B, T) without gradient: old log-probs against which each token has the ratio of its whole completion.

    The loss at that ratio then has the gradient of the completion's own loss. logps [-1, -2], old [-1.5, -2.25] -> the log
    ratio is 0.75 for both: [-1.75, -2.75].
    """
    log_ratio = torch.where(mask, logps - old_logps, 0.0).sum(dim=1, keepdim=True)  # (B, 1)
    return (logps - log_ratio).detach()

# ---------------------------------------------------------------------------------------------------------------------


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
        correct = rewards > CORRECT_ABOVE  # (B,)
        success_rate = success_rates(correct, batch.group_ids)  # (B,)
        weights = {"neg_weight": config.neg_weight, "prompt_weight": config.prompt_weight}
        advantages = implied_advantages(correct, success_rate, **weights)
        run.log_completions(batch, rewards, advantages)
        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T)
        # without a KL term, what has advantage 0 has gradient 0: it stays in the divisor and gets no pass
        needs_pass = mask.any(dim=1) & ((advantages != 0) | (config.beta > 0))  # (B,)

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
                losses = []
                for micro in microbatches(batch, minibatch[needs_pass[minibatch]], config.max_tokens_per_microbatch, policy):
                    logps, entropy = policy.logps(micro, entropy=True)  # (b, T)
                    old = logps.detach() if old_logps is None else micro.take(old_logps)
                    start = completion_old_logps(logps, old, micro.completion_mask) if config.ratio_level == "sequence" else old
                    answers = micro.take(correct), micro.take(success_rate)
                    token_loss = nft_token_loss(logps, start, *answers, clip=config.nft_clip, **weights)
                    if config.importance_cap > 0:
                        token_loss = token_loss * truncated_importance_weights(old, micro.sampling_logps, config.importance_cap)
                    kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")
                    loss = aggregate(token_loss + config.beta * kl, micro.completion_mask, config.loss_aggregation, divisor)
                    loss.backward()
                    losses.append((micro.rows, loss.detach()))
                    means.add(micro.completion_mask, entropy=entropy, kl=kl, difference=(old - micro.sampling_logps).abs(),
                              clipped=floored_tokens(logps, start, *answers, clip=config.nft_clip))
                norms.append(clip_gradients(optimizer, config.max_grad_norm, len(losses)))
                run.stop_if_not_finite(losses, norms[-1], batch)
                take_step(optimizer, learning_rate_at(step, config))
            metrics = {
                "entropy": means.mean("entropy"), "kl": means.mean("kl") if config.beta > 0 else None,
                "clip_ratio/region_mean": means.mean("clipped"), "grad_norm": torch.stack(norms).mean().item(),
                "learning_rate": learning_rate_at(step, config),
                "sampling/sampling_logp_difference/mean": means.mean("difference"),
                "sampling/sampling_logp_difference/max": means.max("difference")}

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
