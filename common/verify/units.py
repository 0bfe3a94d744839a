"""Takes the unit off a number, and gives a unit one spelling. The tables are the place to add a unit.

A word that is in no table counts as a unit only if it is a plural, as in "21 dogs": a word such as "reversed" or "opposite" changes the
number. words.py has the words that never belong to a unit.
"""
from __future__ import annotations

import re

from common.verify.spelling import split_outside_brackets
from common.verify.words import COMPARISONS, MEASURES, changes_number, pieces, word_set

# each unit: its one spelling, then the others. Plurals need no entry
_TABLE = """
    % percent percentage pct 百分之; deg degree deg. 度; degC celsius; degF fahrenheit; rad radian 弧度;
    um micrometer micrometre micron microns; nm nanometer nanometre 纳米; mm millimeter millimetre 毫米;
    cm centimeter centimetre 厘米 公分 センチ; m meter metre 米 メートル; km kilometer kilometre kms 千米 公里 キロ;
    in inch inche in. 英寸; ft feet foot 英尺; yd yard; mi mile 英里;
    cm^3 cc; ml milliliter millilitre mL 毫升; l liter litre L 升; pt pint; qt quart; gal gallon; cup; tbsp tablespoon; tsp teaspoon;
    mg milligram 毫克; g gram gramme gm 克; kg kilogram kilo kgs 千克 公斤; t tonne 吨; ton; oz ounce; lb lbs; pound;
    us microsecond; ms millisecond; sec second s secs 秒; min minute mins 分钟 分; hr hour h hrs 小时 时; day days 天 日; wk week 周 星期;
    mo month 月 个月; yr year yrs 年 岁; decade; century centuries 世纪; am; pm;
    dollar usd buck 美元 $; cent ¢ 美分; euro eur 欧元; pound-sterling gbp; yen jpy 円 日元; yuan rmb 元 人民币; rupee rs inr;
    m/sec mps; mi/hr mph; km/hr kph kmh kmph; rpm; N newton; kN kilonewton; J joule; kJ kilojoule; cal calorie; kcal kilocalorie; W watt;
    kW kilowatt; MW megawatt; mW milliwatt; kWh; V volt; A amp ampere; ohm Ω; kohm; F farad; C coulomb; H henry henries; T tesla;
    Hz hertz; kHz kilohertz; MHz megahertz; Pa pascal; kPa; atm atmosphere; K kelvin; mol mole; ha hectare; acre;
    people person 人 名; children child; men man; women woman; unit
"""
_VOWELS = frozenset("aeiouyAEIOUY")
LONGEST_UNIT = 90  # characters; the limit bounds the work of the search
_SPELLINGS = {name: unit.split()[0] for unit in _TABLE.split(";") for name in unit.split()}
_FOLDED = {name.lower(): spelling for name, spelling in _SPELLINGS.items() if len(name) > 1}
_CASE_MATTERS = word_set("m g l h s t L N J W V K A C F T H mW MW")
# nouns that are not known by an s: they count things
_NOUNS = word_set("""fish sheep deer geese mice teeth dice oxen series species money water time box boxe class glass
    dog cat apple orange
    dozen-eggs pieces student way integer solution digit point coin page side cup marble ball card book step""")
_DENOMINATION = re.compile(r"\b(?:one|two|five|ten|twenty|fifty|hundred)[- ](?:dollar|cent|pound|euro|yuan)(?= (?:bill|coin|note|stamp)s?)")
# Chinese words between a number and what it counts
_CLASSIFIERS = frozenset("个個种種只隻本条條张張次件棵组組块塊支枝位辆朵颗粒份页道户间台段座头匹根名家所套瓶盒"
                         "箱袋杯碗题项步级层排列行章节班队架艘把盏人")
