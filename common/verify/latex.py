"""A small parser for mathematical expressions in LaTeX or plain notation. Length and depth are limited, and nothing is executed."""
from __future__ import annotations

from fractions import Fraction

from common.verify.notation import (
    COUNTING_LETTERS,
    Grammar,
    arguments,
    counting_call,
    counting_scripts,
    counting_scripts_in_front,
    function,
    function_argument,
    number,
    operator_with_limits,
    product_with_dots,
)
from common.verify.tokens import (
    CLOSING_SIGNS,
    DIVISION_SIGNS,
    FUNCTIONS,
    GREEK,
    MARKS_AND_FONTS,
    MULTIPLICATION_SIGNS,
    NO_FACTORS,
    OPERATORS_WITH_LIMITS,
    SYMMETRIC,
    Unsupported,
)
from common.verify.trees import INFINITY, Node

MAX_DEPTH = 40  # of one expression
_END_OF_PRODUCT = frozenset({"", "+", "-", ")", "}", "]", ",", "rfloor", "rceil"})  # no product goes on there; "" is the end of the text


# ---- grammar --------------------------------------------------------------------------------------------------------

class Parser(Grammar):
    """A recursive-descent parser of one expression. Each method reads a part of it from the current token on and returns its tree.

    An expression is a sum of products of powers; the base of a power is a primary: a number, a name, a group or a command.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0  # sums and powers around the current token
        self.open_bars = 0  # absolute values around the current token, inside the nearest brackets

    def parse(self) -> Node:
        """The tree of the whole text. Raises Unsupported."""
        node = self.sum()
        if self.peek() == ("command", "choose"):
            self.take()
            node = ("call", "binom", node, self.sum())
        if self.peek()[0] != "end":
            raise Unsupported(self.peek()[1])
        return node

    # -- sums, products and powers

    def sum(self) -> Node:
        """Terms with + or - between them."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("too deep")
        terms = [self.product()]
        while self.peek()[1] in ("+", "-"):
            negative = self.take()[1] == "-"
            terms.append(("neg", self.product()) if negative else self.product())
        self.depth -= 1
        return ("add", terms) if len(terms) > 1 else terms[0]

    def product(self) -> Node:
        """Factors with a sign of multiplication or division, or nothing, between them. Minus signs are collected in front."""
        minus_signs = 0
        while self.peek()[1] in ("+", "-"):
            minus_signs += self.take()[1] == "-"
        node = last = self.power()
        factors = [last]
        while True:
            kind, text = self.peek()
            if text in _END_OF_PRODUCT:
                break
            if text == "cdots" or (text in MULTIPLICATION_SIGNS and self.tokens[self.position + 1] == ("command", "cdots")):
                self.position += text != "cdots"
                node = product_with_dots(self, factors)
            elif text in MULTIPLICATION_SIGNS and kind != "letter":
                self.take()
                negative = self.peek() == ("sign", "-") and bool(self.take())
                last = self.power()
                node = ("mul", node, last)
                factors.append(last)
                minus_signs += negative
            elif text in DIVISION_SIGNS and kind != "letter":
                self.take()
                negative = self.peek() == ("sign", "-") and bool(self.take())
                last = self.power()
                node = ("div", node, last)
                minus_signs += negative
            elif self.starts_factor():
                if kind == "number" and not self.number_may_follow(last):
                    raise Unsupported("a number beside a factor")
                last = self.power()
                node = ("mul", node, last)
                factors.append(last)
            else:
                break
        return ("neg", node) if minus_signs % 2 else node

    def number_may_follow(self, factor: Node) -> bool:
        """Whether a number beside this factor is one more factor: 3!7!, 2^3 3^2, n 2^n, i4. It is not in 5 5 and \\frac121."""
        before, ahead = self.tokens[self.position - 1][1], self.tokens[self.position + 1:self.position + 2]
        closed = before == ")" or factor[0] == "pow" or factor[:2] == ("call", "!") or factor == ("i",)
        return closed or (factor[0] == "sym" and ahead == [("sign", "^")])

    def starts_factor(self) -> bool:
        """Whether the current token can begin a factor."""
        kind, text = self.peek()
        if kind == "command":
            return text not in NO_FACTORS
        opens_bars = text == "|" and not self.open_bars
        return kind in ("number", "letter") or text in ("(", "[", "{", '"') or opens_bars

    def power(self) -> Node:
        """A primary with its exponents, factorial signs and degree signs."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("too deep")
        node = self.primary()
        while True:
            text = self.peek()[1]
            if text == "!":
                signs = 0
                while self.peek()[1] == "!":
                    signs += bool(self.take())
                node = ("call", "!" * signs, node)  # n!! is no factorial of a factorial
            elif text == "^":
                self.take()
                if self.take_degree_sign():
                    node = ("div", ("mul", node, ("pi",)), ("num", Fraction(180)))
                    continue
                exponent = self.argument(signed=True)
                if self.peek() == ("sign", "^"):
                    self.take()
                    exponent = ("pow", exponent, self.power())
                node = ("pow", node, exponent)
            else:
                break
        self.depth -= 1
        return node

    def argument(self, signed: bool = False) -> Node:
        """The argument of a command or of ^ (`signed`): a group or one token.

        A command takes only the first digit of a number: \\frac12 is 1/2. An exponent takes the whole number, and may have a sign.
        """
        if self.peek() == ("sign", "{"):
            return self.group("{")
        if signed and self.peek() in (("sign", "-"), ("sign", "+")):
            return ("neg", self.argument()) if self.take()[1] == "-" else self.argument()
        kind, text = self.peek()
        if kind == "number" and len(text) > 1 and not signed and text.isdigit():
            self.tokens[self.position] = (kind, text[1:])  # the other digits stay: the 2 of \frac12
            return ("num", Fraction(int(text[0])))
        return number(self, mixed=False) if kind == "number" else self.primary()

    # -- groups and names

    def group(self, opening: str) -> Node:
        """A sum in brackets. `opening` is the bracket that it begins with."""
        self.take(opening)
        bars_outside, self.open_bars = self.open_bars, 0
        node = self.sum()
        if self.peek() == ("command", "choose"):
            self.take()
            node = ("call", "binom", node, self.sum())
        self.open_bars = bars_outside
        self.take(CLOSING_SIGNS[opening])
        return node

    def primary(self) -> Node:
        """A number, a name, a group, an absolute value or a command with its arguments."""
        kind, text = self.peek()
        if kind == "number":
            return number(self)
        if kind == "letter" or text in GREEK or text == "pi":
            return self.symbol()
        if text in ("_", "^") and kind == "sign":
            return counting_scripts_in_front(self)
        if text in ("(", "[", "{"):
            if [token for _, token in self.tokens[self.position + 1:self.position + 2]] == ["}"]:  # {}_{10}C_3
                self.position += 2
                return counting_scripts_in_front(self)
            return self.group(text)
        if text == "|":
            self.take()
            self.open_bars += 1
            node = self.sum()
            self.open_bars -= 1
            self.take("|")
            return ("call", "abs", node)
        if text == '"':
            return self.quoted()
        if kind != "command":
            raise Unsupported(text)
        return self.command(text)

    def quoted(self) -> Node:
        """Letters in quotes are the name of one variable."""
        self.take()
        letters = ""
        while self.peek()[0] == "letter":
            letters += self.take()[1]
        self.take('"')
        if not letters:
            raise Unsupported("text")
        if letters in COUNTING_LETTERS and self.peek() == ("sign", "_"):
            return counting_scripts(self, letters)
        if self.peek() == ("sign", "_"):
            self.take()
            letters += f"_{self.plain_text()}"
        return ("sym", letters)

    def symbol(self) -> Node:
        """A variable with its subscript and primes, a constant, or a call of the function f, g or h."""
        _, name = self.take()
        if name in COUNTING_LETTERS and self.peek()[1] == "(" and (count := counting_call(self, name)):
            return count
        if name in COUNTING_LETTERS and self.peek() == ("sign", "_"):
            return counting_scripts(self, name)
        if name == "Gamma" and self.peek() == ("sign", "("):
            return ("call", "gamma", self.group("("))
        if self.peek() == ("sign", "_"):
            self.take()
            name = f"{name}_{self.plain_text()}"
        while self.peek() in (("sign", "'"), ("command", "prime")):
            self.take()
            name += "'"
        ahead = [text for _, text in self.tokens[self.position:self.position + 6]]
        if name in ("f", "g", "h") and ahead == ["^", "{", "-", "1", "}", "("]:  # the inverse function
            self.position += 5
            return ("call", f"{name}^-1()", self.group("("))
        if name[0] in "fgh" and len(name) <= 2 and self.peek() == ("sign", "("):
            return ("call", f"{name}()", self.group("("))
        return (name,) if name in ("pi", "e", "i") else ("sym", name)

    # -- commands

    def command(self, name: str) -> Node:
        """A LaTeX command with its arguments."""
        self.take()
        if name == "frac":
            top = self.argument()
            return ("div", top, self.argument())
        if name == "binom":
            top = self.argument()
            return ("call", "binom", top, self.argument())
        if name == "sqrt":
            root = self.group("[") if self.peek() == ("sign", "[") else ("num", Fraction(2))
            return ("pow", self.argument(), ("div", ("num", Fraction(1)), root))
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.take(CLOSING_SIGNS[name])
            return ("call", name, node)
        if name in FUNCTIONS:
            return function(self, name)
        if name == "cis":
            angle = function_argument(self)
            return ("add", [("call", "cos", angle), ("mul", ("i",), ("call", "sin", angle))])
        if name in SYMMETRIC and (found := arguments(self)):
            return ("call", name, *found)
        if name in OPERATORS_WITH_LIMITS:
            return operator_with_limits(self, name)
        if name in ("overline", "bar") and any(text in ("+", "-") for _, text in self.tokens[self.position + 1:self.position + 6]):
            return ("call", "conjugate", self.group("{"))
        if name in MARKS_AND_FONTS:
            return ("sym", f"{name} {self.plain_text()}")
        raise Unsupported(name)


def parse(text: str) -> Node:
    """The tree of an expression. Infinity has a sign and nothing else: \\infty - \\infty is no value. Raises Unsupported."""
    tree = Parser(text).parse()
    if "infty" in text and tree not in (INFINITY, ("neg", INFINITY)) and _holds_infinity(tree):
        raise Unsupported("arithmetic with infinity")
    return tree


def _holds_infinity(tree: Node) -> bool:
    """Whether infinity is a part of the tree itself. The limits of a sum are part of its name."""
    parts = tree[1] if tree[0] == "add" else tree[1:]
    return tree == INFINITY or any(isinstance(part, tuple) and _holds_infinity(part) for part in parts)
