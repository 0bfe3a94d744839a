"""Values of parsed expressions: is one the same as another?

Numbers are exact fractions as long as that is cheap, and complex numbers of some hundred bits otherwise. Variables take
fixed values: two expressions are the same if they agree at each of a few points. Work is bounded by construction: sizes of
numbers, and a budget of operations; what goes beyond raises `Unsupported`.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from mpmath import libmp

from common.latex import FUNCTIONS, Node, Unsupported

MAX_BITS = 4096  # of an exact numerator or denominator; beyond it a number is rounded
MAX_MAGNITUDE = 2**20  # bits before the point of a rounded number, and of an exponent's effect
MAX_WORK = 6000  # units of about a microsecond: additions of short fractions
POINTS = 3  # at which expressions with variables are compared
PRECISION = 320  # bits of a rounded number, more where long exact numbers are about

Number = Any  # Fraction, or a complex number of libmp: a pair of its floats


class Undefined(ArithmeticError):
    """No value here: a division by zero, a logarithm of zero."""


def symbols(node: Node) -> set[str]:
    """The variables of a tree."""
    if node[0] == "sym":
        return {node[1]}
    return set().union(*(symbols(part) for part in _parts(node)))


def _parts(node: Node) -> list[Node]:
    return node[1] if node[0] == "add" else [part for part in node[1:] if isinstance(part, tuple)]


def same(a: Node, b: Node) -> bool:
    """Whether two expressions have the same value at every point tried. Raises Unsupported.

    Points at which one of them is not real do not count if there are others: ln(xy) is ln x + ln y where that exists.
    """
    pairs = values(a, b)
    real = [pair for pair in pairs if all(is_real(value, pair[2]) for value in pair[:2])]
    return all(close(*pair) for pair in real or pairs)


def is_real(x: Number, evaluator: Evaluator) -> bool:
    """Whether a number has no imaginary part to speak of."""
    return isinstance(x, Fraction) or _magnitude((x[1], libmp.fzero)) < max(_magnitude(x), evaluator.largest) - evaluator.precision // 2


def ratio(a: Node, b: Node) -> int | None:
    """The sign of the constant that a is b times, 1 or -1; None if there is none, or no variable to tell. Raises Unsupported."""
    if not symbols(a) | symbols(b):
        return None
    found: list[tuple[Number, Evaluator]] = []
    for x, y, evaluator in values(a, b):
        try:
            found.append((evaluator.div(x, y), evaluator))
        except (Undefined, ZeroDivisionError):
            return None
    first, evaluator = found[0]
    if len(found) < 2 or not all(close(first, other, its) and is_real(other, its) for other, its in found):
        return None
    sign = first if isinstance(first, Fraction) else libmp.mpf_sign(first[0])
    return (sign > 0) - (sign < 0) or None


def values(a: Node, b: Node) -> list[tuple[Number, Number, Evaluator]]:
    """The values of both at each point where they have one. Raises Unsupported if there is none, or only one has a value."""
    found = []
    for point in range(POINTS if symbols(a) | symbols(b) else 1):
        evaluator, pair = Evaluator(point), []
        for node in (a, b):
            try:
                pair.append(evaluator.value(node))
            except (Undefined, ZeroDivisionError, libmp.ComplexResult):
                pair.append(None)
        if (pair[0] is None) != (pair[1] is None):
            raise Unsupported("only one is defined")
        if pair[0] is not None:
            found.append((pair[0], pair[1], evaluator))
    if not found:
        raise Unsupported("undefined")
    return found


def close(x: Number, y: Number, evaluator: Evaluator) -> bool:
    """Exact for fractions; for rounded numbers to all but the last bits, which no decimal that somebody writes comes near."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    x, y = evaluator.rounded(x), evaluator.rounded(y)
    size, good = max(_magnitude(x), _magnitude(y)), evaluator.precision * 7 // 8 - 64
    if _magnitude(libmp.mpc_sub(x, y, evaluator.precision, "n")) <= size - good:
        return True
    # zero, and what is left of it when large numbers cancel; a number that is smaller than that is a number

    def nothing(z: Number) -> bool:
        magnitude = _magnitude(z) - evaluator.largest
        return _magnitude(z) < -10**8 or -evaluator.precision - 64 <= magnitude <= -good

    return nothing(x) and nothing(y)


