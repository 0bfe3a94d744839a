"""Are two expressions equal? They count as equal if they have the same value at each of a few points, within a budget of work."""
from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from mpmath import libmp

from common.verify.expression_values import (
    NUM_POINTS,
    PRECISION_BITS,
    Evaluator,
    NeedsMorePrecision,
    Undefined,
)
from common.verify.rounding import Number, is_zero, magnitude, round_fraction
from common.verify.tokens import Unsupported
from common.verify.trees import Node, variables, whole_variables

MAX_WORK = 20000  # of one comparison, in units of about a microsecond: the time of adding two short fractions

MIN_POINTS = 3  # with values, of two expressions with variables: at the others a power may be too large, or a term too small


class TooMuchWork(Exception):
    """A comparison has used up its budget."""


class Evaluation(NamedTuple):
    """The value of a tree at one point, and what its evaluator noted on the way: see Evaluator for the other fields."""

    value: Number
    largest: int
    cancelled: bool
    real: bool
    has_modulus: bool


class Work:
    """The budget of one comparison of two answers, and the values found so far: a tree is evaluated once at each point."""

    def __init__(self) -> None:
        self.units_left = float(MAX_WORK)
        self.evaluations: dict[tuple[int, int, int], Evaluation | Exception] = {}  # by id of the tree, point and precision
        self.evaluated_trees: list[Node] = []  # kept, because the id of a deleted tree may be given to another one

    def spend(self, units: float) -> None:
        """Takes units from the budget. Raises TooMuchWork when it is used up."""
        self.units_left -= units
        if self.units_left < 0:
            raise TooMuchWork

    def evaluate(self, tree: Node, point: int, precision: int) -> Evaluation | Exception:
        """The value of a tree, or the exception that says why it has none: Undefined, Unsupported, NeedsMorePrecision.

        Raises TooMuchWork.
        """
        key = (id(tree), point, precision)
        if key not in self.evaluations:
            self.evaluated_trees.append(tree)
            evaluator = Evaluator(point, precision, self.spend)
            try:
                value = evaluator.value(tree)
                self.evaluations[key] = Evaluation(value, evaluator.largest, evaluator.cancelled, evaluator.real, evaluator.has_modulus)
            except (Undefined, ZeroDivisionError, libmp.ComplexResult):
                self.evaluations[key] = Undefined()
            except (Unsupported, NeedsMorePrecision) as error:
                self.evaluations[key] = error
        return self.evaluations[key]


def same_values(a: Node, b: Node, work: Work) -> bool:
    """Whether two expressions have the same value at every point that counts. Raises Unsupported, TooMuchWork.

    A point where a value is not real does not count, unless there are no other points. So ln(xy) equals ln x + ln y, although they
    differ for negative x and y.
    """
    work.spend(30)
    names = variables(a) | variables(b)
    if names:
        a, b = whole_variables(a, b)
    equal_where_real, complex_pairs = False, []
    for x, y, precision in values_at_points(a, b, bool(names), work):
        # with an absolute value, one real value is enough: \sqrt{|x|} is real where \sqrt{x} is not
        one_is_enough = x.has_modulus or y.has_modulus
        counts = (x.real or y.real) if one_is_enough else (x.real and y.real)
        if not counts:
            complex_pairs.append((x, y, precision))
        elif close(x, y, precision):
            equal_where_real = True
        else:
            return False
    return equal_where_real or all(close(*pair) for pair in complex_pairs)


def sign_of_ratio(a: Node, b: Node, work: Work) -> int | None:
    """1 or -1, the sign of a / b, if a / b is the same real number at all points. Else None. Raises Unsupported, TooMuchWork.

    Also None for two expressions without variables, because any two numbers have a constant ratio.
    """
    work.spend(30)
    if not variables(a) | variables(b):
        return None
    a, b = whole_variables(a, b)
    ratios: list[tuple[Evaluation, int]] = []
    for x, y, precision in values_at_points(a, b, True, work):
        evaluator = Evaluator(0, precision, work.spend)
        try:
            quotient = evaluator.div(x.value, y.value)
        except (Undefined, ZeroDivisionError, NeedsMorePrecision):
            return None
        ratios.append((Evaluation(quotient, evaluator.largest, False, x.real and y.real, False), precision))
    first = ratios[0][0]
    if len(ratios) < 2 or not all(close(first, ratio, precision) and ratio.real for ratio, precision in ratios):
        return None
    sign = first.value if isinstance(first.value, Fraction) else libmp.mpf_sign(first.value[0])
    return (sign > 0) - (sign < 0) or None


def values_at_points(a: Node, b: Node, has_variables: bool, work: Work) -> Iterator[tuple[Evaluation, Evaluation, int]]:
    """For each point where both have a value: the value of a, the value of b, and the precision in bits.

    Points where both are undefined are left out, and points where a value takes too much work. Raises Unsupported if only one is
    undefined at a point, or if fewer than MIN_POINTS remain of several. Raises TooMuchWork.
    """
    num_values = 0
    for point in range(NUM_POINTS if has_variables else 1):
        precision = PRECISION_BITS
        pair = [work.evaluate(tree, point, precision) for tree in (a, b)]
        lengths = [result.args[0] for result in pair if isinstance(result, NeedsMorePrecision)]
        if lengths:
            precision += 2 * max(lengths)
            pair = [work.evaluate(tree, point, precision) for tree in (a, b)]
        if any(isinstance(result, (Unsupported, NeedsMorePrecision)) for result in pair):
            continue
        if isinstance(pair[0], Undefined) != isinstance(pair[1], Undefined):
            raise Unsupported("only one is defined")
        if isinstance(pair[0], Evaluation):
            num_values += 1
            yield (*pair, precision)
    if num_values < (MIN_POINTS if has_variables else 1):
        raise Unsupported("too few values")


def close(x: Evaluation, y: Evaluation, precision: int) -> bool:
    """Whether two values are equal. Fractions must be equal exactly, rounded numbers in all but their last 64 bits.

    A decimal approximation would have to be right in 77 digits.
    """
    if isinstance(x.value, Fraction) and isinstance(y.value, Fraction):
        return x.value == y.value
    left, right = (value if not isinstance(value, Fraction) else round_fraction(value, precision) for value in (x.value, y.value))
    larger, good_bits = max(magnitude(left), magnitude(right)), precision - 64
    if magnitude(libmp.mpc_sub(left, right, precision, "n")) <= larger - good_bits:
        return True
    largest = max(x.largest, y.largest)

    def may_be_zero(z: Number) -> bool:
        """Whether z is zero, or what rounding may leave when large terms cancel. A still smaller z is a value of its own."""
        return is_zero(z) or -precision - 64 <= magnitude(z) - largest <= -good_bits

    return (x.cancelled or y.cancelled) and may_be_zero(left) and may_be_zero(right)
