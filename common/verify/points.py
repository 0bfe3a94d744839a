"""The points at which two expressions are compared: the values of their variables, which are the same in each run."""
from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from common.verify.rounding import hash32
from common.verify.trees import WHOLE

NUM_POINTS = 7  # values of the variables: positive, negative, two points of mixed signs, below one, two points with large values
_SCALES = (Fraction(1), Fraction(7), Fraction(1), Fraction(1), Fraction(1, 9), Fraction(20011), Fraction(20011))  # one for each point
# At further points, for expressions that round, all variables have these values, each in an order of its own. Their number is prime
SMALL_NUMBERS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 17, 24, 25, 26, 31, 32, 33, 63, 64, 65)


@lru_cache(maxsize=4096)
def value_of_variable(name: str, point: int) -> Fraction:
    """The value of a variable at a point: a fixed fraction that depends on its name."""
    bits = hash32(name, point)
    if point >= NUM_POINTS:
        order = hash32(name)
        return Fraction(SMALL_NUMBERS[((point - NUM_POINTS) * (1 + order % 22) + order // 22) % len(SMALL_NUMBERS)])
    if name.endswith(WHOLE):
        return Fraction(2 + bits % 24 // 2 * 2 + point % 2)
    # two bits of the last character give the signs at points 2 and 3: a, b, c and d have four different pairs of signs
    sign_at_2, sign_at_3 = (1 if ord(name[-1]) >> bit & 1 else -1 for bit in (0, 1))
    sign = (1, -1, sign_at_2, sign_at_3, 1, 1, -1)[point]
    return sign * _SCALES[point] * Fraction(101 + bits // 2 % 397, 64 + bits // 1024 % 61)
