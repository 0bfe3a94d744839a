"""Pass@k training and PKPO: the reward belongs to sets of k completions, and a set is right if one of its completions is.

Base: train_grpo.py, changed in phase 4
Paper: arXiv 2508.10751, section 2.3 (analytical derivation); PKPO (2505.15201)
Changes: the advantage of a completion is its mean over all sets of k completions of the group that hold it; --method chooses how sets count
Cost: as the base
When: the model is asked several times and one right answer is enough, or training has made its answers too alike

Of n completions of a problem c are right. A share rho = 1 - C(n - c, k) / C(n, k) of the sets is right, and sigma = sqrt(rho (1 - rho)) is
the standard deviation of their rewards. The advantage of a right completion is (1 - rho) / sigma. That of a wrong one is
(1 - rho - C(n - c - 1, k - 1) / C(n - 1, k - 1)) / sigma. With --k 1 this is GRPO.

PKPO (--method pkpo) has the unbiased gradient of pass@k. A completion is worth k / n times the share of right sets among those that hold
it. From each set pkpo_loo subtracts what the set is worth without the completion. Then only right completions have an advantage.

Deviations: those of train_grpo.py. No 1e-6 is added to sigma. A reward above 0.5 is a success. A group with fewer than k completions, which
--sampling adaptive can give, has the advantage 0. There is no overlong penalty, because rewards count as right or wrong here.
What to know: a group with more than n - k right completions has no gradient, so easy problems teach nothing. Advantages get smaller as k
gets larger, which a higher learning rate can make good. With pkpo all advantages are positive or 0. pass@1 may stand still while pass@k
rises. The paper has k 4 and more, n 32.

    python examples/pass_at_k.py --num_generations 16 --k 4
"""
from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/examples/")[0])  # finds common/ from anywhere

from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports, which take seconds, is no stack trace

from dataclasses import dataclass
from functools import partial
from math import comb, sqrt
from pathlib import Path
from typing import Any, ClassVar, Literal

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import for_programs, parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    method: Literal["passk", "pkpo", "pkpo_loo"] = flag("passk", "algorithm", "Pass@k training, PKPO, or PKPO with a baseline.")
    k: int = flag(4, "algorithm", "Completions in a set. A set is right if one of them is. 1: GRPO.")
    epsilon: float = flag(0.2, "algorithm", "Lower clip of the ratio: 1 - epsilon.")
    epsilon_high: float | None = flag(None, "algorithm", "Upper clip of the ratio: 1 + epsilon_high. DAPO: 0.28. Default: epsilon.")

    tiny_defaults: ClassVar[dict[str, Any]] = {**CommonConfig.tiny_defaults, "k": 2}

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        super().check()
        if self.num_generations < 2:
            raise UserError("--num_generations 1: a group of one has no baseline; give 2 or more (8 is usual)")
        if not 1 <= self.k < self.num_generations:
            raise UserError(f"--k {self.k} --num_generations {self.num_generations}: give a k of 1 or more, below num_generations. A group "
                            "of k completions has one set of k, which has nothing to be compared with")
        if not 0 <= self.epsilon < 1 or (self.epsilon_high or 0) < 0:
            raise UserError(f"--epsilon {self.epsilon} --epsilon_high {self.epsilon_high}: give 0 <= epsilon < 1 and epsilon_high >= 0, "
                            "as 0.2 and 0.28")


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
from common.records import SUCCESS_ABOVE, make_batch, prompts_of
from common.rollout.choose_engine import connect, make_engine
from common.rollout.rounds import evaluate, sample, verify
from common.run.metrics import TokenMeans, batch_metrics
from common.run.preflight import preflight
from common.run.run import Run
from common.verify.rewards import make_reward

# ---- the algorithm --------------------------------------------------------------------------------------------------

