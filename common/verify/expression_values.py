"""Values of parsed expressions: exact fractions as long as that is cheap, complex numbers of some hundred bits otherwise.

Variables take fixed values at each of a few points. Work is bounded by construction: sizes of numbers, and a budget of
operations; what goes beyond raises.
"""
from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from mpmath import libmp

from common.verify.latex import FUNCTIONS, Node, Unsupported

MAX_BITS = 8192  # of an exact numerator or denominator; beyond it a number is rounded
MAX_MAGNITUDE = 2**20  # bits before the point of a rounded number, and of an exponent's effect
POINTS = 7  # at which expressions with variables are compared: positive, negative, two mixed, below one, and two that are large
LARGE = 5  # from this point on: left out where powers of it grow too large
PRECISION = 320  # bits of a rounded number, more where long exact numbers are about
Number = Any  # Fraction, or a complex number of libmp: a pair of its floats


class TooCoarse(Exception):
    """An exact number has more bits than a rounded one keeps."""



class Undefined(ArithmeticError):
    """No value here: a division by zero, a logarithm of zero."""



def parts_of(node: Node) -> list[Node]:
    return node[1] if node[0] == "add" else [part for part in node[1:] if isinstance(part, tuple)]



def round_fraction(x: Fraction, precision: int) -> Number:
    return (libmp.from_rational(x.numerator, x.denominator, precision, "n"), libmp.fzero)



def magnitude(z: Number) -> int:
    """Bits before the point of a complex number; very negative for zero."""
    return max(part[2] + part[3] if part[1] else -10**9 for part in z)



def _chance(*what: str | int) -> int:
    """32 bits that depend on every argument."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, what)).encode("utf-8", "replace"), digest_size=4).digest(), "little")



class Evaluator:
    """Values of trees at one point, within a budget of work."""

    def __init__(self, point: int, precision: int, spend: Callable[[float], None]) -> None:
        self.point, self.precision, self.spend = point, precision, spend
        self.largest, self.cancelled, self.real, self.modulus = 0, False, True, False

    def value(self, node: Node) -> Number:
        """The value of a tree. Raises Undefined, ZeroDivisionError, Unsupported."""
        kind = node[0]
        self.spend(3)
        if kind == "num":
            return node[1]
        if kind == "sym":
            hashed = _chance(node[1], self.point)
            odd, second = (1 if ord(node[1][-1]) >> bit & 1 else -1 for bit in (0, 1))  # neighbouring letters differ in one of them
            sign = (1, -1, odd, second, 1, 1, -1)[self.point]
            scale = Fraction((1, 7, 1, 1, 1, 20011, 20011)[self.point], (1, 1, 1, 1, 9, 1, 1)[self.point])
            return sign * scale * Fraction(101 + hashed // 2 % 397, 64 + hashed // 1024 % 61)
        if kind in ("pi", "e"):
            constant = libmp.mpf_pi if kind == "pi" else libmp.mpf_e
            return (constant(self.precision, "n"), libmp.fzero)
        if kind == "i":
            self.real = False
            return (libmp.fzero, libmp.fone)
        parts = [self.value(part) for part in parts_of(node)]
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

    def rounded(self, x: Number) -> Number:
        if isinstance(x, Fraction):
            if _bits(x) > self.precision - 64:
                if self.precision > PRECISION or _bits(x) > MAX_BITS // 4:
                    raise Unsupported("digits")
                raise TooCoarse(_bits(x))
            return round_fraction(x, self.precision)
        return x

    def kept(self, x: Number) -> Number:
        """The result of an operation: rounded if it has grown long, refused if it is out of all proportion."""
        if isinstance(x, Fraction):
            self.spend(1 + _bits(x) / 64)
            if _bits(x) <= MAX_BITS:
                return x
            x = self.rounded(x)
        if any(not part[1] and part[2] for part in x):  # infinite, or not a number
            raise Undefined("infinite")
        size = magnitude(x)
        self.real = self.real and magnitude((x[1], libmp.fzero)) < max(size, 0) - self.precision // 2
        self.largest = max(self.largest, size)
        if size > MAX_MAGNITUDE:
            raise Unsupported("too large")
        return x

    def both(self, exact: Callable[[Fraction, Fraction], Fraction], rounded: Callable[..., Number], x: Number, y: Number) -> Number:
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return self.kept(exact(x, y))
        self.spend(4 * (self.precision / PRECISION) ** 2)
        return self.kept(rounded(self.rounded(x), self.rounded(y), self.precision, "n"))

    def add(self, x: Number, y: Number) -> Number:
        total = self.both(Fraction.__add__, libmp.mpc_add, x, y)
        if not isinstance(total, Fraction):
            small, large = sorted((magnitude(self.rounded(x)), magnitude(self.rounded(y))))
            if -10**8 < small < large - self.precision + 64:
                raise Unsupported("a term too small to count")
            self.cancelled |= magnitude(total) < large - 32
        return total

    def mul(self, x: Number, y: Number) -> Number:
        return self.both(Fraction.__mul__, libmp.mpc_mul, x, y)

    def div(self, x: Number, y: Number) -> Number:
        if not isinstance(y, Fraction) and magnitude(y) < self.largest - self.precision // 2:
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
            if not isinstance(x, Fraction) and n < 0 and magnitude(x) < self.largest - self.precision // 2:
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
        if magnitude(x) < -10**8:
            raise Undefined("0 to a power")
        if magnitude(y) > 20 or abs(magnitude(x)) * 2 ** max(0, magnitude(y)) > MAX_MAGNITUDE:
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
            self.modulus = True
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
        if not -100 < magnitude(z) <= (5 if name in ("sinh", "cosh", "tanh") else 24) and magnitude(z) > -10**8:
            raise Unsupported("argument")  # what the function does there is lost in rounding
        if name in ("ln", "log", "lg"):
            if magnitude(z) < -10**8:
                raise Undefined("logarithm of zero")
            base = libmp.mpc_log((libmp.from_int(10), libmp.fzero), precision, "n") if name != "ln" else one
            return libmp.mpc_div(libmp.mpc_log(z, precision, "n"), base, precision, "n")
        if name in ("sec", "csc", "cot"):
            below = {"sec": libmp.mpc_cos, "csc": libmp.mpc_sin, "cot": libmp.mpc_tan}[name](z, precision, "n")
            if magnitude(below) < -precision // 2:
                raise Undefined(name)
            return libmp.mpc_div(one, below, precision, "n")
        if name == "tan" and magnitude(libmp.mpc_cos(z, precision, "n")) < -precision // 2:
            raise Undefined(name)
        self.cancelled |= name in ("sin", "cos", "tan")  # of a multiple of pi: zero up to its rounding
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
