"""Are two expressions the same? They are if they have the same values, at each of a few points and within a budget of work."""
from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from mpmath import libmp

from common.verify.expression_values import (
    LARGE,
    POINTS,
    PRECISION,
    Evaluator,
    Number,
    TooCoarse,
    Undefined,
    magnitude,
    parts_of,
    round_fraction,
)
from common.verify.latex import Node, Unsupported

MAX_WORK = 12000  # of one comparison, in units of about a microsecond: additions of short fractions


class TooMuchWork(Exception):
    """A comparison has used up its budget."""



class Known(NamedTuple):
    """The value of a tree at a point, and what its computation met: largest magnitude, cancelling terms, only reals, a modulus?"""

    value: Number
    largest: int
    cancelled: bool
    real: bool
    modulus: bool



class Work:
    """The budget of one comparison of two answers, and the values found in it: each tree is evaluated once at each point."""

    def __init__(self) -> None:
        self.left = float(MAX_WORK)
        self.known: dict[tuple[int, int, int], Known | Exception] = {}
        self.alive: list[Node] = []  # whose ids are keys

    def spend(self, units: float) -> None:
        """Raises TooMuchWork when the budget is used up."""
        self.left -= units
        if self.left < 0:
            raise TooMuchWork

    def value(self, node: Node, point: int, precision: int) -> Known | Exception:
        """Of a tree; or why it has none: Undefined, Unsupported, TooCoarse. Raises TooMuchWork."""
        key = (id(node), point, precision)
        if key not in self.known:
            self.alive.append(node)
            evaluator = Evaluator(point, precision, self.spend)
            try:
                value = evaluator.value(node)
                self.known[key] = Known(value, evaluator.largest, evaluator.cancelled, evaluator.real, evaluator.modulus)
            except (Undefined, ZeroDivisionError, libmp.ComplexResult):
                self.known[key] = Undefined()
            except (Unsupported, TooCoarse) as error:
                self.known[key] = error
        return self.known[key]



def symbols(node: Node) -> set[str]:
    """The variables of a tree."""
    if node[0] == "sym":
        return {node[1]}
    return set().union(*(symbols(part) for part in parts_of(node)))



def same(a: Node, b: Node, work: Work) -> bool:
    """Whether two expressions have the same value at every point tried. Raises Unsupported, TooMuchWork.

    Points at which something is not real do not count if there are others: ln(xy) is ln x + ln y where that exists.
    """
    work.spend(30)
    equal_somewhere, complex_pairs = False, []
    for x, y, precision in values(a, b, work):
        # with a modulus it matters what is real: the root of |x| is not that of x
        if (x.real or y.real) if x.modulus or y.modulus else (x.real and y.real):
            if not close(x, y, precision):
                return False
            equal_somewhere = True
        else:
            complex_pairs.append((x, y, precision))
    return equal_somewhere or all(close(*pair) for pair in complex_pairs)



def ratio(a: Node, b: Node, work: Work) -> int | None:
    """The sign of the constant that a is b times, 1 or -1; None if there is none, or no variable to tell. Raises Unsupported."""
    work.spend(30)
    if not symbols(a) | symbols(b):
        return None
    found: list[tuple[Known, int]] = []
    for x, y, precision in values(a, b, work):
        evaluator = Evaluator(0, precision, work.spend)
        try:
            found.append((Known(evaluator.div(x.value, y.value), evaluator.largest, False, x.real and y.real, False), precision))
        except (Undefined, ZeroDivisionError, TooCoarse):
            return None
    first = found[0][0]
    if len(found) < 2 or not all(close(first, other, precision) and other.real for other, precision in found):
        return None
    sign = first.value if isinstance(first.value, Fraction) else libmp.mpf_sign(first.value[0])
    return (sign > 0) - (sign < 0) or None



def values(a: Node, b: Node, work: Work) -> Iterator[tuple[Known, Known, int]]:
    """Both at each point where they have a value, and the precision in bits. Raises Unsupported if that is not what they have."""
    found = False
    for point in range(POINTS if symbols(a) | symbols(b) else 1):
        precision = PRECISION
        pair = [work.value(node, point, precision) for node in (a, b)]
        coarse = [each.args[0] for each in pair if isinstance(each, TooCoarse)]
        if coarse:
            precision += 2 * max(coarse)
            pair = [work.value(node, point, precision) for node in (a, b)]
        if any(isinstance(each, (Unsupported, TooCoarse)) for each in pair):
            if point >= LARGE and found:
                continue
            raise Unsupported("no value")
        if isinstance(pair[0], Undefined) != isinstance(pair[1], Undefined):
            raise Unsupported("only one is defined")
        if isinstance(pair[0], Known):
            found = True
            yield (*pair, precision)
    if not found:
        raise Unsupported("undefined")



def close(x: Known, y: Known, precision: int) -> bool:
    """Exact for fractions; for rounded numbers to all but the last bits, which no decimal that somebody writes comes near."""
    if isinstance(x.value, Fraction) and isinstance(y.value, Fraction):
        return x.value == y.value
    left, right = (value if not isinstance(value, Fraction) else round_fraction(value, precision) for value in (x.value, y.value))
    size, good = max(magnitude(left), magnitude(right)), precision - 64
    if magnitude(libmp.mpc_sub(left, right, precision, "n")) <= size - good:
        return True
    # zero, and what is left of it when large numbers cancel; a number that is smaller than that is a number
    largest = max(x.largest, y.largest)

    def nothing(z: Number) -> bool:
        return magnitude(z) < -10**8 or -precision - 64 <= magnitude(z) - largest <= -good

    return (x.cancelled or y.cancelled) and nothing(left) and nothing(right)
