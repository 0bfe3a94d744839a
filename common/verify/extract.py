"""Finds the final answer in a completion, or in a reference that is a worked solution."""
from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from common.verify.words import HAS, IS, changes, denies, pieces, word_set

MAX_ANSWER_LENGTH = 500  # characters; a longer text is no final answer, and the limit bounds the work of a comparison
MAX_BOXES = 12  # that are read together
MAX_MARKS = 20  # headings that are looked at, from the last one on

# a box that opens, a brace, or a backslash with the brace or backslash behind it
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[\\{}]|[{}]")
# \boxed 9 or \boxed x, but not the first digit of \boxed 9/2
_BOX_WITHOUT_BRACES = re.compile(r"\\boxed\s*(-?\d+(?:\.\d+)?|[A-Za-z])(?!\s*[\w/^!+*\\(-]|[.,]\d)")
# between two boxes: "or" leaves the choice to the reader, the others only list
_ALTERNATIVE = re.compile(r"[\s$,;]*+(?:\\[()\[\]]|\\text\{)?\s*+\b(?:or"
                          r"|either|alternatively|maybe|perhaps|possibly|versus|vs\.?)\b\s*+\}?[\s$]*+"
                          r"(?:[A-Za-z]\s*=\s*+)?(?:\\[(\[])?[\s$]*+", re.IGNORECASE)
# in front of a box: words that deny it, and words between them and the box, as in "cannot be equal to"
_DENIALS_OF_BOXES = word_set("not cannot never neither nor anything-but")
_BETWEEN_DENIAL_AND_BOX = word_set("be been equal equals to the a final correct right answer value number of exactly simply definitely")
_OTHER_DENIALS_OF_BOXES = ("\\ne", "\\neq", "\u2260", "\u4e0d\u662f", "\u4e0d\u4e3a", "\u4e0d\u7b49\u4e8e", "\u975e", "\u4e0d\u4f1a\u662f",
                           "\u4e0d\u80fd\u662f", "\u4e0d\u53ef\u80fd\u662f")
_LETTER_BEFORE = re.compile(r"(?<![A-Za-z\\])([A-Za-z](?:_\{?\w\}?)?)\s*=\s*[\s$]*\\f?box(?:ed)?\s*\{$")
_LISTING = re.compile(r"(?:[\s$,;.*&:-]|\\[()\[\],;! ]|\\q?quad|\\\\|\\text\{\s*and\s*\}|\band\b|\([a-h0-9]\)|\b(?:part"
                      r"|answer)\s+[a-h0-9]\b|"
                      r"\\?[A-Za-z]+(?:_\{?\w\}?)?\s*=)*", re.IGNORECASE)

# "answer is", "answer must be", "answer:", "answer =", "answer $" or "correct option is", unless "not" follows
_ANSWER_IS = re.compile(r"(?:(?:answers?|correct (?:option|choice))\b[*_\"]*+\s*+(?:to (?:the|this) (?:question|problem)\s+)?"
                        r"(?:(?:is|are|(?:must|should|will|would) be)\b\s*+:?+|[:=]|(?=[$\\]))|"
                        r"\u7b54\u6848(?:\u662f|\u4e3a)?\s*+[:\uff1a]?)[*_]*+"
                        r"(?!\s*+(?:\w+\s+){0,2}not\b)", re.IGNORECASE)
_MARKS_OF_ANSWERS = ("nswer", "NSWER", "####", "correct ", "\u7b54\u6848")  # a text without any of them states no answer outside a box
# the end of the text before "answer": a word that denies or doubts what follows, or a letter of a longer word
_DENIAL_BEFORE = re.compile(r"(?:[A-Za-z0-9_]|\b(?:wrong|incorrect|false|if (?:the|our|my)|"
                            r"(?:twice|half|double|square|opposite|negative|reciprocal)(?: of)? (?:the|our|my|this)(?: final)?|"
                            r"(?:not|cannot|whether|suppose|assume|nobody|doubt)\b[^.\n]{0,30}) |n't\b[^.\n]{0,30} )$(?!\n)", re.IGNORECASE)
_FILLER_WORDS = word_set("therefore thus simply just then hence clearly exactly")  # in front of an answer
_END_OF_SENTENCE = re.compile(r"(?<=[^\s.])\.(?=\s|$)|\n(?=.*\S)|<\||,?\s(?:because|since)\b|"
                              r",\s+(?:which(?! is (?:wrong|incorrect|false|impossible|not|too)\b)|"
                              r"so|as|thus|hence|therefore|giving|making|not|obtained|and (?:we|this|it|that|the|so|thus))\b",
                              re.IGNORECASE)

