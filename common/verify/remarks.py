"""What stands around an answer and only says what it is: labels, sentences, remarks and conditions. All texts are normalized.

`without_remarks` takes it away and keeps its words, because the minimum 5 is not the maximum 5. The tables are the place for more words.
"""
from __future__ import annotations

import re

from common.verify.phrases import integer_letter
from common.verify.spelling import bracket_depths, split_outside_brackets
from common.verify.units import known_unit
from common.verify.wording import NUMBERS
from common.verify.words import COMPARISONS, HAS, IS, PIECE, changes, changes_name, changes_number, phrase_set, pieces, word_set, words_of

# a label with such a word names no answer
_NO_LABELS = word_set("step case part bound guess attempt error check note hint estimate option choice assumption hypothesis given problem")
_NO_WORDS_OF_LABELS = word_set("sin cos tan cot sec csc log exp ln lim gcd lcm if for when where otherwise such that")
_DENYING_SIGNS = frozenset("不非没无负倍半多少至")
_BEGIN_NUMBERS = word_set(r"\frac \sqrt \pi \infty")
_EMPTY_WORDS = word_set("the a an of is are so thus hence therefore final answer solution result value total our this it its and")
# quantities that stand before their value without a colon
_QUANTITIES = word_set("""remainder degree slope area perimeter radius diameter length width height distance volume speed probability sum
    product difference quotient minimum maximum min max mean median mode average range answer total coefficient constant digit period
    amplitude rank order index page grade vertex focus profit loss cost price balance rate fare fee salary score capacity savings gain
    charge weight mass age size count day year row column level term ratio maximum-value line curve circle parabola ellipse hyperbola plane
    point equation function center centre midpoint intercept asymptote interval domain solution result""")
_CONNECTIVES = word_set("""so thus therefore hence then get have find obtain conclude only exactly just after in every we it follows that
    所以 因此 于是 从而 因而 statement statements""")
_WORDS_IN_FRONT = _QUANTITIES | _CONNECTIVES | word_set("""the an of is at units tens minimal maximal least greatest smallest largest total
    final""")
_HAVE_CONTENT = _WORDS_IN_FRONT - word_set("the an of is at it we that least every total")
_NO_BEGINNING = word_set(r"""+ . * / ^ _ = < > , ; : ! ) ] } | ' \triangle \angle \overline \vec \le \ge \neq \in \approx \cdot
    \times""")
_FORMS_OF_NUMBERS = word_set("""a an the simplest simplified lowest reduced factored expanded standard form terms decimal fraction
    percentage percent scientific notation mixed improper number""")
_ROOTS = phrase_set("double root; repeated root; triple root; a double root; a repeated root; with multiplicity; multiplicity")
_CONCLUDING = word_set("so thus therefore hence then")
_PLACES = word_set("at when attained achieved occurring occurs reached only if")
_WHAT_IT_IS = word_set("the our only final required desired correct unique solution answer value root result number possible")
_NO_SUBJECTS = word_set("yes no true false because since nobody nothing everybody guess guesses attempt estimate")
_BEHIND_VERBS = word_set(': " equal to given by located exactly only at')
_VERDICTS = {"correct": "true", "right": "true", "incorrect": "false", "wrong": "false", "true": "true", "false": "false"}
_WINNERS = frozenset({"correct", "right", "the winner", "the champion", "the answer"})
_STATEMENTS = word_set("statement claim proposition assertion conjecture it this that")
_NO_STATEMENTS = word_set("negation converse inverse opposite")

# words of a remark behind that say nothing about the value, and words of a reason that says something
_PLAIN_WORDS = word_set("""the a an is are to at by with from for only in of that as exact value values nearest tens ones tenth tenths
    hundredth hundredths thousandth cent cents dollar whole integer number minimum maximum root rounded correct simplest simplified lowest
    reduced form terms improper mixed proper decimal fraction total together altogether unique single solution answer final units
    longest shortest largest smallest greatest least side leg hypotenuse approximately which required desired claimed expected""")
_REFUSING = word_set("""wrong incorrect false guess guessed guessing unsure mistake mistaken yes or unless but
    except answer excluded""")
