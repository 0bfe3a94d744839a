import errno
import gc
import json
import multiprocessing
import os
import shlex
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from common.config import CommonConfig, flag
from common.errors import UserError
from common.launch import parse_command_line, parse_config, run_script
from common.run.folder import run_prefix
from common.run.lock import Lock
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


# ---- which run is continued -----------------------------------------------------------------------------------------


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """`begin(time, steps, *argv, script)`: the run folder of this command, with a checkpoint after `steps` steps (0: none)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("common.run.resume.what_is_missing", lambda folder: None)

    def make(time, steps, *argv, script="train_x"):
        config = parse(*argv)
        folder = Path(f"{run_prefix(config, 'train_x')}-{time}")
        (folder / f"checkpoint-{steps}").mkdir(parents=True)
        if not steps:
            (folder / "checkpoint-0").rmdir()
        (folder / "config.json").write_text(json.dumps(config_record(config, script)))
        return folder

    return make


AUTO = ["--resume_from_checkpoint", "auto"]


def content(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in sorted(folder.rglob("*"))}


def test_auto_without_a_folder_continues_the_run_of_this_very_command_alone(begin, capsys):
    """A sweep under a scheduler: each start finds its own run, whatever else has begun since."""
    sweep = {rate: ["--max_steps", "30", "--learning_rate", rate] for rate in ("1e-3", "1e-4", "3e-4")}
    for time, flags in enumerate(sweep.values()):
        assert parse(*flags, *AUTO).resume_from_checkpoint == "auto"
        begin(f"2026010{time}-000000", 10, *flags, *AUTO)
    assert "20260101-000000: its --learning_rate is " in capsys.readouterr().out
    for time, (rate, flags) in enumerate(sweep.items()):
        config = parse(*flags, *AUTO)
        assert config.output_dir.endswith(f"2026010{time}-000000") and config.learning_rate == float(rate)
    other = [["--max_steps", "31"], ["--seed", "1"], ["--save_steps", "7"], ["--beta", "0.1"], ["--stop", "x"], ["--epsilon", "0.3"]]
    for flags in other:
        assert parse(*sweep["1e-3"], *flags, *AUTO).resume_from_checkpoint == "auto", flags


def test_a_checkpoint_is_found_by_a_link_and_alone_it_is_refused(begin, tmp_path, monkeypatch):
    checkpoint = tmp_path / begin("20260101-000000", 10) / "checkpoint-10"
    (tmp_path / "latest").symlink_to(checkpoint)
    assert parse("--resume_from_checkpoint", "latest").resume_from_checkpoint == str(checkpoint)
    monkeypatch.chdir(checkpoint)
    assert parse("--resume_from_checkpoint", ".").output_dir == str(checkpoint.parent)
    (tmp_path / "a copy").mkdir()
    with pytest.raises(UserError, match=r"there is no config.json of its run beside it; .* from its adapter: --adapter '.*/a copy'$"):
        parse("--resume_from_checkpoint", str(tmp_path / "a copy"))


def test_the_same_command_is_known_however_it_is_spelt(begin, tmp_path):
    data = tmp_path / "my data.jsonl"
    data.write_text("{}")
    real = ["--model", "some/model", "--max_steps", "30"]
    folder = begin("20260101-000000", 10, *real, "--dataset", str(data))
    for name in ("my data.jsonl", "./my data.jsonl", "../" + tmp_path.name + "/my data.jsonl"):
        assert parse(*real, "--dataset", name, *AUTO).output_dir == str(folder), name
    assert parse(*real, "--dataset", str(data), "--seed=0", "--learning-rate", "0.00002", *AUTO).output_dir == str(folder)  # the defaults
    assert parse(*AUTO, "--config", str(folder / "config.json")).output_dir == str(folder)
    other = tmp_path / "other" / "my data.jsonl"
    other.parent.mkdir()
    other.write_text("{}")
    assert parse(*real, "--dataset", str(other), *AUTO).output_dir is None
    record = json.loads((folder / "config.json").read_text())
    for name in ("derived", "given", "hardware", "versions"):
        record.pop(name)
    record["flags"] = {name: record["flags"][name] for name in ("model", "dataset", "max_steps", "seed")}  # of a version with fewer flags
    (folder / "config.json").write_text(json.dumps(record))
    assert parse(*real, "--dataset", str(data), *AUTO).output_dir == str(folder)
    assert parse(*real, "--dataset", str(data), "--beta", "0.1", *AUTO).output_dir is None


def test_candidates_that_cannot_be_this_run_are_passed_over(begin, capsys):
    own = begin("20260101-000000", 10)
    begin("20260102-000000", 20, script="train_y")
    damaged = begin("20260103-000000", 20)
    (damaged / "config.json").write_text('{"flags": {"seed": 1')
    foreign = begin("20260104-000000", 20)
    (foreign / "config.json").write_text('{"flags": {"neg_weight": 1}}')
    empty = begin("20260105-000000", 0)
    config = parse(*AUTO)
    assert (config.output_dir, config.resume_from_checkpoint) == (str(own), str(own / "checkpoint-10"))
    output = capsys.readouterr().out
    assert f"skipping {damaged}: " in output and f"skipping {foreign}: " in output and str(empty) not in output


def test_two_requeues_at_once_do_not_make_two_runs(begin, tmp_path):
    """The second one finds the first at work, before it has a checkpoint."""
    folder, ready = begin("20260101-000000", 0), tmp_path / "ready"

    def hold():
        lock = Lock(folder)
        ready.touch()
        signal.pause()
        lock.release()

    process = multiprocessing.get_context("fork").Process(target=hold, daemon=True)
    process.start()
    while not ready.exists():
        assert process.is_alive()
    with pytest.raises(UserError, match=f"{folder} is in use: process {process.pid}"):
        parse(*AUTO)
    assert parse(*AUTO, "--seed", "1").resume_from_checkpoint == "auto"  # another command may start
    process.kill()
    process.join()
    assert parse(*AUTO).resume_from_checkpoint == "auto"  # it was killed, and left nothing to continue


@pytest.mark.parametrize("how", ["auto", "output_dir", "path", "fewer steps", "with --config"])
def test_a_finished_run_is_said_to_be_finished_and_not_touched(how, begin, tmp_path, capsys):
    folder = begin("20260101-000000", 30, "--max_steps", "30")
    flags = {
        "auto": ["--max_steps", "30", *AUTO],
        "output_dir": [*AUTO, "--output_dir", str(folder)],
        "path": ["--resume_from_checkpoint", str(folder / "checkpoint-30")],
        "fewer steps": [*AUTO, "--output_dir", str(folder), "--max_steps", "3"],
        "with --config": [*AUTO, "--config", str(folder / "config.json")],
    }[how]
    before = content(tmp_path)
    with pytest.raises(SystemExit) as end:
        parse(*flags)
    assert end.value.code == 0 and f"{folder} is finished: it has done 30 steps" in capsys.readouterr().out
    assert content(tmp_path) == before
    assert parse(*AUTO, "--output_dir", str(folder), "--max_steps", "31").max_steps == 31


def test_a_folder_of_another_command_is_refused_with_the_first_flag_that_differs(begin):
    folder = begin("20260101-000000", 10, "--seed", "3", "--max_steps", "30")
    with pytest.raises(UserError, match="--seed 4 differs from the resumed run's 3"):
        parse(*AUTO, "--output_dir", str(folder), "--seed", "4", "--max_steps", "5")  # also where nothing would be left to do
    with pytest.raises(UserError, match=r"is a run of train_x.py; continue it with that script"):
        parse_config(Config, [*AUTO, "--output_dir", str(folder)], "train_y")
    with pytest.raises(UserError, match=r"run of train_x.py.* --adapter .*checkpoint-10"):
        parse_config(Config, ["--resume_from_checkpoint", str(folder / "checkpoint-10")], "train_y")
    unsaved = begin("20260102-000000", 0, "--seed", "3")
    before = content(unsaved)
    with pytest.raises(UserError, match="holds another run: its --seed is 3, not 4; name another folder"):
        parse(*AUTO, "--output_dir", str(unsaved), "--seed", "4")
    with pytest.raises(UserError, match=r"holds another run: it is of train_x.py"):
        parse_config(Config, [*AUTO, "--output_dir", str(unsaved), "--seed", "3"], "train_y")
    assert content(unsaved) == before
    assert parse(*AUTO, "--output_dir", str(unsaved), "--seed", "3", "--max_steps", "7").resume_from_checkpoint == "auto"
    (unsaved / "config.json").rename(unsaved / ".config.json")  # the copy alone is left
    with pytest.raises(UserError, match="holds another run: its --seed is 3, not 4"):
        parse(*AUTO, "--output_dir", str(unsaved), "--seed", "4")


# ---- code -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["runs/theirs/tools.py", "/tmp/a b/tools.py"])
def test_code_that_a_saved_file_names_must_be_typed(file, begin, tmp_path, monkeypatch):
    """From --config, from a checkpoint and from the run of --output_dir. The command that the message gives works."""
    reward = f"{file}:score"
    folder = begin("20260101-000000", 10, "--reward", reward)
    theirs = ["--config", str(folder / "config.json")]
    path = ["--resume_from_checkpoint", str(folder / "checkpoint-10")]
    for command in (theirs, path, [*AUTO, "--output_dir", str(folder)], [*theirs, *path], [*theirs, *AUTO]):
        with pytest.raises(UserError, match=f"names code: the function score of the file {file}. Code runs only if") as error:
            parse(*command)
        advised = str(error.value).partition("python train_x.py ")[2]
        assert parse(*shlex.split(advised)).reward == reward
    assert parse(*AUTO, "--reward", reward).output_dir == str(folder)  # a scheduler repeats the command, with its code
    with pytest.raises(UserError, match=r"--reward mine\.py:score differs"):
        parse(*path, "--reward", "mine.py:score")
    assert parse(*theirs, "--reward", "mine.py:score").reward == "mine.py:score"
    with pytest.raises(UserError, match="names code"):
        parse(*theirs, "--reward", "")


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE])
def test_a_path_that_the_system_refuses_is_one_line(number, tmp_path, monkeypatch):
    """As a folder of another user that may not be read."""
    monkeypatch.setattr(sys, "argv", ["train_x.py", "--output_dir", str(tmp_path / "r"), *AUTO])

    def refused(self, *_, **__):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "exists", refused)
    monkeypatch.setattr(Path, "glob", refused)
    with pytest.raises(SystemExit, match=rf"^error: .*/r cannot be used \({os.strerror(number)}\); put it right, or name another path$"):
        parse_command_line(Config, "train_x.py")


def test_the_search_for_garbage_waits_for_the_imports_of_the_script_that_a_process_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_x.py", "--output_dir", str(tmp_path / "r")])
    frozen, seen = [], []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    for script in ("train_x.py", "train_y.py"):
        monkeypatch.setattr(sys.modules["__main__"], "__file__", script, raising=False)
        config = parse_command_line(CommonConfig, "train_x.py")
        seen.append(gc.isenabled())
        run_script(lambda config: seen.append(gc.isenabled()), config)
    assert seen == [False, True, True, True] and len(frozen) == 1


def test_files_and_trackers_that_a_saved_config_names_are_shown(tmp_path, capsys):
    (tmp_path / "id_rsa").write_text("secret")
    flags = {"model": "some/model", "dataset": str(tmp_path / "id_rsa"), "system_prompt": str(tmp_path / "id_rsa"), "report_to": "trackio"}
    (tmp_path / "config.json").write_text(json.dumps({"flags": flags, "given": list(flags), "derived": {}}))
    parse_config(CommonConfig, ["--config", str(tmp_path / "config.json"), "--dataset", "gsm8k"], "train_grpo")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and f"config.json: --system_prompt {tmp_path}/id_rsa; --report_to trackio, which gets" in out
    typed = ["--dataset", "gsm8k", "--system_prompt", "Be brief.", "--report_to", "none"]
    parse_config(CommonConfig, ["--config", str(tmp_path / "config.json"), *typed], "train_grpo")
    assert capsys.readouterr().out == ""


@pytest.fixture
def bars_of_libraries(monkeypatch):
    """They are there, and are there again after the test."""
    hf_logging.enable_progress_bar()
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS", raising=False)
    yield
    hf_logging.enable_progress_bar()
    enable_progress_bars()


def test_without_a_terminal_libraries_show_no_bars(bars_of_libraries, random_models, monkeypatch, capfd):
    def loading() -> str:
        AutoModelForCausalLM.from_pretrained(random_models["llama"])
        return capfd.readouterr().err

    assert "Loading weights" in loading()
    for terminal in (True, False):
        monkeypatch.setattr(sys, "argv", ["train_x.py"])
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        parse_command_line(CommonConfig, "train_x.py")
        assert ("Loading weights" in loading()) == terminal
        assert are_progress_bars_disabled() != terminal  # of downloads from the hub
        assert (os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS") == "1") != terminal
