"""No network, one thread for each process, and what several tests share: the warm start, finished runs, small random models."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

# before torch is imported: it is imported inside the fixtures, as the process that hands out the tests needs none of it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests take both cores as two processes


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all processes of this test session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def model_cache(shared):
    """Quick models go to the folder of this test session: one process does the warm start, and the others wait for it."""
    os.environ["VINERY_CACHE"] = str(shared / "cache")


@pytest.fixture(scope="session")
def finished(shared, model_cache):
    """`finished(script, *flags)`: the folder of a finished run on QUICK. Its output is in `console.txt` beside that folder.

    Tests and processes that ask for the same flags get the same run: a test that changes the folder makes a copy first.
    """
    from helpers import run

    def find_or_make(script: str, *flags: str) -> Path:
        name = hashlib.sha256(json.dumps([script, *flags]).encode()).hexdigest()[:12]
        folder = shared / "runs" / f"{script}-{name}" / "run"
        folder.parent.mkdir(parents=True, exist_ok=True)
        output = folder.parent / "console.txt"  # is there when the run has finished
        with FileLock(folder.parent / "lock"):
            if not output.exists():
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.redirect_stdout(io.StringIO()) as console, pytest.MonkeyPatch.context() as monkeypatch:
                    assert run(script, folder, *flags, monkeypatch=monkeypatch) == 0
                output.write_text(console.getvalue())
        return folder

    return find_or_make


@pytest.fixture(scope="session")
def tokenizer():
    from common.tiny.model import build_tokenizer
    from common.tiny.task import Arithmetic

    return build_tokenizer(Arithmetic())


@pytest.fixture(scope="session")
def random_models(tmp_path_factory, tokenizer):
    from helpers import ARCHITECTURES, save_random_model

    return {name: save_random_model(tmp_path_factory.mktemp(name), name, tokenizer) for name in ARCHITECTURES}
