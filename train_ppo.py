"""PPO: trains a LoRA policy on advantages from a critic, which is a second LoRA adapter on the same frozen base.

Papers: PPO (arXiv 1707.06347), equations 7 and 9; GAE (1506.02438), equation 16; defaults are those of VinePPO's PPO baseline
(2410.01679): gamma and lambda 1, whitened advantages, 2 passes in 8 minibatches, KL in the loss; docs/ppo.md has the flag sets.

Deviations from that baseline: LoRA instead of full fine-tuning, for the critic too; its head starts at zero, not at random; no KL
term unless asked for (--beta); micro-batches add up to the minibatch's own mean; importance weights against the sampler.

    python train_ppo.py                                                        # tiny model, CPU, a minute or two
    python train_ppo.py --model Qwen/Qwen2.5-1.5B-Instruct --dataset gsm8k     # one GPU
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    num_iterations: int = flag(2, "update", "Passes over each rollout batch.")
    num_minibatches: int = flag(8, "update", "Optimiser steps per pass, of the policy and of the critic.")
    gamma: float = flag(1.0, "algorithm", "Discount per token.")
    lam: float = flag(1.0, "algorithm", "GAE's lambda. 1: reward minus value; below 1 a wrong critic biases the gradient.")
    whiten_advantages: bool = flag(True, "algorithm", "Advantages to mean 0 and variance 1 over the tokens of the rollout batch.")
    epsilon: float = flag(0.2, "algorithm", "The ratio is clipped to 1 - epsilon .. 1 + epsilon.")
    cliprange_value: float = flag(0.2, "algorithm", "Values are clipped to this far from those before the update.")
    critic_learning_rate: float = flag(5e-5, "algorithm", "Peak learning rate of the critic, with the policy's schedule.")
    critic_warmup_steps: int = flag(0, "algorithm", "First steps in which only the critic learns.")
    kl_in_reward: bool = flag(False, "algorithm", "Take beta times the KL (k1) from each token's reward, instead of k3 in the loss.")

    tiny_defaults: ClassVar[dict[str, Any]] = {
        **CommonConfig.tiny_defaults, "num_iterations": 1, "num_minibatches": 4, "critic_learning_rate": 1e-3}
    trained_adapters: ClassVar[int] = 2
    resumable: ClassVar[set[str]] = CommonConfig.resumable | {"critic_learning_rate"}

    def check(self) -> None:
        """Raises UserError for what cannot work with this algorithm."""
        super().check()
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)}: give a number from 0 to 1; 1 is usual")
        if not 0 <= self.epsilon < 1 or self.cliprange_value <= 0:
            raise UserError(f"--epsilon {self.epsilon} --cliprange_value {self.cliprange_value}: give 0 <= epsilon < 1 and a value "
                            "range above 0, as 0.2 and 0.2")
        if self.critic_learning_rate <= 0 or self.critic_warmup_steps < 0:
            raise UserError(f"--critic_learning_rate {self.critic_learning_rate} --critic_warmup_steps {self.critic_warmup_steps}: give a "
                            "rate above 0 and 0 or more steps")
        if self.kl_in_reward and self.beta == 0:
            raise UserError("--kl_in_reward needs the KL's weight: give --beta too, as 0.05")


if __name__ == "__main__":  # before torch and transformers are imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
from torch import Tensor

from common.policy.critic import Critic
from common.policy.load import load_policy
from common.policy.loss import aggregate, kl_estimate, loss_divisor, truncated_importance_weights, whiten
from common.policy.micro_batches import microbatches, minibatches
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step
from common.policy.policy import Policy, all_logps
from common.policy.pretrained import context_length, load_tokenizer
from common.problems.choose import ProblemSampler
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import Batch, make_batch
from common.rollout.choose_engine import connect, make_engine
from common.rollout.rounds import evaluate, sample, verify
from common.run.metrics import TokenMeans, batch_metrics
from common.run.preflight import preflight
from common.run.run import Run
from common.verify.rewards import make_reward

# ---- the algorithm --------------------------------------------------------------------------------------------------

MAX_KL = 10.0  # of a token, in the loss: as in VinePPO's code


def terminal_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """(B, T): each completion's reward (B,) at its last token, 0 elsewhere."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = mask & (columns == (mask.sum(dim=1, keepdim=True) - 1))  # the mask of a row is a run of True
    return torch.where(last, rewards[:, None], 0.0)


