"""Is the answer of a completion the reference answer? The input is text, the result True or False. No text is ever executed.

extract.py finds the answer. Two plain numerals are compared as numerals. Any other answer is read into a form by forms.py: a list, an
interval, an equation and so on. This file compares two forms part by part, and the parts by value (equal.py) or as text. The work is
limited by construction, so there is no timeout. docs/verifier.md has the conventions.
"""
from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache, partial

from common.verify.equal import TooMuchWork, Work, same_values, sign_of_ratio
from common.verify.extract import MAX_ANSWER_LENGTH, find_answer, joined_boxes, reference_answer
from common.verify.measures import units_agree
from common.verify.piecewise import has_otherwise, same_functions
from common.verify.readings import read_answer, read_forms
from common.verify.real_sets import number, same_sets
from common.verify.relations import FLIPPED, Form, as_congruence, bare_name, is_choice, is_column, is_expression
from common.verify.remarks import say_different
from common.verify.statements import calls_unknown, stated_forms
from common.verify.sums import dots_are_sum, same_with_dots
from common.verify.tokens import Unsupported
from common.verify.trees import INFINITY, Node, substituted, variables, with_constant_of, with_constants_of


def is_correct(completion: str, reference: str) -> bool:
    """True if the final answer of the completion equals the reference, which is a bare answer or a worked solution. Never raises."""
    try:
        answer, offered = find_answer(completion)
        if answer is None:
            return False
        right = reference_answer(reference)
        if offered is not None and not answers_equal(answer, offered):  # "\\boxed{1} or \\boxed{2}" is right only if the reference says so
            beside = find_answer(reference)[1] if "box" in reference else None
            return beside is not None and answers_equal(f"\\{{{answer}, {offered}\\}}", f"\\{{{right}, {beside}\\}}")
        if answer_matches(answer, right):
            return True
        if completion.count("\\boxed") < 2:
            return False
        count, is_ordered = num_items(right)
        together = joined_boxes(completion, count, is_ordered)
        return together is not None and answer_matches(together, right)
    except RecursionError:  # the caller has used nearly all of the stack
        return False


def extract_answer(completion: str) -> str | None:
    """The final answer of a completion, or None if it states none, or two different ones in two boxes with "or" between them."""
    answer, offered = find_answer(completion)
    return answer if answer is None or offered is None or answers_equal(answer, offered) else None


def num_items(answer: str) -> tuple[int, bool]:
    """The number of items of a list or a set, of a tuple, or of labelled values, and whether the last two need order or names. Else 1."""
    try:
        form = next(iter(read_forms(answer)), ("text", ""))
    except Unsupported:
        return 1, False
    if form[0] in ("list", "set", "labelled"):
        return len(form[1]), form[0] == "labelled"
    return (len(form[2]), True) if form[0] == "bracketed" and form[1] == "()" else (1, False)


def answers_equal(a: str, b: str) -> bool:
    """True if two bare answers are the same: "0.5" and "\\frac{1}{2}" are, "[1,2)" and "(1,2)" are not. Never raises."""
    if len(a) > MAX_ANSWER_LENGTH or len(b) > MAX_ANSWER_LENGTH:
        return False
    same = _same_numerals(a, b)
    return _same_forms(a, b) if same is None else same


def _same_forms(a: str, b: str) -> bool:
    """Whether one form of an answer is the same as one form of another."""
    try:
        (forms_a, words_a), (forms_b, words_b) = read_answer(a), read_answer(b)
        if words_a and words_b and say_different(words_a, words_b):
            return False
        if forms_a and forms_b and forms_a[0][0] == forms_b[0][0] == "relation" and _names(forms_a[0]) != _names(forms_b[0]):
            # not as intervals: x > 5 is not y > 5, though both are (5, \infty)
            forms_a, forms_b = (tuple(form for form in forms if form[0] == "relation") for forms in (forms_a, forms_b))
        if forms_a and forms_b and is_choice(forms_a[0]) and is_choice(forms_b[0]):
            return forms_a[0] == forms_b[0]  # not by the texts behind the letters: (A) 12 is not (B) 12
        work = Work()
        return any(_equal(x, y, work) for x in forms_a for y in forms_b)
    except (Unsupported, TooMuchWork, RecursionError):
        return False


