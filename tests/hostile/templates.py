"""Models whose chat templates were written against those who use them."""
from __future__ import annotations

from pathlib import Path

from hostile.models import base

PLAIN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def model(folder: Path, template: str) -> Path:
    """A small random model with this chat template."""
    (base(folder) / "chat_template.jinja").write_text(template)
    return folder


def make_loops(folder: Path) -> Path:
    """10^10 rounds."""
    return model(folder, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + PLAIN)


def make_power(folder: Path) -> Path:
    """A number that takes years, in one call into C, which no signal interrupts."""
    return model(folder, "{{ 10 ** (10 ** 10) }}" + PLAIN)


def make_gigabytes_at_once(folder: Path) -> Path:
    return model(folder, "{% set x = 'a' * 10 ** 11 %}" + PLAIN)


def make_doubling(folder: Path) -> Path:
    return model(folder, "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}" + PLAIN)


def make_long_prompts(folder: Path) -> Path:
    """A text of 100 MB, made of small parts."""
    return model(folder, "{% for i in range(10000) %}{{ 'a' * 10000 }}{% endfor %}" + PLAIN)


def make_recursion(folder: Path) -> Path:
    return model(folder, "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}" + PLAIN)


def make_brackets(folder: Path) -> Path:
    """A template that is itself nested too deeply for a compiler."""
    return model(folder, "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}" + PLAIN)


def make_syntax(folder: Path) -> Path:
    return model(folder, "{% for m in messages %}{{ m['role' }}")


def make_division(folder: Path) -> Path:
    return model(folder, PLAIN + "{{ 1 // 0 }}")


def make_classes(folder: Path) -> Path:
    """The way out of Python's objects to whatever is loaded."""
    return model(folder, "{{ ''.__class__.__mro__[1].__subclasses__() }}" + PLAIN)


def make_function_globals(folder: Path) -> Path:
    return model(folder, "{{ raise_exception.__globals__['os'].system('touch ran') }}" + PLAIN)


def make_method_formats(folder: Path) -> Path:
    return model(folder, "{{ '{0.__class__.__mro__}'.format(1) }}{{ cycler.__init__.__globals__.os.system('touch ran') }}" + PLAIN)


def make_include(folder: Path) -> Path:
    return model(folder, "{% include '/etc/passwd' %}" + PLAIN)


def make_import(folder: Path) -> Path:
    return model(folder, "{% import 'os' as os %}{{ os.system('touch ran') }}" + PLAIN)


def make_only_later(folder: Path) -> Path:
    """Harmless with the first rows: it fails on a row with a long question."""
    return model(folder, "{% if messages[-1].content|length > 200 %}{{ 'a' * 10 ** 11 }}{% endif %}" + PLAIN)
