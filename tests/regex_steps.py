"""Counts the steps of a backtracking search, so that a test can bound the work of a regular expression without a clock.

`Steps` matches like Python's `re`: greedy, one alternative after the other, and back to the last choice when something does not fit. It
reads the tree of `re`'s own parser. `attacks` makes texts from this tree that a pattern with two ways to read the same text takes long to
refuse.
"""

import random
import re
from re import _constants as sre
from re import _parser as parser

ONE_CHARACTER = (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN)
REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)
CATEGORIES = {sre.CATEGORY_DIGIT: str.isdecimal, sre.CATEGORY_SPACE: str.isspace, sre.CATEGORY_WORD: lambda c: c.isalnum() or c == "_"}
CATEGORIES |= {no: lambda c, yes=yes: not CATEGORIES[yes](c) for no, yes in (
    (sre.CATEGORY_NOT_DIGIT, sre.CATEGORY_DIGIT), (sre.CATEGORY_NOT_SPACE, sre.CATEGORY_SPACE), (sre.CATEGORY_NOT_WORD, sre.CATEGORY_WORD))}
SAMPLE_CHARACTERS = 'a1 "Zb,.({[\\)}]^_:=|-/$%?\u7c73\n!;*x0'


class TooManySteps(Exception):
    """The search takes more steps than the limit."""


class Steps:
    """A pattern as functions. Each takes a place in the text and what to do behind the match, and says whether the rest fits too."""

    def __init__(self, pattern: re.Pattern):
        self.groups: dict[int, tuple[int, int]] = {}
        self.root = self.sequence(parser.parse(pattern.pattern, pattern.flags), pattern.flags)

    def count(self, text: str, method: str, limit: int) -> tuple[int, tuple[int, int] | None]:
        """The number of steps, and the place of the match. `method`: match, fullmatch, or search, which stands for all others."""
        self.text, self.steps, self.limit = text, 0, limit
        for start in range(len(text) + 1 if method == "search" else 1):
            ends: list[int] = []
            if self.root(start, lambda end, ends=ends: (method != "fullmatch" or end == len(text)) and not ends.append(end)):
                return self.steps, (start, ends[0])
        return self.steps, None

    def step(self, number=1):
        self.steps += number
        if self.steps > self.limit:
            raise TooManySteps

    def sequence(self, nodes, flags):
        parts = [self.node(operator, value, flags) for operator, value in nodes]

        def run(place, at, then):
            return then(at) if place == len(parts) else parts[place](at, lambda end: run(place + 1, end, then))

        return lambda at, then: run(0, at, then)

    def node(self, operator, value, flags):
        """The function of one node of the tree."""
        if operator in ONE_CHARACTER:
            fits = character_test(operator, value, flags)

            def one(at, then):
                self.step()
                return at < len(self.text) and fits(self.text[at]) and then(at + 1)
            return one
        if operator in REPEATS:
            repeat = self.repeat(*value, flags, lazy=operator is sre.MIN_REPEAT)
            return self.atomic(repeat) if operator is sre.POSSESSIVE_REPEAT else repeat
        if operator is sre.BRANCH:
            branches = [self.sequence(branch, flags) for branch in value[1]]
            return lambda at, then: any(branch(at, then) for branch in branches)
        if operator is sre.SUBPATTERN:
            number, added, removed, nodes = value
            return self.group(number, self.sequence(nodes, (flags | added) & ~removed))
        if operator is sre.ATOMIC_GROUP:
            return self.atomic(self.sequence(value, flags))
        if operator in (sre.ASSERT, sre.ASSERT_NOT):
            direction, nodes = value
            body, width = self.sequence(nodes, flags), nodes.getwidth()[1] if direction < 0 else 0
            wanted = operator is sre.ASSERT
            return lambda at, then: (at >= width and body(at - width, lambda end: direction > 0 or end == at)) == wanted and then(at)
        if operator is sre.AT:
            return lambda at, then: self.stands(value, at) and then(at)
        assert operator is sre.GROUPREF, operator

        def same_as_group(at, then):
            start, end = self.groups.get(value, (0, 0))
            self.step(end - start + 1)
            return self.text.startswith(self.text[start:end], at) and then(at + end - start)
        return same_as_group

    def repeat(self, low, high, nodes, flags, lazy):
        """The function of a repetition. A repeated character is counted in a loop, as `re` does."""
        if len(nodes) == 1 and nodes[0][0] in ONE_CHARACTER and not lazy:
            fits = character_test(*nodes[0], flags)

            def run(at, then):
                end = at
                while end < len(self.text) and end - at < high and fits(self.text[end]):
                    end += 1
                self.step(end - at + 1)
                return any(self.step() or then(place) for place in range(end, at + low - 1, -1))
            return run
        body = self.sequence(nodes, flags)

        def again(count, at, then):
            self.step()
            if lazy and count >= low and then(at):
                return True
            if count < high and body(at, lambda end: (end > at or count < low) and again(count + 1, end, then)):
                return True
            return not lazy and count >= low and then(at)
        return lambda at, then: again(0, at, then)

    def group(self, number, body):
        def run(at, then):
            def behind(end):
                before, self.groups[number] = self.groups.get(number, (0, 0)), (at, end)
                found = then(end)
                self.groups[number] = self.groups[number] if found else before
                return found
            return body(at, then if number is None else behind)
        return run

    def atomic(self, body):
        """The first way to match is the only one."""
        def run(at, then):
            ends: list[int] = []
            return body(at, lambda end: not ends.append(end)) and then(ends[0])
        return run

    def stands(self, place, at):
        """Whether ^, $ or \\b holds at this place."""
        if place is sre.AT_BEGINNING:
            return at == 0
        if place is sre.AT_END:
            return at == len(self.text) or (at == len(self.text) - 1 and self.text[at] == "\n")
        is_word = [0 <= i < len(self.text) and CATEGORIES[sre.CATEGORY_WORD](self.text[i]) for i in (at - 1, at)]
        return (is_word[0] != is_word[1]) == (place is sre.AT_BOUNDARY)


