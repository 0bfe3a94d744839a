"""Is this completion's answer the reference answer? Text in, bool out; nothing in the text is ever executed.

Plain numbers are compared as numerals, everything else by structure: lists, tuples, intervals, sets, matrices, equations,
inequalities, ratios and bases part by part; expressions by value (`common/latex.py` parses, `common/values.py` evaluates,
`common/equal.py` compares); the rest as text. Work is bounded by construction, so there is no timeout. docs/verifier.md has
the conventions.
"""
from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from common.verify.equal import TooMuchWork, Work, ratio, same, symbols
from common.verify.latex import Node, Unsupported, parse
from common.verify.spelling import END, NEGATION, clean, closing, depths, split, take_unit

MAX_ANSWER_LENGTH = 500  # characters; longer is an essay, not an answer, and bounds the work of a comparison
MAX_ITEMS = 64  # of a list, a set or a matrix: comparing unordered ones takes up to the square of it
Form = tuple[Any, ...]  # kind and parts, as `_forms` describes
# ---- the answer of a completion -------------------------------------------------------------------------------------

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|\{|\}", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s*(-?\d+(?:\.\d+)?|[A-Za-z])(?!\s*[\w/^!+*\\(-]|[.,]\d)")
_STATED = re.compile(r"answers?\b[*_]*+\s*+(?:(?:is|are)\b\s*+:?+|:|(?=[$\\]))[*_]*+(?!\s*+(?:\w+\s+){0,2}not\b)", re.IGNORECASE)
_DENIED = re.compile(r"(?:\w|\b(?:wrong|incorrect|false|if (?:the|our|my)|"
                     r"(?:not|cannot|whether|suppose|assume|nobody|doubt)\b[^.\n]{0,30}) |n't\b[^.\n]{0,30} )$", re.IGNORECASE)
_OPENING = re.compile(r"\s*(?:(?:therefore|thus|simply|just|then|hence|clearly|exactly),?\s+)?", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[^\s.])\.(?=\s|$)|\n(?=.*\S)|<\||,?\s(?:because|since)\b")


def extract_answer(completion: str) -> str | None:
    """The final answer stated in `completion`, or None.

    Looks behind a closing </think>, for: the last balanced \\boxed{} or \\fbox{}; else the line after the last ####; else the
    sentence after the last "answer is" or "answer:" that is not negated. Empty or over 500 characters is no answer. Linear
    in the length.
    """
    text = completion.rpartition("</think>")[2] if "</think>" in completion else completion
    answer = _last_box(text) if "\\boxed" in text or "\\fbox" in text else None
    if answer is None and "####" in text:
        answer = text.rpartition("####")[2].lstrip(" ").partition("\n")[0]
    if answer is None:
        told = _stated(text)
        if told is not None:
            answer = _SENTENCE.split(told[_OPENING.match(told).end():], maxsplit=1)[0]
    answer = answer.strip() if answer else ""
    return answer if 0 < len(answer) <= MAX_ANSWER_LENGTH else None



def _last_box(text: str) -> str | None:
    """What the last balanced box holds, an outer one rather than those inside it."""
    if text.count("\\boxed{") == 1 and text.count("box") == 1:  # nearly always: one box, and nothing in it that could nest
        start = text.find("\\boxed{") + 7
        inside = text[start:text.find("}", start)]
        if "{" not in inside and "\\" not in inside and start + len(inside) < len(text) and text[start + len(inside)] == "}":
            return inside
    answer, opened = None, []
    for match in _BRACES.finditer(text):
        if match[0][-1] == "{" and match[0] != "\\{":
            opened.append(match)
        elif match[0] == "}" and opened:
            start = opened.pop()
            if start[0] != "{":
                answer = (start.end(), match.start())
    if answer is None and (bare := _BARE_BOX.match(text, max(0, text.rfind("\\boxed")))):
        return bare[1]
    return text[slice(*answer)] if answer else None



