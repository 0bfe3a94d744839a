"""Run folders whose files were written against those who make a page of them, or go on from them."""
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

EVIL = '"></title></script><script>alert(1)</script><img src=x onerror=alert(1)>'
CONFIG = {"script": "train_grpo", "flags": {"model": "tiny", "dataset": "arithmetic", "seed": 3, "max_steps": 9}, "command": []}
ROW = {"step": 1, "reward": 0.5, "step_time": 1.0, "num_tokens": 100, "memory/peak_gb": 0.5, "eval/pass@1": 0.5, "eval/greedy": 0.5,
       "eval/problems": 8, "time/sample": 0.5, "sampling/frac_solved": 0.1, "sampling/frac_mixed": 0.5, "sampling/frac_hopeless": 0.4}
SAMPLE = {"step": 1, "problem": "p/0", "prompt": "1 + 1?", "completion": "so 2", "answer": "2", "reward": 1.0, "advantage": 0.5,
          "finish_reason": "stop", "tokens": 2, "offsets": [0, 3], "token_advantages": [0.5, 0.5]}


def run_folder(folder: Path, config: Any = CONFIG, rows: list[Any] | None = None, samples: list[Any] | None = None) -> Path:
    """A run folder with a whole row and sample, and behind them the given ones."""
    (folder / "config.json").write_text(json.dumps(config))
    for name, good, more in (("metrics.jsonl", ROW, rows), ("completions.jsonl", SAMPLE, samples)):
        lines = [one if isinstance(one, str) else json.dumps(one) for one in (good, *(more or []))]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def make_config_empty(folder: Path) -> Path:
    return run_folder(folder, {})


def make_config_without_names(folder: Path) -> Path:
    return run_folder(folder, {"flags": {}})


def make_config_of_wrong_types(folder: Path) -> Path:
    flags = {"model": [1, {"a": 1}], "dataset": {"a": 1}, "seed": None, "max_steps": "many", "stop": [[["a"]]], EVIL: EVIL}
    return run_folder(folder, {"script": {"a": 1}, "flags": flags, "command": {"a": 1}, "derived": [1]})


def make_config_deep(folder: Path) -> Path:
    run_folder(folder)
    (folder / "config.json").write_text('{"flags": ' + "[" * 100_000)
    return folder


def make_config_pipe(folder: Path) -> Path:
    run_folder(folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    return folder


def make_metrics_of_wrong_types(folder: Path) -> Path:
    """Each metric once with each value that is no metric, and rows that are none."""
    values: list[Any] = ["high", None, True, [1], {"a": 1}, float("nan"), float("inf"), -float("inf"), 10**300, -1, 1e308, -1e308, 0]
    rows = [{**ROW, "step": 2 + i, name: value} for name in ROW for i, value in enumerate(values)]
    missing = [{key: value for key, value in ROW.items() if key != name} for name in ROW]
    return run_folder(folder, rows=[*rows, *missing, 1, "a", None, [], {}, "{", "[" * 100_000, "9" * 10_000])


def make_metrics_of_two_sizes(folder: Path) -> Path:
    return run_folder(folder, rows=[{**ROW, "step": 10**99, "reward": 10**99}, {**ROW, "step": 3, "reward": -1e99, "step_time": 1e99}])


def make_metrics_with_markup(folder: Path) -> Path:
    row, sample = {**ROW, "step": 2, EVIL: 1.0, f"time/{EVIL}": 1.0}, {**SAMPLE, "prompt": EVIL, "answer": EVIL, "finish_reason": EVIL}
    return run_folder(folder, {**CONFIG, "script": EVIL}, rows=[row], samples=[sample])


def make_metrics_many_names(folder: Path) -> Path:
    return run_folder(folder, rows=[{"step": 2, **{f"m{i}": i for i in range(100_000)}}])


def make_metrics_device(folder: Path) -> Path:
    run_folder(folder)
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to("/dev/zero")
    return folder


def make_completions_line_without_end(folder: Path) -> Path:
    """A sparse file of 100 GB."""
    run_folder(folder)
    with open(folder / "completions.jsonl", "r+b") as file:
        file.truncate(100 * 10**9)
    return folder


def make_completions_of_wrong_types(folder: Path) -> Path:
    values: list[Any] = ["text", None, True, [1], [[1]], ["a"], {"a": 1}, -1, 10**400, [10**400], [-5, 3, 99], float("nan"), [None]]
    names = [*SAMPLE, "token_values", "step_starts", "state_values"]
    rows = [{**SAMPLE, name: value} for name in names for value in values]
    missing = [{key: value for key, value in SAMPLE.items() if key != name} for name in SAMPLE]
    return run_folder(folder, samples=[*rows, *missing, '["token_advantages"]', '"token_advantages"'])


# ---- checkpoints ----

ZEROS = hashlib.sha256(bytes(10**7)).hexdigest()


def checkpoint(folder: Path, manifest: Any) -> Path:
    run_folder(folder)
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "trainer_state.pt").write_bytes(b"state")
    (folder / "checkpoint-1" / "manifest.json").write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    return folder / "checkpoint-1"


def make_manifest_device(folder: Path) -> Path:
    return checkpoint(folder, {"/dev/zero": {"bytes": 0, "sha256": ""}, "trainer_state.pt": {"bytes": 5, "sha256": ""}})


def make_manifest_outside(folder: Path) -> Path:
    return checkpoint(folder, {"../../../../../../../../etc/passwd": {"bytes": 0, "sha256": ""}})


def make_manifest_link(folder: Path) -> Path:
    made = checkpoint(folder, {"x/zero": {"bytes": 0, "sha256": ""}})
    (made / "x").symlink_to("/dev")
    return made


def make_manifest_lists_a_pipe(folder: Path) -> Path:
    made = checkpoint(folder, {"pipe": {"bytes": 0, "sha256": ""}})
    os.mkfifo(made / "pipe")
    return made


def make_manifest_is_a_pipe(folder: Path) -> Path:
    made = checkpoint(folder, {})
    (made / "manifest.json").unlink()
    os.mkfifo(made / "manifest.json")
    return made


def make_manifest_one_file_by_many_names(folder: Path) -> Path:
    """Each name means the same large file, so that its hash would be computed again and again."""
    made = checkpoint(folder, {"./" * i + "trainer_state.pt": {"bytes": 10**7, "sha256": ZEROS} for i in range(200)})
    (made / "trainer_state.pt").write_bytes(bytes(10**7))
    return made


def make_manifest_large(folder: Path) -> Path:
    return checkpoint(folder, {f"file-{i}": {"bytes": 0, "sha256": ZEROS} for i in range(100_000)})


def make_manifest_deep(folder: Path) -> Path:
    return checkpoint(folder, "[" * 100_000)


def make_manifest_of_wrong_types(folder: Path) -> Path:
    return checkpoint(folder, {"trainer_state.pt": 5})
