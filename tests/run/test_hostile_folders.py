"""Run folders that another person made, or that something damaged: one line, and nothing outside the folder is written to."""

import hashlib
import json
import sys

import pytest
from hostile import folders, makers

import common.run.report as report
from common.errors import UserError
from common.run.claim import claim_folder
from common.run.folder import COMPLETIONS, MARKS, METRICS, Rows, cut_back, marks
from common.run.resume import newest_checkpoint, what_is_missing
from common.run.saved_config import read_record

CASES = makers(folders)
REFUSED = [case for case in CASES if case.endswith(("that_is_a_link", "that_are_a_link", "that_are_a_pipe", "that_are_a_folder"))]


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_or_is_refused_in_one_line(case, tmp_path):
    named = CASES[case](tmp_path)
    run = named.parent if named.name.startswith("checkpoint-") else named
    if case in REFUSED:
        with pytest.raises(UserError) as error:
            claim_folder(run, True, "some/checkpoint-2")
        assert "\n" not in str(error.value) and str(run) in str(error.value)
    else:
        claim_folder(run, True, "some/checkpoint-2").release()
    assert not (tmp_path / "notes").exists() or (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("case", CASES)
def test_the_report_is_written_or_refused_in_one_line(case, tmp_path, monkeypatch, capsys):
    named = CASES[case](tmp_path)
    run = named.parent if named.name.startswith("checkpoint-") else named
    monkeypatch.setattr(sys, "argv", ["report", "report", str(run)])
    try:
        report.main()
        assert not (run / "report.html").is_symlink() and "<html" in (run / "report.html").read_text()[:200]
    except SystemExit as end:
        assert case.startswith("metrics_that") and str(end.code).startswith("error: ") and "\n" not in str(end.code)
    assert not (tmp_path / "notes").exists() or (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith(("manifest_", "checkpoint_file_"))])
def test_a_checkpoint_that_is_not_whole_is_passed_over(case, tmp_path, capsys):
    checkpoint = CASES[case](tmp_path)
    assert "\n" not in what_is_missing(checkpoint) and newest_checkpoint(checkpoint.parent) is None
    assert f"skipping {checkpoint}: not a whole checkpoint" in capsys.readouterr().out


def test_the_copy_of_a_damaged_config_is_read(tmp_path, capsys):
    run = folders.make_config_cut_off(tmp_path)
    assert read_record(run / "config.json") == folders.FLAGS and "its copy .config.json is read" in capsys.readouterr().out
    (run / "config.json").unlink()
    assert read_record(run / "config.json") == folders.FLAGS
    (run / ".config.json").unlink()
    with pytest.raises(UserError, match=r"is not the config\.json of a run"):
        read_record(run / "config.json")


def test_rows_that_have_changed_are_said_and_an_older_checkpoint_is_preferred(tmp_path, capsys):
    run = folders.make_rows_changed_since_the_checkpoint(tmp_path)
    assert newest_checkpoint(run) == run / "checkpoint-2"  # there is no other
    out = capsys.readouterr().out
    assert "skipping" in out and "metrics.jsonl has changed since it was saved" in out and "no checkpoint is from before that" in out
    assert newest_checkpoint(folders.make_metrics_that_are_a_folder(tmp_path / "folder")).name == "checkpoint-2"  # then it is refused
    rows = Rows(METRICS)
    assert [row["step"] for row in rows.go_back(run / "checkpoint-2", 2)] == [1, 2]
    assert "has changed or was cut off since checkpoint-2; the 2 rows that can be read are kept" in capsys.readouterr().out
    (run / "checkpoint-2").rename(run / "checkpoint-4")
    whole = folders.run_folder(tmp_path / "other")
    (whole / "checkpoint-2").rename(run / "checkpoint-2")
    assert newest_checkpoint(run) == run / "checkpoint-2" and marks(run / "checkpoint-2") == {}


def test_rows_with_odd_line_ends_survive_a_cut(tmp_path):
    row = {"step": 3, "completion": "a\u20285\u2028b\u0085c"}
    cut = '{"step": 3, "completion": "\u03c0'.encode()[:-1]
    (tmp_path / "rows").write_bytes(json.dumps(row, ensure_ascii=False).encode() + b"\n" + cut)
    assert cut_back(tmp_path / "rows", 3) == [row] and (tmp_path / "rows").read_bytes().count(b"\n") == 1


BAD_ROWS = [b"[" * 100_000, b"[1]", b'{"step": "x"}', b'{"step": 1, "eval/pass@1": "0.5"}', b'{"eval/pass@1": 0.5}', b"\xff"]


@pytest.mark.parametrize("bad", BAD_ROWS)
@pytest.mark.parametrize("listed", [False, True])
def test_rows_of_other_people_are_numbers_or_are_left_out(bad, listed, tmp_path):
    run = folders.run_folder(tmp_path)
    content = b'{"step": 1, "reward": 0.5}\n' + bad + b"\n"
    (run / METRICS).write_bytes(content)
    mark = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    bad_mark = {"bytes": -5, "sha256": hashlib.sha256(b"").hexdigest()}
    marked = {METRICS: mark if listed else bad_mark, COMPLETIONS: mark if listed else {"bytes": 1e999}}
    (run / "checkpoint-2" / MARKS).write_text(json.dumps(marked))
    assert Rows(METRICS).go_back(run / "checkpoint-2", 2) == [{"step": 1, "reward": 0.5}]
