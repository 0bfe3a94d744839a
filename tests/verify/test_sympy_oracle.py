"""The checker beside sympy: random expressions, rewritten and printed by sympy, are the same; expressions whose values differ are not.

sympy is the oracle of these tests only. The reward does not use it.
"""

import random

import pytest

sympy = pytest.importorskip("sympy")

from common.verify.answers import answers_equal  # noqa: E402

X, Y, N = sympy.Symbol("x", positive=True), sympy.Symbol("y", positive=True), sympy.Symbol("n", positive=True)
POINTS = [{X: 0.37, Y: 1.91, N: 3.3}, {X: 2.23, Y: 0.71, N: 1.7}, {X: 1.13, Y: 3.07, N: 2.9}]
LEAVES = [X, Y, N, *map(sympy.Integer, (1, 2, 3)), sympy.Rational(1, 2), sympy.Rational(-2, 3), sympy.pi, sympy.sqrt(2)]
FUNCTIONS = [sympy.exp, sympy.log, sympy.sin, sympy.cos, sympy.sqrt, sympy.tanh, lambda z: sympy.exp(-z), lambda z: 1 / z, lambda z: z**2]
REWRITES = [sympy.expand, sympy.factor, sympy.together, sympy.simplify, sympy.expand_log, lambda e: e.rewrite(sympy.exp), sympy.cancel]


def expression(rng: random.Random, depth: int) -> sympy.Expr:
    """A random expression in x, y and n."""
    if depth == 0:
        return rng.choice(LEAVES)
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(FUNCTIONS)(expression(rng, depth - 1))
    left, right = expression(rng, depth - 1), expression(rng, depth - 1)
    return left + right if kind == 1 else left * right if kind == 2 else left - right


def values(tree: sympy.Expr) -> list[complex]:
    return [complex(tree.evalf(30, subs=point)) for point in POINTS]


def latex(tree: sympy.Expr) -> str:
    return sympy.latex(tree, ln_notation=True)  # the checker reads \\log with base 10


def differ(a: list[complex], b: list[complex]) -> bool:
    return any(abs(u - v) > 1e-6 * max(1.0, abs(u), abs(v)) for u, v in zip(a, b, strict=True))


def pairs(seed: int, count: int) -> list[tuple[str, str, bool]]:
    """(text, text, whether they are equal): rewritten pairs, and pairs with one change whose values differ at some point."""
    rng, found = random.Random(seed), []
    while len(found) < count:
        tree = expression(rng, 3)
        if tree.has(sympy.zoo, sympy.nan, sympy.oo) or tree.count_ops() > 30:
            continue
        other = rng.choice(REWRITES)(tree)
        changed = rng.choice([tree + 1, tree * 2, -tree, tree.subs(X, Y), tree.subs(N, N + 1)])
        try:
            true, same, wrong = values(tree), values(other), values(changed)
        except (TypeError, ValueError, OverflowError):
            continue
        if any(abs(value) > 1e12 or abs(value.imag) > 1e-9 for value in true):  # logarithms of negative numbers have several values
            continue
        if not differ(true, same) and other != tree:
            found.append((latex(tree), latex(other), True))
        if differ(true, wrong):
            found.append((latex(tree), latex(changed), False))
    return found


def test_verdicts_are_those_of_numeric_truth():
    tried = pairs(seed=0, count=240)
    assert sum(equal for _, _, equal in tried) > 60
    faults = [(a, b, equal) for a, b, equal in tried if answers_equal(a, b) is not equal]
    assert not faults
