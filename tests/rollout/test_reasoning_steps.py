"""Where steps begin: the published examples, and any text whatever."""

import json
import re
from itertools import pairwise

import pytest
from helpers import SHARED
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.rollout.reasoning_steps import split_steps

RULES = ["lines", "math"]


def parts(text, rule):
    """The steps themselves; fails unless they are the text cut in pieces."""
    cuts = split_steps(text, rule)
    assert cuts[0] == 0 and cuts[-1] == len(text)
    assert not text or all(a < b for a, b in pairwise(cuts))
    pieces = [text[a:b] for a, b in pairwise(cuts)]
    assert "".join(pieces) == text
    return pieces


# ---- lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, cuts",
    [
        ("\nA\nB\n#### 7\n", [0, 2, 12]),
        ("A\nB\nC", [0, 1, 3, 5]),
        ("A\n\nB", [0, 1, 4]),
        ("14+2=16\n16-9=7\n#### 7", [0, 7, 21]),
        ("", [0, 0]),
        ("\n \nA\nB\n\n", [0, 4, 8]),
        ("A\n \nB\n\n#### 7", [0, 1, 13]),
        ("A\r\n\r\nB", [0, 2, 6]),
    ],
)
def test_lines(text, cuts):
    assert split_steps(text) == cuts == split_steps(text, "lines")


@pytest.mark.parametrize("text", ["\n", "\n\n \n", "x", "#### 7", "\n#### 7", "\n\n#### 7\n", "A\n#### 7", "A\n#### 1\nB\n#### 2\nC"])
def test_texts_of_one_line_and_everything_after_the_first_answer(text):
    assert parts(text, "lines") == [text]


def test_an_answer_without_a_newline_before_it_is_a_line():
    assert parts("#### 7\nA", "lines") == ["#### 7", "\nA"]


# ---- math -----------------------------------------------------------------------------------------------------------

SENTENCES = "\nLet $x=3$. Then we have $x^2=9$. So the answer is $\\boxed{9}$.\n"


@pytest.mark.parametrize(
    "text, cuts",
    [
        (SENTENCES, [0, 33, 64]),
        ("\nWe add the two numbers. The sum is 12.\nNow we divide by 4 to get the mean.\nThe answer is $\\boxed{3}$.", [0, 24, 75, 102]),
        ("\nWe have \\[a+b=5.\\]Then \\[a=2.\\]Thus the final answer is $\\boxed{2}$.", [0, 19, 32, 69]),
        (
            "\nThe total number of ways to choose two of the five people is five choose two, and this is equal to ten, "
            "since order does not matter here at all.",
            [0, 78, 145],
        ),
        ("\nFirst we note that the sum is even.\n\nTherefore the answer is $\\boxed{4}$.\n", [0, 36, 75]),
        ("\nThe answer is five now.", [0, 24]),
        ("\nThe answer is 5.", [0, 17]),  # here and below the published code fails
        ("\n", [0, 1]),
        ("", [0, 0]),
    ],
)
def test_math_as_published(text, cuts):
    assert split_steps(text, "math") == cuts


