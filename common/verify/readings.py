"""The readings of a whole answer: mostly one form, sometimes more. C(10, 3) is a point or a number of choices."""
from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from common.verify.extract import MAX_ANSWER_LENGTH
from common.verify.forms import read_form
from common.verify.measures import size_of_unit
from common.verify.phrases import (
    approximation_behind,
    choice_letter,
    formula_in_a_sentence,
    integer_letter,
    phrase,
    text_of_choice,
    without_words_around,
)
from common.verify.real_sets import number, real_set
from common.verify.relations import Form, as_interval
from common.verify.remarks import part_with_quotes, said_in_two_ways, without_remarks
from common.verify.spelling import SYMBOLS, normalize
from common.verify.tokens import Unsupported
from common.verify.values import PLAIN, WITH_THOUSANDS, read_value
from common.verify.wording import adjective, one_spelling
from common.verify.words import PIECE, pieces, word_set

_SIGNS_IN_FRONT = word_set(r"= \approx \sim \therefore \Rightarrow \implies \Longrightarrow \to")
_NO_FORMULA = ("<", ">", "\\le", "\\ge", ",")
_BY = re.compile(r'"?\s*\bby\b\s*"?|\\times(?![a-z])')
_EXTREME = re.compile(r"_\s*\{?\s*\\(max|min)(?![a-z])\s*\}?")
_HAS_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}|[^\x00-\x7f]|\\(?:over|triangle|angle)|\\in|\\[gl]e|\\neq|[<>]")
_REVERSED_INTERVAL = re.compile(r"([\[\]])([^\[\]()]*[,;][^\[\]()]*)([\[\]])")
# \{n \in \mathbb{Z} \mid 1 \le n \le 4\}
_WHOLE_NUMBERS_THAT = re.compile(r"\\\{\s*([a-z])\s*\\in\s*\\mathbb\{([ZN])\}\s*(?:\\mid|\\vert|:|\|)"
                                 r"([^<>\\{}]++(?:<|\\le )\s*\1\s*(?:<|\\le )[^<>\\{}]++)\\\}")
# where the n of a formula lies, if remarks.py has left it: n = 1, 2, \ldots; n \in \mathbb{N}^*
_RANGE = re.compile(r'[\s",(]++(?:for\b[\s"]*+)?(?<![A-Za-z])([i-nN])\s*+'
                    r'(?:=\s*+(?:0\s*+,\s*+1|1\s*+,\s*+2|2\s*+,\s*+3)\s*+,(?:\s*+\d\s*+,)*+\s*+(?:\\cdots|\.\.\.)'
                    r'|\\in\s*+\\mathbb\{N\}(?:[_^][{*+\d\\ge>} ]*+)?)[\s")]*+$')


def read_forms(answer: str) -> tuple[Form, ...]:
    """The forms that an answer may have, mostly one. There is none for an answer without content. Raises Unsupported."""
    return read_answer(answer)[0]


@lru_cache(maxsize=8192)
def read_answer(answer: str) -> tuple[tuple[Form, ...], frozenset[str]]:
    """The forms of an answer, and the words and conditions around it that another answer may contradict. Raises Unsupported."""
    if len(answer) > MAX_ANSWER_LENGTH:
        return (), frozenset()
    text = normalize(formula_in_a_sentence(answer.rstrip("\\ ")))
    if len(text) > 2 * MAX_ANSWER_LENGTH:
        return (), frozenset()
    if not text[:1].isalnum() and not any(c.isalnum() or c == "?" for c in text) and not text.startswith("\\"):
        return (), frozenset()
    if len(text) > 1 and text[0] != "(" and text[1] != ")" and PLAIN.fullmatch(text):  # most answers: no other form is possible
        return (read_value(text),), frozenset()
    words: frozenset[str] = frozenset()
    begins_with_letter = "A" <= text.lstrip("( ")[:1] <= "Z"  # of a choice
    if begins_with_letter or not SYMBOLS.fullmatch(text):
        if letter := choice_letter(text):
            return (read_value(letter), *_readings_of_text(text_of_choice(text))), words
        if '"' in text or _HAS_WORDS.search(text):
            text, words = without_remarks(text)
            text = one_spelling(text)
    extreme = _EXTREME.search(text)
    if extreme:  # m_{\\max} = 5 is also read as m = 5
        return (*_readings(text), *_readings(_EXTREME.sub("", text))), words | {extreme[1]}
    return _readings(text), words