# units that stand side by side: 3 hours 20 minutes
_SIDE_BY_SIDE = {("hr", "min"), ("min", "sec"), ("day", "hr"), ("wk", "day"), ("yr", "mo"), ("mo", "day"), ("ft", "in"), ("yd", "ft"),
                 ("m", "cm"), ("km", "m"), ("kg", "g"), ("lb", "oz"), ("pound", "oz"), ("dollar", "cent"), ("gal", "qt")}
_TWO_QUANTITIES = re.compile(r"(\d+)\s*([A-Za-z]+)\.?[\s,]*(?:and\s+)?(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?")
_NO_BRACES = str.maketrans("", "", ' {}"')
_ALSO_OPERATORS = ("\\min", "\\deg", "\\sec")
_CJK = r"[\u3040-\u30ff\u4e00-\u9fff]"
# a word of a unit, perhaps with an exponent: in quotes, in Chinese, of two letters or more, or one letter behind a digit, / or \cdot
_WORD = re.compile(rf'(?:"(?=[^"]*(?:[^\W\d_]|[%$]))[^"]*+"|{_CJK}++|(?<![A-Za-z\\])[A-Za-z]{{2,}}\.?|(?<=\d )[msghlLNJWVKACF](?![A-Za-z])'
                   r'|(?<=/)[A-Za-z]+|(?<=\\cdot )[A-Za-z]{1,3}(?![A-Za-z]))(?:\s*\^\s*\{?\s*-?[123]\s*\}?|(?<=[a-z])[23])?')
_COMPARED = word_set("more fewer less")
_TOKEN = re.compile(rf"[A-Za-z]+(?:-[A-Za-z]+)*|{_CJK}+|[%$¢Ω]|-?\d|[/()]")
_SEXAGESIMAL = re.compile(r"(-?\d+)\s*(?:\^\{?\s*\\circ\s*\}?)\s*(\d+)\s*'(?!')\s*(?:(\d+(?:\.\d+)?)\s*(?:''|'\s*'))?$")
_OF_ANGLES = word_set(r"sin cos tan sec csc cot cis \sin \cos \tan \sec \csc \cot \cis")


def split_unit(text: str) -> tuple[str, str]:
    """A normalized text without its unit, and the unit in one spelling: "5 square inches" -> ("5", "in^2"). Without a unit: (text, "")."""
    if text.isdecimal():
        return text, ""
    angle = _SEXAGESIMAL.fullmatch(text)
    if angle:  # degrees, minutes and seconds of arc
        return f"{angle[1]}+\\frac{{{angle[2]}}}{{60}}+\\frac{{{angle[3] or 0}}}{{3600}}", "deg"
    if "\\" in text:  # min, which is also an operator, \frac{m}{s}, \Omega, \mu m
        text = _quoted_greek_unit(_without_operator(text))
        text = re.sub(r'\\frac\s*\{\s*"([^"{}]+)"\s*\}\s*\{\s*"([^"{}]+)"\s*(\^\s*\{?\d\}?)?\s*\}\s*$', r'"\1/\2"\3', text)
    number, unit = _without_sign(text)
    if unit:  # in \sin 30^\circ and 1 + 5% the sign belongs to the last number only, and in e^{i 30^\circ} it is inside
        is_term = len(split_outside_brackets(number.lstrip("+-"), "+-")) > 1 or not _OF_ANGLES.isdisjoint(pieces(number))
        is_apart = not is_term and number.count("{") <= number.count("}")
        return (number, unit) if is_apart else (text, "")
    number = _without_words(text)
    words = text[len(number):].lstrip()
    if not words or number.count("{") > number.count("}"):
        return text, ""
    before, words = text[-len(words) - 1], _DENOMINATION.sub("", words).replace("left over", "left").replace("ordered pairs", "solutions")
    ways, to, rest = words.partition("ways to ")
    words = f'{ways}ways"' if to and not changes_number(rest.replace("the ", "")) else words
    if changes_number(words if "than" in words else " ".join(piece for piece in pieces(words) if piece not in _COMPARED)):
        return text, ""
    unit = _read_unit(words, number, before)
    return (number, unit) if unit else (text, "")


