"""Are two expressions equal? They count as equal if they have the same value at each of a few points, within a budget of work."""
from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from mpmath import libmp

from common.verify.expression_values import PRECISION_BITS, Evaluator, NeedsMorePrecision, Undefined
from common.verify.points import NUM_POINTS, SMALL_NUMBERS
from common.verify.rounding import Number, is_zero, magnitude, round_fraction
from common.verify.tokens import Unsupported
from common.verify.trees import Node, rounds, variables, whole_variables

MAX_WORK = 20000  # of one comparison, in units of about a microsecond: the time of adding two short fractions

PRECISION_OF_SMALL = 192  # bits at the many points with small whole numbers
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


Key = tuple[int, int, int]  # id of a tree, point and precision
Paid = tuple[Node, Evaluation | Exception, float]  # tree, its value, and the units of work that it took; the tree keeps its id in use
_kept: dict[Key, Paid] = {}  # the values of the last comparisons: a reference is compared with many answers
_MAX_KEPT = 4096


class Work:
    """The budget of one comparison of two answers, and the values found so far: a tree is paid for once at each point."""

    def __init__(self) -> None:
        self.units_left = float(MAX_WORK)
        self.evaluations: dict[Key, Paid] = {}

    def spend(self, units: float) -> None:
        """Takes units from the budget. Raises TooMuchWork when it is used up."""
        self.units_left -= units
        if self.units_left < 0:
            raise TooMuchWork

    def evaluate(self, tree: Node, point: int, precision: int) -> Evaluation | Exception:
        """The value of a tree, or the exception that says why it has none: Undefined, Unsupported, NeedsMorePrecision.

        A value that an earlier comparison has kept costs the same units as before. Raises TooMuchWork.
        """
        key = (id(tree), point, precision)
        found = self.evaluations.get(key)
        if found is None:
            found = _kept.get(key)
            if found is not None:
                self.spend(found[2])
            else:
                units_before = self.units_left
                value = self._evaluated(tree, point, precision)
                found = (tree, value, units_before - self.units_left)
                if len(_kept) >= _MAX_KEPT:
                    _kept.clear()
                _kept[key] = found
            self.evaluations[key] = found
        return found[1]

    def _evaluated(self, tree: Node, point: int, precision: int) -> Evaluation | Exception:
        evaluator = Evaluator(point, precision, self.spend)
        try:
            value = evaluator.value(tree)
        except (Undefined, ZeroDivisionError, libmp.ComplexResult):
            return Undefined()
        except (Unsupported, NeedsMorePrecision) as error:
            return error.with_traceback(None)  # which would keep all that was computed
        return Evaluation(value, evaluator.largest, evaluator.cancelled, evaluator.real, evaluator.has_modulus)


def same_values(a: Node, b: Node, work: Work) -> bool:
    """Whether two expressions have the same value at every point that counts. Raises Unsupported, TooMuchWork.

    A point where a value is not real does not count, unless there are no other points. So ln(xy) equals ln x + ln y, although they
    differ for negative x and y.
    """
    work.spend(30)
    if a[0] == b[0] == "num":
        return a[1] == b[1]
    b = a if a == b else b  # a tree is evaluated once
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
    first = None
    for x, y, precision in values_at_points(a, b, True, work):
        evaluator = Evaluator(0, precision, work.spend)
        try:
            quotient = evaluator.div(x.value, y.value)
        except (Undefined, ZeroDivisionError, NeedsMorePrecision):
            return None
        ratio = Evaluation(quotient, evaluator.largest, False, x.real and y.real, False)
        if not ratio.real or (first is not None and not close(first, ratio, precision)):
            return None
        first = first or ratio
    if first is None:
        return None
    sign = first.value if isinstance(first.value, Fraction) else libmp.mpf_sign(first.value[0])
    return (sign > 0) - (sign < 0) or None


def values_at_points(a: Node, b: Node, has_variables: bool, work: Work) -> Iterator[tuple[Evaluation, Evaluation, int]]:
    """For each point where both have a value: the value of a, the value of b, and the precision in bits.

    Points where both are undefined are left out, and points where a value takes too much work. Raises Unsupported if only one is
    undefined at a point, or if fewer than MIN_POINTS remain of several. Raises TooMuchWork.
    """
    num_values = 0
    num_small = len(SMALL_NUMBERS) if has_variables and (rounds(a) or rounds(b)) else 0
    for point in range(NUM_POINTS + num_small if has_variables else 1):
        is_small = point >= NUM_POINTS
        precision = PRECISION_OF_SMALL if is_small else PRECISION_BITS
        pair = [work.evaluate(a, point, precision), work.evaluate(b, point, precision)]
        if isinstance(pair[0], Evaluation) and isinstance(pair[1], Evaluation):  # mostly
            num_values += not is_small
            yield (*pair, precision)
            continue
        lengths = [result.args[0] for result in pair if isinstance(result, NeedsMorePrecision)]
        if lengths:
            precision += 2 * max(lengths)
            pair = [work.evaluate(tree, point, precision) for tree in (a, b)]
        if any(isinstance(result, (Unsupported, NeedsMorePrecision)) for result in pair):
            continue
        if isinstance(pair[0], Undefined) != isinstance(pair[1], Undefined):
            if is_small:  # \log_2 (n - 1) at 1
                continue
            raise Unsupported("only one is defined")
        if isinstance(pair[0], Evaluation):
            num_values += not is_small
            yield (*pair, precision)
    if num_values < (MIN_POINTS if has_variables else 1):
        raise Unsupported("too few values")


def close(x: Evaluation, y: Evaluation, precision: int) -> bool:
    """Whether two values are equal. Fractions must be equal exactly, rounded numbers in all but their last 64 bits.

    A decimal approximation would have to be right in 77 digits.
    """
    if type(x.value) is type(y.value) is Fraction:
        return x.value == y.value
    left, right = (value if type(value) is not Fraction else round_fraction(value, precision) for value in (x.value, y.value))
    larger, good_bits = max(magnitude(left), magnitude(right)), precision - 64
    if left == right or magnitude(libmp.mpc_sub(left, right, precision, "n")) <= larger - good_bits:
        return True
    largest = max(x.largest, y.largest)

    def may_be_zero(z: Number) -> bool:
        """Whether z is zero, or what rounding may leave when large terms cancel. A still smaller z is a value of its own."""
        return is_zero(z) or -precision - 64 <= magnitude(z) - largest <= -good_bits

    return (x.cancelled or y.cancelled) and may_be_zero(left) and may_be_zero(right)
