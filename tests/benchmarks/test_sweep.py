import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import curves
import sweep
from measure import run_logged

# A training script as a fork might be: step after step, and a checkpoint when it is asked to stop. A step takes FAKE_PAUSE seconds.
FAKE = '''
import argparse, json, os, pathlib, signal, sys, time
parser = argparse.ArgumentParser()
for name, kind, value in (("seed", int, 0), ("output_dir", pathlib.Path, None), ("gain", float, 1.0), ("steps", int, 4),
                          ("problems", int, 30), ("resume_from_checkpoint", str, None)):
    parser.add_argument(f"--{name}", type=kind, default=value)
parser.error = lambda message: sys.exit(f"error: {message}")
a = parser.parse_args()
stop = []
signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("FAKE_DEAF") else lambda *_: stop.append(1))
first = max([int(path.name.split("-")[1]) for path in a.output_dir.glob("checkpoint-*")], default=-1) + 1 if a.resume_from_checkpoint else 0
print("begins at", first, "with", os.environ["OMP_NUM_THREADS"], "thread", flush=True)
a.output_dir.mkdir(parents=True, exist_ok=True)
assert first or not (a.output_dir / "metrics.jsonl").exists(), "holds another run"
for step in range(first, a.steps + 1):
    time.sleep(float(os.environ.get("FAKE_PAUSE", 0)))
    row = {"step": step, "eval/pass@1": 0.2 + a.gain * step / 10 + a.seed / 100, "eval/greedy": 0.5, "eval/problems": a.problems}
    row |= {"num_tokens": 250 * step**2 * (a.seed + 1), "step_time": 2.0, "neg_logp": 0.1} if step else {}
    with open(a.output_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")
    if stop:
        (a.output_dir / f"checkpoint-{step}").mkdir()
        sys.exit(143)
'''


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "train_mine.py").write_text(FAKE)
    return tmp_path / "train_mine.py"


def call(*words, monkeypatch):
    """The command line in this process; its exit message or code, None if it came to its end."""
    monkeypatch.setattr(sys, "argv", ["benchmarks/sweep.py", *map(str, words)])
    try:
        sweep.main()
    except SystemExit as end:
        return end.code
    return None


