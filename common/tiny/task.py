"""The embedded task: word problems about small sums, and a teacher who solves them with bad habits.

A problem is a chain of small sums. Each line of the solution does one of them:

    Eva has 27 figs. She eats 7. She eats 8. She sells 5. She doubles it. How many?
    27-7=20
    20-8=12
    12-5=7
    7*2=14
    #### 14

The embedded model first learns from solutions of this teacher (`warm_start` in model.py). The teacher never miscalculates. But it has
*habits*: now and then it uses the wrong operator, + for "eats" or +2 for "doubles". After this training the model can do the task
(greedy answers are mostly right) but often slips (sampled answers are mostly wrong). Reinforcement learning can repair this one thing.
"""
from __future__ import annotations

import random
from dataclasses import dataclass, fields

from common.errors import UserError

NAMES = {"Tom": "He", "Ann": "She", "Ben": "He", "Eva": "She", "Sam": "He", "Kim": "She", "Max": "He", "Zoe": "She"}
ITEMS = ("figs", "pens", "cups", "hats")
VERBS = {"buys": "+", "finds": "+", "wins": "+", "eats": "-", "loses": "-", "sells": "-"}
# shares of the operators: adding k, subtracting k, doubling
MIXES = {"plus": (85, 15, 0), "half": (50, 50, 0), "double": (35, 40, 25), "minus": (25, 65, 10)}
WORDS = ("well", "so", "now", "then", "here", "okay", "next")  # a random one of these 7 words has ln 7 = 1.95 nats of entropy


@dataclass(frozen=True)
class Arithmetic:
    """The settings of the task, written as `--dataset arithmetic:key=value,...`.

    Other settings need another warm start. The number of training problems is the exception.
    """

    steps: str = "1-10"  # LOW-HIGH: number of sums in a problem, for tiers that do not say
    tiers: str = "plus:1:1-2/minus:3:4-8"  # kinds of training problems: MIX:SHARE[:LOW-HIGH]/...
    test_tiers: str = ""  # kinds of test problems; empty: as `tiers`
    values: int = 30  # every number in a solution is in 0..values; at least 18, so that +9 or -9 always fits
    habits: str = "0.02:0.41:0.41"  # how often the teacher does +k as -k, -k as +k, and doubling as +2
    cells: str = ""  # instead of habits: ERROR:CELLS/... for the 24 (verb, item) pairs, as 0.01:12/0.3:8/0.6:4; then no doubling
    words: int = 0  # random words before each line of a solution; they do not matter for the answer
    train: int = 4000  # number of training problems
    test: int = 1000  # number of test problems; none of them is a training problem or part of the warm start
    warm_steps: int = 500  # optimiser steps of the warm start, with 32 solutions each
    seed: int = 0  # seed of the problems and of the warm start

    @classmethod
    def parse(cls, text: str) -> Arithmetic:
        """The settings in a text `key=value,key=value`. Raises UserError with the name of a key or value that is wrong."""
        known = {f.name: type(f.default) for f in fields(cls)}
        given = {}
        for part in filter(None, text.split(",")):
            key, _, value = part.partition("=")
            if key not in known:
                raise UserError(f"arithmetic has no setting {key!r}; it has {', '.join(known)}")
            try:
                given[key] = known[key](value)
            except ValueError:
                raise UserError(f"arithmetic setting {key}={value}: a whole number is needed") from None
        settings = cls(**given)
        try:
            Generator(settings)
        except (ValueError, KeyError, IndexError) as error:
            raise UserError(f"arithmetic:{text}: {error}; docs/data.md explains the settings") from None
        return settings


@dataclass(frozen=True)
class Chain:
    """One problem: a person has `start` items, and then changes their number step by step."""

    name: str  # the person
    item: str
    start: int
    steps: tuple[tuple[str, int, str], ...]  # (operator, operand, verb); the operator is + or - or *, and * has no verb

    @property
    def question(self) -> str:
        """The text of the problem, on one line. The prompt adds a newline at its end."""
        who = NAMES[self.name]
        told = [f"{who} doubles it." if op == "*" else f"{who} {verb} {k}." for op, k, verb in self.steps]
        return f"{self.name} has {self.start} {self.item}. {' '.join(told)} How many?"


def calculate(value: int, op: str, k: int) -> int:
    """The result of `value op k`, where op is + or - or *."""
    return value * k if op == "*" else value + k if op == "+" else value - k


