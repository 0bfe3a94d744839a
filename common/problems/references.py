"""Which text of an answer column can be a reference answer, and which text never can.

A model cannot reach a reference such as "proof" or a whole sentence. Such a row would teach that every completion is wrong, so it is left
out, and the run counts and names it.
"""
from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from common.verify.answers import MAX_ANSWER_LENGTH, answers_equal, extract_answer

# what published data sets write where there is no answer, in small letters and without the signs around it
NO_ANSWER = frozenset((
    "", "proof", "see proof", "proved", "proven", "qed", "q.e.d", "notfound", "not found", "no answer", "no answer found", "not available",
    "not given", "not provided", "missing", "unknown", "none", "null", "nil", "nan", "n/a", "na", "tbd", "todo", "see solution", "omitted",
    "error", "invalid", "failed", "solution", "answer", "...", "?"))
MOST_WORDS = 7  # of three letters or more, outside of LaTeX commands. "3 cubic centimeters per square meter" has five
MOST_CHINESE = 20  # Chinese and Japanese characters, which have no blanks between words
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{\w+\*?\}(?:\{[lrc|]+\})?|\\(?:operatorname|math\w+)\s*\{\w+\}|\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_CHINESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
# An answer whose small numbers may be any others but 0: it has no minus inside, large power, function or relation. If it has a value
# for some numbers, it has one for all, because no divisor and no root can become 0 or less.
_POSITIVE = re.compile(r"(?!.*(?:ln|log|tan|sec|csc|cot|arc|mod))-?(?:[A-Za-z0-9\s+*/(),.{}$%]|\^\{?\d\}?(?![\d^])|"
                       r"\\(?:[dt]?frac|sqrt|pi|left|right|cdot|times|text|quad|%|,))+", re.ASCII)
_NUMBER = re.compile(r"(?<![\d^])(?<!\^\{)[1-9]\d{0,2}(?!\d)", re.ASCII)


def reference_of(text: str, worked: bool) -> tuple[str | None, str]:
    """(the reference answer in the text of a cell, ""), or (None, why there is none).

    worked: the column holds worked solutions. A cell without a box and without #### then counts only if it can be an answer as a whole.
    Examples: "so \\boxed{4}" -> "4". "\\frac{1}{2}" -> the same. "Proof." -> None, a word for no answer.
    """
    if text.isdecimal() and text.isascii() and len(text) < 19:  # most answers, and as fast as it gets
        return text, ""
    marked = extract_answer(text)
    if marked is None and worked and ("\\boxed" in text or "\\fbox" in text or "####" in text or "\n" in text):
        return None, "nothing marked as the answer"
    answer = marked or text
    why = _fault(answer)
    return (None, why) if why else (answer, "")


def _fault(answer: str) -> str:
    """Why a text cannot be a reference answer, or ""."""
    if len(answer) > MAX_ANSWER_LENGTH:
        return f"more than {MAX_ANSWER_LENGTH} characters"
    # most answers of a large data set differ in their numbers only
    return "" if _all_usable(_NUMBER.sub("7", answer)) else _fault_of_text(answer)


@lru_cache(maxsize=2**16)
def _all_usable(answer: str) -> bool:
    """Whether the answer can be a reference, and with it every answer that differs in its small numbers only."""
    return _POSITIVE.fullmatch(answer) is not None and not _fault_of_text(answer)


@lru_cache(maxsize=2**16)  # many rows have the same answer
def _fault_of_text(answer: str) -> str:
    plain = _STYLE.sub(r" \1 ", answer)
    if plain.strip(" \t\n$.,;:!*_<>[]\"'").casefold() in NO_ANSWER:
        return "a word that stands for no answer"
    words = _WORD.findall(_COMMAND.sub(" ", plain))
    spoken = plain.rstrip().endswith((".", "!", "?")) and not plain.strip(" $")[:1].isdigit()  # "30 square feet per minute." is no sentence
    if len(words) > (3 if spoken else MOST_WORDS) or len(_CHINESE.findall(plain)) > MOST_CHINESE:
        return "a sentence"
    return "" if answers_equal(answer, answer) else "nothing that the checker can compare"


def kind_of(cell: Any) -> str:
    """Why a cell that is no text, number or list of them is no answer, or ""."""
    if isinstance(cell, dict):
        return "an object with keys"
    if isinstance(cell, list) and any(isinstance(part, list) or (isinstance(part, dict) and "content" not in part) for part in cell):
        return "a list of objects or lists"  # a list of messages is a chat, whose last message has the answer
    return ""