def _without_operator(text: str) -> str:
    """5 \\min, where min is a unit, as 5 "min"."""
    is_unit = text.endswith(_ALSO_OPERATORS) and (text[-5:-4].isdecimal() or text[-5:-4] in ("}", " "))
    return f'{text[:-4]} "{text[-3:]}"' if is_unit else text


def _quoted_greek_unit(text: str) -> str:
    """5 \\mu m as 5 "um", 5 "k"\\Omega as 5 "kohm"."""
    head, mu, letter = text.rpartition("\\mu")
    letter = letter.strip(' "')
    if mu and letter in tuple("msgLFAC"):
        return f'{head} "u{letter}"'
    if not text.endswith("\\Omega"):
        return text
    head = text[:-6].rstrip()
    before, _, word = head[:-1].rpartition('"')
    if head.endswith('"') and word.strip() == "k":
        return f'{before} "kohm"'
    return f'{head} "ohm"' if text[-7:-6].isdecimal() or text[-7:-6] in ("}", ")", " ") else text


def _ends_number(text: str, before_quotes: bool = False) -> bool:
    """Whether a unit may stand behind the text. A unit in quotes may also stand behind a letter."""
    last = text[-1:]
    return last.isdecimal() or last in (")", "}", "!", "]") or text.endswith("\\pi") or (before_quotes and (last.isalnum() or last == "_"))


def _without_sign(text: str) -> tuple[str, str]:
    """The number in front of a degree sign, perhaps with C or F, or of a percent sign, and the unit. Without a sign: (text, "")."""
    head, _, tail = text.rpartition("^")
    sign = tail.translate(_NO_BRACES) if "\\circ" in tail else ""
    number, unit = (head, f"deg{sign[5:]}") if sign in ("\\circ", "\\circC", "\\circF") else (text, "")
    if text.endswith("%"):
        number, unit = text[:-1].removesuffix("\\"), "%"
    number = number.rstrip()
    return (number.lstrip(), unit) if unit and _ends_number(number) else (text, "")


def _without_words(text: str) -> str:
    """The number in front of the words of a unit, at most five, perhaps in brackets. Without such words: the text."""
    end = len(text[:-1].rstrip()) if text.endswith(")") else len(text)
    number, between = text, ("",)
    for word in reversed(list(_WORD.finditer(text, max(0, len(text) - LONGEST_UNIT), end))[-5:]):
        if text[word.end():end].strip() not in between:
            break
        end, between = word.start(), ("", "/", "\\cdot")
        head = text[:end].rstrip().removesuffix("(").rstrip()
        if _ends_number(head, text[len(head):].lstrip()[0] == '"'):
            number = head
    return number


def two_quantities(text: str) -> list[tuple[str, str]] | None:
    """The numbers and units of "3 hours 20 minutes", largest first. None for another text."""
    if not text[:1].isdigit() or ('"' not in text and " " not in text):
        return None
    found = _TWO_QUANTITIES.fullmatch(" ".join(_without_operator(text).replace('"', " ").split()))
    if not found:
        return None
    units = (known_unit(found[2]) or "", known_unit(found[4]) or "")
    if units == ("dollar", "cent"):
        return [(f"{found[1]}+\\frac{{{found[3]}}}{{100}}", "dollar")]
    return [(found[1], units[0]), (found[3], units[1])] if units in _SIDE_BY_SIDE else None


