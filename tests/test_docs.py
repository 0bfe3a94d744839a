"""What the documents say of the code is true of it."""

import ast
import io
import re
import tokenize

from helpers import ROOT, SCRIPTS

PAPER = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def lines_of_code(path):
    """Lines that are not blank, comment or docstring."""
    text, lines = path.read_text(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in PAPER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_files_and_functions_keep_their_lengths():
    limits = {"train_grpo": 250, "train_nft": 250, "train_ppo": 320, "train_vineppo": 320}
    assert all(lines_of_code(ROOT / f"{script}.py") <= limits[script] for script in SCRIPTS)
    assert lines_of_code(ROOT / "eval.py") <= 200
    for path in [*(ROOT / "common").rglob("*.py"), *ROOT.glob("*.py")]:
        if "common" in path.parts:
            assert lines_of_code(path) <= (350 if path.stem in ("answers", "latex") else 250), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno + 1 <= (120 if node.name == "train" else 60), (path, node.name)


def test_the_readme_counts_right_and_names_what_there_is():
    readme = (ROOT / "README.md").read_text()
    for script in [*SCRIPTS, "eval"]:
        row = next(line for line in readme.splitlines() if line.startswith(f"| [{script}.py]"))
        assert f"| {lines_of_code(ROOT / f'{script}.py')} |" in row
    for path in (ROOT / "common").rglob("*.py"):
        assert path.name.startswith("__") or path.name in readme, path
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
            assert target.startswith("http") or (document.parent / target).exists(), (document, target)


def test_common_names_no_algorithm():
    names = re.compile(r"(?<![a-z])(grpo|vineppo|nft|ppo)(?![a-z])", re.I)
    for path in (ROOT / "common").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for field in ("id", "attr", "arg", "name"):
                assert not names.search(str(getattr(node, field, ""))), (path, node.lineno)


def test_scripts_import_no_package_that_one_room_has_for_itself():
    """The contracts in pyproject.toml say it of common/ (`lint-imports`)."""
    for path in ROOT.glob("*.py"):
        assert not re.search(r"^\s*(import|from) (vllm|peft|bitsandbytes)", path.read_text(), re.M), path


def parts(script):
    """The text of a script's imports, of `train` before its loop, and of each numbered phase, titles included."""
    text = (ROOT / f"{script}.py").read_text()
    early = text[text.index("from __future__") : text.index("@dataclass")].replace("from typing import Literal\n", "")
    imports = early + text[text.index("    CONFIG = ") : text.index("# ----")]
    setup, *phases = re.split(r"\n +# (?=\d )", text[text.index("def train(") :])
    return {"imports": imports, "setup": setup, **{phase[0]: phase for phase in phases}}


def test_the_scripts_share_their_loop_as_text():
    """What a diff of two scripts shows is the algorithm."""
    pieces = {script: parts(script) for script in SCRIPTS}
    first = pieces["train_grpo"]
    assert len(first) == 10 and all(len(text) > 30 for text in first.values())
    for script, piece in pieces.items():
        assert [piece[number].splitlines()[0] for number in "12345678"] == [
            "1 choose problems",
            "2 sample completions",
            "3 verify",
            "4 advantages",
            "5 log-probs before the update",
            "6 update",
            "7 sync the sampler",
            "8 evaluate, log, save",
        ]
        assert [piece[name] for name in "12378"] == [first[name] for name in "12378"], script
        shared = ["imports", "setup"] if script == "train_nft" else []
        assert [piece[name] for name in shared] == [first[name] for name in shared], script
        # a critic is made and handed on; nothing else is set up differently
        setups = [{line for line in p["setup"].splitlines() if not re.search("critic|run.start|preflight", line)} for p in (piece, first)]
        assert setups[0] == setups[1], script


def test_results_on_the_front_page_are_those_of_the_results_page():
    text = (ROOT / "README.md").read_text().partition("\n## Results\n")[2].partition("\n## ")[0]
    table = text[text.index("| area") :].partition("\n\n")[0]
    assert table.count("\n") == 10  # a header, a rule and nine methods
    assert f"\n\n{table}\n\n" in (ROOT / "docs" / "results.md").read_text()
