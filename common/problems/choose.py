"""Phase 1: choose the problems of a step. docs/learnability.md helps to decide between the ways of `--sampling`.

If the completions of a problem are all right, or all wrong, they teach nothing to an algorithm that compares them with each other.
Every way except `uniform` therefore looks for problems that the policy sometimes solves (arXiv 2502.12272). Words of this file:

- candidate: a problem that is tried in phase 1, and may be chosen or not.
- mixed group: a group with different rewards, that is, with right and wrong completions.
- learnability: p (1 - p), where p is the success rate. It is the variance of a 0/1 reward.
"""
from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from common.config import CommonConfig
from common.console import say
from common.errors import UserError
from common.records import Completion, Group, Problem, Problems, derive_seed
from common.rollout.rounds import Fill, verify
from common.run.run import Run
from common.verify.rewards import Reward

DYNAMIC_ROUNDS = 10  # dynamic: at most this many rounds of candidates in a step (after as many, DAPO's code stops with an error)
BUFFER_STEPS = 10  # buffer: the default of --buffer_steps
BUFFER_SHARE = 0.5  # buffer: share of the step's problems that come from the buffer (the setting "fast" of the official code)
MEMORY_DECAY = 0.95  # outcomes in the memory lose 5 % of their weight per step, and half of it in 14 steps
ADAPTIVE_ROUNDS = 4  # adaptive: calls of the engine in which the completions after the first two are sampled


def learnability(successes: Any, attempts: Any, *, unbiased: bool = False) -> Any:
    """p (1 - p) with p = successes / attempts: how much a problem can teach (arXiv 2502.12272).

    successes, attempts: numbers or arrays. With `unbiased` the result is multiplied by k / (k - 1), where k = attempts. Its mean over
    many draws is then the p (1 - p) of the true p. The result is 0 for one attempt, because one attempt has no variance.
    Example: (1, 8) -> 0.109375, unbiased 0.125. (4, 8) -> 0.25, unbiased 0.285714.
    """
    successes, attempts = np.asarray(successes, dtype=np.float64), np.asarray(attempts, dtype=np.float64)
    # computed from whole numbers, so that 1 of 10 and 9 of 10 give the same bits and count as a tie
    score = successes * (attempts - successes) / np.maximum(attempts * (attempts - 1 if unbiased else attempts), 1)
    score = np.where(attempts > 1, score, 0.0)
    return float(score) if score.ndim == 0 else score


def learnability_of(groups: list[Group]) -> np.ndarray:
    """The unbiased variance of the rewards of each group (N,). For rewards of 0 and 1 this is the unbiased learnability.

    All rewards ever verified count. Groups of different size can be compared, because the estimate has no bias.
    """
    return np.array([learnability(sum(group.scores), len(group.scores), unbiased=True) if set(group.scores) <= {0.0, 1.0}
                     else np.var(group.scores, ddof=1) if len(group.scores) > 1 else 0.0 for group in groups])


def most_learnable(scores: np.ndarray, count: int, seed: int) -> list[int]:
    """The indices of the `count` highest scores, in ascending order. scores: (N,). The seed decides between equal scores.

    Example: [0, 0.19, 0, 0.25, 0.11, 0.11, 0.19, 0] and count 3 -> [1, 3, 6].
    """
    order = random.Random(seed).sample(range(len(scores)), len(scores))
    return sorted(sorted(order, key=lambda i: -scores[i])[:count])


class Epochs:
    """Hands out every problem once per epoch. Each epoch has its own random order, which depends on the seed alone."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self.problems, self.seed = problems, seed
        self.drawn = 0  # number of problems handed out so far; the order follows from it and the seed
        self.epoch, self.order = -1, []  # number of the current epoch, and the order of the problems in it

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems. They may reach into the next epoch."""
        numbers = []
        for i in range(self.drawn, self.drawn + count):
            epoch, place = divmod(i, len(self.problems))
            if epoch != self.epoch:
                self.epoch, self.order = epoch, list(range(len(self.problems)))
                random.Random(derive_seed(self.seed, "epoch", epoch)).shuffle(self.order)
            numbers.append(self.order[place])
        self.drawn += count
        return picked(self.problems, numbers)


def picked(problems: Sequence[Problem], numbers: list[int]) -> list[Problem]:
    """The problems with these numbers."""
    return problems.pick(numbers) if isinstance(problems, Problems) else [problems[number] for number in numbers]


