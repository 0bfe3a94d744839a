"""Does the left side of an equation only name the value on the right, as in f(5) = 3 and \\cos\\angle ABC = 3/5?

A name is read from left to right in pieces: words, commands and signs. The tables are the place for more names.
"""
from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

from common.verify.spelling import closing_bracket
from common.verify.words import changes_name, pieces, word_set

# signs and commands that stand in names as letters do: AB : CD, \frac{NO}{BO}, \triangle ABC, \vec{v}
_PARTS = word_set(r"""| \# { } : " . / \angle \triangle \overline \bar \hat \tilde \dot \ddot \vec \frac \nabla \partial \mathbb \ell
    \alpha \beta \gamma \delta \epsilon \zeta \eta \theta \kappa \lambda \mu \nu \xi \rho \sigma \tau \phi \chi \psi \omega
    \Gamma \Delta \Sigma \Phi \Omega""")
# operators in front of one name, or of anything in brackets: \det A, \mathbb{E}[X], \Pr(X \le 1), "rank"(A)
_OPERATORS = word_set(r"\det \dim \ker \deg \arg \gcd \lcm \max \min \sup \inf \Pr \tr \rank \Re \Im \Var \Cov")
_OPERATORS_IN_WORDS = word_set("""tr rank det dim adj Var Cov E P Area area Vol Volume volume Perimeter ord card null nullity span
    proj comp Re Im deg arg cov var SD sd length slope median mean mode""")
_OPERATORS_WITH_LIMITS = word_set(r"\max \min \sup \inf \int \iint \oint \sum \prod \lim")  # in front of anything
_FUNCTIONS_OF_ANGLES = word_set(r"\sin \cos \tan \cot \sec \csc")  # in front of one name
UNKNOWNS = frozenset("xyt")  # letters that an equation is solved for
_FUNCTIONS = frozenset("fghFGHPE")  # with anything in brackets behind them
_TERMS = frozenset("abcdklmnpqrs")  # a + b + c
_SHORT_WORDS = word_set("max min gcd lcm sum avg")  # other short words are products of variables
_FONTS = word_set(r"\mathfrak \mathcal \mathscr { }")
_NO_BEGINNING = frozenset("0123456789+-^,")
_PARTS_OF_MATRICES = word_set(r"""\vec \hat \mathbb \mathcal \det \exp \top [ ] ( ) ' " _ ^""")


@lru_cache(maxsize=4096)  # one name stands before many values
def is_name(text: str) -> bool:
    """Whether the text names a value, as x and f(5) do."""
    if len(text) < 2 or text[0] in _NO_BEGINNING:
        return text.isalpha() and text.isascii()
    parts = pieces(text.replace("^{-1}(", "(").replace("^-1(", "("))  # an inverse function
    if _is_unsolved_modulus(parts):
        return False
    if _is_operator(parts) or _is_bracketed(parts) or _is_derivative(parts) or text in ("\\sigma^2", "\\sigma^{2}"):
        return True
    is_sum = "+" in text and all(_is_term(pieces(term)) for term in text.split("+"))
    return (is_sum or _is_row(parts)) and not changes_name(text)


def is_name_of_matrix(text: str) -> bool:
    """Whether the text names a matrix, if a matrix stands behind its =: A^{-1}, [x]_B, C_B(\\vec{x}), AB."""
    parts = [part for part in pieces(text) if part not in ("{", "}")]
    return bool(parts) and " " not in text and not ("^" in parts and parts[0].islower() and len(parts[0]) == 1) and all(
        part in _PARTS_OF_MATRICES or _is_word(part) or ((part == "-" or part.isdecimal()) and before in ("_", "^", "-"))
        for before, part in pairwise(["", *parts]))


def is_symbol(text: str) -> bool:
    """Whether the text is one variable, perhaps with an index."""
    parts = [part for part in pieces(text) if part != '"']
    is_letter = bool(parts) and (_is_word(parts[0][1:]) if parts[0][0] == "\\" else len(parts[0]) == 1 and _is_word(parts[0]))
    return is_letter and _behind_scripts(parts, 1) == len(parts) and not any(part[0] == "\\" for part in parts[1:])


