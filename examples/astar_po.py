"""A*-PO: the optimal value of each problem is estimated before training, and completions are regressed on their distance from it.

Base: train_grpo.py, changed in the set-up, phases 4 and 6
Paper: A*-PO (arXiv 2505.20686), algorithm 1
Changes: loss of a completion = (beta2 h - (R - V*))^2, h = its log-prob less that of the reference policy, over all its tokens;
  V* = beta1 log(mean of exp(R / beta1)) over completions of the reference policy that are sampled before the first step
Cost: --value_generations completions for each problem that the run will meet, before training; the reference pass
When: several passes over the same problems, of which the reference policy solves some; one completion per problem is enough

V* is the value of the best policy at a KL weight of beta1. Rewards of 0 and 1 put it between the success rate (large beta1) and the best
reward (small beta1): one right of eight gives 0.29 at beta1 0.5. A group is not needed: --num_generations 1 is the paper's setting.

Deviations: LoRA instead of full fine-tuning.
- Values are estimated for the problems that --max_steps will meet, not for the whole data set. A resumed run cannot meet others.
- --beta is beta2. There are no importance weights (--importance_cap 0) and no clip.
What to know: values are saved in the checkpoint and are not estimated again. A problem that the reference never solves has V* = 0, so its
first right completions are pushed with the whole reward. --beta multiplies a sum over tokens.

    python examples/astar_po.py --value_generations 8
"""
from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/examples/")[0])  # finds common/ from anywhere

from common.interrupt import end_quietly

end_quietly(__name__)  # a signal during the imports, which take seconds, is no stack trace

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import for_programs, parse_command_line, run_script


@dataclass
class Config(CommonConfig):
    beta: float = flag(1e-3, "algorithm", "beta2: how much a nat of log-prob, over a whole completion, counts as reward.")
    beta1: float = flag(0.5, "algorithm", "KL weight of the policy whose value V* is. Small: best reward. Large: mean reward.")
    value_generations: int = flag(8, "algorithm", "Completions of the reference policy from which the V* of a problem is estimated.")
    importance_cap: float = flag(0.0, "update", "No importance weights: the loss is not a policy gradient of tokens. 0 alone works.")

    def check(self) -> None:
        """Raises UserError for values that cannot work with this algorithm."""
        if self.importance_cap or self.importance_floor or self.sample_ahead or self.loss_aggregation != "token-mean":
            raise UserError("--importance_cap, --importance_floor, --sample_ahead and --loss_aggregation do nothing here: leave them out")
        super().check()
        if min(self.beta, self.beta1) <= 0 or self.value_generations < 1:
            raise UserError("--beta, --beta1 and --value_generations: give numbers above 0, as 1e-3, 0.5 and 8")
        if self.sampling != "uniform":
            raise UserError("--sampling uniform alone: which problems the run will meet is known before it starts")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

import torch
from torch import Tensor

from common.policy.load import load_policy
from common.policy.loss import kl_estimate, loss_divisor
from common.policy.micro_batches import MicroBatch, microbatches, minibatches
from common.policy.optim import clip_gradients, learning_rate_at, make_optimizer, take_step
from common.policy.policy import all_logps
from common.policy.pretrained import context_length, load_tokenizer
from common.policy.skipped import check_skipped
from common.problems.choose import Epochs, ProblemSampler
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import Group, Problem, derive_seed, make_batch, prompts_of
from common.rollout.choose_engine import connect, make_engine
from common.rollout.rounds import Fill, evaluate, sample, verify
from common.run.metrics import TokenMeans, batch_metrics
from common.run.preflight import preflight
from common.run.run import Run
from common.verify.rewards import Reward, make_reward

# ---- the algorithm --------------------------------------------------------------------------------------------------

def best_value(rewards: list[float], beta1: float) -> float:
    """V* = beta1 log(mean of exp(R / beta1)) over rewards R of the reference policy's completions. One 1 in eight, beta1 0.5: 0.293513."""
    scaled = torch.tensor(rewards, dtype=torch.float64) / beta1
    return beta1 * (scaled.logsumexp(0).item() - math.log(len(rewards)))


def astar_loss(logps: Tensor, ref_logps: Tensor, advantages: Tensor, mask: Tensor, beta2: float) -> Tensor:
    """Loss (b,) of each completion: (beta2 h - A)^2, with A = R - V* (b,). h: sum of logps - ref_logps, (b, T) nats, over the mask (b, T).

    R 1, V* 0.293513, h 3, beta2 1e-3 -> 0.494894.
    """
    h = torch.where(mask, logps - ref_logps, 0.0).sum(dim=1)
    return (beta2 * h - advantages).square()


class BestValues:
    """V* of each problem that the run will meet, by its id."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems, self.of = problems, {}

    def estimate(self, fill: Fill, reward: Reward, run: Run, config: Config) -> None:
        """Samples and scores completions of every problem, with the policy that the engine has now."""
        groups = [Group(p, config.value_generations, derive_seed(config.seed, "best values", p.id)) for p in self.problems]
        run.count(fill(groups))
        verify(groups, reward)
        self.of = {group.problem.id: best_value(group.rewards, config.beta1) for group in groups}

    def state_dict(self) -> dict[str, float]:
        return self.of

    def load_state_dict(self, state: dict[str, float]) -> None:
        unknown = [problem.id for problem in self.problems if problem.id not in state]
        if unknown:
            raise UserError(f"--max_steps: the checkpoint has no V* of {unknown[0]} and {len(unknown) - 1} others that further "
                            "steps would meet; start a new run")
        self.of = state

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
    best = BestValues(Epochs(problems, config.seed).take(min(len(problems), config.max_steps * config.problems_per_step)))
    run.start(policy, {"optimizer": optimizer, "sampler": sampler, "reward": reward, "best values": best})
    connect(engine, policy)  # the engine now samples from the policy; a check compares their log-probs
    if run.step == 0:  # the policy is still the reference
        best.estimate(fill, reward, run, config)
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
        # a completion is compared with what the best policy would get on its problem
        advantages = rewards - torch.tensor([best.of[problem.id] for problem in batch.problems])  # (B,)
        run.log_completions(batch, rewards, advantages)  # rewards (B,), advantages (B,)
        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T): tokens in the loss
        needs_pass = mask.any(dim=1)  # (B,)

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
            ref = micro.take(ref_logps)  # (b, T)
            loss = astar_loss(logps, ref, micro.take(advantages), micro.mask, config.beta).sum() / divisor
            kl = kl_estimate(logps.detach(), ref, "k3")  # (b, T): for the log alone
            return loss, {"entropy": entropy, "kl": kl, "difference": (old - micro.sampling_logps).abs()}

        with run.timer("update"):
            check_skipped(loss_of, policy, batch, mask, needs_pass, step)
            means, norms = TokenMeans(), []
            # one optimiser step per minibatch; a minibatch is cut into micro-batches of b completions that fit in memory
            for minibatch in minibatches(len(batch), config.num_iterations, config.num_minibatches, config.seed, step):
                divisor = loss_divisor(mask[minibatch], "seq-mean-token-sum")  # completions, those of all micro-batches
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
                "entropy": means.mean("entropy"), "kl": means.mean("kl"), "value/mean": (rewards - advantages).mean().item(),
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
