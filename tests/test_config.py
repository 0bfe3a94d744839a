import importlib
import json
import sys
from dataclasses import asdict, dataclass, fields

import pytest
from helpers import ROOT, SCRIPTS

from common.config import CommonConfig, flag, run_prefix
from common.errors import UserError
from common.launch import parse_config
from common.run.record import config_record


@dataclass
class Config(CommonConfig):
    epsilon: float = flag(0.2, "algorithm", "Clip, 100% of it.")


def parse(*argv):
    return parse_config(Config, list(argv), "train_x")


def saved_config(folder, **flags):
    folder.mkdir(exist_ok=True)
    config = Config(**flags)
    (folder / "config.json").write_text(json.dumps(config_record(config, "train_x")))
    return folder / "config.json"


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


def test_a_saved_config_reruns_and_given_flags_win(tmp_path):
    path = saved_config(tmp_path / "run", learning_rate=0.125, max_steps=7, stop=["a"], output_dir="old")
    config = parse("--config", str(path), "--max_steps", "9")
    assert (config.learning_rate, config.max_steps, config.stop) == (0.125, 9, ["a"])
    assert config.output_dir is None  # the run names its folder anew
    (tmp_path / "other.json").write_text(json.dumps({"flags": {"neg_weight": 1}}))
    with pytest.raises(UserError, match=r"neg_weight.*belongs to another script"):
        parse("--config", str(tmp_path / "other.json"))


def test_a_resumed_run_keeps_its_flags_unless_a_changeable_one_is_given(tmp_path, monkeypatch, capsys):
    import common.run.resume as resume

    saved_config(tmp_path / "run", learning_rate=0.125, lora_r=4, max_steps=10, seed=3)
    monkeypatch.setattr(resume, "what_is_missing", lambda folder: None)
    (tmp_path / "run" / "checkpoint-5").mkdir()
    where = str(tmp_path / "run" / "checkpoint-5")
    config = parse("--resume_from_checkpoint", where)
    assert (config.lora_r, config.seed, config.output_dir, config.resume_from_checkpoint) == (4, 3, str(tmp_path / "run"), where)
    assert parse("--resume_from_checkpoint", "auto", "--output_dir", str(tmp_path / "run")).learning_rate == 0.125
    assert parse("--resume_from_checkpoint", where, "--max_steps", "20").max_steps == 20
    assert "changed on resume: --max_steps 10 -> 20" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--lora_r 8 differs from the resumed run's 4; leave it out"):
        parse("--resume_from_checkpoint", where, "--lora_r", "8")
    assert parse("--resume_from_checkpoint", "auto", "--output_dir", str(tmp_path / "none")).resume_from_checkpoint == "auto"
    with pytest.raises(UserError, match="goes on in its own folder"):
        parse("--resume_from_checkpoint", where, "--output_dir", str(tmp_path / "elsewhere"))
    same = ["--config", str(tmp_path / "run" / "config.json"), "--max_steps", "20"]
    assert parse("--resume_from_checkpoint", where, *same).max_steps == 20
    other = saved_config(tmp_path / "other", learning_rate=0.125, lora_r=8, max_steps=10, seed=3)
    with pytest.raises(UserError, match="lora_r differs"):
        parse("--resume_from_checkpoint", where, "--config", str(other))


def test_auto_that_finds_nothing_keeps_the_saved_config(tmp_path):
    path = saved_config(tmp_path / "run", problems_per_step=3, seed=9)
    config = parse("--config", str(path), "--resume_from_checkpoint", "auto", "--output_dir", str(tmp_path / "none"))
    assert (config.problems_per_step, config.seed) == (3, 9)


def test_the_same_command_with_resume_is_accepted(tmp_path, monkeypatch):
    import common.run.resume as resume

    monkeypatch.setattr(resume, "what_is_missing", lambda folder: None)
    command = ["--stop", r"\n\nProblem:", "--seed", "4", "--output_dir", str(tmp_path / "run")]
    saved_config(tmp_path / "run", **{**asdict(parse(*command)), "config": None})
    (tmp_path / "run" / "checkpoint-5").mkdir()
    assert parse(*command, "--resume_from_checkpoint", "auto").stop == ["\n\nProblem:"]


def test_stop_strings_may_hold_newlines():
    assert parse("--stop", r"\n\nProblem:", "END").stop == ["\n\nProblem:", "END"]


def test_run_folders_are_named_by_what_was_run():
    config = Config(model="/models/Qwen2.5-1.5B/", dataset="data/my set.jsonl", seed=4)
    assert run_prefix(config, "train_x") == "runs/train_x-Qwen2.5-1.5B-my-set.jsonl-s4"
    config = Config(dataset="arithmetic:tiers=half:1:4-6/plus:1,words=2")
    assert run_prefix(config, "train_x") == "runs/train_x-tiny-arithmetic-tiers-half-1-4-6-plus-1-words-2-s0"


def test_config_record_can_tell_two_machines_apart():
    record = json.loads(json.dumps(config_record(Config(), "train_x")))
    assert record["flags"]["model"] == "tiny" and record["versions"]["torch"] and record["hardware"]["cpus"] and "commit" in record


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_are_few_documented_grouped_and_read(script, capsys, monkeypatch):
    module = importlib.import_module(script)
    names = [spec.name for spec in fields(module.Config)]
    assert len(names) <= 60 and all(spec.metadata["help"] for spec in fields(module.Config))
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
