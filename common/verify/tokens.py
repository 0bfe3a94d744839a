"""The tokens of an expression in LaTeX or plain notation, and the tables of the names that the parser knows: latex.py."""
from __future__ import annotations

import re

from common.verify.words import word_set

MAX_TOKENS = 400  # of one expression


class Unsupported(ValueError):
    """The text is not an expression that the checker can read, or its value would take too much work."""


_TOKEN = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3}(?![\d.]))?)|\\([A-Za-z]+)|([A-Za-z]+)|\\?([{}])|"
                    r"(\*\*|[-+*/^_!|()\[\]'\"=<>,;:.])|\s+|(.)", re.DOTALL)
# words that are commands even without a backslash; other letters are one variable each
_WORD_COMMANDS = re.compile(r"arc(?:sin|cos|tan)|ar(?:sin|cos|tan)h|sqrt|"
                            r"sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|ln|log|exp|pi|theta|alpha|beta")
GREEK = word_set("""
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega
    Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar infty emptyset varnothing triangle angle nabla partial mho""")
TRIGONOMETRIC = {"sin", "cos", "tan", "sec", "csc", "cot"}
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


class Tokens:
    """The tokens of a text and the place of the current one."""

    def __init__(self, text: str) -> None:
        self.tokens = [*tokenize(text), ("end", "")]
        self.position = 0  # index of the current token

    def peek(self) -> tuple[str, str]:
        """The current token, as (kind, text); ("end", "") behind the last one."""
        return self.tokens[self.position]

    def take(self, text: str | None = None) -> tuple[str, str]:
        """The current token; the next one becomes current. Raises Unsupported if it is missing or does not have this text."""
        token = self.peek()
        if token[0] == "end" or (text is not None and token[1] != text):
            raise Unsupported(f"{text or 'more'} is missing")
        self.position += 1
        return token

    def take_degree_sign(self) -> bool:
        """Whether \\circ or {\\circ} stands behind a ^. If so, takes it."""
        ahead = [token[1] for token in self.tokens[self.position:self.position + 3]]
        count = 1 if ahead[:1] == ["circ"] else 3 if ahead == ["{", "circ", "}"] else 0
        self.position += count
        return count > 0

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
