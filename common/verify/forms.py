"""Reads a bare answer into its form: a value, a text, a list, an interval, a matrix, an equation and so on.

A form is a tuple, its kind first. `items`, `parts` and `relations` are tuples of forms.

    ("value", tree, text, unit)               a number or an expression; the tree is None if latex.py cannot read it
    ("text", text)                            words
    ("list", items)  ("set", items)  ("union", items)
    ("bracketed", brackets, items)            a tuple or an interval; brackets such as "[)"
    ("matrix", type, rows)
    ("relation", operators, parts, is_named)  an equation, an inequality or a chain; is_named: the first part names the value, as in x = 5
    ("and", relations)  ("or", relations)
    ("ratio", parts, zero_padded)             2:3 or 7:05; zero_padded: for each part but the first, whether it begins with a needless 0
    ("base", digits, base)                    2104_5
    ("thousands", parts)                      1,234 read as the list 1, 234
"""
from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from common.verify.extract import MAX_ANSWER_LENGTH
from common.verify.latex import Node, Unsupported, parse
from common.verify.spelling import (
    PUNCTUATION_AT_END,
    bracket_depths,
    closing_bracket,
    normalize,
    split_outside_brackets,
)
from common.verify.units import DENYING_WORDS, split_unit

MAX_ITEMS = 64  # of a list, a set or a matrix; comparing two unordered lists takes up to the square of it
MAX_DEPTH = 8  # of lists in lists
Form = tuple[Any, ...]
FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}  # the operator when the sides change places


def is_expression(form: Form) -> bool:
    """Whether the form is a value with a tree."""
    return form[0] == "value" and form[1] is not None


def is_variable(form: Form) -> bool:
    """Whether the form is a single variable."""
    return is_expression(form) and form[1][0] == "sym"


# ---- whole answers --------------------------------------------------------------------------------------------------

# no word that changes or hedges the rest of the text
_NO_CHANGING_WORDS = (r"(?!.*(?:" + DENYING_WORDS + r"|\b(?:or|squared?|cubed?|plus|minus|doubled?|tripled?|half|twice|reciprocal|opposite|"
                      r"negative|mod|fails?|eliminated|untrue|union|also)\b))")
# "The value of f(x) is": no number, one verb, no word that hedges
_LEAD_IN = re.compile(_NO_CHANGING_WORDS + r"(?:so|thus|therefore|hence|then|the|this|our|its?|final|answer)\b"
                      r"(?:(?!\b(?:is|are|equals)\b)[A-Za-z() '])*+"
                      r"\b(?:is|are|equals)\b:?\s+(?=\S)(?!.*\b(?:is|are|equals)\b)|answers?\b:?\s+(?=\S)", re.IGNORECASE)
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# a sentence with one formula (\x00) that says nothing else: "We find that ... is our answer."
_SENTENCE_AROUND_FORMULA = re.compile(
    r"(?:(?:so|thus|therefore|hence|then|we|find|get|have|obtain|see|conclude|that|here|is|are|the|a|an|this|our|final|"
    r"answer|solution|result|value|values|equation|inequality|matrix|zero|special|set|interval|expression|equals|it|must|be)[,:]?\s+)+\x00\s*"
    r"(?:is\s+(?:the|our|a)\s+(?:final\s+)?(?:solution|answer|result))?[.!\s]*", re.IGNORECASE)
# the letter of a multiple choice: "Option B", "(D) Alina"
_CHOICE = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?([A-Z])\)?[.:)]?|\(([A-Z])\)\s+" + _NO_CHANGING_WORDS +
                     r"(?!and\b)(?:[A-Z]?[a-z]{2,}(?: [a-z]+)*|-?\d+)")


