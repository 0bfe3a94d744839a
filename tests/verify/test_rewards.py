"""Custom rewards: what a user's function may do wrong, and that the run goes on."""

import re
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
        ("{file}:missing", "it has no function missing, but length, "),
        ("{file}:not_a_function", "it has no function not_a_function, but length, "),
        ("{folder}/empty.py:f", "it has no function f, but none at all"),
        ("{folder}/broken.py:f", r"ZeroDivisionError: division by zero \(broken.py, line 1\)"),
    ],
)
def test_what_does_not_load_is_said(where, message, file, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "empty.py").write_text("from os.path import join")
    with pytest.raises(UserError, match=message):
        CustomReward(where.format(file=file, folder=tmp_path))


@pytest.mark.parametrize("signature", ["completion", "completion, problem, more", "*, completion, problem", ""])
def test_a_function_that_cannot_be_called_is_refused_at_once(signature, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(f"def f({signature}): return 1.0")
    takes = rf"--second_opinion .*mine.py:f does not load: it takes \({re.escape(signature)}\), and is called"
    with pytest.raises(UserError, match=takes) as told:
        CustomReward(f"{tmp_path}/mine.py:f", flag="second_opinion", training=False)
    assert "A reward is `def f(completion, problem)`" in str(told.value) and capsys.readouterr().out == ""


@pytest.mark.parametrize("signature", ["completion, problem=None", "text, row, more=0", "*both", "completions, problems, **more"])
def test_a_function_that_can_be_called_is_taken(signature, tmp_path):
    (tmp_path / "mine.py").write_text(f"def f({signature}): return [1.0] * 2 if 'completions, p' in '{signature}' else 1.0")
    assert CustomReward(f"{tmp_path}/mine.py:f")(*batch(["a", "b"])).tolist() == [1.0, 1.0]


def test_messages_of_an_evaluation_name_the_flag_that_was_typed_and_none_of_a_training_run(file, capsys):
    judge = CustomReward(f"{file}:naughty", seconds=0.5, failed=0.0, flag="second_opinion", training=False)
    with pytest.raises(UserError, match=r"--second_opinion .*:naughty: all of the first 3 calls failed, the first with ValueError: no 7"):
        judge(*batch(["raise"] * 3))
    assert "failed and is" not in capsys.readouterr().out  # the error says it
    for _ in range(4):
        judge(*batch(["hang", "fine"]))
    said = capsys.readouterr().out
    assert said.count("note: the second opinion of p0 failed and is 0: naughty: no result within 0.5 s\n") == 4
    with pytest.raises(UserError, match="7 of the last 12 calls failed, more than half") as told:
        judge(*batch(["raise"] * 3 + ["fine"]))
    assert "--reward" not in said + str(told.value) and "step" not in str(told.value)


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
