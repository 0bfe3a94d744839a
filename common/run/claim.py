"""Takes the folder of a run or an evaluation, and checks it, before anything is loaded."""
from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from common.errors import UserError
from common.files import UNFINISHED, probe, remove, what_it_is
from common.run.folder import CONFIG, CONFIG_COPY, METRICS, is_begun
from common.run.lock import LOCK, Lock
from common.run.resume import checkpoints, what_is_missing

# the files and folders that a run or an evaluation writes, or builds on
FILES = re.compile(r"\.?config\.json|(metrics|completions|problems)\.jsonl|summary\.json|README\.md|report\.html|nonfinite-step-\d+\.json")
FOLDERS = re.compile(r"(superseded-)?checkpoint-\d+|tensorboard|wandb|adapters")


def own_folder(wanted: Path, named: bool) -> Lock:
    """Makes a folder or takes the one that is there, and locks it. The name gets an ending if it is taken and the user did not give it.

    Removes what a killed process left half written. Raises UserError for a folder that cannot be written, that another process
    writes to, or where another user could lead our writes elsewhere.
    """
    folder = wanted
    try:
        _check_owner(folder)
        while True:
            made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
            try:
                folder.mkdir(parents=True, exist_ok=named)
                lock = Lock(folder, made)
                break
            except FileExistsError:  # two runs that start in the same second, or a file that has the name
                if named:
                    raise
                folder = folder.with_name(f"{folder.name}-2")
        try:
            _check_content(folder, probe(folder))
        except BaseException:
            lock.release()
            raise
    except OSError as error:
        raise UserError(f"--output_dir {folder} cannot be written ({error.filename or folder}: {error.strerror}); "
                        "name another folder") from error
    if not named:
        _remove_dead(folder)
    return lock


def claim_folder(wanted: Path, named: bool, resume: str | None) -> Lock:
    """Takes the folder of a run. named: the user gave the name.

    resume: as `--resume_from_checkpoint`, with `auto` already replaced if a checkpoint was found. Raises UserError as `own_folder`, and for
    a folder that holds another run.
    """
    lock = own_folder(wanted, named)
    folder, found = lock.folder, checkpoints(lock.folder)
    try:
        if resume not in (None, "auto"):
            return lock
        if not (is_begun(folder) or (folder / METRICS).exists() or found):
            other = sorted(path.name for path in folder.iterdir() if FILES.fullmatch(path.name))
            if other:
                raise UserError(f"--output_dir {wanted} has a file {other[0]} that is not of a run, and a run would write over it; name "
                                "another folder")
            return lock
        if resume is None:
            raise UserError(f"--output_dir {wanted} holds another run; name another folder, delete that one, or continue it with "
                            "--resume_from_checkpoint auto")
        if found:
            raise UserError(f"--output_dir {wanted} holds a run, but none of its checkpoints is whole ({found[-1].name}: "
                            f"{what_is_missing(found[-1])}), so that it cannot be continued; name another folder, or delete that one")
        for path in folder.iterdir():  # of a run that never came to a checkpoint: there is nothing to continue, so it starts over
            if FILES.fullmatch(path.name) and path.name not in (CONFIG, CONFIG_COPY):
                path.unlink()
    except OSError as error:
        lock.release()
        raise UserError(f"--output_dir {folder} cannot be written ({error.filename or folder}: {error.strerror}); "
                        "name another folder") from error
    except BaseException:
        lock.release()
        raise
    return lock


def tidy(folder: Path) -> None:
    """Removes what a process that was killed at its very end left half written, if nothing else writes to the folder."""
    with contextlib.suppress(OSError, UserError):
        if any(path.name == LOCK or UNFINISHED.fullmatch(path.name) for path in folder.iterdir()):
            own_folder(folder, True).release()


def _check_owner(folder: Path) -> None:
    """Raises UserError if another user laid the link that leads to the folder, or owns the folder and could lay links in it."""
    trusted = {0, os.geteuid()}
    for path in (folder.absolute(), *folder.absolute().parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if path.is_symlink() and path.lstat().st_uid not in trusted:
                raise UserError(f"--output_dir {folder}: {path} is a link that another user laid; name the folder itself")
    if os.geteuid() != 0 and os.path.exists(folder) and folder.stat().st_uid not in trusted:
        raise UserError(f"--output_dir {folder} belongs to another user; name a new folder")


def _check_content(folder: Path, user: int) -> None:
    """Raises UserError if a name of ours is taken by something else than a plain file or folder of this user. Removes unfinished files."""
    for path in folder.iterdir():
        wanted = "file" if FILES.fullmatch(path.name) or path.name == LOCK else "folder" if FOLDERS.fullmatch(path.name) else None
        if UNFINISHED.fullmatch(path.name):
            remove(path)
        elif wanted and (path.is_symlink() or not (path.is_file() if wanted == "file" else path.is_dir())):
            raise UserError(f"{path}: {what_it_is(path)} and not a plain {wanted}, and could lead to another place; remove it, or name "
                            "another --output_dir")
        elif wanted and path.lstat().st_uid != user:
            raise UserError(f"{path} belongs to another user (number {path.lstat().st_uid}, not {user}); copy the folder, or name another "
                            "--output_dir")


def _remove_dead(folder: Path) -> None:
    """Removes folders of the same kind whose runs were killed before they wrote anything."""
    for other in folder.parent.glob(f"*/{LOCK}"):
        with contextlib.suppress(OSError, UserError):  # it is not dead, or it is another user's
            if Lock.is_free(other) and len(list(other.parent.iterdir())) == 1:
                Lock(other.parent, [other.parent]).release()