@lru_cache(maxsize=8192)
def read_forms(answer: str) -> tuple[Form, ...]:
    """The forms that an answer may have, mostly one. There is none for an answer without content. Raises Unsupported."""
    if len(answer) > MAX_ANSWER_LENGTH:
        return ()
    text = normalize(_formula_in_a_sentence(answer))
    if len(text) > 2 * MAX_ANSWER_LENGTH:
        return ()
    if not any(c.isalnum() or c == "?" for c in text) and not text.startswith("\\"):
        return ()
    text = _without_lead_in(text)
    letter = _choice_letter(text)
    if letter:
        return (read_value(letter),)
    text = re.sub(r"^(?:=|\\approx)\s*", "", text)
    forms = [read_form(text)]
    if _WITH_THOUSANDS.fullmatch(text.lstrip("+-")):
        forms.append(("thousands", tuple(read_form(item) for item in text.split(","))))
    if re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?", text):
        forms.append(("bracketed", "()", (read_value("-\\infty"), read_value("\\infty"))))
    interval = as_interval(forms[0])
    return (*forms, interval) if interval else tuple(forms)


def _formula_in_a_sentence(answer: str) -> str:
    """The formula, if the answer is a sentence that says nothing besides one formula. Else the whole answer."""
    formulas = _FORMULA.findall(answer)
    if len(formulas) == 1 and _SENTENCE_AROUND_FORMULA.fullmatch(_FORMULA.sub("\x00", answer)):
        return next(filter(None, formulas[0]))
    return answer


def _without_lead_in(text: str) -> str:
    """The text without words such as "The value of f(x) is" in front."""
    unquoted = text.replace('"', "")
    lead_in = _LEAD_IN.match(unquoted)
    return unquoted[lead_in.end():] if lead_in and unquoted[lead_in.end():] else text


def _choice_letter(text: str) -> str | None:
    """The letter, if the text is one choice of a multiple-choice question."""
    found = re.fullmatch(r'"?\s*(.+?)\s*"?', text)
    choice = _CHOICE.fullmatch(found[1].replace('"', "").strip()) if found else None
    return (choice[1] or choice[2]) if choice else None


# ---- a form and its items -------------------------------------------------------------------------------------------

_WITH_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_CONJUNCTION = re.compile(r'\s*,?\s*"?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*"?\s*', re.IGNORECASE)
_NUMERAL_WITH_BASE = re.compile(r"(-?)\(?0*(\d[\dA-F]*)\)?_(?:\{\s*\"?(\w+)\"?\s*\}|(\d))")
_MATRIX = re.compile(r"[(\[]?\s*\\begin\{([pbvBV]?)(matrix|array|smallmatrix|cases)\}(?:\{[^}]*\})?(.*)\\end\{\1\2\}\s*[)\]]?", re.DOTALL)


def read_form(text: str, depth: int = 0) -> Form:
    """The form of a normalized text. `depth` is the number of forms around it. Raises Unsupported for too many levels or items.

    The order of the kinds matters: a list of equations is read as a list, and an equation of two sets as an equation.
    """
    if depth > MAX_DEPTH:
        raise Unsupported("too deep")
    text = PUNCTUATION_AT_END.sub("", text).strip()
    form = _read_list(text, depth) or _read_relation(text, depth) or _read_matrix(text, depth)
    if form:
        return form
    sets = re.split(r"\\cup(?![a-z])|(?<=[)\]])\s*U\s*(?=[(\[])", text)
    if len(sets) > 1:
        return ("union", _read_each(sets, depth))
    form = _read_set(text, depth) or _read_bracketed(text, depth)
    if form:
        return form
    base = _NUMERAL_WITH_BASE.fullmatch(text)
    if base:
        return ("base", base[1] + base[2], base[3] or base[4])
    if ":" in text and len(parts := split_outside_brackets(text, ":")) > 1 and all(part.strip() for part in parts):
        zero_padded = tuple(bool(re.match(r"\s*0\d", part)) for part in parts[1:])  # 1:03 is not 1:3
        return ("ratio", tuple(read_form(part, depth + 1) for part in parts), zero_padded)
    if "\\pm" in text or "\\mp" in text:
        if text.count("\\pm") > 1 and "\\mp" not in text:  # the text does not say whether it means two values or four
            return ("text", text.replace(" ", ""))
        upper, lower = text.replace("\\pm", "+").replace("\\mp", "-"), text.replace("\\pm", "-").replace("\\mp", "+")
        return ("list", (read_value(upper), read_value(lower)))
    return read_value(text)


