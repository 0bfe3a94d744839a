import json
from dataclasses import asdict, dataclass

import pytest

from common.config import CommonConfig, flag
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
