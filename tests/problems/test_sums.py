"""The data set `sums`."""

import re

from common.config import CommonConfig
from common.problems.data import load_rows
from common.problems.sums import LARGEST, SMALLEST, TEST, TRAIN, sums
from common.verify import is_correct


def test_every_answer_is_right_and_no_test_question_is_for_training():
    train, test = load_rows(CommonConfig(model="smollm2", dataset="sums"))
    assert (len(train), len(test)) == (TRAIN, TEST) and train[5].id == "sums/train/5"
    assert len({row.question for row in train + test}) == TRAIN + TEST
    for row in train + test:
        a, op, b = re.fullmatch(r"What is (\d+) ([+-]) (\d+)\? Answer with the number only\.", row.question).groups()
        value = int(a) + int(b) if op == "+" else int(a) - int(b)
        assert min(int(a), int(b)) >= SMALLEST and max(int(a), int(b)) <= LARGEST and value >= 0
        assert row.answer == str(value) and is_correct(f"\\boxed{{{value}}}", row.answer)
    for rows in (train, test):
        assert sum(" + " in row.question for row in rows) == len(rows) / 2
    assert sums() == sums()
