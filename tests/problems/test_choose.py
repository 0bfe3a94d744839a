import io
import random
from contextlib import nullcontext
from functools import partial
from math import comb

import numpy as np
import pytest
import torch

from common.config import CommonConfig
from common.errors import UserError
from common.problems.choose import (
    DYNAMIC_ROUNDS,
    MEMORY_DECAY,
    Epochs,
    Memory,
    ProblemSampler,
    learnability,
    learnability_of,
    most_learnable,
)
from common.records import Completion, Group, Problem, derive_seed
from common.rollout.rounds import sample, verify


class Engine:
    """Problem i is solved with probability rates[i], as the request's seed has it."""

    def __init__(self, rates):
        self.rates, self.calls = rates, []

    def generate(self, requests):
        self.calls.append(requests)
        groups = []
        for request in requests:
            rng = random.Random(request.seed)
            texts = ["right" if rng.random() < self.rates[request.prompt_ids[0]] else "wrong" for _ in range(request.n)]
            groups.append([Completion([0, 1], [0.0, 0.0], "stop", text) for text in texts])
        return groups


class Reward:
    def __init__(self):
        self.calls = []

    def __call__(self, problems, completions):
        self.calls.append(len(completions))
        return torch.tensor([float(completion.text == "right") for completion in completions])


class Run:
    def __init__(self):
        self.counted, self.said = 0, []

    def timer(self, phase):
        return nullcontext()

    def count(self, completions):
        self.counted += len(completions)

    def say(self, text):
        self.said.append(text)


def problems_of(count):
    return [Problem(f"p{i}", "", (i,), "") for i in range(count)]


def make(rates, **flags):
    config = CommonConfig(**{"problems_per_step": 4, "num_generations": 8, **flags})
    config.check()
    engine = Engine(rates)
    sampler = ProblemSampler(problems_of(len(rates)), config, partial(sample, engine=engine, config=config), Reward(), Run())
    sampler.engine = engine  # for the tests to look at
    return sampler


def step(sampler, number=1):
    """Phases 1 to 3. Returns the groups, and the requests and rewards that phases 2 and 3 asked for on top of phase 1's."""
    chosen = sampler.choose(number)
    asked, scored = len(sampler.engine.calls), len(sampler.reward.calls)
    sampler.run.count(sampler.fill(chosen))
    rewards = verify(chosen, sampler.reward)
    sampler.record()
    assert rewards.tolist() == [float(c.text == "right") for group in chosen for c in group.completions]
    assert all(len(group.completions) == len(group.rewards) == group.wanted for group in chosen)
    return chosen, [request for call in sampler.engine.calls[asked:] for request in call], sampler.reward.calls[scored:]


def group_of(successes, attempts, problem=None):
    return Group(
        problem,
        attempts,
        0,
        scores=[1.0] * successes + [0.0] * (attempts - successes),
        first_learnability=learnability(successes, attempts, unbiased=True),
    )


FEW = [1.0] * 70 + [0.0] * 20 + [0.5] * 10  # solved, hopeless, learnable


def learnable(group):
    return int(group.problem.id[1:]) >= 90


def test_learnability_test_vectors():
    pairs = {(1, 8): (0.109375, 0.125), (2, 8): (0.1875, 0.214286), (4, 8): (0.25, 0.285714), (3, 4): (0.1875, 0.25), (1, 2): (0.25, 0.5)}
    for (s, k), (plain, unbiased) in {**pairs, (0, 8): (0, 0), (8, 8): (0, 0)}.items():
        assert learnability(s, k) == plain and learnability(s, k, unbiased=True) == pytest.approx(unbiased, abs=1e-6)
    assert learnability(1, 1, unbiased=True) == 0 and learnability(0, 0) == 0
    weights = np.array([comb(8, s) * 0.3**s * 0.7 ** (8 - s) for s in range(9)])
    assert weights @ learnability(np.arange(9), 8) == pytest.approx(0.183750)
    assert weights @ learnability(np.arange(9), 8, unbiased=True) == pytest.approx(0.21)


