"""The trees of parsed expressions: their parts and their variables."""
from __future__ import annotations

from itertools import permutations
from typing import Any

# The tree of an expression is a tuple, its kind first: ("num", Fraction), ("sym", name of a variable), ("pi",), ("e",), ("i",),
# ("add", [terms]), ("neg", node), ("mul", node, node), ("div", node, node), ("pow", base, exponent), ("call", function, node, ...)
Node = tuple[Any, ...]
INFINITY: Node = ("sym", "infty")

WHOLE = "\0"  # ends the name of a variable that has whole values: see whole_variables


def operands(node: Node) -> list[Node]:
    """The trees directly below the root of a tree."""
    return node[1] if node[0] == "add" else [part for part in node[1:] if isinstance(part, tuple)]


def variables(tree: Node) -> set[str]:
    """The names of the variables in a tree."""
    found, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        kind = node[0]
        if kind == "sym":
            found.add(node[1])
        elif kind == "add":
            nodes += node[1]
        elif kind != "num":
            nodes += node[2:] if kind == "call" else node[1:]
    return found


def substituted(tree: Node, old: Node, new: Node) -> Node:
    """The tree with one tree in place of another one."""
    if tree == old:
        return new
    if tree[0] == "add":
        return ("add", [substituted(part, old, new) for part in tree[1]])
    return tuple(substituted(part, old, new) if isinstance(part, tuple) else part for part in tree)


def degrees(tree: Node, names: set[str]) -> set[int] | None:
    """The degrees in these variables of the terms of a tree. None if they stand in a divisor, an exponent or a function."""
    if tree[0] == "sym":
        return {int(tree[1] in names)}
    if tree[0] in ("add", "neg", "mul", "div"):
        parts = [degrees(part, names) for part in operands(tree)]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or (tree[0] == "div" and found[1] != {0}):
            return None
        if tree[0] in ("add", "neg"):
            return set().union(*found)
        return {a + b for a in found[0] for b in found[1]}
    return None if variables(tree) & names else {0}


_ARBITRARY = frozenset({"A", "B", "C", "D", "K", "c", "k", *(f"{name}_{place}" for name in "CcKkAB" for place in range(4))})
CONSTANTS = ("C", "c", "K", "k", "constant", "const", "C_1", "c_1", "C_0", "D", "A")


def with_constant_of(x: Node, y: Node) -> Node:
    """The tree y with the C of x for its own constant of integration: x^2 + c for x^2 + C."""
    if x[0] != "add" or y[0] != "add" or ("sym", "C") not in (*x[1], *y[1]):
        return y
    names = variables(x) | variables(y)
    constants = [[name for name in CONSTANTS if ("sym", name) in tree[1]][:1] for tree in (x, y)]
    if [] in constants or constants[0] == constants[1]:
        return y
    mine, other = constants[0][0], constants[1][0]
    if mine in variables(y) or other in variables(x) or len(names) < 3:
        return y
    return substituted(y, ("sym", other), ("sym", mine))


def arbitrary_constants(tree: Node) -> list[str]:
    """The constants of the general solution of a differential equation, such as C_1 e^x + C_2 e^{-x}. None for any other tree.

    The tree is linear in them, and depends on one other letter, x or t, by a function or an exponent.
    """
    names = variables(tree)
    if names.isdisjoint(_ARBITRARY):
        return []
    constants = sorted(name for name in names if name in _ARBITRARY)
    others = names - set(constants)
    if len(constants) > 3 or others not in ({"x"}, {"t"}) or not (degrees(tree, set(constants)) or {2}) <= {0, 1}:
        return []
    return constants if _grows(tree, others) else []


def _grows(tree: Node, names: set[str]) -> bool:
    """Whether a tree has a function of these variables, or an exponent with them."""
    found = tree[0] == "call" or (tree[0] == "pow" and variables(tree[2]))
    return (bool(found) and not names.isdisjoint(variables(tree))) or any(_grows(part, names) for part in operands(tree))


def with_constants_of(x: Node, y: Node) -> list[Node]:
    """The tree y with the arbitrary constants of x, in each order: c_1 e^x + c_2 e^{-x} for C_2 e^x + C_1 e^{-x}."""
    mine = arbitrary_constants(x)
    others = arbitrary_constants(y) if mine else []
    if not mine or len(mine) != len(others):
        return []
    found = []
    for order in permutations(mine):
        tree = y
        for place, name in enumerate(others):
            tree = substituted(tree, ("sym", name), ("sym", f"{place}{WHOLE}"))
        for place, name in enumerate(order):
            tree = substituted(tree, ("sym", f"{place}{WHOLE}"), ("sym", name))
        found.append(tree)
    return found


def whole_variables(*trees: Node) -> tuple[Node, ...]:
    """The trees with whole values for the variables i to n, if one of them rounds or has powers of a negative number.

    Such letters stand for whole numbers there: \\lfloor (n + 1) / 2 \\rfloor is \\lceil n / 2 \\rceil, and (-1)^{2n} is 1. The letters
    of a \\gcd or \\lcm all do.
    """
    found = set().union(*map(_marks_of_whole_numbers, trees))
    return tuple(with_whole_variables(tree, every=not found.isdisjoint(("gcd", "lcm"))) for tree in trees) if found else trees


def rounds(tree: Node) -> bool:
    """Whether a tree rounds or divides whole numbers. Such a tree must also be compared at small numbers, where it makes its steps."""
    return not _marks_of_whole_numbers(tree) <= {"power"}


def _marks_of_whole_numbers(tree: Node) -> set[str]:
    """The functions of whole numbers in a tree, and "power" for a power of a negative number."""
    found, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        kind = node[0]
        if kind == "call" and node[1] in ("lfloor", "lceil", "!!", "gcd", "lcm"):
            found.add(node[1])
        elif kind == "pow" and node[1][0] == "neg" and node[1][1][0] == "num":
            found.add("power")
        if kind not in ("num", "sym"):
            nodes += node[1] if kind == "add" else node[2:] if kind == "call" else node[1:]
    return found


def with_whole_variables(node: Node, every: bool = False) -> Node:
    """The tree with whole values for the variables j to n, M and N, or for all of them."""
    if node[0] == "sym":
        return ("sym", node[1] + WHOLE) if every or node[1][0] in "jklmnMN" else node
    if node[0] == "add":
        return ("add", [with_whole_variables(part, every) for part in node[1]])
    return tuple(with_whole_variables(part, every) if isinstance(part, tuple) else part for part in node)
