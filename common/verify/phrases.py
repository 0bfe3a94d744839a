"""Words around an answer: what says nothing is taken away, and phrases that mean the same get one spelling.

All functions take and return normalized text, in which words may stand in double quotes. The tables are the place for more phrases.
"""
from __future__ import annotations

import re

from common.verify.words import PIECE, changes, changes_number, phrase_set, pieces, word_set

# phrases with one meaning, by their one spelling
_SPELLINGS = {phrase: spelling for spelling, phrases in {
    "yes": "yes", "no": "no", "none": "none", "true": "true", "false": "false", "undefined": "undefined; not defined; is undefined",
    "\\emptyset": """empty set; the empty set; no solution; no solutions; there is no solution; there are no solutions; no solution exists;
        no solutions exist; has no solution; has no solutions; no such solution; 无解; 方程无解; 没有解; 空集""",
    "no real solution": "no real solution; no real solutions; there are no real solutions; no real roots; there are no real roots",
    "cannot be determined": """cannot be determined; it cannot be determined; cannot determine; can't be determined; not enough information;
        it can't be determined; insufficient information; there is not enough information; not enough information to determine""",
    "converges": "converges; convergent; is convergent; converge", "diverges": "diverges; divergent; is divergent; diverge",
    "infinitely many": """infinitely many; infinitely many solutions; there are infinitely many; there are infinitely many solutions;
        infinite solutions; an infinite number of solutions; infinite number of solutions; an infinite number; 无穷多解; 无穷多个;
        无数个""",
    "does not exist": """does not exist; dne; d.n.e; doesn't exist; the limit does not exist; limit does not exist; 不存在; 极限不存在""",
    "\\mathbb{R}": """all real numbers; all reals; all real number; any real number; every real number; the real numbers; real numbers;
        all real values; the set of all real numbers; the set of real numbers; set of all real numbers; all real x; all real numbers x;
        the reals; 所有实数; 全体实数; 任意实数; 实数集; 一切实数""",
    "\\mathbb{Z}": "all integers; the integers; the set of integers; the set of all integers; any integer; every integer",
    "impossible": "impossible; it is impossible; not possible; it is not possible",
    "no such number": "no such number; no such number exists; no such integer exists; there is no such number",
}.items() for phrase in phrase_set(phrases)}

_VERBS = word_set("is are equals")
_LEAD_INS = ("so ", "thus ", "therefore ", "hence ", "then ", "there ", "the ", "this ", "our ", "it ", "its ", "final ", "answer ")
# words of a sentence that says nothing besides one formula: "We find that ... is our answer."
_SENTENCE_WORDS = _VERBS | word_set("""so thus therefore hence then the this our it final answer we find get have obtain see conclude that
    here a an solution result value values equation inequality matrix zero special set interval expression must be""")
_IN_FRONT = phrase_set("""point; ordered pair; ordered triple; origin; vertex; center; centre; focus; midpoint; coordinates; pair; triple;
    vector; interval; matrix; number; value; line; equation; function; a total of; approximately; approx; about; roughly; around;
    exactly; only""")
_BEHIND = ("respectively", "in total", "total", "altogether", "exactly", "approximately", "approx")
_BEHIND_A_LETTER = phrase_set("; 选项; is correct; is right; is true")
_QUALIFIERS = word_set(r"for where with \forall")
_QUALIFIER_PARTS = _QUALIFIERS | word_set(r"""all any every each some is are an integer integers real reals number numbers constant
    constants arbitrary value values of and being the integration in \in \mathbb { } _ , ; ( ) " """)
_INEQUALITIES = word_set(r"< > \le \ge \neq")
# the beginnings of "all real numbers greater than 2" and the like, and the words in front of the condition
_REALS = ("all ", "any ", "every ", "for ", "the real", "the set of", "\\mathbb{r}", "x \\in \\mathbb{r}", "x\\in\\mathbb{r}", "x can be ",
          "x is a")
_ALL_THAT = word_set(r"""for all any every the set of real reals number numbers value values such that which are with where x can be is
    \in \mathbb { r } ,""")
_COMPARISONS = {"greater than or equal to": "\\ge ", "at least": "\\ge ", "less than or equal to": "\\le ", "at most": "\\le ",
                "greater than": ">", "more than": ">", "less than": "<", "except for": "\\neq ", "except": "\\neq ",
                "other than": "\\neq ", "excluding": "\\neq ", "but not": "\\neq "}
_SIGNS_OF_QUALIFIERS = ("\\in", "\\forall", "for", "where", "with", "is", "are")
_SAID_OF_LETTERS = word_set(r"\in is an any are")
_DENYING_SIGNS = frozenset("不非无没负除至")