@pytest.mark.parametrize(
    "pieces",
    [
        # initials end no sentence, and neither does a decimal point
        ["This was shown by Mr. Doe and J. R. Roe in 3.5 years.", " It took them far too long."],
        # what stands in maths is no end of a sentence or line, and maths is no capital letter
        ["We find $x = 3. Now\ny = 2$ for both. $z$ remains.", " Then we know everything."],
        # a price is no maths, escaped or alone in its paragraph
        ["It costs \\$5 or more.", " She has only \\$3 with her."],
        ["It costs $5 or perhaps more.", "\n\nShe has 4 times $a$ with her."],
        # the full stop of a formula, which may be a display or not
        ["$x^2 = 9.$", "  Hence the sum is $$y = 3.$$", "Then we find \\(z = 4.\\)", " This is all there is to say."],
        # rows of display maths; an opening delimiter is no step, and neither are two characters
        ["We compute the following:", "\n\\begin{align*}\nx &= 2 \\\\[2pt]", "\n&= 3.", "\n\\end{align*}So we are done with it."],
        ["We compute the following:", "\n\\[\nx = 2", "\n\\]\nand find that y is 5."],
        ["We compute the following:", "\n\\[\n\\begin{array}{cc}\nx = 2", "\n\\end{array}", "\n= 3\\]"],
        ["We compute all of it:\n\\[ a", "\n+ bcd.\n\\]"],
        # the rows of a matrix within a formula of a line, a drawing, and a table are none
        ["The matrix is $\\begin{pmatrix} a \\\\\nb \\end{pmatrix}$ and nothing else."],
        ["See this: [asy]\ndraw(A); $ \\[\nlabel(B);\n[/asy] for $x$ and $y.$", " Now we are done with it."],
        ["See this:\n\\begin{tabular}{c}\n$ \\\\\n2\n\\end{tabular} where the sum is $5.$", " Now we are done with it."],
        # an environment in another of its kind, one that is never closed, and an end without a beginning
        ["\\begin{a}\n\\begin{a}\nxxx. Then", "\n\\end{a}", "\n\\end{a}"],
        ["\\begin{a} this is never closed.", " So \\begin{b} x. Then y \\end{b} \\end{c} is closed.", " Then it is done, I believe."],
    ],
)
def test_what_ends_a_step(pieces):
    assert parts("".join(pieces), "math") == pieces


@pytest.mark.parametrize(
    "pieces",
    [
        # the comma before other places, and of several the nearest to the middle
        ["a" * 40 + ",", " to b and " + "c" * 60],
        ["a" * 40 + "," + "b" * 30 + ",", "c" * 60],
        # with less than 40 characters on a side the next kind is tried
        ["a" * 30 + ", " + "b" * 20, " and " + "c" * 60],
        ["a" * 30 + ", " + "b" * 20 + ":", "c" * 60],
        ["a" * 50, " to " + "c" * 60],
        # maths only where prose has no place, and there 20 characters are enough
        ["$" + "a" * 30 + " and b, " + "c" * 20, "=" + "d" * 50 + "$"],
        ["$" + "a" * 20 + ",$", " b $" + "c" * 40 + "=" + "d" * 50 + "$"],
        ["\\[" + "a" * 40 + ",\\]", "b" * 70],
        ["$" + "a" * 40, "\\equiv " + "b+" * 5 + "c" * 50 + "$"],
        ["$" + "a" * 40, "\\cancelto{0}{" + "b" * 50 + "}$"],
        # no place at all: too near the ends, or in a drawing
        ["a, " + "b" * 120 + " to c"],
        ["[asy]" + "a=b+c, " * 30 + "[/asy]"],
    ],
)
def test_long_parts_are_cut_near_their_middle(pieces):
    assert parts("".join(pieces), "math") == pieces


def test_parts_are_cut_until_they_are_short():
    pieces = parts(" ".join(["seven,"] * 300), "math")
    assert len(pieces) > 21 and all(40 <= len(piece) <= 100 for piece in pieces)


def test_math_on_the_solutions_of_a_dataset():
    """Few steps are long or short, every one is opened by something that may open one, and long prose has no place for a cut."""
    file = SHARED / "math" / "math500.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    solutions = [json.loads(line)["solution"] for line in file.read_text(encoding="utf-8").splitlines()]
    steps_of = [parts(solution, "math") for solution in solutions]
    counts = sorted(map(len, steps_of))
    assert len(counts) == 500 and 5 < sum(counts) / 500 < 12 and 4 <= counts[250] <= 9 and counts[-1] < 100
    every = [step for found in steps_of for step in found]
    assert sum(len(step) > 100 for step in every) < 0.08 * len(every)
    assert sum(len(step) < 20 for step in every) < 0.08 * len(every)
    for step in every:
        if len(step) > 100 and not any(sign in step for sign in ("$", "\\", "[asy]")):
            assert not any(39 <= m.start() <= len(step) - 41 for m in re.finditer(",|:", step)), step
            assert not any(40 <= m.start() <= len(step) - 40 for m in re.finditer(" and | to ", step)), step
    for before, step in (pair for found in steps_of for pair in pairwise(found)):
        opens = step.startswith(("\n", " and ", " to ", "=", "+", "\\equiv", "\\cancelto"))
        assert opens or before.endswith((".", ",", ":", ".$", ".$$", "\\]", "\\)", ",$", ",$$")), (before, step)


