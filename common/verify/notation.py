"""Notations that take more than one token to recognise: numbers, functions, C(n, k), operators with limits, products with dots.

The functions go on where the parser of latex.py stands, and return the tree that they have read.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction

from common.verify.tokens import CLOSING_SIGNS, FUNCTIONS, MULTIPLICATION_SIGNS, ONE_NAME_FOR_FUNCTION, Tokens, Unsupported
from common.verify.trees import Node, substituted, variables

BOUND: Node = ("sym", "\1")  # the variable of a sum or an integral, whatever its letter
INDEX = "\1"  # stands for that variable in the name of another one: the k of a_k
COUNTING_LETTERS = frozenset("CPA")  # C(n, k) counts choices; P(n, k), A_n^k and the like count arrangements


class Grammar(Tokens, ABC):
    """What the functions below need of the parser."""

    @abstractmethod
    def sum(self) -> Node:
        """Terms with + or - between them."""

    @abstractmethod
    def product(self) -> Node:
        """Factors with a sign of multiplication or division, or nothing, between them."""

    @abstractmethod
    def power(self) -> Node:
        """A primary with its exponents."""

    @abstractmethod
    def argument(self, signed: bool = False) -> Node:
        """A group or one token."""

    @abstractmethod
    def primary(self) -> Node:
        """A number, a name, a group, an absolute value or a command."""

    @abstractmethod
    def group(self, opening: str) -> Node:
        """A sum in brackets."""

    @abstractmethod
    def starts_factor(self) -> bool:
        """Whether the current token can begin a factor."""


def counted(name: str, n: Node, k: Node) -> Node:
    """The number of choices, or of arrangements, of k out of n."""
    if name == "C":
        return ("call", "binom", n, k)
    return ("div", ("call", "!", n), ("call", "!", ("add", [n, ("neg", k)])))


def counting_call(parser: Grammar, name: str) -> Node | None:
    """C(10, 3) behind its C. None if no bracket with one comma follows."""
    depth = commas = 0
    for _, text in parser.tokens[parser.position:]:
        depth += (text in ("(", "[", "{")) - (text in (")", "]", "}"))
        commas += text == "," and depth == 1
        if depth == 0:
            break
    if commas != 1:
        return None
    parts = arguments(parser)
    for part in parts:
        if {letter[0] for letter in variables(part)} - set("nkmprN"):
            raise Unsupported("no numbers")
    return counted(name, *parts)


def counting_scripts(parser: Grammar, name: str) -> Node:
    """C_{10}^{3} from its _ on. C_1^2 is the square of C_1."""
    parser.take("_")
    start = parser.position
    below = parser.argument()
    text = " ".join(token for _, token in parser.tokens[start:parser.position] if token not in ("{", "}"))
    symbol: Node = ("sym", f"{name}_{text}")
    if parser.peek() != ("sign", "^"):
        return symbol
    parser.take()
    above = parser.argument(signed=True)
    if below[0] == above[0] == "num":
        counts = below[1] >= max(3, above[1])
    else:
        counts = bool(variables(below)) and not (variables(below) | variables(above)) - set("nkmprN")
    return counted(name, below, above) if counts else ("pow", symbol, above)


def counting_scripts_in_front(parser: Grammar) -> Node:
    """{}_{10}C_3 or {}^{10}C_3 from its first script on."""
    parser.take()
    n = parser.argument()
    kind, name = parser.take()
    if kind != "letter" or name not in COUNTING_LETTERS or parser.peek() != ("sign", "_"):
        raise Unsupported("a script in front")
    parser.take()
    return counted(name, n, parser.argument())


def arguments(parser: Grammar) -> list[Node]:
    """The arguments in brackets, with commas between them. None if no bracket follows."""
    opening = parser.peek()[1]
    if opening not in ("(", "{", "["):
        return []
    parser.take()
    found = [parser.sum()]
    while parser.peek() == ("sign", ","):
        parser.take()
        found.append(parser.sum())
    parser.take(CLOSING_SIGNS[opening])
    return found


def operator_with_limits(parser: Grammar, name: str) -> Node:
    """A sum, an integral and the like: an unknown function of its factors. The limits belong to the name of the function."""
    below = above = ""
    while parser.peek()[1] in ("_", "^"):
        if parser.take()[1] == "_":
            below = parser.plain_text()
        else:
            above = parser.plain_text()
    body = parser.product()
    bound = None
    if name in ("sum", "prod") and below[1:3] == " =":
        bound, below = below[0], below[1:]
    elif name == "int" and below and above:
        bound = _differential(body)
    if bound and bound not in above.split() and bound not in below.split():
        body = _with_bound_index(substituted(substituted(body, ("sym", bound), BOUND), ("i",) if bound == "i" else BOUND, BOUND), bound)
    return ("call", f"{name}_{below}^{above}", body)


def _with_bound_index(tree: Node, bound: str) -> Node:
    """The tree with INDEX for the bound variable in the names of other variables."""
    if tree[0] == "sym":
        name, _, index = tree[1].partition("_")
        return ("sym", f"{name}_{' '.join(INDEX if part == bound else part for part in index.split(' '))}") if index else tree
    if tree[0] == "add":
        return ("add", [_with_bound_index(part, bound) for part in tree[1]])
    return tuple(_with_bound_index(part, bound) if isinstance(part, tuple) else part for part in tree)


def _differential(body: Node) -> str | None:
    """The t of an integrand that ends in dt."""
    if body[0] == "mul" and body[2][0] == "sym" and body[1][0] in ("mul", "sym"):
        factor = body[1][2] if body[1][0] == "mul" else body[1]
        return body[2][1] if factor == ("sym", "d") else None
    return None


def product_with_dots(parser: Grammar, factors: list[Node]) -> Node:
    """n(n-1)\\cdots 1 from its dots on: the factors before and behind them. Raises Unsupported without one of them."""
    parser.take()
    behind = []
    while True:
        if parser.peek()[1] in MULTIPLICATION_SIGNS and parser.peek()[0] != "letter":
            parser.take()
        elif not parser.starts_factor():
            break
        behind.append(parser.power())
    if not behind or len(factors) + len(behind) < 3:
        raise Unsupported("dots")
    return ("call", f"dots {len(factors)}", *factors, *behind)


def number(parser: Grammar, mixed: bool = True) -> Node:
    """A number: whole, decimal, repeating decimal, or with `mixed` also a mixed number such as 2\\frac12."""
    text = parser.take()[1]
    behind = parser.peek()[1]
    if behind in ("overline", "bar", "dot") and "." in text:  # 0.1\overline{6}
        parser.take()
        digits = parser.plain_text().replace(" ", "")
        if not digits.isdigit():
            raise Unsupported("repeating decimal")
        return ("num", Fraction(text) + Fraction(int(digits), (10**len(digits) - 1) * 10**len(text.partition(".")[2])))
    if behind == "_":
        parser.take()
        return ("sym", f"{text}_{parser.plain_text()}")
    whole: Node = ("num", Fraction(int(text) if text.isdecimal() else text))  # Fraction takes long to read a text
    is_mixed = behind == "frac" and mixed and "." not in text and _proper_fraction_follows(parser)
    return ("add", [whole, parser.primary()]) if is_mixed else whole


def _proper_fraction_follows(parser: Grammar) -> bool:
    """Whether the \\frac that comes next has two numbers, and its numerator is the smaller one."""
    _, *ahead = (text for _, text in parser.tokens[parser.position:parser.position + 7])  # \frac{1}{2} has seven tokens
    top, below = ahead[0] if ahead and len(ahead[0]) == 2 else ("x", "x")  # \frac12
    if ahead[::3] == ["{", "{"] and ahead[2::3] == ["}", "}"]:
        top, below = ahead[1::3]
    return top.isdecimal() and below.isdecimal() and int(top) < int(below)


def function(parser: Grammar, name: str) -> Node:
    """A call of a function from FUNCTIONS, with an exponent (\\sin^2 x) or a base (\\log_2 x)."""
    power: Node | None = None
    base: Node | None = None
    while parser.peek()[1] in ("_", "^"):
        if parser.take()[1] == "_":
            base = parser.argument()
        else:
            power = parser.argument(signed=True)
    argument = function_argument(parser)
    if power == ("neg", ("num", Fraction(1))):  # \sin^{-1} is the inverse function, not the reciprocal
        return ("call", ONE_NAME_FOR_FUNCTION.get(f"arc{name}", f"arc{name}"), argument)
    node: Node = ("call", name, argument) if base is None else ("div", ("call", "ln", argument), ("call", "ln", base))
    return node if power is None else ("pow", node, power)


def function_argument(parser: Grammar) -> Node:
    """The argument of a function: a group, or factors up to the next function, sign or bracket. In \\sin 2x \\cos y it is 2x."""
    if parser.peek()[1] in ("(", "{", "["):
        ahead = [text for _, text in parser.tokens[parser.position:parser.position + 2]]
        return parser.power() if ahead[0] == "{" and ahead[1:] != ["("] else parser.group(ahead[0])  # \\ln{(x)}^2 is (\\ln x)^2
    node = parser.power()
    while parser.starts_factor() and parser.peek()[1] not in FUNCTIONS and parser.peek()[1] != "(":
        node = ("mul", node, parser.power())
    return node