_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# the letter of a multiple choice: "Option B", "(D)", "B)", "\text{B}"
_CHOICE = re.compile(r'["\s]*+(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)["\s]++|故?应?选项?["\s]*+|答案[是为]?["\s]*+)?+'
                     r'(\()?["\s]*+([A-Z])(["\s]*+)(\)?[.:),]?)["\s]*+')
# a text behind the letter, without the letter of a second choice
_TEXT_OF_CHOICE = re.compile(r"(?!and\b)(?!.*(?:\([A-J]\)|(?<![A-Za-z])[A-J][).]))(?:[A-Za-z]+(?:[ ,'-]+[A-Za-z0-9%]+)*\.?|[-$]?\d.*"
                             r"|-?\\(?:frac|sqrt|pi).*|[a-z]\s*(?:[=<>]|\\[lg]e).*|\\\{.*)", re.DOTALL)
_ROUNDING = re.compile(r'(?<=\d)[\s,(]+(?:correct |rounded )?(?:to )?(?:the nearest [a-z]+|(?:\d+|one|two|three|four)\s*'
                       r'(?:d\.?\s?p\.?|decimal places?|s\.?\s?f\.?|sig\.? figs?|significant (?:figures|digits)))[\s)]*$', re.IGNORECASE)
_APPROXIMATION = re.compile(r'(?<=[\w)}])[\s",;]*+(?:or\b)?[\s"(,]*+(?:\\approx|(?:which is )?(?:about|approximately|approx\.?'
                            r'|roughly))[\s"]*+'
                            r'(-?(?:\d++(?:\.\d++)?|\.\d++))(?:[\s"]*+(?:[A-Za-z]+|\\?%))?[\s")]*$', re.IGNORECASE)


def formula_in_a_sentence(answer: str) -> str:
    """The formula, if the answer is a sentence that says nothing besides one formula. Else the whole answer."""
    formulas = list(_FORMULA.finditer(answer)) if "$" in answer or "\\" in answer else []
    if len(formulas) != 1:
        return answer
    before, behind = answer[:formulas[0].start()].lower(), answer[formulas[0].end():].lower().rstrip(".! \n").split()
    says_nothing = {word.rstrip(",:") for word in before.split()} <= _SENTENCE_WORDS and (before[-1:].isspace() or not before)
    if says_nothing and (not behind or (behind[0] == "is" and {*behind} <= _SENTENCE_WORDS)):
        return next(filter(None, formulas[0].groups()))
    return answer


def phrase(text: str) -> str | None:
    """The one spelling of a phrase, or None for a text that is in no table."""
    if not text[:1].isalpha() and text[:1] != '"':
        return None
    return _SPELLINGS.get(" ".join(text.replace('"', " ").lower().rstrip(". ").split()))


# ---- choices --------------------------------------------------------------------------------------------------------

def choice_letter(text: str) -> str | None:
    """The letter, if the text is one choice of a multiple-choice question."""
    choice = _split_choice(text)
    return choice[0] if choice else None


def text_of_choice(text: str) -> str | None:
    """The text behind the letter of a choice: 12 in (B) 12. None for the letter alone."""
    choice = _split_choice(text)
    rest = choice[1] + '"' * (choice[1].count('"') % 2) if choice else ""
    return None if not rest or choice_letter(rest) else rest


def _split_choice(text: str) -> tuple[str, str] | None:
    """The letter of a choice and the text behind it."""
    if len(text) > 1 and not text.startswith(("(", '"', "O", "o", "C", "c")) and text.isascii() and text[1] not in ").: ":
        return None
    mark = _CHOICE.match(text)
    if not mark:
        return None
    opening, letter, spaces, closing = mark.groups()
    rest = text[mark.end():]
    plain = " ".join(rest.replace('"', " ").split())
    if plain in _BEHIND_A_LETTER:
        return letter, ""
    stands_apart = '" ' in spaces and (rest[:1].isdigit() or rest[:1] == "\\")  # \text{B} \quad 12
    is_marked = closing[:1] == ")" if opening else letter <= "J" and (closing != "" or stands_apart)
    is_marked = is_marked and "," not in closing
    return (letter, rest) if is_marked and _TEXT_OF_CHOICE.fullmatch(plain) and not changes(plain) else None


# ---- words around an answer -----------------------------------------------------------------------------------------

