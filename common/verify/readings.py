"""The readings of a whole answer: mostly one form, sometimes more. C(10, 3) is a point or a number of choices."""
from __future__ import annotations

import re
from functools import lru_cache

from common.verify.extract import MAX_ANSWER_LENGTH
from common.verify.forms import PLAIN, read_form
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
from common.verify.spelling import SYMBOLS, normalize
from common.verify.tokens import Unsupported
from common.verify.values import WITH_THOUSANDS, read_value
from common.verify.words import PIECE, pieces, word_set

_SIGNS_IN_FRONT = word_set(r"= \approx \sim \therefore \Rightarrow \implies \Longrightarrow \to")
_REVERSED_INTERVAL = re.compile(r"([\[\]])([^\[\]()]*[,;][^\[\]()]*)([\[\]])")


@lru_cache(maxsize=8192)
def read_forms(answer: str) -> tuple[Form, ...]:
    """The forms that an answer may have, mostly one. There is none for an answer without content. Raises Unsupported."""
    if len(answer) > MAX_ANSWER_LENGTH:
        return ()
    text = normalize(formula_in_a_sentence(answer.rstrip("\\ ")))
    if len(text) > 2 * MAX_ANSWER_LENGTH:
        return ()
    if not any(c.isalnum() or c == "?" for c in text) and not text.startswith("\\"):
        return ()
    if len(text) > 1 and text[0] != "(" and text[1] != ")" and PLAIN.fullmatch(text):  # most answers: no other form is possible
        return (read_value(text),)
    plain = text
    begins_with_letter = "A" <= text.lstrip("( ")[:1] <= "Z"  # of a choice, or P(1, 2)
    if begins_with_letter or text[0] == "=" or not SYMBOLS.fullmatch(text):  # there may be words around the answer
        text = _without_near_approximation(_without_sign_in_front(without_words_around(_without_sign_in_front(text))))
        text = phrase(text) or text
        if letter := choice_letter(text):
            return (read_value(letter), *_readings_of_text(text_of_choice(text)))
    if text.startswith("]") or text.endswith("["):  # [1, 2[
        text = _REVERSED_INTERVAL.sub(_usual_interval, text)
    form = read_form(text)
    forms = [form]
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