# a mark at the start of a line or within it: ####, or a heading that says "answer"
_MARK = re.compile(r"#{4,}|(?:^|(?<=\n))[ \t]*(?:#{1,3}|\*\*|__)[ \t]*(?:the[ \t]+)?(?:final[ \t]+)?answers?\b", re.IGNORECASE)
_HASHES = re.compile(r"#{4,}")
_ANSWER_HEADING = re.compile(r"[ \t*_]*(?:the[ \t]+)?(?:final[ \t]+)?answers?\b[ \t]*(?:is\b)?[ \t]*:?[ \t*_]*:?[ \t]*", re.IGNORECASE)
_DOUBTS = word_set("""probably might could guess guessing think likely unsure uncertain assuming suppose would whether approximately let
    than""")
# the end of the text in front of a bold value, if it is no label: they have **18**, 20 + 40 = **60**
_VERBS = HAS | IS | word_set("be exactly only")
# the words that other headings begin with, and the beginnings of such words
_OTHER_HEADINGS = word_set("use using let why how")
_OTHER_HEADINGS_BEGIN = tuple(word_set("""step part case solution explanation conclusion summary verif check note hint bound upper lower
    estimat attempt problem question approach method analysis introduction example proof calculat given find comput understand set solv
    substitut simplif apply determin identif combin"""))


def find_answer(completion: str) -> tuple[str | None, str | None]:
    """The final answer of a completion, and the box that is offered beside it. The time is linear in the length.

    If there is a closing </think>, only the text behind the last one counts; a <think> that never ends, and what follows, does not count.
    The answer is the content of the last balanced \\boxed{} or \\fbox{}; `\\boxed{1} or \\boxed{2}` offers 1 beside 2. Without a box it
    is the content of the last <answer> tag, or the line after the last #### or heading "Answer". Without that it is the rest of the
    sentence after the last "answer is" or "answer:" that is not negated. Without that it is the only bold part of the last line. An
    empty answer, or one of more than 500 characters, counts as None.
    """
    text = _outside_thoughts(completion) if "think>" in completion else completion
    # a short cut for most texts: there is one box, and its content has no braces and no backslashes
    if text.count("box") == 1 and (place := text.find("\\boxed{")) >= 0 and (end := text.find("}", place)) >= 0:
        content = text[place + 7:end].strip()
        if "{" not in content and "\\" not in content:
            if place > 0 and _is_denied(text, place + 7):
                return None, None
            return content if 0 < len(content) <= MAX_ANSWER_LENGTH else None, None
    if "\\boxed" in text or "\\fbox" in text:
        boxes = _boxes(text)
        offered = text[slice(*boxes[-2])] if len(boxes) > 1 and _ALTERNATIVE.fullmatch(_between(text, *boxes[-2:])) else None
        answer = text[slice(*boxes[-1])] if boxes else _box_without_braces(text)
        if answer is not None:
            return (None, None) if boxes and _is_denied(text, boxes[-1][0]) else (_bounded(answer), offered)
    answer = None
    if any([mark in text for mark in _MARKS_OF_ANSWERS]):  # noqa: C419 (twice as fast as a generator)
        answer = _marked(text)
        rest = _text_after_answer_is(text) if answer is None else None
        answer = _stated(rest) if rest is not None else answer
    return _bounded(_in_bold_at_the_end(text) if answer is None and "**" in text else answer), None


def joined_boxes(completion: str, count: int, with_names: bool) -> str | None:
    """The contents of the last `count` boxes with commas between them, if the text between them only lists. Else None.

    `with_names`: the letters before the boxes belong to the text, as in x=\\boxed{2}, y=\\boxed{3}. Without letters it is a tuple.
    """
    text = _outside_thoughts(completion)
    boxes = _boxes(text)[-count:] if "box" in text and 2 <= count <= MAX_BOXES else []
    if len(boxes) < count or count < 2:
        return None
    if not all(_LISTING.fullmatch(_between(text, *pair)) for pair in pairwise(boxes)):
        return None
    contents = [text[slice(*box)] for box in boxes]
    names = [found[1] for start, _ in boxes if (found := _LETTER_BEFORE.search(text, max(0, start - 30), start))]
    if not with_names:
        return _bounded(", ".join(contents))
    if len(set(names)) == count:
        return _bounded(", ".join(f"{name}={content}" for name, content in zip(names, contents, strict=True)))
    return _bounded(", ".join(contents) if any("=" in content for content in contents) else f"({', '.join(contents)})")


