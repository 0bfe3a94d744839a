"""Gives each LaTeX macro one spelling, in one pass over the text: names that mean the same, styles, spaces and words.

The tables are the place for more macros. Words of \\text and its like come into double quotes.
"""
from __future__ import annotations

import re

from common.verify.words import word_set


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: spelling for spelling, names in table.items() for name in names.split()}


# macros without an argument, by what they become. A style becomes a space
_SPELLINGS = _by_name({
    "\\frac": "dfrac tfrac cfrac sfrac nicefrac", "\\binom": "dbinom tbinom", "\\emptyset ": "varnothing oslash", "\\phi": "varphi",
    "\\angle": "measuredangle", "i": "imath", "j": "jmath", "\\mathbb{R}": "R Reals reals", "\\mathbb{Z}": "Z", ":": "colon",
    "\\cdots ": "dots cdots ldots dotsc dotsb dotsm dotsi dotso", "\\\\": "cr",
    "\\le ": "le leq leqq leqslant", "\\ge ": "ge geq geqq geqslant", "\\neq ": "ne neq", "<": "lt", ">": "gt",
    "^\\circ ": "degree degrees", "^\\circ C ": "degreeC degreeCelsius", "^\\circ F ": "degreeF",
    "\\approx ": "approx simeq thickapprox", '" or "': "lor vee", '" and "': "land wedge",
    "(": "langle", ")": "rangle", "\\{": "lbrace", "\\}": "rbrace", "|": "lvert rvert", "\\|": "Vert lVert rVert",
    "\u20ac": "euro texteuro", "\u00a3": "pounds textsterling", "\u00a5": "yen", "\\$": "mathdollar textdollar",
    " ": """displaystyle textstyle scriptstyle limits nolimits tiny scriptsize footnotesize small normalsize large Large LARGE huge Huge
         checkmark blacksquare square bf it rm sf tt bfseries itshape rmfamily normalfont boldmath strut mathstrut nonumber notag
         allowbreak centering relax quad qquad hfill newline , ; : ! ( ) [ ]"""})
_SPELLINGS[" "] = " "  # a space behind a backslash
# macros that look at what stands behind them: an argument, a bracket or an equation
_KINDS = _by_name({
    "size": "left right big bigl bigr bigm Big Bigl Bigr Bigm bigg biggl biggr biggm Bigg Biggl Biggr Biggm",
    "separator": "quad qquad \\",
    "dropped": "color tag label hspace vspace phantom hphantom vphantom",
    "formula": """boxed fbox framebox underline uline mathsf mathtt mathop mathord mathrel mathbin ensuremath smash textcolor colorbox
               fcolorbox mathnormal mathscr displaylines enclose raisebox bbox""",
    "words": "text textrm textit textsf texttt textnormal textup textsc textmd textsl mathrm mathit mbox hbox operatorname emph bold",
    "bold": "mathbf boldsymbol bm pmb textbf",
    "set": "mathbb mathds Bbb",
    "modulo": "mod pmod bmod"})
_NUM_FIRST_ARGUMENTS = {"textcolor": 1, "colorbox": 1, "fcolorbox": 2, "enclose": 1, "raisebox": 1}  # a colour, a height
# functions whose name is sometimes written as words
_OPERATORS = word_set("""sin cos tan sec csc cot cosec arcsin arccos arctan tg ctg arctg
    sinh cosh tanh coth sech csch ln log lg exp
    gcd lcm max min det cis arccot arcsec arccsc arsinh arcosh artanh arcsinh arccosh arctanh sup inf lim tr rank dim deg Pr Re Im Var
    Cov""")
# letters in bold that are unit vectors; an i without a j or a k beside it is the imaginary unit: see vectors.py
_UNIT_VECTORS = frozenset("ijk")
_OTHER_CASE = {"GCD": "gcd", "LCM": "lcm", "MAX": "max", "MIN": "min"}
_MACRO = re.compile(r"\\(q?quad|[A-Za-z]+|.)", re.DOTALL)  # in \quadx the space ends before the letter
_VALUE_AHEAD = re.compile(r"\s*\\?[A-Za-z]+(?:_\{?\w\}?)?\s*=")
_ARGUMENT_AHEAD = re.compile(r"\s*\{?\s*(\w+)\s*\}?")
_WORD = re.compile(r"(?<![\\A-Za-z])[^\W\d_](?:[^\W\d_]|['.,/-](?=[^\W\d_])|\.| (?=[^\W\d_]))*")


def spell_macros(text: str) -> str:
    """The text with one spelling for each macro. Words stand in double quotes: \\text{5 $\\frac12$ cm} is 5 \\frac12 "cm"."""
    if "\\" not in text:
        return text
    done, position = [], 0
    while found := _MACRO.search(text, position):
        done.append(text[position:found.start()])
        name, position = found[1], found.end()
        if name in _KINDS:
            spelled, position = _with_argument(name, text, position, done)
            done.append(spelled)
        else:
            done.append(_SPELLINGS.get(name) or found[0])
    return "".join([*done, text[position:]])


