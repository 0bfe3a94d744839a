"""Which checkpoint a run is resumed from. Needs no torch."""
from __future__ import annotations

import contextlib
import glob
import re
import shlex
from pathlib import Path

from common.config import SamplingConfig
from common.console import say
from common.errors import UserError
from common.files import damage
from common.run.folder import CONFIG, CONFIG_COPY, differs, is_begun, marks, run_prefix
from common.run.lock import Lock
from common.run.saved_config import read_config, what_differs

TRAINER_STATE = "trainer_state.pt"
IDENTITY = "identity.json"  # fingerprints of what the run is made of; older versions wrote none


def checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whole or not."""
    found = [path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def what_is_missing(folder: Path) -> str | None:
    """Why the folder is not a whole checkpoint, or None if it is."""
    return damage(folder, TRAINER_STATE)


def find_checkpoint(config: SamplingConfig, script: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names. None if `auto` finds none: then a new run starts, and a line says so.

    `auto` looks in `--output_dir`, else for the newest run of this very command: the same script and the same flags. Raises UserError for
    a named folder that is not a whole checkpoint, and if another process is at work on this run.
    """
    wanted = config.resume_from_checkpoint
    if wanted != "auto":
        problem = what_is_missing(Path(wanted))
        if problem:
            inside = [str(path) for path in checkpoints(Path(wanted))]
            raise UserError(f"--resume_from_checkpoint {wanted}: not a whole checkpoint ({problem}); give "
                            f"{inside[-1] if inside else 'a checkpoint-N folder, or auto'}")
        for folder in (Path(wanted), Path(wanted).resolve()):  # a link to a checkpoint, or `.`, has its run folder elsewhere
            if is_begun(folder.parent):
                return folder
        raise UserError(f"--resume_from_checkpoint {wanted}: there is no {CONFIG} of its run beside it; resume it in its run folder, or "
                        f"start a new run from its adapter: --adapter {shlex.quote(wanted)}")
    if config.output_dir:
        runs, where = [Path(config.output_dir)], config.output_dir
    else:
        runs, where = runs_of(config, script), f"{run_prefix(config, script)}-*"
    for run in runs:
        if found := newest_checkpoint(run):
            return found
        if not config.output_dir:
            with contextlib.suppress(OSError):
                Lock(run).release()  # refused if this very command is at work there, and has no checkpoint yet
    say(f"nothing to resume in {where}: a new run starts")
    return None


def newest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, if possible one since which the rows of the jsonl files are unchanged.

    Those that are passed over are named on the console.
    """
    second_best = None
    for folder in reversed(checkpoints(run)):
        problem = what_is_missing(folder)
        changed = [] if problem else [name for name, mark in marks(folder).items() if differs(run / name, mark)]
        if not problem and not changed:
            return folder
        say(f"skipping {folder}: " + (f"not a whole checkpoint ({problem})" if problem else f"{changed[0]} has changed since it was saved"))
        second_best = second_best or (None if problem else folder)
    if second_best:
        say(f"no checkpoint is from before that change: going on from {second_best}")
    return second_best


def runs_of(config: SamplingConfig, script: str) -> list[Path]:
    """The run folders that this very command has made under their default names, newest first: same script, same flags."""
    prefix = glob.escape(run_prefix(config, script))
    begun = {Path(path).parent for name in (CONFIG, CONFIG_COPY) for path in glob.glob(f"{prefix}-*/{name}")}
    own, others = [], []
    for folder in sorted(begun, reverse=True):  # names end in the time
        try:
            saved = read_config(folder / CONFIG, type(config))
        except UserError as error:
            say(f"skipping {folder}: {error}")
            continue
        if why := what_differs(saved, config, script):
            others.append(f"{folder}: {why}")
        else:
            own.append(folder)
    if others and not own:
        say(f"no run of this very command: {'; '.join(others[:3])}{'; ...' if len(others) > 3 else ''}")
    return own


def step_of(checkpoint: Path) -> int:
    """The number of steps that the run had done at the checkpoint."""
    found = re.search(r"checkpoint-(\d+)$", checkpoint.resolve().name)
    return int(found[1]) if found else 0
