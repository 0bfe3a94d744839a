"""Custom rewards: what a user's function may do wrong, and that the run goes on."""

import time

import pytest
import torch
from helpers import metrics, run

from common.errors import UserError
from common.records import Completion, Problem
from common.verify.rewards import CustomReward, VerifierReward, make_reward, score

FUNCTIONS = """
import os, sys, time
print("imported")

def length(completion, problem):
    print("this goes to stderr")
    return len(completion) / 10

def naughty(completion, problem):
    if completion == "raise": raise ValueError("no " + problem.answer)
    if completion == "hang": time.sleep(60)
    if completion == "spin":
        while True: pass
    if completion == "die": os._exit(3)
    if completion == "exit": sys.exit(1)
    if completion == "nan": return float("nan")
    if completion == "text": return "good"
    return 1

not_a_function = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return str(tmp_path / "mine.py")


def batch(texts, reason="stop"):
    return [Problem(f"p{i}", "?", (), "7") for i in range(len(texts))], [Completion([1], [0.0], reason, text) for text in texts]


def test_the_function_scores_and_what_it_prints_disturbs_nothing(file):
    reward = CustomReward(f"{file}:length", seconds=10)
    assert reward(*batch(["", "12345", "\u2028\u00e9\ud800" * 10])).tolist() == pytest.approx([0.0, 0.5, 3.0])
    assert reward(*batch(["12345"], "length")).tolist() == [0.0]  # the lowest of none
    assert set(reward.failures.values()) == {0}


def test_calls_that_fail_are_counted_and_named(file, capsys):
    reward = CustomReward(f"{file}:naughty", seconds=0.7, failed=0.0)
    texts = ["fine", "raise", "hang", "die", "nan", "fine", "spin", "text", "exit", "fine"]
    began = time.monotonic()
    scores = reward(*batch(texts))
    assert scores.tolist() == [float(text == "fine") for text in texts] and time.monotonic() - began < 30
    assert reward.failures == {"reward/errors": 5, "reward/timeouts": 2}
    assert "the reward of p1 failed and is 0: naughty: ValueError: no 7 (mine.py, line 10)" in capsys.readouterr().out
    assert reward(*batch(["fine"] * 20)).tolist() == [1.0] * 20  # every process is ready again
    assert reward.failures == {"reward/errors": 5, "reward/timeouts": 2}


def test_the_processes_end_with_the_reward(file):
    reward = CustomReward(f"{file}:length")
    processes = [worker.process for worker in reward.workers]
    del reward
    assert all(process.poll() is not None for process in processes)


@pytest.mark.parametrize(
    "where, message",
    [
        ("nowhere.py:f", "with a file that exists"),
        ("no colon", "give path/to/file.py:function"),
        ("{file}:missing", "AttributeError"),
        ("{file}:not_a_function", "is not a function"),
        ("{folder}/broken.py:f", r"ZeroDivisionError: division by zero \(broken.py, line 1\)"),
    ],
)
def test_what_does_not_load_is_said(where, message, file, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=message):
        CustomReward(where.format(file=file, folder=tmp_path))


def test_without_the_flag_the_verifier_scores():
    class Config:
        reward = None

    problems, completions = batch(["#### 7", "#### 8"])
    reward = make_reward(Config())
    assert isinstance(reward, VerifierReward) and torch.equal(reward(problems, completions), score(problems, completions))
    assert score(problems, completions).tolist() == [1.0, 0.0]


def test_a_run_with_a_reward_of_its_own(file, tmp_path, monkeypatch):
    flags = ["--reward", f"{file}:length", "--max_steps", "2", "--eval_steps", "0"]
    assert run("train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")
    assert rows[0]["reward/errors"] == rows[0]["reward/timeouts"] == 0 and rows[0]["reward"] not in (0.0, 1.0)
    assert "does not load" in run("train_grpo", tmp_path / "b", "--reward", f"{file}:missing", monkeypatch=monkeypatch)
