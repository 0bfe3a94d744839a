"""Where the reasoning steps of a text begin, and where in a text its tokens stand.

The rules "lines" and "math" are those of arXiv 2410.01679 and its code for GSM8K and MATH, written anew and made total: any
text has steps, where the published code raises on some. All work here is linear in the length of the text, or nearly.
"""
from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import pairwise

Span = tuple[int, int]  # of characters, the end not included
# "math": the lengths are the published ones, in characters
SHORT = 20  # a sentence below it is no step of its own
LONG = 100  # a part above it is cut in two
PROSE_HALF, MATHS_HALF = 40, 20  # no half of such a cut is shorter
# In the order in which they are hidden: what stands in a drawing or a table opens no formula, and `$$` is not `$` twice
DELIMITERS = (("[asy]", "[/asy]"), (r"\begin{tabular}", r"\end{tabular}"), (r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"))
DRAWINGS = ("[asy]", r"\begin{tabular}")
DISPLAYS = (r"\[", "$$", r"\begin")
FULL_STOPS = (".$", ".$$", r".\)", r".\]")
# Every pattern reads a character a bounded number of times: possessive where it repeats, and no `.*?` to a missing end
_NEWLINES = re.compile(r"\n\s*+")  # with the blank lines after it
_BLANK_LINE = re.compile(r"\n[ \t]*+\n")
_ESCAPED = re.compile(r"\\[\\$]")
_ENVIRONMENT = re.compile(r"\\(begin|end)(\{[^{}\n]*+\})")
_SENTENCE = re.compile(r"(?<!\b[A-Z])(?<!\b[A-Z][A-Za-z])\.(?=\s++[A-Z])")  # a full stop, but not that of J. Doe or Mr. Doe
# Only opening delimiters (up to four, so that a chain of them is not read again at each), or less than 3 characters
_NO_STEP = re.compile(r"\s*+(?:(?:(?:\\begin(?:\{[^{}]*+\}){1,2}+|\\\[|\$\$)\s*+){1,4}+|\S{0,2}\s*+)")
# Where a long part may be cut, best first. Commas and colons end a half; the words and the operators open one
_PROSE = [re.compile(p) for p in (r"(?<=,)", r"(?= and )", r"(?<=:)", r"(?= to )")]
_MATHS = [re.compile(p) for p in (r"(?<=,\$)(?!\$)|(?<=,\$\$)", r"(?<=,\\\))", r"(?<=,\\\])", "(?==)", r"(?=\\equiv)", r"(?=\+)",
                                  r"(?=\\cancelto)")]


def split_steps(text: str, rule: str = "lines") -> list[int]:
    r"""Character boundaries [0, ..., len(text)] of the steps, strictly increasing. "" has one empty step: [0, 0].

    "lines": a newline opens a step, and blank lines join the step after them: "A\n\nB" -> [0, 1, 4]. What stands from the first
    "\n#### " on belongs to the last line before it, or is the only step: "\nA\nB\n#### 7\n" -> [0, 2, 12].

    "math": sentences, cut further at newlines in display maths and near the middle of long parts, joined where they are short:
    "\nLet $x=3$. Then we have $x^2=9$. So the answer is $\boxed{9}$.\n" -> [0, 33, 64].

    Raises ValueError for another rule.
    """
    if rule not in ("lines", "math"):
        raise ValueError(f"{rule!r} is no rule for text: it is lines or math")
    if not text:
        return [0, 0]
    return _lines(text) if rule == "lines" else _math(text)


def _lines(text: str) -> list[int]:
    first = len(text) - len(text.lstrip())  # of the characters that are not blank
    answer = text.find("\n#### ") % (len(text) + 1)  # the end of the text if there is none
    return [0, *(m.start() for m in _NEWLINES.finditer(text) if m.start() > first and m.end() <= answer and m.end() < len(text)), len(text)]


def _math(text: str) -> list[int]:
    prose, spans = _hide_maths(text)
    starts = [start for start, _ in spans]

    def unfinished(start: int, end: int) -> bool:
        """Short, and no sentence. Hidden maths counts as 60 characters, so a part that holds any is not short."""
        return end - start < SHORT and text[end - 1] != "." and bisect_left(starts, start) == bisect_left(starts, end)

    cuts = {0, *(m.end() for m in _SENTENCE.finditer(prose)), *(m.start() for m in _NEWLINES.finditer(prose)), len(text)}
    cuts = _join(cuts, unfinished)
    stops = {end for start, end in spans if text.endswith(FULL_STOPS, start, end)}  # a sentence that ends within its maths
    cuts = _join({*cuts, *stops}, lambda start, end: end - start < SHORT and end not in stops)
    formulas = [(start, end) for start, end in spans if not text.startswith(DRAWINGS, start)]
    displays = [(start, end) for start, end in formulas if text.startswith(DISPLAYS, start)]
    rows = {m.start() for start, end in displays for m in _NEWLINES.finditer(text, start, end)}
    cuts = _join({*cuts, *rows}, lambda start, end: _NO_STEP.fullmatch(text, start, end) is not None)
    return _halve(cuts, prose, _hide(text, _gaps(formulas, len(text))))


def _join(cuts: Iterable[int], short: Callable[[int, int], bool]) -> list[int]:
    """The cuts without those after a part that is `short(start, end)`: it is joined to the next, the last to the one before."""
    _, *inner, end = sorted(cuts)
    kept = [0]
    for cut in inner:
        if not short(kept[-1], cut):
            kept.append(cut)
    if len(kept) > 1 and short(kept[-1], end):
        kept.pop()
    return [*kept, end]  # a text that is all short remains one step: the published code fails here


def _halve(cuts: list[int], prose: str, formulas: str) -> list[int]:
    """The cuts, and one more near the middle of each long part, until none can be cut. Drawings and tables never are."""
    if all(end - start <= LONG for start, end in pairwise(cuts)):
        return cuts  # the usual case, before eleven searches
    places = [([m.start() for m in pattern.finditer(hidden)], half) for patterns, hidden, half in
              ((_PROSE, prose, PROSE_HALF), (_MATHS, formulas, MATHS_HALF)) for pattern in patterns]
    parts = list(pairwise(cuts))
    found = set(cuts)
    while parts:
        start, end = parts.pop()
        if end - start <= LONG:
            continue
        middle = (start + end) / 2
        for positions, half in places:
            i = bisect_left(positions, middle)
            nearest = min(positions[max(i - 1, 0):i + 1], key=lambda cut: abs(cut - middle), default=-1)
            if start + half <= nearest <= end - half:
                found.add(nearest)
                parts += [(start, nearest), (nearest, end)]
                break
    return sorted(found)


def _hide_maths(text: str) -> tuple[str, list[Span]]:
    r"""The text with NUL characters in place of all maths, drawings and tables, as long as before; and where these stand.

    "So $x$ is" -> ("So \0\0\0 is", [(3, 6)]). What is not closed is prose. Each kind is sought in what the kinds before it left,
    so that a span holds an earlier one or is apart from it.
    """
    prose = _hide(text, (m.span() for m in _ESCAPED.finditer(text)))  # \$ is a price, and \\[2pt] a row of a matrix
    spans: list[Span] = []
    for opening, closing in DELIMITERS:
        found = list(_pairs(prose, opening, closing))
        prose = _hide(prose, found)
        spans += found
    open_at: dict[str, list[int]] = {}
    for match in _ENVIRONMENT.finditer(prose):
        kind, name = match.groups()
        if kind == "begin":
            open_at.setdefault(name, []).append(match.start())
        elif open_at.get(name):
            spans.append((open_at[name].pop(), match.end()))
    outer: list[Span] = []
    for start, end in sorted(spans):
        if outer and start < outer[-1][1]:
            outer[-1] = (outer[-1][0], max(end, outer[-1][1]))
        else:
            outer.append((start, end))
    return _hide(prose, outer), outer


def _pairs(text: str, opening: str, closing: str) -> Iterable[Span]:
    """From each opening delimiter to the next closing one, both included; of several openings before it the last."""
    start = text.find(opening)
    while start >= 0 and (close := text.find(closing, start + len(opening))) >= 0:
        end = close + len(closing)
        if opening == closing and _BLANK_LINE.search(text, start, close):
            # A formula holds no blank line: an unpaired dollar (a price) does not hide the paragraphs up to the next one
            end = close
        else:
            yield text.rfind(opening, start, close), end
        start = text.find(opening, end)


def _hide(text: str, spans: Iterable[Span]) -> str:
    """The text with NUL characters in the spans, which are in order and apart."""
    pieces, at = [], 0
    for start, end in spans:
        pieces += [text[at:start], "\0" * (end - start)]
        at = end
    return "".join([*pieces, text[at:]])


def _gaps(spans: list[Span], length: int) -> Iterable[Span]:
    """What lies between the spans."""
    return zip([0, *(end for _, end in spans)], [*(start for start, _ in spans), length], strict=True)
