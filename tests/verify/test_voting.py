"""Votes: the groups are those of comparing all answers with each other, with few comparisons."""

import json
import random
from pathlib import Path

import pytest

from common.verify import voting
from common.verify.answers import answers_equal

ROWS = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
ANSWERS = [[row["reference"], *row["right"], *row["wrong"]] for row in ROWS if row.get("form") != "completion"]


def groups_by_comparing_all(answers):
    groups = []
    for answer in answers:
        same = next((group for group in groups if answers_equal(group[0], answer)), None)
        groups.append([answer]) if same is None else same.append(answer)
    return groups


@pytest.mark.parametrize("seed", range(120))
def test_the_groups_are_those_of_comparing_all_answers(seed):
    rng = random.Random(seed)
    answers = [rng.choice(row) for row in rng.sample(ANSWERS, 5) for _ in range(6)]
    rng.shuffle(answers)
    assert voting.groups_of_equal_answers(answers) == groups_by_comparing_all(answers)


@pytest.mark.parametrize("answers", [
    [r"\sqrt2", r"\frac{2}{\sqrt2}", "x=\\sqrt{2}", "2^{1/2}"],
    [r"2^{41}+1", r"\sqrt{2}\cdot\frac{2^{41}+1}{\sqrt2}", "2199023255553"],  # an exact number on the border of two roundings
    [r"\sin\pi", "0", r"\cos\frac{\pi}{2}", "0.0"],  # rounding errors for zero
    ["1,234", "1, 234", "1234"][:2],
    ["x=2,y=3", "(2,3)", "(x,y)=(2,3)", "y=3, x=2"],
    [r"(1,\infty)", "x>1", r"\{x\mid x>1\}", r"1<x"],
    [r"(-1)^{2n}", "1"],
    ["y=2x+1", "y-2x=1", "2y=4x+2"],
    [r"\ln(xy)", r"\ln x+\ln y"],
    [r"e^{i\pi}", "-1", "i^2"],
    ["a+b, c", "c, b+a"],
])
def test_equal_answers_share_a_bucket(answers):
    assert voting.groups_of_equal_answers(answers) == [answers]


def test_different_answers_are_seldom_compared(monkeypatch):
    compared = []
    monkeypatch.setattr(voting, "answers_equal", lambda a, b: compared.append((a, b)) or answers_equal(a, b))
    surds = [rf"\sqrt{{{k}}}+{k % 7}" for k in range(2, 130)]
    groups = voting.groups_of_equal_answers([*surds, *surds[::-1], None, "\\text{no}", "(1, 2)"])
    assert len(groups) == 126  # four of the surds are whole numbers that come twice
    assert len(compared) < 160  # of about 16,000 pairs
