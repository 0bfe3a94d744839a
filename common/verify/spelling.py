"""One spelling for what is written in many ways: LaTeX macros, unicode signs, thousands separators, units."""
from __future__ import annotations

import re
from collections.abc import Callable

_SIGNS = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u00f7": "\\div ",
    "\u00b0": "^\\circ ", "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\neq ",
    "\u2248": "\\approx ", "\u2208": "\\in ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2205": "\\emptyset ", "\u00b1": "\\pm ",
    "\u2213": "\\mp ", "\u2032": "'", "\u2019": "'", "\u2033": "''", "\u201c": " ", "\u201d": " ", "\u3000": " ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u03b1": "\\alpha ", "\u03b2": "\\beta ", "\u03b3": "\\gamma ", "\u03b8": "\\theta ",
    "\u03bb": "\\lambda ", "\u03bc": "\\mu ", "\u03c3": "\\sigma ", "\u03c6": "\\phi ", "\u03c9": "\\omega ",
    "\u03b4": "\\delta ", "\u03b5": "\\epsilon ", "\u0394": "\\Delta ", "\u2044": "/",
    "\u2010": "-", "\u2011": "-",
    "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}",
    "\u2153": "\\frac{1}{3}", "\u2154": "\\frac{2}{3}", "\u20ac": " ", "\u00a3": " "}
_UNICODE = {ord(sign): plain for sign, plain in _SIGNS.items()}
_UNICODE |= {0xFF01 + i: chr(0x21 + i) for i in range(94)}  # fullwidth letters, digits and signs
_HIGH = dict(zip("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f", "0123456789+-n", strict=True))
_LOW = {chr(0x2080 + digit): str(digit) for digit in range(10)}


def _one_line(rows: str) -> str:
    """The rows of an aligned environment as a list; one that begins with = goes on with the last."""
    return re.sub(r"\\\\\s*(?!\s*=)", ", ", rows.replace("&", "")).replace("\\\\", "")

