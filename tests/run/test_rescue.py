"""The folder of a run goes away, fills up or is closed: what is in memory is kept if any way is left, and the message says how to go on."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest
from helpers import metrics, run
from safetensors.torch import load_file

import common.run.checkpoint as checkpoint_module
import common.run.rescue as rescue
import common.run.run as run_module
from common.errors import UserError
from common.files import sha256

STEPS = ("--max_steps", "4", "--save_steps", "2", "--eval_steps", "0")


@pytest.fixture
def undisturbed(finished):
    return finished("train_grpo", *STEPS)


@pytest.fixture
def after_step(undisturbed, monkeypatch):
    """`after_step(step, action)`: the action is done between the row of the step in metrics.jsonl and the next look at the run folder."""

    def at(step, action):
        real = run_module.Run.save_if_due

        def save_if_due(self):
            if self.step == step:
                action(self)
            real(self)

        monkeypatch.setattr(run_module.Run, "save_if_due", save_if_due)

    return at


@pytest.fixture
def no_waits(monkeypatch):
    slept = []
    monkeypatch.setattr(rescue, "sleep", slept.append)
    return slept


def same_run(folder, undisturbed):
    """Whether both folders hold the same run, and nothing else."""
    names = [sorted(path.name for path in one.iterdir()) for one in (folder, undisturbed)]
    hashes = [sha256(one / "completions.jsonl") for one in (folder, undisturbed)]
    adapters = [load_file(one / "checkpoint-4" / "adapter_model.safetensors") for one in (folder, undisturbed)]
    return (names[0] == names[1] and metrics(folder) == metrics(undisturbed) and hashes[0] == hashes[1]
            and all(value.equal(adapters[1][name]) for name, value in adapters[0].items()))  # fmt: skip


def go_on(message, monkeypatch):
    """Types the command that a message advises. Returns the run folder."""
    checkpoint = Path(re.search(r"--resume_from_checkpoint (\S+)", message)[1])
    monkeypatch.setattr("sys.argv", ["train_grpo.py", "--resume_from_checkpoint", str(checkpoint)])
    import train_grpo
    from common.launch import parse_command_line, run_script

    run_script(train_grpo.train, parse_command_line(train_grpo.Config, train_grpo.__file__))
    return checkpoint.parent


def failing(owner, name, number, monkeypatch, where=lambda path: True, times=10**9):
    """Makes a function that writes to a path fail, `times` times, with an error of the system."""
    real, calls = getattr(owner, name), []

    def fails(path, *rest, **named):
        if where(Path(path)) and len(calls) < times:
            calls.append(path)
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *rest, **named)

    monkeypatch.setattr(owner, name, fails)
    return calls


def test_a_renamed_folder_is_followed(undisturbed, after_step, tmp_path, monkeypatch, capsys):
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    after_step(1, lambda self: (tmp_path / "r").rename(tmp_path / "s"))
    assert run("train_grpo", tmp_path / "r", *STEPS, monkeypatch=monkeypatch) == 0
    assert f"{tmp_path / 'r'} is {tmp_path / 's'} now" in capsys.readouterr().out
    assert not (tmp_path / "r").exists() and same_run(tmp_path / "s", undisturbed)


def test_a_folder_that_is_renamed_during_a_save_keeps_nothing_half_written(undisturbed, no_waits, tmp_path, monkeypatch):
    real = checkpoint_module.write_manifest

    def write_manifest(folder):
        if (tmp_path / "r").exists():
            (tmp_path / "r").rename(tmp_path / "moved")
        real(folder)

    monkeypatch.setattr(checkpoint_module, "write_manifest", write_manifest)
    assert run("train_grpo", tmp_path / "r", *STEPS, monkeypatch=monkeypatch) == 0
    assert same_run(tmp_path / "moved", undisturbed) and not (tmp_path / "r").exists()


def test_a_deleted_folder_is_saved_beside_it(undisturbed, after_step, no_waits, tmp_path, monkeypatch):
    after_step(3, lambda self: shutil.rmtree(tmp_path / "r"))
    message = run("train_grpo", tmp_path / "r", *STEPS, "--save_steps", "3", monkeypatch=monkeypatch)
    saved = tmp_path / "r-saved-after-step-3"
    assert "\n" not in message and f"what was in memory is saved in {saved}; go on with: " in message and not (tmp_path / "r").exists()
    assert go_on(message, monkeypatch) == saved and no_waits == []
    adapters = [load_file(one / "checkpoint-4" / "adapter_model.safetensors") for one in (saved, undisturbed)]
    assert all(value.equal(adapters[1][name]) for name, value in adapters[0].items())
    assert metrics(saved) == metrics(undisturbed)[3:]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.ESTALE, errno.EDQUOT])
@pytest.mark.parametrize("name", ["completions.jsonl", "metrics.jsonl"])
def test_a_folder_that_takes_no_more_rows(number, name, undisturbed, after_step, no_waits, tmp_path, monkeypatch):
    import common.run.folder as folder_module

    def close(_):
        failing(folder_module, "append", number, monkeypatch, lambda path: path == tmp_path / "r" / name)
        failing(run_module, "save_checkpoint", number, monkeypatch, lambda path: path == tmp_path / "r")

    after_step(1, close)
    message = run("train_grpo", tmp_path / "r", *STEPS, monkeypatch=monkeypatch)
    assert "\n" not in message and f"error: {tmp_path / 'r' / name} cannot be written ({os.strerror(number)})" in message
    assert len(no_waits) == (5 if number == errno.ESTALE else 0)
    monkeypatch.undo()
    assert same_run(go_on(message, monkeypatch), undisturbed)


def test_a_blink_of_a_mount_is_waited_for(undisturbed, no_waits, tmp_path, monkeypatch, capsys):
    import common.run.folder as folder_module

    failing(folder_module, "append", errno.ESTALE, monkeypatch, lambda path: path.name == "metrics.jsonl", times=2)
    failing(run_module, "save_checkpoint", errno.EIO, monkeypatch, times=1)
    assert run("train_grpo", tmp_path / "r", *STEPS, monkeypatch=monkeypatch) == 0
    assert no_waits == [1, 2, 1] and "the next try is in 2 s" in capsys.readouterr().out
    assert same_run(tmp_path / "r", undisturbed)


def test_where_nothing_can_be_written_the_message_looks_at_what_there_is(undisturbed, no_waits, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(run_module, "save_checkpoint", full)
    message = run("train_grpo", tmp_path / "r", *STEPS, monkeypatch=monkeypatch)
    assert "no other place could be written either; there is no checkpoint yet: raise the limit" in message
    assert message.endswith("start again with --resume_from_checkpoint auto") and [path.name for path in tmp_path.iterdir()] == ["r"]
    monkeypatch.undo()
    assert run("train_grpo", tmp_path / "r", *STEPS, "--resume_from_checkpoint", "auto", monkeypatch=monkeypatch) == 0
    assert same_run(tmp_path / "r", undisturbed)
    shutil.rmtree(tmp_path / "r" / "checkpoint-4")
    monkeypatch.setattr(run_module, "save_checkpoint", full)
    message = run("train_grpo", tmp_path / "r", *STEPS, "--resume_from_checkpoint", "auto", monkeypatch=monkeypatch)
    assert "and go on after step 2 with: " in message
    monkeypatch.undo()
    assert same_run(go_on(message, monkeypatch), undisturbed)


def test_a_place_is_found_when_the_working_folder_has_gone_as_well(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for folder in (Path("."), Path("r")):  # neither has a folder around it any more
        saved = rescue.save_elsewhere(folder, f"saved-{tmp_path.name}", lambda new: (new / "x").write_text("x"))
        assert saved.name == f"{'r' if folder.name else 'run'}-saved-{tmp_path.name}" and (saved / "x").is_file()
        shutil.rmtree(saved)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file, and not a folder to save in")
    for name in ("r-saved", "r-saved-2"):
        assert rescue.save_elsewhere(tmp_path / "taken" / "r", "saved", lambda new: None) == tmp_path / name


def test_a_readme_that_cannot_be_written_loses_nothing(no_waits, tmp_path, monkeypatch):
    failing(run_module, "write_file", errno.EACCES, monkeypatch, lambda path: path == tmp_path / "r" / "README.md")
    message = run("train_grpo", tmp_path / "r", *STEPS, monkeypatch=monkeypatch)
    assert f"{tmp_path / 'r' / 'README.md'} cannot be written (Permission denied); what was in memory is saved in" in message


@pytest.mark.parametrize("damage", ["config cut off", "config missing", "row changed", "row missing", "completions cut off", "weights"])
def test_damage_is_repaired_from_what_is_whole(damage, undisturbed, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "r"
    shutil.copytree(undisturbed, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    if damage.startswith("config"):
        shutil.rmtree(folder / "checkpoint-4")
        (folder / "config.json").write_bytes((folder / "config.json").read_bytes()[:100])
        if damage == "config missing":
            (folder / "config.json").unlink()
    elif damage.startswith("row"):
        lines[2:3] = [lines[2].replace("reward", "prize")] if damage == "row changed" else []
        (folder / "metrics.jsonl").write_text("".join(lines))
    elif damage == "completions cut off":
        os.truncate(folder / "completions.jsonl", (folder / "completions.jsonl").stat().st_size - 9)
    else:
        os.truncate(folder / "checkpoint-4" / "adapter_model.safetensors", 100)
    assert run("train_grpo", folder, *STEPS, "--resume_from_checkpoint", "auto", monkeypatch=monkeypatch) == 0
    assert "resumed" in capsys.readouterr().out and same_run(folder, undisturbed)


def test_a_run_that_went_on_meanwhile_is_not_set_back(undisturbed, tmp_path, monkeypatch):
    import train_grpo
    from common.launch import parse_command_line

    folder = tmp_path / "r"
    shutil.copytree(undisturbed, folder)
    (folder / "checkpoint-4").rename(tmp_path / "checkpoint-4")
    monkeypatch.setattr("sys.argv", ["train_grpo.py", "--resume_from_checkpoint", "auto", "--output_dir", str(folder)])
    config = parse_command_line(train_grpo.Config, train_grpo.__file__)
    (tmp_path / "checkpoint-4").rename(folder / "checkpoint-4")
    with pytest.raises(UserError, match="went on in another process while this one started"):
        train_grpo.train(config)
    config.release()
    assert same_run(folder, undisturbed)