def _stated(text: str) -> str | None:
    """What follows the last "answer is" or "answer:" that nothing denies."""
    last = {word: text.rfind(word) for word in ("answer", "Answer", "ANSWER")}
    while (at := max(last.values())) >= 0:
        found = _STATED.match(text, at)
        if found and not _DENIED.search(text[max(0, at - 45):at]):
            return text[found.end():found.end() + 2 * MAX_ANSWER_LENGTH]
        word = text[at:at + 6]
        last[word] = text.rfind(word, 0, at)
    return None



def is_correct(completion: str, reference: str) -> bool:
    """True if the completion's final answer equals the reference: a bare answer or a worked solution. Never raises."""
    try:
        answer = extract_answer(completion)
        return answer is not None and answers_equal(answer, reference_answer(reference))
    except RecursionError:  # the caller is at the end of the stack
        return False



@lru_cache(maxsize=4096)  # a reference is compared with many completions
def reference_answer(reference: str) -> str:
    """The bare answer of a reference, which may be a worked solution with \\boxed{} or ####."""
    marked = "\\boxed" in reference or "\\fbox" in reference or "####" in reference
    return (extract_answer(reference) if marked else None) or reference.strip()

# ---- plain numbers --------------------------------------------------------------------------------------------------

_PLAIN = re.compile(r"([+-]?)\s*\$?(?:([1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.(\d*))?|\.(\d+))\$?", re.ASCII)


def _plain(text: str) -> str | None:
    """A decimal numeral without what does not change its value: "+1,250.50" -> "1250.5". None for anything else."""
    if len(text) < 19 and text.isdecimal() and text[0] != "0" and text.isascii():
        return text
    match = _PLAIN.fullmatch(text)
    if match is None:
        return None
    sign, whole, decimals, bare = match.groups()
    decimals = (decimals or bare or "").rstrip("0")
    whole = (whole or "").replace(",", "").lstrip("0") or "0"
    number = f"{whole}.{decimals}" if decimals else whole
    return f"-{number}" if sign == "-" and number != "0" else number

_plain_reference = lru_cache(maxsize=4096)(_plain)


def answers_equal(a: str, b: str) -> bool:
    """True if two bare answers are the same. Example: "0.5" and "\\frac{1}{2}" are, "[1,2)" and "(1,2)" are not. Never raises."""
    if max(len(a), len(b)) > MAX_ANSWER_LENGTH:
        return False
    try:
        plain = _plain(a)
        other = _plain_reference(b) if plain is not None else None
        if other is not None:
            return plain == other
        left, right = _forms(a), _forms(b)
        if left and right and left[0][0] == right[0][0] == "relation":  # x > 5 is not y > 5, though both are (5, \infty)
            left, right = left[:1], right[:1]
        work = Work()
        return any(_equal(x, y, work) for x in left for y in right)
    except (Unsupported, TooMuchWork, RecursionError):
        return False

# ---- forms ----------------------------------------------------------------------------------------------------------

_THOUSANDS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_JOINED = re.compile(r'\s*,?\s*"?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*"?\s*', re.IGNORECASE)
_PLAIN_WORDS = (r"(?!.*(?:" + NEGATION + r"|\b(?:or|squared?|cubed?|plus|minus|doubled?|tripled?|half|twice|reciprocal|opposite|"
                r"negative|mod|fails?|eliminated|untrue|union|also)\b))")
# "The value of f(x) is": no number, one verb, nothing that hedges
_PROSE = re.compile(_PLAIN_WORDS + r"(?:so|thus|therefore|hence|then|the|this|our|its?|final|answer)\b"
                    r"(?:(?!\b(?:is|are|equals)\b)[A-Za-z() '])*+"
                    r"\b(?:is|are|equals)\b:?\s+(?=\S)(?!.*\b(?:is|are|equals)\b)|answers?\b:?\s+(?=\S)", re.IGNORECASE)
