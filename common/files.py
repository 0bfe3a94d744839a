"""Files and folders that are whole or not there. A link never leads a writer or a reader to another place.

Whoever may write into a folder could lay a link there under a name that a program is about to write. So everything is written under a
new name that nobody can know before, and then renamed into place.
"""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"  # every file of a folder, with its size and hash
LARGEST_MANIFEST = 2**20  # bytes; real ones have some thousand
UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.tmp")  # the names of files and folders that are being written. A kill leaves them behind
NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK  # and no wait for the other end of a pipe


def write_file(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file so that it always holds either its old content or all of `content`. Raises OSError with `path` as its file name.

    A link at `path` is replaced, and the file that it leads to stays as it is. A file that holds `content` already is left alone.
    """
    with _named(path):
        content = encoded(content)
        with contextlib.suppress(OSError):
            there = path.lstat()
            if (there.st_nlink, there.st_size) == (1, len(content)) and read_file(path) == content:
                return
        temporary = _unfinished(path)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)
        try:
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(handle)
            os.replace(temporary, path)
        except BaseException:
            remove(temporary)
            raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill. At the end of the `with` block it is flushed to disk and takes the place of `path`.

    An error or an interruption leaves `path` as it was. Raises OSError. Files get the rights of the folder: some libraries write files
    that nobody else can read.
    """
    temporary = _unfinished(path)
    try:
        with _named(path):
            os.mkdir(temporary)
        try:
            yield temporary
        except OSError as error:
            if error.filename:  # the name under which the file would have been found
                error.filename = str(error.filename).replace(str(temporary), str(path), 1)
            raise
        with _named(path):
            rights = temporary.stat().st_mode & 0o666
            for entry in temporary.rglob("*"):
                if entry.is_file():
                    entry.chmod(rights)
            flush(temporary)
            old = _unfinished(path)
            if os.path.lexists(path):
                path.rename(old)
            temporary.rename(path)
            remove(old)
            _flush(path.parent)
    finally:
        remove(temporary)  # there is nothing left to remove when the rename worked


def remove(path: Path) -> None:
    """Removes a file or a folder, as far as that is possible. Of a link it removes the link alone."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def append(path: Path, content: str | bytes) -> None:
    """Adds `content` to the end of a plain file, or makes the file. Adds nothing if an OSError is raised."""
    with _named(path):
        handle = open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(handle).st_size
            rest = memoryview(encoded(content))
            try:
                while rest:
                    rest = rest[os.write(handle, rest):]
            except OSError:
                os.ftruncate(handle, size)  # half a line would be in the way of the next
                raise
        finally:
            os.close(handle)


def write_manifest(folder: Path) -> None:
    """Lists every file of the folder, with its size and hash, in MANIFEST."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    manifest = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    write_file(folder / MANIFEST, json.dumps(manifest, indent=1))


def damage(folder: Path, needed: str) -> str | None:
    """Why the folder is not what its MANIFEST lists, or does not have the file `needed`; None if it is whole."""
    try:
        if (folder / MANIFEST).lstat().st_size > LARGEST_MANIFEST:
            return f"{MANIFEST} has more than {LARGEST_MANIFEST >> 20} MiB"
        manifest = json.loads(read_file(folder / MANIFEST))
        for name, entry in manifest.items():
            path = Path(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name:  # in another spelling one file could be listed without end
                return f"{MANIFEST} names {name[:80]}, which is no file of this folder"
            if any((folder / above).is_symlink() for above in path.parents[:-1]):
                return f"{name} is behind a link"
            if (folder / name).lstat().st_size != entry["bytes"] or sha256(folder / name) != entry["sha256"]:
                return f"{name} has changed or was cut off"
        if needed not in manifest:
            return f"no {needed}"
    except OSError as error:
        return f"{error.strerror}: {Path(error.filename or folder).name}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is damaged"
    return None


def cut(path: Path, size: int) -> None:
    """Shortens a plain file to its first `size` bytes. Another name of the file keeps all of them. Raises OSError."""
    with _named(path):
        handle = open_plain(path, os.O_RDWR)
        try:
            if os.fstat(handle).st_nlink == 1:
                os.ftruncate(handle, size)
                return
        finally:
            os.close(handle)
        write_file(path, read_file(path)[:size])


def flush(path: Path) -> None:
    """Makes sure that a file, or a folder with all that is in it, is on disk. Raises OSError."""
    for entry in [*path.rglob("*"), path] if path.is_dir() else [path]:
        _flush(entry)


def read_file(path: Path) -> bytes:
    """The content of a plain file. Raises OSError."""
    with open(open_plain(path), "rb") as file:
        return file.read()


def sha256(path: Path, size: int | None = None) -> str:
    """The SHA-256 of a plain file's content, or of its first `size` bytes, hexadecimal. Raises OSError."""
    with open(open_plain(path), "rb") as file:
        if size is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        found = hashlib.sha256()
        while size > 0 and (part := file.read(min(size, 2**20))):
            found.update(part)
            size -= len(part)
        return found.hexdigest()


def probe(folder: Path, size: int = 1) -> int:
    """Writes `size` bytes to a file in the folder and removes it. Returns the user that new files belong to, a number. Raises OSError."""
    path = _unfinished(folder / "probe")
    write_file(path, bytes(size))
    try:
        return path.lstat().st_uid
    finally:
        remove(path)


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """A handle of a plain file. Raises OSError for a link, a pipe, a device or a folder, which could hang or lead elsewhere."""
    try:
        handle = os.open(path, flags | NO_LINK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.ENXIO and path.exists()):  # ENXIO: a pipe without a reader, or a socket
            raise OSError(errno.EINVAL, f"{what_it_is(path)} and not a plain file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"{what_it_is(path)} and not a plain file", str(path))
    return handle


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these members, for `json.loads`. Raises ValueError if a name occurs twice: which value counts would be a guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        left = iter(found)  # the order of first appearance: the first pair that does not follow it is the repeat
        raise ValueError(f"it has the key {next(name for name, _ in pairs if name != next(left, None))[:80]!r} twice")
    return found


def what_it_is(path: Path) -> str:
    """What is at `path` instead of a plain file, in words."""
    mode = os.lstat(path).st_mode
    kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
             (stat.S_ISREG, "a file"))
    return f"it is {next((name for test, name in kinds if test(mode)), 'a device')}"


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Gives an OSError from inside the name of the file that is meant, in place of a temporary name or of none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        if error.filename2 is not None:
            del error.filename2  # None would be shown
        raise


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}.tmp")


def encoded(content: str | bytes | memoryview) -> bytes | memoryview:
    """Half a surrogate pair, which text of a model or of a data file may hold, becomes the escape that JSON has for it."""
    return content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content


def _flush(path: Path) -> None:
    """Makes sure that the file or folder is on disk. Otherwise a rename could reach the disk before the content does."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
