"""What the examples say of themselves, and how they differ from their bases: for docs/examples.md and its test.

    python tools/list_examples.py            # writes the table of docs/examples.md again, and the sentence below it

The docstring of an example begins with one sentence. Then it has a line for each of FIELDS; a line that is indented goes on with the field.
"""
from __future__ import annotations

import ast
import csv
import difflib
import re
import sys
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.console import guard, say
from common.files import write_file

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "examples.md"
COSTS = ROOT / "docs" / "examples_costs.csv"  # written by benchmarks/example_costs.py
MARKS = "<!-- table: tools/list_examples.py -->", "<!-- end of table -->"
FIELDS = ("Base", "Paper", "Changes", "Cost", "When")
PATH_LINE = 'sys.path.insert(0, __file__.rpartition("/examples/")[0])  # finds common/ from anywhere'


def examples() -> list[Path]:
    """Every example, by name."""
    return sorted((ROOT / "examples").glob("*.py"))


def read_fields(text: str) -> dict[str, str]:
    """FIELDS of an example's docstring, and its first line as "Method". Raises ValueError if one is missing."""
    doc = ast.get_docstring(ast.parse(text)) or ""
    found = {"Method": doc.partition("\n")[0]}
    for name in FIELDS:
        match = re.search(rf"^{name}: (.+(?:\n +\S.*)*)", doc, re.M)
        if not match:
            raise ValueError(f"the docstring has no line '{name}: ...'")
        found[name] = " ".join(match[1].split())
    return found


def base_of(fields: dict[str, str]) -> tuple[Path, set[str]]:
    """The base script of an example, and the parts of it that the example changes: numbers of phases, and "setup"."""
    script, _, changed = fields["Base"].partition(", changed in ")
    return ROOT / script, set(re.findall(r"\d|setup", changed.replace("the set-up", "setup")))


@lru_cache
def code(text: str) -> list[str]:
    """The lines of a script without docstrings, imports and empty lines."""
    left_out = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            left_out.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            left_out.update(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), 1)
    return [line for number, line in lines if number not in left_out and line.strip() and line != PATH_LINE]


def changed_lines(text: str, base: str) -> tuple[int, int]:
    """The numbers of lines that an example adds to its base and removes from it, docstrings, imports and empty lines apart."""
    diff = list(difflib.unified_diff(code(base), code(text), n=0, lineterm=""))[2:]
    return sum(line[0] == "+" for line in diff), sum(line[0] == "-" for line in diff)


def parts(text: str) -> dict[str, str]:
    """The text of `train` before its loop, under "setup", and of each numbered phase, titles included."""
    setup, *phases = re.split(r"\n +# (?=\d )", text[text.index("def train("):])
    return {"setup": setup, **{phase[0]: phase for phase in phases}}


def measured() -> dict[str, str]:
    """Seconds and tokens of a step against the base, by example: "1.14 (1.10-1.18), 1.00"."""
    rows = csv.DictReader(COSTS.read_text(encoding="utf-8").splitlines()) if COSTS.exists() else ()
    return {row["example"]: f"{row['seconds']} ({row['lowest']}-{row['highest']}), {row['tokens']}" for row in rows}


def numbers_in(node: ast.expr) -> int:
    """How many numbers are written in a list of them: two in [-0.5, *[0.25] * 3]. Raises ValueError for another kind of expression."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return 1
        case ast.UnaryOp() | ast.Starred():
            return numbers_in(node.operand if isinstance(node, ast.UnaryOp) else node.value)
        case ast.BinOp(left=ast.List() as repeated, op=ast.Mult()):
            return numbers_in(repeated)
        case ast.List() | ast.Tuple():
            return sum(map(numbers_in, node.elts))
    raise ValueError(f"{ast.unparse(node)}: give numbers and lists of them")


def tested(texts: Iterable[str]) -> dict[tuple[str, str], int]:
    """The numbers in the calls of `reference` and `own` (tests/helpers.py), by function and example."""
    found: Counter[tuple[str, str]] = Counter()
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("reference", "own"):
            names, numbers = node.args
            for name in ast.literal_eval(names).split():
                found[node.func.id, name] += numbers_in(numbers)
    return found


def table() -> str:
    """The table of docs/examples.md, and the sentence below it."""
    rows = ["| example | what it is | base | lines | numbers | what changes | cost of a step | seconds, tokens | when to take it |",
            "|---" * 9 + "|"]
    ratios, counts = measured(), tested(path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").glob("test_example*.py")))
    alone = []
    for path in examples():
        text = path.read_text(encoding="utf-8")
        fields = read_fields(text)
        base, _ = base_of(fields)
        added, removed = changed_lines(text, base.read_text(encoding="utf-8"))
        reference, own = (counts.get((kind, path.stem), 0) for kind in ("reference", "own"))
        alone += [] if reference else [f"`{path.stem}`"]
        cells = (f"[{path.stem}](../examples/{path.name})", f"{fields['Method']} {fields['Paper']}", base.stem, f"+{added} -{removed}",
                 f"{reference}, own {own}" if own else f"{reference}", fields["Changes"], fields["Cost"],
                 ratios.get(path.stem, "not measured"), fields["When"])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*rows, "", f"These have own numbers alone: {', '.join(alone)}."])


def main() -> None:
    guard()
    before, first, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    write_file(PAGE, f"{before}{first}\n{table()}\n{last}{after}")
    say(f"{PAGE}: {len(examples())} examples")


if __name__ == "__main__":
    main()