def gae(rewards: Tensor, values: Tensor, completion_mask: Tensor, *, gamma: float = 1.0, lam: float = 1.0) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, T), GAE equation 16: delta = r + gamma V' - V, A = delta + gamma lam A', return = A + V.

    rewards, values (B, T), values before each token; after the last token the value is 0. Both are 0 where masked.
    rewards [0, 0, 1], values [0.5, 0.6, 0.8]: A = [0.5, 0.4, 0.2]; lam 0.95: [0.4705, 0.39, 0.2].
    """
    rewards, values = (torch.where(completion_mask, x, 0.0) for x in (rewards, values))
    advantages = torch.zeros_like(values)
    advantage = next_value = values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        # masked positions come after the last token, where everything is still 0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage, next_value = delta + gamma * lam * advantage, values[:, t]
        advantages[:, t] = advantage
    return advantages, advantages + values


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


def value_token_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, epsilon: float) -> Tensor:
    """Loss (B, T) of each value: half the larger of (V - return)^2 and (V clipped to old V +- epsilon - return)^2, PPO equation 9.

    All (B, T). V 0.9, old 0.5, return 1: clipped 0.7, so 0.045; V 0.1, old 0.4, return 1: 0.405.
    """
    clipped = old_values + (values - old_values).clamp(-epsilon, epsilon)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked tokens: 1 is a perfect critic, 0 a constant. 0 if all are equal."""
    values, returns = values[mask], returns[mask]
    variance = returns.var(correction=0)
    # returns are advantage + value: equal ones differ by rounding
    return float(1 - (returns - values).var(correction=0) / variance) if variance > 1e-8 else 0.0

# ---------------------------------------------------------------------------------------------------------------------