def test_selection_test_vector_and_ties_by_the_seed():
    scores = learnability(np.array([8, 6, 0, 4, 1, 7, 2, 8]), 8)
    assert scores.tolist() == [0, 0.1875, 0, 0.25, 0.109375, 0.109375, 0.1875, 0]
    for seed in range(20):
        assert most_learnable(scores, 3, seed) == [1, 3, 6]
    assert {tuple(most_learnable(scores, 2, seed)) for seed in range(20)} == {(1, 3), (3, 6)}
    assert most_learnable(scores, 2, 5) == most_learnable(scores, 2, 5)
    assert {i for seed in range(50) for i in most_learnable(np.zeros(4), 1, seed)} == {0, 1, 2, 3}


def test_share_of_mixed_groups_test_vector():
    wanted = {
        8: {0.01: 0.077255, 0.05: 0.336580, 0.1: 0.569533, 0.3: 0.942286, 0.5: 0.992188},
        16: {0.01: 0.148542, 0.05: 0.559873, 0.1: 0.814698, 0.3: 0.996677, 0.5: 0.999969},
    }
    for size, shares in wanted.items():
        for p, share in shares.items():
            for q in (p, 1 - p):
                groups = [(group_of(s, size), comb(size, s) * q**s * (1 - q) ** (size - s)) for s in range(size + 1)]
                assert sum(weight for group, weight in groups if group.mixed) == pytest.approx(share, abs=1e-6)