class Memory:
    """Remembers how often each problem was tried and solved: in the whole run, and recently."""

    def __init__(self) -> None:
        self.totals: dict[str, list[int]] = {}  # problem id -> [attempts, successes] of the whole run
        # problem id -> [failures, successes, step]: the weights of earlier outcomes as they were in the problem's last step
        self.recent: dict[str, list[float]] = {}

    def record(self, groups: list[Group], step: int) -> None:
        """Adds the outcomes of the groups that were tried in this step."""
        for group in groups:
            name, failures = group.problem.id, group.attempts - group.successes
            attempts, successes = self.totals.get(name, (0, 0))
            self.totals[name] = [attempts + group.attempts, successes + group.successes]
            failed, solved = self.recent_outcomes(name, step)
            self.recent[name] = [failed + failures, solved + group.successes, step]

    def recent_outcomes(self, name: str, step: int) -> tuple[float, float]:
        """(failures, successes) of the problem `name`. An outcome from n steps ago counts MEMORY_DECAY ** n."""
        failed, solved, last = self.recent.get(name, (0.0, 0.0, step))
        return failed * MEMORY_DECAY ** (step - last), solved * MEMORY_DECAY ** (step - last)

    def thompson_sample(self, names: list[str], count: int, step: int, seed: int) -> list[str]:
        """The `count` problem ids with the highest p (1 - p), highest first, where each success rate p is drawn at random.

        p is drawn from the Beta posterior of the problem's recent outcomes (Thompson sampling). The prior is Jeffreys' Beta(0.5, 0.5).
        A problem that was never tried, or long ago, has a wide posterior, and is therefore often taken.
        """
        if not names:
            return []
        failed, solved = np.zeros((2, len(names)))
        for i, name in enumerate(names):
            if name in self.recent:  # of a million problems, few
                failed[i], solved[i] = self.recent_outcomes(name, step)
        p = np.random.default_rng(seed).beta(0.5 + solved, 0.5 + failed)
        return [names[i] for i in np.argsort(-p * (1 - p), kind="stable")[:count]]


