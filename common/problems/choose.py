"""Phase 1: which problems to train on. docs/learnability.md says which `--sampling` to take when, and what it costs.

All but `uniform` look for problems that the policy sometimes solves (arXiv 2502.12272): those where every completion is right, or
every one wrong, teach nothing when rewards are compared within a problem.
"""
from __future__ import annotations

import math
import random
from typing import Any

import numpy as np

from common.config import CommonConfig
from common.records import Group, Problem, derive_seed
from common.rollout.engine import Engine
from common.rollout.rounds import sample, verify
from common.run.run import Run
from common.verify.rewards import Reward

DYNAMIC_ROUNDS = 10  # of looking for mixed groups, at most (DAPO's code stops there with an error)
BUFFER_STEPS = 10  # between renewals
BUFFER_SHARE = 0.5  # of a step's problems, from a buffer that holds as many as a step (the official code's "fast")
FADING = 0.95  # a step ago counts this much in what is remembered of a problem: half after 14 steps
ADAPTIVE_ROUNDS = 4  # calls of the engine that share the budget left after the first two completions each


def learnability(successes: Any, attempts: Any, *, unbiased: bool = False) -> Any:
    """p (1 - p) with p = successes / attempts: how much a problem can teach (arXiv 2502.12272). Numbers or arrays.

    `unbiased` multiplies by k / (k - 1), k = attempts, so that the mean over samples is the true p (1 - p). One attempt
    tells nothing: 0. (1, 8) -> 0.109375, unbiased 0.125; (4, 8) -> 0.25, unbiased 0.285714.
    """
    successes, attempts = np.asarray(successes, dtype=np.float64), np.asarray(attempts, dtype=np.float64)
    # from whole numbers, so that 1 of 10 and 9 of 10 are equal to the last bit
    score = successes * (attempts - successes) / np.maximum(attempts * (attempts - 1 if unbiased else attempts), 1)
    score = np.where(attempts > 1, score, 0.0)
    return float(score) if score.ndim == 0 else score



def scores_of(groups: list[Group]) -> np.ndarray:
    """The variance of each group's rewards (N,), unbiased: for rewards of 0 and 1 the learnability, comparable for all sizes."""
    return np.array([learnability(sum(group.scores), len(group.scores), unbiased=True) if set(group.scores) <= {0.0, 1.0}
                     else np.var(group.scores, ddof=1) if len(group.scores) > 1 else 0.0 for group in groups])



def most_learnable(scores: np.ndarray, count: int, seed: int) -> list[int]:
    """Indices of the `count` highest scores (N,), ascending. Which of equal ones are taken depends on the seed.

    [0, 0.19, 0, 0.25, 0.11, 0.11, 0.19, 0], 3 -> [1, 3, 6]
    """
    order = random.Random(seed).sample(range(len(scores)), len(scores))
    return sorted(sorted(order, key=lambda i: -scores[i])[:count])