_STARTS_OF_REMARKS = ("as ", "since ", "because ", "rounded", "correct to", "the only ", "which is ", "by ")
_CONDITION_WORDS = word_set("""for all any every each where with and such that real positive negative nonnegative natural integer integers
    number numbers rational nonzero value values of is are a an the given whenever constants constant arbitrary provided non""")
_SET = r"\\mathbb\{?[A-Z]\}?(?:[\^_]\{?[*+\d>\\ge]+\}?)?"
_CONDITION = re.compile(rf"([A-Za-z](?:_\w)?(?:,[A-Za-z](?:_\w)?)*)(?:\\in{_SET}|(?:\\[gl]e|\\neq|[<>])-?[\w/]+(?:,-?\d+)*)?")
_PLACE = re.compile(r"[a-z](?:_\w)?\s*=[^=<>,;]+|\([^()=<>]+\)")
_SIGNS = word_set(r"\ge \le \neq \in \approx \equiv \to = < >")
_FOR = re.compile(r'[\s,]*"\s*(?:,\s*)?(?:for (?:all|every|any|each)|whenever|for|where|with|when|provided|at|attained'
                  r'|occurring|achieved)\b|\s\\forall(?![a-z])')
_NO_FAMILY = ("\\mathbb{Z}^", "\\mathbb{Z}_", "positive", "natural", "nonnegative", "non-negative")
_FOR_ALL_INSIDE = re.compile(r'"\s*for (?:all|every|any|each)[a-z -]*"\s*[a-z]\s*(?=,)')
_THAT_IS = re.compile(r'\b(?:or equivalently|or|i\.e\.|that is|which is)(?=[\s",])')
_LETTER = re.compile(r"\\[a-z]+|([A-Za-z](?:_\w)?)")
_COUNTED = re.compile(r'((?:\d|[\^{}.])+\s*"[a-z -]*+)"?\s*+(?:[A-Za-z](?:_\w)?|\([a-z](?:,\s*[a-z])*\))"?')


def without_remarks(text: str) -> tuple[str, frozenset[str]]:
    """The answer without what stands around it, and the words and conditions that stood there."""
    words: set[str] = set()
    for _ in range(3):
        before = text
        for take_off in (_without_label, _without_sentence, _without_words_in_front, _without_remark_behind, _without_condition):
            text, taken = take_off(text)
            words.update(taken)
        if text == before:
            break
    return text, frozenset(words)


def say_different(words: frozenset[str], others: frozenset[str]) -> bool:
    """Whether two answers are about different things: a minimum and a maximum, x \\neq 2 and x \\neq 3."""
    return not words <= others and not others <= words


def part_with_quotes(text: str) -> str:
    """A part of a text without the quote at its edge whose partner is in another part. A quote inside is closed at the end."""
    text = text.strip()
    if text.count('"') % 2 == 0:
        return text
    return text[1:].strip() if text[0] == '"' else text[:-1].strip() if text[-1] == '"' else f'{text}"'


def _opened(text: str) -> str:
    """The end of a text. A quote that closes in it and opens in front of it opens at its start."""
    text = text.strip()
    return f'"{text}' if text.count('"') % 2 and text[0] != '"' else part_with_quotes(text)


def _said(text: str) -> list[str]:
    """The words with content."""
    return [word for word in words_of(text.lower()) if word not in _EMPTY_WORDS]


def _without_label(text: str) -> tuple[str, list[str]]:
    """Vertex: (1, 2); units digit: 3."""
    label, colon, rest = text.partition(":")
    if colon and rest.strip(' "') and rest[0] != "=" and _is_label(label.replace('"', " ")):
        return _opened(rest), _said(label)
    return text, []


