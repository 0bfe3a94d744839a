"""NFT: trains a LoRA policy with supervised losses on its own completions, the right ones and the wrong ones.

A right completion is learned directly. A wrong completion is learned by a "negative policy", which is computed from the policy and its
success rate. Paper: Negative-aware Fine-Tuning (arXiv 2505.18116), equation 10. Flags give RFT (right completions alone), weights
between RFT and NFT, the three prompt weights of the paper, and ratios of whole completions. docs/nft.md has the flag sets.

Deviations from the paper:
- LoRA instead of full fine-tuning.
- One update per batch (--num_minibatches).
- Groups that are all right or all wrong are not sampled again. They count in the divisor of the loss.
- Importance weights correct for the difference between sampler and trainer (--importance_cap).
- The loss of an update has one divisor. The official code divides the sum over each completion by 1000 and adds these up.

    python train_nft.py                                                        # tiny model, CPU, a minute or two
    python train_nft.py --model Qwen/Qwen2.5-1.5B-Instruct --dataset gsm8k     # one GPU; --plan_memory 24: does it fit 24 GB?
"""
from __future__ import annotations

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
    prompt_weight: Literal["1-r", "sqrt", "none"] = flag(
        "1-r", "algorithm", "Weight of a problem with success rate r. sqrt: sqrt((1-r)/r). On-policy, 1-r equals Dr. GRPO and sqrt GRPO.")
    neg_weight: float = flag(1.0, "algorithm", "Weight of wrong completions. 0 with --prompt_weight none is RFT.")
    nft_clip: float = flag(1.0, "algorithm", "Floor of the ratio of the negative policy (paper, appendix C). Above 0, at most 1.")
    ratio_level: Literal["token", "sequence"] = flag("token", "algorithm", "A ratio is that of one token, or that of its whole completion.")

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        super().check()
        if self.num_generations < 2:
            raise UserError("--num_generations 1: a group of one is all right or all wrong; give 2 or more (8 is usual)")
        if self.neg_weight < 0:
            raise UserError(f"--neg_weight {self.neg_weight}: give 0 (right completions alone) or more; 1 is NFT")
        if not 0 < self.nft_clip <= 1:
            raise UserError(f"--nft_clip {self.nft_clip}: give a number above 0 and at most 1, as 1.0 (the paper's) or 0.5")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
from torch import Tensor

from common.policy.load import load_policy
from common.policy.loss import aggregate, importance_weights, kl_estimate, loss_divisor
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

CORRECT_ABOVE = 0.5  # a completion with a reward above this is right; this suits rewards of 0 and 1, and of -1 and 1
RATE_RANGE = (0.02, 0.98)  # limits of the success rate r, so that 1 / r and 1 / (1 - r) stay small; as in the official code
MAX_LOG_RATIO = 10.0  # tokens with a larger log-ratio have no gradient; as in the official code


def success_rates(correct: Tensor, group_ids: Tensor) -> Tensor:
    """The success rate (B,) of each completion's group: the share of right completions. r_q in NFT section 3.1.

    correct (B,) bool. group_ids (B,) int64: rows with equal numbers are one group. Groups may differ in size, and their rows may be
    mixed. One group [True, False, False, False] -> 0.25 for each row.
    """
    _, group = group_ids.unique(return_inverse=True)
    size = torch.bincount(group)
    return (torch.bincount(group[correct], minlength=len(size)) / size)[group]


def prompt_weights(success_rate: Tensor, prompt_weight: str) -> Tensor:
    """The weight w(q) (B,) of each completion's problem, NFT equation 10.

    success_rate: (B,), r. prompt_weight "1-r": 1 - r. "sqrt": sqrt((1-r) / r). "none": 1. If r is 0 or 1, the weight is 0.
    "sqrt" is computed as (1-r) / (std + 1e-6), where std is that of the group's 0/1 rewards. This equals GRPO's advantages exactly.
    Rate 0.25: "1-r" 0.75, "sqrt" 1.732, "none" 1.
    """
    rate = success_rate.clamp(*RATE_RANGE)
    weights = {"1-r": 1 - rate, "sqrt": (1 - rate) / ((rate * (1 - rate)).sqrt() + 1e-6), "none": torch.ones_like(rate)}[prompt_weight]
    return torch.where((success_rate > 0) & (success_rate < 1), weights, 0.0)


def negative_ratio(ratio: Tensor, success_rate: Tensor) -> Tensor:
    """The probability of each token under the negative policy, divided by that under the old policy (B, T). NFT equation 8.

    It is (1 - r ratio) / (1 - r). Its mean over tokens of the old policy is 1. ratio (B, T): policy / old policy. success_rate (B,): r < 1.
    Rate 0.5: ratio 0.5 -> 1.5, 1 -> 1, 1.25 -> 0.75, 2.5 -> -0.5. The last one is no probability, so the loss has a floor.
    """
    rate = success_rate[:, None]
    return (1 - rate * ratio) / (1 - rate)


