"""Checkpoints: a PEFT folder with the trainer's state beside it, whole or not there at all.

A checkpoint is written under a temporary name, flushed to disk and renamed. Its manifest lists every file with size and
hash, so that a copy that broke off is refused as well.
"""
from __future__ import annotations

import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from common.console import say
from common.errors import UserError
from common.files import flush, new_folder, remove, write_file, write_manifest
from common.run.folder import MARKS
from common.run.resume import TRAINER_STATE, checkpoints, what_is_missing


class Stateful(Protocol):
    """Anything whose state a resumed run needs: an optimiser, the sampler of problems, counters."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Saved(Protocol):
    """A model that has files of its own in a checkpoint: the policy's adapter, a critic."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def save_checkpoint(run_folder: Path, step: int, models: list[Saved], parts: dict[str, Stateful], keep: int, card: str,
                    rows: dict[str, Any] | None = None) -> Path:
    """Writes the folder checkpoint-`step`, with `card` as its README.md, and returns it. Deletes all but the newest `keep`.

    With `keep` 0 no checkpoint is deleted. rows: what the jsonl files of the run hold. Raises OSError if it cannot be
    written; the newest of the older checkpoints stays.
    """
    final = run_folder / f"checkpoint-{step}"  # may be there, from an earlier run of the same step
    with new_folder(final) as folder:
        try:
            for model in models:
                model.save(folder)
        except SafetensorError as error:  # it has the error of the operating system in its text only
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number), str(final)) from error
        write_file(folder / "README.md", card)
        state = io.BytesIO()  # torch.save to a path would hide a full disk in a RuntimeError
        torch.save({"step": step, "rng": torch.get_rng_state(), **{name: part.state_dict() for name, part in parts.items()}}, state)
        write_file(folder / TRAINER_STATE, state.getbuffer())
        if rows is not None:
            write_file(folder / MARKS, json.dumps(rows))
        write_manifest(folder)
        flush(folder)
        # the rename comes last, so that a run that has its last checkpoint is finished in every way; but one checkpoint is always there
        older = [path for path in checkpoints(run_folder) if path != final]
        for old in older[:-max(keep - 1, 1)] if keep else []:
            remove(old)
    for old in older if keep == 1 else []:
        remove(old)
    return final


def load_checkpoint(folder: Path, models: list[Saved], parts: dict[str, Stateful]) -> int:
    """Puts the state of a checkpoint into models and parts, and returns its step. Raises UserError if the checkpoint is not whole."""
    problem = what_is_missing(folder)
    if problem:
        raise UserError(f"{folder} is not a whole checkpoint ({problem}); resume from an older one")
    for model in models:
        model.load(folder)
    try:
        state = torch.load(folder / TRAINER_STATE, map_location="cpu", weights_only=True)
        torch.set_rng_state(state["rng"])
        for name, part in parts.items():
            if name in state:
                part.load_state_dict(state[name])
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # somebody else may have written the file, and torch raises whatever it likes
        raise UserError(f"{folder / TRAINER_STATE} is not the state of a run ({type(error).__name__}); it is not read, as such a file "
                        "can hold code. Resume from a checkpoint of your own") from error
    for name, part in parts.items():
        if name not in state and part.state_dict():
            say(f"note: {folder} has no state of {name}: it was written by an older version, and {name} begins anew")
    return state["step"]