_SPAN = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
# one formula in a sentence that says nothing else: "We find that ... is our answer."
_TALK = re.compile(r"(?:(?:so|thus|therefore|hence|then|we|find|get|have|obtain|see|conclude|that|here|is|are|the|a|an|this|our|final|"
                   r"answer|solution|result|value|values|equation|inequality|matrix|zero|special|set|interval|expression|equals|it|must|be)[,:]?\s+)+\x00\s*"
                   r"(?:is\s+(?:the|our|a)\s+(?:final\s+)?(?:solution|answer|result))?[.!\s]*", re.IGNORECASE)
_RELATION = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|\\neq|\\approx|\\equiv|\\in(?![a-z])|\\to(?![a-z])|\\sim|(?<!\\)[=<>]")
# what may stand before = as a name for the value: x, f(5), a_{n+1}, (p, q), |AB|, AB : CD, \frac{NO}{BO}, g^{-1}(x), \cos A
_NAME = re.compile(r"""\\(?:sin|cos|tan)\s*\\?[A-Za-z]+|\\(?:int|sum|prod|lim)(?![a-z]).*|[a-dk-np-s](?:\s*\+\s*[a-dk-np-s])+|\\sigma\^2|"""
                   r"""\\frac\{d\^2 ?[a-z]\}\{d[a-z]\^2\}|\(\s*[A-Za-z]\w?(?:\s*,\s*[A-Za-z]\w?)+\s*\)|"""
                   r"""(?:\\(?:angle|triangle|overline|frac|alpha|beta|theta|lambda|mu|Delta|phi|vec|sigma)|[A-Za-z|{}: ".'/]|"""
                   r"""_\{[^{}]*\}|_\w|(?<=[fghPE])\([^()]*\)|(?<=[EP])\[[^\[\]]*\]|(?<=[A-Za-z'}])\(\s*-?(?:[A-Za-z]|\d+)(?:\s*,\s*-?(?:[A-Za-z]|\d+))*\s*\)|"""
                   r"""\^\{?-1\}?(?=\())++""")
# and what makes it something else: a denial, an operation in words, a product of variables
_NO_NAME = re.compile(NEGATION + r"|(?i:\b(?:half|twice|double|triple|squared?|cubed?|minus|plus|times|opposite|reciprocal|negative|bound|"
                      r"fake)\b)|(?<![A-Za-z_\\])(?!max|min|gcd|lcm|sum|avg|d[a-z](?![a-z]))[a-z]{2,3}(?![A-Za-z])|"
                      r"(?<![A-Za-z\\])[a-z] [a-z](?![A-Za-z])")
_BASE = re.compile(r"(-?)\(?0*(\d[\dA-F]*)\)?_(?:\{\s*\"?(\w+)\"?\s*\}|(\d))")
_MATRIX = re.compile(r"[(\[]?\s*\\begin\{([pbvBV]?)(matrix|array|smallmatrix|cases)\}(?:\{[^}]*\})?(.*)\\end\{\1\2\}\s*[)\]]?", re.DOTALL)
_WORDED = re.compile(r"(?<![A-Za-z\\])(?!sqrt|arc)[A-Za-z]{4,}|(?:^| )[A-Za-z]{3} \d|^0[xob]\w")  # a sentence, a name, a hexadecimal
_CHOICE = re.compile(r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?([A-Z])\)?[.:)]?|\(([A-Z])\)\s+" + _PLAIN_WORDS +
                     r"(?!and\b)(?:[A-Z]?[a-z]{2,}(?: [a-z]+)*|-?\d+)")


