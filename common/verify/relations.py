"""What several equations or inequalities say together: intervals, unions, values with names. All functions work on forms: forms.py."""
from __future__ import annotations

from fractions import Fraction
from typing import Any

from common.verify.real_sets import HIGHEST, LOWEST, real_set
from common.verify.tokens import Unsupported
from common.verify.trees import degrees, substituted, variables
from common.verify.words import pieces, word_set

_NO_PARTS = word_set(r"\vec \overrightarrow \mathbb \mathcal \mathfrak \mathscr { }")  # marks and fonts of names
MAX_ITEMS = 64  # of a list, a set or a matrix; comparing two unordered lists takes up to the square of it
Form = tuple[Any, ...]
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}  # the operator when the sides change places


def is_expression(form: Form) -> bool:
    """Whether the form is a value with a tree."""
    return form[0] == "value" and form[1] is not None


def is_variable(form: Form) -> bool:
    """Whether the form is a single variable."""
    return is_expression(form) and form[1][0] == "sym"


def is_choice(form: Form) -> bool:
    """Whether the form is one capital letter."""
    return is_variable(form) and len(form[2]) == 1 and form[2].isupper() and not form[3]


def is_column(form: Form) -> bool:
    """Whether the form is a matrix of one column and several rows."""
    return form[:2] == ("matrix", "matrix") and len(form[2]) > 1 and all(len(row) == 1 for row in form[2])


def as_congruence(form: Form) -> Form | None:
    """12k + 5 as 5 mod 12. None for any other form."""
    names = variables(form[1]) if is_expression(form) else set()
    if len(names) != 1 or not names <= set("jklmnpqrst") or degrees(form[1], names) not in ({0, 1}, {1}):
        return None
    at_0, at_1 = (substituted(form[1], ("sym", *names), ("num", Fraction(number))) for number in (0, 1))
    return ("congruence", ("value", at_0, "", ""), ("value", ("call", "abs", ("add", [at_1, ("neg", at_0)])), "", ""))


def bare_name(x: Form, y: Form) -> bool:
    """Whether one name is the other one without its argument or its index: r and r(t), m and m_{\\max}."""
    names = [[part for part in pieces(form[2] if form[0] == "value" else "") if part not in _NO_PARTS] for form in (x, y)]
    bare = []
    for name in names:
        is_extreme = name[-2:-1] == ["_"] and name[-1].removeprefix("\\") in ("max", "min")
        has_argument = name[-1:] == [")"] and name[-3:-2] == ["("] and (name[-2][0] == "\\" or (len(name[-2]) == 1 and name[-2].isalpha()))
        bare.append(name[:-2] if is_extreme else name[:-3] if has_argument else name)
    return names[0] != names[1] and bare[0] == bare[1] and bare[0] in names


def flattened(kind: str, items: tuple[Form, ...]) -> Form:
    """A list or set. A list among its items is replaced by its items: 1, 2 \\pm 3 has three items. Raises Unsupported for too many."""
    named = [item[2][1] if item[0] == "relation" and item[3] and item[2][1][0] == "list" else item for item in items]
    flat = tuple(part for item in named for part in (item[1] if item[0] == "list" else (item,)))
    if len(flat) > MAX_ITEMS:
        raise Unsupported("items")
    return (kind, flat)


def labelled_values(items: tuple[Form, ...]) -> Form | None:
    """Values with different names, sorted by name: ("labelled", names, values, values as a tuple). None for other items."""
    if any(item[0] == "labelled" for item in items):  # x = z = 2, y = -1
        items = tuple(part for item in items for part in (_relations_of(item) if item[0] == "labelled" else (item,)))
    names = [item[2][0][2] if item[0] == "relation" and item[1] == ("=",) and is_variable(item[2][0]) else "" for item in items]
    if len(items) < 2 or "" in names or len(set(names)) < len(names):
        return None
    order = sorted(range(len(items)), key=lambda place: names[place].lstrip("\\"))
    values = tuple(items[place][2][1] for place in order)
    if {name for value in values if is_expression(value) for name in variables(value[1])} & set(names):
        return None  # x = y + 1 says more than the value of x
    return ("labelled", tuple(names[place] for place in order), values, ("bracketed", "()", values))


def _relations_of(labelled: Form) -> tuple[Form, ...]:
    """Labelled values as equations."""
    return tuple(("relation", ("=",), (("value", ("sym", name.lstrip("\\")), name, ""), value), True)
                 for name, value in zip(labelled[1], labelled[2], strict=True))


def join_relations(items: tuple[Form, ...], words: set[str]) -> Form:
    """The form of items with "and" or "or" between them. For most items it is a list, but for inequalities the word matters.

    Inequalities in one variable are the union of their intervals for "or", and the common part of their intervals for "and".
    """
    are_relations = len(words) == 1 and all(item[0] == "relation" for item in items)
    if not are_relations or not any(set(item[1]) & {*FLIPPED, "\\neq"} for item in items):
        names = {item[2][0][2] for item in items if are_relations and is_variable(item[2][0])}
        return ("or", items) if words == {"or"} and len(names) > 1 else flattened("list", items)
    names = {part[2] for item in items for part in item[2] if is_variable(part)}
    if len(names) != 1:
        return (next(iter(words)), items)
    if any(not set(item[1]) <= set(FLIPPED) for item in items):
        return real_set((next(iter(words)), items)) or (next(iter(words)), items)
    intervals = tuple(as_interval(item) for item in items)
    if words == {"or"}:
        return ("union", tuple(interval or item for interval, item in zip(intervals, items, strict=True)))
    if len(items) == 2 and None not in intervals:
        minus_infinity, infinity = LOWEST[1], HIGHEST[1]
        lower_bounds = [interval for interval in intervals if interval[2][1] == infinity]
        upper_bounds = [interval for interval in intervals if interval[2][1] != infinity and interval[2][0] == minus_infinity]
        if len(lower_bounds) == len(upper_bounds) == 1:
            (_, left, low), (_, right, high) = lower_bounds[0], upper_bounds[0]
            return ("bracketed", left[0] + right[1], (low[0], high[1]))
    return ("and", items)


def as_interval(form: Form) -> Form | None:
    """The interval of an inequality in one variable: (1, 2] for 1 < x \\le 2, and (1, \\infty) for x > 1. None for any other form."""
    if form[0] != "relation" or not set(form[1]) <= set(FLIPPED):
        return None
    operators, parts = form[1], form[2]
    if operators[0] in (">", "\\ge"):
        operators, parts = tuple(FLIPPED[operator] for operator in operators[::-1]), parts[::-1]
    if not set(operators) <= {"<", "\\le"}:
        return None
    left, right = "(" if operators[0] == "<" else "[", ")" if operators[-1] == "<" else "]"
    are_variables = [is_variable(part) for part in parts]
    if are_variables == [True, False]:
        return ("bracketed", "(" + right, (LOWEST[1], parts[1]))
    if are_variables == [False, True]:
        return ("bracketed", left + ")", (parts[0], HIGHEST[1]))
    if are_variables == [False, True, False]:
        return ("bracketed", left + right, (parts[0], parts[2]))
    return None