def _readings(text: str) -> tuple[Form, ...]:
    """The forms of a normalized text without what stands around it."""
    if found := _WHOLE_NUMBERS_THAT.fullmatch(text) if text[:2] == "\\{" else None:
        text = f"{found[3]}, {found[1]} \\in \\mathbb{{{found[2]}}}"
    plain = text
    begins_with_letter = "A" <= text.lstrip("( ")[:1] <= "Z"  # of a choice, or P(1, 2)
    if begins_with_letter or text[:1] == "=" or not SYMBOLS.fullmatch(text):  # there may be words around the answer
        text = _without_near_approximation(_without_sign_in_front(without_words_around(_without_sign_in_front(text))))
        text = phrase(text) or text
        if letter := choice_letter(text):
            return (read_value(letter), *_readings_of_text(text_of_choice(text)))
    if text.startswith("]") or text.endswith("["):  # [1, 2[
        text = _REVERSED_INTERVAL.sub(_usual_interval, text)
    text = _without_range(text)
    if ":" in text and (halves := _halves(text)):
        return halves
    form = read_form(text)
    may_have_halves = form[0] in ("list", "union", "or", "text", "relation") or (form[0] == "value" and form[1] is None)
    if may_have_halves and (halves := _halves(text)):
        return halves
    forms = [form, *_dimensions(text), *_whole_numbers(form, plain)]
    if form[0] == "text" and (word := adjective(form[1])):
        forms.append(("text", word))
    if WITH_THOUSANDS.fullmatch(text.lstrip("+-")):
        forms.append(("thousands", tuple(read_form(item) for item in text.split(","))))
    if plain.replace(" ", "")[:2] in ("C(", "P(", "A(") and plain[-1] == ")" and [plain.count(sign) for sign in "(,)"] == [1, 1, 1]:
        forms.append(read_value(plain))
    if form[0] == "dots":
        forms.append(read_value(text))
    letter = integer_letter(plain)
    if letter and letter != "k":  # the letter of a family of solutions is free
        forms.append(read_form(without_words_around(_with_k_for(letter, plain))))
    if letter:
        forms.append(("family", forms[-1] if letter != "k" else form))
    elif "\\pi" in text and (names := {"k", "m", "n"}.intersection(pieces(text))) in ({"m"}, {"n"}):
        forms.append(("family", read_form(_with_k_for(*names, text))))
    interval = as_interval(form)
    forms += [interval] if interval else []
    reals = real_set(form)
    return (*forms, reals) if reals else tuple(forms)


def _halves(text: str) -> tuple[Form, ...]:
    """The forms of both halves of an answer that says one thing in two ways: 7/2 or 3.5, 20 m/s = 72 km/h, x < 5: (-\\infty, 5)."""
    for separator, half, other in said_in_two_ways(text):
        try:
            forms = read_form(half), read_form(other)
        except Unsupported:
            continue
        if separator in ":," and forms[0][0] == "value":
            continue  # 1, 2 are two values
        if forms[0][0] == "relation" and forms[0][3] and len(forms[0][2]) == 2 and forms[1][0] == "value":
            forms = forms[0][2][1], forms[1]  # x = 7/2 or 3.5
        units = {form[3] for form in forms if form[0] == "value"}
        if units == {"deg", ""} and "\\pi" in text:
            forms = [(*form[:3], form[3] or "rad") for form in forms]
        said = [_said(form) for form in forms]
        if said[0] is not None and said[0] == said[1] and (isinstance(said[0], list) or separator not in ":,"):
            return tuple(reading for half in (half, other) for reading in _readings(half))
    return ()


