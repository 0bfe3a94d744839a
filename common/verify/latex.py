"""A small parser for mathematical expressions in LaTeX or plain notation. Bounded in length and depth; executes nothing."""
from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

MAX_TOKENS, MAX_DEPTH = 400, 40
Node = tuple[Any, ...]  # kind and parts: ("num", Fraction), ("sym", name), ("add", [nodes]), ("call", name, node, ...)


class Unsupported(ValueError):
    """Not an expression that this parser knows, or more work than it may do."""

_TOKEN = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3}(?![\d.]))?)|\\([A-Za-z]+)|([A-Za-z]+)|\\?([{}])|"
                    r"(\*\*|[-+*/^_!|()\[\]'\"=<>,;:.])|\s+|(.)", re.DOTALL)
_WORDS = re.compile(r"arc(?:sin|cos|tan)|sqrt|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|ln|log|exp|pi|theta|alpha|beta")
GREEK = frozenset(re.findall(r"\w+", """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi chi psi omega
    Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar infty emptyset varnothing triangle angle nabla partial mho"""))
FUNCTIONS = frozenset({"sin", "cos", "tan", "sec", "csc", "cot", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log",
                       "exp", "lg"})
BIG = {"sum", "prod", "int", "lim", "max", "min", "gcd", "lcm", "det", "Pr", "sup", "inf"}
OVER = {"overline", "vec", "hat", "bar", "overrightarrow", "widehat", "tilde", "mathbb", "mathcal", "mathfrak", "mathbf", "boldsymbol"}
CLOSING = {"(": ")", "[": "]", "{": "}", "lfloor": "rfloor", "lceil": "rceil", "|": "|", "lvert": "rvert"}
TIMES, OVERS = {"cdot", "times", "*", "ast"}, {"/", "div"}


def tokenize(text: str) -> list[tuple[str, str]]:
    """(kind, text): kind is "number", "command", "letter" or "sign". Raises Unsupported."""
    tokens: list[tuple[str, str]] = []
    for match in _TOKEN.finditer(text):
        number, command, letters, brace, sign, other = match.groups()
        if other is not None:
            raise Unsupported(other)
        if number:
            tokens.append(("number", number))
        elif command:
            command = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "rvert": "|", "lvert": "|",
                       "mid": "|", "vert": "|"}.get(command, command)
            tokens.append(("sign", "|") if command == "|" else ("command", command))
        elif letters:
            start = 0
            for word in _WORDS.finditer(letters):
                tokens += [("letter", c) for c in letters[start:word.start()]] + [("command", word[0])]
                start = word.end()
            tokens += [("letter", c) for c in letters[start:]]
        elif brace or sign:
            tokens.append(("sign", "^" if sign == "**" else brace or sign))
        if len(tokens) > MAX_TOKENS:
            raise Unsupported("too long")
    return tokens



