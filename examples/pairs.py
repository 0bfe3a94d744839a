"""Pairs: losses that compare whole completions of a problem. --loss chooses among seven.

Base: train_grpo.py, changed in phases 4, 5 and 6
Paper: CoPG (arXiv 2406.19185), online DPO (2402.04792), IPO (2310.12036), P3O (2310.00212), LiPO-lambda (2402.01878),
  TRPA (2504.04524), INPO and REBEL (2407.00617, 2404.16767)
Changes: the loss is a function of the log-probs of a problem's completions; pairs of a right and a wrong one are compared
Cost: one forward pass without gradient for each optimiser step, and the reference pass
When: a preference loss on fresh samples is wanted, or (CoPG, P3O) a policy gradient on samples of another policy

l is the sum of a completion's log-probs, h = l - l of the reference policy. The loss of a problem couples its completions, so micro-batches
cannot compute it. They can compute its gradient: that is the sum over completions of c times the gradient of l, with c = dloss / dl. Each
optimiser step computes l of its completions without gradient, then c, and then trains with the token loss c * logp. A minibatch
holds whole problems. `group_loss` has the formula of each loss. The loss of an optimiser step is the mean over its problems.

Deviations: LoRA instead of full fine-tuning.
- A completion is preferred if the verifier gives it the higher reward. There is no reward model.
- LiPO: the rank weight is |1/D_i - 1/D_j|, as DCG has it; the paper prints |D_i - D_j|. If the log-ratios of a problem are all equal, as in
  the first step, every pair has the mean of the rank weights.
- TRPA: level 1 is right, 2 wrong with an answer, 3 without an answer, 4 cut off. The paper's levels ask for a format.
  Its term 0.001 k3 against the policy before the update is left out: it has no gradient at the first update.
- INPO: --beta is its tau. The exact reward takes the place of the preference model. --eta 2 asks for 0.25 nats; the paper's 7.5e-3 for 67.
- There are no importance weights (--importance_cap 0) and no clip, except in P3O, which clips the ratio of the completion.
What to know: with one update per batch the gradients of P3O and of CoPG at a small --beta are those of RLOO. --beta multiplies a sum over
tokens: on completions of hundreds of tokens begin with 1e-3 to 1e-2. IPO's target is 1 / (2 beta) nats. Watch logps/right: DPO
pushes wrong completions down and may take right ones along. A*-PO, which needs no pairs, is examples/astar_po.py.

    python examples/pairs.py --loss dpo --beta 0.1
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
    loss: Literal["copg", "dpo", "ipo", "p3o", "lipo", "trpa", "inpo"] = flag("dpo", "algorithm", "Loss of a problem's completions.")
    beta: float = flag(0.1, "algorithm", "Scale of log-ratios to the reference policy. Shorter steps away from it: a larger beta.")
    eta: float = flag(2.0, "algorithm", "INPO: the target of a log-ratio difference is the difference of rewards / (2 eta).")
    importance_cap: float = flag(0.0, "update", "No importance weights: the losses are not policy gradients of tokens. 0 alone works.")
    epsilon: float = flag(0.2, "algorithm", "P3O: the ratio of a completion is clipped to the range 1 - epsilon to 1 + epsilon.")

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        if self.importance_cap or self.importance_floor or self.sample_ahead or self.loss_aggregation != "token-mean":
            raise UserError("--importance_cap, --importance_floor, --sample_ahead and --loss_aggregation do nothing here: leave them out")
        super().check()
        if self.num_generations < 2:
            raise UserError("--num_generations 1: a group of one has no baseline; give 2 or more (8 is usual)")
        if min(self.beta, self.eta) <= 0 or not 0 <= self.epsilon < 1:
            raise UserError(f"--beta {self.beta} --eta {self.eta} --epsilon {self.epsilon}: give 0 <= epsilon < 1, the others above 0")
        if self.num_minibatches > self.problems_per_step:
            raise UserError("--num_minibatches: a minibatch holds whole problems; give --problems_per_step or less")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
import torch.nn.functional as F
from torch import Tensor

from common.policy.load import load_policy
from common.policy.loss import MAX_LOG_RATIO, aggregate, kl_estimate
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
from common.verify.answers import extract_answer
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


def group_loss(loss: str, logps: Tensor, ref_logps: Tensor, old_logps: Tensor, rewards: Tensor, levels: Tensor, lengths: Tensor, *,
               beta: float, eta: float, epsilon: float) -> Tensor:
    """The loss of the n completions of a problem, a scalar with a gradient with respect to `logps`. Without a pair it is 0.

    logps, ref_logps, old_logps (n,): sums over the tokens of a completion, nats. rewards (n,). levels (n,): 1 is best; see the top.
    lengths (n,) in tokens. h = logps - ref_logps; R: rewards; i, j: the completions of a pair, i the one with the higher reward.

    copg: sum over all pairs of (Rb_i - Rb_j)^2 / (n - 1), Rb = R - beta h.    dpo: mean of -log sigmoid(beta (h_i - h_j)).
    ipo: mean of (h_i - h_j - 1 / (2 beta))^2.    p3o: mean over all pairs of -(R_i - R_j) / 2 (r_i - r_j), r = exp(logps - old), clipped.
    lipo: sum of (2^R_i - 2^R_j) |1/D_i - 1/D_j| softplus(-beta (h_i - h_j)), D = log(1 + rank of h).
    trpa: mean over pairs of different levels of -log sigmoid(z beta (h_i / T_i - h_j / T_j)), z 2.5 if i has level 1, else 1.
    inpo: mean over all pairs of (g_i - g_j - (R_i - R_j) / (2 eta))^2, g = logps - beta / eta ref_logps - (1 - beta / eta) old_logps.
    """
    h, n = logps - ref_logps, len(logps)
    first, second = all_pairs = torch.triu_indices(n, n, offset=1)  # each pair once
    order = -levels if loss == "trpa" else rewards
    better, worse = (order[:, None] > order).nonzero(as_tuple=True)  # the pairs that differ
    if loss == "copg":
        return (rewards - beta * h)[all_pairs].diff(dim=0).square().sum() / max(1, n - 1)
    if loss == "inpo":
        g = logps - beta / eta * ref_logps - (1 - beta / eta) * old_logps
        return (g[first] - g[second] - (rewards[first] - rewards[second]) / (2 * eta)).square().sum() / max(1, len(first))
    if loss == "p3o":
        weight = (rewards - rewards.mean()) * n / 2 / max(1, len(first))  # of r_i: the pairs that hold it, added up
        ratio = torch.exp((logps - old_logps).clamp(max=MAX_LOG_RATIO))
        return -torch.minimum(weight * ratio, weight * ratio.clamp(1 - epsilon, 1 + epsilon)).sum()
    if loss == "lipo":
        inverse = 1 / torch.log(2.0 + h.argsort(descending=True).argsort())
        ranked = h.max() - h.min() > 1e-6  # else all are equal, and their ranks mean nothing
        gap = (inverse[better] - inverse[worse]).abs() if ranked else (inverse[first] - inverse[second]).abs().mean()
        return ((2 ** rewards[better] - 2 ** rewards[worse]) * gap * F.softplus(-beta * (h[better] - h[worse]))).sum()
    if loss == "trpa":
        h, beta = h / lengths, beta * torch.where(levels[better] == 1, 2.5, 1.0)
    margin = h[better] - h[worse]
    each = (margin - 1 / (2 * beta)).square() if loss == "ipo" else F.softplus(-beta * margin)
    return each.sum() / max(1, len(better))

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
        # whole completions are compared in phase 6; the advantages here, reward minus mean reward of the problem, are for the log alone
        advantages = group_advantages(rewards, batch.group_ids, scale_rewards="none")
        levels = torch.tensor([  # (B,) of TRPA: right, wrong, without an answer, cut off
            1 if score > SUCCESS_ABOVE else 4 if c.finish_reason == "length" else 3 if extract_answer(c.text) is None else 2
            for score, c in zip(rewards.tolist(), batch.completions, strict=True)])
        run.log_completions(batch, rewards, advantages)  # rewards (B,), advantages (B,)
        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T): tokens in the loss
        # without a KL term a completion with advantage 0 has gradient 0: it gets no forward pass, but it counts in the loss divisor
        needs_pass = mask.any(dim=1) & ((advantages != 0) | (config.beta > 0))  # (B,)

        # 5 log-probs before the update
        engine.sleep()  # gives up memory that only sampling needs, until it samples again
        old_logps = ref_logps = None  # (B, T) nats: by the policy before the update, and by the reference policy; None: not needed
        with run.timer("update"):
            trained = needs_pass.nonzero()[:, 0]  # numbers of the rows that get a pass
            old_logps = all_logps(policy, batch, trained, config.max_tokens_per_microbatch)
            if config.beta > 0:
                with policy.reference():  # the policy before training: the base model, or the adapter of --adapter
                    ref_logps = all_logps(policy, batch, trained, config.max_tokens_per_microbatch)
            before, ref = ((logps * mask).sum(dim=1) for logps in (old_logps, ref_logps))  # (B,): of whole completions

        # 6 update
        def loss_of(micro: MicroBatch, divisor: float) -> tuple[Tensor, dict[str, Tensor]]:
            """The loss of b completions, and numbers (b, T) to log. It may use all of phase 4, and entropy and kl with their gradients."""
            logps, entropy = policy.logps(micro, entropy=True)  # (b, T) nats, both with a gradient
            old = logps.detach() if old_logps is None else micro.take(old_logps)  # (b, T)
            kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")  # (b, T)
            loss = aggregate(micro.take(coefficients)[:, None] * logps, micro.mask, "seq-mean-token-sum", divisor)
            return loss, {"entropy": entropy, "kl": kl, "difference": (old - micro.sampling_logps).abs()}

        with run.timer("update"):
            check_skipped(loss_of, policy, batch, mask, needs_pass, step)
            means, norms, values = TokenMeans(), [], []
            # one optimiser step per minibatch; a minibatch is cut into micro-batches of b completions that fit in memory
            for part in minibatches(len(chosen), config.num_iterations, config.num_minibatches, config.seed, step):  # whole problems
                minibatch = (torch.isin(batch.group_ids, part) & needs_pass).nonzero()[:, 0]
                totals = before if not norms else (all_logps(policy, batch, minibatch, config.max_tokens_per_microbatch) * mask).sum(dim=1)
                totals = totals.clone().requires_grad_()  # (B,): l, whose gradient is asked for
                each = [group_loss(config.loss, *(x[(batch.group_ids == number) & needs_pass]
                                                  for x in (totals, ref, before, rewards, levels, mask.sum(dim=1))),
                                   beta=config.beta, eta=config.eta, epsilon=config.epsilon) for number in part]
                values.append(torch.stack(each).mean())
                (coefficients,) = torch.autograd.grad(values[-1], totals)  # (B,): dloss / dl
                losses = []
                for micro in microbatches(batch, minibatch[coefficients[minibatch] != 0], config.max_tokens_per_microbatch, policy, mask):
                    loss, numbers = loss_of(micro, 1.0)
                    loss.backward()  # gradients of the micro-batches add up
                    losses.append((micro.rows, loss.detach()))
                    means.add(micro.mask, **numbers)
                norms.append(clip_gradients(optimizer, config.max_grad_norm, len(losses)))
                run.stop_if_not_finite(losses, norms[-1], batch)  # ends the run before NaN can reach the weights
                take_step(optimizer, learning_rate_at(step, config))
            metrics = {
                "entropy": means.mean("entropy"), "kl": means.mean("kl") if config.beta > 0 else None,
                "loss": torch.stack(values).mean().item(),
                "logps/right": before[rewards > SUCCESS_ABOVE].mean().nan_to_num().item() or None,
                "grad_norm": torch.stack(norms).mean().item(),
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