def _without_words_in_front(text: str) -> tuple[str, list[str]]:
    """Remainder 2; a profit of 45; therefore x = 6; the line y = 2x + 1."""
    unquoted = text.replace('"', " ")
    words = []
    for found in PIECE.finditer(unquoted):
        word = found[0].lower()
        if (word == "a" and unquoted[found.end():found.end() + 3].strip().isalpha()) or (word == "," and words):
            continue
        if not word[0].isalpha() or len(word) == 1 or word in NUMBERS or set(word) <= {"i", "v"}:
            break
        if word not in _WORDS_IN_FRONT and words and _CONCLUDING.issuperset(words):
            break
        if word not in _WORDS_IN_FRONT or (words[-1:] == ["at"] and word == "least"):
            return text, []
        words.append(word)
    else:
        return text, []
    start = found.start()
    if _CONCLUDING.issuperset(words) and (found[0] in ("|", "(") or found[0][0] == "\\") and words:
        return _opened(text[start:]), []
    is_time = words == ["at"] and ":" in text
    # after 1:03 PM is another time, but after 45 days is how many
    if not words or words[-1] in ("the", "an") or not (_HAVE_CONTENT & {*words} or is_time) or found[0] in _NO_BEGINNING \
            or ("after" in words and ":" in text) or (found[0] == "(" and not _begins_number(unquoted[start + 1:])):
        return text, []
    return _opened(text[start:]), _said(unquoted[:start])


def _begins_number(text: str) -> bool:
    """Whether a number is in front, perhaps with a minus sign."""
    first = next((piece for piece in pieces(text[:20]) if piece != "-"), "x")
    return first[0].isdecimal() or first in _BEGIN_NUMBERS


def _is_label(label: str) -> bool:
    """Whether words name what stands behind their colon."""
    tokens = label.split()
    words = [token.strip("()*',.").lower() for token in tokens]
    are_words = all(word.replace("-", "").replace("'", "").isalnum() and (word[0].isalpha() or "-" in word) for word in words if word)
    has_word = any((len(word) > 2 and not (token.isupper() and len(token) < 7)) or not word.isascii()
                   for word, token in zip(words, tokens, strict=True))
    return 0 < len(tokens) < 9 and are_words and has_word and _NO_LABELS.isdisjoint(words) and _NO_WORDS_OF_LABELS.isdisjoint(words) \
        and not changes_name(label.lower()) and _DENYING_SIGNS.isdisjoint(label)


def _without_sentence(text: str) -> tuple[str, list[str]]:
    """The goat is at (6, 5). Tom has 5 apples. The function is odd."""
    unquoted = text.replace('"', " ")
    found = [(match, match[0].lower()) for match in PIECE.finditer(unquoted) if match[0].isalpha()]
    verbs = [match for match, word in found if word in IS] or [match for match, word in found if word in HAS]
    if len(verbs) != 1 or found[0][0] is verbs[0]:
        return text, []
    subject, start = unquoted[:verbs[0].start()], verbs[0].end()
    start = next((match.start() for match in PIECE.finditer(text, start) if match[0].lower() not in _BEHIND_VERBS), len(text))
    rest = text[start:]
    words = words_of(subject.lower())
    if not rest.strip(' "') or any(c in "0123456789=<>,:" for c in subject) or len(words[0]) < 2 \
            or not subject.strip()[0].isalpha() or not _NO_SUBJECTS.isdisjoint(words):
        return text, []
    said = rest.replace('"', " ").strip(" .").lower()
    if said in _VERDICTS and not _STATEMENTS.isdisjoint(words) and _NO_STATEMENTS.isdisjoint(words) and not changes(subject.lower()):
        return _VERDICTS[said], []
    if said in _WINNERS or (len(words) == 1 and subject.strip().istitle() and said.startswith(("the ", "first")) and said.endswith("st")):
        return text, []  # Alice is the tallest
    is_number = rest.strip(' "')[:1] in tuple("0123456789-$\\([") or said.partition(" ")[0] in NUMBERS
    if changes(unquoted.lower()) or not (is_number or verbs[0][0].lower() in IS):
        return text, []
    return _opened(rest), [word for word in _said(subject) if word in ("minimum", "maximum", "smallest", "largest", "least", "greatest")]


