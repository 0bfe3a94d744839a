"""The locks are inside the ranges of the requirements, whole, and hashed; nothing in them names an index."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
WITHOUT_TORCH = {"requirements-cpu.txt"}


def locked(file: str) -> list[tuple[Requirement, int]]:
    """The packages of a lock, and how many hashes each has."""
    text = (ROOT / file).with_suffix(".lock").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert not [line for line in lines if "://" in line or line.startswith("-")]
    return [(Requirement(line.partition("--hash")[0]), len(re.findall(r"--hash=sha256:[0-9a-f]{64}(?!\w)", line))) for line in lines]


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-cpu.txt"])
def test_a_lock_satisfies_the_ranges(file):
    packages = locked(file)
    versions_of = {}
    for package, _ in packages:
        versions_of.setdefault(canonicalize_name(package.name), []).append(str(package.specifier)[2:])
    assert all(hashes > 0 and re.fullmatch(r"==[^*]+", str(package.specifier)) for package, hashes in packages)
    for line in (ROOT / file).read_text().splitlines():
        if not line.partition("#")[0].strip():
            continue
        wanted = Requirement(line.partition("#")[0])
        versions = versions_of.get(canonicalize_name(wanted.name), [])
        if file in WITHOUT_TORCH and wanted.name == "torch":
            assert versions == [] and wanted.specifier.contains(re.search(r"torch==([\d.]+)\n", (ROOT / "Makefile").read_text())[1])
            continue
        assert versions and all(wanted.specifier.contains(version) for version in versions), wanted
