"""One spelling for what is written in many ways: LaTeX macros, unicode signs, thousands separators, units."""
from __future__ import annotations

import re

_SIGNS = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u00f7": "\\div ",
    "\u00b0": "^\\circ ", "\u03c0": "\\pi ", "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\neq ",
    "\u2248": "\\approx ", "\u2208": "\\in ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2205": "\\emptyset ", "\u00b1": "\\pm ",
    "\u2213": "\\mp ", "\u221a": "\\sqrt ", "\u2032": "'", "\u2019": "'", "\u2033": "''", "\u201c": " ", "\u201d": " ", "\u3000": " ",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u03b1": "\\alpha ", "\u03b2": "\\beta ", "\u03b3": "\\gamma ", "\u03b8": "\\theta ",
    "\u03bb": "\\lambda ", "\u03bc": "\\mu ", "\u03c3": "\\sigma ", "\u03c6": "\\phi ", "\u03c9": "\\omega ", "\u00b2": "^{2}",
    "\u00b3": "^{3}", "\u00b9": "^{1}", "\u2070": "^{0}", "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}",
    "\u2153": "\\frac{1}{3}", "\u2154": "\\frac{2}{3}", "\u20ac": " ", "\u00a3": " "}
_UNICODE = {ord(sign): plain for sign, plain in _SIGNS.items()}
_UNICODE |= {0xFF01 + i: chr(0x21 + i) for i in range(94)}  # fullwidth letters, digits and signs
_UNICODE |= {0x2070 + digit: f"^{{{digit}}}" for digit in range(4, 10)}

_MULTIPLES = {"thousand": "\\cdot 10^{3} ", "million": "\\cdot 10^{6} ", "billion": "\\cdot 10^{9} ", "trillion": "\\cdot 10^{12} "}
_SPELLINGS = [(re.compile(pattern), new) for pattern, new in [
    (r"<\|.*$|\\(?:displaystyle|limits|nolimits|tag\*?\{[^{}]*\}|label\{[^{}]*\})", ""),
    (r"\\\$\s*((?:\d|,(?=\d)|\{,\}|\.(?=\d)|,\\!)+)", r'\1 "dollar" '),
    (r'(?i)(?<=\d)\s*(?:\\text\s*\{)?\s*(thousand|million|billion|trillion)\b\}?', lambda m: _MULTIPLES[m[1].lower()]),
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?", ""),
    (r"\{\s*,\s*\}|,\\[!,]\s*", ","),
    (r"(?<=\d)(?:\\[,;:! ]|~)\s*(?=\d{3}(?!\d))", ""),  # 1\,000
    (r"\\(?:text[a-z]*|mathrm|mathbf|bf|rm|mbox|operatorname|mathit|emph)\s*\{([^{}]*)\}", r'"\1"'),
    (r"(?<!\\)\\(?:quad|qquad|[,;:! ]|hspace\{[^{}]*\}|hfill|newline)|~", " "),
    (r"\\(?:boxed|fbox)\s*\{([^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*)\}", r" \1 "),
    (r"\\\$|\$|\\[()]|\\\[(?!\d*(?:em|pt|ex)\])|\\\]|^\s*\*\*|\*\*\s*$", " "),
    (r"\\leqslant|\\leq|<=|\\le(?![a-z])", r"\\le "), (r"\\geqslant|\\geq|>=|\\ge(?![a-z])", r"\\ge "), (r"\\lt(?![a-z])", "<"),
    (r"\\gt(?![a-z])", ">"), (r"\\not\s*=|\\neq|\\ne(?![a-z])|!=|<>", r"\\neq "), (r"\\approx|\\simeq|\\thickapprox", r"\\approx "),
    (r"(?i)(?<=\d) *\"? *\b([ap])\.? ?m\b\.?( *\")?", r'"\1m"'), (r"\\\\\[[^\]]*\]", r"\\\\ "), (r"\s+", " "),
]]
END = re.compile(r"[\s.,;:]+$")


def clean(text: str) -> str:
    """One spelling for what is written in many; \\text{...} becomes "..."."""
    text = text.replace('"', " ").translate(_UNICODE)
    for pattern, new in _SPELLINGS:
        text = pattern.sub(new, text)
    text = END.sub("", text.replace('" "', " ")).strip()
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

_UNIT = re.compile(r'(?:(?<=[\d)}!])|(?<=\\pi))\s*(?:(?:\^\{?\s*\\circ\s*\}?|\\degree)\s*"?([CF])?"?|\\?(%)|'
                   r'((?:"[^"]*[A-Za-z%][^"]*"|(?<![A-Za-z\\])[A-Za-z]{2,}\.?)(?:\s*(?:/|\^|\{|\}|\d|"[^"]*"|(?<![\\])\b[A-Za-z]+\b))*))$')
_UNIT_WORDS = {
    "percent": "%", "percentage": "%", "pct": "%", "degree": "deg", "inche": "in", "inch": "in", "feet": "ft", "foot": "ft",
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "millimeter": "mm",
    "liter": "l", "litre": "l",
    "minute": "min", "hour": "hr", "hr": "hr", "h": "hr", "second": "sec", "s": "sec", "pound": "lb", "gram": "g", "kilogram": "kg",
    "dollar": "dollar", "usd": "dollar", "mile": "mile", "mi": "mile"}
# words behind a number that change what is said
_NOT_UNITS = frozenset(re.findall(r"\w+", """
    and or not if then else mod pi sqrt sin cos tan log ln exp to is are choose but than where for when times of the more less plus minus
    dozen hundred half double twice squared cubed divided over with which that from by at as"""))


def take_unit(text: str) -> tuple[str, str]:
    """A cleaned text without its unit, and the unit in one spelling: "5 square inches" -> "5", "in 2". No unit: ""."""
    found = _UNIT.search(text)
    if not found:
        return text, ""
    degree, percent, words = found.groups()
    if words is None:
        return text[:found.start()].strip(), "%" if percent else f"deg{degree or ''}"
    names = [word.lower() for word in re.findall(r"[A-Za-z%]+|\d", words)]
    if not 0 < sum(not name.isdigit() for name in names) <= 4 or _NOT_UNITS & set(names):
        return text, ""
    names = [_UNIT_WORDS.get(name) or _UNIT_WORDS.get(name.removesuffix("s")) or (name.removesuffix("s") if len(name) > 3 else name)
             for name in names]
    power = {"square": "2", "sq": "2", "cubic": "3"}.get(names[0])
    return text[:found.start()].strip(), " ".join([*names[1:], power] if power and len(names) > 1 else names)