class ProblemSampler:
    """Chooses the problems of each step, as `--sampling` says.

    A step calls `choose` in phase 1, then `record` when all completions are verified, then `metrics`.
    """

    def __init__(self, problems: Sequence[Problem], config: CommonConfig, fill: Fill, reward: Reward, run: Run) -> None:
        """`fill`: the function that samples for groups. lilo, adaptive and dynamic reach a fork's own way of sampling through it."""
        self.config, self.fill, self.reward, self.run = config, fill, reward, run
        self.problems = problems
        self.number_of = problems.number_of if isinstance(problems, Problems) else {
            problem.id: number for number, problem in enumerate(problems)}.get  # a problem's number, or None, from its id
        self.epochs = Epochs(problems, config.seed)
        self.buffer: list[str] = []  # problem ids, with `--sampling buffer`
        self.memory = Memory()
        self.tried: list[Group] = []  # all groups of this step, chosen or not
        self.ahead: list[Group] = []  # with --sample_ahead: those of the next step, which are being sampled

    def choose(self, step: int, problems: list[Problem] | None = None) -> list[Group]:
        """The groups of the step, one per chosen problem.

        lilo, adaptive and dynamic choose by completions that they sample and verify. Their groups come with these completions and
        rewards. The groups of uniform and buffer are still empty. problems: a fork's own choice, in place of that of `--sampling`.
        """
        self.step, self.tried, self.stale = step, [], bool(self.ahead)
        if problems is not None:
            return self._new_groups(problems, self.config.num_generations)
        if self.ahead:
            self.tried, self.ahead = self.ahead, []
            # those that a checkpoint has waited for; the others are sampled, and counted, in phase 2
            self.run.count([completion for group in self.tried for completion in group.completions])
            return self.tried
        return {"uniform": self._uniform, "lilo": self._lilo, "adaptive": self._adaptive, "dynamic": self._dynamic,
                "buffer": self._buffer}[self.config.sampling]()

    def record(self) -> None:
        """Remembers the outcomes of the step. All its completions must have been verified."""
        self._note_first_learnability()
        self.memory.record(self.tried, self.step)
        if self.config.sample_ahead and self.step < self.config.max_steps:
            self._begin_next()

    def metrics(self, chosen: list[Group]) -> dict[str, float]:
        """The metrics `sampling/*`, over all groups that were tried in the step, chosen or not.

        `learnability_batch` alone is over the chosen groups, and each group counts as often as it has completions.
        """
        outcomes = [(group.mixed, group.successes > 0) for group in self.tried]  # rewards that differ are mixed, whatever their size
        return {"sampling/frac_solved": float(np.mean([not mixed and success for mixed, success in outcomes])),
                "sampling/frac_hopeless": float(np.mean([not mixed and not success for mixed, success in outcomes])),
                "sampling/frac_mixed": float(np.mean([mixed for mixed, _ in outcomes])),
                "sampling/candidates": float(len(self.tried)),
                "sampling/learnability_candidates": float(np.mean([group.first_learnability for group in self.tried])),
                "sampling/learnability_batch": float(np.average(learnability_of(chosen), weights=[group.wanted for group in chosen])),
                **({"sampling/staleness": float(self.stale)} if self.config.sample_ahead else {})}  # updates since their adapter

    def state_dict(self) -> dict[str, Any]:
        drawn = self.epochs.drawn
        try:
            if self.ahead:
                self.fill(self.ahead)  # waits: the adapter that they come from is in no checkpoint
        except UserError as error:  # the step that is done must be saved all the same
            say(f"note: this checkpoint has nothing of the next step, which a resumed run will sample itself: {error}")
            drawn -= len(self.ahead)
        ahead = [] if drawn < self.epochs.drawn else [{"problem": group.problem.id, "seed": group.seed, "completions": [
            [one.ids, one.logps, one.finish_reason, one.text] for one in group.completions]} for group in self.ahead]
        return {"drawn": drawn, "buffer": self.buffer, "totals": self.memory.totals, "recent": self.memory.recent,
                **({"ahead": ahead} if ahead else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs.drawn, self.buffer = state["drawn"], state.get("buffer", [])  # checkpoints of older versions have only "drawn"
        self.memory.totals, self.memory.recent = state.get("totals", {}), state.get("recent", {})
        ahead = state.get("ahead", [])
        self.ahead = [Group(problem, self.config.num_generations, one["seed"],
                            completions=[Completion(*completion) for completion in one["completions"]])
                      for problem, one in zip(self._named(one["problem"] for one in ahead), ahead, strict=True)]
        gone = [name for name in self.buffer if self.number_of(name) is None]
        if gone:  # seen earlier, unless the checkpoint is of an older version
            raise UserError(f"--dataset {self.config.dataset} has no usable row {gone[0]}, which the resumed run has in its buffer; put "
                            "back the data that it was trained on, or start a new run from the checkpoint's adapter with --adapter")

    def _begin_next(self) -> None:
        """Chooses the problems of the next step, and has servers sample them while this step updates."""
        now = self.step, self.tried
        self.step, self.tried = self.step + 1, []
        self.ahead = self._uniform()
        self.step, self.tried = now
        self.fill(self.ahead, ahead=True)

    # ---- the ways of --sampling -------------------------------------------------------------------------------------

    def _uniform(self) -> list[Group]:
        """The next problems of the epoch."""
        return self._new_groups(self.epochs.take(self.config.problems_per_step), self.config.num_generations)

    def _lilo(self) -> list[Group]:
        """The most learnable of many candidates, with the completions they were tried with (arXiv 2502.12272, algorithm 2)."""
        candidates = self._sample_and_verify(self._candidates(self.config.candidate_generations or self.config.num_generations))
        kept = self._keep_most_learnable(candidates, self.config.problems_per_step)
        for group in kept:
            group.resize(self.config.num_generations)
        return kept

    def _adaptive(self) -> list[Group]:
        """All candidates: two completions of each, and more of the learnable ones (arXiv 2502.12272, algorithm 3).

        The step has as many completions as with uniform. In each of ADAPTIVE_ROUNDS rounds, pairs of completions go to groups drawn in
        proportion to their learnability so far. The groups differ in size, and no completion is dropped.
        """
        groups = self._sample_and_verify(self._candidates(2))
        left = self.config.problems_per_step * self.config.num_generations - 2 * len(groups)  # completions still to sample
        share = -(-left // ADAPTIVE_ROUNDS)  # completions of a round, rounded up
        draw = random.Random(derive_seed(self.config.seed, "adaptive", self.step))
        while left > 0:
            scores = learnability_of(groups)
            weights = scores if scores.any() else np.ones(len(groups))  # no mixed group yet: all groups alike
            spent = min(left, share)
            for place, group in enumerate(draw.choices(groups, weights, k=-(-spent // 2))):
                group.wanted += min(2, spent - 2 * place)  # the last pair is a single completion if the number is odd
            left -= spent
            self._sample_and_verify([group for group in groups if group.wanted > len(group.completions)])
        return groups

    def _dynamic(self) -> list[Group]:
        """Mixed groups only: rounds of candidates until there are enough (DAPO, arXiv 2503.14476, section 3.2)."""
        wanted, mixed = self.config.problems_per_step, []
        for _ in range(DYNAMIC_ROUNDS):
            mixed += [group for group in self._sample_and_verify(self._candidates(self.config.num_generations)) if group.mixed]
            if len(mixed) >= wanted:
                return mixed[:wanted]
        self.run.say(f"note: step {self.step}: {len(mixed)} of the {len(self.tried)} problems tried in {DYNAMIC_ROUNDS} rounds had both "
                     f"right and wrong completions; going on with {'these' if mixed else 'the first ones tried'} instead of {wanted}")
        return mixed or self.tried[:wanted]

    def _buffer(self) -> list[Group]:
        """Half of the problems from a buffer of learnable problems, and the other half from the epoch (arXiv 2502.12272, version 1).

        Every `--buffer_steps` steps, new candidates fill the buffer. The completions of these candidates are not trained on.
        """
        config = self.config
        if (self.step - 1) % (config.buffer_steps or BUFFER_STEPS) == 0:
            candidates = self._sample_and_verify(self._candidates(config.candidate_generations or config.num_generations))
            self.buffer = [group.problem.id for group in self._keep_most_learnable(candidates, config.problems_per_step)]
        draw = random.Random(derive_seed(config.seed, "buffer", self.step))
        stored = draw.sample(self.buffer, min(math.ceil(BUFFER_SHARE * config.problems_per_step), len(self.buffer)))
        problems = self._named(stored) + self.epochs.take(config.problems_per_step - len(stored))
        return self._new_groups(problems, config.num_generations)

    # ---- steps that these ways share --------------------------------------------------------------------------------

    @cached_property
    def names(self) -> list[str]:
        """The ids of all problems."""
        return self.problems.ids() if isinstance(self.problems, Problems) else [problem.id for problem in self.problems]

    def _named(self, names: Iterable[str]) -> list[Problem]:
        """The problems with these ids."""
        return picked(self.problems, [self.number_of(name) for name in names])

    def _new_groups(self, problems: list[Problem], wanted: int) -> list[Group]:
        """A new group for each problem, still without completions.

        The seed of a group depends on its place among all groups of the step. Two groups of the same problem thus have different seeds.
        """
        groups = [Group(problem, wanted, derive_seed(self.config.seed, "rollouts", self.step, problem.id, place))
                  for place, problem in enumerate(problems, start=len(self.tried))]
        self.tried += groups
        return groups

    def _candidates(self, wanted: int) -> list[Group]:
        """New groups of the problems to try next, by `--candidate_choice`, with `wanted` completions each."""
        count, config = self.config.candidates_per_step, self.config
        if config.candidate_choice == "epochs":
            return self._new_groups(self.epochs.take(count), wanted)
        seed = derive_seed(config.seed, "candidates", self.step, len(self.tried))
        tried = {group.problem.id for group in self.tried}  # in an earlier round of this step
        names = [name for name in self.names if name not in tried]
        chosen = self._named(self.memory.thompson_sample(names, count, self.step, seed))
        # a small data set may have fewer untried problems than candidates; the epoch then gives the missing ones
        return self._new_groups(chosen + self.epochs.take(count - len(chosen)), wanted)

    def _sample_and_verify(self, groups: list[Group]) -> list[Group]:
        """The same groups, after their missing completions were sampled and verified."""
        with self.run.timer("sample"):
            self.run.count(self.fill(groups))
        with self.run.timer("verify"):
            verify(groups, self.reward)
        self._note_first_learnability()
        return groups

    def _note_first_learnability(self) -> None:
        """Sets `first_learnability` of the groups that have just been verified for the first time."""
        for group in self.tried:
            if group.scores and math.isnan(group.first_learnability):
                group.first_learnability = float(learnability_of([group])[0])

    def _keep_most_learnable(self, groups: list[Group], count: int) -> list[Group]:
        """The `count` most learnable groups, of different problems as far as possible. The seed decides between equal ones."""
        scores, seen = learnability_of(groups), set()
        for i, group in enumerate(groups):
            if group.problem.id in seen:  # the second group of a problem, in a small data set: it comes last
                scores[i] = -1.0
            seen.add(group.problem.id)
        return [groups[i] for i in most_learnable(scores, count, derive_seed(self.config.seed, "ties", self.step))]