def _without_remark_behind(text: str) -> tuple[str, list[str]]:
    """5 (the only value); 15.17, rounded to the nearest cent; 5 values of p."""
    if counted := _COUNTED.fullmatch(text):
        nouns = counted[1].rstrip().removesuffix(" of")
        if nouns.endswith("s") and not changes_number(nouns.partition('"')[2].replace("pairs", "").replace("roots", "")):
            return nouns.replace("pairs", "solutions") + '"', []
    unquoted = text.replace('"', " ").rstrip()
    if unquoted.endswith(" only") and len(unquoted) > 6:
        return part_with_quotes(text[:len(unquoted) - 5]), []
    for word in (" since ", " because "):  # "(since" too
        head, found, reason = unquoted.replace("(since", " since").replace("(because", " because").partition(word)
        if found and any(map(str.isdecimal, head)) and _REFUSING.isdisjoint(words_of(reason.lower())):
            return part_with_quotes(text[:len(head)]).rstrip(' ,"('), []
    for word in (" in ", " as "):
        head, found, said = unquoted.rpartition(word)
        if found and said.strip() and _FORMS_OF_NUMBERS.issuperset(said.split()):
            return part_with_quotes(text[:len(head)]), []
    before, verb, said = text.replace('"', " ").rpartition(" is ")
    if verb and "the" in said.split() and set(said.split()) <= _WHAT_IT_IS:
        return part_with_quotes(text[:len(before)]), []
    stripped = text.rstrip(' "')
    if stripped.endswith(")"):
        depths = bracket_depths(stripped)
        start = max((place for place, c in enumerate(stripped) if c == "(" and depths[place] == depths[-1]), default=0)
        head, remark = text[:start], stripped[start + 1:-1].replace('"', " ").strip()
        has_content = any(piece[0].isdecimal() or len(piece) > 2 for piece in pieces(head))
        if has_content and head[-1] in ' "' and _is_remark(remark, head):
            return part_with_quotes(head), _said(remark)
    parts = split_outside_brackets(text, ",")
    remark = parts[-1].replace('"', " ").strip().lower()
    if len(parts) > 1 and remark.startswith(_STARTS_OF_REMARKS) and _is_remark(remark, ",".join(parts[:-1])):
        return part_with_quotes(",".join(parts[:-1])), _said(remark) if remark.startswith("the ") else []
    return text, []


def _is_remark(remark: str, head: str) -> bool:
    """Whether words behind an answer, the head, leave it as it is. A unit in brackets is no remark."""
    words = words_of(remark.lower())
    if words[:1] in (["discard"], ["reject"]) and any(map(str.isdecimal, remark)):  # 2 (reject x = -2)
        return remark.rpartition(" ")[2].rpartition("=")[2] != head.replace('"', " ").rpartition("=")[2].strip()
    if words[:1] in (["since"], ["because"]):
        return remark.isascii() and not changes(remark.lower()) and _REFUSING.isdisjoint(words)
    if " ".join(words) in _ROOTS:
        return True
    is_plain = any(len(word) > 3 for word in words) and _PLAIN_WORDS.issuperset(words) and not all(map(known_unit, words))
    return is_plain and not any(c.isdecimal() or c in "\\=" for c in remark)


def _without_condition(text: str) -> tuple[str, list[str]]:
    """n(n - 1), n \\in \\mathbb{N}; 2n for all n \\ge 2; a_n = 3n - 1 (n \\ge 1); \\binom{n}{2}, where n is the number of points."""
    text = _FOR_ALL_INSIDE.sub("", text)
    letter = integer_letter(text)
    if letter and f"({letter})" not in text and not any(sign in text for sign in _NO_FAMILY):
        return text, []  # a family of solutions
    parts = split_outside_brackets(text, ",")
    for place in range(max(1, len(parts) - 4), len(parts)):
        found = _split_condition(",".join(parts[:place]), ",".join(parts[place:]))
        if found:
            return found
    for match in _FOR.finditer(text):
        found = _split_condition(text[:match.start()], text[match.start():])
        if found:
            return found
    stripped = text.rstrip(' "')
    if stripped.endswith(")") and (start := stripped.rfind("(")) > 0 and stripped[start - 1] in ' "':
        return _split_condition(text[:start], stripped[start + 1:-1]) or (text, [])
    return text, []


