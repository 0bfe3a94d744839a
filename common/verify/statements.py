"""What an answer states about a plain value: x^3 - y^3 = 10 states 10, 2^{100} \\equiv 3 mod 13 states 3, 2104 may be 2104_5.

Only answers are read so. A reference that is an equation is not its right side: 25 is no answer for x^2 + y^2 = 25.
"""
from __future__ import annotations

import math
import re
from fractions import Fraction

from common.verify.equal import Work, same_values
from common.verify.latex import parse
from common.verify.measures import size_of_unit
from common.verify.names import UNKNOWNS
from common.verify.readings import read_forms
from common.verify.real_sets import number
from common.verify.relations import Form, is_expression
from common.verify.spelling import normalize
from common.verify.tokens import TRIGONOMETRIC, Unsupported
from common.verify.trees import Node, degrees, operands, substituted, variables
from common.verify.words import changes_name

_ONE: Node = ("num", Fraction(1))
_DIGITS = frozenset("0123456789ABCDEF")
_IMPLIES = ("\\Rightarrow", "\\implies", "\\Longrightarrow", "\u21d2")
# in front of =, AB is the name of a segment and [ABC] that of an area; elsewhere AB is the product of A and B
_NAMES_OF_POINTS = re.compile(r"\[((?:[A-Z](?:_\w|')?){3,})\]|(?<![A-Za-z\\])([A-Z](?:(?:_\w|')?[A-Z])+)(?![A-Za-z])|\\(?:angle|triangle)")
_PROBABILITY = re.compile(r"(?<![A-Za-z\\])([PE])[(\[]([^()\[\]]*)[)\]]")
_COMMAND_BESIDE_NAME = re.compile(r"\\(?:cdot|times|frac|sqrt|sin|cos|tan|min|max|pi)(?=[A-Z])")  # values are spelled without spaces
_SUM_WITH_DOTS = re.compile(r"([+*]|\\cdot|\\times)\s*\\cdots\s*\1")


def stated_forms(answer: str, right: Form) -> list[Form]:
    """The plain values that the answer states, for comparing with the form of the reference. Raises Unsupported, TooMuchWork."""
    if right[0] == "relation":
        return []
    text = normalize(answer)
    digits = text.replace('"', "").strip().upper()
    if right[0] == "base" and digits and _DIGITS.issuperset(digits):
        return [("base", digits, right[2])]
    if "=" not in answer and "equiv" not in answer and "mod" not in answer and "\u2261" not in answer:
        return []
    if any(changes_name(words) for words in text.split('"')[1::2] if words.strip() not in ("mod", "modulo")):
        return []
    for sign in _IMPLIES:
        answer = answer.rpartition(sign)[2]
    form = next(iter(read_forms(answer)), ("text", ""))
    if form[0] == "congruence":
        return _residue(form) if text.lstrip("( ")[:1].isdigit() else []
    if form[0] == "list":
        return _solution_behind(form[1])
    if form[0] != "relation":
        return []
    _, operators, parts, is_named = form
    if parts[-1][0] == "congruence" and set(operators) <= {"\\equiv", "="}:
        values = [part for part in parts[:-1] if part != ("text", "")]
        return _residue(parts[-1]) if all(_may_be_congruent(value, parts[-1]) for value in values) else []
    if parts[0][0] == "congruence" and operators == ("=",):  # 7^{100} mod 5 = 1
        remainder = ("congruence", parts[1], parts[0][2])
        return _residue(remainder) if _may_be_congruent(parts[0][1], remainder) else []
    if "\\approx" in operators:
        if operators.index("\\approx") < len(operators) - 1:
            return []
        parts, operators = parts[:-1], operators[:-1]
    if not operators or set(operators) != {"="}:
        return []
    if any(part[0] == "base" for part in parts):
        values = list(map(_value_of_numeral, parts[is_named and _value_of_numeral(parts[0]) is None:]))
        return [part for part in parts if part[0] in ("base", "value")] if len({*values}) == 1 and values[0] is not None else []
    return _values_of_chain(parts, is_named, right)


# ---- congruences and numerals ---------------------------------------------------------------------------------------

