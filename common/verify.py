"""Is this completion's answer the reference answer? Text in, bool out; nothing in the text is ever evaluated.

What counts as the same: equal integers, decimals and fractions (compared exactly), and texts that are equal once LaTeX
spacing, sizing and the order of the terms of a sum are taken out. Anything else is different.
"""
from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

MAX_ANSWER_LENGTH = 500  # characters; longer is an essay, not an answer, and bounds the work of a comparison
MAX_DIGITS = 60  # of a number that is compared as a number: beyond it the texts are compared

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|\{|\}", re.DOTALL)
_STATED = re.compile(r"(?<!not the )\banswer(?: is|:)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:,\d{3})+)?(?:\.\d*)?")
_FRACTION = re.compile(r"([+-]?)\\frac\{([+-]?\d+)\}\{([+-]?\d+)\}|([+-]?\d+)/(\d+)")
_DROPPED = re.compile(r"\\(?:left|right|displaystyle|[!,;: ])|[\s$]|\\\$")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox|boxed|fbox)\{([^{}]*)\}")
_APART = re.compile(r"(?<=\d)\s+(?=\d)")
_LISTED = re.compile(r"(?<=\d),\s+(?=\d)")
_OPERATOR = re.compile(r"(?:\\(?:cdot|times|div|pm|mp|ast|to|le|leq|ge|geq|neq|ne|in|cup|cap|frac)|[\^_*/=<>(,])$")
_SHORT_FRACTION = re.compile(r"\\frac(\d)(\d)")


def extract_answer(completion: str) -> str | None:
    """The final answer stated in `completion`, or None.

    Looks behind a closing </think>, for: the last balanced \\boxed{} or \\fbox{}; else the line after the last ####; else
    the last "answer is ..." or "answer: ...". Empty or over 500 characters is no answer. Linear in the length.
    """
    text = completion.rpartition("</think>")[2]
    answer, opened = None, []
    for match in _BRACES.finditer(text):
        if match[0][-1] == "{" and match[0] != "\\{":
            opened.append(match)
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start[0] != "{":
                answer = text[start.end():match.start()]
    if answer is None and "####" in text:
        answer = text.rpartition("####")[2].lstrip(" ").partition("\n")[0]
    if answer is None:
        stated = [match.end() for match in _STATED.finditer(text)]
        answer = text[stated[-1]:].lstrip(" ").partition("\n")[0].rstrip(" .") if stated else None
    answer = answer.strip() if answer else ""
    return answer if 0 < len(answer) <= MAX_ANSWER_LENGTH else None


def is_correct(completion: str, reference: str) -> bool:
    """True if the completion's final answer equals the reference: a bare answer or a worked solution. Never raises."""
    answer = extract_answer(completion)
    return answer is not None and answers_equal(answer, reference_answer(reference))


def reference_answer(reference: str) -> str:
    """The bare answer of a reference, which may be a worked solution with \\boxed{} or ####."""
    return extract_answer(reference) or reference.strip()


def answers_equal(a: str, b: str) -> bool:
    """True if two bare answers are the same. Example: "0.5" and "\\frac{1}{2}" are, "[1,2)" and "(1,2)" are not."""
    x, y = _normalised(a), _normalised(b)
    if not x or not y or max(len(x), len(y)) > MAX_ANSWER_LENGTH:
        return False
    numbers = _number(x), _number(y)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return x == y or _terms(x) == _terms(y)


@lru_cache(maxsize=4096)  # a reference is compared with many completions
def _normalised(answer: str) -> str:
    if len(answer) > 4 * MAX_ANSWER_LENGTH:
        return ""
    text = answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _APART.sub("~", text)  # "2 1/2" is not 21/2
    if not any(bracket in text for bracket in "([{"):
        text = _LISTED.sub(",~", text)  # "3, 100" is not 3100
    text = _DROPPED.sub("", text)
    for _ in range(3):  # \text{} inside \boxed{}: deeper nesting is not unwrapped
        text = _WRAPPED.sub(r"\1", text)
    return _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text).rstrip(".")


def _number(text: str) -> Fraction | None:
    """The exact value of an integer, decimal or fraction of integers; None for anything else."""
    if sum(c.isdigit() for c in text) > MAX_DIGITS or not text.isascii() or not any(c.isdigit() for c in text):
        return None
    fraction = _FRACTION.fullmatch(text)
    if fraction:
        sign, top, bottom = (fraction[1], fraction[2], fraction[3]) if fraction[2] else ("", fraction[4], fraction[5])
        return None if int(bottom) == 0 else Fraction(int(top), int(bottom)) * (-1 if sign == "-" else 1)
    return Fraction(text.replace(",", "").rstrip(".")) if _NUMBER.fullmatch(text) else None


def _terms(text: str) -> list[str]:
    """The signed terms of a sum, sorted; a text that is not a plain sum is its own only term."""
    if "&" in text or "\\\\" in text or "\\begin" in text:
        return [text]  # the order of a matrix's entries matters
    terms, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c in "+-" and depth == 0 and i > start and not _OPERATOR.search(text, max(start, i - 7), i):
            terms.append(text[start:i])
            start = i
        if depth == 0 and c in ",=<>;|":
            return [text]
    terms.append(text[start:])
    return sorted(term if term[0] in "+-" else "+" + term for term in terms)