class Parser:
    """Recursive descent over the tokens of one expression. `parse` gives a tree of tuples."""

    def __init__(self, text: str) -> None:
        self.tokens, self.at, self.depth, self.bars = tokenize(text), 0, 0, 0

    def parse(self) -> Node:
        node = self.sum()
        if self.peek() == ("command", "choose"):
            self.take()
            node = ("call", "binom", node, self.sum())
        if self.at < len(self.tokens):
            raise Unsupported(self.tokens[self.at][1])
        return node

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, text: str | None = None) -> tuple[str, str]:
        token = self.peek()
        if token[0] == "end" or (text is not None and token[1] != text):
            raise Unsupported(f"{text or 'more'} is missing")
        self.at += 1
        return token

    def sum(self) -> Node:
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
        signs = 0
        while self.peek() in (("sign", "+"), ("sign", "-")):
            signs += self.take()[1] == "-"
        node = self.power()
        while True:
            kind, text = self.peek()
            if text in TIMES and kind != "letter":
                self.take()
                negative = self.peek() == ("sign", "-") and bool(self.take())
                node = ("mul", node, self.power())
                signs += negative
            elif text in OVERS and kind != "letter":
                self.take()
                negative = self.peek() == ("sign", "-") and bool(self.take())
                node = ("div", node, self.power())
                signs += negative
            elif self.starts_factor():
                if kind == "number" and self.tokens[self.at - 1][1] != ")":  # 5 5, or \frac121
                    raise Unsupported("a number beside a factor")
                node = ("mul", node, self.power())
            else:
                break
        return ("neg", node) if signs % 2 else node

    def starts_factor(self) -> bool:
        kind, text = self.peek()
        if kind == "command":
            return text not in ("rfloor", "rceil", "pm", "mp", "circ", "prime", "choose")
        return kind in ("number", "letter") or text in ("(", "[", "{", '"') or (text == "|" and not self.bars)

    def power(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("too deep")
        node = self.primary()
        while True:
            _, text = self.peek()
            if text == "!" and self.peek()[0] == "sign":
                self.take()
                if self.peek() == ("sign", "!"):
                    raise Unsupported("double factorial")
                node = ("call", "!", node)
            elif text == "^":
                self.take()
                if self.degree():
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

    def degree(self) -> bool:
        """Takes \\circ or {\\circ} after a ^."""
        ahead = [token[1] for token in self.tokens[self.at:self.at + 3]]
        count = 1 if ahead[:1] == ["circ"] else 3 if ahead == ["{", "circ", "}"] else 0
        self.at += count
        return count > 0

    def argument(self, signed: bool = False) -> Node:
        """What a command or ^ takes: a group, or one token, of which a number gives a single digit after a command."""
        if self.peek() == ("sign", "{"):
            return self.group("{")
        if signed and self.peek() in (("sign", "-"), ("sign", "+")):
            return ("neg", self.argument()) if self.take()[1] == "-" else self.argument()
        kind, text = self.peek()
        if kind == "number" and len(text) > 1 and not signed and text.isdigit():
            self.tokens[self.at] = (kind, text[1:])  # \frac12
            return ("num", Fraction(int(text[0])))
        return self.number(mixed=False) if kind == "number" else self.primary()

    def group(self, opening: str) -> Node:
        self.take(opening)
        bars, self.bars = self.bars, 0
        node = self.sum()
        if self.peek() == ("command", "choose"):
            self.take()
            node = ("call", "binom", node, self.sum())
        self.bars = bars
        self.take(CLOSING[opening])
        return node

    def raw(self) -> str:
        """The tokens of a group, or one token, as text: a subscript, or what stands under an overline."""
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
        kind, text = self.peek()
        if kind == "number":
            return self.number()
        if kind == "letter" or text in GREEK or text == "pi":
            return self.symbol()
        if text in ("(", "[", "{"):
            return self.group(text)
        if text == "|":
            self.take()
            self.bars += 1
            node = self.sum()
            self.bars -= 1
            self.take("|")
            return ("call", "abs", node)
        if text == '"':
            return self.quoted()
        if kind != "command":
            raise Unsupported(text)
        return self.command(text)

    def quoted(self) -> Node:
        """Upright letters are one name."""
        self.take()
        letters = ""
        while self.peek()[0] == "letter":
            letters += self.take()[1]
        self.take('"')
        if not letters:
            raise Unsupported("text")
        if self.peek() == ("sign", "_"):
            self.take()
            letters += f"_{self.raw()}"
        return ("sym", letters)

    def number(self, mixed: bool = True) -> Node:
        text = self.take()[1]
        if "." in text and self.peek() in (("command", "overline"), ("command", "bar"), ("command", "dot")):  # 0.1\overline{6}
            self.take()
            digits = self.raw().replace(" ", "")
            if not digits.isdigit():
                raise Unsupported("repeating decimal")
            return ("num", Fraction(text) + Fraction(int(digits), (10**len(digits) - 1) * 10**len(text.partition(".")[2])))
        if self.peek() == ("sign", "_"):
            self.take()
            return ("sym", f"{text}_{self.raw()}")
        value = Fraction(text)
        ahead = self.tokens[self.at:self.at + 7]
        if mixed and "." not in text and [token[1] for token in ahead[:1]] == ["frac"]:  # a mixed number
            words = re.sub(r"^frac (\d)(\d)\b", r"frac \1 \2", " ".join(token[1] for token in ahead))
            found = re.fullmatch(r"frac (?:\{ )?(\d+)(?: \} \{)? (\d+)(?: \})?.*", words)
            if found and int(found[1]) < int(found[2]):
                return ("add", [("num", value), self.primary()])
        return ("num", value)

    def symbol(self) -> Node:
        _, name = self.take()
        if self.peek() == ("sign", "_"):
            self.take()
            name = f"{name}_{self.raw()}"
        while self.peek() in (("sign", "'"), ("command", "prime")):
            self.take()
            name += "'"
        if name[0] in "fgh" and len(name) <= 2 and self.peek() == ("sign", "("):
            return ("call", f"{name}()", self.group("("))
        return (name,) if name in ("pi", "e", "i") else ("sym", name)

    def command(self, name: str) -> Node:
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
            self.take(CLOSING[name])
            return ("call", name, node)
        if name in FUNCTIONS:
            return self.function(name)
        if name in BIG:  # kept as a function of what stands below, above and after it
            below = above = ""
            while self.peek()[1] in ("_", "^"):
                if self.take()[1] == "_":
                    below = self.raw()
                else:
                    above = self.raw()
            return ("call", f"{name}_{below}^{above}", self.product())
        if name in OVER:
            return ("sym", f"{name} {self.raw()}")
        raise Unsupported(name)

    def function(self, name: str) -> Node:
        power: Node | None = None
        base: Node | None = None
        while self.peek()[1] in ("_", "^"):
            if self.take()[1] == "_":
                base = self.argument()
            else:
                power = self.argument(signed=True)
        argument = self.function_argument()
        if power == ("neg", ("num", Fraction(1))):  # the inverse, not the reciprocal
            return ("call", f"arc{name}", argument)
        node: Node = ("call", name, argument) if base is None else ("div", ("call", "ln", argument), ("call", "ln", base))
        return node if power is None else ("pow", node, power)

    def function_argument(self) -> Node:
        """A bracketed argument, or the factors up to the next function or sign: \\sin 2x \\cos y."""
        if self.peek()[1] in ("(", "{", "["):
            return self.power() if self.peek()[1] == "{" else self.group(self.peek()[1])
        node = self.power()
        while self.starts_factor() and self.peek()[1] not in FUNCTIONS and self.peek()[1] != "(":
            node = ("mul", node, self.power())
        return node



def parse(text: str) -> Node:
    """The tree of an expression. Raises Unsupported."""
    return Parser(text).parse()