def answer_matches(answer: str, reference: str) -> bool:
    """True if a bare answer is the same as the bare reference, or states it as x^3 - y^3 = 10 states 10: statements.py. Never raises."""
    if len(answer) > MAX_ANSWER_LENGTH or len(reference) > MAX_ANSWER_LENGTH:
        return False
    same = _same_numerals(answer, reference)
    if same is not None or _same_forms(answer, reference):
        return same is not False
    try:
        work = Work()
        return any(_equal(stated, right, work) for right in read_forms(reference) for stated in stated_forms(answer, right))
    except (Unsupported, TooMuchWork, RecursionError):
        return False


def _names(relation: Form) -> set[str]:
    """The variables in the parts of a relation."""
    return set().union(*(variables(part[1]) for part in relation[2] if is_expression(part))) - {"infty"}


# ---- plain numerals -------------------------------------------------------------------------------------------------

_NUMERAL = re.compile(r"([+-]?)\s*\$?(?:([1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.(\d*))?|\.(\d+))\$?", re.ASCII)


def _plain_numeral(text: str) -> str | None:
    """A decimal numeral in one spelling: "+1,250.50" -> "1250.5". None for any other text."""
    if len(text) < 19 and text.isdecimal() and text[0] != "0" and text.isascii():
        return text
    match = _NUMERAL.fullmatch(text)
    if match is None:
        return None
    sign, whole, decimals, decimals_alone = match.groups()
    decimals = (decimals or decimals_alone or "").rstrip("0")
    whole = (whole or "").replace(",", "").lstrip("0") or "0"
    number = f"{whole}.{decimals}" if decimals else whole
    return f"-{number}" if sign == "-" and number != "0" else number


def _same_numerals(answer: str, reference: str) -> bool | None:
    """Whether two plain numerals are equal. None if one of the two is another text."""
    numeral = _plain_numeral(answer)
    other = _plain_numeral_of_reference(reference) if numeral is not None else None
    return None if other is None else numeral == other


_plain_numeral_of_reference = lru_cache(maxsize=4096)(_plain_numeral)  # a reference is compared with many completions


_DOTS: Form = ("value", None, "\\cdots", "")


# ---- comparing forms ------------------------------------------------------------------------------------------------

def _equal(x: Form, y: Form, work: Work) -> bool:
    """Whether two forms are the same answer. The order of the two does not matter."""
    if x[0] != "relation" and y[0] == "relation":
        x, y = y, x
    if x[0] == "relation":
        work.spend(4 * len(x[2]))
        return _equal_relations(x, y, work) if y[0] == "relation" else _relation_states(x, y, work)
    if {x[0], y[0]} <= {"list", "set"}:
        if _DOTS in x[1] and _DOTS in y[1]:  # the order counts
            return same_with_dots(_halves(x[1]), _halves(y[1]), partial(_equal, work=work))
        return _DOTS not in x[1] and _equal_in_any_order(x[1], y[1], work)
    if x[0] != y[0]:
        return _equal_across_kinds(x, y, work)
    if x[0] == "value" and {x[3], y[3]} == {"rad", "deg"} and is_expression(x) and is_expression(y):
        radians, degrees = (x, y) if x[3] == "rad" else (y, x)
        return _equal_values(radians, ("value", ("div", ("mul", degrees[1], ("pi",)), ("num", Fraction(180))), "", ""), work)
    if x[0] == "value":
        is_other_angle = {x[3], y[3]} == {"", "deg"} and all(is_expression(form) and substituted(form[1], ("pi",), INFINITY) != form[1]
                                                             for form in (x, y))  # \pi/3 degrees are not \pi/3
        return units_agree(x[3], y[3]) and not is_other_angle and _equal_values(x, y, work)
    if x[0] == "labelled":
        return x[1] == y[1] and _equal_in_order(x[2], y[2], work)
    if x[0] == "reals":
        return same_sets(x[1], y[1], lambda a, b: _equal(a, b, work))
    if x[0] == "congruence":
        return _equal(x[2], y[2], work) and (_equal(x[1], y[1], work) or _differ_by_multiple(x[1], y[1], x[2]))
    if x[0] == "dots":
        same = partial(_equal, work=work)
        return x[1] == y[1] and (same_with_dots(x[2:], y[2:], same) or same_with_dots((x[3][::-1], x[2][::-1]), y[2:], same))
    if x[0] == "family":
        return _equal(x[1], y[1], work)
    if x[0] in ("union", "and", "or"):
        return _equal_in_any_order(x[1], y[1], work)
    if x[0] == "bracketed":
        return x[1] == y[1] and _equal_in_order(x[2], y[2], work)
    if x[0] == "matrix":
        if x[1] == y[1] == "cases":
            rows_x, rows_y = (tuple(("bracketed", "", row) for row in form[2]) for form in (x, y))
            if has_otherwise(x) == has_otherwise(y):  # the ends of the cases count, also where both sides have one value
                return _equal_in_any_order(rows_x, rows_y, work)
            return same_functions(x, y, partial(_equal, work=work))
        return x[1] == y[1] and len(x[2]) == len(y[2]) and all(_equal_in_order(a, b, work) for a, b in zip(x[2], y[2], strict=True))
    if x[0] in ("ratio", "thousands"):
        return x[2:] == y[2:] and _equal_in_order(x[1], y[1], work)
    return x[1:] == y[1:]  # texts and numerals with a base


