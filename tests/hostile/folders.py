"""Run folders: links laid in them, files that are none, and damage."""
from __future__ import annotations

import json
import os
from pathlib import Path

from common.files import write_manifest

FLAGS = {"script": "train_grpo", "flags": {"model": "tiny", "dataset": "arithmetic"}, "given": [], "derived": {}}


def run_folder(folder: Path) -> Path:
    """A run folder with config.json, its copy, three rows, and a checkpoint that has a manifest, but no real weights."""
    run = folder / "run"
    (run / "checkpoint-2").mkdir(parents=True)
    for name in ("config.json", ".config.json"):
        (run / name).write_text(json.dumps(FLAGS))
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": step, "reward": 0.5}) + "\n" for step in (1, 2, 3)))
    (run / "checkpoint-2" / "trainer_state.pt").write_bytes(b"state")
    write_manifest(run / "checkpoint-2")
    return run


def notes_beside(folder: Path) -> Path:
    """A file of the user, which no write may reach."""
    (folder / "notes").write_text("mine")
    return folder / "notes"


def make_links_under_old_temporary_names(folder: Path) -> Path:
    """Links under the names that older versions wrote before they renamed. For --output_dir, and for `report`."""
    run, notes = run_folder(folder), notes_beside(folder)
    for name in ("probe", "probe.tmp", "report.html.tmp", "config.json.tmp", "metrics.jsonl.tmp", "README.md.tmp", "checkpoint-3.tmp"):
        (run / name).symlink_to(notes)
    return run


def make_report_that_is_a_link(folder: Path) -> Path:
    run = run_folder(folder)
    (run / "report.html").symlink_to(notes_beside(folder))
    return run


def make_metrics_that_are_a_link(folder: Path) -> Path:
    run = run_folder(folder)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(notes_beside(folder))
    return run


def make_metrics_that_are_a_pipe(folder: Path) -> Path:
    run = run_folder(folder)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    return run


def make_metrics_that_are_a_folder(folder: Path) -> Path:
    """Since the checkpoint, whose marks say what the file held."""
    run = make_rows_changed_since_the_checkpoint(folder)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    return run


def make_checkpoint_that_is_a_link(folder: Path) -> Path:
    run = run_folder(folder)
    (run / "checkpoint-2").rename(folder / "elsewhere")
    (run / "checkpoint-2").symlink_to(folder / "elsewhere")
    return run


def make_lock_that_is_a_link(folder: Path) -> Path:
    run = run_folder(folder)
    (run / ".lock").symlink_to(notes_beside(folder))
    return run


def make_manifest_that_names_a_device(folder: Path) -> Path:
    run = run_folder(folder)
    (run / "checkpoint-2" / "manifest.json").write_text(json.dumps({"/dev/zero": {"bytes": 0, "sha256": ""}, "trainer_state.pt": {}}))
    return run / "checkpoint-2"


def make_manifest_that_leaves_the_folder(folder: Path) -> Path:
    run, notes = run_folder(folder), notes_beside(folder)
    name = os.path.relpath(notes, run / "checkpoint-2")
    (run / "checkpoint-2" / "manifest.json").write_text(json.dumps({name: {"bytes": 4, "sha256": ""}, "trainer_state.pt": {}}))
    return run / "checkpoint-2"


def make_checkpoint_file_that_is_a_pipe(folder: Path) -> Path:
    run = run_folder(folder)
    (run / "checkpoint-2" / "trainer_state.pt").unlink()
    os.mkfifo(run / "checkpoint-2" / "trainer_state.pt")
    (run / "checkpoint-2" / "manifest.json").write_text(json.dumps({"trainer_state.pt": {"bytes": 0, "sha256": ""}}))
    return run / "checkpoint-2"


def make_manifest_nested_deeply(folder: Path) -> Path:
    run = run_folder(folder)
    (run / "checkpoint-2" / "manifest.json").write_text("[" * 100_000)
    return run / "checkpoint-2"


def make_config_cut_off(folder: Path) -> Path:
    """config.json is damaged and its copy is whole: a resumed run, and the report, read the copy."""
    run = run_folder(folder)
    (run / "config.json").write_text(json.dumps(FLAGS)[:40])
    return run


def make_rows_changed_since_the_checkpoint(folder: Path) -> Path:
    run = run_folder(folder)
    (run / "checkpoint-2" / "rows.json").write_text(json.dumps(
        {name: {"bytes": 10, "sha256": "0" * 64} for name in ("metrics.jsonl", "completions.jsonl")}))
    write_manifest(run / "checkpoint-2")
    return run
