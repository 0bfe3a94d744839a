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
    ("labelled", names, values, tuple)        x = 1, y = 2, sorted by name, and the tuple (1, 2) that it is without names
    ("reals", pieces)                         a set of real numbers: real_sets.py
    ("congruence", value, modulus)            3 mod 7
    ("dots", sign, before, behind)            1 + 2 + ... + n
"""
from __future__ import annotations

import re

from common.verify.latex import parse
from common.verify.names import is_name, is_name_of_matrix, is_symbol
from common.verify.phrases import named_point, without_qualifier
from common.verify.real_sets import HIGHEST, LOWEST, real_set, without
from common.verify.relations import MAX_ITEMS, Form, as_interval, flattened, is_choice, is_variable, join_relations, labelled_values
from common.verify.spelling import bracket_depths, closing_bracket, is_builder, split_outside_brackets, without_punctuation_at_end
from common.verify.tokens import Unsupported
from common.verify.trees import variables
from common.verify.units import two_quantities
from common.verify.values import PLAIN, read_numeral_with_base, read_value, split_at_commas
from common.verify.vectors import RELATION_SIGN, read_matrix, read_vector

MAX_DEPTH = 8  # of lists in lists

# ---- a form and its items -------------------------------------------------------------------------------------------

_CONGRUENCE = re.compile(r'(?:"?[A-Za-z](?:_\w)?"?\s*(?:\\equiv|=)\s*+)?(.+?)\s*+,?+\s*+"\s*mod(?:ulo)?\s*"\s*\(?(\w+)\)?', re.DOTALL)
_SIGNS_OF_UNIONS = ("\\cup", "\\setminus", "\\backslash", "\\{")
_AND_OR = re.compile(r"\b(?:and|or)\b")
_CONJUNCTION = re.compile(r'\s*+,?+\s*+"?+\s*+(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*+"?+\s*+', re.IGNORECASE)


def read_form(text: str, depth: int = 0) -> Form:
    """The form of a normalized text. `depth` is the number of forms around it. Raises Unsupported for too many levels or items.

    The order of the kinds matters: a list of equations is read as a list, and an equation of two sets as an equation.
    """
    if depth > MAX_DEPTH:
        raise Unsupported("too deep")
    text = without_punctuation_at_end(text)
    if text == "\\mathbb{R}":
        return ("bracketed", "()", (LOWEST[1], HIGHEST[1]))
    if (" " in text or '"' in text) and (quantities := two_quantities(text)):
        return _read_quantities(quantities)
    if PLAIN.fullmatch(text):  # most texts
        return read_value(text)
    is_in_brackets = text[:1] in ("(", "[") and closing_bracket(text, 0) == len(text) - 1
    form = _read_congruence(text, depth)
    if not form and not is_in_brackets:
        form = _read_list(text, depth) or _read_relation(text, depth)
    form = form or read_matrix(text, depth, read_form) or _read_union(text, depth)
    if not form and (not is_in_brackets or "\\vec" in text or "\\hat" in text):
        form = read_vector(text, depth, read_form)
    if form:
        return form
    has_two_signs = "\\pm" in text or "\\mp" in text
    if has_two_signs and is_in_brackets and text[0] == "(":
        return _read_plus_minus(text, depth)
    form = _read_set(text, depth) or _read_bracketed(text, depth) or _read_sum_with_dots(text, depth)
    if form:
        return form
    if has_two_signs:
        return _read_plus_minus(text, depth)
    if "_" in text and (numeral := read_numeral_with_base(text)):
        return numeral
    if ":" in text and len(parts := split_outside_brackets(text, ":")) > 1 and all(part.strip() for part in parts):
        zero_padded = tuple(part.strip()[:1] == "0" and part.strip()[1:2].isdigit() for part in parts[1:])  # 1:03 is not 1:3
        return ("ratio", tuple(read_form(part, depth + 1) for part in parts), zero_padded)
    return read_value(text)


def _read_quantities(quantities: list[tuple[str, str]]) -> Form:
    """3 hours 20 minutes: two values in order."""
    values = tuple(("value", parse(number), "", unit) for number, unit in quantities)
    return values[0] if len(values) == 1 else ("bracketed", "units", values)


def _read_plus_minus(text: str, depth: int) -> Form:
    """The list of the two values of a \\pm b, or of the two points of (\\pm a, b)."""
    if text.count("\\pm") > 1 and "\\mp" not in text:  # (\pm 3, \pm 2) is four points; a \pm b \pm c does not say what it means
        pieces = split_outside_brackets(text[1:-1], ",") if text[0] == "(" and closing_bracket(text, 0) == len(text) - 1 else []
        if len(pieces) < 2 or max(piece.count("\\pm") for piece in pieces) > 1 or text.count("\\pm") > 3:
            return ("text", text.replace(" ", ""))
        before, _, behind = text.partition("\\pm")
        return flattened("list", tuple(read_form(f"{before}{sign}{behind}", depth + 1) for sign in "+-"))
    upper, lower = text.replace("\\pm", "+").replace("\\mp", "-"), text.replace("\\pm", "-").replace("\\mp", "+")
    return ("list", (read_form(upper, depth + 1), read_form(lower, depth + 1)))


def _read_union(text: str, depth: int) -> Form | None:
    """A union or a difference of sets. A union of finite sets is a set."""
    if "U" not in text and not any([sign in text for sign in _SIGNS_OF_UNIONS]):  # noqa: C419 (twice as fast as a generator)
        return None
    sides = re.split(r"\\(?:setminus|backslash)(?![a-z])|(?<=\})\s*-\s*(?=\\\{)", text)
    if len(sides) == 2:
        return without(read_form(sides[0], depth + 1), read_form(sides[1], depth + 1))
    sets = re.split(r"\\cup(?![a-z])|(?<=[)\]])\s*U\s*(?=[(\[])", text)
    if len(sets) == 1:
        return None
    parts = _read_each(sets, depth)
    if all(part[0] == "set" for part in parts):
        items = {item[2] if item[0] == "value" else str(item): item for part in parts for item in part[1]}  # each once
        return flattened("set", tuple(items.values()))
    return ("union", parts)


def _read_congruence(text: str, depth: int) -> Form | None:
    """x \\equiv 3 mod 7, or 3 mod 7."""
    found = _CONGRUENCE.fullmatch(text) if "mod" in text else None
    if found is None or "\\equiv" in found[1]:
        return None
    value, modulus = read_form(found[1], depth + 1), read_value(found[2])
    if value[0] == "list":  # 3, 5 mod 7
        return ("list", tuple(("congruence", item, modulus) for item in value[1]))
    return ("congruence", value, modulus)


def _read_sum_with_dots(text: str, depth: int) -> Form | None:
    """1 + 2 + \\cdots + n: the terms before the dots and those behind."""
    if "cdots" not in text and "..." not in text:
        return None
    products = text.replace("\\cdots", "...").replace("\\cdot", "\x00").replace("\\times", "\x00")
    for sign, marked, plain in (("+", text.replace("+", "\x00"), "+"), ("*", products, "\\cdot ")):
        parts = [part.replace("\x00", plain).strip() for part in split_outside_brackets(marked, "\x00")]
        dots = [place for place, part in enumerate(parts) if part in ("\\cdots", "...")]
        if len(dots) == 1 and dots[0] > 0 and (dots[0] < len(parts) - 1 or dots[0] > 2):
            before, behind = parts[:dots[0]], parts[dots[0] + 1:]
            return ("dots", sign, _read_each(before, depth), _read_each(behind, depth) if behind else ())
    return None


def _read_each(pieces: list[str], depth: int) -> tuple[Form, ...]:
    """The forms of the pieces of a list. Raises Unsupported if there are too many pieces or one is empty."""
    if len(pieces) > MAX_ITEMS or not all(piece.strip(' "') for piece in pieces):
        raise Unsupported("items")
    # a quote may have gone with "and"
    return tuple(read_form(without_qualifier(piece + '"' * (piece.count('"') % 2)), depth + 1) for piece in pieces)


def _read_items(text: str, with_thousands: bool, depth: int) -> tuple[Form, ...]:
    """The forms between semicolons and commas. `with_thousands`: 5,100 may be one number."""
    pieces: list[str] = []
    for part in split_outside_brackets(text, ";"):
        pieces += split_at_commas(part) if with_thousands else split_outside_brackets(part, ",")
    if len(pieces) > 1 and None not in (points := [named_point(piece.strip()) for piece in pieces]):  # A(1, 2), B(4, 6)
        pieces = ["=".join(point) for point in points if point]
    return _read_each(pieces, depth)


def _read_list(text: str, depth: int) -> Form | None:
    """A list, whose items are separated by commas, semicolons, "and" or "or"."""
    lower = text.lower()
    words = set(_AND_OR.findall(lower)) if "or" in lower or "and" in lower else set()
    if not words and "," not in text and ";" not in text:
        return None
    separated = _CONJUNCTION.sub(";", text) if words else text
    if not all(piece.strip(' "') for piece in separated.split(";")):
        separated = text
    if len(split_outside_brackets(separated, ";")) == 1 and len(split_at_commas(separated)) == 1:
        return None
    if words == {"or"} and "," in text and len(solutions := _CONJUNCTION.split(text)) > 1:  # x=1, y=2 or x=3, y=4
        read = [_read_list(solution, depth) for solution in solutions]
        if all(form and form[0] == "labelled" for form in read):
            return ("list", tuple(form for form in read if form))
    items = _read_items(separated, True, depth)
    if items[-1][0] == "congruence" and all(
            item[0] == "value" or (item[:2] == ("relation", ("\\equiv",)) and is_variable(item[2][0])) for item in items[:-1]):
        values = [item[2][1] if item[0] == "relation" else item for item in items[:-1]]  # x \equiv 1 or x \equiv 4 mod 5
        return ("list", (*(("congruence", value, items[-1][2]) for value in values), items[-1]))
    if words == {"or"} and all(is_choice(item) or item[0] == "text" for item in items):
        return ("or", items)
    if items[0][:2] == ("relation", ("\\neq",)) and all(item[0] == "value" for item in items[1:]):  # x \neq 3, -2
        return ("relation", ("\\neq",), (items[0][2][0], ("list", (items[0][2][1], *items[1:]))), False)
    labelled = labelled_values(items) if "or" not in words else None
    if not words and (conditions := join_relations(items, {"and"}))[0] in ("and", "bracketed", "reals"):
        return conditions  # x > 1, x < 4
    return labelled or (join_relations(items, words) if separated != text else flattened("list", items))


def _read_set(text: str, depth: int) -> Form | None:
    """A set: its items in braces, or a condition as in \\{x \\mid x > 5\\}."""
    if not text.endswith("}") or not text.startswith(("{", "\\{")):
        return None
    content = text.removeprefix("\\")[1:-1].removesuffix("\\")
    is_set = text[0] == "\\" or is_builder(text) or len(split_outside_brackets(content, ",;")) > 1
    if not is_set or closing_bracket(text.replace("\\{", "{").replace("\\}", "}"), 0) < 0:
        return None
    condition = re.fullmatch(r"\s*+(.+?)\s*+(?:\\mid(?![a-z])|:|\\middle\s*\||\||\\vert)\s*(.+)", content, re.DOTALL)
    if condition:
        return _read_builder(condition[1], condition[2], depth) or ("text", text)
    if not content.strip():
        return ("text", "\\emptyset")
    with_thousands = ", " in content  # {5,100} has two items: 5 and 100. {1,000, 2} also has two: 1000 and 2
    items = _read_items(content, with_thousands, depth)
    return labelled_values(items) or flattened("set", items)


def _read_builder(element: str, condition: str, depth: int) -> Form | None:
    """The set of a condition, as in \\{x \\mid x > 5\\}; \\{k\\pi \\mid k \\in \\mathbb{Z}\\} is the family k\\pi."""
    name = _real_variable(element) or element.strip()
    if not is_symbol(name):
        family = without_qualifier(f"{element}, {condition}")
        return read_form(element, depth + 1) if family == element else None
    parts = [part for part in split_outside_brackets(condition, ",") if _real_variable(part) != name]
    if not parts:
        return read_form("\\mathbb{R}")
    form = read_form('" and "'.join(parts), depth + 1)
    said = form[1] if form[0] in ("and", "or", "union", "list") else (form,)
    names = {letter for item in said if item[0] == "relation" for part in item[2]
             if is_variable(part) or (part[0] == "value" and part[1] and part[1][:2] == ("call", "abs")) for letter in variables(part[1])}
    is_about_it = names == {name.lstrip("\\")}
    if form[0] in ("bracketed", "union", "reals"):
        return form if name in condition and (is_about_it or not names) else None
    if form[0] == "relation" and is_about_it:
        return as_interval(form) or real_set(form) or form
    return real_set(form) if is_about_it else None


def _real_variable(text: str) -> str | None:
    """The x of x \\in \\mathbb{R}. None for another text."""
    name, _, numbers = text.partition("\\in")
    return name.strip() if numbers.replace(" ", "") in ("\\mathbb{R}", "\\mathbbR") else None


def _read_bracketed(text: str, depth: int) -> Form | None:
    """A tuple or an interval."""
    if text[:1] not in ("(", "[") or ("," not in text and ";" not in text) or closing_bracket(text, 0) != len(text) - 1:
        return None
    content = text[1:-1]
    pieces = split_outside_brackets(content, ";") if ";" in text else [content]
    if len(pieces) == 1:
        pieces = split_outside_brackets(content, ",")
        if len(pieces) == 1:
            return None
        if ", " in text:  # 1,000, 2 has two items
            pieces = split_at_commas(content)
    items = tuple(read_form(piece, depth + 1) for piece in pieces)
    if text[0] == "[" and (labelled := labelled_values(items)):  # [x = 1, y = 2]
        return labelled
    return ("bracketed", text[0] + text[-1], items)


# ---- equations and inequalities -------------------------------------------------------------------------------------

def _read_relation(text: str, depth: int) -> Form | None:
    """An equation, an inequality, or a chain of them. For x \\in S it is the form of S."""
    found = list(RELATION_SIGN.finditer(text))
    if not found:
        return None
    depths = bracket_depths(text)
    found = [match for match in found if depths[match.start()] == 0]
    operators = [match[0] for match in found]
    if not operators:
        return None
    edges = [0, *(edge for match in found for edge in match.span()), len(text)]
    texts = [text[edges[i]:edges[i + 1]].strip() for i in range(0, len(edges), 2)]
    if operators == ["\\in"] and texts[1] in ("R", "Z", "N", "Q"):
        texts[1] = f"\\mathbb{{{texts[1]}}}"
    if operators == ["\\in"] and is_name(texts[0]):
        form = read_form(texts[1], depth + 1)
        if form[0] in ("bracketed", "set", "union", "list", "reals") or "mathbb" in texts[1]:
            return form
    if len(operators) > 1 and set(operators) == {"="} and all(map(is_symbol, texts[:-1])):  # x = y = 3
        return labelled_values(tuple(read_form(f"{name}={texts[-1]}", depth + 1) for name in texts[:-1]))
    if len(operators) > 1 and set(operators) == {"="} and all(map(is_name, texts[:-1])):  # AB = BC = 12
        operators, texts = ["="], [texts[0], texts[-1]]
    if operators == ["="] and (point := _labelled_point(*texts, depth)):
        return point
    if texts[0].replace(" ", "") in ("y(x)", "y(t)"):
        texts[0] = "y"
    if operators == ["="] and is_name(texts[1]) and not is_name(texts[0]):  # 7 = x
        texts.reverse()
    parts = tuple(read_form(part, depth + 1) if part else ("text", "") for part in texts)
    named = is_name(texts[0]) or (len(parts) == 2 and parts[1][0] == "matrix" and is_name_of_matrix(texts[0]))
    is_named = bool(texts[0]) and named and set(operators) <= {"=", "\\approx"}
    return ("relation", tuple(operators), parts, is_named)


def _labelled_point(names: str, values: str, depth: int) -> Form | None:
    """(x, y) = (1, 2), or the same with columns, as labelled values."""
    if names[:1] not in ("(", "\\") or values[:1] not in ("(", "[", "\\") or "\\pm" in values:
        return None
    if "\\begin" in names:
        columns = [read_matrix(side, depth, read_form) for side in (names, values)]
        if not all(column and column[0] == "matrix" and all(len(row) == 1 for row in column[2]) for column in columns):
            return None
        left, right = (("bracketed", "()", tuple(row[0] for row in column[2])) for column in columns if column)
    else:
        left, right = _read_bracketed(names, depth), _read_bracketed(values, depth)
    if not left or not right or len(left[2]) != len(right[2]) or right[1] != "()" or not all(map(is_variable, left[2])):
        return None
    pairs = sorted((name[2], place) for place, name in enumerate(left[2]))
    return ("labelled", tuple(name for name, _ in pairs), tuple(right[2][place] for _, place in pairs), right)
