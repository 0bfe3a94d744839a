"""Checks, before anything is loaded, whether the graphics card of this machine can be used."""
from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import torch

from common.config import SamplingConfig
from common.console import say
from common.errors import UserError
from common.rollout.choose_engine import choose_engine

DRIVERS = {"12": 525, "13": 580}  # the oldest NVIDIA driver for each major version of CUDA
OLDEST = (8, 0)  # compute capability of Ampere, the first that calculates in bfloat16
DRIVER_FILE = Path("/proc/driver/nvidia/version")  # is there while the driver is loaded
ON_CPU = "To run on the CPU all the same, set CUDA_VISIBLE_DEVICES="


def check_gpu(config: SamplingConfig) -> None:
    """Raises UserError for an NVIDIA GPU that cannot be used, and if vLLM lacks something. A run would go on without the GPU."""
    if config.model == "tiny" or getattr(config, "plan_memory", None) is not None:
        return
    if torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability < OLDEST and config.dtype != "float32":
            raise UserError(f"{torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]} and does not calculate "
                            "in bfloat16: a card of 8.0 or newer is needed (Ampere, from 2020 on), or --dtype float32, which is slow")
        if choose_engine(config)[0] == "vllm":
            check_vllm(config)
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    driver = None if hidden else nvidia_driver()
    if driver is None:
        return
    cuda = torch.version.cuda
    if cuda is None:
        raise UserError(f"there is an NVIDIA GPU (driver {driver}), but torch {torch.__version__} was built without CUDA: "
                        f"pip install -r requirements.txt in a new environment. {ON_CPU}")
    raise UserError(f"there is an NVIDIA GPU (driver {driver}), but torch {torch.__version__} cannot use it. CUDA {cuda} needs driver "
                    f"{DRIVERS.get(cuda.partition('.')[0], 'of its release')} or newer, and a container needs access to the GPU (docker "
                    f"run --gpus all). {ON_CPU}")


def check_vllm(config: SamplingConfig) -> None:
    """Raises UserError if vLLM would not start on this machine's GPU. May turn `--vllm_enable_sleep_mode` off, and says so."""
    if config.load_in_4bit and not importlib.util.find_spec("vllm_bnb_plugin"):
        raise UserError("--load_in_4bit: vLLM holds a 4-bit base with the package vllm-bnb-plugin: pip install vllm-bnb-plugin, or use "
                        "--engine transformers, which samples more slowly")
    allocator = os.environ.get("PYTORCH_ALLOC_CONF", "") + os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    if getattr(config, "vllm_enable_sleep_mode", False) and "expandable_segments:True" in allocator:
        if "vllm_enable_sleep_mode" in config.given:
            raise UserError("--vllm_enable_sleep_mode does not work with expandable_segments:True in PYTORCH_ALLOC_CONF or "
                            "PYTORCH_CUDA_ALLOC_CONF: leave one of them out")
        config.derive(vllm_enable_sleep_mode=False)
        say("note: with expandable_segments:True in PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF vLLM keeps its keys and values during "
            "the update; without that setting more fits")
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Triton looks there for Python's header
    header = Path(sysconfig.get_paths(scheme)["include"], "Python.h")
    missing = [] if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") else ["a C compiler (gcc)"]
    missing += [] if header.exists() else [f"the header {header} (package python3-dev)"]
    if missing:
        raise UserError(f"vLLM needs {' and '.join(missing)} to make its kernels: install that, or use --engine transformers")


def nvidia_driver() -> str | None:
    """The version of the NVIDIA driver, or "of unknown version"; None if there is no sign of a GPU and its driver."""
    if program := shutil.which("nvidia-smi"):
        command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True).stdout.split()
        except (OSError, subprocess.SubprocessError):
            told = []
        if told:
            return told[0]
    return "of unknown version" if DRIVER_FILE.exists() else None
