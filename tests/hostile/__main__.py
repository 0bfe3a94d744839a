"""python -m tests.hostile OUT: writes every hostile folder and file as OUT/<module>/<case>, and prints what to name on a command line."""
from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile import makers

HERE = Path(__file__).parent


def cases() -> Iterator[tuple[str, str, Callable[[Path], Path]]]:
    """(module, case, function) of every function `make_<case>` of the modules beside this file."""
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]  # as in the tests: the repository and tests/
    for module in sorted(module.name for module in pkgutil.iter_modules([str(HERE)]) if module.name != "__main__"):
        for case, make in makers(importlib.import_module(f"hostile.{module}")).items():
            yield module, case, make


def main(out: Path) -> None:
    """Writes all cases. Raises FileExistsError for a case that is there already."""
    for module, case, make in cases():
        folder = out / module / case
        folder.mkdir(parents=True)
        print(f"{module} {case}: {make(folder)}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.hostile OUT")
    main(Path(sys.argv[1]))