def _with_argument(name: str, text: str, end: int, done: list[str]) -> tuple[str, int]:
    """The spelling of a macro that ends at `end` and looks at what stands behind it, and the place behind both.

    `done`: the pieces in front of it.
    """
    kind = _KINDS[name]
    if kind == "size":
        at = _behind_spaces(text, end)
        angle = {("left", "<"): "(", ("right", ">"): ")"}.get((name, text[at:at + 1]), "")
        return angle, at + 1 if angle or text[at:at + 1] == "." else end
    if kind == "separator":
        behind = text.find("]", end) + 1 if name == "\\" and text[end:end + 1] == "[" else 0  # of [2ex]
        end = behind or end
        before = next((piece.rstrip()[-1] for piece in reversed(done) if piece.strip()), "")
        is_between = _VALUE_AHEAD.match(text, end) and (before.isalnum() or before in (")", "}", "]"))
        if is_between and (name != "\\" or "\\end" not in text[end:]):
            return ", ", end  # equations side by side, or below each other without an environment
        return " " if name != "\\" else "\\\\ " if behind else "\\\\", end
    argument = _ARGUMENT_AHEAD.match(text, end) if kind in ("set", "modulo") else None
    if kind == "set" and argument and argument[1].isupper() and len(argument[1]) == 1:
        return f"\\mathbb{{{argument[1]}}}", argument.end()
    if kind == "modulo" and argument:
        return f'"mod" ({argument[1]})', argument.end()
    star = text[end:end + 1] if text[end:end + 1] == "*" else ""
    end += len(star)
    groups = _groups(text, end, _NUM_FIRST_ARGUMENTS.get(name, 0) + 1)
    if groups and kind == "dropped":
        return "", groups[-1][1] + 1
    if groups and kind in ("formula", "words", "bold"):
        content = text[groups[-1][0] + 1:groups[-1][1]]
        is_letter = kind == "bold" and len(content.strip()) == 1
        return (_bold_letter(content.strip()) if is_letter else f" {spell_macros(content)} " if kind == "formula" else _words(content),
                groups[-1][1] + 1)
    at = _behind_spaces(text, end)
    letter, behind = text[at:at + 1], text[at + 1:at + 2]
    if kind in ("words", "bold") and letter.isalpha() and letter.isascii() and (letter == "d" or not behind.isalpha()):  # \mathrm d
        return _bold_letter(letter) if kind == "bold" else f" {letter} ", at + 1
    return f"\\{name}{star}", end


def _behind_spaces(text: str, at: int) -> int:
    while text[at:at + 1].isspace():
        at += 1
    return at


def _groups(text: str, position: int, number: int) -> list[tuple[int, int]]:
    """The places of the braces around the next groups, or an empty list if there are fewer. An optional [...] may stand in front."""
    groups: list[tuple[int, int]] = []
    while len(groups) < number:
        position = _behind_spaces(text, position)
        if text[position:position + 1] == "[" and (end := text.find("]", position)) > 0:
            position = end + 1
        if text[position:position + 1] != "{":
            return []
        depth, i = 0, position
        while i < len(text):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                break
            i += 2 if text[i] == "\\" else 1
        if i >= len(text):
            return []
        groups.append((position, i))
        position = i + 1
    return groups


def _bold_letter(letter: str) -> str:
    """A set of numbers, a unit vector, or another letter."""
    if letter in _UNIT_VECTORS:
        return f"\\vec{{{letter}}}"
    return f"\\mathbb{{{letter}}}" if letter in ("R", "Z", "N", "Q") else _words(letter)


def _words(content: str) -> str:
    """The content of \\text and its like: words in quotes; numbers, and formulas between dollar signs, without."""
    name = content.strip()
    name = _OTHER_CASE.get(name, name)
    if name in _OPERATORS:
        return f"\\{name} "
    if name in ("i", "e"):
        return f" {name} "
    pieces = [piece.replace("\x00", "\\$") for piece in content.replace("\\$", "\x00").split("$")]
    if len(pieces) % 2 == 0:  # a dollar sign without its partner
        return _quoted(spell_macros(content))
    parts = [_quoted(spell_macros(piece)) if place % 2 == 0 else f" {spell_macros(piece)} " for place, piece in enumerate(pieces)]
    return "".join(parts)


def _quoted(text: str) -> str:
    """Words in quotes. With digits or macros in the text, only its words are quoted: 5 cm is 5 "cm"."""
    text = text.replace("**", " ").replace("`", " ")
    if '"' in text:
        return text
    if "\\" not in text and not any(map(str.isdecimal, text)):
        return f'"{text}"' if text.strip() else " "
    return _WORD.sub(r'"\g<0>"', text)
