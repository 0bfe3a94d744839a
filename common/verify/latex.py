"""A small parser for mathematical expressions in LaTeX or plain notation. Length and depth are limited, and nothing is executed."""
from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

MAX_TOKENS, MAX_DEPTH = 400, 40  # of one expression
# The tree of an expression is a tuple, its kind first: ("num", Fraction), ("sym", name of a variable), ("pi",), ("e",), ("i",),
# ("add", [terms]), ("neg", node), ("mul", node, node), ("div", node, node), ("pow", base, exponent), ("call", function, node, ...)
Node = tuple[Any, ...]
INFINITY: Node = ("sym", "infty")


class Unsupported(ValueError):
    """The text is not an expression that the checker can read, or its value would take too much work."""


# ---- tokens ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3}(?![\d.]))?)|\\([A-Za-z]+)|([A-Za-z]+)|\\?([{}])|"
                    r"(\*\*|[-+*/^_!|()\[\]'\"=<>,;:.])|\s+|(.)", re.DOTALL)
# words that are commands even without a backslash; other letters are one variable each
_WORD_COMMANDS = re.compile(r"arc(?:sin|cos|tan)|ar(?:sin|cos|tan)h|sqrt|"
                            r"sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|ln|log|exp|pi|theta|alpha|beta")
GREEK = frozenset(re.findall(r"\w+", """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega
    Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar infty emptyset varnothing triangle angle nabla partial mho"""))
FUNCTIONS = frozenset({"sin", "cos", "tan", "sec", "csc", "cot", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log",
                       "exp", "lg", "sech", "csch", "coth", "arsinh", "arcosh", "artanh"})
# other names of functions
ONE_NAME_FOR_FUNCTION = {"cosec": "csc", "cotan": "cot", "ctg": "cot", "tg": "tan", "arctg": "arctan", "asin": "arcsin", "acos": "arccos",
                         "atan": "arctan", "arcsinh": "arsinh", "arccosh": "arcosh", "arctanh": "artanh", "asinh": "arsinh",
                         "acosh": "arcosh", "atanh": "artanh"}
SYMMETRIC = {"max", "min", "gcd", "lcm"}
OPERATORS_WITH_LIMITS = {"sum", "prod", "int", "lim", "max", "min", "gcd", "lcm", "det", "Pr", "sup", "inf"}
# a name with such a mark or font is another name: \vec a is not a
MARKS_AND_FONTS = {"overline", "vec", "hat", "bar", "overrightarrow", "widehat", "tilde", "mathbb", "mathcal", "mathfrak", "mathbf",
                   "boldsymbol"}
CLOSING_SIGNS = {"(": ")", "[": "]", "{": "}", "lfloor": "rfloor", "lceil": "rceil", "|": "|", "lvert": "rvert"}
MULTIPLICATION_SIGNS, DIVISION_SIGNS = {"cdot", "times", "*", "ast"}, {"/", "div"}
# commands that end a product
NO_FACTORS = {"rfloor", "rceil", "pm", "mp", "circ", "prime", "choose", *MULTIPLICATION_SIGNS, *DIVISION_SIGNS}
ONE_NAME_FOR_COMMAND = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "rvert": "|", "lvert": "|",
                        "mid": "|", "vert": "|"}


def tokenize(text: str) -> list[tuple[str, str]]:
    """The tokens of a text, each as (kind, text). The kind is "number", "command", "letter" or "sign". Raises Unsupported."""
    tokens: list[tuple[str, str]] = []
    for match in _TOKEN.finditer(text):
        number, command, letters, brace, sign, other = match.groups()
        if other is not None:
            raise Unsupported(other)
        if number:
            tokens.append(("number", number))
        elif command:
            command = ONE_NAME_FOR_COMMAND.get(command) or ONE_NAME_FOR_FUNCTION.get(command, command)
            tokens.append(("sign", "|") if command == "|" else ("command", command))
        elif letters:
            start = 0
            for word in _WORD_COMMANDS.finditer(letters):
                tokens += [("letter", c) for c in letters[start:word.start()]] + [("command", word[0])]
                start = word.end()
            tokens += [("letter", c) for c in letters[start:]]
        elif brace or sign:
            tokens.append(("sign", "^" if sign == "**" else brace or sign))
        if len(tokens) > MAX_TOKENS:
            raise Unsupported("too long")
    return tokens