def _split_condition(head: str, tail: str) -> tuple[str, list[str]] | None:
    """The head, if the tail is a condition on its letters and leaves it the same expression."""
    letters = set(filter(None, _LETTER.findall(head.replace("_{", "_"))))
    letters |= {letter[0] for letter in letters}
    if tail.count(")") > tail.count("("):  # (at x = 2)
        head = head.rstrip(' "').removesuffix("(")
    operators = [piece for piece in pieces(head) if piece in _SIGNS]
    name = head.partition("=")[0].strip(' "') if operators else ""
    if operators not in ([], ["="]) or '"' in head.strip(' "'):
        return None
    unquoted = " ".join(tail.replace('"', " ").split()).replace(" a ", " ")
    meaning = re.fullmatch(r"[, ]*where ([A-Za-z](?:_\w)?) (?:is|are|denotes|represents|stands for) ([a-z -]+)", unquoted)
    are_numbers = meaning and not (COMPARISONS | {*NUMBERS}).isdisjoint(meaning[2].split())
    if meaning and meaning[1] in letters and not changes(meaning[2]) and not are_numbers and len(name) != 1:
        return part_with_quotes(head), []
    words = words_of(re.sub(r"\\[a-z]+(?:\{[A-Z]\})?|(?<![A-Za-z])[A-Za-z](?![A-Za-z])", " ", unquoted.lower()))
    if words and set(words) <= _PLACES and not operators and {"at", "when"} & set(words):
        place = unquoted[max(unquoted.rfind(word) + len(word) for word in words):].strip(" ()")
        is_place = _PLACE.fullmatch(place) and place[0] not in letters
        return (part_with_quotes(head), [place.replace(" ", "")]) if is_place else None
    if not set(words) <= _CONDITION_WORDS:
        return None
    signs = re.sub(r"(?<![A-Za-z\\{])[A-Za-z]{2,}(?:-(?=[a-z]))?|\\forall|[\s\"]|,$", "", unquoted).strip(",")
    condition = _CONDITION.fullmatch(signs.replace("(", "").replace(")", "") if signs.count("(") == signs.count(")") else signs)
    if not condition or not (words or len(condition[0]) > len(condition[1])) or re.match(r"[i-n](?:<|\\le)", signs):
        return None
    is_for_all = bool({"all", "every", "any", "each"} & set(words))
    is_plain_name = name == condition[1] or (operators and len(name) == 1 and not is_for_all and name not in "yfg")
    names = set(condition[1].split(","))
    if not names <= letters or is_plain_name or (not operators and head.strip(' "') in names):
        return None
    return part_with_quotes(head), [signs] if not _SIGNS.isdisjoint(pieces(signs)) and "\\in" not in signs else []


def _without_or(text: str) -> str:
    """The text without "or", "i.e." or an equals sign in front."""
    return text.lstrip(' "=').removeprefix("or").removeprefix("i.e.").removeprefix("equals").lstrip(' "=,')


def said_in_two_ways(text: str) -> list[tuple[str, str, str]]:
    """The separator and the two halves of an answer that may say one thing in two ways: 7/2 or 3.5, x < 5: (-\\infty, 5)."""
    halves = []
    may_differ = {":": True, "=": any(sign in text for sign in ('"', "%", "\\circ")), ",": "(" in text or "[" in text}
    for separator in (sign for sign, found in may_differ.items() if found):
        parts = split_outside_brackets(text, separator)
        halves += [(separator, parts[0], parts[1])] if len(parts) == 2 else []
    parts = _THAT_IS.split(text)
    halves += [("or", parts[0].rstrip(" ,;"), parts[1].lstrip(" ,"))] if len(parts) == 2 else []
    stripped = text.rstrip(' "')
    if stripped.endswith(")"):
        depths = bracket_depths(stripped)
        start = max((place for place, c in enumerate(stripped) if c == "(" and depths[place] == depths[-1]), default=0)
        halves += [("(", text[:start], _without_or(stripped[start + 1:-1]))] if text[:start].strip(' "') else []
    halves = [(separator, one, other) for separator, one, other in halves if one.strip(' "') and other.strip(' "')]
    return [(separator, part_with_quotes(one).strip(" ,;"), other[:-1] if other.count('"') == 1 and other[-1] == '"' else _opened(other))
            for separator, one, other in halves]
