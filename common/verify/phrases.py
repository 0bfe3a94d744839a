"""Words around an answer: what says nothing is taken away, and phrases that mean the same get one spelling.

All functions take and return normalized text, in which words may stand in double quotes. The tables are the place for more phrases.
"""
from __future__ import annotations

import re

from common.verify.words import changes, word_set

# one line for a meaning; the first phrase is its one spelling
_PHRASES = """
    yes
    no
    none
    true
    false
    \\emptyset; empty set; the empty set; no solution; no solutions; there is no solution; there are no solutions; no solution exists;
        no solutions exist; has no solution; has no solutions; no such solution; 无解; 方程无解; 没有解; 空集
    no real solution; no real solutions; there are no real solutions; no real roots
    infinitely many; infinitely many solutions; there are infinitely many; there are infinitely many solutions; infinite solutions;
        an infinite number of solutions; infinite number of solutions; an infinite number; 无穷多解; 无穷多个; 无数个
    does not exist; dne; d.n.e; doesn't exist; the limit does not exist; limit does not exist; 不存在; 极限不存在
    undefined; not defined; is undefined
    \\mathbb{R}; all real numbers; all reals; all real number; any real number; every real number; the real numbers; real numbers;
        all real values;
        the set of all real numbers; the set of real numbers; set of all real numbers; all real x; all real numbers x; the reals;
        所有实数; 全体实数; 任意实数; 实数集; 一切实数
    \\mathbb{Z}; all integers; the integers; the set of integers; the set of all integers; any integer; every integer
    impossible; it is impossible; not possible; it is not possible
    no such number; no such number exists; no such integer exists; there is no such number
"""
_SPELLINGS = {phrase.strip(): group.partition(";")[0].strip()
              for group in re.sub(r";\s*\n", ";", _PHRASES).strip().split("\n") for phrase in group.split(";")}

# "The value of f(x) is": no number, one verb, no word that hedges
_LEAD_IN = re.compile(r"(?:so|thus|therefore|hence|then|there|the|this|our|its?|final|answer)\b"
                      r"(?:(?!\b(?:is|are|equals)\b)[A-Za-z() '])*+"
                      r"\b(?:is|are|equals)\b:?\s+(?=\S)(?!.*\b(?:is|are|equals)\b)", re.IGNORECASE)
_ANSWER = re.compile(r"(?:the )?(?:final )?answers?\b:?\s+(?=\S)", re.IGNORECASE)
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# a sentence with one formula (\x00) that says nothing else: "We find that ... is our answer."
_SENTENCE_AROUND_FORMULA = re.compile(
    r"(?:(?:so|thus|therefore|hence|then|we|find|get|have|obtain|see|conclude|that|here|is|are|the|a|an|this|our|final|"
    r"answer|solution|result|value|values|equation|inequality|matrix|zero|special|set|interval|expression|equals|it|must"
    r"|be)[,:]?\s+)*\x00\s*"
    r"(?:is\s+(?:the|our|a)\s+(?:final\s+)?(?:solution|answer|result))?[.!\s]*", re.IGNORECASE)
# the letter of a multiple choice, alone or with its text: "Option B", "(D) Alina", "B) 12"
_CHOICE = re.compile(r"(?:(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s+|故?应?选项?\s*|答案[是为]?\s*))?"
                     r"\(?([A-Z])\)?[.:),]?(?:\s*选项|\s+is (?:correct|right|true))?")
_CHOICE_WITH_TEXT = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\(([A-Z])\)|([A-J])[).:]|([A-J])(?=\x00))[\s\x00]*(?!and\b)"
                               r"(?!.*(?:\([A-J]\)|(?<![A-Za-z])[A-J][).]))(?:[A-Za-z]+(?:[ ,'-]+[A-Za-z0-9%]+)*\.?|[-$]?\d.*"
                               r"|-?\\(?:frac|sqrt|pi).*|(?<=\s)[a-z]\s*(?:[=<>]|\\[lg]e).*|(?<=\s)\\\{.*)", re.DOTALL)