def character_test(operator, value, flags):
    """A function that says whether one character fits."""
    items = value if operator is sre.IN else [(operator, value)]
    negated = items[0][0] is sre.NEGATE
    known: dict[str, bool] = {}

    def fits_item(c, kind, item):
        if kind is sre.ANY:
            return c != "\n" or bool(flags & re.DOTALL)
        if kind is sre.CATEGORY:
            return CATEGORIES[item](c)
        cases = {c, c.lower(), c.upper()} if flags & re.IGNORECASE else {c}
        if kind is sre.RANGE:
            return any(len(case) == 1 and item[0] <= ord(case) <= item[1] for case in cases)
        return (chr(item) in cases) == (kind is sre.LITERAL)

    def fits(c):
        if c not in known:
            known[c] = any(fits_item(c, kind, item) for kind, item in items if kind is not sre.NEGATE) != negated
        return known[c]
    return fits


# ---- texts that attack a pattern ------------------------------------------------------------------------------------

def sample(nodes, rng, flags) -> str:
    """A text that the nodes match, as far as assertions allow."""
    text = ""
    for operator, value in nodes:
        if operator in ONE_CHARACTER:
            fits = character_test(operator, value, flags)
            items = value if operator is sre.IN else [(operator, value)]
            own = [chr(item if kind is sre.LITERAL else item[0]) for kind, item in items if kind in (sre.LITERAL, sre.RANGE)][:1]
            fitting = [c for c in [*own, *SAMPLE_CHARACTERS] if fits(c)]
            text += rng.choice(fitting) if fitting else ""
        elif operator in REPEATS:
            low, high, body = value
            text += "".join(sample(body, rng, flags) for _ in range(min(high, low + rng.randrange(2))))
        elif operator is sre.BRANCH:
            text += sample(rng.choice(value[1]), rng, flags)
        elif operator is sre.SUBPATTERN:
            text += sample(value[3], rng, flags)
        elif operator is sre.ATOMIC_GROUP:
            text += sample(value, rng, flags)
        elif operator is sre.ASSERT and value[0] < 0 and not text:
            text += sample(value[1], rng, flags)
    return text


def repeated_parts(nodes, rng, flags, before="", behind=()):
    """For each repetition in a pattern: a text in front of it, its nodes with those behind it."""
    for place, (operator, value) in enumerate(nodes):
        rest = (*nodes[place + 1:], *behind)
        if operator in REPEATS:
            if value[1] > 3:
                yield before, value[2], rest
            yield from repeated_parts(value[2], rng, flags, before, rest)
        for inner in (value[1] if operator is sre.BRANCH else [value[3]] if operator is sre.SUBPATTERN else
                      [value] if operator is sre.ATOMIC_GROUP else [value[1]] if operator in (sre.ASSERT, sre.ASSERT_NOT) else []):
            yield from repeated_parts(inner, rng, flags, before, rest)
        before += sample([(operator, value)], rng, flags)


def attacks(pattern: re.Pattern, length: int, seed: int = 0) -> list[str]:
    """Texts of some `length` characters: a part of the pattern many times, behind the start that it needs, and an end that does not fit."""
    rng = random.Random(seed)
    found = []
    nodes = list(parser.parse(pattern.pattern, pattern.flags))
    for before, body, rest in repeated_parts(nodes, rng, pattern.flags):
        for _ in range(3):
            pump = sample(body, rng, pattern.flags) + rng.choice(["", "", sample(rest[:2], rng, pattern.flags)])
            if pump:
                end = rng.choice(["\x01", "!", "", sample(rest, rng, pattern.flags)])
                found.append(before + pump * (max(1, (length - len(before) - len(end)) // len(pump))) + end)
    for _ in range(12):
        pump = "".join(rng.choice([sample(nodes, rng, pattern.flags), rng.choice(SAMPLE_CHARACTERS)]) for _ in range(rng.randint(1, 3)))
        found.append((pump or " ") * (length // max(1, len(pump))) + rng.choice(["", "!", "\x01"]))
    found += [c * length + end for c in ' a1"\u7c73' for end in ("", "\x01")]
    return list(dict.fromkeys(text[:length + 60] for text in found))
