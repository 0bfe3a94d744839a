"""Hostile and damaged inputs, written by functions `make_<case>(folder: Path) -> Path`: one module for each kind of input.

`folder` is there and empty. The result is what a user would name on the command line. `python -m tests.hostile OUT` writes all of them.
"""
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def makers(module: ModuleType) -> dict[str, Callable[[Path], Path]]:
    """The functions `make_<case>` of a module, by case. Those that it imports from another one do not count."""
    return {name.removeprefix("make_"): function for name, function in vars(module).items()
            if name.startswith("make_") and function.__module__ == module.__name__}
