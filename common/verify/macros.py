"""Takes away what changes only the look of a formula: sizes, colours, fonts and boxes, until none is left. Words come into quotes."""
from __future__ import annotations

import re

# macros without an argument, and macros that go with their argument
_DROPPED = frozenset(re.findall(r"\S+", """displaystyle textstyle scriptstyle limits nolimits tiny scriptsize footnotesize small
    normalsize large Large LARGE huge
    Huge checkmark blacksquare square bf it rm sf tt bfseries itshape rmfamily normalfont boldmath strut mathstrut nonumber notag
    allowbreak centering relax"""))
_DROPPED_WITH_ARGUMENT = frozenset({"color", "tag", "label", "hspace", "vspace", "phantom", "hphantom", "vphantom"})
# macros around a formula, and macros around words; those with a colour have it as their first argument
_UNWRAPPED = frozenset(re.findall(r"\S+", """boxed fbox framebox underline uline mathsf mathtt mathop mathord mathrel mathbin ensuremath
    smash textcolor colorbox
    fcolorbox mathnormal mathscr displaylines fbox enclose raisebox bbox"""))
_WORDS = frozenset(re.findall(r"\S+", """text textrm textbf textit textsf texttt textnormal textup textsc textmd textsl mathrm mathbf
    mathit mbox hbox operatorname
    emph boldsymbol bm pmb bold"""))
_NUM_FIRST_ARGUMENTS = {"textcolor": 1, "colorbox": 1, "fcolorbox": 2, "enclose": 1, "raisebox": 1}
# functions whose name is sometimes written as words
_OPERATORS = frozenset(re.findall(r"\S+", """sin cos tan sec csc cot cosec arcsin arccos arctan sinh cosh tanh coth sech csch ln log lg
    exp gcd lcm max min det cis
    arccot arcsec arccsc arsinh arcosh artanh arcsinh arccosh arctanh sup inf lim tr rank dim deg Pr Re Im Var Cov"""))
# letters in bold that are unit vectors; an i without a j or a k beside it is the imaginary unit: see vectors.py
_UNIT_VECTORS = frozenset("ijk")
_BOLD = frozenset({"mathbf", "boldsymbol", "bm", "pmb", "textbf"})
_OTHER_CASE = {"GCD": "gcd", "LCM": "lcm", "MAX": "max", "MIN": "min"}
_MACRO = re.compile(r"\\([A-Za-z]+)\*?(?:\s*(?=\{)|(?![A-Za-z]))")
_OLD_FONT = re.compile(r"\{\s*\\(?:bf|rm|it|sf|tt|bfseries)\b\s*([^{}]*)\}")
_DOLLAR = re.compile(r"(?<!\\)\$")


def without_styles(text: str) -> str:
    """The text without macros of style. Words of \\text and its like stand in double quotes: \\text{5 $\\frac12$ cm} is 5 \\frac12 "cm"."""
    if "\\" not in text:
        return text
    done, position = [], 0
    text = _OLD_FONT.sub(r"{\1}", text)
    while found := _MACRO.search(text, position):
        name = found[1]
        done.append(text[position:found.start()])
        position = found.end()
        groups = _groups(text, position, _NUM_FIRST_ARGUMENTS.get(name, 0) + 1) if name not in _DROPPED else []
        if name in _DROPPED:
            done.append(" ")
        elif groups and name in _DROPPED_WITH_ARGUMENT:
            position = groups[-1][1] + 1
        elif groups and (name in _UNWRAPPED or name in _WORDS):
            start, position = groups[-1][0] + 1, groups[-1][1] + 1
            content = text[start:position - 1]
            done.append(_bold_letter(content.strip()) if name in _BOLD and len(content.strip()) == 1 else
                        f" {without_styles(content)} " if name in _UNWRAPPED else _words(content))
        elif name in _WORDS and not found[0].endswith("*") and re.match(r"\s*(?:d|[A-Za-z](?![A-Za-z]))", text[position:position + 9]):
            letter = text[position:].lstrip()[0]  # \mathrm d
            position = text.index(letter, position) + 1
            done.append(_bold_letter(letter) if name in _BOLD else f" {letter} ")
        else:
            done.append(found[0])
    return "".join([*done, text[position:]])


def _groups(text: str, position: int, number: int) -> list[tuple[int, int]]:
    """The places of the braces around the next groups, or an empty list if there are fewer. An optional [...] may stand in front."""
    groups: list[tuple[int, int]] = []
    while len(groups) < number:
        while text[position:position + 1].isspace():
            position += 1
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
    pieces = _DOLLAR.split(content)
    if len(pieces) % 2 == 0:  # a dollar sign without its partner
        return _quoted(without_styles(content))
    parts = [_quoted(without_styles(piece)) if place % 2 == 0 else f" {without_styles(piece)} " for place, piece in enumerate(pieces)]
    return "".join(parts)


def _quoted(text: str) -> str:
    """Words in quotes. With digits or macros in the text, only its words are quoted: 5 cm is 5 "cm"."""
    text = text.replace("**", " ").replace("`", " ")
    if '"' in text:
        return text
    if not re.search(r"[\d\\]", text):
        return f'"{text}"' if text.strip() else " "
    return re.sub(r"(?<![\\A-Za-z])[^\W\d_](?:[^\W\d_]|['.,/-](?=[^\W\d_])|\.| (?=[^\W\d_]))*", r'"\g<0>"', text)