def _is_word(part: str) -> bool:
    return part.isalpha() and part.isascii()


def _behind(parts: list[str], at: int) -> int:
    """The place behind a piece, or behind the brackets that open there. Beyond the end if they do not close."""
    opens = at < len(parts) and parts[at] in ("(", "[", "{")
    return closing_bracket(parts, at) + 1 or len(parts) + 1 if opens else at + 1


def _behind_scripts(parts: list[str], at: int) -> int:
    """The place behind the indices and primes that stand at a place. An index is one piece, or stands in braces."""
    while at < len(parts) and parts[at] in ("_", "'"):
        at = at + 1 if parts[at] == "'" else _behind(parts, at + 1) if parts[at + 1:at + 2] == ["{"] else at + 2
    return at


def _are_one_group(parts: list[str]) -> bool:
    """Whether the pieces stand in one pair of ( ) or [ ]."""
    return parts[:1] in (["("], ["["]) and _behind(parts, 0) == len(parts)


def _is_operator(parts: list[str]) -> bool:
    """\\det A, E[X^2], \\cos\\angle ABC, \\int_0^1 f(x) dx."""
    head, behind = parts[0], parts[1:2]
    if head in _OPERATORS_WITH_LIMITS:
        return True
    if head in _FUNCTIONS_OF_ANGLES:
        name = [part.removeprefix("\\") for part in parts[1:] if part not in ("(", ")", "{", "}", '"', "\\angle")]
        return len(name) == 1 and _is_word(name[0])
    if head in _FONTS:  # \mathcal{L}\{\cos 3t\}
        rest = "".join(parts[_behind(parts, 1):]).removeprefix("^{-1}").removeprefix("^-1")
        return (rest.startswith("\\{") and rest.endswith("\\}")) or rest[:1] + rest[-1:] in ("()", "[]")
    is_in_words = head == '"' and parts[2:3] == ['"'] and parts[1] in _OPERATORS_IN_WORDS
    is_in_bold = head == "\\mathbb" and parts[2:3] in (["E"], ["P"], ["V"], ["R"])
    if not is_in_words and not is_in_bold and head not in _OPERATORS and not (head in ("E", "P") and behind in (["("], ["["])):
        return False
    rest = parts[_behind_scripts(parts, 3 if is_in_words else 4 if is_in_bold else 1):]
    name = [part.removeprefix("\\") for part in rest if part not in ("{", "}", '"')]
    is_one_name = len(name) < 2 and all(map(_is_word, name))
    return is_one_name or _are_one_group(rest) or name[0] == name[-1] == "|"


def _is_unsolved_modulus(parts: list[str]) -> bool:
    """|x| and |x - 1|: with a value behind them, they still have to be solved."""
    letters = {part for part in parts if _is_word(part)}
    is_in_one_letter = parts[0] == "|" and len(letters - {"i"}) == 1 and all(map(str.islower, letters))
    return is_in_one_letter and (letters <= UNKNOWNS or not {"+", "-"}.isdisjoint(parts) or parts[1].isdecimal())


def _is_bracketed(parts: list[str]) -> bool:
    """|AB|, [ABC], [\\triangle ABC], (p, q), (f + g)', (f \\circ g)(x)."""
    if parts[0] in ("|", "\\|"):
        last = max(at for at, part in enumerate(parts) if part in ("|", "\\|"))
        return last > 1 and _behind_scripts(parts, last + 1) == len(parts)
    end = _behind(parts, 0)
    inside, rest = parts[1:end - 1], parts[end:]
    if parts[0] == "[":
        name = inside[-1] if not rest and inside[:-1] in ([], ["\\triangle"]) else ""
        return name.isupper() and 3 <= len(name) <= 6
    if parts[0] != "(" or end > len(parts):
        return False
    if rest:
        return rest == ["'"] or (len(inside) == 3 and inside[1] == "\\circ" and _are_one_group(rest))
    items = "".join(inside).split(",")
    return len(items) > 1 and all(item[:1].isalpha() and item.isalnum() and len(item) < 3 for item in items)