def _equal_across_kinds(x: Form, y: Form, work: Work) -> bool:
    """Whether two forms of different kinds are the same answer, as x = 1, y = 2 and (1, 2) are."""
    kinds = {x[0], y[0]}
    if "labelled" in kinds:
        labelled, other = (x, y) if x[0] == "labelled" else (y, x)
        if other[0] == "matrix":
            return _equal(("matrix", "matrix", tuple((value,) for value in labelled[3][2])), other, work)
        if other[0] == "bracketed":
            return _equal(labelled[3], other, work)
        # x_1 = 2, x_2 = 3 has no order
        same = _equal_in_any_order if len({name[0] + name[1:2] for name in labelled[1]}) == 1 else _equal_in_order
        if other[0] not in ("list", "set"):
            return False
        fits = all(item[0] != "relation" or item[2][0][2:3] in ((name,), (name.partition("_")[0],))  # y = 3, y = 4 is not x = 3, y = 4
                   for item, name in zip(other[1], labelled[1], strict=False))
        return fits and same(labelled[3][2], other[1], work)
    if kinds == {"bracketed", "matrix"}:  # [[1, 2], [3, 4]]
        rows, matrix = (x, y) if x[0] == "bracketed" else (y, x)
        if rows[1] == "()":  # a column is a tuple
            return is_column(matrix) and _equal_in_order(rows[2], tuple(row[0] for row in matrix[2]), work)
        is_matrix = rows[1] == "[]" and matrix[1] == "matrix" and all(row[:2] == ("bracketed", "[]") for row in rows[2])
        return is_matrix and _equal(("matrix", "matrix", tuple(row[2] for row in rows[2])), matrix, work)
    if kinds == {"congruence", "value"}:  # 5 mod 12 and 12k + 5
        class_x, class_y = (as_congruence(form) if form[0] == "value" else form for form in (x, y))
        return class_x is not None and class_y is not None and _equal(class_x, class_y, work)
    if kinds == {"dots", "value"} and None not in (x[1], y[1]):
        dots, value = (x, y) if x[0] == "dots" else (y, x)
        return dots_are_sum(dots, value[1], partial(_equal, work=work))
    if kinds == {"matrix", "value"}:  # |x| by cases
        return same_functions(x, y, partial(_equal, work=work))
    if kinds == {"thousands", "list"}:  # 1,234 may mean 1, 234
        return _equal_in_order(x[1], y[1], work)
    if kinds == {"ratio", "value"}:
        return _is_quotient(x, y) or _is_quotient(y, x)
    if kinds == {"value", "text"}:  # as texts
        return (x[2] if x[0] == "value" else x[1]) == (y[2] if y[0] == "value" else y[1])
    return False