def integer_letter(text: str) -> str | None:
    """The letter that stands for any integer, as in "k \\in \\mathbb{Z}" and "where n is an integer"."""
    if "\\mathbb{Z}" not in text and "integer" not in text:
        return None
    words = pieces(text.replace('"', " "))
    for place, word in enumerate(words):
        said = " ".join(words[place + 1:place + 5]).startswith(("\\in \\mathbb { Z", "is an integer", "is any integer"))
        if len(word) == 1 and word.islower() and (said or words[max(0, place - 1):place] in (["integer"], ["integers"])):
            return word
    return None


def without_words_around(text: str) -> str:
    """The text without words that say nothing about its value: "The answer is", "approximately", "for all x", "(base 2)" as _2."""
    text = _without_lead_in(text)
    if point := named_point(text):
        text = point[1]
    if text.isascii() and not any(map(str.isalpha, text)):
        return text
    text = without_qualifier(_without_remarks(text))
    for read in (_without_domain, _with_base, _ratio_in_words, _condition_on_reals, _mapping):
        text = read(text) or text
    return text.replace("\\equiv", "=") if "\\equiv" in text and "mod" not in text else text


def named_point(text: str) -> tuple[str, str] | None:
    """The name and the coordinates of P(1, 2). None for another text."""
    name, bracket, rest = text.partition("(")
    name = name.strip()
    is_named = name in tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ") or (len(name) == 2 and name[0].isupper() and name[1] == "'")
    return (name, bracket + rest) if is_named and "," in rest and rest.endswith(")") and rest.count(")") == 1 and "(" not in rest else None


def _without_lead_in(text: str) -> str:
    """The text behind "The value of f(x) is": no number, one verb, no word that hedges."""
    unquoted = text.replace('"', "")
    if unquoted.lower().startswith(_LEAD_INS):
        verbs = [found for found in PIECE.finditer(unquoted) if found[0].lower() in _VERBS]
        before, behind = (unquoted[:verbs[0].start()], unquoted[verbs[0].end():].removeprefix(":")) if len(verbs) == 1 else ("", "")
        are_words = all(c.isascii() and (c.isalpha() or c in "() '") for c in before)
        if behind[:1].isspace() and are_words and not changes(unquoted.lower()):
            return behind.strip() or text
    words = unquoted.lower().replace(":", " ").split()
    place = next((place for place, word in enumerate(words) if word not in ("the", "final")), 0)
    is_answer = words[place + 1:] and words[place] in ("answer", "answers")
    return unquoted.split(maxsplit=place + 1)[-1].lstrip(": ") if is_answer else text


def _without_remarks(text: str) -> str:
    """The text without "approximately" and the like in front, and without "in total" or "to 2 decimal places" behind."""
    if rounding := _ROUNDING.search(text.replace('"', "")):
        text = text.replace('"', "")[:rounding.start()]
    end = next((place for place, c in enumerate(text) if c in "-0123456789\\$([" or (c == "." and not text[place - 1:place].isalpha())), 0)
    head = text[:end].replace('"', " ").lower()
    words = " ".join(head.split()).removeprefix("the ").rstrip(".:")
    is_chinese = min(words, default="") > "\x7f" and len(words) < 9 and words[-1] in "为是共有约答得" and _DENYING_SIGNS.isdisjoint(words)
    if is_chinese or (head[-1:] == " " and words in _IN_FRONT):
        text = text[end:]
    stripped = text.rstrip('". )')
    for words in _BEHIND:
        if stripped.lower().endswith(words) and stripped[:-len(words)].strip() and stripped[-len(words) - 1] in ' ",(':
            text = stripped[:-len(words)].rstrip(' ",(')
            break
    return text + '"' * (text.count('"') % 2)


def without_qualifier(text: str) -> str:
    """The text without "for all x", ", k \\in \\mathbb{Z}", "where C is a constant" and the like behind it."""
    if not any([word in text for word in _SIGNS_OF_QUALIFIERS]):  # noqa: C419 (twice as fast as a generator)
        return text
    found = [match for match in PIECE.finditer(text) if match[0] != '"']
    words = ["_" if match[0].isdecimal() and text[match.start() - 1] == "_" else match[0].lower() for match in found]
    start = len(words)
    while start and (words[start - 1] in _QUALIFIER_PARTS or _is_letter(words[start - 1])):
        start -= 1
    if text.count("\\mathbb", found[start].start() if start < len(found) else 0) > text.count("\\mathbb{Z}") + text.count("\\mathbb{R}"):
        return text
    for place in range(start, len(words) - 1):
        begins, at = words[place] in _QUALIFIERS, found[place].start()
        if words[place + 1] == "\\in" and _is_letter(words[place]):
            begins = text[at - 1:at].isspace()
        elif words[place] in (",", ";", "(") and (words[place + 1] == "and" or _is_letter(words[place + 1])):
            others = (word for word in words[place + 1:] if not _is_letter(word) and word not in ("_", ",", "and"))
            begins = next(others, "") in _SAID_OF_LETTERS
        head = text[:at].rstrip(' ",;(') if begins else ""
        if head and ("\\in" in words[place:] or len(text[at:].replace('"', "").split()) > 1):
            return head + '"' * (head.count('"') % 2)
    return text