_MULTIPLES = {"thousand": "\\cdot 10^{3} ", "million": "\\cdot 10^{6} ", "billion": "\\cdot 10^{9} ", "trillion": "\\cdot 10^{12} "}
# (what a text must have for the rule to matter, the pattern, its replacement), in order; "" matches all, None texts that are not ASCII
_RULES: list[tuple[str | None, str, str | Callable[[re.Match[str]], str]]] = [
    (None, r"[\u200b\u2060\ufeff]", ""),
    ("<|", r"<\|(?:im_|end|eot|start)[a-z_]*\|>.*$", ""),
    ("\\", r"\\(?:displaystyle|limits|nolimits|tag\*?\{[^{}]*\}|label\{[^{}]*\})", ""),
    (None, "[" + "".join(_HIGH) + "]+", lambda m: "^{" + "".join(_HIGH[c] for c in m[0]) + "}"),
    (None, "[" + "".join(_LOW) + "]+", lambda m: "_{" + "".join(_LOW[c] for c in m[0]) + "}"),
    (None, "\u221a\\s*(\\d+(?:\\.\\d+)?)", r"\\sqrt{\1}"),
    (None, "\u211d", r"\\R "),
    ("frac", r"\\[dtc]frac(?![a-z])", r"\\frac"),
    ("binom", r"\\[dt]binom", r"\\binom"),
    ("\\", r"\\(?:varnothing|oslash)", r"\\emptyset "),
    ("varphi", r"\\varphi", r"\\phi"),
    ("\\over", r"\{?([^{}\\]+)\\over(?![a-z])\s*([^{}\\]+)\}?$", r"\\frac{\1}{\2}"),
    ("\\R", r"\\R(?![a-z])", r"\\mathbb{R}"),
    ("infinity", r"\binfinity\b", r"\\infty "),
    ("oo", r"(?<![A-Za-z])oo\b", r"\\infty "),
    ("{\\", r"\{\\(?:bf|rm|it)\s+([^{}]*)\}", r"{\1}"),
    ("{", r"\\(?:mathrm|text|operatorname\*?|rm)\s*\{\s*(i|e)\s*\}", r" \1 "),
    ("{", r"\\(?:mathrm|text|operatorname\*?)\s*\{\s*((?:arc)?(?:sin|cos|tan|sec|csc|cot)|ln|log|exp|gcd|lcm|max|min|det)\s*\}", r"\\\1 "),
    (".", r"(?<![\w)])(\d*\.\d*)\((\d{1,9})\)", r"\1\\overline{\2}"),
    ("\\$", r"\\\$\s*((?:\d|,(?=\d)|\{,\}|\.(?=\d)|,\\!)+)", r'\1 "dollar" '),
    ("\\", r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", ""),
    (",", r"(?<=\d)\s*(?:\{\s*,\s*\}|,\\!\s*)(?=\d{3}(?!\d))", ""),
    (",", r"\{\s*,\s*\}|,\\[!,]\s*", ", "),
    ("", r"(?<![\d.])[1-9]\d{0,2}(?:(?:\\[,;:! ]|~)\s*\d{3}(?!\d))+", lambda m: re.sub(r"\D", "", m[0])),  # 1\,000
    ("\\begin", r"\\begin\{(aligned|align\*?|gathered|split)\}(.*?)\\end\{\1\}", lambda m: _one_line(m[2])),
    ("{", r"\\(?:text[a-z]*|mathrm|mathbf|bf|rm|mbox|operatorname|mathit|emph|boldsymbol)\s*\{([^{}]*)\}", r'"\1"'),
    ("\\", r"(?<!\\)\\(?:quad|qquad|[,;:! ]|hspace\{[^{}]*\}|hfill|newline)", " "),
    ("~", r"~", " "),
    ("box", r"\\(?:boxed|fbox)\s*\{([^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*)\}", r" \1 "),
    ("$", r"\\\$|\$", " "),
    ("\\", r"\\[()]|\\\[(?!\d*(?:em|pt|ex)\])|\\\]", " "),
    ("**", r"^\s*\*\*|\*\*\s*$", " "),
    ("illion", r'(?i)(?<=\d)\s*(?:" ?dollar")?[\s"]*(million|billion|trillion)\b(?: *")?', lambda m: _MULTIPLES[m[1].lower()]),
    ("thousand", r'(?i)(?<=\d)\s*(?:" ?dollar")?[\s"]*(thousand)\b(?: *")?', lambda m: _MULTIPLES[m[1].lower()]),
    ("mod", r"\\pmod\s*\{?\s*(\w+)\s*\}?|\(\s*\"?\s*mod\b\s*\"?\s*(\w+)\s*\)", r'"mod" (\1\2)'),
    ("{:}", r"\{:\}", ":"),
    ("angle", r"\\langle", "("), ("angle", r"\\rangle", ")"),
    ("brace", r"\\lbrace(?![a-z])", r"\\{"), ("brace", r"\\rbrace(?![a-z])", r"\\}"),
    ("", r"\\leqslant|\\leqq|\\leq|<=|\\le(?![a-z])", r"\\le "),
    ("", r"\\geqslant|\\geqq|\\geq|>=|\\ge(?![a-z])", r"\\ge "),
    ("\\lt", r"\\lt(?![a-z])", "<"), ("\\gt", r"\\gt(?![a-z])", ">"),
    ("", r"\\not\s*=|\\neq|\\ne(?![a-z])|!=|<>", r"\\neq "),
    ("\\", r"\\approx|\\simeq|\\thickapprox", r"\\approx "),
    ("", r"(?i)(?<=\d) *\"? *\b([ap])\.? ?m\b\.?( *\")?", lambda m: f'"{m[1].lower()}m"'),
    ("\\\\[", r"\\\\\[[^\]]*\]", r"\\\\ "),
    ("", r"\s+", " "),
]
_SPELLINGS = [(needed, re.compile(pattern), new) for needed, pattern, new in _RULES]
END = re.compile(r"(?:(?<!\.)\.)?[\s,;:]*$")


def clean(text: str) -> str:
    """One spelling for what is written in many; \\text{...} becomes "..."."""
    text = text.replace('"', " ")
    if not text.isascii():
        text = text.translate(_UNICODE)
    for needed, pattern, new in _SPELLINGS:
        if needed in text if needed is not None else not text.isascii():
            text = pattern.sub(new, text)
    text = END.sub("", text.replace('" "', " ").replace("\u221a", "\\sqrt ")).strip()
    if text[:1] == text[-1:] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    while text[:1] == "{" and closing(text, 0) == len(text) - 1 and not split(text[1:-1], ",;")[1:]:
        text = text[1:-1].strip()
    return text



def closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, of any kind since [0, 1) is an interval; -1 if none."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return -1



def depths(text: str) -> list[int]:
    """How many brackets and environments each character stands in."""
    found, depth = [], 0
    for i, c in enumerate(text):
        if c in ")]}" or text.startswith("\\end", i):
            depth -= 1
        found.append(depth)
        if c in "([{" or text.startswith("\\begin", i):
            depth += 1
    return found



def split(text: str, separators: str) -> list[str]:
    """The pieces between separators that stand outside all brackets and environments."""
    pieces, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "\\" and text.startswith(("\\begin", "\\end"), i):
            depth += 1 if text[i + 1] == "b" else -1
        elif c in separators and depth == 0 and (c not in "<>" or text[i - 1:i] != "\\"):
            pieces.append(text[start:i])
            start = i + 1
    return [*pieces, text[start:]]

# ---- units ----------------------------------------------------------------------------------------------------------

_WORD = (r'(?:"(?=[^"]*[A-Za-z%])[^"]*+"|(?<![A-Za-z\\])[A-Za-z]{2,}\.?|(?<=\d )[msghlLNJWVK](?![A-Za-z])|(?<=/)[A-Za-z]+)'
         r'(?:\s*\^\s*\{?\s*[23]\s*\}?|(?<=[a-z])[23])?')
_UNIT = re.compile(r'(?:(?<=[\d)}!])|(?<=\d )|(?<=\\pi)|(?<=\w)(?=\s*"))\s*(?:(?:\^\{?\s*\\circ\s*\}?|\\degree)\s*"?([CF])?"?|\\?(%)|'
                   rf'({_WORD}(?:\s*(?:/|\\cdot)?\s*{_WORD}){{0,3}}))$')
_UNIT_WORDS = {
    "percent": "%", "percentage": "%", "pct": "%", "degree": "deg", "inche": "in", "inch": "in", "feet": "ft", "foot": "ft",
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "millimeter": "mm",
    "liter": "l", "litre": "l", "minute": "min", "hour": "hr", "hr": "hr", "h": "hr", "second": "sec", "s": "sec", "pound": "lb",
    "gram": "g", "kilogram": "kg", "dollar": "dollar", "usd": "dollar", "mile": "mile", "mi": "mile", "mph": "mile / hr",
    "lb": "lb", "kg": "kg", "yard": "yd", "ounce": "oz", "milliliter": "ml", "boxe": "box"}
# words that deny, hedge or join: an answer with one of them is not what the rest of it says
NEGATION = (r"\b(?:not|cannot|never|no|none|neither|nor|except|excluding|excluded|but|unless|without|false|wrong|incorrect|impossible|if|"
            r"when|either|maybe|perhaps|possibly|alternatively|instead|versus|vs|xor|alias|through|until|rather|otherwise|other|anything)\b|n't")
# words behind a number that change what is said
_NOT_UNITS = re.compile(NEGATION + r"|\b(?:and|or|then|mod|modulo|base|pi|sqrt|sin|cos|tan|log|ln|exp|to|is|isn|are|choose|than|where|for|"
                        r"times|of|the|more|less|plus|minus|(?:dozen|hundred|thousand)s?|[a-z]*illions?|lakh|crore|score|gross|"
                        r"googol|thou|kilo|mega|micro|milli|giga|"
                        r"sinh|cosh|tanh|cosine|sine|reciprocal|negative|inverse|undefined|untrue|unlikely|probably|below|above|greater|fewer|"
                        r"larger|smaller|onwards?|upwards?|percentile|permille|ppm|fails?|also|union|prime|"
                        r"(?:doubl|tripl|quadrupl|halv|negat|invert|reject|disprov|eliminat)ed|infinit[a-z]*|"
                        r"hal(?:fs?|ves)|quarters?|double|twice|squared|cubed|divided|over|with|"
                        r"which|that|from|by|at|as|factorial|infinity|root|zeros?|tens|ones|remainder|minimum|maximum|one|two|three|four|five|"
                        r"six|seven|eight|nine|ten|[a-z]*(?:teen|enty|irty|orty|ifty|ixty|ghty|nety)|thirds?|[a-z]*(?:fth|xth|nth|hth|dth)s?)\b",
                        re.IGNORECASE)
_KNOWN = frozenset({*_UNIT_WORDS, *_UNIT_WORDS.values(), "mm", "cm", "kg", "mg", "ml", "oz", "yd", "pt", "rad", "am", "pm", "lbs",
                    "hrs", "secs"})
_LONE = frozenset("msghlLNJWVKACFTH")  # letters that stand for a unit


def take_unit(text: str) -> tuple[str, str]:
    """A cleaned text without its unit, and the unit in one spelling: "5 square inches" -> "5", "in 2". No unit: ""."""
    found = _UNIT.search(text)
    if not found:
        return text, ""
    degree, percent, words = found.groups()
    left = text[:found.start()].strip()
    if words is None:
        if re.search(r"\\?(?:sin|cos|tan|sec|csc|cot)\b", left) or len(split(left.lstrip("+-"), "+-")) > 1:
            return text, ""  # belongs to the last number alone
        return left, "%" if percent else f"deg{degree or ''}"
    names = re.findall(r"[A-Za-z%]+|\d|/", words)
    alone = [name for name in names if len(name) == 1 and name.isalpha()]
    known = [name for name in names if not name.isalpha() or name in _LONE or {name.lower(), name.lower().removesuffix("s")} & _KNOWN]
    # 2ab and \frac12 mv^2 are products: without \text{} a unit is known, or a word that stands apart
    before = text[found.start(3) - 1]
    apart = before == " " and len(names[0]) >= (3 if text[:found.start(3)].rstrip()[-1:].isdigit() else 4)
    odd = [name for name in names if name not in known and (len(name) < 3 or not re.search("[aeiouyAEIOUY]", name))]  # no word: a product
    product = bool(odd) or (words[0] != '"' and not apart and (names[0].lower() not in _KNOWN or before not in " 0123456789"))
    if product or _NOT_UNITS.search(words) or not set(alone) <= _LONE or len(names) - len(known) > 3:
        return text, ""
    names = ["/" if name == "per" else name if len(name) <= 3 and not name.islower() and name not in ("AM", "PM") else name.lower()
             for name in names]
    names = [_UNIT_WORDS.get(name) or _UNIT_WORDS.get(name.removesuffix("s")) or (name.removesuffix("s") if len(name) > 3 else name)
             for name in names]
    power = {"square": "2", "sq": "2", "cubic": "3"}.get(names[0]) if names else None
    return left, " ".join([*names[1:], power] if power and len(names) > 1 else names)
