import copy
import importlib
import sys
from dataclasses import dataclass, fields

import pytest
from helpers import ROOT, SCRIPTS

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import parse_config
from common.run.folder import run_prefix


@dataclass
class Config(CommonConfig):
    epsilon: float = flag(0.2, "algorithm", "Clip, 100% of it.")


def parse(*argv):
    return parse_config(Config, list(argv), "train_x")


def test_tiny_brings_its_own_defaults_for_flags_not_given():
    config = parse()
    assert (config.model, config.learning_rate, config.max_steps, config.max_completion_length) == ("tiny", 1e-3, 60, 51)
    assert parse("--learning_rate", "0.5").learning_rate == 0.5
    assert parse("--learning_rate", "2e-5").learning_rate == 2e-5  # given, though it is the other default
    assert parse("--dataset", "arithmetic:words=2,tiers=half:1:2-10").max_completion_length == 83
    real = parse("--model", "some/model", "--dataset", "gsm8k")
    assert (real.learning_rate, real.max_steps, real.max_completion_length) == (2e-5, 200, 1024)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--max_step", "3"], "unknown argument --max_step: did you mean --max_steps?"),
        (["--learning-rat=3"], "did you mean --learning_rate?"),
        (["stray"], "unknown argument stray"),
        (["--engine", "vlm"], "--engine vlm: did you mean vllm? the choices are auto, vllm, transformers"),
        (["--loss_aggregation", "token_mean"], "did you mean token-mean?"),
        (["--max_steps", "many"], "--max_steps.*invalid int value: 'many'"),
        (["--seed"], "--seed.*expected one argument"),
        (["--num_generations", "0"], "--num_generations 0 cannot work: give a whole number from 1 up"),
        (["--seed", "99999999999999999999"], "a whole number of 64 bits"),
        (["--temperature", "0"], "--temperature 0.0 cannot work: give a number above 0"),
        (["--top_p", "1.5"], "above 0 and at most 1"),
        (["--beta", "-1"], "0 or more"),
        (["--learning_rate", "inf"], "a finite number"),
        (["--stop", "a", ""], "strings of one character or more"),
        (["--num_minibatches", "500"], "at most the 128 completions of a step"),
        (["--lora_target_modules", "q_proj", "lm_head"], "stay frozen"),
        (["--dataset", "gsm8k"], "--model tiny knows only the words of --dataset arithmetic"),
        (["--dataset", "arithmetic:stepz=1"], "no setting 'stepz'"),
        (["--config", "nowhere.json"], "not the config.json of a run"),
        (["--resume_from_checkpoint", "nowhere"], "not a whole checkpoint"),
        (["--resume_from_checkpoint", ""], '--resume_from_checkpoint "" cannot work'),
        (["--output_dir", ""], '--output_dir "" cannot work'),
        (["--config="], '--config "" cannot work'),
    ],
)
def test_what_cannot_work_is_named_with_a_remedy(argv, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?").replace("(", r"\(")):
        parse(*argv)


@pytest.mark.parametrize(
    "argv, package, message",
    [
        (["--load_in_4bit"], "bitsandbytes", "needs bitsandbytes: pip install bitsandbytes"),
        (["--engine", "vllm"], "vllm", "vllm is not installed.* use --engine transformers"),
    ],
)
def test_missing_packages_are_named_before_anything_is_loaded(argv, package, message, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    with pytest.raises(UserError, match=message):
        parse(*argv)


def test_run_folders_are_named_by_what_was_run():
    config = Config(model="/models/Qwen2.5-1.5B/", dataset="data/my set.jsonl", seed=4)
    assert run_prefix(config, "train_x") == "runs/train_x-Qwen2.5-1.5B-my-set.jsonl-s4"
    config = Config(dataset="arithmetic:tiers=half:1:4-6/plus:1,words=2")
    assert run_prefix(config, "train_x") == "runs/train_x-tiny-arithmetic-tiers-half-1-4-6-plus-1-words-2-s0"


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_are_few_documented_grouped_and_read(script, capsys, monkeypatch):
    module = importlib.import_module(script)
    names = [spec.name for spec in fields(module.Config)]
    assert len(names) <= 70 and all(spec.metadata["help"] for spec in fields(module.Config))
    code = "".join(path.read_text() for path in [ROOT / f"{script}.py", *(ROOT / "common").rglob("*.py")])
    unread = [name for name in names if f"config.{name}" not in code and f"self.{name}" not in code]
    assert unread == []
    with pytest.raises(SystemExit) as end:
        parse_config(module.Config, ["--help"], script)
    text = capsys.readouterr().out
    assert end.value.code == 0 and all(f"--{name}" in text for name in names)
    groups = ["model:", "data:", "problems:", "completions:", "update:", "algorithm:", "run:"]
    assert [line for line in text.splitlines() if line in groups] == groups


@pytest.mark.parametrize("script", SCRIPTS)
def test_importing_a_script_does_nothing(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--nonsense"])
    sys.modules.pop(script, None)
    importlib.import_module(script)
    assert "vllm" not in sys.modules


def test_a_config_made_by_a_program_gets_what_the_command_line_gets():
    config = Config(max_steps=3)
    config.complete()
    assert config == parse("--max_steps", "3") and config.given == {"max_steps"} and config.learning_rate == 1e-3
    given = Config(learning_rate=2e-5, prompt_template="auto", max_completion_length=1024)  # all of them the defaults for real models
    given.complete()
    assert (given.learning_rate, given.prompt_template, given.max_completion_length, given.max_steps) == (2e-5, "auto", 1024, 60)
    changed = Config()
    changed.learning_rate, changed.num_generations = 0.5, 4
    changed.complete()
    assert (changed.learning_rate, changed.num_generations, changed.max_steps) == (0.5, 4, 60)
    real = Config(model="some/model", dataset="gsm8k")
    real.complete()
    assert real == Config(model="some/model", dataset="gsm8k")
    copied = copy.deepcopy(config)
    copied.complete()
    assert copied == config
    for wrong, message in (({"max_steps": 0}, "--max_steps 0 cannot work"), ({"dataset": "gsm8k"}, "knows only the words")):
        with pytest.raises(UserError, match=message):
            Config(**wrong).complete()