def _differ_by_multiple(x: Form, y: Form, modulus: Form) -> bool:
    """Whether two whole numbers differ by a multiple of the modulus."""
    values = [number(form) for form in (x, y, modulus)]
    if any(value is None or not value.is_integer() or abs(value) > 2**53 for value in values) or values[2] == 0:
        return False
    return (values[0] - values[1]) % values[2] == 0


def _is_quotient(ratio: Form, value: Form) -> bool:
    """Whether a ratio and a fraction have the same two whole numbers: 64:225 and 64/225. 10:4 is not 5/2, and 1:03 is a time."""
    if ratio[0] != "ratio" or len(ratio[1]) != 2 or ratio[2] != (False,) or not is_expression(value) or value[3]:
        return False
    parts = [part[1] for part in ratio[1] if is_expression(part) and part[1][0] == "num" and part[1][1].denominator == 1 and not part[3]]
    return len(parts) == 2 and value[1] == ("div", *parts)


def _equal_values(x: Form, y: Form, work: Work) -> bool:
    """Whether two values have the same text, or the same value at all points."""
    (_, tree_x, text_x, _), (_, tree_y, text_y, _) = x, y
    if text_x == text_y and text_x:
        return True
    if tree_x is None or tree_y is None:
        return False
    try:
        return same_values(tree_x, with_constant_of(tree_x, tree_y), work) or any(
            same_values(tree_x, other, work) for other in with_constants_of(tree_x, tree_y))
    except Unsupported:
        return False


def _halves(items: tuple[Form, ...]) -> tuple[tuple[Form, ...], tuple[Form, ...]]:
    """The items before and behind the dots of a list."""
    place = items.index(_DOTS)
    return items[:place], items[place + 1:]


def _equal_in_order(x: tuple[Form, ...], y: tuple[Form, ...], work: Work) -> bool:
    return len(x) == len(y) and all(_equal(a, b, work) for a, b in zip(x, y, strict=True))


def _equal_in_any_order(x: tuple[Form, ...], y: tuple[Form, ...], work: Work) -> bool:
    """Whether the items can be paired so that each pair is equal. Equality is transitive, so the first partner that fits is enough."""
    unpaired = list(y)
    if len(x) != len(y):
        return False
    for item in x:
        place = next((i for i, other in enumerate(unpaired) if _equal(item, other, work)), None)
        if place is None:
            return False
        del unpaired[place]
    return True


# ---- comparing equations and inequalities ---------------------------------------------------------------------------

def _relation_states(relation: Form, value: Form, work: Work) -> bool:
    """Whether a relation states this value: x = 5 states 5, and 6/4 = 3/2 states 1.5."""
    _, operators, parts, is_named = relation
    values = parts[1:] if is_named else parts
    if not is_named and any(is_expression(part) and variables(part[1]) for part in values):
        return False
    is_false = is_named and is_expression(parts[0]) and parts[0][1][0] == "call" and not calls_unknown(parts[0][1]) \
        and number(parts[1]) is not None and not _may_be_near(parts[0], parts[1], 1e-9)  # \gcd(12, 18) = 3
    return not is_false and _is_true_chain(operators, values, work) and _equal(values[0], value, work)


def _is_true_chain(operators: tuple[str, ...], values: tuple[Form, ...], work: Work) -> bool:
    """Whether the values of a chain are equal, as in 6/4 = 3/2. A value behind \\approx is a comment that has to be right to 5 %."""
    between = operators[len(operators) - len(values) + 1:]  # the operators between two values, without the one behind a name
    exact = [value for value, operator in zip(values[1:], between, strict=True) if operator == "="]
    if "\\approx" in operators and not all(_may_be_near(values[0], value, 0.05) for value in values[1:]):
        return False
    return set(operators) <= {"=", "\\approx"} and all(_equal(values[0], value, work) for value in exact)