class Epochs:
    """Every problem once per epoch, in an order drawn anew for each from the seed."""

    def __init__(self, problems: list[Problem], seed: int) -> None:
        self.problems, self.seed = problems, seed
        self.drawn = 0  # problems handed out so far: with the seed, all there is to know
        self.epoch, self.order = -1, []  # the order of that epoch

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems."""
        taken = []
        for i in range(self.drawn, self.drawn + count):
            epoch, place = divmod(i, len(self.problems))
            if epoch != self.epoch:
                self.epoch, self.order = epoch, list(range(len(self.problems)))
                random.Random(derive_seed(self.seed, "epoch", epoch)).shuffle(self.order)
            taken.append(self.problems[self.order[place]])
        self.drawn += count
        return taken



class Memory:
    """How often each problem was tried and solved: over the whole run, and with what is long ago counting less."""

    def __init__(self) -> None:
        self.totals: dict[str, list[int]] = {}  # attempts and successes, by problem id
        self.recent: dict[str, list[float]] = {}  # failures and successes as of their last step, and that step

    def record(self, groups: list[Group], step: int) -> None:
        """Adds what was tried in a step."""
        for group in groups:
            name, failures = group.problem.id, group.attempts - group.successes
            attempts, successes = self.totals.get(name, (0, 0))
            self.totals[name] = [attempts + group.attempts, successes + group.successes]
            failed, solved = self.faded(name, step)
            self.recent[name] = [failed + failures, solved + group.successes, step]

    def faded(self, name: str, step: int) -> tuple[float, float]:
        """Failures and successes of a problem, each worth FADING ** (steps since)."""
        failed, solved, last = self.recent.get(name, (0.0, 0.0, step))
        return failed * FADING ** (step - last), solved * FADING ** (step - last)

    def promising(self, names: list[str], count: int, step: int, seed: int) -> list[str]:
        """The `count` names with the highest p (1 - p), each p drawn from its Beta posterior (Thompson sampling), highest first.

        The prior is Jeffreys', Beta(0.5, 0.5): a problem that was never tried, or long ago, is often worth a try.
        """
        if not names:
            return []
        failed, solved = np.array([self.faded(name, step) for name in names]).T
        p = np.random.default_rng(seed).beta(0.5 + solved, 0.5 + failed)
        return [names[i] for i in np.argsort(-p * (1 - p), kind="stable")[:count]]



class ProblemSampler:
    """Chooses a step's problems as `--sampling` says, and remembers how often each was tried and solved."""

    def __init__(self, problems: list[Problem], config: CommonConfig, engine: Engine, reward: Reward, run: Run) -> None:
        self.config, self.engine, self.reward, self.run = config, engine, reward, run
        self.by_id = {problem.id: problem for problem in problems}
        self.epochs = Epochs(problems, config.seed)
        self.buffer: list[str] = []  # ids, for `buffer`
        self.memory = Memory()
        self.tried: list[Group] = []  # in this step, kept or not

    def choose(self, step: int) -> list[Group]:
        """The step's groups, with the completions and rewards that it took to choose them: none for `uniform` and `buffer`."""
        self.step, self.tried = step, []
        return {"uniform": self._uniform, "lilo": self._lilo, "adaptive": self._adaptive, "dynamic": self._dynamic,
                "buffer": self._buffer}[self.config.sampling]()

    def record(self) -> None:
        """Remembers the outcomes of the step, once all of it has been verified."""
        self._score()
        self.memory.record(self.tried, self.step)

    def metrics(self, chosen: list[Group]) -> dict[str, float]:
        """What was tried in the step, kept or not: always solved, never, or mixed; and the mean learnability, of the batch too."""
        outcomes = [(group.successes, group.attempts) for group in self.tried]
        return {"sampling/frac_solved": float(np.mean([successes == attempts for successes, attempts in outcomes])),
                "sampling/frac_hopeless": float(np.mean([successes == 0 for successes, _ in outcomes])),
                "sampling/frac_mixed": float(np.mean([group.mixed for group in self.tried])),
                "sampling/candidates": float(len(self.tried)),
                "sampling/learnability_candidates": float(np.mean([group.first for group in self.tried])),
                "sampling/learnability_batch": float(np.average(scores_of(chosen), weights=[group.wanted for group in chosen]))}

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.epochs.drawn, "buffer": self.buffer, "totals": self.memory.totals, "recent": self.memory.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs.drawn, self.buffer = state["drawn"], state.get("buffer", [])  # checkpoints of older versions have no more
        self.memory.totals, self.memory.recent = state.get("totals", {}), state.get("recent", {})

    # ---- the ways to choose -----------------------------------------------------------------------------------------

    def _uniform(self) -> list[Group]:
        return self._open(self.epochs.take(self.config.problems_per_step), self.config.num_generations)

    def _lilo(self) -> list[Group]:
        """The most learnable of a pool of candidates; their completions are trained on (arXiv 2502.12272, algorithm 2)."""
        candidates = self._try_out(self._candidates(self.config.candidate_generations or self.config.num_generations))
        kept = self._most_learnable(candidates, self.config.problems_per_step)
        for group in kept:
            group.resize(self.config.num_generations)
        return kept

    def _adaptive(self) -> list[Group]:
        """Two completions of each candidate, then more for the learnable until the batch is full (algorithm 3, in rounds).

        All are trained on: the groups differ in size, and no completion is dropped.
        """
        groups = self._try_out(self._candidates(2))
        left = self.config.problems_per_step * self.config.num_generations - 2 * len(groups)
        share = -(-left // ADAPTIVE_ROUNDS)
        draw = random.Random(derive_seed(self.config.seed, "adaptive", self.step))
        while left > 0:
            scores = scores_of(groups)
            weights = scores if scores.any() else np.ones(len(groups))
            spent = min(left, share)
            for place, group in enumerate(draw.choices(groups, weights, k=-(-spent // 2))):
                group.wanted += min(2, spent - 2 * place)
            left -= spent
            self._try_out([group for group in groups if group.wanted > len(group.completions)])
        return groups

    def _dynamic(self) -> list[Group]:
        """Mixed groups only; more candidates until the batch is full (DAPO, arXiv 2503.14476, section 3.2)."""
        wanted, mixed = self.config.problems_per_step, []
        for _ in range(DYNAMIC_ROUNDS):
            mixed += [group for group in self._try_out(self._candidates(self.config.num_generations)) if group.mixed]
            if len(mixed) >= wanted:
                return mixed[:wanted]
        self.run.say(f"note: step {self.step}: {len(mixed)} of the {len(self.tried)} problems tried in {DYNAMIC_ROUNDS} rounds had both "
                     f"right and wrong completions; going on with {'them' if mixed else 'the first ones tried'} instead of {wanted}")
        return mixed or self.tried[:wanted]

    def _buffer(self) -> list[Group]:
        """A share of the batch from a store of learnable problems, renewed every `--buffer_steps`; its completions are dropped."""
        config = self.config
        if (self.step - 1) % (config.buffer_steps or BUFFER_STEPS) == 0:
            candidates = self._try_out(self._candidates(config.candidate_generations or config.num_generations))
            self.buffer = [group.problem.id for group in self._most_learnable(candidates, config.problems_per_step)]
        draw = random.Random(derive_seed(config.seed, "buffer", self.step))
        stored = draw.sample(self.buffer, min(math.ceil(BUFFER_SHARE * config.problems_per_step), len(self.buffer)))
        problems = [self.by_id[name] for name in stored] + self.epochs.take(config.problems_per_step - len(stored))
        return self._open(problems, config.num_generations)

    # ---- what they share --------------------------------------------------------------------------------------------

    def _open(self, problems: list[Problem], wanted: int) -> list[Group]:
        """A group for each problem; the place among all of the step tells two of the same problem apart."""
        groups = [Group(problem, wanted, derive_seed(self.config.seed, "rollouts", self.step, problem.id, place))
                  for place, problem in enumerate(problems, start=len(self.tried))]
        self.tried += groups
        return groups

    def _candidates(self, wanted: int) -> list[Group]:
        count, config = self.config.candidates_per_step, self.config
        if config.candidate_choice == "epochs":
            return self._open(self.epochs.take(count), wanted)
        seed = derive_seed(config.seed, "candidates", self.step, len(self.tried))
        again = {group.problem.id for group in self.tried}  # in an earlier round of this step
        names = [name for name in self.by_id if name not in again]
        chosen = [self.by_id[name] for name in self.memory.promising(names, count, self.step, seed)]
        return self._open(chosen + self.epochs.take(count - len(chosen)), wanted)  # the rest where there are too few problems

    def _try_out(self, groups: list[Group]) -> list[Group]:
        with self.run.timer("sample"):
            self.run.count(sample(groups, self.engine, self.config))
        with self.run.timer("verify"):
            verify(groups, self.reward)
        self._score()
        return groups

    def _score(self) -> None:
        for group in self.tried:
            if group.scores and math.isnan(group.first):
                group.first = float(scores_of([group])[0])

    def _most_learnable(self, groups: list[Group], count: int) -> list[Group]:
        scores, seen = scores_of(groups), set()
        for i, group in enumerate(groups):
            if group.problem.id in seen:  # in a small data set a problem comes up twice: the second time only to fill up
                scores[i] = -1.0
            seen.add(group.problem.id)
        return [groups[i] for i in most_learnable(scores, count, derive_seed(self.config.seed, "ties", self.step))]
