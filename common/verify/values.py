"""Reads a number or an expression with its unit, or a text, into a form: ("value", tree, text, unit) or ("text", text)."""
from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from common.verify.latex import parse
from common.verify.phrases import phrase
from common.verify.spelling import split_outside_brackets
from common.verify.tokens import Unsupported
from common.verify.trees import Node
from common.verify.units import split_unit

Form = tuple[Any, ...]
WITH_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_NUMERAL_WITH_BASE = re.compile(r"(-?)\(?\s*0*((?=[A-F]*\d|[A-F]{2})[\dA-F]+)\s*\)?\s*_\s*(?:\{[\s(]*(?:base[\s-]*)?(\w+)[\s)]*\}|(\d))")
_MIXED_NUMBER = re.compile(r"(?<![\d.^_}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)\s+(?=\d)")
_SPACES_AND_BRACES = re.compile(r"\s+|\"|(?<=[_^])\{(?=\w\}(?!\d))|(?<=[_^]\{\w)\}(?!\d)")
_NAMES_OF_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
                   "eleven": "11", "thirteen": "13",
                   "twelve": "12", "sixteen": "16"}
_ONLY_LETTERS = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z.]")
_A_WORD = re.compile(r"[A-Za-z]{3}|^(?:no|on|up|or|[IVX]{2}|[TFH]{2})$")
# not an expression: a sentence, a name, a hexadecimal number
_WORDS_OR_HEXADECIMAL = re.compile(r"(?<![A-Za-z\\])(?!sqrt|arc|(?<=\[)[A-Z]+\])[A-Za-z]{4,}|(?:^| )[A-Za-z]{3} \d|^0[xob]\w")


# an expression without words, commas, relations and other brackets than ( ) and { }: only a value. A U may be a union
PLAIN = re.compile(r"(?:\d+(?:\.\d+)?|[A-TV-Za-z](?![A-Za-z])|[-+*/^(){} ]|\\(?:frac|sqrt|pi|cdot|times)(?![A-Za-z]))++")


@lru_cache(maxsize=8192)  # the items of an answer are often those of the reference
def read_value(text: str) -> Form:
    """A number or an expression with its unit, or a text."""
    if text.isdecimal():
        return ("value", ("num", Fraction(int(text))), text, "")
    may_have_unit = " " in text or "/" in text or not PLAIN.fullmatch(text)
    text, unit = split_unit(text) if may_have_unit else (text, "")
    if "," in text:
        text = WITH_THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    if "/" in text and " " in text:
        text = _MIXED_NUMBER.sub(_mixed_number_as_sum, text)
    unquoted = text.replace('"', "").strip()
    if spelled := phrase(unquoted):
        return ("text", spelled)
    if _is_words(unquoted):
        words = " ".join(unquoted.rstrip(".").replace("-", " ").split())
        is_abbreviation = words.isupper() and len(words) < 4
        said = (words if is_abbreviation else words.lower()).split()
        for fillers in (("it",), ("is", "are"), ("a", "an", "the", "on")):
            said = said[1:] if len(said) > 1 and said[0] in fillers and (said[0] != "it" or said[1] in ("is", "are")) else said
        return ("text", " ".join(said))
    spelled = _BETWEEN_DIGITS.sub("~", text) if " " in text else text  # 2 3 is not 23
    spelled = _SPACES_AND_BRACES.sub("", spelled)  # x^{2} is x^2
    try:
        tree: Node | None = None if _WORDS_OR_HEXADECIMAL.search(unquoted) else parse(text)
    except Unsupported:
        tree = None
    if tree is None and re.search(r"(?<![A-Za-z\\])[^\W\d_]{3,}", unquoted) and not unit:
        return ("text", " ".join(unquoted.lower().replace(",", " ").split()))  # March 14
    return ("value", tree, spelled, unit)


def _mixed_number_as_sum(match: re.Match[str]) -> str:
    """(2+1/2) for 2 1/2. A fraction that is not below one is left as it is."""
    return f"({match[1]}+{match[2]}/{match[3]})" if int(match[2]) < int(match[3]) else match[0]


def _is_words(text: str) -> bool:
    """Whether the text consists of words and is no Greek letter."""
    if len(text) < 2 or not text[0].isalpha():
        return False
    return bool(_ONLY_LETTERS.fullmatch(text) and _A_WORD.search(text)) and text not in ("theta", "alpha", "beta")


def split_at_commas(text: str) -> list[str]:
    """The pieces between commas. The comma of 1,234 does not separate. In 1,234,5 it does, because one more comma and digit follow."""
    masked = WITH_THOUSANDS.sub(lambda match: match[0].replace(",", "\x00"), text) if "," in text else text
    return [piece.replace("\x00", ",") for piece in split_outside_brackets(masked, ",")]


def read_numeral_with_base(text: str) -> Form | None:
    """2104_5 as ("base", digits, base). In base ten it is a value."""
    text = text.replace('"', "")
    found = _NUMERAL_WITH_BASE.fullmatch(text[1:].replace("}", "", 1) if text[0] == "{" else text)
    if not found:
        return None
    digits, base = found[1] + found[2], _NAMES_OF_BASES.get(found[3], found[3]) or found[4]
    return read_value(digits) if base == "10" and found[2].isdecimal() else ("base", digits, base)