def _read_each(pieces: list[str], depth: int) -> tuple[Form, ...]:
    """The forms of the pieces of a list. Raises Unsupported if there are too many pieces or one is empty."""
    if len(pieces) > MAX_ITEMS or not all(piece.strip(' "') for piece in pieces):
        raise Unsupported("items")
    return tuple(read_form(piece, depth + 1) for piece in pieces)


def _read_items(text: str, with_thousands: bool, depth: int) -> tuple[Form, ...]:
    """The forms between semicolons and commas. `with_thousands`: 5,100 may be one number."""
    pieces: list[str] = []
    for part in split_outside_brackets(text, ";"):
        pieces += _split_at_commas(part) if with_thousands else split_outside_brackets(part, ",")
    return _read_each(pieces, depth)


def _split_at_commas(text: str) -> list[str]:
    """The pieces between commas. The comma of 1,234 does not separate. In 1,234,5 it does, because one more comma and digit follow."""
    masked = _WITH_THOUSANDS.sub(lambda match: match[0].replace(",", "\x00"), text) if "," in text else text
    return [piece.replace("\x00", ",") for piece in split_outside_brackets(masked, ",")]


def _flattened(kind: str, items: tuple[Form, ...]) -> Form:
    """A list or set. A list among its items is replaced by its items: 1, 2 \\pm 3 has three items. Raises Unsupported for too many."""
    flat = tuple(part for item in items for part in (item[1] if item[0] == "list" else (item,)))
    if len(flat) > MAX_ITEMS:
        raise Unsupported("items")
    return (kind, flat)


def _read_list(text: str, depth: int) -> Form | None:
    """A list, whose items are separated by commas, semicolons, "and" or "or"."""
    words = {word.lower() for word in re.findall(r"\b(?:and|or)\b", text, re.IGNORECASE)}
    separated = _CONJUNCTION.sub(";", text) if words else text
    if not all(piece.strip(' "') for piece in separated.split(";")):
        separated = text
    if len(split_outside_brackets(separated, ";")) == 1 and len(_split_at_commas(separated)) == 1:
        return None
    items = _read_items(separated, True, depth)
    return _join_relations(items, words) if separated != text else _flattened("list", items)


def _read_matrix(text: str, depth: int) -> Form | None:
    """A matrix, a vector, a determinant, a norm, or a function by cases."""
    found = _MATRIX.fullmatch(text)
    if not found or "\\begin" in found[3]:
        return None
    fence, environment, content = found.groups()
    separator = "&" if "&" in content or environment == "cases" else ","
    rows = [split_outside_brackets(row, separator) for row in re.sub(r"\\hline", "", content).split("\\\\")]
    rows = rows[:-1] if not "".join(rows[-1]).strip() else rows
    if sum(map(len, rows)) > MAX_ITEMS:
        raise Unsupported("entries")
    kind = "cases" if environment == "cases" else {"v": "determinant", "V": "norm"}.get(fence, "matrix")
    rows = [[re.sub(r'"\s*,?\s*(?:if|for|when)\s*"', "", entry) for entry in row] for row in rows]
    return ("matrix", kind, tuple(tuple(read_form(entry, depth + 1) for entry in row) for row in rows))


def _read_set(text: str, depth: int) -> Form | None:
    """A set: its items in braces, or a condition as in \\{x \\mid x > 5\\}."""
    braces = re.fullmatch(r"\\?\{(.*?)\\?\}", text, re.DOTALL)
    if not braces:
        return None
    content = braces[1]
    is_set = text[0] == "\\" or len(split_outside_brackets(content, ",;")) > 1
    if not is_set or closing_bracket(text.replace("\\{", "{").replace("\\}", "}"), 0) < 0:
        return None
    condition = re.fullmatch(r"\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|:|\||\\vert)\s*(.+)", content)
    if condition:
        form = read_form(condition[2], depth + 1)
        if form[0] == "relation" and any(part[0] == "value" and part[2] == condition[1] for part in form[2]):
            return as_interval(form) or form
        return ("text", text)
    if not content.strip():
        return ("text", "\\emptyset")
    with_thousands = ", " in content  # {5,100} has two items: 5 and 100. {1,000, 2} also has two: 1000 and 2
    return _flattened("set", _read_items(content, with_thousands, depth))


