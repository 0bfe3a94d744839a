"""Words that are a whole answer, in one spelling: verdicts with a reason, dates, winners, segments, number words.

The tables are the place for more words.
"""
from __future__ import annotations

from common.verify.phrases import phrase
from common.verify.words import changes_number, phrase_set, pieces, word_set

_NUMBER_WORDS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty"""
NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS.split())}
_MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]
_MONTH_OF = {name: month for month in _MONTHS for name in (month, month[:3])} | {"sept": "september"}
_VERDICTS = word_set("yes no true false")
_RESTRICTING = word_set("if when only whenever sometimes")
_REFUSED = word_set("wrong incorrect excluded rejected answer")
_FAILING = word_set("wrong fails fail never not incorrect")
_VERBS_OF_REASONS = word_set("is are does do was were can has have will")
_VERBS_OF_PHRASES = word_set("has have does converges diverges")
_NO_SUCH = phrase_set("""no such exists; no such exist; no such value exists; no such values exist; no such; no values of; no value of;
    no real values of; no such value; no such values""")
_WINS = phrase_set("""finishes first; finished first; came first; comes first; is first;
    wins; won; will win; did; does; did it; is the winner; is the champion; is the answer; is correct; is right;
    has most;
    has the most; wins the game; wins the race; wins the match; has more""")
_NO_VALUES = phrase_set("""none of the above; all of the above; neither of the above; both of the above; none of these; all of these;
    neither of these; both of these; none of them; all of them; neither of them; both of them; neither; cannot be determined;
    it cannot be determined; not enough information""")
_ANY_LETTER = word_set("any all every real value values number numbers of will work works is possible")
_NUMBERED = word_set("term day place row floor grade person year")  # the 6th term
_NOUNS_BEHIND = word_set("""function curve triangle system lines planes vectors events series
    sequence graph statement event matrix quadrilateral angle number conic set""")


def one_spelling(text: str) -> str:
    """Verdicts with a reason, dates, names of winners, segments, number words: each in one spelling. Any other text as it is."""
    unquoted = " ".join(text.replace('"', " ").split()).strip(". ")
    if not unquoted or "?" in unquoted:
        return text
    for read in (_verdict, _about_a_subject, _said_twice, _date, _figure, _ordinal):
        if found := read(unquoted):
            return found
    if unquoted.lower() in ("none", "none exist", "none exists"):
        return "\\emptyset"
    inside = unquoted[1:-1]
    if unquoted[0] + unquoted[-1] == "()" and len(inside) > 2 and inside.isascii() and inside.replace(" ", "").replace("-", "").isalpha():
        return inside
    word, _, rest = unquoted.partition(" ")
    if word.lower() in ("exactly", "only", "just") and rest:
        word, _, rest = rest.partition(" ")
    if word.lower() in NUMBERS and not rest:
        return NUMBERS[word.lower()]
    if word.lower() in NUMBERS and not changes_number(rest):
        return f'{NUMBERS[word.lower()]} "{rest}"'
    letter = word.strip("().:")
    if word[-1] in ").:" and letter in tuple("ABCDEFGHIJ") and rest.lower() in _NO_VALUES:
        return letter
    is_superlative = rest.startswith("is the ") and rest.endswith("est") and rest.count(" ") == 2
    if word.istitle() and word.isalpha() and len(word) > 1 and (rest in _WINS or is_superlative):
        return word
    words = unquoted.lower().split()
    is_any = words[0] in ("any", "all", "every") and [len(word) for word in words if word not in _ANY_LETTER] == [1]
    return "\\mathbb{R}" if is_any and unquoted.isascii() and words[-1].isalpha() else text


def _verdict(unquoted: str) -> str | None:
    """Yes, it is. No, because it is not closed. The statement is false."""
    end = next((place for place, c in enumerate(unquoted) if not c.isalpha()), len(unquoted))
    word, rest = unquoted[:end].lower(), unquoted[end:].strip().lower()
    is_apart, reason = rest[:1] in tuple(",.;:-("), rest.strip(" ,.;:-()")
    has_reason = reason.startswith(("because", "since"))
    if word not in _VERDICTS or not reason or (any(map(str.isdecimal, reason)) and not has_reason):
        return None
    words = pieces(reason.replace("n't", " not").replace("cannot", "can not"))
    if {"but", "unless", "or"} & {*words} or (not has_reason and ({"and"} | _VERDICTS) & {*words}):
        return None
    if words[0] in _VERBS_OF_REASONS or not _REFUSED.isdisjoint(words):
        return None
    if not _VERDICTS.isdisjoint(words[-1:]) or not {"guess", "guessed", "say"}.isdisjoint(words):
        return None
    if not has_reason and (not _RESTRICTING.isdisjoint(words) or (words[0] == "for" and words[1:2] not in (["all"], ["any"], ["every"]))):
        return None
    if word in ("yes", "true") and not has_reason and not _FAILING.isdisjoint(words):
        return None
    verb = 2 if words[0] == "the" else 1
    if word in ("yes", "no") and words[verb:] and words[verb] in _VERBS_OF_REASONS and is_apart \
            and (words[verb + 1:verb + 2] == ["not"]) != (word == "no"):
        return None  # yes, it is not
    return word if is_apart or has_reason or reason.startswith("it ") else None


def _about_a_subject(unquoted: str) -> str | None:
    """The system has no solution; the series converges; no values of x; not true."""
    words = unquoted.lower().split()
    if words[0] == "no" and " ".join(word for word in words if len(word) > 1) in _NO_SUCH:
        return "\\emptyset"
    if words[0] in ("the", "this", "it", "there", "equation", "system") and len(words) < 9:
        for place in range(1, min(5, len(words))):
            if words[place] in _VERBS_OF_PHRASES and (said := phrase(" ".join(words[place:])) or phrase(" ".join(words[place + 1:]))):
                return said
    return "false" if words in (["not", "true"], ["untrue"]) else None


def _said_twice(unquoted: str) -> str | None:
    """No solution (\\emptyset); does not exist (DNE)."""
    parts = [part.strip() for part in unquoted.removesuffix(")").replace("(", ";").replace(",", ";").replace(" or ", ";").split(";")]
    one, other = (phrase(part) or part for part in parts) if len(parts) == 2 else ("", None)
    return one if one == other and [one, one] != parts else None


def _date(unquoted: str) -> str | None:
    """October 21st, 21 October, Oct. 21, the 4th of July 1776, 6\u670821\u65e5: "july 4 1776"."""
    parts = pieces(unquoted)
    if "".join(parts[1::2]) in ("月日", "月号", "年月日", "年月号") and all(map(str.isdecimal, parts[::2])):
        *year, month, day = parts[::2]
        return f'"{" ".join([_MONTHS[int(month) - 1], str(int(day)), *year])}"' if 1 <= int(month) <= 12 else None
    words = [word.lower() for word in parts if word[0].isalnum()]
    words = [word for word in words if word not in ("the", "of", "on", "st", "nd", "rd", "th")]
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


def _ordinal(unquoted: str) -> str | None:
    """The 6 of 6th, and of "the 6th term"."""
    words = unquoted.lower().removeprefix("the ").replace("^{", " ").replace("}", " ").split()
    digits = words[0].rstrip("stndrh") if words else ""
    suffix = words[0][len(digits):] if words else ""
    if not suffix and len(words) > 1:
        suffix = words.pop(1)
    is_ordinal = digits.isdecimal() and suffix in ("st", "nd", "rd", "th") and len(words) < 3 and _NUMBERED.issuperset(words[1:])
    return digits if is_ordinal else None


def _figure(unquoted: str) -> str | None:
    """Segment AB as AB, \\triangle ABC as words: its letters have an order."""
    unquoted = unquoted.removeprefix("line ") if "segment" in unquoted else unquoted
    kind, *letters = [part for part in pieces(unquoted) if part not in ("{", "}")] or [""]
    name, kind = "".join(letters), kind.lstrip("\\").lower()
    if not name.isalpha() or not name.isupper():
        return None
    if len(name) == 1 and kind == "angle":
        return f"angle {name}"
    if len(name) == 2 and kind in ("overleftrightarrow", "line"):
        return f"line {min(name, name[::-1])}"
    if len(name) == 2:
        return name if kind in ("overline", "segment", "side") else None
    return f"{kind} {min(name, name[::-1]) if kind == 'angle' else name}" if len(name) == 3 and kind in ("triangle", "angle") else None


def adjective(text: str) -> str | None:
    """odd of "odd function": the text without the noun behind it."""
    words = text.rsplit(" ", 1)
    return words[0] if len(words) == 2 and words[1] in _NOUNS_BEHIND and words[0].isalpha() else None