@lru_cache(maxsize=8192)
def _forms(answer: str) -> tuple[Form, ...]:
    """What an answer may be read as, mostly one form. Empty for an answer that says nothing.

    ("value", node, text, unit), ("list", items), ("set", items), ("seq", brackets, items), ("union", items), ("matrix", kind, rows),
    ("relation", operators, parts, whether the first is a name), ("and", relations), ("or", relations), ("ratio", parts, zero-padded),
    ("base", digits, base), ("thousands", parts), ("text", text); items and parts are tuples of forms.
    """
    if len(answer) > MAX_ANSWER_LENGTH:
        return ()
    spans = _SPAN.findall(answer)
    if len(spans) == 1 and _TALK.fullmatch(_SPAN.sub("\x00", answer)):  # one formula in a sentence
        answer = next(filter(None, spans[0]))
    text = clean(answer)
    if len(text) > 2 * MAX_ANSWER_LENGTH:
        return ()
    if not any(c.isalnum() or c == "?" for c in text) and not text.startswith("\\"):
        return ()
    spoken = text.replace('"', "")
    prose = _PROSE.match(spoken)
    if prose and spoken[prose.end():]:
        text = spoken[prose.end():]
    found = re.fullmatch(r'"?\s*(.+?)\s*"?', text)
    choice = _CHOICE.fullmatch(found[1].replace('"', "").strip()) if found else None
    if choice and (choice[1] or choice[2]):
        letter = choice[1] or choice[2]
        return (_value(letter),)
    text = re.sub(r"^(?:=|\\approx)\s*", "", text)
    forms = [_form(text)]
    if _THOUSANDS.fullmatch(text.lstrip("+-")):
        forms.append(("thousands", tuple(_form(item) for item in text.split(","))))
    if re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?", text):
        forms.append(("seq", "()", (_value("-\\infty"), _value("\\infty"))))
    interval = _interval(forms[0])
    return (*forms, interval) if interval else tuple(forms)



def _each(pieces: list[str], depth: int) -> tuple[Form, ...]:
    """The forms of the pieces of something. Raises Unsupported for too many, or an empty one."""
    if len(pieces) > MAX_ITEMS or not all(piece.strip(' "') for piece in pieces):
        raise Unsupported("items")
    return tuple(_form(piece, depth + 1) for piece in pieces)



def _items(inside: str, thousands: bool, depth: int) -> tuple[Form, ...]:
    """The forms of what semicolons and commas separate; `thousands`: 5,100 may be one number."""
    return _each([piece for part in split(inside, ";") for piece in (_commas(part) if thousands else split(part, ","))], depth)



