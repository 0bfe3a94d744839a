"""Compares functions by cases with each other and with one expression, as |x| + 1 and x + 1 for x >= 0, 1 - x for x < 0."""
from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

from common.verify.real_sets import HIGHEST, LOWEST, real_set
from common.verify.relations import is_expression
from common.verify.trees import Node, substituted, variables

Form = tuple[Any, ...]
Piece = tuple[Any, ...]
_OTHERWISE = ("otherwise", "else", "elsewhere")
_EVERYWHERE: list[Piece] = [(LOWEST, False, HIGHEST, False)]
_BETWEEN = (Fraction(1, 7), Fraction(2, 5), Fraction(1, 2), Fraction(8, 11))  # places of the points between two ends
_BEYOND = (Fraction(2, 9), Fraction(13, 7), Fraction(29, 3), Fraction(101))  # distances of the points beyond the ends


def same_functions(x: Form, y: Form, same: Callable[[Form, Form], bool]) -> bool:
    """Whether two functions of one variable have the same values at the ends of their cases, and at points between and beyond them."""
    rows = [_rows(form) for form in (x, y)]
    if rows[0] is None or rows[1] is None:
        return False
    names = set().union(*(variables(value[1]) for found in rows for value, _ in found or []))
    names |= {name for form in (x, y) for name in _names_of_conditions(form)}
    if len(names) != 1:
        return False
    symbol: Node = ("sym", *names)
    ends = {end[0]: end[1][1] for found in rows for _, pieces in found or [] for piece in pieces for end in (piece[0], piece[2])
            if abs(end[0]) < float("inf")}
    if not ends or len(ends) > 12:
        return False
    for at, tree in _points(ends):
        values = [next((value for value, pieces in found or [] if _holds(at, pieces)), None) for found in rows]
        if values == [None, None]:
            continue
        if None in values or not same(*(("value", substituted(value[1], symbol, tree), "", value[3]) for value in values if value)):
            return False
    return True


def has_otherwise(form: Form) -> bool:
    """Whether the last case has no condition of its own."""
    return form[2][-1][-1][0] == "text" and form[2][-1][-1][1] in _OTHERWISE


def _rows(form: Form) -> list[tuple[Form, list[Piece]]] | None:
    """The value and the pieces of the real line of each case. None for another form."""
    if is_expression(form):
        return [(form, _EVERYWHERE)]
    if form[:2] != ("matrix", "cases"):
        return None
    rows: list[tuple[Form, list[Piece]]] = []
    for row in form[2]:
        if len(row) != 2 or not is_expression(row[0]):
            return None
        found = real_set(row[1]) or real_set(("union", (row[1], row[1])))
        if row is form[2][-1] and has_otherwise(form):
            rows.append((row[0], _EVERYWHERE))
        elif found:
            rows.append((row[0], list(found[1])))
        elif row[1][0] == "relation" and row[1][1] == ("=",) and is_expression(row[1][2][1]) and (point := _point(row[1][2][1])):
            rows.append((row[0], [point]))
        else:
            return None
    return rows


def _point(form: Form) -> Piece | None:
    """The piece of one number."""
    found = real_set(("bracketed", "[)", (form, HIGHEST[1])))
    return (found[1][0][0], True, found[1][0][0], True) if found else None


def _names_of_conditions(form: Form) -> set[str]:
    """The variables in the conditions of cases."""
    conditions = [part for row in form[2] if len(row) == 2 for part in (row[1][2] if row[1][0] == "relation" else ())] \
        if form[0] == "matrix" else []
    return {name for part in conditions if is_expression(part) for name in variables(part[1])} - {"infty"}


def _holds(at: float, pieces: list[Piece]) -> bool:
    """Whether a number is in a set."""
    return any((low[0] < at or (low[0] == at and low_in)) and (at < high[0] or (at == high[0] and high_in))
               for low, low_in, high, high_in in pieces)


def _points(ends: dict[float, Node]) -> list[tuple[float, Node]]:
    """The ends, and points between and beyond them, each as a number and a tree."""
    ordered = sorted(ends)
    exact = [Fraction(end) for end in ordered]
    others = [low + (high - low) * place for low, high in pairwise(exact) for place in _BETWEEN]
    others += [exact[0] - distance for distance in _BEYOND] + [exact[-1] + distance for distance in _BEYOND]
    return [*ends.items(), *((float(value), ("num", value)) for value in others)]
