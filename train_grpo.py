"""GRPO: trains a LoRA policy to solve problems, with the mean reward of a problem's own samples as the baseline.

Paper: DeepSeekMath (arXiv 2402.03300), equations 3-4. As flags: Dr. GRPO (2503.20783), RLOO (2402.14740), and DAPO's
clip-higher, token mean and overlong penalty (2503.14476); docs/grpo.md has the exact flag sets.

Deviations from the paper: LoRA instead of full fine-tuning; loss averaged over the tokens of the step, not per completion
(--loss_aggregation); no KL term (--beta); population standard deviation plus 1e-6; importance weights against the sampler.

    python train_grpo.py                                                        # tiny model, CPU, a minute or two
    python train_grpo.py --model Qwen/Qwen2.5-1.5B-Instruct --dataset gsm8k     # one GPU
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    scale_rewards: bool = flag(True, "algorithm", "Divide advantages by the group's standard deviation. Dr. GRPO and RLOO: no.")
    leave_one_out: bool = flag(False, "algorithm", "Baseline without the completion's own reward (RLOO).")
    epsilon: float = flag(0.2, "algorithm", "The ratio is clipped below at 1 - epsilon.")
    epsilon_high: float | None = flag(None, "algorithm", "The ratio is clipped above at 1 + this (DAPO: 0.28). Default: epsilon.")
    overlong_buffer: int = flag(0, "algorithm", "Tokens before the length limit over which the reward falls (DAPO section 3.4; 0: off).")
    overlong_factor: float = flag(1.0, "algorithm", "How far it falls.")

    def check(self) -> None:
        """Raises UserError for what cannot work with this algorithm."""
        super().check()
        if self.num_generations < 2:
            raise UserError("--num_generations 1: a group of one has no baseline; give 2 or more (8 is usual)")
        if self.overlong_factor < 0:
            raise UserError(f"--overlong_factor {self.overlong_factor}: give 0 or more; it is taken from the reward")
        if not 0 <= self.overlong_buffer < self.max_completion_length:
            raise UserError(f"--overlong_buffer {self.overlong_buffer}: give 0, or less than the {self.max_completion_length} tokens of "
                            "--max_completion_length")
        if not 0 <= self.epsilon < 1 or (self.epsilon_high or 0) < 0:
            raise UserError(f"--epsilon {self.epsilon} --epsilon_high {self.epsilon_high}: give 0 <= epsilon < 1 and epsilon_high >= 0, "
                            "as 0.2 and 0.28")


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

def group_advantages(rewards: Tensor, group_ids: Tensor, *, scale_rewards: bool = True, leave_one_out: bool = False) -> Tensor:
    """Advantages (B,): each reward minus its group's mean, over the group's standard deviation.

    rewards (B,), group_ids (B,) int64: any numbers, groups may be ragged and interleaved. GRPO (arXiv 2402.03300) 4.1.2,
    population standard deviation + 1e-6. `scale_rewards=False`: centred only, Dr. GRPO (2503.20783). `leave_one_out`: the
    mean of the others, RLOO (2402.14740), which is G / (G - 1) times the centred one. All-equal rewards and groups of
    one give exactly 0. Rewards [1, 0, 0, 0] -> [1.732, -0.577, -0.577, -0.577]; centred [0.75, -0.25, -0.25, -0.25].
    """
    _, group = group_ids.unique(return_inverse=True)
    size = torch.bincount(group).to(rewards)  # (groups,)
    mean = torch.zeros_like(size).index_add(0, group, rewards) / size
    centred = rewards - mean[group]
    low = torch.full_like(size, torch.inf).scatter_reduce(0, group, rewards, "amin")
    high = torch.full_like(size, -torch.inf).scatter_reduce(0, group, rewards, "amax")
    advantages = torch.where((low == high)[group], 0.0, centred)  # the rounded mean of equal rewards may differ from them
    if leave_one_out:
        advantages = advantages * (size / (size - 1).clamp(min=1))[group]
    if scale_rewards:
        variance = torch.zeros_like(size).index_add(0, group, centred.square()) / size
        advantages = advantages / (variance.sqrt() + 1e-6)[group]
    return advantages


def grpo_token_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float) -> Tensor:
    """Loss (B, T) of each token: -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A), GRPO equation 3.

    logps, old_logps (B, T) nats, advantages (B,). Ratio 1.25, A 1: -1.2 at epsilon_high 0.2 (no gradient), -1.25 at 0.28.
    """
    ratio = torch.exp(logps - old_logps)  # (B, T)
    advantages = advantages[:, None]
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantages)


def clipped_tokens(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float) -> Tensor:
    """(B, T) bool: the tokens that the clip leaves without gradient."""
    ratio, advantages = torch.exp(logps - old_logps), advantages[:, None]
    return ((ratio > 1 + epsilon_high) & (advantages > 0)) | ((ratio < 1 - epsilon) & (advantages < 0))


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int, factor: float = 1.0) -> Tensor:
    """(B,) <= 0, added to the reward: 0 up to max_length - buffer tokens, then down to -factor. DAPO (2503.14476) eq. 13.

    lengths (B,) tokens. At 1024 and 256: 768 -> 0, 800 -> -0.125, 1024 -> -1.
    """
    if buffer <= 0:
        return torch.zeros(lengths.shape)
    return -factor * ((lengths - (max_length - buffer)) / buffer).clamp(min=0.0)

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
        rewards += overlong_penalty(batch.lengths, config.max_completion_length, config.overlong_buffer, config.overlong_factor)
        advantages = group_advantages(rewards, batch.group_ids, scale_rewards=config.scale_rewards, leave_one_out=config.leave_one_out)
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
            clip = {"epsilon": config.epsilon, "epsilon_high": config.epsilon if config.epsilon_high is None else config.epsilon_high}
            for minibatch in minibatches(len(batch), config.num_iterations, config.num_minibatches, config.seed, step):
                divisor = loss_divisor(mask[minibatch], config.loss_aggregation, config.max_completion_length)
                losses = []
                for micro in microbatches(batch, minibatch[needs_pass[minibatch]], config.max_tokens_per_microbatch, policy):
                    logps, entropy = policy.logps(micro, entropy=True)  # (b, T)
                    old = logps.detach() if old_logps is None else micro.take(old_logps)
                    token_loss = grpo_token_loss(logps, old, micro.take(advantages), **clip)
                    if config.importance_cap > 0:
                        token_loss = token_loss * truncated_importance_weights(old, micro.sampling_logps, config.importance_cap)
                    kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")
                    loss = aggregate(token_loss + config.beta * kl, micro.completion_mask, config.loss_aggregation, divisor)
                    loss.backward()
                    losses.append((micro.rows, loss.detach()))
                    means.add(micro.completion_mask, entropy=entropy, kl=kl, difference=(old - micro.sampling_logps).abs(),
                              clipped=clipped_tokens(logps, old, micro.take(advantages), **clip))
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