def _form(text: str, depth: int = 0) -> Form:
    """The form of a cleaned text. Raises Unsupported if it is nested too deeply."""
    if depth > 8:
        raise Unsupported("too deep")
    text = END.sub("", text).strip()

    words = {word.lower() for word in re.findall(r"\b(?:and|or)\b", text, re.IGNORECASE)}
    joined = _JOINED.sub(";", text) if words else text
    joined = joined if all(piece.strip(' "') for piece in joined.split(";")) else text
    if len(split(joined, ";")) > 1 or len(_commas(joined)) > 1:
        listed = _items(joined, True, depth)
        return _joined_relations(listed, words) if joined != text else _flat("list", listed)
    relation = _relation(text, depth)
    if relation:
        return relation
    matrix = _MATRIX.fullmatch(text)
    if matrix and "\\begin" not in matrix[3]:
        between = "&" if "&" in matrix[3] or matrix[2] == "cases" else ","
        rows = [split(row, between) for row in re.sub(r"\\hline", "", matrix[3]).split("\\\\")]
        rows = rows[:-1] if not "".join(rows[-1]).strip() else rows
        if sum(map(len, rows)) > MAX_ITEMS:
            raise Unsupported("entries")
        kind = "cases" if matrix[2] == "cases" else {"v": "determinant", "V": "norm"}.get(matrix[1], "matrix")
        rows = [[re.sub(r'"\s*,?\s*(?:if|for|when)\s*"', "", entry) for entry in row] for row in rows]
        return ("matrix", kind, tuple(tuple(_form(entry, depth + 1) for entry in row) for row in rows))
    unions = re.split(r"\\cup(?![a-z])|(?<=[)\]])\s*U\s*(?=[(\[])", text)
    if len(unions) > 1:
        return ("union", _each(unions, depth))
    braces = re.fullmatch(r"\\?\{(.*?)\\?\}", text, re.DOTALL)
    if braces and (text[0] == "\\" or len(split(braces[1], ",;")) > 1) and closing(text.replace("\\{", "{").replace("\\}", "}"), 0) >= 0:
        if builder := re.fullmatch(r"\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|:|\||\\vert)\s*(.+)", braces[1]):
            inner = _form(builder[2], depth + 1)
            if inner[0] == "relation" and any(part[0] == "value" and part[2] == builder[1] for part in inner[2]):
                return _interval(inner) or inner
            return ("text", text)
        # {5,100} is a set of two, {1,000, 2} is one as well
        return _flat("set", _items(braces[1], ", " in braces[1], depth)) if braces[1].strip() else ("text", "\\emptyset")
    if text[:1] in ("(", "[") and closing(text, 0) == len(text) - 1 and len(split(text[1:-1], ",;")) > 1:
        rows = split(text[1:-1], ";")
        pieces = rows if len(rows) > 1 else _commas(text[1:-1]) if ", " in text else split(text[1:-1], ",")
        return ("seq", text[0] + text[-1], tuple(_form(piece, depth + 1) for piece in pieces))
    base = _BASE.fullmatch(text)
    if base:
        return ("base", base[1] + base[2], base[3] or base[4])
    if ":" in text and len(ratio_parts := split(text, ":")) > 1 and all(part.strip() for part in ratio_parts):
        padded = tuple(bool(re.match(r"\s*0\d", part)) for part in ratio_parts[1:])  # 1:03 is not 1:3
        return ("ratio", tuple(_form(part, depth + 1) for part in ratio_parts), padded)
    if "\\pm" in text or "\\mp" in text:
        if text.count("\\pm") > 1 and "\\mp" not in text:  # together, or each by itself?
            return ("text", text.replace(" ", ""))
        both = (text.replace("\\pm", "+").replace("\\mp", "-"), text.replace("\\pm", "-").replace("\\mp", "+"))
        return ("list", tuple(_value(one) for one in both))
    return _value(text)



def _commas(text: str) -> list[str]:
    """The pieces of a list; the commas within 1,234,567 separate nothing, unless the list has no spaces and other commas."""
    held = _THOUSANDS.sub(lambda match: match[0].replace(",", "\x00"), text) if "," in text else text
    return [piece.replace("\x00", ",") for piece in split(held, ",")]



def _flat(kind: str, items: tuple[Form, ...]) -> Form:
    """A list in a list is one list: 1, 2 \\pm 3. Raises Unsupported for one that is too long."""
    flat = tuple(part for item in items for part in (item[1] if item[0] == "list" else (item,)))
    if len(flat) > MAX_ITEMS:
        raise Unsupported("items")
    return (kind, flat)



def _relation(text: str, depth: int) -> Form | None:
    """An equation, an inequality, a chain of them; or what stands behind "x \\in"."""
    outside = depths(text)
    found = [match for match in _RELATION.finditer(text) if outside[match.start()] == 0]
    operators, cuts = [match[0] for match in found], [match.span() for match in found]
    if not operators:
        return None
    edges = [0, *(edge for cut in cuts for edge in cut), len(text)]
    texts = [text[edges[i]:edges[i + 1]].strip() for i in range(0, len(edges), 2)]
    if operators == ["\\in"] and _NAME.fullmatch(texts[0]) and not _NO_NAME.search(texts[0]):
        inside = _form(texts[1], depth + 1)
        if inside[0] in ("seq", "set", "union", "list") or "mathbb" in texts[1]:
            return inside
    parts = tuple(_form(part, depth + 1) if part else ("text", "") for part in texts)
    named = bool(texts[0]) and bool(_NAME.fullmatch(texts[0])) and not _NO_NAME.search(texts[0]) \
        and set(operators) <= {"=", "\\approx"}
    return ("relation", tuple(operators), parts, named)