def logps_before(policy: Policy, batch: Batch, rows: Tensor, config: Config) -> tuple[Tensor | None, Tensor | None]:
    """Old and reference log-probs (B, T) of the given rows; None where nothing asks for them."""
    old_logps = ref_logps = None
    if config.num_iterations * config.num_minibatches > 1 or config.kl_in_reward:  # else the update's own pass gives them
        old_logps = all_logps(policy, batch, rows, config.max_tokens_per_microbatch)
    if config.beta > 0:
        with policy.reference():
            ref_logps = all_logps(policy, batch, rows, config.max_tokens_per_microbatch)
    return old_logps, ref_logps


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
    critic = Critic(policy, config.seed)
    critic_optimizer = make_optimizer(critic.parameters(), config.critic_learning_rate, config.optim)
    sampler = ProblemSampler(problems, config, engine, reward, run)
    run.start(policy, {"optimizer": optimizer, "critic_optimizer": critic_optimizer, "sampler": sampler}, critic)
    connect(engine, policy)
    preflight(engine, policy, config, problems + held_out, critic)
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
        rows = mask.any(dim=1).nonzero()[:, 0]
        engine.sleep()  # from here to the sync its memory is the update's
        old_logps = ref_logps = None  # (B, T)
        token_rewards = terminal_rewards(rewards, mask)  # (B, T)
        if config.kl_in_reward:  # the only part of a reward that needs phase 5
            with run.timer("update"):
                old_logps, ref_logps = logps_before(policy, batch, rows, config)
            token_rewards -= config.beta * kl_estimate(old_logps, ref_logps, "k1")
        with run.timer("value"):
            old_values = critic.all_values(batch, rows, config.max_tokens_per_microbatch)  # (B, T)
        advantages, returns = gae(token_rewards, old_values, mask, gamma=config.gamma, lam=config.lam)  # (B, T)
        run.log_completions(batch, rewards, torch.where(mask, advantages, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1),
                            token_advantages=advantages, token_values=old_values)
        if config.whiten_advantages:
            advantages = whiten(advantages, mask)
        kl_weight = 0.0 if config.kl_in_reward else config.beta
        # without a KL term, what has advantage 0 throughout has gradient 0: it stays in the divisor and gets no pass
        needs_pass = mask.any(dim=1) & ((advantages != 0).any(dim=1) | (kl_weight > 0))  # (B,)

        # 5 log-probs before the update
        if not config.kl_in_reward and step > config.critic_warmup_steps:  # else there already, or of no use
            with run.timer("update"):
                old_logps, ref_logps = logps_before(policy, batch, needs_pass.nonzero()[:, 0], config)

        # 6 update
        with run.timer("update"):
            means, value_means, norms = TokenMeans(), TokenMeans(), []
            rate = learning_rate_at(step, config)
            for minibatch in minibatches(len(batch), config.num_iterations, config.num_minibatches, config.seed, step):
                with critic.active():  # forward, backward and step of one adapter, before the other is switched on
                    divisor, losses = loss_divisor(mask[minibatch], "token-mean"), []
                    present = minibatch[mask[minibatch].any(dim=1)]
                    for micro in microbatches(batch, present, config.max_tokens_per_microbatch, policy):
                        token_loss = value_token_loss(critic.values(micro), micro.take(old_values), micro.take(returns),
                                                      epsilon=config.cliprange_value)
                        loss = aggregate(token_loss, micro.completion_mask, "token-mean", divisor)
                        loss.backward()
                        losses.append((micro.rows, loss.detach()))
                        value_means.add(micro.completion_mask, loss=token_loss)
                    run.stop_if_not_finite(losses, clip_gradients(critic_optimizer, config.max_grad_norm, len(losses)), batch)
                    take_step(critic_optimizer, config.critic_learning_rate * rate / config.learning_rate)
                if step <= config.critic_warmup_steps:
                    continue
                divisor = loss_divisor(mask[minibatch], config.loss_aggregation, config.max_completion_length)
                sequences, losses = loss_divisor(mask[minibatch], "seq-mean-token-sum"), []
                for micro in microbatches(batch, minibatch[needs_pass[minibatch]], config.max_tokens_per_microbatch, policy):
                    logps, entropy = policy.logps(micro, entropy=True)  # (b, T)
                    old = logps.detach() if old_logps is None else micro.take(old_logps)
                    token_loss = ppo_token_loss(logps, old, micro.take(advantages), epsilon=config.epsilon)
                    if config.importance_cap > 0:
                        token_loss = token_loss * truncated_importance_weights(old, micro.sampling_logps, config.importance_cap)
                    kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")
                    loss = aggregate(token_loss, micro.completion_mask, config.loss_aggregation, divisor) + kl_weight * aggregate(
                        kl.clamp(max=MAX_KL), micro.completion_mask, "seq-mean-token-sum", sequences)
                    loss.backward()
                    losses.append((micro.rows, loss.detach()))
                    means.add(micro.completion_mask, entropy=entropy, kl=kl, difference=(old - micro.sampling_logps).abs(),
                              clipped=clipped_tokens(logps, old, micro.take(advantages), epsilon=config.epsilon))
                norms.append(clip_gradients(optimizer, config.max_grad_norm, len(losses)))
                run.stop_if_not_finite(losses, norms[-1], batch)
                take_step(optimizer, rate)
            metrics = {
                "entropy": means.mean("entropy"), "kl": means.mean("kl") if config.beta > 0 else None,
                "clip_ratio/region_mean": means.mean("clipped"), "grad_norm": torch.stack(norms).mean().item() if norms else None,
                "learning_rate": learning_rate_at(step, config),
                "sampling/sampling_logp_difference/mean": means.mean("difference"),
                "sampling/sampling_logp_difference/max": means.max("difference"),
                "value/loss": value_means.mean("loss"), "value/mean": old_values[mask].mean().item() if len(rows) else None,
                "value/explained_variance": explained_variance(old_values, returns, mask) if len(rows) else None}

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
