"""Vectors and matrices that are computed: 3i - 2j + k, (1, 2) + t(3, -1), -(2, 1). The functions work on forms: forms.py."""
from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from common.verify.spelling import bracket_depths
from common.verify.trees import Node, degrees, substituted

Form = tuple[Any, ...]
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
    factor = re.sub(r"\s*(?:\\cdot|\\times|\*)\s*$", "", term[:start]).strip()
    return (factor, term[start:]) if start >= 0 and "," in term[start:] else None


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
