"""What is done if a folder cannot be written any more: wait for it, then save what is in memory in another place."""
from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import TypeVar

from common.console import say
from common.files import new_folder
from common.run.lock import Lock

WAITS = (1, 2, 4, 8, 15)  # seconds before the next try
PASSING = {getattr(errno, name) for name in (  # errors of a network mount that may be back soon
    "ESTALE", "EIO", "ENOENT", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ESHUTDOWN", "ECONNRESET", "EREMOTEIO", "ENODEV",
    "ENXIO", "EAGAIN") if hasattr(errno, name)}
REMEDIES = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some of your quota", errno.EFBIG: "raise the limit for the size of a file "
            "(ulimit -f)", errno.EROFS: "make the folder writable", errno.EACCES: "make the folder writable",
            errno.EPERM: "make the folder writable", errno.EMFILE: "raise the limit for open files (ulimit -n)"}
T = TypeVar("T")


def patiently(lock: Lock, work: Callable[[], T]) -> T:
    """The result of `work`, which writes to the folder of `lock`. Waits for a folder that may come back. Raises OSError if it does not."""
    for seconds in WAITS:
        try:
            lock.find()
            return work()
        except OSError as error:
            if error.errno not in PASSING or lock.deleted:
                raise
            say(f"note: {error.filename or lock.folder} cannot be written ({error.strerror}); the next try is in {seconds} s")
            sleep(seconds)
    lock.find()
    return work()


def save_elsewhere(folder: Path, ending: str, fill: Callable[[Path], object]) -> Path | None:
    """A new folder FOLDER-ENDING that `fill` has filled. None if that fails everywhere.

    It is beside `folder`, in the working folder or in that for temporary files.
    """
    name = f"{folder.name.strip('.') or 'run'}-{ending}"  # the folder may be named as `.`
    for find in (lambda: folder.resolve().parent, Path.cwd, lambda: Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):  # the working folder may have gone too
            place = find()
            saved = place / name
            for number in range(2, 100):
                if not saved.exists():
                    break
                saved = place / f"{name}-{number}"
            with new_folder(saved) as new:
                fill(new)
            return saved
    return None


def cause(error: OSError, folder: Path) -> str:
    """The error in words."""
    return f"{error.filename or folder} cannot be written ({error.strerror or type(error).__name__})"


def remedy(error: OSError) -> str:
    """What the user can do against the error."""
    return REMEDIES.get(error.errno or 0, "put the folder right")
