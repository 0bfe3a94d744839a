"""The result folder of an evaluation: whose it is, and the rows that it already holds."""
from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common import parallel
from common.config import SamplingConfig
from common.console import say
from common.errors import UserError
from common.files import read_file, sha256, write_file
from common.policy.fingerprint import base_fingerprint
from common.records import Problem
from common.rollout.choose_engine import choose_engine
from common.run.claim import own_folder
from common.run.folder import CONFIG, is_begun, lines_of, run_prefix, write_config
from common.run.identity import tokens_fingerprint
from common.run.judging import PROBLEMS, SUMMARY, checker_version, forget, verdicts, whole_row
from common.run.lock import Lock
from common.run.record import config_record
from common.run.rescue import cause, patiently, remedy, save_elsewhere
from common.run.saved_config import read_config, read_record, what_differs


def claim_results(config: SamplingConfig) -> Lock | None:
    """Takes the result folder, and puts its name into `config.output_dir`. If it is begun, `config` gets the derived values of that time.

    Of several processes, process 0 takes it, and the others get None. Raises UserError if another run's process writes to the folder, and
    if it holds an evaluation with other flags.
    """
    locks = []

    def claim() -> tuple[str, dict[str, Any]]:
        wanted = config.output_dir or f"{run_prefix(config, 'eval')}-{time.strftime('%Y%m%d-%H%M%S')}"
        lock = own_folder(Path(wanted), config.output_dir is not None)
        locks.append(lock)
        config.release = lock.release
        if not is_begun(lock.folder):
            return str(lock.folder), {}
        saved = read_config(lock.folder / CONFIG, type(config))
        if why := what_differs(saved, config, "eval", config.resumable):
            raise UserError(f"--output_dir {lock.folder} holds another evaluation: {why}; name another folder")
        return str(lock.folder), saved.derived

    config.output_dir, derived = parallel.first(claim, "the result folder")
    config.derive(**derived)
    return locks[0] if locks else None


def begin(folder: Path, config: SamplingConfig, problems: list[Problem]) -> list[dict[str, Any]]:
    """The rows of this evaluation that the result folder already holds. Raises UserError if it holds another evaluation.

    The rows are those of the first problems. After a row that is damaged or out of place, all are sampled again.
    """
    record, done = _record(config, problems), []
    try:
        if is_begun(folder):
            saved = read_record(folder / CONFIG)
            count = saved.get("problems", len(problems))  # there may be more problems now, and these come behind the others
            if count > len(problems):
                raise UserError(f"--output_dir {folder} is of {count} problems: give --max_problems {count} or more, or another folder")
            record["tokens"] = tokens_fingerprint(problems[:count])
            done = _rows(folder, config, problems)
            for name in ("engine", "device", "adapter_sha256", "base", "tokens"):
                before = saved.get(name, record[name])  # older versions did not save all of them
                if before != record[name] and (name != "base" or (before and record[name])):  # a base may be on the hub still
                    raise UserError(f"--output_dir {folder} was begun with another {name}, {str(before)[:200]}; name another folder")
        elif other := [name for name in (PROBLEMS, SUMMARY) if (folder / name).exists()]:
            raise UserError(f"--output_dir {folder} has a {other[0]} that is not of an evaluation; name another folder")
        if is_begun(folder):  # a function of the user may have changed
            other = saved["flags"].get("second_opinion") != config.second_opinion or ":" in config.second_opinion
            forget([*["second_opinion"] * other, "reward"], done)
        record["tokens"] = tokens_fingerprint(problems)
        write_config(folder, record)  # first: without it nobody could tell whose rows those are
        write_file(folder / PROBLEMS, lines_of(done))
    except OSError as error:
        raise UserError(f"--output_dir {folder} cannot be used ({error.filename}: {error.strerror}); name another folder") from error
    return done


def _record(config: SamplingConfig, problems: list[Problem]) -> dict[str, Any]:
    """The content of config.json."""
    record = config_record(config, "eval")
    record |= {"engine": choose_engine(config)[0], "device": "cuda" if torch.cuda.is_available() else "cpu", "adapter_sha256": [
        sha256(Path(config.adapter) / name) for name in ("adapter_model.safetensors", "adapter_config.json")] if config.adapter else None}
    return record | {"base": base_fingerprint(config), "tokens": tokens_fingerprint(problems), "problems": len(problems),
                     "checker": checker_version()}


def keep(lock: Lock | None, config: SamplingConfig, problems: list[Problem], done: list[dict[str, Any]], work: Callable[[], object],
         ) -> None:
    """Does `work`, which writes to the result folder, unless another process has it (`lock` None).

    If that stays impossible, writes all rows that are `done` to another folder.

    Raises UserError then, which says how to go on.
    """
    if lock is None:
        return

    def fill(folder: Path) -> None:
        write_file(folder / PROBLEMS, lines_of(done))
        write_config(folder, _record(config, problems))

    try:
        patiently(lock, work)
    except OSError as error:
        saved = save_elsewhere(lock.folder, f"saved-with-{len(done)}-problems", fill)
        there = (lock.folder / CONFIG).exists()
        left = f"{remedy(error)}, and go on with the same command and --output_dir {lock.folder}" if there else "nothing is left of it"
        raise UserError(f"{cause(error, lock.folder)}; " + (
            f"all {len(done)} problems so far are saved in {saved}: the same command with --output_dir {saved} continues" if saved else
            f"no other place could be written either: {left}")) from error


def _rows(folder: Path, config: SamplingConfig, problems: list[Problem]) -> list[dict[str, Any]]:
    """The rows that are whole and in their places, judged anew. Raises UserError for rows of other problems, and for more than are wanted.

    A row may have fewer samples than are wanted now.
    """
    lines = read_file(folder / PROBLEMS).split(b"\n") if (folder / PROBLEMS).exists() else []
    known = {problem.id: (problem.prompt, problem.answer) for problem in problems}
    done: list[dict[str, Any]] = []
    for line, problem in zip(lines[:-1], problems, strict=False):  # the text after the last line break is an unfinished line
        row = whole_row(line)
        if row and known.get(row["problem"]) != (row["prompt"], row["reference"]):
            raise UserError(f"--output_dir {folder} holds an evaluation of other problems or prompts; name another folder")
        if row and len(row["samples"]) > config.num_samples:
            count = len(row["samples"])
            raise UserError(f"--output_dir {folder} has {count} samples a problem: give --num_samples {count} or more, or another folder")
        if not row or row["problem"] != problem.id:
            break
        done.append(row)
    before = [json.loads(line) for line in lines[:len(done)]]
    changed = sum(now != one["correct"] for row, old in zip(done, before, strict=True) for now, one in zip(
        verdicts([row]), (old["greedy"], *old["samples"]), strict=True) if "correct" in one)
    if changed:
        say(f"note: the checker now gives {changed} other verdicts than are saved in {folder}; the new ones count")
    dropped = len([line for line in lines if line]) - len(done)
    again = "is not whole: it is sampled again, and so is all after it" if len(done) < len(problems) else "is one too many, and is removed"
    say(f"{folder} holds {len(done)} of {len(problems)} problems" + (f"; row {len(done) + 1} of {PROBLEMS} {again}" if dropped else ""))
    return done
