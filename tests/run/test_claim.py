"""A folder has one owner, and what lies in it is looked at before it is written to."""

import json
import multiprocessing
import os
import signal
import sys

import pytest

import common.run.lock as lock_module
from common.errors import UserError
from common.run.claim import claim_folder, own_folder, tidy
from common.run.lock import LOCK, Lock

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def hold():
    """`hold(folder)`: a process that holds the folder; it is killed at the end of the test."""
    processes = []

    def start(folder, then=lambda: signal.pause()):
        ready, said = FORK.Pipe(duplex=False)

        def work():
            sys.argv = ["train_x.py", "--seed", "3"]
            lock = own_folder(folder, True)
            said.send("held")
            then()
            lock.release()

        process = FORK.Process(target=work, daemon=True)
        process.start()
        processes.append(process)
        assert ready.recv() == "held"
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("resume", [None, "auto", "checkpoint-2"])
def test_the_second_process_says_who_holds_the_folder_and_changes_nothing(resume, hold, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.json").write_text("{}")
    process = hold(tmp_path / "r")
    with pytest.raises(UserError, match=rf"r is in use: process {process.pid} on .* since 20.*\(train_x.py --seed 3\); wait") as error:
        claim_folder(tmp_path / "r", True, resume)
    assert "\n" not in str(error.value) and names(tmp_path / "r") == [LOCK, "config.json"]


def test_a_link_to_the_folder_is_the_same_folder(hold, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "r")
    hold(tmp_path / "r")
    with pytest.raises(UserError, match="latest is in use"):
        own_folder(tmp_path / "latest", True)


def test_the_lock_goes_with_the_process_however_it_ends(hold, tmp_path):
    process = hold(tmp_path / "r")
    process.kill()
    process.join()
    assert names(tmp_path / "r") == [LOCK]  # nobody could remove it
    own_folder(tmp_path / "r", True).release()
    assert names(tmp_path / "r") == []  # it was not made by this start


def test_a_child_that_lives_on_does_not_hold_the_folder(hold, tmp_path):
    read, write = os.pipe()

    def fork():
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)  # until the test closes the other end
        os._exit(0)

    process = hold(tmp_path / "r", then=fork)
    process.join()
    own_folder(tmp_path / "r", True).release()
    os.close(write)


def test_a_second_process_is_refused_a_folder_of_a_default_name_as_well(tmp_path):
    """The start looks for what killed starts left. It must not open its own lock file then: closing that would drop the lock."""
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / LOCK).write_text("{}")
    locks = [own_folder(tmp_path / name, False) for name in ("one", "two")]

    def second(pipe):
        for lock in locks:
            try:
                own_folder(lock.folder, True)
            except UserError as error:
                pipe.send(f"is in use: process {os.getppid()} " in str(error))
            else:
                pipe.send("it got the folder")

    found, said = FORK.Pipe(duplex=False)
    process = FORK.Process(target=second, args=(said,))
    process.start()
    process.join()
    assert [found.recv(), found.recv()] == [True, True] and names(tmp_path) == ["one", "two"]
    for lock in locks:
        lock.release()


def test_a_copy_of_the_process_does_not_give_the_folder_free(tmp_path, hold):
    lock = own_folder(tmp_path / "r", True)
    child = FORK.Process(target=lock.release)
    child.start()
    child.join()
    assert names(tmp_path / "r") == [LOCK]
    lock.release()
    lock.release()  # a second time does nothing
    assert not (tmp_path / "r").exists()


def test_a_start_that_is_refused_leaves_no_folder_of_its_own(tmp_path):
    lock = own_folder(tmp_path / "a" / "b" / "r", True)
    lock.release()
    assert names(tmp_path) == []
    (tmp_path / "mine").mkdir()
    own_folder(tmp_path / "mine", True).release()
    assert names(tmp_path) == ["mine"]