def _read_bracketed(text: str, depth: int) -> Form | None:
    """A tuple or an interval."""
    if text[:1] not in ("(", "[") or closing_bracket(text, 0) != len(text) - 1 or len(split_outside_brackets(text[1:-1], ",;")) == 1:
        return None
    pieces = split_outside_brackets(text[1:-1], ";")
    if len(pieces) == 1:
        pieces = _split_at_commas(text[1:-1]) if ", " in text else split_outside_brackets(text[1:-1], ",")
    return ("bracketed", text[0] + text[-1], tuple(read_form(piece, depth + 1) for piece in pieces))


# ---- equations and inequalities -------------------------------------------------------------------------------------

_RELATION_SIGN = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|\\neq|\\approx|\\equiv|\\in(?![a-z])|\\to(?![a-z])|\\sim|(?<!\\)[=<>]")
# the name of a value, in front of =: x, f(5), a_{n+1}, (p, q), |AB|, AB : CD, \frac{NO}{BO}, g^{-1}(x), \cos A
_NAME_OF_VALUE = re.compile(
    r"""\\(?:sin|cos|tan)\s*\\?[A-Za-z]+|\\(?:int|sum|prod|lim)(?![a-z]).*|[a-dk-np-s](?:\s*\+\s*[a-dk-np-s])+|\\sigma\^2|"""
    r"""\\frac\{d\^2 ?[a-z]\}\{d[a-z]\^2\}|\(\s*[A-Za-z]\w?(?:\s*,\s*[A-Za-z]\w?)+\s*\)|"""
    r"""(?:\\(?:angle|triangle|overline|frac|alpha|beta|theta|lambda|mu|Delta|phi|vec|sigma)|[A-Za-z|{}: ".'/]|"""
    r"""_\{[^{}]*\}|_\w|(?<=[fghPE])\([^()]*\)|(?<=[EP])\[[^\[\]]*\]|(?<=[A-Za-z'}])\(\s*-?(?:[A-Za-z]|\d+)(?:\s*,\s*-?(?:[A-Za-z]|\d+))*\s*\)|"""
    r"""\^\{?-1\}?(?=\())++""")
# no name: a text with a denial, an operation in words or a product of variables
_NOT_A_NAME = re.compile(
    DENYING_WORDS + r"|(?i:\b(?:half|twice|double|triple|squared?|cubed?|minus|plus|times|opposite|reciprocal|negative|bound|"
    r"fake)\b)|(?<![A-Za-z_\\])(?!max|min|gcd|lcm|sum|avg|d[a-z](?![a-z]))[a-z]{2,3}(?![A-Za-z])|"
    r"(?<![A-Za-z\\])[a-z] [a-z](?![A-Za-z])")


def _is_name(text: str) -> bool:
    """Whether the text names a value, as x and f(5) do."""
    return bool(_NAME_OF_VALUE.fullmatch(text)) and not _NOT_A_NAME.search(text)


def _read_relation(text: str, depth: int) -> Form | None:
    """An equation, an inequality, or a chain of them. For x \\in S it is the form of S."""
    depths = bracket_depths(text)
    found = [match for match in _RELATION_SIGN.finditer(text) if depths[match.start()] == 0]
    operators = [match[0] for match in found]
    if not operators:
        return None
    edges = [0, *(edge for match in found for edge in match.span()), len(text)]
    texts = [text[edges[i]:edges[i + 1]].strip() for i in range(0, len(edges), 2)]
    if operators == ["\\in"] and _is_name(texts[0]):
        form = read_form(texts[1], depth + 1)
        if form[0] in ("bracketed", "set", "union", "list") or "mathbb" in texts[1]:
            return form
    parts = tuple(read_form(part, depth + 1) if part else ("text", "") for part in texts)
    is_named = bool(texts[0]) and _is_name(texts[0]) and set(operators) <= {"=", "\\approx"}
    return ("relation", tuple(operators), parts, is_named)