def pass_at_k_advantages(rewards: Tensor, group_ids: Tensor, k: int, method: str = "passk") -> Tensor:
    """Advantages (B,) over all sets of k completions of a group: pass@k training (arXiv 2508.10751) or PKPO (2505.15201).

    rewards (B,): above 0.5 is a success. group_ids (B,) int64, any numbers: rows with equal numbers are one group.
    A group whose sets are all wrong, and with passk all right, gets exactly 0. So does one with fewer than k completions.
    Rewards [1, 1, 0, 0, 0, 0, 0, 0]: k 4 -> 0.522 for the right ones and -0.174 for the wrong ones; k 1 -> 1.732 and -0.577.
    "pkpo": k 4 -> 0.5 and 0.357. "pkpo_loo": 0.286 and 0.
    """
    advantages, right = torch.zeros_like(rewards), rewards > SUCCESS_ABOVE
    for number in group_ids.unique():
        rows = group_ids == number
        n, c = int(rows.sum()), int((rows & right).sum())
        rho = 1 - comb(n - c, k) / comb(n, k) if n >= k else 0.0  # the share of the sets that are right
        if method == "passk" and 0 < rho < 1:
            without = comb(n - c - 1, k - 1) / comb(n - 1, k - 1)  # of the sets with a certain wrong completion: the share that are wrong
            advantages[rows] = (1 - rho - without) / sqrt(rho * (1 - rho))
            advantages[rows & right] = (1 - rho) / sqrt(rho * (1 - rho))
        elif method != "passk" and rho > 0:
            # of the others in a set with a certain wrong, and with a certain right completion: the share without a success
            beside_wrong, beside_right = (comb(others, k - 1) / comb(n - 1, k - 1) for others in (max(n - c - 1, 0), n - c))
            advantages[rows] = k / n * (1 - beside_wrong) if method == "pkpo" else 0.0
            advantages[rows & right] = k / n * (1.0 if method == "pkpo" else beside_right)
    return advantages


def grpo_token_loss(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float) -> Tensor:
    """Loss of each token (B, T): -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A). GRPO equation 3.

    ratio = exp(logps - old_logps); logps, old_logps (B, T) nats. A: advantages (B,).
    Ratio 1.25 and A 1: with epsilon_high 0.2 the loss is -1.2 and has no gradient. With epsilon_high 0.28 it is -1.25.
    """
    ratio = torch.exp(logps - old_logps)  # (B, T)
    advantages = advantages[:, None]
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantages)


def clipped_tokens(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, epsilon: float, epsilon_high: float) -> Tensor:
    """(B, T) bool: True on tokens without gradient, because their ratio is beyond the clip. Arguments as in `grpo_token_loss`."""
    ratio, advantages = torch.exp(logps - old_logps), advantages[:, None]
    return ((ratio > 1 + epsilon_high) & (advantages > 0)) | ((ratio < 1 - epsilon) & (advantages < 0))

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
        # a completion gets what the sets that hold it are worth, and so do all its tokens
        advantages = pass_at_k_advantages(rewards, batch.group_ids, config.k, config.method)
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
        clip = {"epsilon": config.epsilon, "epsilon_high": config.epsilon if config.epsilon_high is None else config.epsilon_high}

        def loss_of(micro: MicroBatch, divisor: float) -> tuple[Tensor, dict[str, Tensor]]:
            """The loss of b completions, and numbers (b, T) to log. It may use all of phase 4, and entropy and kl with their gradients."""
            logps, entropy = policy.logps(micro, entropy=True)  # (b, T) nats, both with a gradient
            old = logps.detach() if old_logps is None else micro.take(old_logps)  # (b, T)
            token_loss = grpo_token_loss(logps, old, micro.take(advantages), **clip)  # (b, T)
            importance = importance_weights(old, micro.sampling_logps, micro.mask, **config.importance)  # (b, T)
            kl = torch.zeros_like(logps) if ref_logps is None else kl_estimate(logps, micro.take(ref_logps), "k3")  # (b, T)
            loss = aggregate(token_loss * importance + config.beta * kl, micro.mask, config.loss_aggregation, divisor)
            return loss, {"entropy": entropy, "kl": kl, "kept": importance > 0, "difference": (old - micro.sampling_logps).abs(),
                          "clipped": clipped_tokens(logps, old, micro.take(advantages), **clip)}

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
