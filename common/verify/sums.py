"""Compares lists, sums and products that are written with dots: 1 + 2 + ... + n, also with \\sum_{k=1}^{n} k."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

from common.verify.latex import parse
from common.verify.notation import BOUND, INDEX
from common.verify.relations import is_expression
from common.verify.trees import Node, operands, substituted, variables

Form = tuple[Any, ...]
Same = Callable[[Form, Form], bool]
_FIRST = range(3)  # the number that a general term begins with


def same_with_dots(x: tuple[Sequence[Form], ...], y: tuple[Sequence[Form], ...], same: Same) -> bool:
    """Whether two lists, each as (items before the dots, items behind them), are equal.

    One may have more items than the other if these go on as the last one says: 3^2 stands before n^2, and 3 before 10.
    """
    before, behind = ([*max(pair, key=len)] for pair in zip(x, y, strict=True))
    pairs = [*zip(x[0], y[0], strict=False), *zip(x[1][::-1], y[1][::-1], strict=False)]
    if bool(x[1]) != bool(y[1]) or not all(same(a, b) for a, b in pairs):
        return False
    if len(x[0]) == len(y[0]) and len(x[1]) == len(y[1]):
        return True
    num_given = min(len(items[0]) + len(items[1]) for items in (x, y))
    return _follows_a_rule(before, behind, num_given, same) or _follows_a_rule(behind[::-1], before[::-1], num_given, same)


def _value(tree: Node) -> Form:
    return ("value", tree, "", "")


def _plus(tree: Node, number: int) -> Node:
    return ("add", [tree, ("num", Fraction(number))])


def _follows_a_rule(before: list[Form], behind: list[Form], num_given: int, same: Same) -> bool:
    """Whether all items are the general term in the last one, or go on by adding or multiplying a number."""
    if not behind or not all(map(is_expression, (*before, *behind))):
        return False
    last = behind[-1][1]
    for name in variables(last):
        symbol: Node = ("sym", name)
        ends = [_value(substituted(last, symbol, _plus(symbol, place + 1 - len(behind)))) for place in range(len(behind))]
        starts = ([_value(substituted(last, symbol, ("num", Fraction(first + place)))) for place in range(len(before))] for first in _FIRST)
        if all(map(same, behind, ends)) and any(all(map(same, before, start)) for start in starts):
            return True
    if variables(last) or num_given < 3 or len(before) < 2:
        return False
    a, b = before[0][1], before[1][1]
    step, ratio = ("add", [b, ("neg", a)]), ("div", b, a)
    neighbours = [*pairwise(before), *pairwise(behind)]
    added = all(same(_value(("add", [x[1], step])), y) for x, y in neighbours)
    return added or all(same(_value(("mul", x[1], ratio)), y) for x, y in neighbours)


def dots_are_sum(dots: Form, tree: Node, same: Same, is_forward: bool = True) -> bool:
    """Whether a sum or product with dots has the terms of \\sum or \\prod, in this order or (`is_forward`) also in the other one."""
    _, sign, before, behind = dots
    sigma = {"+": "sum", "*": "prod"}[sign]
    if tree[0] != "call" or not tree[1].startswith(f"{sigma}_ = ") or (len(before) + len(behind) < 3 and not _has_index(tree[2])):
        return False
    below, _, above = tree[1].removeprefix(f"{sigma}_ = ").partition("^")
    if not below.isdecimal() or bool(behind) is (above == "infty"):
        return False
    starts = [_term(tree[2], str(int(below) + place)) for place in range(len(before))]
    ends = [_term(tree[2], f"{above} - {place}" if place else above) for place in reversed(range(len(behind)))]
    if all(map(same, before, starts)) and all(map(same, behind, ends)):
        return True
    return is_forward and dots_are_sum((*dots[:2], behind[::-1], before[::-1]), tree, same, is_forward=False)


def _has_index(body: Node) -> bool:
    """Whether a body has a variable such as a_k: a_1 + ... + a_n then says what the other terms are."""
    return any(INDEX in name and name != INDEX for name in variables(body))


def _term(body: Node, index: str) -> Form:
    """The term of a sum at an index. Raises Unsupported."""
    return _value(_with_index(substituted(body, BOUND, parse(index)), _spelled(index)))


def _spelled(index: str) -> str:
    """3 for 2 + 1. Raises Unsupported."""
    try:
        return str(_whole(parse(index)))
    except ValueError:
        return index


def _whole(tree: Node) -> int:
    if tree[0] == "add":
        return sum(map(_whole, operands(tree)))
    if tree[0] == "neg":
        return -_whole(tree[1])
    if tree[0] != "num":
        raise ValueError
    return int(tree[1])


def _with_index(tree: Node, index: str) -> Node:
    """The tree with an index in the names of its variables: a_n for a_k."""
    if tree[0] == "sym":
        name, _, own = tree[1].partition("_")
        return ("sym", f"{name}_{_spelled(own.replace(INDEX, index))}") if INDEX in own else tree
    if tree[0] == "add":
        return ("add", [_with_index(part, index) for part in tree[1]])
    return tuple(_with_index(part, index) if isinstance(part, tuple) else part for part in tree)


