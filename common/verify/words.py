"""The words of a text, and those that change the meaning of what stands beside them. The tables are the place for more words."""
from __future__ import annotations

import re
from itertools import pairwise

PIECE = re.compile(r"\\?[A-Za-z]+|\d+(?:\.\d+)?|[^\W\d_A-Za-z]+|\\?\S")  # words in other scripts are not split


def pieces(text: str) -> list[str]:
    """The words, numbers, commands and signs of a text, without the spaces between them."""
    return PIECE.findall(text)


def words_of(text: str) -> list[str]:
    """The words of a text, and the names of its commands."""
    return [piece.removeprefix("\\") for piece in PIECE.findall(text) if piece[-1].isalpha()]


def word_set(text: str) -> frozenset[str]:
    """The words of a table."""
    return frozenset(text.split())


def phrase_set(text: str) -> frozenset[str]:
    """The phrases of a table, with semicolons between them."""
    return frozenset(" ".join(phrase.split()) for phrase in text.split(";"))


# words that deny, hedge or join: an answer with such a word does not mean the same as the rest of the answer
_DENYING = word_set("""
    not cannot never no none neither nor except excluding excluded but unless without false wrong incorrect impossible if when either maybe
    perhaps possibly alternatively instead versus vs xor alias through until rather otherwise other anything""")
# words that compute something from the value beside them, or join it with another one
_COMPUTING = word_set("""
    or plus minus mod double doubled triple tripled half twice reciprocal opposite negative fail fails eliminated untrue union also
    negation converse""")
_POWERS = word_set("square squared cube cubed")
# words that change the number in front of them, where a unit would stand
_BEHIND_A_NUMBER = word_set("""
    too and then modulo base pi sqrt sin cos tan log ln exp to is isn are choose than where for times the more less
    dozen dozens hundred hundreds thousand thousands lakh crore score gross googol thou kilo mega micro milli giga
    sinh cosh tanh cosine sine reciprocals negatives inverse inverses opposites undefined unlikely probably below above
    greater fewer larger smaller onward onwards upward upwards percentile permille ppm prime halved quadrupled negated inverted rejected
    disproved reversed halfs halves quarter quarters divided over with which that from by at as factorial factorials infinity root
    zero zeros tens ones remainder minimum maximum one two three four five six seven eight nine ten twos threes fours fives
    sixs sevens eights nines third thirds power powers squares cubes pairs others always sometimes""")
# words behind a unit that say what is measured, and words that compare: 13 years old, 15 years ago, 5 more oranges
MEASURES = word_set("old long wide tall high deep thick apart away left remaining each together altogether total overall only all leftover")
COMPARISONS = word_set("""more fewer less ago later earlier older younger faster slower higher lower cheaper
    taller longer shorter heavier farther further""")
# verbs between a subject and its value
IS = word_set("is are equals was were")
HAS = word_set("""has have had needs need needed gets got costs cost takes took makes made earns earned pays paid sells sold spends spent
    saves saved weighs weighed travels traveled gives gave buys bought ate eats wins won reads read lasts uses used received receives
    lies occurs ends lands stops stands take save earn pay spend travel make get buy give last""")
_NUMERALS = tuple(word_set("""
    illion illions teen enty irty orty ifty ixty ghty nety fth fths xth xths nth nths hth hths dth dths less ward wards"""))
_NO_NUMERALS = word_set("month months ward wards width widths depth depths")
_UNITS_TO_SQUARE = ("unit", "m", "cm", "km", "met", "cent", "mil", "kil", "in", "fo", "fe", "yard")
_NO_NAMES = word_set("times bound fake guess than up until")
_CHINESE = frozenset("不非或和与没无负倍万亿百十半多少余减加乘除对双")


def denies(text: str) -> bool:
    """Whether a word of the text denies, hedges or joins. Words with capitals are names: "(B) No solution"."""
    return not _DENYING.isdisjoint(pieces(text)) or "n't" in text


def changes(text: str) -> bool:
    """Whether a word of the text denies, or computes something from a value. The square of "square units" does not."""
    words = pieces(text)
    squares = any(word == "square" and not unit.startswith(_UNITS_TO_SQUARE) for word, unit in pairwise([*words, ""]))
    return denies(text) or squares or not (_COMPUTING | _POWERS - {"square"}).isdisjoint(words)


def changes_name(text: str) -> bool:
    """Whether a name with such words is none: "twice x", "lower bound"."""
    return denies(text) or not (_COMPUTING | _POWERS | _NO_NAMES).isdisjoint(pieces(text.lower()))


def changes_number(text: str) -> bool:
    """Whether the words behind a number change its value: "million", "opposite", "or 6", "base 6"."""
    text = text.lower()
    words = pieces(text)
    if denies(text) or not (_COMPUTING | _BEHIND_A_NUMBER).isdisjoint(words):
        return True
    if any(word.startswith("infinit") or (word.endswith(_NUMERALS) and word not in _NO_NUMERALS) for word in words):
        return True
    is_thousand = any(not behind.startswith(tuple("克米瓦卡")) for behind in text.split("千")[1:])
    return is_thousand or (not text.isascii() and not _CHINESE.isdisjoint(text))
