"""No regular expression of the checker takes exponential time, or a high power of the length of a text."""

import ast
import importlib
import pkgutil
import re
import sys
from collections import defaultdict

import pytest
from regex_steps import Steps, TooManySteps, attacks

import common.verify as package

LENGTH = 200  # characters of an attack
LIMIT = 6 * LENGTH**2  # steps of one search, far below the cube of the length
MODULES = {info.name: importlib.import_module(f"common.verify.{info.name}") for info in pkgutil.iter_modules(package.__path__)
           if info.name != "second_opinion"}
PATTERN_METHODS = {"match", "fullmatch", "search", "sub", "split", "finditer", "findall", "subn"}


def patterns_within(thing, name):
    """The compiled patterns of a variable of a module, also those in tables."""
    if isinstance(thing, re.Pattern):
        yield name, thing
    elif isinstance(thing, dict):
        thing = list(thing.items())
    if isinstance(thing, (list, tuple, set, frozenset)):
        for place, part in enumerate(thing):
            yield from patterns_within(part, f"{name}[{place}]")


def patterns_and_methods(modules):
    """{name: (pattern, the methods that are called)} of patterns in variables, and of those in calls such as re.sub("a+", ...)."""
    found, methods = {}, defaultdict(set)
    for module_name, module in modules.items():
        with open(module.__file__, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        for variable, thing in vars(module).items():
            if not variable.startswith("__"):
                found |= {f"{module_name}.{name}": pattern for name, pattern in patterns_within(thing, variable)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not isinstance(node.func.value, ast.Name):
                continue
            owner, method = node.func.value.id, node.func.attr
            if owner == "re" and method in PATTERN_METHODS:
                name = f"{module_name}:{node.lineno}"
                source, *others = map(ast.unparse, [*node.args, *(keyword.value for keyword in node.keywords)])
                flags = [other for other in others if other.startswith("re.") and "(" not in other]
                try:
                    found[name] = re.compile(*(eval(part, vars(module)) for part in [source, *flags]))
                except NameError as error:
                    raise AssertionError(f"{name}: a pattern that depends on local variables cannot be tested") from error
                methods[name].add(method)
            elif method in PATTERN_METHODS:
                methods[f"{module_name}.{owner}"].add(method)
    by_pattern = defaultdict(set)
    for name, pattern in found.items():
        by_pattern[pattern] |= methods[name]  # a pattern that two modules use has two names
    return {name: (pattern, by_pattern[pattern]) for name, pattern in found.items()}


PATTERNS = patterns_and_methods(MODULES)


def excess(pattern, methods):
    """The first attack on which a pattern takes more than LIMIT steps, or None. Also checks the matches against those of `re`."""
    method = "fullmatch" if methods == {"fullmatch"} else "match" if methods and methods <= {"match", "fullmatch"} else "search"
    steps = Steps(pattern)
    for text in attacks(pattern, LENGTH):
        try:
            _, place = steps.count(text, method, LIMIT)
        except TooManySteps:
            return text
        found = getattr(pattern, method)(text)
        assert place == (found.span() if found else None), (pattern.pattern, text)
    return None


@pytest.fixture(autouse=True)
def deep_recursion():
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(before)


def test_all_patterns_are_found():
    names = set(PATTERNS)
    assert {"units._WORD", "extract._BOX_OR_BRACE", "tokens._TOKEN"} <= names
    assert any(name.startswith("spelling._COMPILED_RULES[") for name in names) and any(name.startswith("values:") for name in names)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_search_takes_few_steps(name):
    pattern, methods = PATTERNS[name]
    text = excess(pattern, methods)
    assert text is None, f"more than {LIMIT} steps: {pattern.pattern!r} on {text!r}"


def test_the_known_faults_are_found():
    """Patterns that the checker had. Each took seconds or years on an answer of 500 characters."""
    word = '(?:"[^"]*+"|[\u4e00-\u9fff]++|(?<![A-Za-z])[A-Za-z]{2,})'
    words = rf"(?<=\d)\s*+{word}(?:\s*+(?:/\s*+)?{word}){{0,4}}$"
    degrees = r'(?<=\d)\s*+\\circ\s*+"?+\s*+[CF]?+\s*+"?+$'
    one_run_as_several_words, spaces_in_several_parts = words.replace("++", "+"), degrees.replace("*+", "*").replace("?+", "?")
    assert [excess(re.compile(pattern), {"search"}) for pattern in (words, degrees)] == [None, None]
    assert excess(re.compile(one_run_as_several_words), {"search"}) and excess(re.compile(spaces_in_several_parts), {"search"})
    intersections = re.compile(r"n\s*\([A-Z\s]*(?:\\c[au]p\s*[A-Z\s]+)*\)")  # each space belongs to two parts
    assert excess(intersections, {"fullmatch"})
    assert excess(re.compile(r"\s*,?\s*\"?\s*(?:and|or)"), {"sub"})  # the cube of the number of spaces