def test_what_killed_starts_left_goes_at_the_next_start(tmp_path, hold):
    process = hold(tmp_path / "x-1")
    hold(tmp_path / "x-2")
    process.kill()
    process.join()
    (tmp_path / "x-3").mkdir()
    (tmp_path / "x-3" / ".0123456789abcdef.tmp").mkdir()
    (tmp_path / "x-3" / ".fedcba9876543210.tmp").write_text("half a file")
    own_folder(tmp_path / "x-3", True)
    assert names(tmp_path / "x-3") == [LOCK]
    process = hold(tmp_path / "x-2-other")
    process.kill()
    process.join()
    (tmp_path / "x-2-other" / "kept").touch()
    tidy(tmp_path / "x-2-other")
    assert names(tmp_path / "x-2-other") == ["kept"]
    (tmp_path / "x-2-other" / "kept").unlink()
    (tmp_path / "x-2-other").rmdir()
    own_folder(tmp_path / "x-4", False)
    assert names(tmp_path) == ["x-2", "x-3", "x-4"]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(lock_module.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_module.fcntl, "lockf", no_locks)
    own_folder(tmp_path / "r", True)
    assert "file system without locks" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", '{"pid": "x"}', "[1]", '{"pid": 1, "host": 2, "since": 3, "command": 4}'])
def test_a_lock_file_that_says_nothing_still_locks(content, hold, tmp_path):
    hold(tmp_path / "r")
    (tmp_path / "r" / LOCK).write_text(content)
    with pytest.raises(UserError, match="in use: another process is writing to it"):
        own_folder(tmp_path / "r", True)


def test_a_full_disk_at_the_start_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(lock_module.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock_module.os, "pwrite", full)
    with pytest.raises(UserError, match=r"r cannot be written \(.*: No space left on device\)"):
        own_folder(tmp_path / "r", True)
    assert names(tmp_path) == []


def test_a_renamed_folder_is_found_and_a_deleted_one_is_not(tmp_path, capsys):
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    lock = Lock(own_folder(tmp_path / "r", True).folder)
    (tmp_path / "r").rename(tmp_path / "s")
    assert lock.find() == tmp_path / "s" and "is written to there" in capsys.readouterr().out
    (tmp_path / "s").rename(tmp_path / "t")
    (tmp_path / "s").mkdir()  # another folder of this name
    assert lock.find() == tmp_path / "t" and not lock.deleted
    (tmp_path / "t" / LOCK).unlink()
    (tmp_path / "t").rmdir()
    with pytest.raises(OSError):
        lock.find()
    assert lock.deleted


def test_a_lock_file_that_was_removed_is_made_again_unless_another_process_was_faster(tmp_path, hold):
    """Somebody takes it for the leftover of a run that has died."""
    lock = own_folder(tmp_path / "r", True)
    (tmp_path / "r" / LOCK).unlink()
    assert lock.find() == tmp_path / "r" and names(tmp_path / "r") == [LOCK]
    child = FORK.Process(target=lambda: os._exit(refused(tmp_path / "r")))
    child.start()
    child.join()
    assert child.exitcode == 1
    (tmp_path / "r" / LOCK).unlink()
    hold(tmp_path / "r")
    with pytest.raises(OSError, match="another process has taken the folder"):
        lock.find()
    lock.release()
    assert names(tmp_path / "r") == [LOCK]  # of the other process


def test_a_file_system_that_was_mounted_again_has_the_same_folder(tmp_path):
    lock = own_folder(tmp_path / "r", True)
    (tmp_path / "r" / LOCK).rename(tmp_path / "kept")
    (tmp_path / "r").rmdir()
    (tmp_path / "r").mkdir()  # as a new mount: the same content, and another number
    (tmp_path / "kept").rename(tmp_path / "r" / LOCK)
    assert lock.find() == tmp_path / "r"
    child = FORK.Process(target=lambda: os._exit(refused(tmp_path / "r")))
    child.start()
    child.join()
    assert child.exitcode == 1


