"""Everything is written under a new name and renamed: no link leads it to another place, and nothing half written stays."""

import errno
import os
import stat

import pytest

import common.files as files
from common.files import append, new_folder, read_file, sha256, write_file


@pytest.fixture
def notes(tmp_path):
    """A file of the user, outside of the folder that is written to."""
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "notes"
    path.write_text("mine")
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_link_is_replaced_and_never_followed(notes, folder):
    for name in ("report.html", "report.html.tmp", ".report.html.tmp"):
        (folder / name).symlink_to(notes)
    write_file(folder / "report.html", "page")
    os.link(notes, folder / "hard")
    write_file(folder / "hard", b"page")
    assert notes.read_text() == "mine"
    assert not (folder / "report.html").is_symlink() and (folder / "report.html").read_text() == (folder / "hard").read_text() == "page"
    with new_folder(folder / "report.html.tmp") as new:
        write_file(new / "a", "x")
    assert [path.name for path in (folder / "report.html.tmp").iterdir()] == ["a"] and notes.read_text() == "mine"


def test_a_temporary_name_that_is_taken_is_not_written_to(notes, folder, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (folder / ".guessed.tmp").symlink_to(notes)
    with pytest.raises(FileExistsError):
        write_file(folder / "a", "x")
    with pytest.raises(FileExistsError), new_folder(folder / "b"):
        pass
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "broken link", "pipe", "folder", "device", "socket"])
def test_what_is_no_plain_file_is_not_read_or_added_to(kind, notes, folder):
    path = folder / "metrics.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "device":
        path = files.Path("/dev/zero")
    else:
        path.symlink_to(notes if kind == "link" else folder / "nowhere")
    for use in (read_file, sha256, lambda path: append(path, "more")):
        with pytest.raises(OSError) as caught:
            use(path)
        assert caught.value.filename == str(path)
        assert "a plain file" in caught.value.strerror or isinstance(caught.value, IsADirectoryError)
    assert notes.read_text() == "mine" and not (folder / "nowhere").exists()


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_names_it(where, folder, monkeypatch):
    write_file(folder / "a", "old")

    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "write":
        monkeypatch.setattr(files, "encoded", fails)
    else:
        monkeypatch.setattr(files.os, where, fails)
    with pytest.raises(OSError, match="No space left") as caught:
        write_file(folder / "a", "new")
    assert caught.value.filename == str(folder / "a")
    assert (folder / "a").read_text() == "old" and [path.name for path in folder.iterdir()] == ["a"]


def test_half_a_line_that_was_added_is_taken_back(folder, monkeypatch):
    append(folder / "rows", "one\n")
    real, calls = os.write, []

    def half(handle, data):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return real(handle, data[:2])

    monkeypatch.setattr(files.os, "write", half)
    with pytest.raises(OSError, match="quota") as caught:
        append(folder / "rows", "two\n")
    assert caught.value.filename == str(folder / "rows") and (folder / "rows").read_text() == "one\n"


def test_an_interrupted_folder_leaves_the_old_one(folder):
    with new_folder(folder / "checkpoint-1") as new:
        write_file(new / "a", "old")
    with pytest.raises(KeyboardInterrupt), new_folder(folder / "checkpoint-1") as new:
        write_file(new / "a", "new")
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["checkpoint-1"] and (folder / "checkpoint-1" / "a").read_text() == "old"


def test_an_error_in_a_new_folder_names_the_file_as_it_would_be_found(folder):
    with pytest.raises(OSError, match="No such file") as caught, new_folder(folder / "checkpoint-1") as new:
        write_file(new / "critic" / "head", "x")
    assert caught.value.filename == str(folder / "checkpoint-1" / "critic" / "head")


def test_files_get_the_rights_that_the_user_gives_to_new_files(folder):
    before = os.umask(0o027)
    try:
        write_file(folder / "a", "x")
        with new_folder(folder / "new") as new:
            (new / "private").touch(mode=0o600)
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder / "a", folder / "new" / "private")] == [0o640, 0o640]
    finally:
        os.umask(before)


def test_half_a_surrogate_pair_is_written_as_json_has_it(folder):
    append(folder / "rows", '"\ud83d"\n')
    assert read_file(folder / "rows") == b'"\\ud83d"\n'


def test_a_file_that_holds_the_content_already_is_left_alone(notes, folder):
    path = folder / "config.json"
    write_file(path, "é\n")
    os.utime(path, (1, 1))
    write_file(path, "é\n")
    assert path.stat().st_mtime == 1
    for other in ("a\n\n", "é"):
        write_file(path, other)
        assert path.read_text() == other and path.stat().st_mtime > 1
    os.link(notes, folder / "hard")
    (folder / "soft").symlink_to(notes)
    for name in ("hard", "soft"):  # what is added to it later must not reach the file of the user
        write_file(folder / name, "mine")
        append(folder / name, "more")
    assert notes.read_text() == "mine"