def _joined_relations(items: tuple[Form, ...], words: set[str]) -> Form:
    """A list; of inequalities it matters which word joins them: a union of intervals for or, what lies in all of them for and."""
    if len(words) != 1 or not all(item[0] == "relation" and set(item[1]) <= set(_FLIPPED) for item in items):
        return _flat("list", items)
    names = [{part[2] for part in item[2] if part[0] == "value" and part[1] and part[1][0] == "sym"} for item in items]
    if len(set().union(*names)) != 1:
        return (next(iter(words)), items)
    intervals = tuple(_interval(item) for item in items)
    if words == {"or"}:
        return ("union", tuple(interval or item for interval, item in zip(intervals, items, strict=True)))
    if len(items) == 2 and None not in intervals:
        infinity = _value("\\infty")
        below = [x for x in intervals if x[2][1] == infinity]
        above = [x for x in intervals if x[2][1] != infinity and x[2][0] == _value("-\\infty")]
        if len(below) == len(above) == 1:
            return ("seq", below[0][1][0] + above[0][1][1], (below[0][2][0], above[0][2][1]))
    return ("and", items)



def _interval(form: Form) -> Form | None:
    """1 < x \\le 2 as (1, 2], and x > 1 as (1, \\infty)."""
    if form[0] != "relation" or not set(form[1]) <= {"<", ">", "\\le", "\\ge"}:
        return None
    operators, parts = form[1], form[2]
    if operators[0] in (">", "\\ge"):
        operators, parts = tuple(_FLIPPED[operator] for operator in operators[::-1]), parts[::-1]
    if not set(operators) <= {"<", "\\le"}:
        return None
    named = [part[0] == "value" and part[1] is not None and part[1][0] == "sym" for part in parts]
    infinity = _value("\\infty"), _value("-\\infty")
    if len(parts) == 2 and named == [True, False]:
        return ("seq", "(" + (")" if operators[0] == "<" else "]"), (infinity[1], parts[1]))
    if len(parts) == 2 and named == [False, True]:
        return ("seq", ("(" if operators[0] == "<" else "[") + ")", (parts[0], infinity[0]))
    if len(parts) == 3 and named == [False, True, False]:
        return ("seq", ("(" if operators[0] == "<" else "[") + (")" if operators[1] == "<" else "]"), (parts[0], parts[2]))
    return None

_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


def _mixed(match: re.Match[str]) -> str:
    """2 1/2 as a sum, if its fraction is one."""
    return f"({match[1]}+{match[2]}/{match[3]})" if int(match[2]) < int(match[3]) else match[0]



def _value(text: str) -> Form:
    """A number or expression, with its unit if there is one; or a text."""
    text, unit = take_unit(text)
    text = re.sub(r"(?<![\d.^_}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", _mixed, _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text))
    bare = text.replace('"', "").strip()
    if re.fullmatch(r"[A-Za-z][A-Za-z' -]*[A-Za-z.]", bare) and re.search(r"[A-Za-z]{3}|^(?:no|on|up|or|[IVX]{2}|[TFH]{2})$", bare) \
            and not re.fullmatch(r"theta|alpha|beta", bare):
        words = " ".join(bare.rstrip(".").split())
        return ("text", re.sub(r"^(?:a|an|the) ", "", words if words.isupper() and len(words) < 4 else words.lower()))
    spelled = re.sub(r"(?<=\d)\s+(?=\d)", "~", text)
    spelled = re.sub(r"\s+|\"|(?<=[_^])\{(?=\w\}(?!\d))|(?<=[_^]\{\w)\}(?!\d)", "", spelled)
    try:
        node: Node | None = None if _WORDED.search(bare) else parse(text)
    except Unsupported:
        node = None
    return ("value", node, spelled, unit)



# ---- comparing ------------------------------------------------------------------------------------------------------