@lru_cache(maxsize=4096)  # a reference is compared with many completions
def reference_answer(reference: str) -> str:
    """The bare answer of a reference. The reference may be a worked solution with \\boxed{} or ####."""
    is_marked = "\\boxed" in reference or "\\fbox" in reference or "####" in reference
    return (find_answer(reference)[0] if is_marked else None) or reference.strip()


def _bounded(answer: str | None) -> str | None:
    """The answer without spaces around it, or None if it is empty or too long."""
    answer = answer.strip() if answer else ""
    return answer if 0 < len(answer) <= MAX_ANSWER_LENGTH else None


def _outside_thoughts(completion: str) -> str:
    """The text behind the last closing </think>, or before a <think> that never closes."""
    text = completion.rpartition("</think>")[2] if "</think>" in completion else completion
    return text.partition("<think>")[0] if "<think>" in text else text


# ---- boxes ----------------------------------------------------------------------------------------------------------

def _boxes(text: str) -> list[tuple[int, int]]:
    """The places of the contents of the last balanced boxes that are in no other box."""
    spans: list[tuple[int, int]] = []
    opened: list[tuple[str, re.Match[str]]] = []
    first, other = text.find("\\boxed"), text.find("\\fbox")
    first = other if first < 0 or 0 <= other < first else first
    while first > 0 and text[first - 1] == "\\":
        first -= 1  # of \\boxed, the first backslash may be escaped, so the search begins in front of the run
    for match in _BOX_OR_BRACE.finditer(text, max(0, first)):
        sign = match[0]
        if sign == "}":
            if not opened:
                continue
            opening, place = opened.pop()
            if opening != "{":
                while spans and spans[-1][0] > place.start():
                    spans.pop()  # it is inside this one
                spans.append((place.end(), match.start()))
        elif sign[-1] == "{" and sign != "\\{":
            opened.append((sign, match))
    return spans[-MAX_BOXES:]


def _is_denied(text: str, start: int) -> bool:
    """Whether a denial stands in front of the box whose content starts there: it is not \\boxed{9}; it cannot be equal to \\boxed{9}."""
    before = text[max(0, start - 60):start].rpartition("\\")[0].rstrip(" \t\n$*_([\\").lower()
    if before.endswith(_OTHER_DENIALS_OF_BOXES):
        return True
    words = [word.strip("*_") for word in before.replace("\u2019", "'").replace("anything but", "anything-but").split()[-6:]]
    while words and words[-1] in _BETWEEN_DENIAL_AND_BOX:
        words.pop()
    return bool(words) and (words[-1] in _DENIALS_OF_BOXES or words[-1].endswith("n't"))


def _between(text: str, box: tuple[int, int], next_box: tuple[int, int]) -> str:
    """The text between two boxes."""
    between = text[box[1] + 1:next_box[0]]
    return between[:max(between.rfind("\\boxed"), between.rfind("\\fbox"))] if len(between) < 100 else "x" * 100


def _box_without_braces(text: str) -> str | None:
    """The content of \\boxed 9."""
    found = _BOX_WITHOUT_BRACES.match(text, max(0, text.rfind("\\boxed")))
    return found[1] if found else None


# ---- marks and statements -------------------------------------------------------------------------------------------

def _marked(text: str) -> str | None:
    """The content of the last <answer> tag, or the line after the last #### or heading "Answer", or the next line if it is empty."""
    tag = text.rfind("<answer>")
    if tag >= 0:
        content = text[tag + 8:].partition("</answer>")[0]
        stated = _text_after_answer_is(content)
        return _stated(stated) if stated is not None else content
    if "####" not in text and "nswer" not in text and "NSWER" not in text:
        return None
    pattern = _MARK if "answer" in text.lower() else _HASHES  # no heading without the word
    marks = list(pattern.finditer(text))[-MAX_MARKS:]
    for mark in reversed(marks):
        start = mark.end() if mark[0][0] == "#" and mark[0].strip("#") == "" else mark.start()
        rest = text[start:start + 4 * MAX_ANSWER_LENGTH].lstrip("# \t" if start != mark.end() else " \t")
        heading = _ANSWER_HEADING.match(rest)
        if heading:
            is_title = heading.end() == len(rest) or rest[heading.end()] == "\n" or start == mark.end()
            if not is_title and start != mark.end():
                continue  # a statement: see _text_after_answer_is
            rest = rest[heading.end():]
        elif _is_other_heading(rest):
            continue
        return _first_line(rest)
    return None


