"""No network, and small random models of every supported architecture."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from helpers import ARCHITECTURES, save_random_model

from common.tiny.model import build_tokenizer
from common.tiny.task import Arithmetic


@pytest.fixture(scope="session", autouse=True)
def model_cache(tmp_path_factory):
    """Quick models go to a folder of this test session; the real one of test_tiny.py is kept where a user's is."""
    os.environ["VINERY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(Arithmetic())


@pytest.fixture(scope="session")
def random_models(tmp_path_factory, tokenizer):
    return {name: save_random_model(tmp_path_factory.mktemp(name), name, tokenizer) for name in ARCHITECTURES}