def _equal(x: Form, y: Form, work: Work) -> bool:
    """Whether two forms are the same answer. Symmetric."""
    if x[0] != "relation" and y[0] == "relation":
        x, y = y, x
    if x[0] == "relation":
        work.spend(4 * len(x[2]))
        if y[0] == "relation":
            return _same_relation(x, y, work)
        parts = x[2][1:] if x[3] else x[2]
        return (x[3] or not any(part[0] == "value" and part[1] and symbols(part[1]) for part in parts)) and _true_chain(x[1], parts, work) \
            and _equal(parts[0], y, work)
    kinds = {x[0], y[0]}
    if kinds <= {"list", "set"}:
        return _unordered(x[1], y[1], work)
    if kinds == {"thousands", "list"}:  # 1,234 for 1, 234
        return _ordered(x[1], y[1], work)
    if x[0] != y[0]:
        return kinds == {"value", "text"} and (x[2] if x[0] == "value" else x[1]) == (y[2] if y[0] == "value" else y[1])
    if x[0] == "value":
        return (x[3] == y[3] or not x[3] or not y[3]) and _same_value(x, y, work)
    if x[0] in ("union", "and", "or"):
        return _unordered(x[1], y[1], work)
    if x[0] == "seq":
        return x[1] == y[1] and _ordered(x[2], y[2], work)
    if x[0] == "matrix":
        return x[1] == y[1] and len(x[2]) == len(y[2]) and all(_ordered(a, b, work) for a, b in zip(x[2], y[2], strict=True))
    if x[0] in ("ratio", "thousands"):
        return x[2:] == y[2:] and _ordered(x[1], y[1], work)
    return x[1:] == y[1:]  # texts and bases



def _true_chain(operators: tuple[str, ...], parts: tuple[Form, ...], work: Work) -> bool:
    """Whether values in a row are said to be equal and are, as 6/4 = 3/2; what comes after \\approx is a comment."""
    before = operators[len(operators) - len(parts) + 1:]  # the operator before each part but the first
    exact = [part for part, operator in zip(parts[1:], before, strict=True) if operator == "="]
    return set(operators) <= {"=", "\\approx"} and all(_equal(parts[0], part, work) for part in exact)



def _same_value(x: Form, y: Form, work: Work) -> bool:
    if x[2] == y[2] and x[2]:
        return True
    if x[1] is None or y[1] is None:
        return False
    try:
        return same(x[1], y[1], work)
    except Unsupported:
        return False



def _ordered(x: tuple[Form, ...], y: tuple[Form, ...], work: Work) -> bool:
    return len(x) == len(y) and all(_equal(a, b, work) for a, b in zip(x, y, strict=True))



def _unordered(x: tuple[Form, ...], y: tuple[Form, ...], work: Work) -> bool:
    """Each of one is one of the other: equality is transitive, so taking the first that fits is enough."""
    left = list(y)
    if len(x) != len(y):
        return False
    for item in x:
        place = next((i for i, other in enumerate(left) if _equal(item, other, work)), None)
        if place is None:
            return False
        del left[place]
    return True



def _same_relation(x: Form, y: Form, work: Work) -> bool:
    """Equations that say the same up to a factor; inequalities up to a positive one; chains part by part, in either direction."""
    operators, parts = y[1], y[2]
    if x[1] == operators and _ordered(x[2], parts, work):
        return True
    flipped = tuple(_FLIPPED.get(operator, operator) for operator in operators[::-1])
    if not {"\\to", "\\in"} & set(flipped) and x[1] == flipped and _ordered(x[2], parts[::-1], work):
        return True
    sides = [side for form in (x, y) for side in form[2]]
    if len(sides) != 4 or any(side[0] != "value" or side[1] is None or side[3] for side in sides):
        return False
    if x[1] not in (operators, flipped) or x[1][0] not in ("=", "\\neq", *_FLIPPED):
        return False
    a, b = (("add", [side[1], ("neg", other[1])]) for side, other in (sides[:2], sides[2:]))
    try:
        sign = ratio(a, b, work)
    except Unsupported:
        return False
    if sign is None or x[1][0] in ("=", "\\neq"):
        return sign is not None
    return sign > 0 if x[1] == operators and x[1] != flipped else sign < 0
