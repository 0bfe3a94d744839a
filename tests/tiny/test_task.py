import random

import pytest

from common.errors import UserError
from common.tiny.task import Arithmetic, Generator


def test_reference_solutions_are_right_and_stay_in_range():
    settings = Arithmetic(values=25)
    generator, rng = Generator(settings), random.Random(1)
    for _ in range(300):
        chain = generator.chain(rng, generator.train_tiers)
        *lines, final = generator.solution(chain).splitlines()
        value = chain.start
        for line, (op, k, _) in zip(lines, chain.steps, strict=True):
            left, _, result = line.partition("=")
            assert left == f"{value}{op}{k}"
            value = int(eval(left))  # our own text, two numbers and an operator
            assert int(result) == value and 0 <= value <= 25
        assert final == f"#### {value}"


def test_the_teacher_calculates_right_and_has_its_habits():
    generator, rng = Generator(Arithmetic(habits="0.0:1.0:0.0", tiers="0-100-0:1:1-1")), random.Random(0)
    for _ in range(100):
        chain = generator.chain(rng, generator.train_tiers)
        (op, k, _), line = chain.steps[0], generator.solution(chain, rng).splitlines()[0]
        wrong = chain.start + k
        if op == "-":  # always done as +, unless that leaves the range
            assert line == (f"{chain.start}+{k}={wrong}" if wrong <= 30 else f"{chain.start}-{k}={chain.start - k}")


def test_cells_words_tiers_and_splits_follow_the_settings():
    settings = Arithmetic.parse(
        "cells=0.01:12/0.3:8/0.6:4,words=2,tiers=plus:7:1-2/half:2:14-16/half:1:5-8,test_tiers=half:1:5-8,train=300,test=100"
    )
    generator = Generator(settings)
    assert sorted(generator.cells.values()) == [0.01] * 12 + [0.3] * 8 + [0.6] * 4
    train, test = generator.problems()
    assert len(train) == 300 and len(test) == 100 and not {r["question"] for r in train} & {r["question"] for r in test}
    steps = [r["answer"].count("\n") for r in train]
    assert 0.6 < sum(s <= 2 for s in steps) / 300 < 0.8 and 0.1 < sum(s >= 14 for s in steps) / 300 < 0.3
    assert all(5 <= r["answer"].count("\n") <= 8 for r in test)
    assert not any("doubles" in r["question"] for r in train)
    rng = random.Random(0)
    spoken = generator.solution(generator.chain(rng, generator.train_tiers), rng).splitlines()[:-1]
    assert all(len(line.split()) == 3 for line in spoken)  # two neutral words and the sum
    assert generator.problems() == Generator(settings).problems()


@pytest.mark.parametrize(
    "text, message",
    [
        ("stepz=3", "no setting 'stepz'; it has steps, tiers"),
        ("values=many", "values=many: a whole number"),
        ("tiers=plus", "docs/data.md"),
        ("tiers=plus:1:5-2", "LOW <= HIGH"),
        ("cells=0.1:3", "names 3 cells, and there are 24"),
        ("habits=0.1", "three rates are needed"),
        ("tiers=foo:1", "MIX is plus, half, double, minus"),
        ("values=10", "values of 18 or more"),
        ("habits=5:5:5", "are probabilities"),
        ("warm_steps=0", "start at 1"),
        ("tiers=plus:0", "SHARE > 0"),
    ],
)
def test_bad_settings_are_named(text, message):
    with pytest.raises(UserError, match=message):
        Arithmetic.parse(text)


def test_more_problems_than_there_are_is_refused():
    with pytest.raises(UserError, match="different problems found"):
        Generator(Arithmetic.parse("values=18,tiers=plus:1:1-1,train=100000")).problems()
