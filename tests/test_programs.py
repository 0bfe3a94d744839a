"""What a program or a notebook meets that calls the function of a script."""

import pytest
from helpers import QUICK
from tqdm import tqdm

import train_grpo
from common.errors import UserError
from train_grpo import Config, train


def made_by_a_program(folder, **values):
    return Config(problems_per_step=4, num_generations=4, eval_steps=0, max_steps=2, output_dir=str(folder), dataset=QUICK[1], **values)


def test_a_program_resumes_as_the_command_line_does(tmp_path, capsys):
    train(made_by_a_program(tmp_path / "run", save_steps=1, resume_from_checkpoint="auto"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    train(made_by_a_program(tmp_path / "run", save_steps=1, resume_from_checkpoint="auto"))
    assert "is finished" in capsys.readouterr().out and before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    again = made_by_a_program(tmp_path / "run", resume_from_checkpoint="auto")
    again.max_steps = 3
    train(again)
    assert again.save_steps == 1 and (tmp_path / "run" / "checkpoint-3").is_dir()
    with pytest.raises(UserError, match="--num_generations 8 differs from the resumed run's 4"):
        train(Config(num_generations=8, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3")))
    copy = Config(config=str(tmp_path / "run" / "config.json"), output_dir=str(tmp_path / "copy"), max_steps=1)
    train(copy)
    assert (copy.num_generations, copy.dataset) == (4, QUICK[1])


def test_a_folder_is_free_after_an_error_of_whatever_kind(tmp_path, monkeypatch):
    for name, kept in (("load_rows", False), ("clip_gradients", True)):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError) as error:
            patch.setattr(train_grpo, name, lambda *_: 1 / 0)
            train(made_by_a_program(tmp_path / name))
        assert error.tb and (tmp_path / name).exists() == kept  # the trace holds all that the function had
        assert not (tmp_path / name / ".lock").exists()
        assert all(bar.disable for bar in tqdm._instances)  # no bar is left, below which later ones would be drawn


def test_a_program_that_a_launcher_started_several_times_does_not_do_the_whole_run_in_each(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"started 2 processes of this program.* call common.parallel.join\(\) at the beginning"):
        train(made_by_a_program(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
