"""Computes the value of a parsed expression: an exact fraction while that is cheap, else a complex number of 320 bits or more.

Variables have the values of points.py. The work is limited: numbers have a largest size, and every operation is paid
from a budget. An expression that goes beyond a limit raises an exception.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import reduce
from itertools import pairwise

from mpmath import libmp

from common.verify.points import value_of_variable
from common.verify.rounding import ZERO_BELOW, Number, bit_length, exact_root, hash32, is_zero, magnitude, round_fraction, whole_beside
from common.verify.tokens import FUNCTIONS, SYMMETRIC, Unsupported
from common.verify.trees import Node

MAX_BITS = 20480  # of the numerator and of the denominator of an exact number, enough for 2025!; a longer number is rounded
MAX_BITS_ROUNDED = 2048  # of an exact number that is rounded, with a precision to match
MAX_MAGNITUDE = 2**20  # bits before the point of a rounded number; also the largest whole exponent
PRECISION_BITS = 320  # of a rounded number; more in an expression that also has long exact numbers
HYPERBOLIC = {"sinh", "cosh", "tanh", "sech", "csch", "coth"}
_ELEMENTARY = {"sin": libmp.mpc_sin, "cos": libmp.mpc_cos, "tan": libmp.mpc_tan, "arcsin": libmp.mpc_asin, "arccos": libmp.mpc_acos,
               "arctan": libmp.mpc_atan, "sinh": libmp.mpc_sinh, "cosh": libmp.mpc_cosh, "tanh": libmp.mpc_tanh, "exp": libmp.mpc_exp,
               "arsinh": libmp.mpc_asinh, "arcosh": libmp.mpc_acosh, "artanh": libmp.mpc_atanh}
_RECIPROCALS = {"sec": libmp.mpc_cos, "csc": libmp.mpc_sin, "cot": libmp.mpc_tan, "sech": libmp.mpc_cosh, "csch": libmp.mpc_sinh,
                "coth": libmp.mpc_tanh}


class NeedsMorePrecision(Exception):
    """An exact number has more bits than a rounded number keeps. The argument is its number of bits."""


class Undefined(ArithmeticError):
    """The expression has no value at this point: it divides by zero, or takes the logarithm of zero."""


# ---- evaluation -----------------------------------------------------------------------------------------------------

class Evaluator:
    """Computes values of trees at one point, and notes what happens on the way."""

    def __init__(self, point: int, precision: int, spend: Callable[[float], None]) -> None:
        """`precision`: bits of a rounded number. `spend`: takes the cost of an operation from the budget, about 1 for a microsecond."""
        self.point, self.precision, self.spend = point, precision, spend
        self.largest = 0  # magnitude of the largest rounded number
        self.cancelled = False  # terms have cancelled to less than 2**-32 of their size, or a sine, cosine or tangent was taken
        self.real = True  # no number had an imaginary part, except for rounding errors
        self.has_modulus = False  # an absolute value was taken

    def value(self, node: Node) -> Number:
        """The value of a tree. Raises Undefined, ZeroDivisionError, Unsupported, NeedsMorePrecision."""
        kind = node[0]
        self.spend(3)
        if kind == "num":
            return node[1]
        if kind == "sym":
            return value_of_variable(node[1], self.point)
        if kind == "add":
            return reduce(self.add, [self.value(part) for part in node[1]])
        if kind in ("mul", "div", "pow"):
            x, y = self.value(node[1]), self.value(node[2])
            return self.mul(x, y) if kind == "mul" else self.div(x, y) if kind == "div" else self.power(x, y)
        if kind == "neg":
            part = self.value(node[1])
            return -part if type(part) is Fraction else libmp.mpc_neg(part)
        if kind in ("pi", "e"):
            constant = libmp.mpf_pi if kind == "pi" else libmp.mpf_e
            return (constant(self.precision, "n"), libmp.fzero)
        if kind == "i":
            self.real = False
            return (libmp.fzero, libmp.fone)
        return self.call(node[1], [self.value(part) for part in node[2:]])

    # -- sizes

    def rounded(self, x: Number) -> Number:
        """A number as a rounded one. Raises NeedsMorePrecision or Unsupported if an exact number would lose bits."""
        if type(x) is not Fraction:
            return x
        bits = bit_length(x)
        if bits > self.precision - 64:
            if self.precision > PRECISION_BITS or bits > MAX_BITS_ROUNDED:
                raise Unsupported("too many digits")
            raise NeedsMorePrecision(bits)
        return round_fraction(x, self.precision)

    def checked(self, x: Number) -> Number:
        """The result of an operation. A long exact number is rounded. A number beyond MAX_MAGNITUDE raises Unsupported."""
        if type(x) is Fraction:
            bits = bit_length(x)
            self.spend(1 + bits / 64)
            if bits <= MAX_BITS:
                return x
            x = self.rounded(x)
        real, imaginary = x
        if (not real[1] and real[2]) or (not imaginary[1] and imaginary[2]):  # libmp's infinities and NaN
            raise Undefined("infinite")
        size = magnitude(x)
        self.real = self.real and magnitude((imaginary, libmp.fzero)) < max(size, 0) - self.precision // 2
        self.largest = max(self.largest, size)
        if size > MAX_MAGNITUDE:
            raise Unsupported("too large")
        return x

    def is_rounding_error(self, z: Number) -> bool:
        """Whether a rounded number is zero, or so small beside the largest number so far that it may be zero."""
        return magnitude(z) < self.largest - self.precision // 2

    # -- operations

    def operation(self, exact: Callable[[Fraction, Fraction], Fraction], rounded: Callable[..., Number], x: Number, y: Number) -> Number:
        """x and y under the operation `exact` if both are fractions, else under its counterpart `rounded`."""
        if type(x) is type(y) is Fraction:
            return self.checked(exact(x, y))
        self.spend(4 * (self.precision / PRECISION_BITS) ** 2)
        return self.checked(rounded(self.rounded(x), self.rounded(y), self.precision, "n"))

    def add(self, x: Number, y: Number) -> Number:
        """x + y. Raises Unsupported if one of them is lost in the rounding of the other."""
        total = self.operation(Fraction.__add__, libmp.mpc_add, x, y)
        if type(total) is not Fraction:
            small, large = sorted((magnitude(self.rounded(x)), magnitude(self.rounded(y))))
            if ZERO_BELOW < small < large - self.precision + 64:
                raise Unsupported("a term is too small")
            self.cancelled |= magnitude(total) < large - 32
        return total

    def mul(self, x: Number, y: Number) -> Number:
        return self.operation(Fraction.__mul__, libmp.mpc_mul, x, y)

    def div(self, x: Number, y: Number) -> Number:
        """x / y. Raises Undefined or ZeroDivisionError if y is zero."""
        if type(y) is not Fraction and self.is_rounding_error(y):
            raise Undefined("division by zero") if is_zero(y) else Unsupported("a tiny divisor")
        return self.operation(Fraction.__truediv__, libmp.mpc_div, x, y)

    def power(self, x: Number, y: Number) -> Number:
        """x to the y. An odd root of a negative number is real: the cube root of -8 is -2. Other powers have their principal value."""
        if type(y) is Fraction and y.denominator == 1:
            return self.integer_power(x, y.numerator)
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            if x == 0:
                if y < 0:
                    raise Undefined("division by zero")
                return x
            root = exact_root(abs(x), y.denominator)
            if x < 0 and y.denominator % 2:
                size = self.power(-x, y)
                return self.checked(size if y.numerator % 2 == 0 else self.mul(Fraction(-1), size))
            if root is not None and x > 0:
                return self.power(root, Fraction(y.numerator))
        self.spend(150 * (self.precision / PRECISION_BITS) ** 2)
        x, y = self.rounded(x), self.rounded(y)
        if is_zero(x):
            raise Undefined("0 to a power")
        bits_of_result = abs(magnitude(x)) * 2 ** max(0, magnitude(y)) if magnitude(y) <= 20 else math.inf
        if bits_of_result > MAX_MAGNITUDE:
            raise Unsupported("exponent")
        return self.checked(libmp.mpc_pow(x, y, self.precision, "n"))

    def integer_power(self, x: Number, n: int) -> Number:
        """x to the n. The result is exact if x is a fraction and the result has about MAX_BITS at most."""
        if isinstance(x, Fraction):
            if x == 0 and n <= 0:
                raise Undefined("0 to the 0")
            if abs(n) <= 65536 and bit_length(x) * abs(n) <= MAX_BITS + 64:
                return self.checked(x**n)
            if x in (0, 1, -1):
                return x if n % 2 else abs(x)
        if abs(n) > MAX_MAGNITUDE:
            raise Unsupported("exponent")
        self.spend(30 * (self.precision / PRECISION_BITS) ** 2)
        if not isinstance(x, Fraction) and n < 0 and self.is_rounding_error(x):
            raise Undefined("division by zero") if is_zero(x) else Unsupported("a tiny divisor")
        return self.checked(libmp.mpc_pow_int(self.rounded(x), n, self.precision + 32, "n"))

    # -- functions

    def call(self, name: str, parts: list[Number]) -> Number:
        """The value of a function. A function that is not known counts as some fixed function of its arguments."""
        x = parts[0]
        if name == "!":
            return self.factorial(x)
        if name == "gamma":
            return self.factorial(self.add(x, Fraction(-1)))
        if name == "binom":
            return self.binomial(*parts)
        if name == "!!" and isinstance(x, Fraction) and x.denominator == 1 and -1 <= x <= 500:
            return self.checked(Fraction(math.prod(range(int(x), 0, -2))))
        if name.startswith("dots "):
            return self.product_with_dots(parts[:int(name[5:])], parts[int(name[5:]):])
        if name == "conjugate":
            return x if isinstance(x, Fraction) else libmp.mpc_conjugate(x, self.precision, "n")
        if name in ("lfloor", "lceil") and isinstance(x, Fraction):
            return Fraction(math.floor(x) if name == "lfloor" else math.ceil(x))
        if name in ("lfloor", "lceil") and self.real and magnitude(x) < 64:
            return whole_beside(x, name == "lceil", self.precision)
        if name == "abs":
            self.has_modulus = True
            return abs(x) if isinstance(x, Fraction) else self.checked((libmp.mpc_abs(x, self.precision, "n"), libmp.fzero))
        if name in FUNCTIONS:
            return self.checked(self.elementary_function(name, self.rounded(x)))
        if name in SYMMETRIC:
            if all(isinstance(part, Fraction) for part in parts):
                parts = sorted(parts)
                if name in ("max", "min"):
                    return parts[-1] if name == "max" else parts[0]
                if all(part.denominator == 1 for part in parts):
                    return Fraction((math.gcd if name == "gcd" else math.lcm)(*map(int, parts)))
            else:
                raise Unsupported("an order of rounded numbers")
        return self.unknown_function(name, parts)

    def unknown_function(self, name: str, parts: list[Number]) -> Number:
        """A fixed function of all parts, in which no part stands alone.

        So neither f(1) + f(3) = 2 f(2) + c nor f(x, y) = u(x) + v(y) holds.
        """
        total: Number = Fraction(1 + hash32(name) % 4093, 256)
        for place, part in enumerate(parts):
            offset, factor = (Fraction(1 + hash32(name, place, use) % 1009, 256) for use in ("offset", "factor"))
            total = self.add(self.mul(total, self.add(part, offset)), self.mul(factor, self.mul(part, part)))
        return self.div(self.add(self.mul(total, total), Fraction(7, 3)), self.add(total, Fraction(hash32(name, "pole"), 2**14)))

    def factorial(self, x: Number) -> Number:
        """x!, exact for whole numbers up to 2500, else Gamma(x + 1). Raises Undefined at the poles."""
        if isinstance(x, Fraction) and x.denominator == 1:
            if x < 0:
                raise Undefined("a factorial of a negative whole number")
            if x <= 2500:
                self.spend(float(x))
                return self.checked(Fraction(math.factorial(int(x))))
        return self.gamma(self.add(x, Fraction(1)))

    def product_with_dots(self, before: list[Number], behind: list[Number]) -> Number:
        """The product of a, a + d, ..., z: d^m Gamma(z/d + 1) / Gamma(a/d) with m = (z - a)/d + 1 factors. Other steps are Unsupported."""
        if not all(isinstance(part, Fraction) for part in (*before, *behind)):
            raise Unsupported("dots")
        steps = {b - a for side in (before, behind) for a, b in pairwise(side)}
        if len(steps) != 1 or 0 in steps:
            raise Unsupported("dots")
        step = steps.pop()
        first, last = (before[0], behind[-1]) if step > 0 else (behind[-1], before[0])
        ratio = self.div(self.gamma(last / abs(step) + 1), self.gamma(first / abs(step)))
        return self.mul(self.power(abs(step), (last - first) / abs(step) + 1), ratio)

    def gamma(self, x: Number) -> Number:
        """Gamma(x) by libmp. Raises Undefined at the poles, Unsupported where the value or the work is too large."""
        z = self.rounded(x)
        self.spend(80 * (self.precision / PRECISION_BITS) ** 2)
        if magnitude(z) > 17 or self.precision > 2 * PRECISION_BITS:
            raise Unsupported("too large")
        try:
            return self.checked(libmp.mpc_gamma(z, self.precision, "n"))
        except ValueError as pole:
            raise Undefined("a pole") from pole

    def binomial(self, n: Number, k: Number) -> Number:
        """n over k. For a whole k, or a whole n - k, it is a product, so that n over 2 is n (n - 1) / 2 exactly. Else by Gamma."""
        if isinstance(n, Fraction) and isinstance(k, Fraction):
            if n.denominator == k.denominator == 1 and 0 <= n <= 2500:
                self.spend(1 + min(int(n), 2500) / 4)
                return self.checked(Fraction(math.comb(int(n), int(k)) if 0 <= k <= n else 0))
            for lower in (k, n - k):
                if lower.denominator == 1 and lower <= 200:
                    product = Fraction(int(lower >= 0))
                    for i in range(max(0, int(lower))):
                        product = self.mul(product, self.div(self.add(n, Fraction(-i)), Fraction(i + 1)))
                    return product
        below = self.mul(self.factorial(k), self.factorial(self.add(n, self.mul(Fraction(-1), k))))
        return self.div(self.factorial(n), below)

    def elementary_function(self, name: str, z: Number) -> Number:
        """A function from FUNCTIONS at z. `\\log` and `\\lg` have base 10."""
        precision, one = self.precision, (libmp.fone, libmp.fzero)
        self.spend(120 * (precision / PRECISION_BITS) ** 2)
        is_logarithm = name in ("ln", "log", "lg")
        highest = MAX_MAGNITUDE if is_logarithm else 5 if name in HYPERBOLIC else 19 if name == "exp" else 24
        lowest = -MAX_MAGNITUDE if is_logarithm else -100
        if not is_zero(z) and not lowest < magnitude(z) <= highest:
            raise Unsupported("argument")  # rounding would hide the value of the function: sin x is x for a tiny x
        if is_logarithm:
            if is_zero(z):
                raise Undefined("logarithm of zero")
            divisor = libmp.mpc_log((libmp.from_int(10), libmp.fzero), precision, "n") if name != "ln" else one
            return libmp.mpc_div(libmp.mpc_log(z, precision, "n"), divisor, precision, "n")
        if name in _RECIPROCALS:
            denominator = _RECIPROCALS[name](z, precision, "n")
            if magnitude(denominator) < -precision // 2:
                raise Undefined(name)
            return libmp.mpc_div(one, denominator, precision, "n")
        if name == "tan" and magnitude(libmp.mpc_cos(z, precision, "n")) < -precision // 2:
            raise Undefined(name)
        value = _ELEMENTARY[name](z, precision, "n")
        if name in ("sin", "cos", "tan"):  # at a multiple of pi the value is zero, but rounding leaves a small number
            self.cancelled = True
            if magnitude(value) < max(magnitude(z), 0) - precision + 16:
                return (libmp.fzero, libmp.fzero)
        return value