def nft_token_loss(logps: Tensor, old_logps: Tensor, correct: Tensor, success_rate: Tensor, *, clip: float = 1.0,
                   neg_weight: float = 1.0, prompt_weight: str = "1-r") -> Tensor:
    """Loss of each token (B, T). Right: -w log ratio. Wrong: -neg_weight w log max_v(negative ratio, clip). NFT equation 10.

    ratio = exp(logps - old_logps); logps, old_logps (B, T) nats. correct (B,) bool. success_rate (B,) in [0, 1].
    max_v has the value of max and the gradient of its first argument. So a wrong token below the floor is still made less likely.
    Rate 0.5, w 1, a wrong token: ratio 0.8 -> loss -0.182, slope 0.667. Ratio 1.25 -> loss 0, slope 1.25.
    """
    log_ratio = (logps - old_logps).clamp(max=MAX_LOG_RATIO)  # (B, T)
    negative = negative_ratio(log_ratio.exp(), success_rate.clamp(*RATE_RANGE))
    floored = negative.detach().clamp(min=clip)
    log_negative = floored.log() + (negative - negative.detach()) / floored  # has the value log(floored)
    loss = torch.where(correct[:, None], -log_ratio, -neg_weight * log_negative)
    return prompt_weights(success_rate, prompt_weight)[:, None] * loss


def implied_advantages(correct: Tensor, success_rate: Tensor, *, neg_weight: float, prompt_weight: str) -> Tensor:
    """The advantages (B,) that this loss acts like: minus the slope of `nft_token_loss` at ratio 1. NFT propositions 4.1 and 4.2.

    They lie in [-49 neg_weight, 7]. With neg_weight 1, "1-r" gives the advantages of Dr. GRPO, and "sqrt" those of GRPO.
    correct (B,) bool, success_rate (B,). Rate 0.25 and "1-r": right 0.75, wrong -0.25.
    """
    rate = success_rate.clamp(*RATE_RANGE)
    return prompt_weights(success_rate, prompt_weight) * torch.where(correct, 1.0, -neg_weight * rate / (1 - rate))


def floored_tokens(logps: Tensor, old_logps: Tensor, correct: Tensor, success_rate: Tensor, *, clip: float) -> Tensor:
    """(B, T) bool: True on tokens of wrong completions whose negative ratio is below the floor `clip`."""
    ratio = (logps - old_logps).clamp(max=MAX_LOG_RATIO).exp()
    return ~correct[:, None] & (negative_ratio(ratio, success_rate.clamp(*RATE_RANGE)) < clip)


def completion_old_logps(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """Changed old log-probs (B, T), without gradient. With them each token has the ratio of its whole completion.

    The loss of the tokens then has the gradient of a loss of the whole completion. logps, old_logps (B, T) nats, mask (B, T) bool.
    logps [-1, -2] and old [-1.5, -2.25]: the log-ratio of the completion is 0.5 + 0.25 = 0.75, and the result is [-1.75, -2.75].
    """
    log_ratio = torch.where(mask, logps - old_logps, 0.0).sum(dim=1, keepdim=True)  # (B, 1)
    return (logps - log_ratio).detach()

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
        # the loss needs no advantages, only which completions are right and how often their problem is solved
        correct = rewards > CORRECT_ABOVE  # (B,) bool
        success_rate = success_rates(correct, batch.group_ids)  # (B,) in [0, 1]
        weights = {"neg_weight": config.neg_weight, "prompt_weight": config.prompt_weight}
        advantages = implied_advantages(correct, success_rate, **weights)  # for the log, and to find completions without gradient
        run.log_completions(batch, rewards, advantages)  # rewards (B,), advantages (B,)
        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T): tokens in the loss
        # without a KL term a completion with advantage 0 has gradient 0: it gets no forward pass, but it counts in the loss divisor
        needs_pass = mask.any(dim=1) & ((advantages != 0) | (config.beta > 0))  # (B,)

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
        def loss_of(micro: MicroBatch, divisor: float) -> tuple[Tensor, dict[str, Tensor]]:
            """The loss of b completions, and numbers (b, T) to log. It may use all of phase 4, and entropy and kl with their gradients."""
            logps, entropy = policy.logps(micro, entropy=True)  # (b, T) nats, both with a gradient
            old = logps.detach() if old_logps is None else micro.take(old_logps)  # (b, T)
            start = completion_old_logps(logps, old, micro.mask) if config.ratio_level == "sequence" else old
            answers = micro.take(correct), micro.take(success_rate)  # (b,) each
            token_loss = nft_token_loss(logps, start, *answers, clip=config.nft_clip, **weights)  # (b, T)
            importance = importance_weights(old, micro.sampling_logps, micro.mask, **config.importance)  # (b, T)
            kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")  # (b, T)
            loss = aggregate(token_loss * importance + config.beta * kl, micro.mask, config.loss_aggregation, divisor)
            return loss, {"entropy": entropy, "kl": kl, "kept": importance > 0, "difference": (old - micro.sampling_logps).abs(),
                          "floored": floored_tokens(logps, start, *answers, clip=config.nft_clip)}

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
                "clip_ratio/region_mean": means.mean("floored"), "grad_norm": torch.stack(norms).mean().item(),
                "learning_rate": learning_rate_at(step, config),
                "sampling/importance_weights/kept": means.mean("kept") if config.importance_bound == "mask" else None,
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