def _may_be_near(x: Form, y: Form, tolerance: float) -> bool:
    """Whether two numbers differ by at most this fraction of the larger one. True if the first is no number, and for two units."""
    values = number(x), number(y)
    if None in values:
        return values[0] is None
    return x[3] != y[3] or math.isclose(*values, rel_tol=tolerance)


def _equal_relations(x: Form, y: Form, work: Work) -> bool:
    """Whether two relations say the same.

    They do if all parts are equal, in the same or in the opposite direction: x < 5 and 5 > x. Two equations also do if left side minus
    right side of one is a multiple of that of the other. So do two inequalities: in the same direction for a positive factor, in the
    opposite direction for a negative one.
    """
    (_, operators_x, parts_x, _), (_, operators_y, parts_y, _) = x, y
    if operators_x == operators_y and _equal_in_order(parts_x, parts_y, work):
        return True
    if x[3] and y[3] and operators_x == operators_y == ("=",) and bare_name(parts_x[0], parts_y[0]):
        return _equal(parts_x[1], parts_y[1], work)
    flipped_y = tuple(FLIPPED.get(operator, operator) for operator in operators_y[::-1])
    can_be_flipped = not {"\\to", "\\in"} & set(flipped_y)
    if can_be_flipped and operators_x == flipped_y and _equal_in_order(parts_x, parts_y[::-1], work):
        return True
    if x[3] and y[3] and len(parts_x) != len(parts_y) and _equal(parts_x[0], parts_y[0], work):  # a = 40/3 and a = 40/3 \approx 13.3
        return all(_is_true_chain(operators, parts[1:], work) for operators, parts in ((operators_x, parts_x), (operators_y, parts_y))) \
            and _equal(parts_x[1], parts_y[1], work)
    if x[3] and y[3] and len(parts_x) == len(parts_y) == 2 and _equal_functions(parts_x, parts_y, work):
        return True
    sides = (*parts_x, *parts_y)
    if len(sides) != 4 or any(not is_expression(side) or side[3] for side in sides):  # side[3]: its unit
        return False
    if operators_x not in (operators_y, flipped_y) or operators_x[0] not in ("=", "\\neq", *FLIPPED):
        return False
    try:
        sign = sign_of_ratio(_difference(*sides[:2]), _difference(*sides[2:]), work)
    except Unsupported:
        return False
    if sign is None or operators_x[0] in ("=", "\\neq"):
        return sign is not None
    same_direction = operators_x == operators_y and operators_x != flipped_y
    return sign > 0 if same_direction else sign < 0


def _equal_functions(x: tuple[Form, ...], y: tuple[Form, ...], work: Work) -> bool:
    """Whether f(t) = t^2 and f(x) = x^2, or y = x^2 and f(x) = x^2, say the same."""
    if not all(map(is_expression, (*x, *y))):
        return False
    names = [side[0][1][1] if side[0][1][0] == "sym" else "" for side in (x, y)]
    if all(name[1:2] == "_" and name[2:] in tuple("ijklmn") for name in names):  # a_k = 2k + 1 and a_n = 2n + 1
        other, own = (("sym", name[2]) for name in names)
        return names[0][0] == names[1][0] and own[1] in variables(y[1][1]) and other[1] not in variables(y[1][1]) and _equal(
            x[1], ("value", substituted(y[1][1], own, other), "", y[1][3]), work)
    if x[0][1] == ("sym", "y"):
        x, y = y, x
    left, other = x[0][1], y[0][1]
    if left[0] != "call" or not left[1].endswith("()") or "'" in left[1] or left[2][0] != "sym":
        return False
    if other == ("sym", "y"):
        return variables(x[1][1]) | variables(y[1][1]) == {left[2][1]} and _equal(x[1], y[1], work)
    if other[:2] != left[:2] or other[2][0] != "sym" or left[2][1] in variables(y[1][1]):
        return False
    return _equal(x[1], ("value", substituted(y[1][1], other[2], left[2]), "", y[1][3]), work)


def _difference(left: Form, right: Form) -> Node:
    """The tree of left - right."""
    return ("add", [left[1], ("neg", right[1])])
