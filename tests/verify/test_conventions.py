"""What the checker takes for the same answer and what not: docs/verifier.md in examples."""

import json
import re
import subprocess
import sys
import threading

import pytest
from helpers import ROOT, SHARED
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.verify.answers import answers_equal, extract_answer, is_correct, reference_answer

EQUAL = {
    "numbers": [
        ("1,234,567", "1234567"),
        (r"12,\!345", "12345"),
        (r"1\,000", "1000"),
        (r"10{,}000", "10000"),
        ("+7", "7"),
        ("3.50", "3.5"),
        ("\uff14\uff12", "42"),  # fullwidth digits
    ],
    "fractions": [
        (r"-\frac{1}{2}", r"\frac{-1}{2}"),
        (r"\frac34", "3/4"),
        (r"2\frac{1}{2}", "5/2"),
        (r"9\frac12", "9.5"),
        ("1 1/2", "1.5"),
    ],
    "repeating": [(r"0.\overline{3}", "1/3"), ("0.(6)", r"\frac{2}{3}"), (r"0.1\overline{6}", "1/6"), (r"0.\bar{3}", "1/3")],
    "scientific": [
        ("1e3", "1000"),
        (r"6.02 \times 10^{23}", "6.02e23"),
        ("6.02\u00d710\u00b2\u00b3", r"6.02\cdot10^{23}"),
        ("3.54*10^{-7}", "0.000000354"),
    ],
    "big": [("2^{64}", "18446744073709551616"), ("10!", "3628800"), (r"\binom{10}{3}", "120"), (r"{5 \choose 2}", "10")],
    "units": [
        (r"5\text{ cm}", "5"),
        ("5 centimeters", "5 cm"),
        (r"15\mbox{ cm}^2", "15 square centimeters"),
        ("60 mph", "60 miles per hour"),
    ],
    "degrees": [("90°", r"90^\circ"), (r"90^{\circ}", "90"), ("90 degrees", r"90^\circ"), (r"\sin 30^\circ", "1/2")],
    "money": [(r"\$3.54", "3.54"), ("$1,000", "1000"), ("100 dollars", r"\$100"), (r"\$3 \text{ billion}", "3,000,000,000")],
    "percent": [("28 %", r"28\%"), ("28 percent", r"28\%"), (r"28\%", "28")],
    "radicals": [(r"\sqrt{8}", r"2\sqrt2"), ("√12", r"2\sqrt{3}"), (r"\sqrt[3]{-8}", "-2"), (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}")],
    "algebra": [("x^2-4", "(x-2)(x+2)"), (r"\frac{x+2}{7}", r"\frac x7+\frac27"), ("2ab", "2ba"), ("y+x", "x+y"), ("a - b", "-b + a")],
    "functions": [(r"\sec^2 y", r"1+\tan^2 y"), (r"2\sin b\cos a", r"2\cos a\sin b"), (r"\ln(ab)", r"\ln a+\ln b"), (r"\log_2 8", "3")],
    "complex": [("3i+2", "2+3i"), (r"5\mathrm{i}", "5i"), (r"e^{i\pi}", "-1"), (r"1-\frac{1}{\mathrm{e}}", "1-e^{-1}")],
    "tuples": [(r"\left( 1, \frac12 \right)", "(1,0.5)"), ("(p,q)=(3,2)", "(3,2)"), (r"\langle 1,2\rangle", "(1,2)")],
    "intervals": [("[0, 1)", "[0,1)"), (r"x \in (1,2)", "(1,2)"), (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)"), ("x>5", r"(5,\infty)")],
    "chains": [(r"1 < x \le 2", "(1,2]"), (r"x<2 \text{ or } x>3", r"(-\infty,2)\cup(3,\infty)"), (r"\{x \mid x>5\}", "x>5")],
    "sets": [
        ("1, -2", "-2, 1"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"3 \text{ and } 4", "3, 4"),
        (r"1\pm\sqrt2", r"1-\sqrt2, 1+\sqrt2"),
        ("{1,2}", "1,2"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\\\end{bmatrix}"),
        (r"\left[\begin{array}{c}1\\0.5\end{array}\right]", r"\begin{pmatrix}1\\\frac12\end{pmatrix}"),
    ],
    "equations": [("x = 5", "5"), (r"y=-\frac12x+\frac34", "2x+4y-3=0"), ("f(x)=x+1", "x+1"), ("6/4 = 3/2", "1.5"), ("a=b+c", "a=c+b")],
    "inequalities": [(r"x \leq 5", r"5 \geq x"), ("-x > -1", "x < 1"), ("x >= 5", r"x \ge 5"), (r"x \ne 3", "x != 3")],
    "other": [("7:32", "7 : 32"), ("10200_3", "10200_{3}"), ("4:30 p.m.", "4:30 PM"), (r"\text{(C)}", "C"), ("Option B", "B")],
    "texts": [(r"\text{Friday}", "friday"), ("an ellipse", r"\text{ellipse}"), (r"\mathrm{even}", "even")],
    "products": [
        (r"\frac{1}{2}mv^2", r"\frac{mv^2}{2}"),
        ("2 xy", "2yx"),
        (r"\frac12\frac13", r"\frac16"),
        (r"e^2\frac{1}{4}", r"\frac{e^2}{4}"),
    ],
    "rows": [(r"\begin{aligned} x &= 2+3 \\ &= 5 \end{aligned}", "5"), ("(1,000, 2,000)", "(1000, 2000)"), ("m + n = 101", "101")],
    "below one": [(r"\ln\frac{1-x}{1+x}", r"\ln(1-x)-\ln(1+x)")],
    "sentences": [
        ("We find that $x \\neq 3$.", "x != 3"),
        (r"\text{The area is } 5 \text{ cm}^2", "5"),
        (r"\boxed{7}", "7"),
        ("**7**", "7"),
    ],
}
DIFFERENT = {
    "close": [("9.99", "10"), ("0.333", "1/3"), ("1000000007", "1000000009"), (r"\sqrt2", "1.4142135623730951"), ("10^{401}", "10^{400}")],
    "huge": [(r"\sqrt{10^{200}+1}", "10^{100}"), ("2^{5000}-1", "2^{5000}"), ("2^{1000000}", "2^{1000000}+1"), ("1e999999999", "5")],
    "tiny": [("1e-400", "0"), ("e^{-1000}", "0"), ("e^{-200}", "0"), (r"\arctan(i)", "0")],
    "dropped": [
        ("150i", "150"),
        ("150!", "150"),
        (r"\neq 150", "150"),
        ("> 150", "150"),
        ("150x", "150"),
        (r"150 \pm 3", "150"),
        ("-3", "3"),
    ],
    "several": [("1, 2", "1"), (r"4 \text{ or } 5", "5"), ("[1, 5]", "5"), (r"1 \le x \le 5", "5"), ("{2, 3}", "3"), ("4 or it is 5", "5")],
    "hedges": [
        (r"\text{not } 5", "5"),
        ("5 wrong", "5"),
        ("5 maybe 6", "5"),
        (r"5 \text{ vs } 6", "5"),
        (r"\text{even or not}", "even"),
        ("isn't $5$", "5"),
    ],
    "words": [
        ("half of $10$", "10"),
        ("negative $5$", "5"),
        ("less than $5$", "5"),
        ("$5$ million", "5"),
        ("5 dozen", "5"),
        ("5 tenths", "5"),
    ],
    "false sentences": [
        ("It is false that the answer is 5", "5"),
        ("The wrong answer is 5", "5"),
        ("3 is 4, 5 is 6, it is 7", "7"),
        ("4 if x is 5", "5"),
    ],
    "units": [
        ("5 cm", "5 m"),
        (r"5\text{ cm}^2", r"5\text{ cm}^3"),
        (r"5\text{ feet } 3\text{ inches}", "5"),
        (r"160\pi", r"160^\circ"),
        ("5 base 6", "5"),
    ],
    "chains": [("x = 4 = 5", "5"), ("7 = 11a+c", "11a+c"), (r"\text{not } x = 5", "5"), ("2x + z = 1", "1"), ("151 = 150", "150")],
    "order": [("(2,1)", "(1,2)"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"), ("(1,2,2)", "(1,2)")],
    "ends": [("[1,2)", "(1,2)"), ("[1,2)", "[1,2]"), (r"(1,2)\cap(3,4)", r"(1,2)\cup(3,4)"), ("x > 5", r"x \ge 5"), ("x>5", "y>5")],
    "or and": [(r"x<-1 \text{ and } x>1", r"x<-1 \text{ or } x>1")],
    "signs": [("R - r", "r - R"), ("x-1", "1-x"), ("|x|", "x"), (r"\sqrt{a^2b^2}", "ab"), ("|x+10|", "x+10"), ("|x-20|", "20-x")],
    "functions": [(r"\cot^{-1}x", r"\tan x"), (r"\sin^{-1}x", r"\frac{1}{\sin x}"), (r"\log x", r"\ln x"), (r"\sin 30^\circ", r"\sin 30")],
    "letters": [("AB", "A"), ("E", "e"), (r"\text{(A) and B}", "A"), (r"(B) \text{ is wrong}", "B"), ("egnaro", "orange"), ("no", "on")],
    "numerals": [
        ("5 5", "55"),
        (r"\frac121", r"\frac12"),
        (r"\frac{4}{17}1", r"\frac{4}{17}"),
        ("5.5.5", "5.5"),
        ("0x2A", "0"),
        ("0,123", "123"),
        ("1,2,3", "123"),
        ("10²³", "10^{8}"),
        ("√16", "6"),
        ("4²", "42"),
    ],
    "other": [
        ("2104_6", "2104_5"),
        ("2104", "2104_5"),
        ("1:00", "12:00"),
        ("1, 2, 3, ...", "1, 2, 3"),
        ("0/0", "0/0+0"),
        ("5 million", "5"),
    ],
    "products": [
        (r"\frac{1}{2}mv^2", r"\frac12"),
        ("2 xy", "2"),
        (r"2\pi rh", r"2\pi"),
        (r"x^{2}yz", "x^2"),
        (r"\frac12\frac13", r"\frac37"),
    ],
    "more units": [
        (r"5 \text{ m/s}", r"5 \text{ m s}"),
        (r"5\text{ quadrillion}", "5"),
        (r"5\text{ doubled}", "5"),
        (r"5\text{ mW}", r"5\text{ MW}"),
    ],
    "names": [("x(x+1) = 6", "6"), ("(2x) = 10", "10"), (r"\text{half of } x = 5", "5"), ("xyz = 8", "8"), (r"x \in 5", "5")],
    "mixed": [
        ("1<x>3", "(1,3]"),
        (r"\{x \mid y > 5\}", r"(5,\infty)"),
        (r"x<1 \text{ or } y>3", r"(-\infty,1)\cup(3,\infty)"),
        (r"A \to B", r"B \to A"),
    ],
    "points": [("|x+100|", "x+100"), ("|x-500|", "500-x"), (r"\sqrt{x}", r"\sqrt{|x|}"), (r"\cosh(100)", r"\sinh(100)")],
    "more numerals": [("x^{2}3", "x^{23}"), ("1:3", "1:03"), ("234, 1", "1,234"), ("[1,2;3,4]", "[1,2,3,4]"), (r"\pm 1 \pm 2", "3, -3")],
    "spoken": [("the square of the answer is 25", "25"), ("the answer plus one is 6", "6")],
    "nothing": [("", ""), ("?", "5"), (r"\dots", "5"), (r"\text{I do not know}", "5"), (r"\{\}", "0"), ("None", "0")],
}


@pytest.mark.parametrize("a, b", [pair for pairs in EQUAL.values() for pair in pairs])
def test_the_same_answer(a, b):
    assert answers_equal(a, b) and answers_equal(b, a)
    assert is_correct(rf"The final answer is $\boxed{{{a}}}$.", b)


@pytest.mark.parametrize("a, b", [pair for pairs in DIFFERENT.values() for pair in pairs])
def test_another_answer(a, b):
    assert not answers_equal(a, b) and not answers_equal(b, a)


@pytest.mark.parametrize(
    "completion, answer",
    [
        ("The answer is not 5.", None),
        ("The wrong answer is 5.", None),
        ("If the answer is 5 we get a contradiction.", None),
        ("The answer isn't 5.", None),
        ("I don't think the answer is 5.", None),
        ("Nobody knows whether the answer is 5", None),
        (r"\boxed 1/2", None),
        (r"\boxed 5,000", None),
        ("The answer is 4. But the answer is not 5.", "4"),
        ("**Answer**: 7", "7"),
        ("The answer is therefore 7 because 3 + 4 = 7.", "7"),
        ("Final Answer: The final answer is $(0, 1)$. I hope it is correct. <|im_start|>user", "$(0, 1)$"),
        ("Answer: 41 was a wrong guess.\nAnswer: 42", "42"),
        (r"so \boxed 9", "9"),
        (r"\boxed{never closes", None),
        ("the last line should read Answer: $Answer (without quotes)", "$Answer (without quotes)"),
    ],
)
def test_statements(completion, answer):
    assert extract_answer(completion) == answer


def test_the_open_corpus_within_the_bars():
    file = SHARED / "verify" / "open.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = {True: [0, 0], False: [0, 0]}
    for row in rows:
        completion = row["prediction"] if row["form"] == "completion" else rf"The final answer is $\boxed{{{row['prediction']}}}$."
        verdict = is_correct(completion, row["reference"])
        if not row.get("contested"):
            found[row["label"]][0] += 1
            found[row["label"]][1] += verdict is not row["label"]
    assert found[False][1] <= 0.003 * found[False][0] and found[True][1] <= 0.02 * found[True][0], found
    assert not (ROOT / "pwned_canary").exists()


@pytest.mark.parametrize("name, empty", [("gsm8k/test", 0), ("math/test", 0), ("math/train", 2)])
def test_gold_solutions_are_right_against_themselves(name, empty):
    file = SHARED / f"{name}.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    solutions = [row.get("solution") or row["answer"] for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())]
    wrong = [solution for solution in solutions if not is_correct(solution, solution)]
    assert len(wrong) == empty and all(r"\boxed{}" in solution for solution in wrong)  # two gold solutions box nothing


# ---- any text whatever ----------------------------------------------------------------------------------------------

PIECES = re.findall(
    r"\S+",
    r"""\frac \sqrt \boxed \text \left \right \begin{pmatrix} \end{pmatrix} \\ & \pm \cup \cap \infty \le \ge \neq \in \cdot \times \pi
    \sin \log \overline \binom ^ _ { } ( ) [ ] | , ; : = < > + - * / ! % $ ° √ ² . 0 1 2 12 1,000 0.5 1/2 x y i e n a AB cm and or not is
    answer: #### \boxed{ </think> \mathrm{i} \sum_{k=1} " ∞ \{ \} \circ mod if \quad \langle \mid""",
)
texts = st.lists(st.sampled_from([*PIECES, " "]), max_size=30).map("".join) | st.text(max_size=40)
known = st.sampled_from([text for pairs in [*EQUAL.values(), *DIFFERENT.values()] for pair in pairs for text in pair])


@st.composite
def mutated(draw):
    """A sensible answer with something cut out, doubled or put in."""
    text = draw(known)
    start, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    return text[:start] + draw(st.sampled_from([*PIECES, ""])) + draw(st.sampled_from(["", text[start:end], text])) + text[end:]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(a=texts | mutated(), b=texts | mutated())
@example(a="(" * 250, b=")" * 250)
@example(a="_a" * 22 + "*=1", b="1")
@example(a="\ud800", b="\x00")
def test_any_two_texts_are_compared_symmetrically_and_nothing_raises(a, b):
    verdict = answers_equal(a, b)
    assert verdict is answers_equal(b, a)
    assert is_correct(a, b) in (True, False) and reference_answer(b) is not None
    answer = extract_answer(a)
    assert answer is None or 0 < len(answer) <= 500


def test_threads_get_the_same_verdicts():
    pairs = [(pair, True) for pairs in EQUAL.values() for pair in pairs] + [(pair, False) for pairs in DIFFERENT.values() for pair in pairs]
    wrong = []

    def work():
        wrong.extend(pair for pair, verdict in pairs if answers_equal(*pair) is not verdict)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_call_from_deep_down_leaves_no_wrong_verdict_behind():
    def deep(frames):
        return deep(frames - 1) if frames else answers_equal("(" * 15 + "1/2" + ")" * 15, "0.5")

    for frames in range(0, sys.getrecursionlimit(), 20):
        try:
            deep(frames)
        except RecursionError:
            break
    assert answers_equal("(" * 15 + "1/2" + ")" * 15, "0.5")


def test_the_checker_loads_nothing_that_could_run_an_answer():
    """Neither sympy nor any of the libraries that call eval on text."""
    code = "import sys, common.verify; print(sorted(name for name in ('sympy', 'numexpr', 'antlr4', 'torch') if name in sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
    names = ("answers", "extract", "macros", "spelling", "phrases", "units", "forms", "names", "relations", "real_sets", "values", "latex",
             "trees", "expression_values", "equal")
    sources = "".join((ROOT / "common" / "verify" / f"{name}.py").read_text() for name in names)
    assert not any(word in sources for word in ("eval(", "exec(", "__import__", "sympify", "parse_expr", "getattr("))