def _read_unit(words: str, number: str, before: str) -> str | None:
    """The unit in one spelling, or None if the words are factors of the number (2ab, \\frac12 mv^2) or change it."""
    quoted, factors, others = words.strip().startswith(('"', "(")), [], []
    comments: list[str] = []  # and what a rate is for: 7 dollars per ticket
    sign, power_ahead = 1, 0
    words = words.replace("\\cdot", " ").replace("平方", "square ").replace("立方", "cubic ")
    tokens = _TOKEN.findall(words)
    for place, token in enumerate(tokens):
        lower = token.lower()
        is_inch = lower == "in" and (power_ahead or tokens[place + 1:place + 2] in (["2"], ["3"], ["squared"], ["cubed"]))
        if token == "/" or lower == "per":
            sign = -1
        elif lower in ("square", "sq", "cubic", "cu"):
            power_ahead = 3 if lower[0] == "c" else 2
        elif lower in ("degree", "degrees") and tokens[place + 1:] and tokens[place + 1].lower() in ("celsius", "fahrenheit"):
            continue
        elif token.lstrip("-").isdigit() or lower in ("squared", "cubed"):
            power = {"squared": 2, "cubed": 3}.get(lower) or int(token)
            if not factors:
                return None
            factors[-1] = (factors[-1][0], sign * power)
        elif lower == "of" and (factors or others or comments):
            break  # gallons of water
        elif lower in MEASURES or lower in COMPARISONS:
            comments.append(lower)
        elif lower in ("a", "an", "each", "in", "(", ")") and len(tokens) > 1 and not is_inch \
                and not (lower == "in" and place == 0 and not quoted):
            sign = -1 if lower in ("a", "an") and factors else sign
        elif spelling := "in" if is_inch else known_unit(token):
            if not quoted and place == 0 and not _may_stand_alone(token, before):
                return None
            base, _, below = spelling.partition("/")
            base, _, cube = base.partition("^")
            factors.append((base, sign * (power_ahead or int(cube or 1))))
            factors += [(below, -1)] if below else []
            power_ahead = 0
        elif sign < 0 and len(token) > 2 and token.isascii():
            comments.append(f"/{lower.removesuffix('s')}")
        else:
            others.append(token)
    if power_ahead and others:
        others[-1] += f"^{power_ahead}"  # square units
    elif power_ahead:
        return None
    if others and not _are_nouns(others, number, quoted, before):
        return None
    if ("%", 1) in factors and not COMPARISONS.isdisjoint(comments):
        return None  # 29 percent less
    return " ".join(filter(None, [_one_spelling(factors, others), *comments])) or None


def known_unit(token: str) -> str | None:
    """The one spelling of a unit that the table has. Single letters keep their case, longer words do not."""
    if token in _CASE_MATTERS or len(token) == 1 or not token.isascii():
        return _SPELLINGS.get(token)
    exact = _SPELLINGS.get(token) or _FOLDED.get(token.lower())
    return exact or (_FOLDED.get(token.lower().removesuffix("s")) if len(token) > 2 else None)


def _may_stand_alone(token: str, before: str) -> bool:
    """Whether a unit may stand without \\text behind this character: 5 cm, 5cm and 5 m, but not 5m."""
    return not token.isascii() or (before in " 0123456789" and (len(token) > 1 or before == " "))


def _are_nouns(words: list[str], number: str, quoted: bool, before: str) -> bool:
    """Whether words that the table does not have count things: the last one is a plural, or there is one thing."""
    if len(words) > 4 or any(len(word) < 3 or _VOWELS.isdisjoint(word) for word in words if word.isascii()):
        return False
    if not words[0].isascii():
        return words[0][0] in _CLASSIFIERS
    if not quoted and not (before == " " and len(words[0]) >= (3 if number[-1:].isdigit() else 4)):
        return False
    head = words[-1].partition("^")[0].lower()
    return not head.isascii() or head in _NOUNS or number.lstrip("+-") == "1" or (head.endswith("s") and not head.endswith(("ss", "us")))


def _one_spelling(factors: list[tuple[str, int]], others: list[str]) -> str:
    """The factors with their powers in one order, then the other words."""
    powers: dict[str, int] = {}
    for name, power in factors:
        powers[name] = powers.get(name, 0) + power
    spelled = sorted(f"{name}^{power}" if power != 1 else name for name, power in powers.items() if power)
    return " ".join([*spelled, *(word.lower().removesuffix("s") for word in others)])