_MARK_OF_CHOICE = re.compile(r'"?\s*(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\(\s*"?\s*[A-Z]\s*"?\s*\)|[A-J]\s*"?\s*[).:]|[A-J]\s*"(?=\s))\s*"?')
_INTEGER_LETTER = re.compile(r'(?<![A-Za-z\\])([a-z])\s*\\in\s*\\mathbb\{Z\}|(?<![A-Za-z\\])([a-z])[\s"]*is (?:an|any) integer'
                             r'|integers?[\s"]*([a-z])(?![A-Za-z])')
_ROUNDING = re.compile(r'(?<=\d)[\s,(]+(?:correct |rounded )?(?:to )?(?:the nearest [a-z]+|(?:\d+|one|two|three|four)\s*'
                       r'(?:d\.?\s?p\.?|decimal places?|s\.?\s?f\.?|sig\.? figs?|significant (?:figures|digits)))[\s)]*$', re.IGNORECASE)
_IN_FRONT = re.compile(r'^["\s]*(?:(?![^为是共有约答得]*[不非无没负除至])[\u4e00-\u9fff]{0,7}[为是共有约答得][:]?["\s]*|'
                       r'(?:(?:the )?(?:ordered )?(?:point|origin|vertex|cent(?:er|re)|focus|midpoint|'
                       r'coordinates|pair|triple|vector|interval|matrix|number|value|line|'
                       r'equation|function)|a total of|approximately|'
                       r'approx\.?|about|roughly|around|exactly|only|\\approx|\\sim)["\s]+)(?=[-\d\\$.([])',
                       re.IGNORECASE)
_BEHIND = re.compile(r'(?<=\S)[\s",(]+(?:respectively|in total|total|altogether|exactly|approximately|approx\.?)[\s".)]*$', re.IGNORECASE)
_APPROXIMATION = re.compile(r'(?<=[\w)}])[\s",;]*+(?:or\b)?[\s"(,]*+(?:\\approx|(?:which is )?(?:about|approximately|approx\.?'
                            r'|roughly))[\s"]*+'
                            r'(-?(?:\d++(?:\.\d++)?|\.\d++))(?:[\s"]*+(?:[A-Za-z]+|\\?%))?[\s")]*$', re.IGNORECASE)
_QUALIFIER = re.compile(r'[\s,;("]*+(?:(?<![A-Za-z\\])(?:for|where|with)\b|\\forall)'
                        r'|[,;(][\s"]*+(?:and[\s"]++)?+(?=[A-Za-z](?:_\w)?[\s,]*+(?:[A-Za-z][\s,]*+)?'
                        r'(?:\\in(?![a-z])|"?\s*+(?:is|an|any|are)\b))|\s(?=[A-Za-z]\s*\\in(?![a-z]))')
# g(x) = \sqrt{x-1}, x \ge 1 and a_n = 1/n, n \ge 1
_DOMAIN = re.compile(r'([a-z](?:\(([a-z])\)|_\{?([a-z])\}?)\s*+=[^,=<>]++),[\s"(]*+([a-z])\s*+(?:\\[gl]e|\\neq|[<>])[^,]*+')
_QUALIFIER_WORDS = word_set("for all any every each some where with is are an integer integers real reals number"
                                                " numbers constant constants "
                             "arbitrary value values of and being the integration in")
_QUALIFIER_SIGNS = re.compile(r'(?:[A-Za-z](?:_\w)?|\\in|\\forall|\\mathbb\{[ZR]\}|[\s,"();])*')
_WITH_BASE = re.compile(r'"?(-?[\dA-F]+)["\s]*[(]?["\s]*(?:in\s+)?base["\s-]*\{?(\d+|[a-z]+)\}?["\s)]*', re.IGNORECASE)
_RATIO_IN_WORDS = re.compile(r'\d[\d.]*(?:["\s]+to["\s]+\d[\d.]*)+')
# all real numbers greater than 2; all x > 2
_ALL_THAT = re.compile(r'"?\s*(?:for )?(?:all|any|every)[\s"]+(?:real[\s"]+)?(?:(?:numbers?|values?)[\s"]+)?(?:of[\s"]+)?(?:([a-z])[\s"]*)?'
                       r'(?:such that[\s"]+|with[\s"]+)?(?=[<>]|\\[lg]e |[a-z]\s*(?:[<>]|\\[lg]e )|(?:that are |which are )?'
                       r'(?:greater|less|more|at)\b)', re.IGNORECASE)
