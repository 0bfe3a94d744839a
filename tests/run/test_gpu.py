import dataclasses
import importlib.util
import os
import sysconfig

import pytest
import torch
from helpers import evaluate, run

from common.config import CommonConfig, SamplingConfig
from common.errors import UserError
from common.run import gpu
from common.run.gpu import check_gpu


@pytest.fixture
def an_nvidia_smi(tmp_path, monkeypatch):
    """A program nvidia-smi that prints what it is told, or fails; no driver file."""
    monkeypatch.setattr(gpu, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def make(text, code=0):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return make


@pytest.mark.parametrize("config", [CommonConfig(model="some/model"), SamplingConfig(model="some/model")])
def test_a_driver_that_is_too_old_stops_a_real_model_and_names_the_one_needed(an_nvidia_smi, config, monkeypatch):
    an_nvidia_smi("550.54.14")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match=r"driver 550.54.14\).*CUDA 13.0 needs driver 580 or newer.*CUDA_VISIBLE_DEVICES="):
        check_gpu(config)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(UserError, match=r"needs driver 525 or newer"):
        check_gpu(config)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match=r"built without CUDA"):
        check_gpu(config)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the remedy that the message names
    check_gpu(config)


def test_a_driver_shows_by_its_file_too_and_none_is_no_error(an_nvidia_smi, tmp_path):
    config = CommonConfig(model="some/model")
    check_gpu(config)
    an_nvidia_smi("Failed to initialize NVML: Driver/library version mismatch", code=18)
    check_gpu(config)  # a program without a driver
    gpu.DRIVER_FILE.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14")
    with pytest.raises(UserError, match="driver of unknown version"):
        check_gpu(config)


def test_the_embedded_model_and_plans_need_no_gpu(an_nvidia_smi):
    an_nvidia_smi("550.54.14")
    check_gpu(CommonConfig())
    check_gpu(CommonConfig(model="some/model", plan_memory=24))


def test_a_card_without_bfloat16_is_named_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match=r"Tesla T4 has compute capability 7.5.*8.0 or newer.*--dtype float32"):
        check_gpu(CommonConfig(model="some/model"))
    check_gpu(CommonConfig(model="some/model", dtype="float32"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    check_gpu(CommonConfig(model="some/model"))


@pytest.fixture
def a_card(monkeypatch):
    """A card with everything that vLLM needs; `packages` says which packages are there."""
    packages, real = {"vllm": True, "vllm_bnb_plugin": True}, importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: packages[name] or None if name in packages else real(name, *rest))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("CC", "cc")
    return packages


@pytest.mark.parametrize("engine", ["auto", "vllm"])
def test_four_bits_in_vllm_need_its_plugin(engine, a_card):
    """vLLM 0.28 moved bitsandbytes into a package of its own."""
    config = CommonConfig(model="some/model", load_in_4bit=True, engine=engine)
    check_gpu(config)
    a_card["vllm_bnb_plugin"] = False
    with pytest.raises(UserError, match=r"vllm-bnb-plugin: pip install vllm-bnb-plugin, or use --engine transformers"):
        check_gpu(config)
    check_gpu(dataclasses.replace(config, engine="transformers"))
    check_gpu(dataclasses.replace(config, load_in_4bit=False))


def test_expandable_segments_turn_the_release_of_keys_and_values_off(a_card, monkeypatch, capsys):
    config = CommonConfig(model="some/model")
    check_gpu(config)
    assert config.vllm_enable_sleep_mode and not config.derived
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64,expandable_segments:True")
    check_gpu(config)
    assert config.derived == {"vllm_enable_sleep_mode": False} and config.flags()["vllm_enable_sleep_mode"] is True
    assert "vLLM keeps its keys and values during the update" in capsys.readouterr().out
    typed = CommonConfig(model="some/model", vllm_enable_sleep_mode=True)
    typed.given = {"vllm_enable_sleep_mode"}
    with pytest.raises(UserError, match="does not work with expandable_segments"):
        check_gpu(typed)
    check_gpu(SamplingConfig(model="some/model"))  # eval.py has no update


def test_vllm_needs_a_compiler_and_the_header_of_python(a_card, tmp_path, monkeypatch):
    config = SamplingConfig(model="some/model")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    with pytest.raises(UserError, match=r"a C compiler \(gcc\) and the header .*Python.h \(package python3-dev\).*--engine transformers"):
        check_gpu(config)
    check_gpu(dataclasses.replace(config, engine="transformers"))
    (tmp_path / "gcc").write_text("")
    (tmp_path / "gcc").chmod(0o755)
    with pytest.raises(UserError, match="vLLM needs the header"):
        check_gpu(config)
    (tmp_path / "Python.h").touch()
    check_gpu(config)


def test_scripts_ask_before_they_load_anything(an_nvidia_smi, tmp_path, monkeypatch):
    an_nvidia_smi("550.54.14")
    flags = ["--model", str(tmp_path), "--dataset", "gsm8k", "--prompt_template", "question"]
    assert "there is an NVIDIA GPU" in run("train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch, quick=[])
    assert "there is an NVIDIA GPU" in evaluate(tmp_path / "eval", *flags, monkeypatch=monkeypatch)
    assert not (tmp_path / "run").exists()
