"""Does the left side of an equation only name the value on the right, as in f(5) = 3 and \\cos\\angle ABC = 3/5?"""
from __future__ import annotations

import re

from common.verify.words import changes_name

# the name of a value, in front of =: x, f(5), a_{n+1}, (p, q), |AB|, AB : CD, \frac{NO}{BO}, g^{-1}(x), \cos A
_NAME_OF_VALUE = re.compile(
    r"""\[\s*(?:\\triangle\s*)?[A-Z]{3,6}\s*\]|[A-Z]{2}(?:\s*\+\s*[A-Z]{2})+|"""
    r"""\\(?:max|min|sup|inf)|m\s*\(?\s*\\angle\s*[A-Z0-9]+\s*\)?|[fgh]\([fgh]\([^()]*\)\)|\([^()=]*\)'|\\mathbb\{[A-Z]\}|"""
    r"""[a-z]_\{?\w\}?(?:\s*[+]\s*[a-z]_\{?\w\}?)+|n\s*\([A-Z\s]*+(?:\\c[au]p[A-Z\s]++)*+\)|"""
    r"""\(\s*[a-z]\s*\\circ\s*[a-z]\s*\)\s*\(.*\)|\\vec\s*\{?[a-z]\}?\s*\\(?:cdot|times)\s*\\vec\s*\{?[a-z]\}?|"""
    r"""\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\(\s*)?(?:\\angle\s*)?(?:\\?[A-Za-z]+|[A-Z]{2,3})(?:\s*\))?|\\(?:int|iint|oint|sum|prod"""
    r"""|lim)(?![a-z]).*|"""
    r"""[a-dk-np-s](?:\s*\+\s*[a-dk-np-s])+|\\sigma\^2|\\?[|]\s*\\?[|]?.+\\?[|]|\(\s*[A-Za-z]\w?(?:\s*,\s*[A-Za-z]\w?)+\s*\)|"""
    r"""\\frac\s*\{\s*(?:d|\\partial)\s*+(?:\^\{?\d\}?)?\s*+[A-Za-z]?\s*+\}\s*+\{[^{}]*(?:d|\\partial)[^{}]*\}\s*(?:\(.*\)|\[.*\]|\\[a-z]+[^-+=]*)?|"""
    r"""\\d?dot\s*\{?\s*[a-z]\s*\}?|D(?:_\{?[a-z]\}?)?\s*\(?\s*[a-z]\s*\)?|"""
    r"""(?:\\(?:angle|triangle|overline|bar|hat|tilde|nabla|partial|frac|"""
    r"""alpha|beta|theta|lambda|mu|Delta|phi|vec|sigma|rho|gamma|omega|tau|kappa|psi|eta|nu|xi"""
    r"""|delta|"""
    r"""epsilon|Omega|Sigma|Gamma|Phi|ell|zeta|chi)(?![a-z])|[A-Za-z|{}: ".'/]|"""
    r"""_\{[^{}]*\}|_\w|(?<=[fghFGHPE])\([^()]*\)|(?<=[EP])\[[^\[\]]*\]|"""
    r"""(?<=[A-Za-z'}"])\(\s*-?(?:[A-Za-z]|\d+)(?:\s*,\s*-?(?:[A-Za-z]|\d+))*\s*\)|\^\{?-1\}?(?=\())++""")
# an operator in front of anything: \det A, \mathbb{E}[X], \operatorname{tr}(A), \Pr(X \le 1), "rank"(A)
_OPERATOR = re.compile(
    r"""(?:\\(?:det|dim|ker|deg|arg|gcd|lcm|max|min|sup|inf|Pr|tr|rank|Re|Im|Var|Cov)(?![A-Za-z])|\\mathbb\{?[EPVR]\}?|[EP](?=[(\[])|"""
    r""""\s*(?:tr|rank|det|dim|adj|Var|Cov|E|P|Area|area|Vol|Volume|volume|Perimeter|ord|card|null|nullity|span|proj|comp|Re|Im|deg|arg"""
    r"""|cov|var|"""
    r"""SD|sd|length|slope|median|mean|mode)\s*")(?:_\{[^{}]*\}|_\w)?\s*(?:\(.*\)|\[.*\]|\{.*\}|\\?[|].*[|]"""
    r"""|"?\s*\\?[A-Za-z]+\s*"?)""", re.DOTALL)
# no name: a product of variables
_PRODUCT = re.compile(r"(?<![A-Za-z_\\])(?!max|min|gcd|lcm|sum|avg|d[a-z](?![a-z]))[a-z]{2,3}(?![A-Za-z])|"
    r"(?<![A-Za-z\\])[a-z] [a-z](?![A-Za-z])")
# letters with brackets, indices and exponents, but no sign of an operation: A^{-1}, [x]_B, C_B(\vec{x}), AB
_NAME_OF_MATRIX = re.compile(r'(?:\\(?:vec|hat|mathbb|mathcal|det|exp)(?![a-z])|_\{?\w++\}?|'
                             r'\^\s*+\{?\s*+(?:-?\w++|\\top)\s*+\}?|[A-Za-z\[\](){}\'"])++')
_ONE_SYMBOL = re.compile(r'"?\s*(?:\\[A-Za-z]+|[A-Za-z])\s*"?(?:\'|_\{\s*"?\w+"?\s*\}|_\w)*')


def is_name(text: str) -> bool:
    """Whether the text names a value, as x and f(5) do."""
    if _OPERATOR.fullmatch(text):
        return True
    found = _NAME_OF_VALUE.fullmatch(text)
    if not found or text.startswith(("[", "(", "\\frac{d", "\\frac{ d", "\\frac{\\partial", "D_", "\\|", "|")):
        return bool(found)
    # words in quotes are no product of variables, and neither is an index
    formula = re.sub(r'"[^"]*"|_\{[^{}]*\}|(?<=partial)_\w', "", text)
    return not changes_name(text) and not _PRODUCT.search(formula)


def is_name_of_matrix(text: str) -> bool:
    """Whether the text names a matrix, if a matrix stands behind its =."""
    return bool(_NAME_OF_MATRIX.fullmatch(text))


def is_symbol(text: str) -> bool:
    """Whether the text is one variable, perhaps with an index."""
    return bool(_ONE_SYMBOL.fullmatch(text))
