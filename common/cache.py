"""The user's cache: folders of models that are made once and kept."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from common.errors import UserError
from common.files import probe


def cached_folder(name: str, size: int, whole: Callable[[Path], bool], make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, which is $VINERY_CACHE, else vinery/ in the user's cache folder. It is made first if it is not there.

    size: bytes that it takes at most. whole: whether a folder is there and can be used. make: makes the folder, all of it or nothing; one
    process at a time does so. Raises UserError if the cache cannot be written, and whatever `make` raises.
    """
    home = os.environ.get("VINERY_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vinery"
    if str(home).startswith("~"):
        raise UserError("there is no home folder for the cache of models: name a folder in VINERY_CACHE")
    folder = Path(home) / name
    if whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")  # of two runs that start at the same time, one makes the model and the other waits
        lock.acquire()
    except OSError as error:
        raise UserError(f"the cache {folder.parent} cannot be written ({error.strerror}): name another folder in VINERY_CACHE") from error
    with lock:
        if not whole(folder):
            try:
                probe(folder.parent, size)  # the work takes minutes, so there must be room for its result
                make(folder)
            except (OSError, SafetensorError) as error:
                raise UserError(f"the cache {folder.parent} cannot be written ({getattr(error, 'strerror', None) or error}): free some "
                                "space there, or name another folder in VINERY_CACHE") from error
    return folder
