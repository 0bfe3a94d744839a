"""Finds the final answer in a completion, or in a reference that is a worked solution."""
from __future__ import annotations

import re
from functools import lru_cache

MAX_ANSWER_LENGTH = 500  # characters; a longer text is no final answer, and the limit bounds the work of a comparison

# a box that opens, a brace, or a backslash with the character behind it
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|\{|\}", re.DOTALL)
# \boxed 9 or \boxed x, but not the first digit of \boxed 9/2
_BOX_WITHOUT_BRACES = re.compile(r"\\boxed\s*(-?\d+(?:\.\d+)?|[A-Za-z])(?!\s*[\w/^!+*\\(-]|[.,]\d)")
# "answer is", "answer:" or "answer $", unless "not" follows
_ANSWER_IS = re.compile(r"answers?\b[*_]*+\s*+(?:(?:is|are)\b\s*+:?+|:|(?=[$\\]))[*_]*+(?!\s*+(?:\w+\s+){0,2}not\b)", re.IGNORECASE)
# the end of the text before "answer": a word that denies or doubts what follows, or a letter of a longer word
_DENIAL_BEFORE = re.compile(r"(?:\w|\b(?:wrong|incorrect|false|if (?:the|our|my)|"
                            r"(?:not|cannot|whether|suppose|assume|nobody|doubt)\b[^.\n]{0,30}) |n't\b[^.\n]{0,30} )$", re.IGNORECASE)
# the start of a stated answer: words without content
_FILLER_WORDS = re.compile(r"\s*(?:(?:therefore|thus|simply|just|then|hence|clearly|exactly),?\s+)?", re.IGNORECASE)
_END_OF_SENTENCE = re.compile(r"(?<=[^\s.])\.(?=\s|$)|\n(?=.*\S)|<\||,?\s(?:because|since)\b")


def extract_answer(completion: str) -> str | None:
    """The final answer of a completion, or None if it states none. The time is linear in the length.

    If there is a closing </think>, only the text behind the last one counts. The answer is the content of the last balanced \\boxed{}
    or \\fbox{}. Without a box it is the rest of the line after the last ####. Without that it is the rest of the sentence after the
    last "answer is" or "answer:" that is not negated. An empty answer, or one of more than 500 characters, counts as None.
    """
    text = completion.rpartition("</think>")[2] if "</think>" in completion else completion
    answer = _last_box(text) if "\\boxed" in text or "\\fbox" in text else None
    if answer is None and "####" in text:
        answer = text.rpartition("####")[2].lstrip(" ").partition("\n")[0]
    if answer is None:
        rest = _text_after_answer_is(text)
        if rest is not None:
            answer = _END_OF_SENTENCE.split(rest[_FILLER_WORDS.match(rest).end():], maxsplit=1)[0]
    answer = answer.strip() if answer else ""
    return answer if 0 < len(answer) <= MAX_ANSWER_LENGTH else None


@lru_cache(maxsize=4096)  # a reference is compared with many completions
def reference_answer(reference: str) -> str:
    """The bare answer of a reference. The reference may be a worked solution with \\boxed{} or ####."""
    is_marked = "\\boxed" in reference or "\\fbox" in reference or "####" in reference
    return (extract_answer(reference) if is_marked else None) or reference.strip()


def _last_box(text: str) -> str | None:
    """The content of the last balanced box. If one box is inside another, the outer box counts."""
    # a short cut for most texts: there is one box, and its content has no braces and no backslashes
    if text.count("\\boxed{") == 1 and text.count("box") == 1:
        start = text.find("\\boxed{") + 7
        content = text[start:text.find("}", start)]
        end = start + len(content)
        if "{" not in content and "\\" not in content and end < len(text) and text[end] == "}":
            return content
    span, opened = None, []
    for match in _BOX_OR_BRACE.finditer(text):
        if match[0][-1] == "{" and match[0] != "\\{":
            opened.append(match)
        elif match[0] == "}" and opened:
            opening = opened.pop()
            if opening[0] != "{":
                span = (opening.end(), match.start())
    if span is None and (found := _BOX_WITHOUT_BRACES.match(text, max(0, text.rfind("\\boxed")))):
        return found[1]
    return text[slice(*span)] if span else None


def _text_after_answer_is(text: str) -> str | None:
    """The text after the last "answer is" or "answer:" that is not denied, up to twice the length of an answer."""
    last = {word: text.rfind(word) for word in ("answer", "Answer", "ANSWER")}
    while (at := max(last.values())) >= 0:
        found = _ANSWER_IS.match(text, at)
        if found and not _DENIAL_BEFORE.search(text[max(0, at - 45):at]):
            return text[found.end():found.end() + 2 * MAX_ANSWER_LENGTH]
        word = text[at:at + 6]
        last[word] = text.rfind(word, 0, at)
    return None