def _magnitude(z: Number) -> int:
    """Bits before the point of a complex number; very negative for zero."""
    return max(part[2] + part[3] if part[1] else -10**9 for part in z)


def _chance(*what: str | int) -> int:
    """32 bits that depend on every argument."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, what)).encode("utf-8", "replace"), digest_size=4).digest(), "little")


class Evaluator:
    """Values of trees at one point, within a budget of work."""

    def __init__(self, point: int) -> None:
        self.point, self.work, self.precision, self.largest = point, 0, PRECISION, 0

    def value(self, node: Node) -> Number:
        """The value of a tree. Raises Undefined, ZeroDivisionError, Unsupported."""
        kind = node[0]
        if kind == "num":
            self.precision = max(self.precision, PRECISION + 2 * _bits(node[1]))
            if self.precision > MAX_BITS:
                raise Unsupported("digits")
            return node[1]
        if kind == "sym":
            hashed = _chance(node[1], self.point)
            sign = -1 if self.point and hashed & 1 else 1  # the first point is positive throughout
            return Fraction(sign * (101 + hashed // 2 % 397), 64 + hashed // 1024 % 61)
        if kind in ("pi", "e"):
            constant = libmp.mpf_pi if kind == "pi" else libmp.mpf_e
            return (constant(self.precision, "n"), libmp.fzero)
        if kind == "i":
            return (libmp.fzero, libmp.fone)
        parts = [self.value(part) for part in _parts(node)]
        if kind == "add":
            total = parts[0]
            for part in parts[1:]:
                total = self.add(total, part)
            return total
        if kind == "neg":
            return -parts[0] if isinstance(parts[0], Fraction) else libmp.mpc_neg(parts[0])
        if kind == "mul":
            return self.mul(*parts)
        if kind == "div":
            return self.div(*parts)
        return self.power(*parts) if kind == "pow" else self.call(node[1], parts)

    def spend(self, work: float) -> None:
        self.work += work
        if self.work > MAX_WORK:
            raise Unsupported("too much work")

    def rounded(self, x: Number) -> Number:
        if isinstance(x, Fraction):
            return (libmp.from_rational(x.numerator, x.denominator, self.precision, "n"), libmp.fzero)
        return x

    def kept(self, x: Number) -> Number:
        """The result of an operation: rounded if it has grown long, refused if it is out of all proportion."""
        if isinstance(x, Fraction):
            self.spend(1 + _bits(x) / 64)
            if _bits(x) <= MAX_BITS:
                return x
            x = self.rounded(x)
        magnitude = _magnitude(x)
        self.largest = max(self.largest, magnitude)
        if magnitude > MAX_MAGNITUDE:
            raise Unsupported("too large")
        return x

    def both(self, exact: Callable[[Fraction, Fraction], Fraction], rounded: Callable[..., Number], x: Number, y: Number) -> Number:
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return self.kept(exact(x, y))
        self.spend(4 * (self.precision / PRECISION) ** 2)
        return self.kept(rounded(self.rounded(x), self.rounded(y), self.precision, "n"))

    def add(self, x: Number, y: Number) -> Number:
        return self.both(Fraction.__add__, libmp.mpc_add, x, y)

    def mul(self, x: Number, y: Number) -> Number:
        return self.both(Fraction.__mul__, libmp.mpc_mul, x, y)

    def div(self, x: Number, y: Number) -> Number:
        if not isinstance(y, Fraction) and _magnitude(y) < self.largest - self.precision // 2:
            raise Undefined("division by zero")
        return self.both(Fraction.__truediv__, libmp.mpc_div, x, y)

    def power(self, x: Number, y: Number) -> Number:
        """Odd roots of negative numbers are real, as in cube root of -8; other powers have their principal value."""
        if isinstance(y, Fraction) and y.denominator == 1:
            n = y.numerator
            if isinstance(x, Fraction):
                if x == 0 and n <= 0:
                    raise Undefined("0 to the 0")
                if abs(n) <= 8 * MAX_BITS and _bits(x) * abs(n) <= MAX_BITS + 64:
                    return self.kept(x**n)
                if x in (0, 1, -1):
                    return x if n % 2 else abs(x)
            if abs(n) > MAX_MAGNITUDE:
                raise Unsupported("exponent")
            self.spend(30 * (self.precision / PRECISION) ** 2)
            if not isinstance(x, Fraction) and n < 0 and _magnitude(x) < self.largest - self.precision // 2:
                raise Undefined("division by zero")
            return self.kept(libmp.mpc_pow_int(self.rounded(x), n, self.precision + 32, "n"))
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            if x == 0:
                if y < 0:
                    raise Undefined("division by zero")
                return x
            root = _exact_root(abs(x), y.denominator)
            if x < 0 and y.denominator % 2:
                size = self.power(-x, y)
                return self.kept(size if y.numerator % 2 == 0 else self.mul(Fraction(-1), size))
            if root is not None and x > 0:
                return self.power(root, Fraction(y.numerator))
        self.spend(150 * (self.precision / PRECISION) ** 2)
        x, y = self.rounded(x), self.rounded(y)
        if _magnitude(x) < -10**8:
            raise Undefined("0 to a power")
        if _magnitude(y) > 20 or abs(_magnitude(x)) * 2 ** max(0, _magnitude(y)) > MAX_MAGNITUDE:
            raise Unsupported("exponent")
        return self.kept(libmp.mpc_pow(x, y, self.precision, "n"))

    def call(self, name: str, parts: list[Number]) -> Number:
        """A function; one that is not known is some fixed function of its arguments."""
        x = parts[0]
        whole = all(isinstance(part, Fraction) and part.denominator == 1 and 0 <= part <= 500 for part in parts)
        if name == "!" and whole:
            return self.kept(Fraction(math.factorial(int(x))))
        if name == "binom" and whole:
            return self.kept(Fraction(math.comb(int(x), int(parts[1]))))
        if name in ("lfloor", "lceil") and isinstance(x, Fraction):
            return Fraction(math.floor(x) if name == "lfloor" else math.ceil(x))
        if name == "abs":
            return abs(x) if isinstance(x, Fraction) else self.kept((libmp.mpc_abs(x, self.precision, "n"), libmp.fzero))
        if name in FUNCTIONS:
            return self.kept(self.elementary(name, self.rounded(x)))
        total: Number = Fraction(_chance(name), 2**16)
        for place, part in enumerate(parts):
            factor = Fraction(1 + _chance(name, place) % 1009, 256)
            total = self.add(total, self.mul(part, self.add(part, factor)))
        return total

    def elementary(self, name: str, z: Number) -> Number:
        """A function that everybody knows, at z."""
        precision, one = self.precision, (libmp.fone, libmp.fzero)
        self.spend(120 * (precision / PRECISION) ** 2)
        if _magnitude(z) > 24:
            raise Unsupported("argument")
        if name in ("ln", "log", "lg"):
            if _magnitude(z) < -10**8:
                raise Undefined("logarithm of zero")
            base = libmp.mpc_log((libmp.from_int(10), libmp.fzero), precision, "n") if name != "ln" else one
            return libmp.mpc_div(libmp.mpc_log(z, precision, "n"), base, precision, "n")
        if name in ("sec", "csc", "cot"):
            below = {"sec": libmp.mpc_cos, "csc": libmp.mpc_sin, "cot": libmp.mpc_tan}[name](z, precision, "n")
            if _magnitude(below) < -precision // 2:
                raise Undefined(name)
            return libmp.mpc_div(one, below, precision, "n")
        if name == "tan" and _magnitude(libmp.mpc_cos(z, precision, "n")) < -precision // 2:
            raise Undefined(name)
        table = {"sin": libmp.mpc_sin, "cos": libmp.mpc_cos, "tan": libmp.mpc_tan, "arcsin": libmp.mpc_asin, "arccos": libmp.mpc_acos,
                 "arctan": libmp.mpc_atan, "sinh": libmp.mpc_sinh, "cosh": libmp.mpc_cosh, "tanh": libmp.mpc_tanh, "exp": libmp.mpc_exp}
        return table[name](z, precision, "n")


def _bits(x: Fraction) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def _exact_root(x: Fraction, n: int) -> Fraction | None:
    """The n-th root of a positive fraction if it is one."""
    roots = []
    for part in (x.numerator, x.denominator):
        if n == 2:
            root = math.isqrt(part)
        elif n > 64:
            return None
        else:
            root = int(libmp.to_int(libmp.mpf_nthroot(libmp.from_int(part), n, part.bit_length() // n + 32, "n"), "n"))
        if root**n != part:
            return None
        roots.append(root)
    return Fraction(*roots)
