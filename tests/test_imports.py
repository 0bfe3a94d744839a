"""What is imported when: the command line alone needs nothing heavy, and the rooms of common/ import each other one way."""

import ast
import importlib.util
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT, SCRIPTS

# `--help` and a wrong flag, each as from the command line; then the names of all that was imported
COMMAND_LINE = """
import runpy, sys
script = sys.argv[1]
for flag in ("--help", "--max_stepz"):
    sys.argv = [script, flag]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print("ended with", end.code)
print("imported", *sys.modules)
"""
HEAVY = {"torch", "peft", "datasets", "pandas", "accelerate", "bitsandbytes", "matplotlib", "vllm", "transformers.modeling_utils"}


@pytest.mark.parametrize("script", [*SCRIPTS, "eval"])
def test_help_and_wrong_flags_are_answered_before_anything_heavy_is_imported(script):
    command = [sys.executable, "-c", COMMAND_LINE, f"{script}.py"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ("--num_samples" if script == "eval" else "--learning_rate") in told
    assert "ended with 0\n" in told and "ended with error: unknown argument --max_stepz" in told
    imported = set(told.splitlines()[-1].split())
    assert "common.launch" in imported and not imported & HEAVY


@pytest.mark.parametrize(
    "file, line, contract",
    [
        ("rollout/text.py", "from common.run.run import Run", "Arrows between the rooms point one way"),
        ("policy/loss.py", "from common.policy.policy import Policy", "No circles, inside the rooms as well"),
        ("policy/policy.py", "from vllm import LLM", "vllm is imported by its engine alone"),
        ("rollout/draw.py", "from peft import LoraConfig", "peft and bitsandbytes are imported in policy/ alone"),
    ],
)
def test_an_import_that_is_not_allowed_breaks_its_contract(file, line, contract, tmp_path):
    """`lint-imports` is part of `make test`."""
    if not importlib.util.find_spec("importlinter"):
        pytest.skip("import-linter is not installed")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "common", tmp_path / "common", ignore=shutil.ignore_patterns("__pycache__", "tiny-*"))
    path = tmp_path / "common" / file
    path.write_text(path.read_text().replace("from __future__ import annotations\n", f"from __future__ import annotations\n\n{line}\n"))
    assert line in path.read_text()
    code = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    ended = subprocess.run([sys.executable, "-c", code, "--no-cache"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 1 and f"{contract} BROKEN" in " ".join(ended.stdout.split()), ended.stdout + ended.stderr


@pytest.mark.parametrize("script", [*SCRIPTS, "eval", *sorted(f"examples/{path.stem}" for path in (ROOT / "examples").glob("*.py"))])
def test_no_import_takes_the_name_of_the_parsed_flags(script):
    """The flags are read before most imports, and used at the end of the script."""
    tree = ast.parse((ROOT / f"{script}.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = [alias.asname or alias.name for node in imports for alias in node.names]
    given = [node.args[1].id for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_script"]
    assert given == ["CONFIG"] and "CONFIG" not in imported


@pytest.mark.parametrize("missing", ["sys.modules['fcntl'] = None", "sys.modules['resource'] = None", "sys.platform = 'win32'"])
@pytest.mark.parametrize("script", ["train_vineppo", "eval"])
def test_another_system_is_refused_in_one_line(missing, script):
    code = f"import sys; {missing}; import runpy; runpy.run_path('{script}.py', run_name='__main__')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stdout == "" and ended.stderr.count("\n") == 1 and "inside WSL" in ended.stderr


def test_no_file_has_the_name_of_a_standard_module():
    """A custom reward runs with its own folder in front of the path: numbers.py there would stand for Python's."""
    assert not [path for path in (ROOT / "common").rglob("*.py") if path.stem in sys.stdlib_module_names and path.stem != "__init__"]