def _residue(congruence: Form) -> list[Form]:
    """The 3 of 3 mod 7. The 8 of 8 mod 5 is no remainder."""
    value, modulus = number(congruence[1]), number(congruence[2])
    is_remainder = value is not None and modulus is not None and 0 <= value < modulus
    return [congruence[1]] if is_remainder else []


def _may_be_congruent(value: Form, congruence: Form) -> bool:
    """Whether a value without variables is congruent, or too hard to tell."""
    if not is_expression(value) or variables(value[1]):
        return False
    residue, modulus = number(congruence[1]), number(congruence[2])
    found = Work().evaluate(value[1], 0, 320)
    exact = getattr(found, "value", None)
    if not isinstance(exact, Fraction) or residue is None or not modulus or not (residue.is_integer() and modulus.is_integer()):
        return True
    try:
        inverse = pow(exact.denominator, -1, int(modulus))
    except ValueError:
        return False
    return (exact.numerator * inverse - int(residue)) % int(modulus) == 0


def _value_of_numeral(form: Form) -> Fraction | None:
    """The number that a numeral with a base, a decimal numeral, or a sum of such is. None for any other form, or for wrong digits."""
    try:
        if form[0] == "base":
            return Fraction(int(form[1], int(form[2])))
        tree = form[1] if is_expression(form) else None
        for name in variables(tree) if tree else ():
            digits, _, base = name.partition("_")
            tree = substituted(tree, ("sym", name), ("num", Fraction(int(digits, int(base)))))
    except ValueError:
        return None
    value = getattr(Work().evaluate(tree, 0, 320), "value", None) if tree else None
    return value if isinstance(value, Fraction) else None


def _solution_behind(equations: tuple[Form, ...]) -> list[Form]:
    """The 9 of 3x = 27, x = 9, if it solves the equations in front of it."""
    *others, last = equations
    if any(form[0] != "relation" or form[1] != ("=",) or not all(map(is_expression, form[2])) for form in equations):
        return []
    name, value = last[2][0][1], last[2][1]
    if name[0] != "sym" or variables(value[1]) or any(variables(a[1]) | variables(b[1]) != {name[1]} for _, _, (a, b), _ in others):
        return []
    solved = all(same_values(substituted(a[1], name, value[1]), substituted(b[1], name, value[1]), Work()) for _, _, (a, b), _ in others)
    is_unsolved = any(a[1][0] != "sym" for _, _, (a, _), _ in others)
    return [value] if solved and is_unsolved else []


# ---- chains of equations --------------------------------------------------------------------------------------------

def _values_of_chain(parts: tuple[Form, ...], is_named: bool, right: Form) -> list[Form]:
    """The value of a = b = ... = v, if nothing in the chain is false or an equation that is not yet solved."""
    if any(name != "infty" for name in variables(right[1] if is_expression(right) else _ONE)):
        return [parts[-1]] if all(_is_same(part, parts[-1]) for part in parts[is_named:-1]) else []
    is_value = [is_expression(part) and not variables(part[1]) and not calls_unknown(part[1]) for part in parts]
    values = [part for part, known in zip(parts, is_value, strict=True) if known]
    others = [part for part, known in zip(parts, is_value, strict=True) if not known]
    if not is_expression(right):
        return [parts[-1]] if len(parts) == 2 and _states(parts[0]) else []
    if not values or not all(_agrees(value, values[0]) for value in values[1:]):
        return []
    if not all(map(_states, others[is_named and others[:1] == [parts[0]]:])):
        return []
    units = {value[3] for value in values} - {""}
    if len(units) > 1 or (units == {"%"} and "" in {value[3] for value in values}):  # 2 h = 120 min: the measure of the reference counts
        return [value for value in values if value[3] == (right[3] or ("rad" if units == {"deg", "rad"} else ""))]
    return values


def _is_same(part: Form, last: Form) -> bool:
    """Whether two parts are one expression."""
    if part[0] == "dots":  # 1 + 2 + ... + n, which is not computed
        return is_expression(last)
    try:
        return is_expression(part) and is_expression(last) and same_values(part[1], last[1], Work())
    except Unsupported:
        return False


