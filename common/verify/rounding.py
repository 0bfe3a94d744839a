"""Exact and rounded numbers: their size, their rounding and their roots."""
from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from typing import Any

from mpmath import libmp

_MAGNITUDE_OF_ZERO = -10**9
ZERO_BELOW = -10**8  # a number of smaller magnitude counts as zero
Number = Any  # a Fraction, or a complex number of libmp: (real part, imaginary part)


def round_fraction(x: Fraction, precision: int) -> Number:
    """A fraction as a rounded complex number of `precision` bits."""
    return (libmp.from_rational(x.numerator, x.denominator, precision, "n"), libmp.fzero)


def magnitude(z: Number) -> int:
    """The number of bits before the point of a rounded number. Below one it is negative, and for zero _MAGNITUDE_OF_ZERO."""
    real, imaginary = z
    size = real[2] + real[3] if real[1] else _MAGNITUDE_OF_ZERO
    return max(size, imaginary[2] + imaginary[3]) if imaginary[1] else size


def is_zero(z: Number) -> bool:
    """Whether a rounded number is zero, or below 2**-10**8, which counts as zero."""
    return magnitude(z) < ZERO_BELOW


def bit_length(x: Fraction) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def hash32(*key: str | int) -> int:
    """32 bits that depend on every part of the key."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, key)).encode("utf-8", "replace"), digest_size=4).digest(), "little")


def exact_root(x: Fraction, n: int) -> Fraction | None:
    """The n-th root of a positive fraction if it is a fraction, else None. Also None for n over 64."""
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


def whole_beside(z: Number, above: bool, precision: int) -> Fraction:
    """The whole number below a rounded real number, or above it. A number that may be whole counts as whole: \\log_2 8 is 3."""
    nearest = int(libmp.to_int(z[0], "n"))
    distance = libmp.mpf_sub(z[0], libmp.from_int(nearest), precision, "n")
    is_whole = magnitude((distance, libmp.fzero)) < -precision // 2
    return Fraction(nearest if is_whole else nearest + (libmp.mpf_sign(distance) > 0) - (not above))