_COMPARISONS = [(re.compile(rf'"?\s*(?:(?:that|which) are )?\b(?:{words})\b[\s"]*', re.IGNORECASE), sign) for words, sign in (
    ("greater than or equal to|at least", "\\ge "), ("less than or equal to|at most", "\\le "), ("greater than|more than", ">"),
    ("less than", "<"))]
_MAPPING = re.compile(r'(?:([A-Za-z])\s*:\s*)?([a-z])\s*\\mapsto\s*(.+)', re.DOTALL)
_REALS_BUT = re.compile(r'["\s]*(?:x[\s"]*(?:\\in|is|can be)[\s"]*)?(?:\\mathbb\{R\}|(?:all|any|the|every) real (?:numbers?|values?)|all'
                        r' reals)'
                        r'(?:[\s"]*x)?[\s",(]*(?:except|other than|excluding|but not|where|with|such that'
                        r'|,)(?:[\s"]*for)?[\s"]*(.+?)["\s)]*', re.IGNORECASE)


def formula_in_a_sentence(answer: str) -> str:
    """The formula, if the answer is a sentence that says nothing besides one formula. Else the whole answer."""
    formulas = _FORMULA.findall(answer) if "$" in answer or "\\" in answer else []
    if len(formulas) == 1 and _SENTENCE_AROUND_FORMULA.fullmatch(_FORMULA.sub("\x00", answer)):
        return next(filter(None, formulas[0]))
    return answer


def phrase(text: str) -> str | None:
    """The one spelling of a phrase, or None for a text that is in no table."""
    if not text[:1].isalpha() and text[:1] != '"':
        return None
    return _SPELLINGS.get(" ".join(text.replace('"', " ").lower().rstrip(". ").split()))


def choice_letter(text: str) -> str | None:
    """The letter, if the text is one choice of a multiple-choice question."""
    if len(text) > 1 and not text.startswith(("(", '"', "O", "o", "C", "c")) and text.isascii() and text[1] not in ").: ":
        return None
    marked = re.sub(r'^"\s*([A-J])\s*"\s+(?=[\d\\"])', "\\1\x00", text)  # \text{B} \quad 12
    plain = " ".join(marked.replace('"', " ").replace("\x00", " \x00 ").split()).replace(" \x00 ", "\x00")
    choice = _CHOICE.fullmatch(plain) or _CHOICE_WITH_TEXT.fullmatch(plain)
    if choice and choice.re is _CHOICE_WITH_TEXT and changes(plain[choice.end(choice.lastindex or 0):]):
        return None
    return next(filter(None, choice.groups())) if choice else None


def text_of_choice(text: str) -> str | None:
    """The text behind the letter of a choice: 12 in (B) 12. None for the letter alone."""
    found = _MARK_OF_CHOICE.match(text.lstrip())
    rest = text.lstrip()[found.end():].strip() if found else ""
    rest += '"' if rest.count('"') % 2 else ""
    return None if not rest or choice_letter(rest) else rest


def integer_letter(text: str) -> str | None:
    """The letter that stands for any integer, as in "k \\in \\mathbb{Z}" and "where n is an integer"."""
    if "\\mathbb{Z}" not in text and "integer" not in text:
        return None
    found = _INTEGER_LETTER.search(text)
    return next(filter(None, found.groups())) if found else None