# ---- any text whatever ----------------------------------------------------------------------------------------------

PIECES = [
    "\n",
    "\n\n",
    "\n#### ",
    " ",
    ". A",
    "a. B",
    ".",
    ",",
    ":",
    " and ",
    " to ",
    "$",
    "$$",
    "\\$",
    "\\\\",
    "\\[",
    "\\]",
    "\\(",
    "\\)",
    ".$",
    ",$",
]
PIECES += [
    "\\begin{a}",
    "\\end{a}",
    "\\begin{tabular}",
    "\\end{tabular}",
    "\\begin{",
    "[asy]",
    "[/asy]",
    "=",
    "+",
    "\\equiv",
    "é",
    "word",
    "w" * 45,
]
texts = st.lists(st.sampled_from(PIECES), max_size=60).map("".join) | st.text(max_size=200)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=texts)
@example(text="\0$\0$. A\0")
@example(text="\ud800")
def test_any_text_has_steps(text):
    lines = parts(text, "lines")
    assert all(line[0] == "\n" and line.strip() for line in lines[1:])
    assert all("\n" not in line.strip() for line in lines[:-1])
    parts(text, "math")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=texts)
def test_the_lines_of_the_text_up_to_a_boundary_are_its_own(text):
    """So a state and the completion it was cut from agree on the steps so far."""
    cuts = split_steps(text)
    for i, cut in enumerate(cuts[1:], 1):
        assert split_steps(text[:cut]) == cuts[: i + 1]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    sentences=st.lists(
        st.sampled_from([" We know it.", " Then $x. Y$ is\nall.", "\nHence $x=3.$", "\n\nIt is\\[a.\\]", " So $b$ it is, and so on."]),
        min_size=1,
    )
)
def test_the_sentences_of_a_text_up_to_a_boundary_are_its_own(sentences):
    """Not so within display maths, which is none without its end, nor where the half of a long part is cut again."""
    text = "".join(sentences)
    cuts = split_steps(text, "math")
    for i, cut in enumerate(cuts[1:], 1):
        assert split_steps(text[:cut], "math") == cuts[: i + 1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "unit",
    [*PIECES, "a", ". ", "\0", "\\", "\\begin{b", "$a$", "$a\n\n", "$a=,$ ", "$$ x\n", "a,", "\n a", "\n \t", " a: ", "\\begin{a}\n"],
)
def test_a_hundred_thousand_characters_end_soon(unit, rule):
    """Minutes, were any of it quadratic."""
    many = unit * (100_000 // len(unit))
    for text in (many, "\\[" + many + "\\]", "$" + many + "=$", "x" + many + "\\end{a}" * 1000):
        parts(text, rule)


@pytest.mark.parametrize("rule", RULES)
def test_a_hundred_thousand_nested_environments_end_soon(rule):
    parts("\\begin{a}" * 50_000 + "\\end{a}" * 50_000, rule)
    parts("".join(f"\\begin{{a{i}}}" for i in range(50_000)) + "".join(f"\n\\end{{a{i}}}" for i in range(50_000)), rule)


@pytest.mark.parametrize("rule", ["", "line", "tokens", "tokens:5"])
def test_other_rules_are_refused(rule):
    with pytest.raises(ValueError, match="is no rule"):
        split_steps("A", rule)
