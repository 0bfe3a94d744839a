"""The data set `sums`: sums and differences of two small numbers, for a first run of a real model."""
from __future__ import annotations

import random

SMALLEST, LARGEST = 2, 20
TRAIN, TEST = 240, 80


def sums() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(training rows, test rows). A row is {"question": "What is 18 - 15? Answer with the number only.", "answer": "3"}.

    All questions are different. Half of the rows of each split are sums, half are differences, and no answer is below 0. They are always
    the same ones.
    """
    numbers = range(SMALLEST, LARGEST + 1)
    rng = random.Random(0)
    count = (TRAIN + TEST) // 2
    plus = rng.sample([(a, b) for a in numbers for b in numbers], count)
    minus = rng.sample([(a, b) for a in numbers for b in numbers if a >= b], count)
    pairs = [pair for both in zip(plus, minus, strict=True) for pair in both]
    rows = [{"question": f"What is {a} {op} {b}? Answer with the number only.", "answer": str(a + b if op == "+" else a - b)}
            for (a, b), op in zip(pairs, "+-" * count, strict=True)]
    return rows[TEST:], rows[:TEST]