def refused(folder):
    try:
        own_folder(folder, True)
    except UserError as error:
        return "in use" in str(error)
    return False


@pytest.mark.parametrize("name", ["config.json", ".config.json", "metrics.jsonl", "completions.jsonl", "problems.jsonl", "summary.json",
                                  "README.md", "report.html", "checkpoint-4", "superseded-checkpoint-4", "tensorboard", LOCK])  # fmt: skip
@pytest.mark.parametrize("kind", ["link", "broken link", "pipe", "wrong kind", "other user"])
def test_a_name_of_ours_that_is_no_plain_file_or_folder_is_refused(name, kind, tmp_path):
    home, folder = tmp_path / "home", tmp_path / "r"
    home.mkdir()
    folder.mkdir()
    (home / "notes").write_text("mine")
    is_folder = name.rpartition("-")[2].isdigit() or name == "tensorboard"
    path = folder / name
    if kind == "link":
        path.symlink_to(home if is_folder else home / "notes")
    elif kind == "broken link":
        path.symlink_to(home / "nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.touch() if is_folder == (kind == "wrong kind") else path.mkdir()
    if kind == "other user":
        if os.geteuid() != 0 or name == LOCK:
            pytest.skip("only root can give files away, and a lock file is written anew")
        os.chown(path, 12345, -1)
    before = names(folder)
    with pytest.raises(UserError) as error:
        claim_folder(folder, True, "auto")
    assert name in str(error.value) and "\n" not in str(error.value)
    assert (home / "notes").read_text() == "mine" and names(home) == ["notes"] and names(folder) == before


def test_links_under_other_names_are_left_alone(tmp_path):
    for name in ("probe", "probe.tmp", "report.html.tmp", "config.json.tmp", "checkpoint-1.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "notes")
    (tmp_path / "notes").write_text("mine")
    claim_folder(tmp_path, True, None)
    assert (tmp_path / "notes").read_text() == "mine" and len(names(tmp_path)) == 7


def test_a_link_that_another_user_laid_is_not_the_folder(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "r").symlink_to(tmp_path / "thesis")
    own_folder(tmp_path / "r", True).release()  # one's own link is
    os.lchown(tmp_path / "r", 12345, -1)
    for wanted in (tmp_path / "r", tmp_path / "r" / "inside"):
        with pytest.raises(UserError, match="r is a link that another user laid"):
            own_folder(wanted, True)
    assert names(tmp_path / "thesis") == []


@pytest.mark.parametrize("resume", [None, "auto"])
@pytest.mark.parametrize("name", ["README.md", "report.html", "completions.jsonl", "summary.json"])
def test_a_file_of_the_user_is_not_written_over(name, resume, tmp_path):
    """The folder may be that of a project, as with `--output_dir .`."""
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"has a file {name} that is not of a run"):
        claim_folder(tmp_path, True, resume)
    assert names(tmp_path) == sorted([name, "notes.txt"]) and (tmp_path / name).read_text() == "mine"


def test_a_run_without_a_checkpoint_starts_over_and_one_whose_checkpoints_are_damaged_does_not(tmp_path):
    (tmp_path / "r").mkdir()
    for name in ("config.json", "metrics.jsonl", "nonfinite-step-3.json", "slurm.log"):
        (tmp_path / "r" / name).write_text(json.dumps(name))
    with pytest.raises(UserError, match=r"holds another run; .* --resume_from_checkpoint auto"):
        claim_folder(tmp_path / "r", True, None)
    claim_folder(tmp_path / "r", True, "auto").release()
    assert names(tmp_path / "r") == ["config.json", "slurm.log"]
    (tmp_path / "r" / "checkpoint-2").mkdir()
    with pytest.raises(UserError, match=r"none of its checkpoints is whole \(checkpoint-2: .*\), so that it cannot be continued") as error:
        claim_folder(tmp_path / "r", True, "auto")
    assert "auto" not in str(error.value)