# ---- grammar --------------------------------------------------------------------------------------------------------

class Parser:
    """A recursive-descent parser of one expression. Each method reads a part of it from the current token on and returns its tree.

    An expression is a sum of products of powers; the base of a power is a primary: a number, a name, a group or a command.
    """

    def __init__(self, text: str) -> None:
        self.tokens = tokenize(text)
        self.position = 0  # index of the current token
        self.depth = 0  # sums and powers around the current token
        self.open_bars = 0  # absolute values around the current token, inside the nearest brackets

    def parse(self) -> Node:
        """The tree of the whole text. Raises Unsupported."""
        node = self.sum()
        if self.peek() == ("command", "choose"):
            self.take()
            node = ("call", "binom", node, self.sum())
        if self.position < len(self.tokens):
            raise Unsupported(self.tokens[self.position][1])
        return node

    # -- tokens

    def peek(self) -> tuple[str, str]:
        """The current token, as (kind, text); ("end", "") behind the last one."""
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")

    def take(self, text: str | None = None) -> tuple[str, str]:
        """The current token; the next one becomes current. Raises Unsupported if it is missing or does not have this text."""
        token = self.peek()
        if token[0] == "end" or (text is not None and token[1] != text):
            raise Unsupported(f"{text or 'more'} is missing")
        self.position += 1
        return token

    # -- sums, products and powers

    def sum(self) -> Node:
        """Terms with + or - between them."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("too deep")
        terms = [self.product()]
        while self.peek() in (("sign", "+"), ("sign", "-")):
            negative = self.take()[1] == "-"
            terms.append(("neg", self.product()) if negative else self.product())
        self.depth -= 1
        return ("add", terms) if len(terms) > 1 else terms[0]

    def product(self) -> Node:
        """Factors with a sign of multiplication or division, or nothing, between them. Minus signs are collected in front."""
        minus_signs = 0
        while self.peek() in (("sign", "+"), ("sign", "-")):
            minus_signs += self.take()[1] == "-"
        node = last = self.power()
        while True:
            kind, text = self.peek()
            if text in MULTIPLICATION_SIGNS and kind != "letter":
                self.take()
                negative = self.peek() == ("sign", "-") and bool(self.take())
                last = self.power()
                node = ("mul", node, last)
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
            else:
                break
        return ("neg", node) if minus_signs % 2 else node

    def number_may_follow(self, factor: Node) -> bool:
        """Whether a number beside this factor is one more factor: 3!7!, 2^3 3^2, n 2^n. It is not in 5 5 and \\frac121."""
        before, ahead = self.tokens[self.position - 1][1], self.tokens[self.position + 1:self.position + 2]
        closed = before == ")" or factor[0] == "pow" or factor[:2] == ("call", "!")
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
            _, text = self.peek()
            if text == "!" and self.peek()[0] == "sign":
                signs = 0
                while self.peek() == ("sign", "!"):
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

    def take_degree_sign(self) -> bool:
        """Whether \\circ or {\\circ} stands behind a ^. If so, takes it."""
        ahead = [token[1] for token in self.tokens[self.position:self.position + 3]]
        count = 1 if ahead[:1] == ["circ"] else 3 if ahead == ["{", "circ", "}"] else 0
        self.position += count
        return count > 0

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
        return self.number(mixed=False) if kind == "number" else self.primary()

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

    def plain_text(self) -> str:
        """A group or one token as text. Subscripts, limits of sums and names under an overline are read so."""
        if self.peek() != ("sign", "{"):
            return self.take()[1]
        parts, depth = [], 0
        while True:
            text = self.take()[1]
            depth += (text == "{") - (text == "}")
            if depth == 0:
                return " ".join(parts[1:])
            parts.append(text)

    def primary(self) -> Node:
        """A number, a name, a group, an absolute value or a command with its arguments."""
        kind, text = self.peek()
        if kind == "number":
            return self.number()
        if kind == "letter" or text in GREEK or text == "pi":
            return self.symbol()
        if text in ("(", "[", "{"):
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
        if self.peek() == ("sign", "_"):
            self.take()
            letters += f"_{self.plain_text()}"
        return ("sym", letters)

    def number(self, mixed: bool = True) -> Node:
        """A number: whole, decimal, repeating decimal, or with `mixed` also a mixed number such as 2\\frac12."""
        text = self.take()[1]
        if "." in text and self.peek() in (("command", "overline"), ("command", "bar"), ("command", "dot")):  # 0.1\overline{6}
            self.take()
            digits = self.plain_text().replace(" ", "")
            if not digits.isdigit():
                raise Unsupported("repeating decimal")
            return ("num", Fraction(text) + Fraction(int(digits), (10**len(digits) - 1) * 10**len(text.partition(".")[2])))
        if self.peek() == ("sign", "_"):
            self.take()
            return ("sym", f"{text}_{self.plain_text()}")
        whole: Node = ("num", Fraction(text))
        return ("add", [whole, self.primary()]) if mixed and "." not in text and self.proper_fraction_follows() else whole

    def proper_fraction_follows(self) -> bool:
        """Whether a \\frac of two numbers comes next, and its numerator is the smaller one."""
        if self.peek()[1] != "frac":
            return False
        ahead = " ".join(text for _, text in self.tokens[self.position:self.position + 7])  # \frac{1}{2} has seven tokens
        ahead = re.sub(r"^frac (\d)(\d)\b", r"frac \1 \2", ahead)  # \frac12
        found = re.fullmatch(r"frac (?:\{ )?(\d+)(?: \} \{)? (\d+)(?: \})?.*", ahead)
        return bool(found) and int(found[1]) < int(found[2])

    def symbol(self) -> Node:
        """A variable with its subscript and primes, a constant, or a call of the function f, g or h."""
        _, name = self.take()
        if self.peek() == ("sign", "_"):
            self.take()
            name = f"{name}_{self.plain_text()}"
        while self.peek() in (("sign", "'"), ("command", "prime")):
            self.take()
            name += "'"
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
            return self.function(name)
        if name == "cis":
            angle = self.function_argument()
            return ("add", [("call", "cos", angle), ("mul", ("i",), ("call", "sin", angle))])
        if name in SYMMETRIC and (found := self.arguments()):
            return ("call", name, *found)
        if name in OPERATORS_WITH_LIMITS:  # an unknown function of its factors; the limits are part of the function's name
            below = above = ""
            while self.peek()[1] in ("_", "^"):
                if self.take()[1] == "_":
                    below = self.plain_text()
                else:
                    above = self.plain_text()
            return ("call", f"{name}_{below}^{above}", self.product())
        if name in MARKS_AND_FONTS:
            return ("sym", f"{name} {self.plain_text()}")
        raise Unsupported(name)

    def arguments(self) -> list[Node]:
        """The arguments of max, min, gcd or lcm in brackets, with commas between them. None if no bracket follows."""
        opening = self.peek()[1]
        if opening not in ("(", "{", "["):
            return []
        self.take()
        found = [self.sum()]
        while self.peek() == ("sign", ","):
            self.take()
            found.append(self.sum())
        self.take(CLOSING_SIGNS[opening])
        return found

    def function(self, name: str) -> Node:
        """A call of a function from FUNCTIONS, with an exponent (\\sin^2 x) or a base (\\log_2 x)."""
        power: Node | None = None
        base: Node | None = None
        while self.peek()[1] in ("_", "^"):
            if self.take()[1] == "_":
                base = self.argument()
            else:
                power = self.argument(signed=True)
        argument = self.function_argument()
        if power == ("neg", ("num", Fraction(1))):  # \sin^{-1} is the inverse function, not the reciprocal
            return ("call", ONE_NAME_FOR_FUNCTION.get(f"arc{name}", f"arc{name}"), argument)
        node: Node = ("call", name, argument) if base is None else ("div", ("call", "ln", argument), ("call", "ln", base))
        return node if power is None else ("pow", node, power)

    def function_argument(self) -> Node:
        """The argument of a function: a group, or factors up to the next function, sign or bracket. In \\sin 2x \\cos y it is 2x."""
        if self.peek()[1] in ("(", "{", "["):
            ahead = [text for _, text in self.tokens[self.position:self.position + 2]]
            return self.power() if ahead[0] == "{" and ahead[1:] != ["("] else self.group(ahead[0])  # \\ln{(x)}^2 is (\\ln x)^2
        node = self.power()
        while self.starts_factor() and self.peek()[1] not in FUNCTIONS and self.peek()[1] != "(":
            node = ("mul", node, self.power())
        return node


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
