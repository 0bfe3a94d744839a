"""Sets of real numbers as sorted pieces that do not touch, so that each set has one spelling.

A piece is (low, is low in the set, high, is high in the set). An end is (a float that sorts it, its form). A point is a piece whose ends
are equal. The form of a set is ("reals", pieces).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from common.verify.equal import Evaluation, TooMuchWork, Work
from common.verify.expression_values import PRECISION_BITS
from common.verify.rounding import round_fraction
from common.verify.trees import INFINITY, Node, degrees, substituted, variables

Form = tuple[Any, ...]
End = tuple[float, Form]
Piece = tuple[End, bool, End, bool]
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
LOWEST: End = (-math.inf, ("value", ("neg", INFINITY), "-\\infty", ""))
HIGHEST: End = (math.inf, ("value", INFINITY, "\\infty", ""))


def number(form: Form) -> float | None:
    """The real number of a value without variables, rounded to a float. None for any other form."""
    if form[0] != "value" or form[1] is None:
        return None
    if form[1] in (INFINITY, ("neg", INFINITY)):
        return math.inf if form[1] == INFINITY else -math.inf
    sign, tree = (-1, form[1][1]) if form[1][0] == "neg" else (1, form[1])
    if tree[0] == "num" and tree[1].denominator == 1 and tree[1].numerator.bit_length() < 54:
        return float(sign * tree[1].numerator)
    try:
        found = None if variables(form[1]) else Work().evaluate(form[1], 0, PRECISION_BITS)
    except TooMuchWork:
        return None
    if not isinstance(found, Evaluation) or not found.real:
        return None
    try:
        value = found.value if isinstance(found.value, tuple) else round_fraction(found.value, PRECISION_BITS)
        sign, mantissa, exponent, bits = value[0]
        return math.ldexp(mantissa >> max(0, bits - 64), exponent + max(0, bits - 64)) * (-1 if sign else 1)
    except OverflowError:
        return None


def real_set(form: Form) -> Form | None:
    """The set of an interval, a union, an inequality or x \\neq 3, if its ends are numbers and it is more than points. Else None."""
    pieces = _pieces(form) if form[0] not in ("value", "text", "list", "set") else None
    if pieces is None:
        return None
    pieces = _joined(pieces)
    return ("reals", tuple(pieces)) if any(piece[0][0] < piece[2][0] for piece in pieces) else None


def without(form: Form, removed: Form) -> Form | None:
    """The first set without the second one, or None if one of them is no set of real numbers."""
    pieces, others = _pieces(form), _pieces(removed)
    if pieces is None or others is None:
        return None
    return ("reals", tuple(_common(_joined(pieces), _complement(_joined(others)))))


def _end(form: Form) -> End | None:
    value = number(form)
    return None if value is None else (value, form)


def _points(items: tuple[Form, ...]) -> list[Piece] | None:
    ends = [_end(item) for item in items]
    return None if None in ends else [(end, True, end, True) for end in ends if end]


def _pieces(form: Form) -> list[Piece] | None:
    """The pieces of a form, not yet sorted."""
    kind = form[0]
    if kind == "reals":
        return list(form[1])
    if kind == "bracketed" and len(form[2]) == 2:
        low, high = map(_end, form[2])
        if low is None or high is None or low[0] >= high[0]:
            return None
        return [(low, form[1][0] == "[" and low[0] > -math.inf, high, form[1][1] == "]" and high[0] < math.inf)]
    if kind in ("set", "list"):
        return _points(form[1])
    if kind == "text" and form[1] == "\\emptyset":
        return []
    if kind == "relation":
        return _pieces_of_relation(form)
    if kind in ("union", "or", "and"):
        if len({name for part in form[1] for name in _names(part)}) > 1:
            return None
        parts = [_pieces(part) for part in form[1]]
        if None in parts:
            return None
        found = [part for part in parts if part is not None]
        if kind != "and":
            return [piece for part in found for piece in part]
        together = _joined(found[0])
        for part in found[1:]:
            together = _common(together, _joined(part))
        return together
    return None


def _names(form: Form) -> set[str]:
    """The variables of a relation."""
    if form[0] != "relation":
        return set()
    return {name for part in form[2] if part[0] == "value" and part[1] is not None for name in variables(part[1]) if name != "infty"}


def _pieces_of_relation(form: Form) -> list[Piece] | None:
    """The pieces of x = 1, x \\neq 3, x > 5, or 1 < x < 2."""
    operators, parts = form[1], form[2]
    is_variable = [part[0] == "value" and part[1] is not None and part[1][0] == "sym" and part[1] != INFINITY for part in parts]
    if len(parts) == 2 and is_variable == [False, True]:
        operators, parts = (_FLIPPED.get(operators[0], operators[0]),), parts[::-1]
    elif len(parts) == 3 and (is_variable == [False, True, False] or _is_absolute_value(parts[1])):
        pairs = zip(operators, (parts[:2], parts[1:]), strict=True)
        sides = [_pieces_of_relation(("relation", (operator,), pair, False)) for operator, pair in pairs]
        return None if None in sides else _common(*(_joined(side) for side in sides if side is not None))
    elif is_variable != [True, False]:
        return _pieces_of_absolute_value(operators, parts)
    items = parts[1][1] if parts[1][0] == "list" else (parts[1],)
    points = _points(items)
    if points is None:
        return None
    if operators[0] == "=":
        return points
    if operators[0] == "\\neq":
        return _complement(_joined(points))
    if len(points) != 1:
        return None
    end, closed = points[0][0], operators[0] in ("\\le", "\\ge")
    ranges: dict[str, Piece] = {"<": (LOWEST, False, end, closed), ">": (end, closed, HIGHEST, False)}
    return [ranges["<" if operators[0] in ("<", "\\le") else ">"]] if operators[0] in ("<", "\\le", ">", "\\ge") else None


def _is_absolute_value(form: Form) -> bool:
    return form[0] == "value" and form[1] is not None and form[1][:2] == ("call", "abs")


def _pieces_of_absolute_value(operators: tuple[str, ...], parts: tuple[Form, ...]) -> list[Piece] | None:
    """The pieces of |ax + b| < c, with < or another inequality."""
    if len(parts) == 2 and _is_absolute_value(parts[1]):
        operators, parts = (_FLIPPED.get(operators[0], ""),), parts[::-1]
    trees = [part[1] if part[0] == "value" else None for part in parts]
    if len(trees) != 2 or None in trees or not _is_absolute_value(parts[0]) or operators[0] not in _FLIPPED:
        return None
    inner, size, names = trees[0][2], number(parts[1]), variables(trees[0])
    if len(names) != 1 or size is None or size <= 0 or (degrees(inner, names) or set()) - {0, 1}:
        return None
    at_0, at_1 = (substituted(inner, ("sym", *names), ("num", Fraction(value))) for value in (0, 1))

    def end(side: Node) -> End | None:
        """The x where ax + b is c, or -c."""
        tree: Node = ("div", ("add", [side, ("neg", at_0)]), ("add", [at_1, ("neg", at_0)]))
        return _end(("value", tree, "", ""))

    ends = [end(trees[1]), end(("neg", trees[1]))]
    if None in ends:
        return None
    low, high = sorted((found for found in ends if found), key=lambda found: found[0])
    closed = operators[0] in ("\\le", "\\ge")
    inside: Piece = (low, closed, high, closed)
    if operators[0] in ("<", "\\le"):
        return [inside]
    return [(LOWEST, False, low, closed), (high, closed, HIGHEST, False)]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """The pieces in order; those that touch or overlap are one."""
    done: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece[0][0], not piece[1])):
        if done and (piece[0][0] < done[-1][2][0] or (piece[0][0] == done[-1][2][0] and (piece[1] or done[-1][3]))):
            low, low_in, high, high_in = done[-1]
            if (piece[2][0], piece[3]) > (high[0], high_in):
                high, high_in = piece[2], piece[3]
            done[-1] = (low, low_in, high, high_in)
        else:
            done.append(piece)
    return done


def _complement(pieces: list[Piece]) -> list[Piece]:
    """All real numbers that are not in these sorted pieces."""
    done, low, low_in = [], LOWEST, False
    for piece in pieces:
        if low[0] < piece[0][0] or (low[0] == piece[0][0] and low_in and not piece[1]):
            done.append((low, low_in, piece[0], not piece[1] and piece[0][0] > -math.inf))
        low, low_in = piece[2], not piece[3] and piece[2][0] < math.inf
    return [*done, (low, low_in, HIGHEST, False)] if low[0] < math.inf else done


def _common(first: list[Piece], second: list[Piece]) -> list[Piece]:
    """The numbers in both."""
    return _complement(_joined([*_complement(first), *_complement(second)]))


def same_sets(first: tuple[Piece, ...], second: tuple[Piece, ...], same: Callable[[Form, Form], bool]) -> bool:
    """Whether two sets have the same pieces, with the same ends by `same`."""
    return len(first) == len(second) and all(
        a[1] == b[1] and a[3] == b[3] and same(a[0][1], b[0][1]) and same(a[2][1], b[2][1]) for a, b in zip(first, second, strict=True))
