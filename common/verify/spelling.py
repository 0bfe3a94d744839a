"""Gives an answer one spelling. LaTeX macros, unicode signs and thousands separators can each be written in many ways.

`normalize` rewrites a whole text: first its unicode signs, by a table; then its macros, by the tables of macros.py; then numbers, money and
words, by rules. The other functions find brackets in a text.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from common.verify.macros import spell_macros
from common.verify.words import pieces

_CURRENCIES = {"\u20ac": "euro", "\u00a3": "pound-sterling", "\u00a5": "yen", "\u20b9": "rupee", "\\$": "dollar", "USD": "dollar",
               "US": "dollar", "EUR": "euro", "GBP": "pound-sterling", "INR": "rupee", "Rs": "rupee"}

# ---- characters -----------------------------------------------------------------------------------------------------

_UNICODE_SIGNS = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u00f7": "\\div ",
    "\u00b0": "^\\circ ", "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\neq ",
    "\u2248": "\\approx ", "\u2208": "\\in ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2205": "\\emptyset ", "\u00b1": "\\pm ",
    "\u2213": "\\mp ", "\u2032": "'", "\u2019": "'", "\u2033": "''", "\u201c": " ", "\u201d": " ", "\u3000": " ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u03b1": "\\alpha ", "\u03b2": "\\beta ", "\u03b3": "\\gamma ", "\u03b8": "\\theta ",
    "\u03bb": "\\lambda ", "\u03bc": "\\mu ", "\u03c3": "\\sigma ", "\u03c6": "\\phi ", "\u03c9": "\\omega ",
    "\u03b4": "\\delta ", "\u03b5": "\\epsilon ", "\u0394": "\\Delta ", "\u2044": "/",
    "\u2010": "-", "\u2011": "-",
    "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}",
    "\u00ba": "^\\circ ", "\u221b": "\\sqrt[3]", "\u221c": "\\sqrt[4]",
    "\u27e8": "(", "\u27e9": ")", "\u2329": "(", "\u232a": ")", "\u3008": "(", "\u3009": ")", "\u3010": "[", "\u3011": "]",
    "\u3001": ", ", "\u3002": ". ", "\u2223": "\\mid ", "\u2216": "\\setminus ", "\u21a6": "\\mapsto ", "\u2192": "\\to ",
    "\u2261": "\\equiv ", "\u2200": "\\forall ", "\u2227": '" and "', "\u2228": '" or "', "\u2124": "\\mathbb{Z}",
    "\u2115": "\\mathbb{N}", "\u211a": "\\mathbb{Q}", "\u2102": "\\mathbb{C}", "\u2220": "\\angle ", "\u25b3": "\\triangle ",
    "\u2026": "\\cdots ", "\u22ef": "\\cdots ", "\u2209": "\\notin ", "\u2211": "\\sum ", "\u222b": "\\int ", "\u2202": "\\partial ",
    "\u03c1": "\\rho ", "\u03c4": "\\tau ", "\u03be": "\\xi ", "\u03b7": "\\eta ", "\u03ba": "\\kappa ", "\u03bd": "\\nu ",
    "\u03c8": "\\psi ", "\u03c7": "\\chi ", "\u03a9": "\\Omega ", "\u03a3": "\\Sigma ", "\u03b6": "\\zeta ", "\u230a": "\\lfloor ",
    "\u230b": "\\rfloor ", "\u2308": "\\lceil ", "\u2309": "\\rceil ", "\u2016": "\\|", "\u2a7d": "\\le ", "\u2a7e": "\\ge ",
    "\u200b": "", "\u2060": "", "\ufeff": "", "\u211d": "\\mathbb{R}", "\u2713": " ", "\u2714": " ", "\u25a0": " ",
    "\u2236": ":", "\u2215": "/", "\u2217": "*", "\u2012": "-", "\u2015": "-", "\u2062": "", "\u00ad": "", "\u220e": " ",
    "\u21d2": "\\Rightarrow ", "\u27f9": "\\implies ", "\u2234": "\\therefore ",
    "\u00a2": '"cent"', "\u2018": "'", "\u22a4": "\\top "}
_UNICODE_TABLE = {ord(sign): plain for sign, plain in _UNICODE_SIGNS.items()}
_UNICODE_TABLE |= {0xFF01 + i: chr(0x21 + i) for i in range(94)}  # fullwidth letters, digits and signs
_UNICODE_TABLE |= {0x2150 + i: f"\\frac{{{top}}}{{{below}}}" for i, (top, below) in enumerate(
    [(1, 7), (1, 9), (1, 10), (1, 3), (2, 3), (1, 5), (2, 5), (3, 5), (4, 5), (1, 6), (5, 6), (1, 8), (3, 8), (5, 8), (7, 8)])}
# each superscript is an exponent of its own; exponents beside each other are joined. \x01 to \x04 are their braces until then
_UNICODE_TABLE |= {ord(sign): f"\x01{plain}\x02" for sign, plain in zip(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f", "0123456789+-n", strict=True)}
_UNICODE_TABLE |= {0x2080 + digit: f"\x03{digit}\x04" for digit in range(10)}
_SCRIPTS = (("\x02\x01", ""), ("\x04\x03", ""), ("\x01", "^{"), ("\x03", "_{"), ("\x02", "}"), ("\x04", "}"))


# ---- rewrite rules --------------------------------------------------------------------------------------------------

def _join_rows(match: re.Match[str]) -> str:
    """The rows of an aligned environment as a list. A row that begins with = continues the row above it."""
    first, *rows = match[2].replace("&", "").split("\\\\")
    return first + "".join(row if row.lstrip()[:1] == "=" else f", {row.lstrip()}" for row in rows)


def _power_of_ten(match: re.Match[str]) -> str:
    """The power of ten of a word such as million. A quote that it takes away in front stays behind it, if more words follow."""
    quotes = match[0].replace('" dollar"', "").replace('"dollar"', "").count('"')
    return _POWERS_OF_TEN[match[1].lower()] + ('"' if quotes % 2 else "")


def _repeating(match: re.Match[str]) -> str:
    """0.\\overline{36} for 0.3636... Digits that do not repeat are left as they are."""
    digits = match[2]
    for length in range(1, len(digits) // 2 + 1):
        period, times = digits[-length:], 1
        while digits.endswith(period * (times + 1)):
            times += 1
        if times > 2 or (times == 2 and (length > 1 or len(digits) == 2)):
            return f"{match[1]}{digits.removesuffix(period * times)}\\overline{{{period}}}"
    return match[0]


def _money(match: re.Match[str]) -> str:
    """A currency behind its number, or a currency alone."""
    currency = f'"{_CURRENCIES[match[1] or match[2] or match[3]]}"'
    return f"{match[4]} {currency} " if match[4] else currency


_POWERS_OF_TEN = {"thousand": "\\cdot 10^{3} ", "million": "\\cdot 10^{6} ", "billion": "\\cdot 10^{9} ", "trillion": "\\cdot 10^{12} "}
_ENDS_OF_TURNS = ("<|im_", "<|end", "<|eot", "<|start")
_SIGNS = {"<=": "\\le ", ">=": "\\ge ", "!=": "\\neq ", "<>": "\\neq ", "{:}": ":", "$": " ", "~": " "}
# 1\,000 and 1{,}000
_THOUSANDS = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:(?:\\[,;:! ]|~)\s*\d{3}(?!\d))+|(?<=\d)\s*(?:\{\s*,\s*\}|,\\!\s*)(?=\d{3}(?!\d))")
# The rules apply in this order. A rule is (needed, pattern, replacement). It applies to texts that contain `needed`: "" is in every
# text, and None means every text that is not ASCII. Looking for `needed` first saves time, because a text seldom contains it.
_RULES: list[tuple[str | None, str, str | Callable[[re.Match[str]], str]]] = [
    # roots of numbers, as unicode signs have them
    (None, "\u221a(?:\\s*(\\d+(?:\\.\\d+)?))?", lambda m: f"\\sqrt{{{m[1]}}}" if m[1] else "\\sqrt "),
    ("\\sqrt[", r"(\\sqrt\[\d\])\s*(\d+(?:\.\d+)?)", r"\1{\2}"),
    # or, and: in Chinese between two values
    (None, "\"?\\s*(?<=[\\w)}\\]$\"\\s])\u6216\u8005?\\s*\"?(?=[\\s\\w\\\\({$-])", '" or "'),
    (None, "(?<=[A-Za-z0-9)}\\]$])\\s*\"?\\s*[\u548c\u4e0e\u53ca\u4e14]\\s*\"?\\s*(?=[A-Za-z0-9\\\\({$-])", '" and "'),
    # money, repeating decimals, numbers with a word: $3, 0.(3), 3 million, 3 x 10^8
    ("", r"(?:(\\\$(?=\s*\d))|\"?([\u20ac\u00a3\u00a5\u20b9])(?:\{\})?\"?|"
         r"\"?+\s*+\b(USD|EUR|GBP|INR|Rs|US(?=\"?\s*\\?\$))\.?+\s*+\"?+\s*+(?:\\?\$)?+(?=\s*+\d))"
         r"\s*+(\d(?:[\d.,]*\d)?(?:\^\{?\d+\}?|\\frac\s*\{?\d+\}?\s*\{?\d+\}?)?)?", _money),
    (".", r"(?<![\w)])(\d*\.\d*)\((\d{1,9})\)", r"\1\\overline{\2}"),
    ("\\dot", r"(\.\d*)\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?", r"\1\\overline{\2\3\4}"),
    ("{}", r"(?<![A-Za-z])\{\}(?=[\d^])|(?<=\d)\{\}", ""),
    ("10", r"(?<=\d)(?:[\s\"]* x [\s\"]*|\s*\"x\"\s*)(?=10\s*\^)", r"\\times "),
    ("{", r"\{\s*([-+=,])\s*\}", lambda m: ", " if m[1] == "," else m[1]),
    ('"', r'(?<=\d)\s*"\s*[eE]\s*([-+]?)\s*"\s*\{?([-+]?\d++)\}?(?![\s}]*_)', r"e\1\2"),  # 1.4\text{e-}3
    # signs and words
    ("", r"\\not\s*=|[<>]=|!=|<>|\{:\}|\\?\$|~", lambda m: _SIGNS.get(m[0].lstrip("\\")) or "\\neq "),
    ("oo", r"(?<![A-Za-z])oo\b", r"\\infty "),
    ("\\over", r"\{?([^{}\\]+)\\over(?![a-z])\s*([^{}\\]+)\}?$", r"\\frac{\1}{\2}"),
    ("\\begin", r"(?:\\\{\s*)?\\begin\{(aligned|align\*?|gathered|split)\}(.*?)\\end\{\1\}", _join_rows),
    ("", r'(?i)(?<=\d)\s*(?:" ?dollar")?[\s"]*(thousand|million|billion|trillion)\b(?: *("))?', _power_of_ten),
    (".", r"(\d*\.)(\d{2,40})\s*(?:\\cdots(?![A-Za-z])|\.\.\.)(?!\s*(?:[\w,+*-]|\\(?!%)))", _repeating),
    ("mod", r"\(\s*(?:\"?\s*|\\b)mod\b\s*\"?\s*(\w+)\s*\)", r'"mod" (\1)'),
    ("prime", r"\^\s*\{?\s*((?:\\prime\s*)+)\}?", lambda m: "'" * m[1].count("prime")),
    ("", r"(?i)(?<=\d) *\"? *\b([ap])\.? ?m\b\.?( *\")?", lambda m: f'"{m[1].lower()}m"'),  # a time of day
]
_COMPILED_RULES = [(needed, re.compile(pattern), replacement) for needed, pattern, replacement in _RULES]
# a text that no rule changes: numbers, single letters, signs, and macros that are their own spelling
SYMBOLS = re.compile(r"(?:\d+(?:\.\d+(?!\())?|[A-Za-z](?! *[A-Za-z]| +\d)|[-+/^()\[\]}=, ]|\*(?!\*)|\{(?![},\s]|[-+=]\})|"
                     r"\\(?:frac|sqrt(?!\[)|pi|cdot|times|infty|cup|sin|cos|tan|ln|log)(?![A-Za-z]))++")


@lru_cache(maxsize=4096)
def normalize(text: str) -> str:
    """The text in one spelling. `\\text{...}` becomes "..." in double quotes, so quotes of the text itself become spaces."""
    text = without_punctuation_at_end(" ".join(text.split())) if SYMBOLS.fullmatch(text) else _respelled(text)
    # braces around everything group; braces around several items are a set
    while text[:1] == "{" and closing_bracket(text, 0) == len(text) - 1 and len(split_outside_brackets(text[1:-1], ",;")) == 1 \
            and not is_builder(text):
        text = text[1:-1].strip()
    return text


def _respelled(text: str) -> str:
    """The text by all rules."""
    text = text.replace('"', " ").replace("`", " ")
    for mark in _ENDS_OF_TURNS if "<|" in text else ():
        text = text.partition(mark)[0]
    if not text.isascii():
        text = text.translate(_UNICODE_TABLE)
        for mark, plain in _SCRIPTS:
            text = text.replace(mark, plain)
    text = spell_macros(_THOUSANDS.sub(lambda match: "".join(filter(str.isdecimal, match[0])), text))
    text = text.replace("infinity", "\\infty ").replace("per cent", "percent")
    for needed, pattern, replacement in _COMPILED_RULES:
        applies = needed in text if needed is not None else not text.isascii()
        if applies:
            text = pattern.sub(replacement, text)
    text = " ".join(text.split()).replace('" "', " ").removeprefix("**").removesuffix("**")
    text = without_punctuation_at_end(text)
    if len(text) > 2 and text[0] == text[-1] == "'":
        text = text[1:-1].strip()
    if text[:1] == text[-1:] == '"' and '"' not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def without_punctuation_at_end(text: str) -> str:
    """The text without a stop and commas behind it. Two dots or more stand for something."""
    text = text.rstrip(" \n,;:")
    return (text[:-1] if text.endswith(".") and not text.endswith("..") else text).strip()


# ---- brackets -------------------------------------------------------------------------------------------------------

def closing_bracket(text: Sequence[str], start: int) -> int:
    """The index of the bracket that closes the bracket at `start`, or -1. It may be of another kind: [0, 1) is an interval.

    `text`: characters, or the pieces of tokens.py.
    """
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return -1


def bracket_depths(text: str) -> list[int]:
    """For each character, the number of brackets and environments around it."""
    depths, depth = [], 0
    for i, c in enumerate(text):
        if c in ")]}" or text.startswith("\\end", i):
            depth -= 1
        depths.append(depth)
        if c in "([{" or text.startswith("\\begin", i):
            depth += 1
    return depths


def is_builder(text: str) -> bool:
    """Whether the text begins as a set that is given by a condition does: {x | x > 5."""
    ahead = pieces(text[:12])
    return len(ahead) > 2 and ahead[0] == "{" and len(ahead[1]) == 1 and ahead[1].isalpha() and ahead[2] in ("|", ":", "\\mid", "\\vert")


_BRACKET_OR_MACRO = re.compile(r"[()\[\]{}\\]")


def split_outside_brackets(text: str, separators: str) -> list[str]:
    """The pieces between separators. A separator inside brackets or an environment does not separate."""
    if len(separators) == 1 and (separators not in text or not _BRACKET_OR_MACRO.search(text)):
        return text.split(separators)
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