def test_uniform_sampling_goes_through_every_problem_once_per_epoch_and_resumes():
    problems = problems_of(10)
    epochs = Epochs(problems, seed=3)
    drawn = [p.id for _ in range(10) for p in epochs.take(4)]
    parts = [drawn[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(part) == [f"p{i}" for i in range(10)] for part in parts)
    assert parts[0] != parts[1]
    resumed = Epochs(problems, seed=3)
    resumed.drawn = 12
    assert [p.id for p in resumed.take(8)] == drawn[12:20]
    assert [p.id for p in Epochs(problems, seed=4).take(10)] != parts[0]


def test_uniform_samples_nothing_before_phase_2_and_each_problem_once():
    sampler = make(FEW)
    chosen, requests, scored = step(sampler)
    assert len(requests) == 4 and all(request.n == 8 for request in requests) and scored == [32]
    assert [r.seed for r in requests] == [derive_seed(0, "rollouts", 1, group.problem.id, i) for i, group in enumerate(chosen)]
    assert len(sampler.engine.calls) == 1 and sampler.run.counted == 32


def test_lilo_keeps_the_most_learnable_and_trains_on_their_candidate_rollouts():
    sampler = make(FEW, sampling="lilo", candidate_factor=10)
    chosen, requests, scored = step(sampler)
    assert requests == [] and scored == []  # nothing is sampled or verified twice
    assert len(sampler.engine.calls) == 1 and sampler.run.counted == 40 * 8
    assert len(chosen) == 4 and min(learnability_of(chosen)) >= np.sort(learnability_of(sampler.tried))[-4]
    assert sum(map(learnable, sampler.tried)) >= 4 and all(map(learnable, chosen))  # 40 of the 100 problems: some are learnable


def test_lilo_fills_the_batch_where_too_few_are_learnable():
    chosen, _, _ = step(make([1.0] * 50, sampling="lilo"))
    assert len(chosen) == 4 and not learnability_of(chosen).any()


@pytest.mark.parametrize("tried", [2, 4, 12])
def test_lilo_with_another_number_of_candidate_rollouts_samples_what_is_missing(tried):
    sampler = make(FEW, sampling="lilo", candidate_factor=10, candidate_generations=tried)
    chosen, requests, scored = step(sampler)
    assert all(len(group.completions) == 8 for group in chosen)
    missing = max(0, 8 - tried)
    assert [request.n for request in requests] == [missing] * (4 if missing else 0) and sum(scored) == 4 * missing
    assert sampler.run.counted == 40 * tried + 4 * missing
    seeds = [request.seed for call in sampler.engine.calls for request in call]
    assert len(set(seeds)) == len(seeds)
    assert all(group.attempts == max(8, tried) for group in chosen)  # what was dropped has still been seen


def test_adaptive_spends_the_uniform_budget_where_it_is_learnable():
    sampler = make(FEW, sampling="adaptive", problems_per_step=16)
    shares = []
    for number in range(1, 9):
        before = sampler.run.counted
        chosen, requests, _ = step(sampler, number)
        assert requests == [] and chosen == sampler.tried and len(chosen) == 32
        assert sum(len(group.completions) for group in chosen) == sampler.run.counted - before == 128
        assert min(len(group.completions) for group in chosen) >= 2
        shares.append(sum(len(group.completions) for group in chosen if learnable(group)) / 128)
        mixed = [group for group in chosen if group.mixed]
        assert not mixed or max(len(group.completions) for group in chosen) > 2
    assert np.mean(shares) > 0.4  # 10 % of the problems
    assert all(len(call) <= 32 for call in sampler.engine.calls) and len(sampler.engine.calls) <= 8 * 5  # rounds, not draws


def test_adaptive_draws_in_proportion_to_learnability():
    """Rates .5, .1 and 1: p (1 - p) is .25, .09 and 0, so .735 of the draws go to the first once the rates are known."""
    shares = []
    for seed in range(5):
        sampler = make([0.5, 0.1, 1.0], sampling="adaptive", problems_per_step=3, num_generations=4000, candidate_factor=1, seed=seed)
        step(sampler)
        later = [(request.prompt_ids[0], request.n) for call in sampler.engine.calls[2:] for request in call]
        known = {i for i, _ in later} == {0, 1}  # else the first tries of one of them were all alike
        shares += [sum(n for i, n in later if i == 0) / sum(n for _, n in later)] if known else []
        assert sum(n for i, n in later if i == 2) == 0
    assert len(shares) >= 2 and all(0.70 < share < 0.77 for share in shares)


def test_adaptive_is_uniform_while_nothing_is_learnable():
    sampler = make([0.0] * 8, sampling="adaptive", problems_per_step=4, num_generations=100)
    chosen, _, _ = step(sampler)
    sizes = [len(group.completions) for group in chosen]
    assert sum(sizes) == 400 and min(sizes) > 25 and max(sizes) < 80


@pytest.mark.parametrize("generations", [5, 7])
def test_adaptive_keeps_to_an_odd_budget(generations):
    sampler = make(FEW, sampling="adaptive", problems_per_step=3, num_generations=generations)
    step(sampler)
    assert sampler.run.counted == 3 * generations


def test_dynamic_keeps_mixed_groups_only_and_samples_until_the_batch_is_full():
    sampler = make([1.0] * 50 + [0.0] * 10 + [0.5] * 40, sampling="dynamic")
    chosen, requests, _ = step(sampler)
    assert requests == [] and len(chosen) == 4 and all(group.mixed for group in chosen)
    assert 1 < len(sampler.engine.calls) < DYNAMIC_ROUNDS and sampler.run.counted == 8 * len(sampler.tried)
    assert chosen == [group for group in sampler.tried if group.mixed][:4] and not sampler.run.said


def test_dynamic_goes_on_with_what_there_is_and_says_so():
    sampler = make([1.0] * 36 + [0.5] * 2, sampling="dynamic")
    chosen, _, _ = step(sampler)
    assert len(sampler.engine.calls) == DYNAMIC_ROUNDS and 1 <= len(chosen) < 4 and all(group.mixed for group in chosen)
    assert "of the 40 problems tried in 10 rounds" in sampler.run.said[0]
    sampler = make([1.0] * 50, sampling="dynamic")
    chosen, _, _ = step(sampler)
    assert len(chosen) == 4 and "the first ones tried" in sampler.run.said[0]


def test_a_problem_that_comes_up_twice_in_a_step_is_sampled_with_two_seeds():
    sampler = make([0.5, 1.0], sampling="dynamic")
    step(sampler)
    seeds = [request.seed for call in sampler.engine.calls for request in call]
    assert len(seeds) > 2 and len(set(seeds)) == len(seeds)


def test_buffer_is_renewed_on_its_steps_and_gives_its_share():
    sampler = make(FEW, sampling="buffer", buffer_steps=3, candidate_factor=10)
    for number in range(1, 8):
        before, calls = list(sampler.buffer), len(sampler.engine.calls)
        chosen, requests, _ = step(sampler, number)
        renewed = number in (1, 4, 7)
        assert len(sampler.engine.calls) - calls == 1 + renewed and len(requests) == 4  # candidates' rollouts are not trained on
        assert (sampler.buffer != before) == renewed and len(sampler.buffer) == 4
        assert sum(group.problem.id in sampler.buffer for group in chosen) >= 2
        assert len(chosen) == 4 and {group.problem.id for group in chosen[:2]} <= set(sampler.buffer)


@pytest.mark.parametrize("choice", ["epochs", "memory"])
@pytest.mark.parametrize("sampling", ["uniform", "lilo", "adaptive", "dynamic", "buffer"])
def test_the_seed_decides_and_a_resumed_sampler_goes_on_as_the_first_would_have(sampling, choice):
    if (sampling, choice) == ("uniform", "memory"):
        pytest.skip("refused")
    rates = np.random.default_rng(0).choice([0.0, 0.3, 0.6, 1.0], 60).tolist()
    flags = {"sampling": sampling, "candidate_choice": choice, **({"buffer_steps": 4} if sampling == "buffer" else {})}
    whole, other = make(rates, **flags), make(rates, seed=1, **flags)

    def ids(sampler, number):
        return [(group.problem.id, [c.text for c in group.completions]) for group in step(sampler, number)[0]]

    drawn = [ids(whole, number) for number in range(1, 8)]
    assert drawn != [ids(other, number) for number in range(1, 8)]
    first = make(rates, **flags)
    assert [ids(first, number) for number in (1, 2)] == drawn[:2]  # for `buffer`: in the middle of a period
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = make(rates, **flags)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [ids(resumed, number) for number in range(3, 8)] == drawn[2:]
    assert resumed.state_dict() == whole.state_dict()


def test_the_memory_counts_every_attempt_kept_or_not():
    sampler = make(FEW, sampling="lilo")
    for number in range(1, 11):
        step(sampler, number)
    assert sum(attempts for attempts, _ in sampler.memory.totals.values()) == sampler.run.counted == 10 * 16 * 8
    assert sampler.memory.totals["p0"][0] == sampler.memory.totals["p0"][1] and sampler.memory.totals["p80"][1] == 0
    tried = [entry for name, entry in sampler.memory.totals.items() if int(name[1:]) >= 90]
    assert 0.3 < sum(s for _, s in tried) / sum(a for a, _ in tried) < 0.7


def test_memory_fades_by_the_step():
    memory, problem = Memory(), Problem("p", "", (0,), "")
    memory.record([group_of(2, 8, problem)], 10)
    assert memory.recent_outcomes("p", 10) == (6, 2) and memory.recent_outcomes("other", 10) == (0, 0)
    assert memory.recent_outcomes("p", 13) == pytest.approx((6 * MEMORY_DECAY**3, 2 * MEMORY_DECAY**3))
    memory.record([group_of(4, 4, problem)], 13)
    assert memory.recent_outcomes("p", 14) == pytest.approx((6 * MEMORY_DECAY**4, 2 * MEMORY_DECAY**4 + 4 * MEMORY_DECAY))
    assert memory.totals["p"] == [12, 6]


def test_memory_finds_promising_what_was_sometimes_solved_then_what_is_unknown_and_with_time_the_rest():
    memory, names = Memory(), ["mixed", "solved", "hopeless", "new"]
    outcomes = {"mixed": 4, "solved": 8, "hopeless": 0}
    memory.record([group_of(s, 8, Problem(name, "", (0,), "")) for name, s in outcomes.items()], 1)

    def shares(step):
        first = [memory.thompson_sample(names, 1, step, seed)[0] for seed in range(2000)]
        return {name: first.count(name) / 2000 for name in names}

    soon, late = shares(2), shares(200)
    assert soon["mixed"] > 0.6 > 0.15 < soon["new"] and soon["solved"] < 0.05 and soon["hopeless"] < 0.05
    assert all(0.2 < share < 0.3 for share in late.values())  # forgotten
    drawn = memory.thompson_sample(names, 4, 2, 7)
    assert drawn == memory.thompson_sample(names, 4, 2, 7) and set(drawn) == set(names)


@pytest.mark.parametrize("sampling", ["lilo", "adaptive", "dynamic"])
def test_candidates_from_memory_are_more_often_learnable(sampling):
    flags = {"sampling": sampling, "candidate_factor": 1, "problems_per_step": 8}
    share = {}
    for choice in ("epochs", "memory"):
        sampler, found = make(FEW, candidate_choice=choice, **flags), []
        for number in range(1, 61):
            step(sampler, number)
            found += [learnable(group) for group in sampler.tried if number > 20]
        share[choice] = np.mean(found)
    # after a first pass over the 100 problems
    assert share["memory"] > 2 * share["epochs"]


def test_dynamic_sampling_from_memory_tries_no_problem_twice_in_a_step():
    sampler = make(FEW, sampling="dynamic", candidate_choice="memory")
    for number in range(1, 6):
        step(sampler, number)
        names = [group.problem.id for group in sampler.tried]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("low, high", [(0.1, 0.4), (-2.0, -1.0), (0.6, 7.0), (0.0, 1.0), (-1.0, 1.0)])
def test_solved_mixed_and_hopeless_are_shares_of_a_whole_whatever_the_rewards(low, high):
    sampler = make([1.0, 0.0, 0.5, 0.5] * 10, sampling="lilo", candidate_factor=10)
    sampler.reward = lambda problems, completions: torch.tensor([high if c.text == "right" else low for c in completions])
    sampler.choose(1)
    metrics = sampler.metrics(sampler.tried)
    mixed = np.mean([len(set(group.scores)) == 2 for group in sampler.tried])
    assert metrics["sampling/frac_mixed"] == mixed > 0.4
    assert metrics["sampling/frac_solved"] + metrics["sampling/frac_hopeless"] == pytest.approx(1 - mixed)
    solved = [min(group.scores) == max(group.scores) > 0.5 for group in sampler.tried]
    assert metrics["sampling/frac_solved"] == np.mean(solved)


def test_metrics_are_of_all_that_was_tried_and_of_the_batch():
    sampler = make([1.0, 0.0, 0.5, 0.5] * 10, sampling="lilo", candidate_factor=10)
    chosen, _, _ = step(sampler)
    metrics = sampler.metrics(chosen)
    assert metrics["sampling/frac_solved"] == pytest.approx(0.25, abs=0.03)
    assert metrics["sampling/frac_hopeless"] == pytest.approx(0.25, abs=0.03)
    assert metrics["sampling/frac_solved"] + metrics["sampling/frac_hopeless"] + metrics["sampling/frac_mixed"] == pytest.approx(1)
    assert metrics["sampling/learnability_candidates"] == pytest.approx(learnability_of(sampler.tried).mean())
    assert metrics["sampling/learnability_batch"] == pytest.approx(np.sort(learnability_of(sampler.tried))[-4:].mean())
    assert metrics["sampling/candidates"] == 40


def test_learnability_of_a_ragged_batch_counts_its_completions():
    sampler = make(FEW)
    groups = [group_of(3, 6), group_of(0, 2)]
    sampler.tried = groups
    assert sampler.metrics(groups)["sampling/learnability_batch"] == pytest.approx(0.75 * 0.3)
    assert sampler.metrics(groups)["sampling/learnability_candidates"] == pytest.approx(0.5 * 0.3)


def test_graded_rewards_are_mixed_if_they_differ_and_learnable_by_their_variance():
    group = Group(Problem("p", "", (0,), ""), 3, 0, completions=[Completion([0], [0.0], "stop", text) for text in "abc"])
    rewards = verify([group], lambda problems, completions: torch.tensor([0.5, 0.75, -1.0]))
    assert rewards.tolist() == [0.5, 0.75, -1.0] and (group.attempts, group.successes) == (3, 1)
    assert group.mixed and learnability_of([group])[0] == pytest.approx(np.var([0.5, 0.75, -1.0], ddof=1))
    assert not Group(None, 2, 0, scores=[0.5, 0.5]).mixed and Group(None, 2, 0, scores=[0.6, 1.0]).mixed


@pytest.mark.parametrize("attempts", [5, 6, 7, 8, 9, 10, 12, 16])
def test_as_many_right_as_wrong_ones_elsewhere_is_a_tie(attempts):
    for s in range(attempts + 1):
        for unbiased in (False, True):
            assert learnability(s, attempts, unbiased=unbiased) == learnability(attempts - s, attempts, unbiased=unbiased)


@pytest.mark.parametrize("choice", ["epochs", "memory"])
@pytest.mark.parametrize("sampling", ["lilo", "adaptive", "dynamic", "buffer"])
@pytest.mark.parametrize("rates", [[0.5], [0.5, 1.0, 0.0], [1.0] * 5, [0.5] * 6])
def test_few_problems_are_enough(rates, sampling, choice):
    """Fewer than a step's, or than the candidates: every step is full, and holds different problems while there are any."""
    sampler = make(rates, sampling=sampling, candidate_choice=choice)
    for number in range(1, 13):
        chosen, _, _ = step(sampler, number)
        assert len(chosen) == 4 or sampling == "adaptive" or (sampling == "dynamic" and sampler.run.said)
        assert sum(len(group.completions) for group in chosen) == 32 or sampler.run.said
        names = {group.problem.id for group in chosen}
        if sampling == "lilo":
            assert len(names) == min(4, len(rates))


def test_candidates_learnability_is_that_of_the_first_tries():
    """Tried again because they were mixed, or fewer times because they were not: the mean of the first tries is unbiased all the same."""
    flags = [{"sampling": "adaptive"}, {"sampling": "lilo", "candidate_generations": 2}, {"sampling": "lilo"}]
    for more in flags:
        sampler, found = make([0.3] * 64, problems_per_step=16, **more), []
        for number in range(1, 101):
            chosen, _, _ = step(sampler, number)
            found.append(sampler.metrics(chosen)["sampling/learnability_candidates"])
        assert np.mean(found) == pytest.approx(0.21, abs=0.015)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"sampling": "lilo", "num_generations": 1}, "compares a problem's completions"),
        ({"buffer_steps": 5}, "--buffer_steps does nothing with --sampling uniform"),
        ({"sampling": "lilo", "candidate_generations": 1}, "compares a problem's completions"),
        ({"sampling": "adaptive", "num_generations": 4}, "leaves none"),
        ({"sampling": "buffer", "buffer_steps": 0}, "--buffer_steps"),
        ({"candidate_choice": "memory"}, "does nothing with --sampling uniform"),
        ({"sampling": "lilo", "candidate_factor": 0}, "--candidate_factor"),
        ({"candidate_factor": 4}, "does nothing with --sampling uniform"),
        ({"sampling": "dynamic", "candidate_generations": 4}, "does nothing with --sampling dynamic"),
    ],
)
def test_settings_that_cannot_work_are_named(flags, named):
    with pytest.raises(UserError, match=named):
        CommonConfig(**flags).check()


def test_a_buffer_of_other_data_is_refused_when_a_run_is_resumed():
    """A checkpoint of an older version has no fingerprint of the data."""
    sampler = make([0.5] * 4, sampling="buffer")
    state = {**sampler.state_dict(), "buffer": ["p1", "q7"]}
    with pytest.raises(UserError, match="no usable row q7, which the resumed run has in its buffer"):
        sampler.load_state_dict(state)
