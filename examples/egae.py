"""EGAE: a completion that was cut off has no ending, so its last value takes the place of what would have followed.

Base: train_ppo.py, changed in phases 4 and 6
Paper: T-PPO (arXiv 2506.15050), extended generalised advantage estimation
Changes: the last delta of a cut completion is 0 at gamma 1; the critic learns from finished completions alone
Cost: as the base, less the critic's pass over completions that were cut off
When: many completions reach the length limit, and they would have been right with more tokens

GAE takes the value behind the last token as 0, which is true of an ending. Behind the last token of a completion that was cut off EGAE
takes the value before that token. The reward there is 0. Such completions train the policy and not the critic: they have no return.

Deviations: those of train_ppo.py. The full system of the paper goes on with cut completions in later steps. Here they end.
- The returns of the critic are GAE's, with --lam. The paper takes plain returns, which --lam 1 gives.
What to know: nothing presses the policy to finish here. Watch completions/clipped_ratio: lengths may grow. Values are 0 at the start, so
cut completions have advantages of 0 until the critic has learned something: --critic_warmup_steps helps.

    python examples/egae.py --critic_warmup_steps 5
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
    num_minibatches: int = flag(8, "update", "Optimiser steps per pass, for the policy and for the critic each.")
    gamma: float = flag(1.0, "algorithm", "Discount factor per token.")
    lam: float = flag(
        1.0, "algorithm", "Lambda of GAE. 1: the advantage is reward minus value. Below 1 errors of the critic bias the gradient.")
    whiten_advantages: bool = flag(True, "algorithm", "Shift and scale advantages to mean 0 and variance 1 over all tokens of a step.")
    epsilon: float = flag(0.2, "algorithm", "The ratio is clipped to the range 1 - epsilon to 1 + epsilon.")
    cliprange_value: float = flag(0.2, "algorithm", "In the value loss, a value may differ by this much from the value before the update.")
    critic_learning_rate: float = flag(5e-5, "algorithm", "Peak learning rate of the critic. It has the schedule of the policy.")
    critic_warmup_steps: int = flag(0, "algorithm", "Number of first steps in which only the critic learns.")
    kl_in_reward: bool = flag(
        False, "algorithm", "Subtract beta x KL (k1) from the reward of each token, in place of a KL term (k3) in the loss.")

    tiny_defaults: ClassVar[dict[str, Any]] = {
        **CommonConfig.tiny_defaults, "num_iterations": 1, "num_minibatches": 4, "critic_learning_rate": 1e-3}
    trained_adapters: ClassVar[int] = 2
    resumable: ClassVar[set[str]] = CommonConfig.resumable | {"critic_learning_rate"}

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        super().check()
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)}: give a number from 0 to 1; 1 is usual")
        if not 0 <= self.epsilon < 1 or self.cliprange_value <= 0:
            raise UserError(f"--epsilon {self.epsilon} --cliprange_value {self.cliprange_value}: give 0 <= epsilon < 1 and a "
                            "cliprange_value above 0, as 0.2 and 0.2")
        if self.critic_learning_rate <= 0 or self.critic_warmup_steps < 0:
            raise UserError(f"--critic_learning_rate {self.critic_learning_rate} --critic_warmup_steps {self.critic_warmup_steps}: give a "
                            "rate above 0 and 0 or more steps")
        if self.kl_in_reward and self.beta == 0:
            raise UserError("--kl_in_reward needs a weight for the KL: give --beta too, as 0.05")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
from torch import Tensor

from common.policy.critic import Critic
from common.policy.load import load_policy
from common.policy.loss import aggregate, importance_weights, kl_estimate, loss_divisor, whiten
from common.policy.micro_batches import MicroBatch, microbatches, minibatches
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step
from common.policy.policy import Policy, all_logps
from common.policy.pretrained import context_length, load_tokenizer
from common.policy.skipped import check_skipped
from common.problems.choose import ProblemSampler
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import Batch, make_batch, prompts_of
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


def gae(rewards: Tensor, values: Tensor, completion_mask: Tensor, *, gamma: float = 1.0, lam: float = 1.0,
        cut: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(advantages, returns), (B, T) each, 0 where masked. GAE (arXiv 1506.02438) equation 16.

    delta = r + gamma V' - V, A = delta + gamma lam A', return = A + V. V' and A' are those of the next token in the mask, and 0 after
    the last one.
    rewards (B, T): r of each token. values (B, T): V before each token is chosen. completion_mask (B, T) bool.
    cut (B,) bool: completions that were cut off. V' behind their last token is V before it. None: no completion.
    rewards [0, 0, 1], values [0.5, 0.6, 0.8]: A = [0.5, 0.4, 0.2]. With lam 0.95: A = [0.4705, 0.39, 0.2].
    """
    rewards, values = (torch.where(completion_mask, x, 0.0) for x in (rewards, values))
    advantages = torch.zeros_like(values)
    advantage = next_value = values.new_zeros(len(values))
    if cut is not None:
        next_value = torch.where(cut, terminal_rewards(torch.ones(len(values)), completion_mask).mul(values).sum(dim=1), 0.0)
    for t in range(values.shape[1] - 1, -1, -1):
        present = completion_mask[:, t]  # tokens that are not in the mask are passed over
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(present, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(present, values[:, t], next_value)
        advantages[:, t] = torch.where(present, advantage, 0.0)
    return advantages, advantages + values


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


def value_token_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, epsilon: float) -> Tensor:
    """Loss of each value (B, T): half the larger of (V - return)^2 and (clipped V - return)^2. PPO equation 9.

    Clipped V is V, but at most epsilon away from the old V. values, old_values, returns: (B, T).
    Epsilon 0.2 and return 1: V 0.9 and old V 0.5 give clipped V 0.7 and loss 0.045. V 0.1 and old V 0.4 give loss 0.405.
    """
    clipped = old_values + (values - old_values).clamp(-epsilon, epsilon)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the tokens with mask True. values, returns (B, T).

    1: a perfect critic. 0: no better than the same number everywhere. If all returns are equal, the result is 0.
    """
    values, returns = values[mask], returns[mask]
    variance = returns.var(correction=0)
    # equal returns may differ by rounding, because they are computed as advantage + value
    return float(1 - (returns - values).var(correction=0) / variance) if variance > 1e-8 else 0.0

# ---------------------------------------------------------------------------------------------------------------------


def logps_before(policy: Policy, batch: Batch, rows: Tensor, config: Config, run: Run) -> tuple[Tensor | None, Tensor | None]:
    """(old log-probs, reference log-probs) of the given rows, (B, T) each, nats. None in place of log-probs that are not needed."""
    old_logps = ref_logps = None
    with run.timer("update"):
        if config.num_iterations * config.num_minibatches > 1 or config.kl_in_reward:  # else the update gives them
            old_logps = all_logps(policy, batch, rows, config.max_tokens_per_microbatch)
        if config.beta > 0:
            with policy.reference():  # the policy before training: the base model, or the adapter of --adapter
                ref_logps = all_logps(policy, batch, rows, config.max_tokens_per_microbatch)
    return old_logps, ref_logps


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
    critic = Critic(policy, config.seed)
    critic_optimizer = make_optimizer(critic.parameters(), config.critic_learning_rate, config.optim)
    fill = partial(sample, engine=engine, config=config)  # samples the completions that groups still lack
    sampler = ProblemSampler(problems, config, fill, reward, run)  # chooses the problems of each step
    preflight(engine, policy, config, problems + held_out, critic)  # on a GPU: does the largest micro-batch fit?
    run.start(policy, {"optimizer": optimizer, "critic_optimizer": critic_optimizer, "sampler": sampler, "reward": reward}, critic)
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
        # the reward goes to the last token, the critic gives values before each token, and GAE makes advantages of both
        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T): tokens in the loss
        rows = mask.any(dim=1).nonzero()[:, 0]  # completions with tokens in the loss
        engine.sleep()  # gives up memory that only sampling needs, until it samples again
        old_logps = ref_logps = None  # (B, T) nats: by the policy before the update, and by the reference policy; None: not needed
        token_rewards = terminal_rewards(torch.where(batch.truncated, 0.0, rewards), mask)  # (B, T)
        if config.kl_in_reward:  # these rewards need the log-probs of phase 5 now
            old_logps, ref_logps = logps_before(policy, batch, rows, config, run)
            token_rewards -= config.beta * kl_estimate(old_logps, ref_logps, "k1")
        with run.timer("value"):
            old_values = critic.all_values(batch, rows, config.max_tokens_per_microbatch)  # (B, T)
        advantages, returns = gae(token_rewards, old_values, mask, gamma=config.gamma, lam=config.lam, cut=batch.truncated)
        done = mask & ~batch.truncated[:, None]  # (B, T): the tokens from which the critic learns
        run.log_completions(batch, rewards, torch.where(mask, advantages, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1),
                            token_advantages=advantages, token_values=old_values)
        advantages = whiten(advantages, mask) if config.whiten_advantages else advantages  # after the log, which is in units of reward
        kl_weight = 0.0 if config.kl_in_reward else config.beta
        # without a KL term a completion whose advantages are all 0 has gradient 0: it gets no pass, but counts in the loss divisor
        needs_pass = mask.any(dim=1) & ((advantages != 0).any(dim=1) | (kl_weight > 0))  # (B,)

        # 5 log-probs before the update
        if not config.kl_in_reward and step > config.critic_warmup_steps:  # else already there, or not used
            old_logps, ref_logps = logps_before(policy, batch, needs_pass.nonzero()[:, 0], config, run)

        # 6 update
        def loss_of(micro: MicroBatch, divisor: float, sequences: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
            """The loss of b completions, and numbers (b, T) to log. It may use all of phase 4, and entropy and kl with their gradients."""
            logps, entropy = policy.logps(micro, entropy=True)  # (b, T) nats, both with a gradient
            old = logps.detach() if old_logps is None else micro.take(old_logps)  # (b, T)
            token_loss = ppo_token_loss(logps, old, micro.take(advantages), epsilon=config.epsilon)  # (b, T)
            importance = importance_weights(old, micro.sampling_logps, micro.mask, **config.importance)  # (b, T)
            kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")  # (b, T)
            loss = aggregate(token_loss * importance, micro.mask, config.loss_aggregation, divisor) + kl_weight * aggregate(
                kl.clamp(max=MAX_KL), micro.mask, "seq-mean-token-sum", sequences)
            return loss, {"entropy": entropy, "kl": kl, "kept": importance > 0, "difference": (old - micro.sampling_logps).abs(),
                          "clipped": clipped_tokens(logps, old, micro.take(advantages), epsilon=config.epsilon)}

        with run.timer("update"):
            check_skipped(loss_of, policy, batch, mask, needs_pass, step)
            means, value_means, norms = TokenMeans(), TokenMeans(), []
            rate = learning_rate_at(step, config)
            # one optimiser step per minibatch; a minibatch is cut into micro-batches of b completions that fit in memory
            for minibatch in minibatches(len(batch), config.num_iterations, config.num_minibatches, config.seed, step):
                with critic.active():  # its forward, backward and step end before the policy's adapter is switched on
                    divisor, losses = loss_divisor(done[minibatch], "token-mean"), []
                    for micro in microbatches(batch, minibatch[done[minibatch].any(dim=1)], config.max_tokens_per_microbatch, policy, mask):
                        before = micro.take(old_values), micro.take(returns)  # (b, T) each
                        token_loss = value_token_loss(critic.values(micro), *before, epsilon=config.cliprange_value)
                        loss = aggregate(token_loss, micro.mask, "token-mean", divisor)
                        loss.backward()
                        losses.append((micro.rows, loss.detach()))
                        value_means.add(micro.mask, loss=token_loss)
                    run.stop_if_not_finite(losses, clip_gradients(critic_optimizer, config.max_grad_norm, len(losses)), batch)
                    take_step(critic_optimizer, config.critic_learning_rate * rate / config.learning_rate)
                if step <= config.critic_warmup_steps:  # only the critic learns
                    continue
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
                       "value/loss": value_means.mean("loss"), "value/mean": old_values[mask].mean().item() if len(rows) else None,
                       "value/explained_variance": explained_variance(old_values, returns, done) if done.any() else None}

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