def _said(form: Form) -> Any:
    """What a number with its unit, or a set of real numbers, says: rounded numbers that can be compared. None for other forms."""
    if form[0] == "value":
        value, size = number(form), size_of_unit(form[3])
        return None if value is None or size is None else (size[0], float(f"{value * size[1]:.11e}"))
    reals = real_set(form)
    return reals and [(low[0], low_in, high[0], high_in) for low, low_in, high, high_in in reals[1]]


def _dimensions(text: str) -> list[Form]:
    """20 ft by 35 ft, or 20 ft \\times 35 ft: lengths in order, and in any order if they have units."""
    if "by" not in text and "\\times" not in text:
        return []
    pieces = [piece for piece in _BY.split(text) if piece.strip(' "')]
    if not 2 <= len(pieces) <= 3 or ("\\times" in text and '"' not in text):
        return []
    values = [read_value(part_with_quotes(piece)) for piece in pieces]
    if any(value[0] != "value" or number(value) is None for value in values):
        return []
    units = [value[3] or values[-1][3] for value in values]
    values = [(*value[:3], unit) for value, unit in zip(values, units, strict=True)]
    return [("bracketed", "by", tuple(values)), *([("list", tuple(values))] if all(units) else [])]


def _readings_of_text(text: str | None) -> tuple[Form, ...]:
    """The form of the text behind the letter of a choice, if there is one."""
    try:
        return (read_form(without_words_around(text)),) if text else ()
    except Unsupported:
        return ()


def _without_sign_in_front(text: str) -> str:
    """The text without = or \\approx and the like in front."""
    found = PIECE.match(text)
    return text[found.end():].lstrip() if found and found[0] in _SIGNS_IN_FRONT else text


def _with_k_for(letter: str, text: str) -> str:
    """The text with the letter k in place of another one."""
    return PIECE.sub(lambda found: "k" if found[0] == letter else found[0], text)


def _without_range(text: str) -> str:
    """The text without "n = 1, 2, \\ldots" or "n \\in \\mathbb{N}^*" behind a formula in n."""
    may_have_range = ("\\cdots" in text or "..." in text or "\\mathbb{N}" in text) and text[:1] not in "([{"
    found = _RANGE.search(text) if may_have_range else None
    head = text[:found.start()].rstrip() if found else ""
    is_bounded = bool(found) and "\\in" in found[0] and head.count("\\le") + head.count("<") == 2  # 1 \\le n \\le 4
    is_formula = found and found[1] in PIECE.findall(head) and (is_bounded or not any(sign in head for sign in _NO_FORMULA))
    return head + '"' * (head.count('"') % 2) if is_formula and head != found[1] else text


def _whole_numbers(form: Form, text: str) -> list[Form]:
    """The set 1, 2, 3, 4 for 1 \\le n \\le 4, n \\in \\mathbb{Z}."""
    interval = as_interval(form) if integer_letter(text) or "\\mathbb{N}" in text else None
    ends = [number(end) for end in interval[2]] if interval else []
    if not ends or None in ends or max(map(abs, ends)) > 10**6 or ends[1] - ends[0] > 60:
        return []
    low, high = math.floor(ends[0]) + 1 if interval[1][0] == "(" else math.ceil(ends[0]), math.floor(ends[1])
    high -= interval[1][1] == ")" and high == ends[1]
    return [("set", tuple(read_value(str(value)) for value in range(low, high + 1)))] if low <= high else []


def _usual_interval(match: re.Match[str]) -> str:
    """[1, 2) for [1, 2[."""
    return ("[" if match[1] == "[" else "(") + match[2] + ("]" if match[3] == "]" else ")")


def _without_near_approximation(text: str) -> str:
    """The text without the approximation behind it, if this is right to 5 %: 13/7 (about 1.86) is 13/7."""
    found = approximation_behind(text)
    if found is None:
        return text
    form = read_form(found[0])
    form = form[2][1] if form[0] == "relation" and form[3] and len(form[2]) == 2 else form
    value, approximation = number(form), float(found[1])
    return found[0] if value is not None and abs(value - approximation) <= 0.05 * abs(value) else text
