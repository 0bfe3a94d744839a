"""Reads matrices and vectors, also those that are computed: 2A, A^T, 3i - 2j + k, (1, 2) + t(3, -1). The forms are those of forms.py."""
from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from common.verify.latex import parse
from common.verify.relations import MAX_ITEMS, is_expression
from common.verify.spelling import bracket_depths, split_outside_brackets
from common.verify.tokens import Unsupported
from common.verify.trees import Node, degrees, substituted
from common.verify.values import read_value

Form = tuple[Any, ...]
_TRANSPOSITIONS = frozenset({"T", "\\top", "\\intercal", "\\mathsfT", "\\prime"})
Reader = Callable[[str, int], Form]  # reads a text at a depth: forms.py
_MATRIX = re.compile(r"(?:[(\[]|\\?\{)?\s*\\begin\{([pbvBV]?)(matrix|array|smallmatrix"
                     r"|cases)\}(?:\{[^}]*\})?(.*)\\end\{\1\2\}\s*[)\]]?", re.DOTALL)
_SCALED_MATRIX = re.compile(r"(.*?)(?:\\cdot|\\times)?+\s*+([(\[]?+\s*+\\begin\{[pbvBV]?(?:matrix|array|smallmatrix)\}"
                            r".*\\end\{\w+\}\s*[)\]]?)", re.DOTALL)
RELATION_SIGN = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|\\neq|\\approx|\\equiv|\\in(?![a-z])|\\to(?![a-z])|\\sim|(?<!\\)[=<>]")
UNIT_VECTORS = ("vec i", "vec j", "vec k")  # as latex.py reads \vec{i}; \hat{i} is written so too


def canonical_unit_vectors(text: str) -> str:
    """The text with \\vec{i} for \\hat{i} and the like. Without a j or a k beside it, an i is the imaginary unit."""
    text = re.sub(r"\\(?:hat|vec|overrightarrow|bar)\s*\{\s*(?:\\(?:hat|vec|bar)\s*\{)?\s*\"?([ijk])\"?\s*\}?\s*\}", r"\\vec{\1}", text)
    text = re.sub(r"\\(?:hat|vec)\s*([ijk])(?![A-Za-z])", r"\\vec{\1}", text)
    return text if "\\vec{j}" in text or "\\vec{k}" in text else text.replace("\\vec{i}", " i ")


def components(tree: Node) -> Form | None:
    """The tuple of the components of a sum of multiples of i, j and k. None for another tree."""
    if degrees(tree, set(UNIT_VECTORS)) != {1}:
        return None
    entries = []
    for chosen in UNIT_VECTORS if "vec k" in str(tree) else UNIT_VECTORS[:2]:
        entry = tree
        for name in UNIT_VECTORS:
            entry = substituted(entry, ("sym", name), ("num", Fraction(name == chosen)))
        entries.append(("value", entry, "", ""))
    return ("bracketed", "()", tuple(entries))


def signed_terms(text: str) -> list[tuple[str, str]]:
    """The terms of a sum, each as (sign, text)."""
    depths = bracket_depths(text)
    places = [i for i, c in enumerate(text) if c in "+-" and depths[i] == 0 and (i == 0 or text[i - 1] not in "^_*/(")]
    edges = [*places, len(text)]
    terms = [("+", text[:edges[0]])] if text[:edges[0]].strip() else []
    return terms + [(text[start], text[start + 1:end]) for start, end in zip(places, edges[1:], strict=True)]


def factor_and_tuple(term: str) -> tuple[str, str] | None:
    """The factor and the tuple of t(3, -1)."""
    term = term.strip()
    if not term.endswith(")"):
        return None
    depths = bracket_depths(term)
    start = max((i for i, c in enumerate(term) if c == "(" and depths[i] == 0), default=-1)
    factor = term[:start].rstrip().removesuffix("\\cdot").removesuffix("\\times").removesuffix("*").strip()
    if start < 0 or "," not in term[start:] or factor[-1:] in tuple("CPAfgh"):  # C(10, 3), f(x, y)
        return None
    return factor, term[start:]


def scaled(factor: Node, form: Form) -> Form | None:
    """A tuple or a matrix times a number."""
    rows = form[2] if form[0] == "matrix" else (form[2],)
    if not all(entry[0] == "value" and entry[1] is not None for row in rows for entry in row):
        return None
    return _with_rows(form, tuple(tuple(("value", ("mul", factor, entry[1]), "", entry[3]) for entry in row) for row in rows))


def total(forms: list[Form]) -> Form | None:
    """The sum of tuples, or of matrices, of one size."""
    first = forms[0]
    if any(form[:2] != first[:2] or first[:2] not in (("matrix", "matrix"), ("bracketed", "()")) for form in forms):
        return None
    all_rows = [form[2] if form[0] == "matrix" else (form[2],) for form in forms]
    shapes = {tuple(map(len, rows)) for rows in all_rows}
    entries = [entry for rows in all_rows for row in rows for entry in row]
    if len(shapes) != 1 or not all(entry[0] == "value" and entry[1] is not None for entry in entries):
        return None
    return _with_rows(first, tuple(tuple(("value", ("add", [entry[1] for entry in column]), "", column[0][3])
                                         for column in zip(*rows, strict=True)) for rows in zip(*all_rows, strict=True)))


