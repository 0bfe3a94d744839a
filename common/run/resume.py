"""Which checkpoint a run is resumed from. Needs no torch."""
from __future__ import annotations

import glob
import json
import re
from pathlib import Path

from common.console import say
from common.errors import UserError
from common.files import sha256

MANIFEST = "manifest.json"  # every file of a checkpoint, with its size and hash
TRAINER_STATE = "trainer_state.pt"


def checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not."""
    found = [path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def what_is_missing(folder: Path) -> str | None:
    """Why the folder is not a whole checkpoint, or None if it is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest.items():
            if (folder / name).stat().st_size != entry["bytes"] or sha256(folder / name) != entry["sha256"]:
                return f"{name} has changed or was cut off"
        if TRAINER_STATE not in manifest:
            return f"no {TRAINER_STATE}"
    except OSError as error:
        return f"{error.strerror}: {Path(error.filename or folder).name}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def newest_checkpoint(wanted: str, output_dir: str | None, prefix: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names. None if `auto` finds none: then a new run starts, and a line says so.

    prefix: how the names of this command's default run folders begin. Raises UserError for a folder that is not a whole checkpoint.
    """
    if wanted != "auto":
        problem = what_is_missing(Path(wanted))
        if problem:
            inside = [str(path) for path in checkpoints(Path(wanted))]
            raise UserError(f"--resume_from_checkpoint {wanted}: not a whole checkpoint ({problem}); give "
                            f"{inside[-1] if inside else 'a checkpoint-N folder, or auto'}")
        return Path(wanted)
    begun = [Path(path).parent for path in glob.glob(f"{glob.escape(prefix)}-*/config.json")]
    run = Path(output_dir) if output_dir else max(begun, default=Path(prefix))  # the newest, since names end in the time
    for folder in reversed(checkpoints(run)):
        problem = what_is_missing(folder)
        if problem is None:
            return folder
        say(f"skipping {folder}: not a whole checkpoint ({problem})")
    say(f"nothing to resume in {run}: a new run starts")
    return None
