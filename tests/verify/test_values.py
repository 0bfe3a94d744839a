"""The values of expressions: what is equal at all points, and what must not be."""

import pytest

from common.verify.answers import answers_equal
from common.verify.vectors import read_vector

EQUAL = [
    ("2^{-n}", r"\frac{1}{2^n}"),
    ("te^{-t}", r"\frac{t}{e^t}"),
    ("A-Ae^{-kt}", "A(1-e^{-kt})"),
    (r"\ln 2\cdot 3", r"3\ln2"),
    (r"\sin x\cdot\cos x", r"\frac12\sin 2x"),
    (r"\frac{9!}{4!5!}", "126"),
    ("2^3 5^2", "200"),
    ("n3^n", r"n\cdot3^n"),
    (r"\binom{n}{2}", "n(n-1)/2"),
    (r"\binom{2000}{2}", "1999000"),
    (r"\frac{n!}{k!(n-k)!}", r"\binom nk"),
    (r"\binom{n+1}{k}", r"\binom{n}{k}+\binom n{k-1}"),
    (r"\frac{2025!}{2024!}", "2025"),
    ("10000!/9999!", "10000"),
    (r"\log_2 2^{30}", "30"),
    (r"\log 10^8", "8"),
    (r"(-1)^n", r"\cos(n\pi)"),
    (r"\left\lceil\frac{m}{3}\right\rceil", r"\left\lfloor\frac{m+2}{3}\right\rfloor"),
    (r"\max(a,b)", r"\frac{a+b+|a-b|}{2}"),
    (r"\operatorname{lcm}(m,n)", r"\operatorname{lcm}(n,m)"),
    (r"\coth x", r"\frac{\cosh x}{\sinh x}"),
    (r"e^{n-1/2}\cos n", r"\frac{e^n\cos n}{e^{1/2}}"),
    (r"\ln{\left(2x\right)}^2", r"(\ln(2x))^2"),
    (r"\sinh^{-1}x", r"\ln(x+\sqrt{x^2+1})"),
]
DIFFERENT = [
    ("f(1)+f(3)", "2f(2)+2"),
    ("f(x)+f(y)", "f(x+y)"),
    ("f(x,y)", "f(y,x)"),
    ("600!+602!", r"2\cdot 601!+2"),
    (r"\binom{n}{2}+\binom{m}{3}", r"\binom{n}{3}+\binom{m}{2}"),
    (r"\binom{n+1}{k}", r"\binom{n}{k}+\binom n{k+1}"),
    ("n!!", "(n!)!"),
    ("n!!", "n!"),
    ("10000!", "10000!+1"),
    ("(-1)!", "(-2)!"),
    (r"(-1)^n", "(-1)^{n+1}"),
    (r"\lfloor x+\frac12\rfloor", r"\lceil x\rceil"),
    (r"\lfloor \frac{n}{2}\rfloor", r"\lceil \frac n2\rceil"),
    (r"\infty-\infty", "0"),
    (r"\infty/\infty", "1"),
    ("A-Ae^{-kt}", "A"),
    (r"\cosh(100x)", r"\sinh(100x)"),
    (r"\min(a,b)", r"\max(a,b)"),
    (r"\sum_{k=1}^9 a_k", r"\sum_{k=1}^8 a_k"),
    ("5 5", "25"),
    (r"\frac12 3", r"\frac32"),
]


@pytest.mark.parametrize("a, b", EQUAL)
def test_the_same_value(a, b):
    assert answers_equal(a, b) and answers_equal(b, a)


@pytest.mark.parametrize("a, b", DIFFERENT)
def test_another_value(a, b):
    assert not answers_equal(a, b) and not answers_equal(b, a)


@pytest.mark.parametrize("text", (r"\text{it is a circle}{", r"\text{ at } x=3", r"\text{Triangle won . }", "\u6708", "g(x)=1, "))
def test_words_around_nothing_are_no_exception(text):
    assert answers_equal(text, text) in (True, False) and not answers_equal(text, "5")


def test_a_text_is_not_read_again_as_it_is():
    """Each level of a list of such texts was read eight times: 125 ms for an answer of 500 characters."""
    texts = []
    for text in ("\\vec", "a=\\vec", "\\hat{x}+1", "2\\hat{i}"):
        read_vector(text, 0, lambda text, depth: texts.append(text) or ("text", text))
    assert texts == ["2 i "]