def _join_relations(items: tuple[Form, ...], words: set[str]) -> Form:
    """The form of items with "and" or "or" between them. For most items it is a list, but for inequalities the word matters.

    Inequalities in one variable are the union of their intervals for "or", and the common part of their intervals for "and".
    """
    if len(words) != 1 or not all(item[0] == "relation" and set(item[1]) <= set(FLIPPED) for item in items):
        return _flattened("list", items)
    names = {part[2] for item in items for part in item[2] if is_variable(part)}
    if len(names) != 1:
        return (next(iter(words)), items)
    intervals = tuple(as_interval(item) for item in items)
    if words == {"or"}:
        return ("union", tuple(interval or item for interval, item in zip(intervals, items, strict=True)))
    if len(items) == 2 and None not in intervals:
        minus_infinity, infinity = read_value("-\\infty"), read_value("\\infty")
        lower_bounds = [interval for interval in intervals if interval[2][1] == infinity]
        upper_bounds = [interval for interval in intervals if interval[2][1] != infinity and interval[2][0] == minus_infinity]
        if len(lower_bounds) == len(upper_bounds) == 1:
            (_, left, low), (_, right, high) = lower_bounds[0], upper_bounds[0]
            return ("bracketed", left[0] + right[1], (low[0], high[1]))
    return ("and", items)


def as_interval(form: Form) -> Form | None:
    """The interval of an inequality in one variable: (1, 2] for 1 < x \\le 2, and (1, \\infty) for x > 1. None for any other form."""
    if form[0] != "relation" or not set(form[1]) <= set(FLIPPED):
        return None
    operators, parts = form[1], form[2]
    if operators[0] in (">", "\\ge"):
        operators, parts = tuple(FLIPPED[operator] for operator in operators[::-1]), parts[::-1]
    if not set(operators) <= {"<", "\\le"}:
        return None
    left, right = "(" if operators[0] == "<" else "[", ")" if operators[-1] == "<" else "]"
    are_variables = [is_variable(part) for part in parts]
    if are_variables == [True, False]:
        return ("bracketed", "(" + right, (read_value("-\\infty"), parts[1]))
    if are_variables == [False, True]:
        return ("bracketed", left + ")", (parts[0], read_value("\\infty")))
    if are_variables == [False, True, False]:
        return ("bracketed", left + right, (parts[0], parts[2]))
    return None


# ---- values and texts -----------------------------------------------------------------------------------------------

# not an expression: a sentence, a name, a hexadecimal number
_WORDS_OR_HEXADECIMAL = re.compile(r"(?<![A-Za-z\\])(?!sqrt|arc)[A-Za-z]{4,}|(?:^| )[A-Za-z]{3} \d|^0[xob]\w")


def read_value(text: str) -> Form:
    """A number or an expression with its unit, or a text."""
    text, unit = split_unit(text)
    text = _WITH_THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"(?<![\d.^_}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", _mixed_number_as_sum, text)
    unquoted = text.replace('"', "").strip()
    if _is_words(unquoted):
        words = " ".join(unquoted.rstrip(".").split())
        is_abbreviation = words.isupper() and len(words) < 4
        return ("text", re.sub(r"^(?:a|an|the) ", "", words if is_abbreviation else words.lower()))
    spelled = re.sub(r"(?<=\d)\s+(?=\d)", "~", text)  # 2 3 is not 23
    spelled = re.sub(r"\s+|\"|(?<=[_^])\{(?=\w\}(?!\d))|(?<=[_^]\{\w)\}(?!\d)", "", spelled)  # x^{2} is x^2
    try:
        tree: Node | None = None if _WORDS_OR_HEXADECIMAL.search(unquoted) else parse(text)
    except Unsupported:
        tree = None
    return ("value", tree, spelled, unit)


def _mixed_number_as_sum(match: re.Match[str]) -> str:
    """(2+1/2) for 2 1/2. A fraction that is not below one is left as it is."""
    return f"({match[1]}+{match[2]}/{match[3]})" if int(match[2]) < int(match[3]) else match[0]


def _is_words(text: str) -> bool:
    """Whether the text consists of words and is no Greek letter."""
    only_letters = re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z.]", text)
    has_a_word = re.search(r"[A-Za-z]{3}|^(?:no|on|up|or|[IVX]{2}|[TFH]{2})$", text)
    return bool(only_letters and has_a_word) and not re.fullmatch(r"theta|alpha|beta", text)
