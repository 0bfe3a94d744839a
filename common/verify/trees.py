"""The trees of parsed expressions: their parts and their variables."""
from __future__ import annotations

from common.verify.latex import Node

WHOLE = "\0"  # ends the name of a variable that has whole values: see whole_variables


def operands(node: Node) -> list[Node]:
    """The trees directly below the root of a tree."""
    return node[1] if node[0] == "add" else [part for part in node[1:] if isinstance(part, tuple)]


def variables(tree: Node) -> set[str]:
    """The names of the variables in a tree."""
    if tree[0] == "sym":
        return {tree[1]}
    return set().union(*(variables(part) for part in operands(tree)))


def whole_variables(*trees: Node) -> tuple[Node, ...]:
    """The trees with whole values for the variables i to n, if one of them rounds or has powers of a negative number.

    Such letters stand for whole numbers there: \\lfloor (n + 1) / 2 \\rfloor is \\lceil n / 2 \\rceil, and (-1)^{2n} is 1.
    """
    def needs_it(node: Node) -> bool:
        named = node[0] == "call" and node[1] in ("lfloor", "lceil", "!!", "gcd", "lcm")
        return named or (node[0] == "pow" and node[1][0] == "neg" and node[1][1][0] == "num") or any(map(needs_it, operands(node)))

    def changed(node: Node) -> Node:
        if node[0] == "sym":
            return ("sym", node[1] + WHOLE) if node[1][0] in "jklmnMN" else node
        if node[0] == "add":
            return ("add", [changed(part) for part in node[1]])
        return tuple(changed(part) if isinstance(part, tuple) else part for part in node)

    return tuple(map(changed, trees)) if any(map(needs_it, trees)) else trees