def begin(*words, **environment):
    """The command line as a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "sweep.py"), *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def starts(folder):
    return [line for log in sorted(folder.rglob("*.log")) for line in log.read_text().splitlines() if line.startswith("begins at")]


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers():
    assert curves.t_quantile(4) == pytest.approx(2.776445) and curves.t_quantile(1) == pytest.approx(12.706205)
    assert curves.t_quantile(200) == pytest.approx(1.971896)
    assert curves.t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert math.isnan(curves.t_interval([1.0])[0]) and curves.shown([1.0]) == "1.000"
    assert curves.shown([1.0, 2.0, 3.0]) == "2.000 (-0.484 to 4.484)"
    assert curves.height({0: 0.0, 10: 1.0, 20: 1.0}) == pytest.approx(0.75)
    assert curves.height({0.0: 0.0, 10.0: 1.0, 20.0: 1.0}, 15.0) == pytest.approx((5 + 5) / 15)
    assert curves.height({5: 0.5}) == 0.5 and curves.height({10: 0.0, 20: 1.0}) == pytest.approx(0.5)  # no evaluation before step 10
    assert curves.mean_curve([{0: 0.0, 10: 1.0}, {0: 1.0, 20: 0.0}]) == [(0.0, 0.5), (15.0, 0.5)]


def test_a_sweep_of_a_script_of_ones_own(fake, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    words = (fake, "--seeds", 3, "--set", "gain=0.1,0.5", "--out", out, "--jobs", 2, "--plot", tmp_path / "a.svg", "--", "--steps", 4)
    assert call(*words, monkeypatch=monkeypatch) is None
    assert starts(out) == ["begins at 0 with 1 thread"] * 6
    page = (out / "sweep.html").read_text()
    # at the end .2 + .1 * 4 / 10 + seed / 100: mean .25, standard deviation .01, so +- 4.3027 * .01 / sqrt(3)
    rows = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", page)]
    assert rows[1] == ["gain=0.1", "0.250 (0.225 to 0.275)", "0.230 (0.205 to 0.255)", "8,000 (-1,937 to 17,937)", "8 (8 to 8)"]
    assert rows[2][:2] == ["gain=0.5", "0.410 (0.385 to 0.435)"] and len(rows) == 3
    assert "sampled pass@1, 30 unseen problems" in page and "Seeds: 0, 1, 2." in page
    assert f"python {fake} --steps 4 --gain 0.5 --seed SEED --output_dir FOLDER" in page
    assert page.count("<svg") == 3 and not re.search(r"(src|href)=\"?(?!#)", page.replace('xlink:href="#', ""))  # nothing is fetched
    results = json.loads((out / "results.json").read_text())
    assert [cell["cell"] for cell in results["cells"]] == ["gain=0.1", "gain=0.5"]
    first = results["cells"][0]
    assert first["last value"]["seeds"] == pytest.approx([0.24, 0.25, 0.26]) and first["seeds"] == [0, 1, 2]
    assert first["last value"]["interval"] == pytest.approx([0.22516, 0.27484], abs=1e-5)
    assert first["area"]["mean"] == pytest.approx(0.23) and first["curves"][2]["tokens"][-1] == pytest.approx([12000, 0.26])
    lines = list(csv.reader((out / "results.csv").open()))
    assert len(lines) == 7 and lines[6][:2] == ["gain=0.5", "2"] and float(lines[6][2]) == pytest.approx(0.42)
    assert (tmp_path / "a.svg").exists()
    # again: nothing runs. One seed more: only that one
    assert call(*words, monkeypatch=monkeypatch) is None and len(starts(out)) == 6
    assert call(*words[:2], 4, *words[3:], monkeypatch=monkeypatch) is None and len(starts(out)) == 8


def test_an_interrupted_sweep_goes_on_from_the_checkpoints(fake, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = (fake, "--seeds", 3, "--out", out, "--jobs", 2, "--", "--steps", 6)
    process = begin(*words, FAKE_PAUSE="0.3")
    folders = [out / "train_mine" / f"seed-{seed}" for seed in range(3)]
    wait_for(lambda: all((folder / "metrics.jsonl").exists() for folder in folders[:2]))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and f"go on with the same command: python {ROOT / 'benchmarks' / 'sweep.py'} {fake} --seeds 3" in said
    assert "stopped with 0 of 3 runs finished" in said and not folders[2].exists() and not (out / "sweep.html").exists()
    assert all(list(folder.glob("checkpoint-*")) for folder in folders[:2])
    assert call(*words, monkeypatch=monkeypatch) is None
    assert all(steps(folder) == list(range(7)) for folder in folders)  # no step is missing and none is there twice
    begun = starts(out / "train_mine")
    assert len(begun) == 5 and sum(line.startswith("begins at 0 ") for line in begun) == 3
    notes = [sweep.note_of(folder) for folder in folders]
    assert all(note["finished"] for note in notes) and [note["seconds"] is None for note in notes] == [True, True, False]


def test_a_second_signal_kills_runs_that_do_not_end(fake, tmp_path, monkeypatch):
    process = begin(fake, "--seeds", 1, "--out", tmp_path / "out", FAKE_PAUSE="100", FAKE_DEAF="1")
    wait_for(lambda: starts(tmp_path / "out"))
    said = call(fake, "--seeds", 1, "--out", tmp_path / "out", monkeypatch=monkeypatch)  # a second sweep leaves the run alone
    assert said.startswith(f"error: {tmp_path / 'out' / 'train_mine' / 'seed-0'} is in use") and "\n" not in said
    process.send_signal(signal.SIGINT)
    assert any("waiting until the runs in hand have saved" in line for line in process.stderr)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    alive = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(fake) not in alive
    assert call(fake, "--seeds", 1, "--out", tmp_path / "out", monkeypatch=monkeypatch) is None


def test_a_run_that_was_killed_before_a_checkpoint_starts_over(fake, tmp_path, monkeypatch):
    folder = tmp_path / "out" / "train_mine" / "seed-0"
    folder.mkdir(parents=True)
    sweep.write_note(folder, command=[str(fake), "--steps", "2", "--seed", "0"], finished=False)
    (folder / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "ev')
    assert call(fake, "--seeds", 1, "--out", tmp_path / "out", "--", "--steps", 2, monkeypatch=monkeypatch) is None
    assert steps(folder) == [0, 1, 2]


def test_a_link_at_the_place_of_a_log_is_not_followed(tmp_path):
    (tmp_path / "notes").write_text("mine")
    for name in ("run.log", "other.log"):
        (tmp_path / name).symlink_to(tmp_path / "notes")
    with pytest.raises(SystemExit, match="it is a link and not a plain file"):
        sweep.start(tmp_path / "run", [sys.executable, "-c", "print(1)"])
    assert run_logged([sys.executable, "-c", "print(1)"], tmp_path / "other.log") == 0
    assert (tmp_path / "notes").read_text() == "mine" and (tmp_path / "other.log").read_text() == "1\n"


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_another_command_is_refused(finished, fake, tmp_path, monkeypatch):
    folder = tmp_path / "out" / "train_mine" / "seed-1"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 0}\n')
    if finished:
        sweep.write_note(folder, command=[str(fake), "--steps", "9", "--seed", "1"], finished=True)
    said = call(fake, "--seeds", 2, "--out", tmp_path / "out", "--", "--steps", 2, monkeypatch=monkeypatch)
    assert said == f"error: {folder} holds a run of another command; name another --out, or delete that folder"
    assert not starts(tmp_path) and steps(folder) == [0]


def test_a_bad_flag_is_the_scripts_own_error_and_ends_the_sweep(fake, tmp_path, monkeypatch):
    said = call(fake, "--seeds", 3, "--set", "gain=x,1", "--out", tmp_path / "out", monkeypatch=monkeypatch)
    assert said.splitlines()[0] == "error: argument --gain: invalid float value: 'x'"
    assert "--gain x --seed 0 ended with code 1; its whole output is in" in said and not starts(tmp_path)
    # the folder holds no run, so that the corrected command may use it
    (tmp_path / "out" / "gain=1").mkdir()
    assert call(fake, "--seeds", 1, "--set", "gain=1", "--out", tmp_path / "out", "--", "--steps", 1, monkeypatch=monkeypatch) is None


@pytest.mark.parametrize(("words", "error"), [
    (["nothing.py"], "there is no script nothing.py"),
    (["train_grpo.py", "--max_steps", "2"], "unknown argument --max_steps; flags of the training script come after --"),
    (["train_grpo.py", "--seeds", "0"], "argument --seeds: 0: give how many, as 5, or which, as 7,9,11"),
    (["train_grpo.py", "--jobs", "0"], "--jobs 0: give 1 or more"),
    (["train_grpo.py", "--set", "beta"], "--set beta: give each flag once, with values that differ"),
    (["train_grpo.py", "--set", "beta=1,1"], "--set beta=1,1: give each flag once, with values that differ"),
    (["train_grpo.py", "--set", "seed=1,2"], "--seed is given by the sweep itself"),
    (["train_grpo.py", "--", "--output_dir", "x"], "--output_dir is given by the sweep itself"),
    (["train_grpo.py", "--set", "beta=0,1", "--", "--beta=3"], "--beta stands both in --set and after --"),
])
def test_errors_are_one_line(words, error, monkeypatch):
    said = call(*words, monkeypatch=monkeypatch)
    assert said.startswith(f"error: {error}") and "\n" not in said


def test_cells_seeds_and_folders():
    cells = sweep.cells_of("train_x.py", ["dataset=arithmetic:a=1,b=2;gsm8k", "beta=0,0.1"], ["--max_steps", "3"])
    assert list(cells) == [f"dataset={data}, beta={beta}" for data in ("arithmetic:a=1,b=2", "gsm8k") for beta in ("0", "0.1")]
    assert cells["dataset=gsm8k, beta=0.1"] == ["train_x.py", "--max_steps", "3", "--dataset", "gsm8k", "--beta", "0.1"]
    assert list(sweep.cells_of("train_x.py", [], [])) == ["train_x"]
    names = [*cells, "a/b", "a:b", "a" * 90, "a" * 91]
    assert len({sweep.folder_name(name) for name in names}) == len(names)
    assert all(re.fullmatch(r"[\w=.+-]{1,100}", sweep.folder_name(name)) for name in names)
    assert [sweep.seeds_of(text) for text in ("2", "7,9", "7,")] == [[0, 1], [7, 9], [7]]


def test_a_metric_that_is_not_there_is_named(fake, tmp_path, monkeypatch):
    said = call(fake, "--seeds", 1, "--out", tmp_path / "out", "--metric", "rewad", monkeypatch=monkeypatch)
    assert "has rewad; there is eval/greedy, eval/pass@1, eval/problems, neg_logp, num_tokens, step, step_time" in said


def test_figures_are_legible_on_a_phone_and_on_dark_pages(tmp_path):
    runs = {f"method {i}": [{0: 0.1, 10: 0.2 + i / 10 + seed / 100, 20: 0.9} for seed in range(3)] for i in range(5)}
    few = dict(list(runs.items())[:2])
    pictures = {"many": curves.picture([curves.Chart(runs, "step", "pass@1, $5 & more")], "A title"),
                "few": curves.picture([curves.Chart(few, "step", "y")], "A long title " * 6),
                "dots": curves.dots({"PPO": {"uniform": [0.1, 0.2, 0.4], "lilo": [0.3, 0.3, 0.5]}}, "Areas", "area", curves.t_interval)}
    for name, figure in pictures.items():
        curves.save(figure, tmp_path / f"{name}.svg")
        text = (tmp_path / f"{name}.svg").read_text()
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1])
        assert min(float(size) for size in re.findall(r"font(?:-size)?: (?:bold )?([\d.]+)px", text)) * 400 / width >= 11
        assert "currentColor" in text and "prefers-color-scheme:dark" in text and 'width="480"' in text and "#010203" not in text
        assert not re.search(r'<rect[^>]*fill: #ffffff', text)
    many = (tmp_path / "many.svg").read_text()
    assert many.count('id="many-axes_') == 5 and all(f">method {i}</text>" in many for i in range(5))  # a panel each
    assert (tmp_path / "few.svg").read_text().count('id="few-axes_') == 1
    marks = {colour for colour in curves.COLOURS if colour in many}
    assert len(marks) == 5


def test_a_method_has_one_colour_in_all_charts(tmp_path):
    runs = {name: [{0: 0.1, 10: 0.5}] for name in ("lilo", "uniform", "adaptive")}
    charts = [curves.Chart({"adaptive": runs["adaptive"]}, "x", "y"), curves.Chart(runs, "x", "y")]
    one = curves.picture(charts, "title", ["uniform", "lilo", "adaptive"])
    lines = [line for axes in one.axes for line in axes.get_lines() if line.get_label() == "adaptive"]
    assert len(lines) == 2 and lines[0].get_color() == lines[1].get_color() == curves.COLOURS[2]
    assert [text.get_text() for text in one.texts][1] == "one seed"
    charts[1].runs["lilo"].append({0: 0.2, 10: 0.6})
    assert [text.get_text() for text in curves.picture(charts, "title").texts][1] == "thin: one seed; bold: mean; band: 95 % interval of it"


def test_the_number_of_problems_is_the_runs_own(fake, tmp_path):
    jobs = {tmp_path / "a": [str(fake), "--problems", "30"], tmp_path / "b": [str(fake), "--problems", "40"]}
    sweep.run_all(jobs, 2)
    runs = {"m": [curves.read(folder) for folder in jobs]}
    assert curves.charts_of(runs, ["steps"])[0].y == "sampled pass@1, 30 or 40 unseen problems"
    assert curves.charts_of({"m": [{**run, "problems": None} for run in runs["m"]]}, ["steps"])[0].y == "sampled pass@1"


def test_a_real_sweep_and_a_real_resume(tmp_path, monkeypatch):
    out, folder = tmp_path / "out", tmp_path / "out" / "train_grpo" / "seed-7"
    task = "arithmetic:warm_steps=5,values=18,tiers=plus:1:1-2,train=20,test=10"  # what it learns does not matter
    flags = f"--dataset {task} --max_steps 2 --eval_steps 1 --eval_problems 8 --problems_per_step 2 --num_generations 2"
    words = ("train_grpo.py", "--seeds", "7,", "--out", out, "--", *flags.split())
    assert call(*words, monkeypatch=monkeypatch) is None
    results = json.loads((out / "results.json").read_text())["cells"][0]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "sampled pass@1, 8 unseen problems" in (out / "sweep.html").read_text() and [row["step"] for row in rows] == [0, 1, 2]
    assert results["last value"]["seeds"] == [rows[-1]["eval/pass@1"]] and results["last value"]["interval"] is None
    assert results["generated tokens"]["seeds"] == [rows[-1]["num_tokens"]]
    sweep.write_note(folder, **{**sweep.note_of(folder), "finished": False})  # as if it had been killed after its checkpoint
    assert call(*words, monkeypatch=monkeypatch) is None
    assert "is finished" in folder.with_suffix(".log").read_text() and steps(folder) == [0, 1, 2]


def test_processor_time_runs_the_named_script_with_the_processors_clock(tmp_path):
    script = tmp_path / "train_mine.py"
    script.write_text("import sys, time\nif __name__ == '__main__':\n"
                      "    print(time.perf_counter is time.process_time, sys.argv, sys.path[0])\n")
    command = [sys.executable, ROOT / "benchmarks" / "processor_time.py"]
    done = subprocess.run([*command, "--output_dir", "out", script, "--seed", "1"], capture_output=True, text=True)
    assert done.stdout.strip() == f"True {[str(script), '--output_dir', 'out', '--seed', '1']} {tmp_path}", done.stderr
    done = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert done.returncode and done.stderr == "error: name the training script among the flags, as train_grpo.py\n"


def test_few_evaluations_are_all_in_the_table_and_a_custom_rewards_greedy_mean_is_read():
    rows = [{"step": step, "eval/reward": step / 10, "eval/reward_greedy": step / 20} for step in (0, 4, 8)]
    few = curves.tenths({"steps": {row["step"]: row["eval/reward"] for row in rows}})
    assert few == {"step 0": "0.000", "step 4": "0.400", "step 8": "0.800"}
    assert list(curves.tenths({"steps": dict.fromkeys(range(0, 35, 5), 0.5)})) == ["step 0", "step 10", "step 20", "step 30"]
    assert curves.greedy({"rows": rows}) == [0, 0.2, 0.4]