def _is_other_heading(text: str) -> bool:
    """Whether a heading is none of an answer: "Step 2", "1. Find the slope", "Final check"."""
    words = text[:80].lower().lstrip(" \t*_").split()
    words = words[1:] if words and words[0][:-1].isdecimal() and words[0][-1] in ".)" else words
    first = words[0] if words else ""
    is_final = first == "final" and not "".join(words[1:2]).startswith("answer")
    return is_final or first in _OTHER_HEADINGS or first.startswith(_OTHER_HEADINGS_BEGIN)


def _first_line(text: str) -> str:
    """The first line with content. A displayed formula may take more lines."""
    text = text.lstrip()
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if text.startswith(opening) and (end := text.find(closing, 3)) > 0:
            return text[2:end]
    return text.partition("\n")[0]


def _stated(rest: str) -> str:
    """The answer at the start of a text behind "answer is"."""
    word, _, behind = rest.lstrip().partition(" ")
    rest = behind if word.rstrip(",").lower() in _FILLER_WORDS else rest.lstrip()
    rest = rest.partition("\n")[2] or rest if rest.startswith("```") else rest
    if rest.startswith(("$$", "\\[")):
        return _first_line(rest)
    stated = _END_OF_SENTENCE.split(rest, maxsplit=1)[0].rstrip()
    for opening, closing in ("()", "{}"):  # (Answer: 42), {"answer": 42}
        if stated.endswith(closing) and stated.count(opening) < stated.count(closing):
            stated = stated[:-1]
    return stated


def _in_bold_at_the_end(text: str) -> str | None:
    """The only bold part of the last line, or what stands behind a bold label: **10 lawns**; **Solution:** (4, 6); **Total:** **20**.

    None if the line denies, doubts or asks.
    """
    lines = text[-4 * MAX_ANSWER_LENGTH:].split("\n")
    line = next((line for line in reversed(lines) if any(map(str.isalnum, line))), "")
    parts = line.split("**")  # bold parts have odd places
    words = line.lower()
    if len(parts) not in (3, 5) or "?" in line or denies(words) or not _DOUBTS.isdisjoint(pieces(words)):
        return None
    before, label, behind = parts[0].strip(" \t-#>"), parts[1].strip(), parts[2].strip()
    is_label = label.endswith(":") or behind.startswith(":")
    if len(parts) == 5:
        is_alone = behind.strip(" :") == "" and not any(map(str.isalnum, before + parts[4]))
        return _stated(parts[3]) if is_label and is_alone and not _is_other_heading(label) else None
    if is_label:
        is_answer = not _is_other_heading(label) or label.lower().startswith(("solution", "conclusion", "final"))
        return _stated(behind.lstrip(": ")) if is_answer else None
    if _is_other_heading(before or label):
        return None
    if not before:
        return _stated(f"{label.rstrip('.')} {behind}")
    says_nothing = all(c.isalpha() or c in " .!-'$" for c in behind) and not changes(behind.lower())
    return _stated(label) if says_nothing and _ends_in_verb(before) else None


def _ends_in_verb(text: str) -> bool:
    """Whether a text ends in a verb or an equals sign, so that its object follows."""
    text = text.rstrip(" \t\n$")
    if text.endswith("="):
        return not text.endswith(("!=", "<=", ">=", ":=", "~="))
    words = pieces(text[-60:].lower())
    words = words[:-1] if words[-1:] in ([":"], [","]) else words
    return bool(words) and words[-1] in _VERBS


def _text_after_answer_is(text: str) -> str | None:
    """The text after the last "answer is" or "answer:" that is not denied, up to twice the length of an answer."""
    last = {word: text.rfind(word) for word in ("answer", "Answer", "ANSWER", "\u7b54\u6848", "correct option", "correct choice")}
    while (at := max(last.values())) >= 0:
        found = _ANSWER_IS.match(text, at)
        if found and not _DENIAL_BEFORE.search(text[max(0, at - 45):at]):
            return text[found.end():found.end() + 2 * MAX_ANSWER_LENGTH]
        for word, place in last.items():
            if place == at:
                last[word] = text.rfind(word, 0, at)
    return None