def _is_derivative(parts: list[str]) -> bool:
    """\\frac{\\partial f}{\\partial x}, \\frac{d^2 y}{dx^2}, \\frac{d}{dx}(x^2)."""
    if parts[0] != "\\frac":
        return False
    middle = _behind(parts, 1)
    end = _behind(parts, middle)
    above, below, rest = "".join(parts[2:middle - 1]), parts[middle:end], parts[end:]
    sign = "\\partial" if above.startswith("\\partial") else "d"
    if not above.startswith(sign) or not any(part[0] == "d" or part == "\\partial" for part in below):
        return False
    function = above.removeprefix(sign).lstrip("^{}0123456789")
    is_applied = not rest or _are_one_group(rest) or (rest[0][0] == "\\" and {"+", "-", "="}.isdisjoint(rest))
    return is_applied and len(function) < 2 and (function + "f").isalpha()


def _is_term(parts: list[str]) -> bool:
    """Whether a sum of such terms may be a name: AB + BC, a + b, x_1 + x_2. Other sums are expressions."""
    if len(parts) == 1:
        return parts[0] in _TERMS or (len(parts[0]) == 2 and parts[0].isupper())
    return bool(parts) and len(parts[0]) == 1 and parts[0].islower() and _behind_scripts(parts, 1) == len(parts)


def _is_row(parts: list[str]) -> bool:
    """Letters, words and marks with their indices, primes and arguments: f_x(x, y), m\\angle ABC, "Area of" ABC, \\vec{u}\\cdot\\vec{v}."""
    if parts.count("\\vec") == 2 and sum(part in ("\\cdot", "\\times") for part in parts) == 1:
        parts = [part for part in parts if part not in ("\\cdot", "\\times")]
    quotes_close = parts.count('"') % 2 == 0
    at, is_quoted, before = 0, False, ""  # before: the piece in front of the indices and primes, or ) behind arguments
    while at < len(parts):
        part, end = parts[at], at + 1
        if part in ("_", "'") and before:
            part, end = before, _behind_scripts(parts, at)
        elif part in ("(", "["):
            end = _behind(parts, at)
            if end > len(parts) or not _are_arguments(parts[at:end], before):
                return False
            part = ")"
        elif part.isdecimal():
            if before != "\\angle":
                return False
        elif not (part in _PARTS or _is_word(part)) or (not is_quoted and _is_product(before, part)):
            return False
        is_quoted ^= part == '"' and quotes_close
        at, before = end, part
    return at == len(parts)


def _are_arguments(parts: list[str], before: str) -> bool:
    """Whether what stands in brackets behind a piece are the arguments of a function. A factor is none: x(x + 1)."""
    if before in _FUNCTIONS:
        return parts[0] == "(" or before in ("E", "P")
    parts = [part for part in parts if part not in _FONTS]
    inside = [part for part in parts[1:-1] if part not in ("\\angle", "\\cap", "\\cup")]
    if len(inside) < len(parts) - 2:  # n(A \cap B), m(\angle ABC)
        return before in ("n", "m") and "".join(inside).isalpha()
    items = [item.removeprefix("-") for item in "".join(inside).split(",")]
    is_function = parts[0] == "(" and (before[-1:].isalpha() or before in ("}", '"'))
    return is_function and all(item.isdecimal() or (len(item) == 1 and item.isalpha()) for item in items)


def _is_product(before: str, part: str) -> bool:
    """Whether a lower letter behind another one, or a word of two or three, is a product of variables: a b, xy. dx is none."""
    if not part.islower() or part[0] == "\\":
        return False
    if len(part) == 1:
        return before == ")" or (len(before) == 1 and before.islower())
    return len(part) < 4 and part not in _SHORT_WORDS and not (part[0] == "d" and len(part) == 2)