class Generator:
    """Draws problems, and solutions of the teacher. Raises ValueError for settings that cannot work."""

    def __init__(self, settings: Arithmetic) -> None:
        self.settings = settings
        if min(settings.train, settings.test, settings.warm_steps) < 1 or settings.words < 0:
            raise ValueError("train, test and warm_steps start at 1, words at 0")
        if max(settings.train, settings.test) > 10**6 or settings.values < 18:
            raise ValueError("give at most a million problems, and values of 18 or more")
        rates = settings.habits.split(":")
        if len(rates) != 3:
            raise ValueError(f"habits={settings.habits}: three rates are needed, of +k, -k and doubling, as 0.02:0.41:0.41")
        self.habits = dict(zip("+-*", map(float, rates), strict=True))
        self.cells = {}
        if settings.cells:
            errors = [float(error) for part in settings.cells.split("/") for error, count in [part.split(":")]
                      for _ in range(int(count))]
            pairs = [(verb, item) for verb in VERBS for item in ITEMS]
            if len(errors) != len(pairs):
                raise ValueError(f"cells={settings.cells} names {len(errors)} cells, and there are {len(pairs)}")
            random.Random(settings.seed).shuffle(pairs)
            self.cells = dict(zip(pairs, errors, strict=True))
        if not all(0 <= error <= 1 for error in (*self.habits.values(), *self.cells.values())):
            raise ValueError("habits and cells are probabilities: give numbers from 0 to 1")
        self.train_tiers = self._tiers(settings.tiers)
        self.test_tiers = self._tiers(settings.test_tiers or settings.tiers)

    def _tiers(self, text: str) -> list[tuple[float, tuple[int, ...], int, int]]:
        """(share, weights of the operators, lowest and highest number of sums) of each tier in a text MIX:SHARE[:LOW-HIGH]/..."""
        tiers = []
        for part in text.split("/"):
            mix, share, *steps = part.split(":")
            if mix not in MIXES and not mix.replace("-", "").isdigit():
                raise ValueError(f"tier {part!r}: MIX is {', '.join(MIXES)}, or weights such as 50-30-20")
            weights = MIXES[mix] if mix in MIXES else tuple(int(weight) for weight in mix.split("-"))
            low, high = map(int, (steps[0] if steps else self.settings.steps).split("-"))
            if len(weights) != 3 or float(share) <= 0 or not 1 <= low <= high:
                raise ValueError(f"tier {part!r}: three weights, SHARE > 0 and 1 <= LOW <= HIGH are needed")
            tiers.append((float(share), (*weights[:2], 0) if self.cells else weights, low, high))
        return tiers

    def chain(self, rng: random.Random, tiers: list[tuple[float, tuple[int, ...], int, int]]) -> Chain:
        """A random problem from one of the tiers. All numbers of its solution are in 0..values."""
        _, weights, low, high = rng.choices(tiers, [tier[0] for tier in tiers])[0]
        start = value = rng.randint(0, self.settings.values)
        steps = []
        for _ in range(rng.randint(low, high)):
            op = rng.choices("+-*", weights)[0]
            room = {"+": self.settings.values - value, "-": value, "*": self.settings.values - 2 * value}[op]
            if room < 1:  # no operand fits; in the other direction there is always room
                op = "-" if op in "+*" and value > 0 else "+"
                room = value if op == "-" else self.settings.values - value
            k = 2 if op == "*" else rng.randint(1, min(9, room))
            steps.append((op, k, "" if op == "*" else rng.choice([verb for verb in VERBS if VERBS[verb] == op])))
            value = calculate(value, op, k)
        return Chain(rng.choice(list(NAMES)), rng.choice(ITEMS), start, tuple(steps))

    def solution(self, chain: Chain, rng: random.Random | None = None) -> str:
        """Without `rng` the right solution. With `rng` a solution of the teacher, with habits and random words.

        Every number of the teacher's solution is in 0..values too.
        """
        lines, value = [], chain.start
        for op, k, verb in chain.steps:
            words = ""
            if rng is not None:
                words = "".join(rng.choice(WORDS) + " " for _ in range(self.settings.words))
                wrong = {"+": "-", "-": "+", "*": "+"}[op]
                if rng.random() < self.cells.get((verb, chain.item), self.habits[op]):
                    op, wrong = wrong, op
                # after a slip a sum may leave the range 0..values; the first operator that stays in it is used then
                op = next(o for o in (op, wrong, "+", "-") if 0 <= calculate(value, o, k) <= self.settings.values)
            after = calculate(value, op, k)
            lines.append(f"{words}{value}{op}{k}={after}\n")
            value = after
        return "".join(lines) + f"#### {value}"

    def longest_solution(self) -> int:
        """The length of the longest solution in tokens, end token included."""
        steps = max(high for *_, high in self.train_tiers + self.test_tiers)
        return steps * (6 + self.settings.words) + 3  # "14+2=16\n" has six tokens; "#### ", the answer and the end token are three

    def problems(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """(training rows, test rows). A row is {"question": ..., "answer": ...}. All questions are different.

        Raises UserError if the settings do not allow that many different problems.
        """
        rng, seen, splits = random.Random(self.settings.seed), set(), []
        for size, tiers in ((self.settings.test, self.test_tiers), (self.settings.train, self.train_tiers)):
            rows, misses = [], 0
            while len(rows) < size:
                chain = self.chain(rng, tiers)
                misses = misses + 1 if chain.question in seen else 0
                if misses == 200:
                    raise UserError(f"arithmetic: only {len(rows)} of {size} different problems found; ask for fewer, or for longer ones")
                if misses == 0:
                    seen.add(chain.question)
                    rows.append({"question": chain.question, "answer": self.solution(chain)})
            splits.append(rows)
        return splits[1], splits[0]