def without_words_around(text: str) -> str:
    """The text without words that say nothing about its value: "The answer is", "approximately", "for all x", "(base 2)" as _2."""
    unquoted = text.replace('"', "")
    lead_in = _LEAD_IN.match(unquoted)
    if not lead_in or changes(unquoted.lower()):
        lead_in = _ANSWER.match(unquoted)
    if lead_in and unquoted[lead_in.end():]:
        text = unquoted[lead_in.end():]
    text = re.sub(r"^[A-Z]'?\s*(?=\([^()]*,[^()]*\)$)", "", text)  # P(1, 2)
    if text.isascii() and not any(map(str.isalpha, text)):
        return text
    if rounding := _ROUNDING.search(text.replace('"', "")):
        text = text.replace('"', "")[:rounding.start()]
    text = _BEHIND.sub("", _IN_FRONT.sub("", text, count=1)) if " " in text or not text.isascii() else text
    text += '"' * (text.count('"') % 2)
    text = without_qualifier(text)
    if found := _WITH_BASE.fullmatch(text):
        return f"{found[1]}_{{{found[2]}}}"
    if found := _RATIO_IN_WORDS.fullmatch(text):
        return re.sub(r'["\s]+to["\s]+', ":", text)
    if found := _ALL_THAT.match(text):
        rest = text[found.end():]
        for words, sign in _COMPARISONS:
            rest = words.sub(lambda _, sign=sign: sign, rest, count=1)
        text = (found[1] or "x") + rest if rest[0] in "<>\\" else rest
        text += '"' * (text.count('"') % 2)
    if found := _REALS_BUT.fullmatch(text):
        # ", x \\neq 3" excludes 3, ", x = 3" does not
        is_condition = any(word in text[:found.start(1)] for word in ("where", "with", "such", ","))
        kept = found[1].replace("\\neq", "=")
        if ("\\neq" in found[1] or not is_condition) and not re.search(r"[<>]|\\[lg]e(?![a-z])", kept):
            values = re.sub(r'(?<![A-Za-z\\])[a-z]\s*=|[\s"]*\b(?:and|or)\b[\s"]*', lambda m: "" if "=" in m[0] else ",", kept)
            return f"\\mathbb{{R}}\\setminus\\{{{values}\\}}"
    if "\\to" in text:  # f: R \to R, f(x) = x^2
        text = re.sub(r"^[a-z]\s*:\s*\S+\s*\\to\s*\S+?\s*,\s*", "", text)
    if "\\mapsto" in text and (found := _MAPPING.fullmatch(text)):
        return f"{found[1] or 'f'}({found[2]})={found[3]}"
    if "\\equiv" in text and "mod" not in text:
        text = text.replace("\\equiv", "=")
    return text


def without_qualifier(text: str) -> str:
    """The text without "for all x", ", k \\in \\mathbb{Z}", "where C is a constant" and the like behind it."""
    domain = _DOMAIN.fullmatch(text)
    if domain and domain[4] in (domain[2], domain[3]):
        return domain[1].rstrip(' "(')
    if "\\in" not in text and "\\forall" not in text and not re.search(r"\b(?:for|where|with|is|are)\b", text):
        return text
    for found in _QUALIFIER.finditer(text):
        head, tail = text[:found.start()].rstrip(' ",;'), text[found.start():]
        words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}(?![^{]*\})", tail)
        if head.replace('"', "") and {word.lower() for word in words} <= _QUALIFIER_WORDS:
            signs = re.sub(r"(?<![\\A-Za-z{])[A-Za-z]{2,}", " ", tail)
            if ("\\in" in tail or len(tail.replace('"', "").split()) > 1) and _QUALIFIER_SIGNS.fullmatch(signs):
                return head + '"' * (head.count('"') % 2)
    return text


def approximation_behind(text: str) -> tuple[str, str] | None:
    """The text in front of an approximation, and the approximation: "\\frac{13}{7} (about 1.86)" is two."""
    found = _APPROXIMATION.search(text) if "a" in text or "r" in text else None
    if not found or not text[:found.start()].strip():
        return None
    head = text[:found.start()]
    return head + '"' * (head.count('"') % 2), found[1]
