"""Words that are a whole answer, in one spelling: verdicts with a reason, dates, winners, segments, number words.

The tables are the place for more words.
"""
from __future__ import annotations

import re

from common.verify.phrases import phrase
from common.verify.words import changes_number, word_set

_WORD = re.compile(r"[^\W\d_]+")
_NUMBER_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty"""
NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS.split())}
_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]
_MONTH_OF = {name: month for month in _MONTHS for name in (month, month[:3])} | {"sept": "september"}
_CLAUSE = re.compile(r"(?:the )?\w+ (?:is|are|does|do|was|were|can|has|have|will)( not|n't|not)?\b")
_SEGMENT = re.compile(r"\\overline\s*\{\s*([A-Z])\s*([A-Z])\s*\}|(?:line )?(?:segment|side) ([A-Z])\s*([A-Z])", re.IGNORECASE)
_FIGURE = re.compile(r"\\?(triangle|angle)\s*((?:[A-Z]\s*){3})", re.IGNORECASE)
_WINNER = re.compile(r"([A-Z][a-z]+) (?:wins|won|will win|did|does|did it|is (?:the (?:winner|champion|answer)|correct|right)|"
                     r"has (?:the )?most|wins the (?:game|race|match)|has more)")
_CHOICE_WITHOUT_VALUE = re.compile(r"\(?([A-J])[).:]+ (?:(?:none|all|neither|both) of (?:the above|these|them)|neither|(?:it )?cannot be "
                                   r"determined|not enough information)", re.IGNORECASE)
_DATE_WORD = re.compile(r"\d+|[A-Za-z]+")
_WORDS_IN_BRACKETS = re.compile(r"\((?=[A-Za-z ]{3})[A-Za-z -]+\)")
_NOUNS_BEHIND = word_set("function curve triangle series sequence graph statement event matrix quadrilateral angle number conic set")
_ANY_LETTER = re.compile(r"(?:any|all|every)(?: real)?(?: values?| numbers?)?(?: of)? [a-z](?: will work| works?| is possible)?")


def one_spelling(text: str) -> str:
    """Verdicts with a reason, dates, names of winners, segments, number words: each in one spelling. Any other text as it is."""
    unquoted = " ".join(text.replace('"', " ").split()).strip(". ")
    if not unquoted:
        return text
    for read in (_verdict, _said_twice, _date, _figure):
        if found := read(unquoted):
            return found
    if unquoted.lower() in ("none", "none exist", "none exists"):
        return "\\emptyset"
    if _WORDS_IN_BRACKETS.fullmatch(unquoted):
        return unquoted[1:-1]
    word, _, rest = unquoted.partition(" ")
    if word.lower() in NUMBERS and not rest:
        return NUMBERS[word.lower()]
    if word.lower() in NUMBERS and not changes_number(rest):
        return f'{NUMBERS[word.lower()]} "{rest}"'
    if choice := _CHOICE_WITHOUT_VALUE.fullmatch(unquoted):
        return choice[1]
    if winner := _WINNER.fullmatch(unquoted):
        return winner[1]
    return "\\mathbb{R}" if _ANY_LETTER.fullmatch(unquoted.lower()) else text


def _verdict(unquoted: str) -> str | None:
    """Yes, it is. No, because it is not closed. The statement is false."""
    word, separator, reason = unquoted.partition("," if "," in unquoted else " ")
    word, reason = word.lower().rstrip(" .;:"), reason.strip(" ,").lower()
    has_reason = reason.startswith(("because", "since"))
    if word not in ("yes", "no", "true", "false") or not reason or (any(map(str.isdecimal, reason)) and not has_reason):
        return None
    if {"but", "unless", "and", "or", "yes", "no"} & set(_WORD.findall(reason)):
        return None
    clause = _CLAUSE.match(reason)
    if word in ("yes", "no") and clause and (clause[1] is not None) != (word == "no") and separator == ",":
        return None  # yes, it is not
    return word if separator == "," or has_reason or reason.startswith("it ") else None


def _said_twice(unquoted: str) -> str | None:
    """No solution (\\emptyset); does not exist (DNE)."""
    parts = re.fullmatch(r"(.+?)(?:\s*[(,;]|\s+or\b)\s*([^()]+)\)?", unquoted)
    if not parts:
        return None
    one, other = (phrase(part.strip()) or part.strip() for part in parts.groups())
    return one if one == other and (one != parts[1].strip() or other != parts[2].strip()) else None


def _date(unquoted: str) -> str | None:
    """October 21st, 21 October, Oct. 21, the 4th of July 1776, 6\u670821\u65e5: "july 4 1776"."""
    if chinese := re.fullmatch(r"(?:(\d{4})年)?(\d\d?)月(\d\d?)[日号]", unquoted):
        year, month, day = chinese.groups()
        return f'"{_MONTHS[int(month) - 1]} {int(day)}{" " + year if year else ""}"' if 1 <= int(month) <= 12 else None
    words = [word.lower() for word in _DATE_WORD.findall(re.sub(r"(?<=\d) ?(?:st|nd|rd|th)\b", "", unquoted))]
    words = [word for word in words if word not in ("the", "of", "on")]
    months = [_MONTH_OF[word] for word in words if word in _MONTH_OF]
    numbers = [word for word in words if word.isdecimal()]
    if len(months) != 1 or len(numbers) != len(words) - 1 or len(numbers) > 2 \
            or not set("+-*/=<>\\^_(){}").isdisjoint(unquoted):
        return None
    days, years = ([number for number in numbers if (len(number) < 3) is short] for short in (True, False))
    if not numbers:
        return f'"{months[0]}"' if len(unquoted) > 3 or unquoted.endswith(".") else None
    if len(days) > 1 or len(years) > 1 or any(int(day) > 31 for day in days):
        return None
    return f'"{" ".join([months[0], *(str(int(day)) for day in days), *years])}"'


def _figure(unquoted: str) -> str | None:
    """Segment AB as AB, \\triangle ABC as words: its letters have an order."""
    if segment := _SEGMENT.fullmatch(unquoted):
        return "".join(letter for letter in segment.groups() if letter)
    figure = _FIGURE.fullmatch(unquoted)
    letters = "".join(figure[2].split()) if figure else ""
    return f"{figure[1].lower()} {min(letters, letters[::-1]) if figure[1].lower() == 'angle' else letters}" if figure else None


def adjective(text: str) -> str | None:
    """odd of "odd function": the text without the noun behind it."""
    words = text.rsplit(" ", 1)
    return words[0] if len(words) == 2 and words[1] in _NOUNS_BEHIND and words[0].isalpha() else None
