"""--report_to with the real trackers, where they are installed; nothing is sent anywhere."""

import importlib
import importlib.util
import json
import sqlite3
import sys

import pytest
from helpers import QUICK, SCRIPTS, metrics, run

from common.config import CommonConfig
from common.errors import UserError
from common.run.trackers import Tracker, check_login

SCRIPT = SCRIPTS[0]
INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("tensorboard", "wandb", "trackio")}


def needs(name):
    return pytest.mark.skipif(not INSTALLED[name], reason=f"{name} is not installed")


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


@needs("tensorboard")
def test_tensorboard_has_what_the_metrics_file_has(tmp_path, monkeypatch):
    flags = ["--report_to", "tensorboard", "--max_steps", "3"]
    assert run(SCRIPT, tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    told = events(tmp_path / "run")
    for name in ("reward", "eval/pass@1", "time/update"):
        wanted = [(row["step"], pytest.approx(row[name])) for row in metrics(tmp_path / "run", times=True) if name in row]
        assert [(event.step, event.value) for event in told.Scalars(name)] == wanted
    tables = told.Tensors("completions/text_summary")
    assert [table.step for table in tables] == [2, 3]  # every second step and the last
    completions = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    text = tables[0].tensor_proto.string_val[0].decode()
    for row in (row for row in completions if row["step"] == 2):
        assert all(f"    {line}" in text for line in row["completion"].splitlines()) and row["problem"] in text


@needs("tensorboard")
def test_tensorboard_forgets_the_steps_that_a_resumed_run_does_again(tmp_path, monkeypatch):
    assert run(SCRIPT, tmp_path / "run", "--report_to", "tensorboard", "--max_steps", "3", monkeypatch=monkeypatch) == 0
    again = ["--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2"), "--max_steps", "4"]
    assert run(SCRIPT, tmp_path / "run", *again, monkeypatch=monkeypatch) == 0
    assert [event.step for event in events(tmp_path / "run").Scalars("reward")] == [1, 2, 3, 4]


@needs("tensorboard")
def test_tensorboard_forgets_a_run_that_starts_over(tmp_path, monkeypatch):
    flags = ["--report_to", "tensorboard", "--save_steps", "0", "--resume_from_checkpoint", "auto"]
    module = importlib.import_module(SCRIPT)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.Run, "save_if_due", lambda self: killed() if self.step == 3 else None)
        assert run(SCRIPT, tmp_path / "run", *flags, "--max_steps", "9", monkeypatch=patch) == 130
    assert run(SCRIPT, tmp_path / "run", *flags, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    assert [event.step for event in events(tmp_path / "run").Scalars("reward")] == [1, 2]


@needs("wandb")
def test_wandb_has_numbers_and_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    seen = []
    real = Tracker.finish
    monkeypatch.setattr(Tracker, "finish", lambda self: (seen.append(dict(self.tracker.tracker.summary)), real(self)))
    assert run(SCRIPT, tmp_path / "run", "--report_to", "wandb", "--max_steps", "2", monkeypatch=monkeypatch) == 0
    last = metrics(tmp_path / "run")[-1]
    assert seen[0]["reward"] == last["reward"] and seen[0]["eval/greedy"] == last["eval/greedy"]
    # in the run folder, not where the script was started
    (table,) = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/table/completions_*.table.json")
    told = json.loads(table.read_text())
    assert len(told["data"]) == 16 and {"prompt", "completion", "reward"} <= set(told["columns"])


@needs("trackio")
def test_trackio_has_numbers_and_a_table(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    assert run(SCRIPT, tmp_path / "run", "--report_to", "trackio", "--max_steps", "2", monkeypatch=monkeypatch) == 0
    rows = sqlite3.connect(tmp_path / "trackio" / "vinery.db").execute("select run_name, step, metrics from metrics order by id").fetchall()
    told = [(step, json.loads(values)) for name, step, values in rows if name == "run"]
    assert [(step, values["reward"]) for step, values in told if "reward" in values] == [
        (row["step"], row["reward"]) for row in metrics(tmp_path / "run")[1:]
    ]
    (table,) = [values["completions"] for _, values in told if "completions" in values]
    assert len(table["_value"]) == 16 and set(table["_value"][0]) >= {"prompt", "completion", "reward"}


@needs("tensorboard")
def test_a_tracker_that_fails_does_not_take_the_run_with_it(tmp_path, monkeypatch, capsys):
    from accelerate.tracking import TensorBoardTracker

    def fails(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(TensorBoardTracker, "log", fails)
    assert run(SCRIPT, tmp_path / "run", "--report_to", "tensorboard", "--max_steps", "2", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.count("--report_to tensorboard failed and gets no more of this run (no space left") == 1
    assert len(metrics(tmp_path / "run")) == 3


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "trackio" else real(name, *rest))
        assert "pip install trackio" in run(SCRIPT, tmp_path / "a", "--report_to", "trackio", monkeypatch=patch, quick=QUICK)
    assert "the choices are none, tensorboard" in run(SCRIPT, tmp_path / "a", "--report_to", "mlflow", monkeypatch=monkeypatch)


@needs("wandb")
def test_wandb_without_an_account_names_the_remedy(monkeypatch):
    import wandb

    def refused(*_, **__):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "login", refused)
    with pytest.raises(UserError, match=r"No API key configured; call `wandb login` once, or set WANDB_MODE=offline"):
        check_login("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_login("wandb")


@needs("tensorboard")
def test_a_tracker_that_does_not_start_is_named(tmp_path):
    (tmp_path / "tensorboard").write_text("")  # where a folder is wanted
    with pytest.raises(UserError, match=r"--report_to tensorboard could not start: .*leave the flag out"):
        Tracker(CommonConfig(report_to="tensorboard"), tmp_path, 0)
