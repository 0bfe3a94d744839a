import numpy as np
import pytest

from common.data import Problem
from common.sampling import ProblemSampler, learnability


def test_learnability_docstring_numbers():
    assert learnability(1, 8) == 0.109375 and learnability(1, 8, unbiased=True) == pytest.approx(0.125)
    assert learnability(1, 1, unbiased=True) == 0 and learnability(0, 0) == 0
    scores = learnability(np.array([8, 6, 0, 4, 1, 7, 2, 8]), 8)
    assert scores.tolist() == [0, 0.1875, 0, 0.25, 0.109375, 0.109375, 0.1875, 0]


def test_unbiased_learnability_is_unbiased():
    attempts = np.random.default_rng(0).binomial(8, 0.3, 200_000)
    assert learnability(attempts, 8, unbiased=True).mean() == pytest.approx(0.21, abs=0.001)
    assert learnability(attempts, 8).mean() == pytest.approx(0.18375, abs=0.001)


def test_uniform_sampling_goes_through_every_problem_once_per_epoch_and_resumes():
    problems = [Problem(str(i), "", (), "") for i in range(10)]
    sampler = ProblemSampler(problems, seed=3)
    drawn = [p.id for _ in range(10) for p in sampler.choose(4)]
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch, key=int) == [str(i) for i in range(10)] for epoch in epochs)
    assert epochs[0] != epochs[1]
    resumed = ProblemSampler(problems, seed=3)
    resumed.load_state_dict({"drawn": 12})
    assert [p.id for p in resumed.choose(8)] == drawn[12:20]
    assert [p.id for p in ProblemSampler(problems, seed=4).choose(10)] != epochs[0]
