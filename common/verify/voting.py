"""Groups equal answers without comparing each with all others: answers in different buckets cannot be equal.

A bucket is a hashable part of an answer that equal answers share, such as the value rounded to 40 bits. An answer has one bucket for each
way to read it. Answers whose buckets say nothing are compared with all others.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from fractions import Fraction
from functools import lru_cache

from mpmath import libmp

from common.verify.answers import answers_equal
from common.verify.equal import Evaluation, TooMuchWork, Work
from common.verify.expression_values import PRECISION_BITS, Undefined
from common.verify.readings import read_forms
from common.verify.relations import Form, is_column, is_expression, is_variable
from common.verify.rounding import magnitude, round_fraction
from common.verify.tokens import Unsupported
from common.verify.trees import CONSTANTS, Node, arbitrary_constants, variables, with_whole_variables

_BITS = 40  # of a rounded value
# A value is multiplied by this number before it is rounded. Without that, values such as 2^41 + 1 lie on the border of two roundings.
_GENERIC = (libmp.from_str("0.7390851332151606416553120876738734040134", 128, "n"),
            libmp.from_str("0.5671432904097838729999686622103555497538", 128, "n"))


def groups_of_equal_answers(answers: list[str | None]) -> list[list[str]]:
    """The answers in groups. An answer joins the first group whose first member equals it. None is in no group."""
    groups: list[list[str]] = []
    with_bucket: dict[Hashable, list[int]] = {}  # the numbers of the groups whose first member has the bucket; None: any bucket
    for answer in answers:
        if answer is None:
            continue
        buckets = _buckets(answer)
        candidates = range(len(groups)) if None in buckets else sorted({i for b in (*buckets, None) for i in with_bucket.get(b, ())})
        same = next((i for i in candidates if answers_equal(groups[i][0], answer)), None)
        if same is not None:
            groups[same].append(answer)
            continue
        for bucket in buckets:
            with_bucket.setdefault(bucket, []).append(len(groups))
        groups.append([answer])
    return groups


@lru_cache(maxsize=8192)
def _buckets(answer: str) -> frozenset[Hashable]:
    """The buckets of an answer. Equal answers share one, or one of them has the bucket None."""
    try:
        return frozenset(bucket for form in read_forms(answer) for bucket in _buckets_of_form(form))
    except (Unsupported, RecursionError):
        return frozenset()  # equal to nothing


def _buckets_of_form(form: Form) -> set[Hashable]:
    kind, content = form[0], form[1]
    if kind == "value":  # a value and a text are compared as texts
        buckets = {("text", form[2]), *(_rounded_values(content) if content is not None else [])}
        if form[3] == "deg" and content is not None:  # 180^\\circ may be \\pi radians
            buckets |= _rounded_values(("div", ("mul", content, ("pi",)), ("num", Fraction(180))))
        return buckets
    if kind == "relation":  # x = 5 may be 5; another equation or inequality may be a multiple of one that looks different
        name, value = form[2][0], form[2][1]
        states_value = content == ("=",) and form[3] and is_variable(name) and not (is_expression(value) and variables(value[1]))
        return _buckets_of_form(value) if states_value else {None}
    if kind in ("list", "set", "thousands"):
        return {_bucket_of_items(content, in_order=False)}
    if kind == "bracketed":  # [[1, 2], [3, 4]] may be a matrix
        return {_bucket_of_items(form[2], in_order=True), *([("matrix",)] if form[2][0][0] == "bracketed" else [])}
    if kind == "labelled":  # x = 1, y = 2 may be the tuple or the list of its values
        return {_bucket_of_items(form[2], in_order=False), *_buckets_of_form(form[3])}
    if is_column(form):  # a tuple
        return {("matrix",), _bucket_of_items(tuple(row[0] for row in form[2]), in_order=True)}
    if kind == "ratio" and len(content) == 2 and all(map(is_expression, content)):  # 1:3 may be 1/3
        return {("ratio",), *_rounded_values(("div", content[0][1], content[1][1]))}
    if kind == "dots" or form[:2] == ("matrix", "cases"):
        return {None}  # may be a sum with its sign, or one expression
    return {("text", content) if kind == "text" else (kind,)}


def _bucket_of_items(items: tuple[Form, ...], in_order: bool) -> Hashable:
    """The buckets of all items together, or None if one of them is not known."""
    buckets = [_bucket_of_item(item) for item in items]
    if None in buckets:
        return None
    return ("in order", *buckets) if in_order else ("in any order", frozenset(Counter(buckets).items()))


def _bucket_of_item(item: Form) -> Hashable:
    found = [bucket for bucket in _buckets_of_form(item) if bucket is None or bucket[0] != "text"]
    return found[0] if len(found) == 1 else None


def _rounded_values(tree: Node) -> set[Hashable]:
    """The rounded value, and that for whole values of n and the like: see whole_variables."""
    return {_rounded_value(each) for each in (tree, with_whole_variables(tree), with_whole_variables(tree, every=True))}


def _rounded_value(tree: Node) -> Hashable:
    """The value of a tree at the first point, rounded. None where `same_values` may leave the point out, or take an error for zero."""
    if arbitrary_constants(tree) or (tree[0] == "add" and any(part == ("sym", name) for part in tree[1] for name in CONSTANTS)):
        return None  # x^2 + c may be x^2 + C
    try:
        found = Work().evaluate(tree, 0, PRECISION_BITS)
    except TooMuchWork:
        return None
    if isinstance(found, Undefined):
        return ("undefined",)
    if not isinstance(found, Evaluation) or not (found.real or not variables(tree)):
        return None
    if found.value == 0:
        return ("value", 0)
    z = round_fraction(found.value, PRECISION_BITS) if isinstance(found.value, Fraction) else found.value
    x = libmp.mpf_sub(libmp.mpf_mul(z[0], _GENERIC[0]), libmp.mpf_mul(z[1], _GENERIC[1]))
    if magnitude(z) < found.largest - 64 or magnitude((x, libmp.fzero)) < magnitude(z) - 64:
        return None
    return ("value", libmp.mpf_pos(x, _BITS, "n"))
