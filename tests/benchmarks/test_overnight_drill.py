"""The overnight drill: what it compares, and a short one."""

import json
import shutil
import sys

import pytest
import torch
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import overnight_drill
from same_run import changes, differences, snapshot


def other_state(folder):
    state = torch.load(folder / "checkpoint-2" / "trainer_state.pt", weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"].view(-1)[0] += 1e-9
    torch.save(state, folder / "checkpoint-2" / "trainer_state.pt")


DAMAGE = {
    "a row less": ("completions.jsonl", lambda folder: shutil.copyfile(folder / "README.md", folder / "completions.jsonl")),
    "a moment of Adam": ("checkpoint-2/trainer_state.pt", other_state),
    "a file left behind": (".tmp", lambda folder: (folder / ".tmp").touch()),
    "an empty folder left behind": ("checkpoint-1.tmp", lambda folder: (folder / "checkpoint-1.tmp").mkdir()),
    "a file that is not there": ("report.html", lambda folder: (folder / "report.html").unlink()),
}


@pytest.mark.parametrize("name, work", DAMAGE.values(), ids=DAMAGE)
def test_what_two_runs_do_not_share_is_named(name, work, finished, tmp_path):
    whole, other = finished("train_grpo", "--max_steps", "2"), tmp_path / "run"
    shutil.copytree(whole, other)
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    rows[1] |= {"step_time": 1e3, "time/sample": 1e3}  # no two runs share these
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert differences(whole, other) == ""
    before = snapshot(other)
    work(other)
    assert differences(whole, other) == name and changes(before, snapshot(other)) == name


def drill(out, *flags):
    """The exit code. Processes start as copies of this one, which saves their imports."""
    with pytest.raises(SystemExit) as end:
        overnight_drill.main(["--warm", "--target", "grpo", "--steps", "3", "--out", str(out), *flags])
    return end.value.code


def test_a_short_drill(tmp_path, capfd):
    code = drill(tmp_path, "--events", "4", "--seed", "139")  # kill -9, read-only, second start, damage
    said = capfd.readouterr().out
    assert code == 0, said + (tmp_path / "grpo" / "log.txt").read_text()
    assert "grpo 4/4 damage" in said and said.endswith("all runs ended as the undisturbed one\n")


def test_a_drill_that_finds_a_difference_fails_and_keeps_the_run(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(overnight_drill, "differences", lambda *_: "completions.jsonl")
    assert drill(tmp_path, "--events", "0") == 1
    assert "FAULT grpo last start: differs from the undisturbed run: completions.jsonl" in capfd.readouterr().out
    assert list(tmp_path.glob("grpo/faulty-*/config.json"))