def _agrees(x: Form, y: Form) -> bool:
    """Whether two numbers are equal. Two units whose sizes are not known are not checked: 2 h = 120 min."""
    if x[3] != y[3] and {x[3], y[3]} != {"", "%"}:
        sizes, values = [size_of_unit(form[3]) for form in (x, y)], [number(form) for form in (x, y)]
        if "" in (x[3], y[3]) and None not in values:  # 3 + 4 = 7 apples
            return math.isclose(*values, rel_tol=1e-9)
        if None in sizes or None in values:
            return True
        return sizes[0][0] == sizes[1][0] and math.isclose(values[0] * sizes[0][1], values[1] * sizes[1][1], rel_tol=1e-9)
    scaled = [("div", form[1], ("num", Fraction(100))) if form[3] == "%" else form[1] for form in (x, y)]
    return same_values(scaled[0], scaled[1], Work())


def _states(form: Form) -> bool:
    """Whether "expression = value" says what the expression is, and does not only have to be solved, as 2x + 1 = 17 has."""
    if form[0] == "dots":
        return not any(variables(item[1]) for item in (*form[2], *form[3]) if is_expression(item))
    if form[0] != "value" or form[3]:
        return False
    tree = form[1]
    if tree is None or _NAMES_OF_POINTS.search(form[2]) or _PROBABILITY.search(form[2]):
        text = _COMMAND_BESIDE_NAME.sub(r"\g<0> ", form[2])
        text = _PROBABILITY.sub(lambda found: f'"{found[1]}"_{{{found[2]}}}', text)
        text = _NAMES_OF_POINTS.sub(lambda found: f'"{found[1] or found[2]}"' if found[1] or found[2] else "", text)
        try:
            tree = parse(_SUM_WITH_DOTS.sub(r"\1", text))
        except Unsupported:
            return False
    names = variables(tree)
    if _num_calls(tree) > 1:
        return True
    if len(names) != 1:
        return len(names) > 1 or "\\cdots" in form[2]
    if degrees(tree, names) is not None:
        return tree[0] == "sym"
    if tree[0] == "div" and ("pi",) in tree:  # \\pi / V
        return True
    if tree[0] == "pow" and not variables(tree[2]):  # |z|^2, (x + 1/x)^2
        tree = tree[1]
        if tree[:2] == ("call", "abs"):
            return tree[2][0] == "sym" and tree[2][1] not in UNKNOWNS
    terms = tree[1] if tree[0] == "add" else [tree]
    if all(_is_power_of_functions(term[1] if term[0] == "neg" else term) for term in terms):
        return True
    try:  # x + 1/x
        return len(terms) == 2 and any(same_values(("mul", *(term[1] if term[0] == "neg" else term for term in terms)), sign, Work())
                                       for sign in (_ONE, ("neg", _ONE)))
    except Unsupported:
        return False


def calls_unknown(tree: Node) -> bool:
    """Whether a tree calls f, g or h."""
    return (tree[0] == "call" and tree[1].endswith("()")) or any(map(calls_unknown, operands(tree)))


def _num_calls(tree: Node) -> int:
    """The number of calls of f, g and h in a tree: f(1) + f(2) has two."""
    return int(tree[0] == "call" and tree[1].endswith("()")) + sum(map(_num_calls, operands(tree)))


def _is_power_of_functions(tree: Node) -> bool:
    """\\sin^2 x, or a product of such. \\sin 2x is one too."""
    if tree[0] == "pow":
        return not variables(tree[2]) and _is_power_of_functions(tree[1])
    if tree[0] in ("mul", "div"):
        return any(map(_is_power_of_functions, tree[1:])) and all(
            _is_power_of_functions(part) or not variables(part) for part in tree[1:]) and _num_trigonometric(tree) > 1
    return tree[0] == "call" and tree[1] in TRIGONOMETRIC


def _num_trigonometric(tree: Node) -> int:
    return int(tree[0] == "call" and tree[1] in TRIGONOMETRIC) + sum(map(_num_trigonometric, operands(tree)))