def _with_rows(form: Form, rows: tuple[tuple[Form, ...], ...]) -> Form:
    return (*form[:2], rows if form[0] == "matrix" else rows[0])


# ---- reading ----------------------------------------------------------------------------------------------------------

def read_matrix(text: str, depth: int, read: Reader) -> Form | None:
    """A matrix, a vector, a determinant, a norm, or a function by cases. A system of equations is the list of its equations."""
    if "\\begin" not in text:
        transposed = _without_transposition(text) if text[:1] in ("(", "[") else None
        row = read(transposed, depth + 1) if transposed else None
        return ("matrix", "matrix", tuple((item,) for item in row[2])) if row and row[0] == "bracketed" else None
    found = _MATRIX.fullmatch(text)
    if not found:
        return _read_scaled_matrix(text, depth, read)
    if "\\begin" in found[3]:
        return None
    fence, environment, content = found.groups()
    separator = "&" if "&" in content or environment == "cases" else ","
    content = content.replace("\\hline", "")
    rows = [split_outside_brackets(row, separator) for row in content.split("\\\\")]
    rows = rows[:-1] if not "".join(rows[-1]).strip() else rows
    if sum(map(len, rows)) > MAX_ITEMS:
        raise Unsupported("entries")
    is_open = environment == "cases" or text.startswith(("{", "\\{")) or (environment == "array" and text[0] == "\\")
    if is_open and all(RELATION_SIGN.search(entry.replace("&", "")) for entry in [content.split("\\\\")[0], *map("".join, rows)]) \
            and not re.search(r'"\s*,?\s*(?:if|for|when|otherwise|else)|&.*[<>]|&.*\\[lg]e', content):
        rows = [["".join(row).strip(" ,;.")] for row in rows]
        return read(", ".join(row[0] for row in rows), depth + 1)
    is_cases = environment == "cases" or (is_open and "&" in content)
    kind = "cases" if is_cases else {"v": "determinant", "V": "norm"}.get(fence, "matrix")
    rows = [[re.sub(r'"?+\s*+,?+\s*+\b(?:if|for|when)\b\s*"?|,\s*$', "", entry) for entry in row] for row in rows]
    return ("matrix", kind, tuple(tuple(read(entry, depth + 1) for entry in row) for row in rows))


def _without_transposition(text: str) -> str | None:
    """The text in front of ^T, if it ends in a bracket or an environment. None without a ^T."""
    matrix, _, sign = text.rpartition("^")
    is_transposed = "".join(c for c in sign if c not in ' {}"') in _TRANSPOSITIONS and matrix.rstrip().endswith((")", "]", "}"))
    return matrix.rstrip() if is_transposed else None


def _read_scaled_matrix(text: str, depth: int, read: Reader) -> Form | None:
    """A matrix with a factor in front or a T behind it: its entries are multiplied, its rows are columns."""
    transposed = _without_transposition(text)
    found = _SCALED_MATRIX.fullmatch(transposed or text)
    if not found or not (found[1].strip() or transposed):
        return None
    matrix = read_matrix(found[2].strip(), depth + 1, read)
    if matrix is None or matrix[0] != "matrix" or matrix[1] != "matrix":
        return None
    rows = matrix[2]
    if found[1].strip():
        factor = read_value({"-": "-1", "+": "1"}.get(found[1].strip(), found[1].strip()))
        product = scaled(factor[1], matrix) if is_expression(factor) else None
        if product is None:
            return None
        rows = product[2]
    if transposed:
        if len({len(row) for row in rows}) > 1:
            return None
        rows = tuple(zip(*rows, strict=True))
    return ("matrix", "matrix", rows)


def read_vector(text: str, depth: int, read: Reader) -> Form | None:
    """A sum of multiples of i, j and k, of tuples or of matrices; a tuple with a number in front."""
    if "\\vec" in text or "\\hat" in text:
        spelled = canonical_unit_vectors(text)
        try:
            return components(parse(spelled)) if "\\vec{" in spelled else read(spelled, depth + 1) if spelled != text else None
        except Unsupported:
            return None
    if (not text.endswith(")") or "," not in text) and "\\end" not in text:
        return None
    terms = signed_terms(text)
    forms = []
    for sign, term in terms:
        found = factor_and_tuple(term)
        if found is None and ("\\end" not in term or len(terms) < 2):
            return None
        factor, vector = found or ("", term)
        is_plain = text[0] != "+" and sign + factor == "+"
        if len(terms) == 1 and (is_plain or any(map(str.isalpha, factor.replace("\\frac", "").replace("\\sqrt", "")))):
            return None  # a plain tuple, or a function of two arguments
        form = read(vector, depth + 1)
        if form[0] not in ("bracketed", "matrix"):
            return None
        tree = parse(sign + (factor or "1"))
        forms.append(scaled(tree, form) if factor or sign == "-" else form)
    return total(forms) if forms and None not in forms else None