def _is_letter(word: str) -> bool:
    return len(word) == 1 and word.isalpha() and word.isascii()


def _without_domain(text: str) -> str | None:
    """g(x) = \\sqrt{x-1} for g(x) = \\sqrt{x-1}, x \\ge 1."""
    head, _, tail = text.partition(",")
    if head.count("=") != 1 or not tail or "," in tail:
        return None
    name, condition = pieces(head.partition("=")[0]), pieces(tail.replace('"', " ").lstrip(" ("))
    if len(name) < 3 or len(condition) < 2 or name[1] not in ("(", "_") or condition[0] not in name[2:4]:
        return None
    is_domain = _is_letter(name[0]) and _is_letter(condition[0]) and condition[1] in _INEQUALITIES and not changes_number(tail)
    is_domain = is_domain and not (name[1] == "_" and condition[1] in ("<", "\\le"))  # only some n
    return head.rstrip(' "(') if is_domain and _INEQUALITIES.isdisjoint(pieces(head)) else None


def _with_base(text: str) -> str | None:
    """101_{2} for "101 in base 2" and 101 (base 2)."""
    numeral, base, name = text.replace('"', " ").replace("Base", "base").partition("base")
    digits, name = numeral.rstrip(" (").removesuffix(" in").strip(), name.strip(" -{})")
    is_numeral = base and name.isalnum() and digits and set(digits) <= set("-0123456789ABCDEF")
    return f"{digits}_{{{name}}}" if is_numeral else None


def _ratio_in_words(text: str) -> str | None:
    """3:2 for "3 to 2"."""
    words = text.replace('"', " ").split()
    is_ratio = set(words[1::2]) == {"to"} and len(words) % 2 and all(word.replace(".", "").isdecimal() for word in words[::2])
    return ":".join(words[::2]) if is_ratio else None


def _condition_on_reals(text: str) -> str | None:
    """x > 2 for "all reals greater than 2"; \\mathbb{R}\\setminus\\{3\\} for "all reals except 3" and \\mathbb{R}, x \\neq 3."""
    plain = " ".join(text.replace('"', " ").split())
    if not plain.lower().startswith(_REALS):
        return None
    for words, sign in _COMPARISONS.items():
        plain = plain.replace(words, sign)
    variable = ""
    for found in PIECE.finditer(plain):
        if found[0] in _INEQUALITIES:
            break
        if found[0].lower() not in _ALL_THAT and (not _is_letter(found[0]) or variable not in ("", found[0])):
            return None
        variable = found[0] if _is_letter(found[0]) and found[0] != "R" else variable
    else:
        return None
    rest = plain[found.end():]
    if found[0] != "\\neq":
        return (variable or "x") + found[0] + rest
    items = rest.replace("\\neq", "=").replace(" and ", ",").replace(" or ", ",").split(",")
    are_points = ("real" in plain or "\\mathbb" in plain) and _INEQUALITIES.isdisjoint(pieces(rest.replace("\\neq", "")))
    return f"\\mathbb{{R}}\\setminus\\{{{','.join(item.rpartition('=')[2].strip() for item in items)}\\}}" if are_points else None


def _mapping(text: str) -> str | None:
    """f(x)=x^2 for f: \\mathbb{R} \\to \\mathbb{R}, x \\mapsto x^2."""
    head, _, rest = text.partition(",") if "\\to" in text else ("", "", text)
    text = rest.strip() if head[1:].lstrip()[:1] == ":" and "\\to" in head else text
    left, arrow, value = text.partition("\\mapsto")
    name, _, letter = left.replace(" ", "").rpartition(":")
    return f"{name or 'f'}({letter})={value.strip()}" if arrow and _is_letter(letter) and len(name) < 2 else text if head else None


def approximation_behind(text: str) -> tuple[str, str] | None:
    """The text in front of an approximation, and the approximation: "\\frac{13}{7} (about 1.86)" is two."""
    found = _APPROXIMATION.search(text) if "a" in text or "r" in text else None
    if not found or not text[:found.start()].strip():
        return None
    head = text[:found.start()]
    return head + '"' * (head.count('"') % 2), found[1]
