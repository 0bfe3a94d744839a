"""A folder has one writer at a time: a lock that the kernel drops when its process ends, however it ends."""
from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from common.console import say
from common.errors import UserError
from common.files import open_plain, read_file

LOCK = ".lock"  # the file says who holds the lock. It is there as long as the lock is held, and after a kill
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that has none


class Lock:
    """Holds a folder until `release`, or until the process ends. Raises UserError if another process holds it, and OSError.

    The lock belongs to the process: its children do not hold it, and a second Lock of the same process is not refused. The kernel drops
    it as soon as the process closes any handle of the lock file. So nothing may open a file of `held` once more.
    """

    held: ClassVar[set[tuple[int, int]]] = set()  # (device, number) of the lock files of this process

    def __init__(self, folder: Path, made: Sequence[Path] = ()) -> None:
        """made: folders that were made for this lock, the innermost first. `release` removes them if they are empty."""
        self.folder = folder
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "command": sys.argv}
        self.holder = json.dumps(holder).encode()
        self.made, self.pid = made, os.getpid()
        try:
            self._take()
        except BaseException:
            self._remove_made()
            raise
        atexit.register(self.release)

    def find(self) -> Path:
        """The folder, wherever it is now: it may have been renamed. Raises OSError if it has gone, or if another process has taken it."""
        self._follow()
        self._hold_on()
        return self.folder

    def _follow(self) -> None:
        """Finds the folder under another name, or on a file system that was mounted again. Raises OSError if it has gone."""
        missing: OSError | None = None
        try:
            there = os.stat(self.folder)
            if os.path.samestat(there, os.fstat(self.directory)):
                return
            if read_file(self.folder / LOCK) == self.holder:  # the same folder, but its file system was mounted again
                self._take()
                return
        except OSError as error:
            missing = error
        with contextlib.suppress(OSError):
            moved = Path(os.readlink(f"/proc/self/fd/{self.directory}"))  # Linux
            if os.path.samestat(os.stat(moved), os.fstat(self.directory)):
                say(f"note: the folder {self.folder} is {moved} now, and is written to there")
                self.folder = moved
                return
        raise missing or OSError(errno.ENOENT, "another folder has taken its place", str(self.folder))

    def _hold_on(self) -> None:
        """Makes the lock file again if somebody has removed it. Raises OSError if another process was faster."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(self.folder / LOCK), os.fstat(self.file)):
                return
        try:
            self._take()
        except UserError as error:
            raise OSError(errno.EBUSY, "another process has taken the folder, after its lock file was removed", str(self.folder)) from error

    def release(self) -> None:
        """Releases the folder."""
        atexit.unregister(self.release)
        if os.getpid() != self.pid:  # it is released, or this is a copy of the process, by fork
            return
        self.pid = 0
        with contextlib.suppress(OSError):
            path = self.find() / LOCK
            if os.path.samestat(os.lstat(path), os.fstat(self.file)):
                path.unlink()
        with contextlib.suppress(OSError):
            self.held.discard(_number(os.fstat(self.file)))
        for handle in (self.file, self.directory):
            with contextlib.suppress(OSError):
                os.close(handle)
        self._remove_made()

    @classmethod
    def is_free(cls, path: Path) -> bool:
        """Whether no lock of this process is on the lock file `path`. Another process may hold one. Raises OSError."""
        return _number(os.lstat(path)) not in cls.held

    @property
    def deleted(self) -> bool:
        """Whether the folder is known to be deleted, so that it cannot come back."""
        try:
            return os.fstat(self.directory).st_nlink == 0
        except OSError:
            return False

    def _remove_made(self) -> None:
        with contextlib.suppress(OSError):  # a folder that is not empty stays, and so do those around it
            for folder in self.made:
                folder.rmdir()

    def _take(self) -> None:
        path = self.folder / LOCK
        while True:
            file = open_plain(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    held = os.pread(file, 100_000, 0)
                    os.close(file)
                    raise UserError(f"{self.folder} is in use: {_words(held)}; wait until it has ended, end it, or name another "
                                    "folder") from None
                if error.errno not in NO_LOCKS:
                    raise
                say(f"note: {self.folder} is on a file system without locks; make sure that nothing else writes to this folder")
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(path), os.fstat(file)):
                    break
            os.close(file)  # the process before has just removed the file that was opened here
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, self.holder, 0)
            self.file, self.directory = file, os.open(self.folder, os.O_RDONLY)
            self.held.add(_number(os.fstat(file)))
        except OSError:  # the disk is full
            path.unlink()
            os.close(file)
            raise


def _number(file: os.stat_result) -> tuple[int, int]:
    return file.st_dev, file.st_ino


def _words(held: bytes) -> str:
    """Who holds a lock, by the content of its file."""
    try:
        holder = json.loads(held)
        command = shlex.join(map(str, holder["command"]))
        return (f"process {holder['pid']:d} on {holder['host']} has been writing to it since {holder['since']} "
                f"({command[:200]}{'...' if len(command) > 200 else ''})")
    except (ValueError, KeyError, TypeError):
        return "another process is writing to it"
