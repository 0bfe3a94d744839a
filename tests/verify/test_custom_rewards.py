"""What a reward function gets, the forms that it may have, and what becomes of calls that fail."""

import json
import os
import shutil
import textwrap
import time
from dataclasses import replace
from functools import partial

import pytest
from helpers import metrics, run

from common.config import CommonConfig
from common.errors import UserError
from common.launch import parse_config
from common.records import Completion, Group, Problem
from common.rollout.rounds import evaluate, sample, verify
from common.rollout.transformers_engine import TransformersEngine
from common.run.folder import comparable
from common.run.report import write_report
from common.verify.rewards import CustomReward, VerifierReward, make_reward

# two steps of the model that ships with the project
SHORT = ["--max_steps", "2", "--problems_per_step", "2", "--num_generations", "4", "--eval_problems", "4", "--max_completion_length", "24"]
TESTS = ["assert f(1) == 2"] * 100  # more than 500 characters as text


def load(tmp_path, code, function="reward", **options):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(code))
    return CustomReward(f"{file}:{function}", **{"workers": 1, **options})


def batch(texts, reasons=None, row=None):
    problems = [Problem(f"p{i}", f"<user>{i}?", (), "7", f"{i}?", {"tests": TESTS} if row is None else row) for i in range(len(texts))]
    reasons = reasons or ["stop"] * len(texts)
    lengths = range(3, 3 + len(texts))
    return problems, [Completion([1] * n, [0.0] * n, reason, text) for n, text, reason in zip(lengths, texts, reasons, strict=True)]


# ---- what the function gets ----


def test_a_function_gets_the_question_the_row_and_the_tokens(tmp_path):
    reward = load(
        tmp_path,
        """
        def reward(completion, problem):
            assert isinstance(completion, str) and completion.upper() == "TEXT" and completion.finish_reason == "stop"
            assert (problem.id, problem.question, problem.prompt, problem.answer) == ("p0", "0?", "<user>0?", "7")
            assert problem.row["tests"] == ["assert f(1) == 2"] * 100 and problem.row["nested"] == {"a": [1, 2.5, None]}
            return completion.tokens
        """,
    )
    row = {"tests": TESTS, "nested": {"a": [1, 2.5, None]}, "day": os}  # what JSON has no form for goes as text
    assert reward(*batch(["text"], row=row)).tolist() == [3.0]
    assert set(reward.failures.values()) == {0}


def test_the_checker_can_be_imported_and_files_beside_the_reward_come_first(tmp_path):
    (tmp_path / "latex.py").write_text("here = 0.25")  # common/verify/ has a file of that name
    code = """
        import latex
        from common.verify import is_correct

        def reward(completion, problem):
            return is_correct(completion, problem.answer) + latex.here
        """
    assert load(tmp_path, code)(*batch(["so #### 7", "so #### 8"])).tolist() == [1.25, 0.25]
    (tmp_path / "common.py").write_text("here = 2")
    code = "import common\ndef reward(completion, problem): return common.here"
    assert load(tmp_path, code)(*batch(["x"])).tolist() == [2.0]


def test_problems_are_equal_and_hashed_without_their_rows():
    one, two = Problem("p", "?", (1,), "7", "?", {"a": [1]}), Problem("p", "?", (1,), "7")
    assert one == two and hash(one) == hash(two) and "[1]" not in repr(one) and two.row == {} and two.question == ""


# ---- forms ----


def test_a_batch_function_sees_all_completions_of_a_call_at_once(tmp_path):
    reward = load(
        tmp_path,
        """
        def reward(completions, problems):
            assert [c.finish_reason for c in completions] == ["stop", "length", "stop", "stop"]
            longest = max(c.tokens for c in completions)
            return [c.tokens / longest if p.row else -9 for c, p in zip(completions, problems)]
        """,
        workers=3,
    )
    assert len(reward.workers) == 1  # more would split the batch
    found = reward(*batch(["a", "b", "c", "d"], ["stop", "length", "stop", "stop"]))
    assert found.tolist() == pytest.approx([0.5, 0.5, 5 / 6, 1.0])  # the cut-off one gets the lowest of the others
    assert reward([], []).tolist() == []


@pytest.mark.parametrize(
    "returned, errors, rewards, message",
    [
        ("[1, None, float('nan'), -2.0]", 2, [1.0, -2.0, -2.0, -2.0], "it returned nan"),  # one bad value costs one completion
        ("[1, 2, 3]", 4, [0.5] * 4, "it returned 3 rewards for 4 completions"),
        ("itertools.count()", 4, [0.5] * 4, "it returned more rewards for 4 completions"),
        ("7", 4, [0.5] * 4, "a value of the type int, not a list of 4 rewards"),
        ("dict.fromkeys(range(4), 1)", 4, [0.5] * 4, "a value of the type dict"),
        ("[1e300, 1, 1, 1]", 1, [0.5, 1.0, 1.0, 1.0], "it returned 1e+300"),  # infinite as float32
        ("iter([1, True, numpy.float32(2), numpy.array([3.0])])", 0, [1.0, 1.0, 2.0, 3.0], ""),
    ],
)
def test_what_a_batch_function_may_return(tmp_path, capsys, returned, errors, rewards, message):
    code = f"import itertools, numpy\ndef reward(completions, problems): return [0.5] if len(problems) == 1 else {returned}"
    reward = load(tmp_path, code)
    reward(*batch(["x"]))
    assert reward(*batch(["x"] * 4)).tolist() == rewards
    assert reward.failures == {"reward/errors": errors, "reward/timeouts": 0}
    shown = capsys.readouterr().out
    assert shown.count("note: the reward of p") == min(3, errors) and message in shown


def test_async_functions_wait_together_and_time_out_one_by_one(tmp_path):
    code = """
        import asyncio, os, time
        running, most = 0, 0

        async def reward(completion, problem):
            global running, most
            running += 1
            most = max(most, running)
            await asyncio.to_thread(time.sleep, 60 if completion == "slow" else 0.3)
            running -= 1
            if completion == "most":
                return most
            if completion == "refused":
                raise TimeoutError("the server is slow")
            return 1
        """
    reward = load(tmp_path, code, seconds=5.0)
    began = time.monotonic()
    found = reward(*batch(["x"] * 39 + ["most"]))
    assert found.tolist() == [1.0] * 39 + [16.0]  # 16 at a time
    assert time.monotonic() - began < 0.3 * 40 / 2  # one after the other they take 12 s
    reward.seconds = reward.workers[0].seconds = 1.0
    reward.workers[0].arguments[-1] = "1.0"
    reward.workers[0].restart()
    assert reward(*batch(["x", "slow", "x", "refused"])).tolist() == [1.0] * 4
    assert reward.failures == {"reward/errors": 1, "reward/timeouts": 1}  # its own TimeoutError is an error
    assert reward(*batch(["x"] * 4)).tolist() == [1.0] * 4


def test_an_async_function_that_blocks_is_ended(tmp_path):
    code = """
        import time

        async def reward(completion, problem):
            if completion == "block":
                time.sleep(60)
            return 1
        """
    reward = load(tmp_path, code, seconds=0.5, failed=-3.0)
    found = reward(*batch(["block"] + ["x"] * 40)).tolist()
    assert found[0] == -3.0 and found[17:] == [1.0] * 24  # the calls that were under way at the same time may be lost
    assert reward.failures["reward/timeouts"] == found.count(-3.0) <= 16


def test_an_async_batch_function_is_run_too(tmp_path):
    code = "async def reward(completions, problems): return [2 for _ in completions]"
    assert load(tmp_path, code)(*batch(["a", "b"])).tolist() == [2.0, 2.0]


# ---- failures ----

MIXED = """
    import time
    def reward(completion, problem):
        if completion == "raise": raise ValueError("two\\nlines")
        if completion == "hang": time.sleep(60)
        return {"good": 1, "bad": -1}[completion]
"""


@pytest.mark.parametrize("failed, value", [(None, -1.0), (0.5, 0.5), (-7.0, -7.0)])
def test_failed_and_cut_off_completions_get_the_lowest_reward_or_a_number(tmp_path, capsys, failed, value):
    reward = load(tmp_path, MIXED, seconds=0.7, failed=failed)
    problems, completions = batch(["good", "raise", "bad", "hang", "good"], ["stop"] * 4 + ["length"])
    assert reward(problems, completions).tolist() == [1.0, value, -1.0, value, value]
    assert reward.failures == {"reward/errors": 1, "reward/timeouts": 1}  # a cut-off completion is no failure of the function
    shown = capsys.readouterr().out
    assert f"note: the reward of p1 failed and is {value:g}: reward: ValueError: two lines (mine.py, line 4)" in shown
    assert f"note: the reward of p3 failed and is {value:g}: reward: no result within 0.7 s (--reward_timeout)" in shown


def test_the_lowest_is_that_of_the_run_and_survives_a_resume(tmp_path):
    reward = load(tmp_path, MIXED)
    assert reward(*batch(["good", "good"], ["length", "length"])).tolist() == [0.0, 0.0]  # nothing is known
    assert reward(*batch(["good", "good"], ["stop", "length"])).tolist() == [1.0, 1.0]
    assert reward(*batch(["bad", "good"], ["stop", "length"])).tolist() == [-1.0, -1.0]
    assert reward(*batch(["good", "raise", "good"], ["stop", "stop", "length"])).tolist() == [1.0, -1.0, -1.0]  # all others are right
    assert reward(*batch(["good"], ["length"])).tolist() == [-1.0]
    resumed = load(tmp_path, MIXED)
    resumed.load_state_dict(reward.state_dict())
    assert resumed(*batch(["good", "good"], ["stop", "length"])).tolist() == [1.0, -1.0] and resumed.failures["reward/errors"] == 1


def test_a_run_with_costly_wrong_answers_does_not_learn_to_go_on_without_end(tmp_path, monkeypatch):
    """Right 1 and wrong -1. If a completion that is cut off got 0, almost all completions would be cut off after ten steps."""
    code = "from common.verify import is_correct\ndef f(completion, problem): return 2 * is_correct(completion, problem.answer) - 1"
    (tmp_path / "f.py").write_text(code)
    flags = ["--reward", f"{tmp_path}/f.py:f", "--reward_workers", "1", "--max_completion_length", "16", "--max_steps", "10"]
    flags += ["--num_generations", "8", "--learning_rate", "2e-3", "--lr_scheduler_type", "constant", "--warmup_steps", "0"]
    flags += ["--eval_steps", "0", "--save_steps", "0"]
    cut_off = {}
    for failed in ("lowest", "0"):
        assert run("train_grpo", tmp_path / failed, *flags, "--reward_failed", failed, monkeypatch=monkeypatch) == 0
        cut_off[failed] = metrics(tmp_path / failed)[-1]["completions/clipped_ratio"]
    assert cut_off["lowest"] < 0.2 and cut_off["0"] > 0.8


def test_what_was_cut_off_before_the_first_score_gets_the_lowest_reward_too(tmp_path):
    """As in `--sampling adaptive`: the first two completions of a problem are cut off, and later ones are wrong."""
    reward = load(tmp_path, "def reward(completion, problem): return 1.0 if completion == 'good' else -1.0")
    problems, cut = batch(["", ""], ["length", "length"])
    group = Group(problems[0], 4, 0, completions=cut)
    assert verify([group], reward).tolist() == [0.0, 0.0]
    group.completions += batch(["bad", "good"])[1]
    assert verify([group], reward).tolist() == [-1.0, -1.0, -1.0, 1.0]


def test_vineppo_counts_no_cut_off_completion_above_its_wrong_continuations(tmp_path, monkeypatch):
    """Completions that write no end are cut off, all of them. Continuations of them end, and are wrong."""
    (tmp_path / "f.py").write_text("def f(completion, problem): return -1.0")
    flags = ["--reward", f"{tmp_path}/f.py:f", "--reward_workers", "1", "--max_steps", "1", "--eval_steps", "0", "--mc_samples", "3"]
    flags += ["--step_split", "tokens:4"]
    generate = TransformersEngine.generate

    def cut_off(engine, requests):
        found = generate(engine, requests)
        return [[replace(completion, finish_reason="stop" if len(group) == 3 else "length") for completion in group] for group in found]

    monkeypatch.setattr(TransformersEngine, "generate", cut_off)
    for v0 in ("fresh", "group"):
        assert run("train_vineppo", tmp_path / v0, *flags, "--v0", v0, monkeypatch=monkeypatch) == 0
        rows = [json.loads(line) for line in (tmp_path / v0 / "completions.jsonl").read_text().splitlines()]
        assert {row["reward"] for row in rows} == {-1.0} and {value for row in rows for value in row["state_values"]} == {-1.0}


def test_a_resumed_run_goes_on_with_the_lowest_reward_and_the_counts(tmp_path, monkeypatch):
    """A quarter of the calls fails, and only the first steps have the lowest reward: the resumed run must know both from before."""
    code = f"""
        from pathlib import Path
        def f(completion, problem):
            number = sum(map(ord, completion))
            if number % 4 == 0: raise ValueError("no")
            return -5.0 if number % 4 == 1 and len(list(Path("{tmp_path}").glob("*/checkpoint-2"))) == 0 else number % 4
        """
    (tmp_path / "f.py").write_text(textwrap.dedent(code))
    flags = ["--reward", f"{tmp_path}/f.py:f", "--reward_workers", "1", "--eval_steps", "0", "--save_steps", "2"]
    assert run("train_grpo", tmp_path / "whole", *flags, "--max_steps", "4", monkeypatch=monkeypatch) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoint-4")
    again = ["--resume_from_checkpoint", str(tmp_path / "again" / "checkpoint-2"), *flags[:2]]
    assert run("train_grpo", tmp_path / "again", *again, monkeypatch=monkeypatch, quick=[]) == 0
    whole, again = metrics(tmp_path / "whole"), metrics(tmp_path / "again")
    assert whole == again and whole[-1]["reward/errors"] > whole[1]["reward/errors"] > 0


def test_the_verifier_gives_a_cut_off_completion_0_whatever_the_flags_say():
    assert VerifierReward()(*batch(["#### 7", "#### 7"], ["stop", "length"])).tolist() == [1.0, 0.0]


def test_a_child_cannot_read_the_calls(tmp_path):
    code = """
        import subprocess
        def reward(completion, problem):
            return len(subprocess.run(["cat"], stdout=subprocess.PIPE).stdout)
        """
    assert load(tmp_path, code)(*batch(["a", "b", "c"])).tolist() == [0.0] * 3


# ---- flags and metrics ----


def test_the_flags_reach_the_reward(tmp_path):
    (tmp_path / "f.py").write_text("def f(completion, problem): return 1")
    flags = ["--reward", f"{tmp_path}/f.py:f", "--reward_timeout", "3", "--reward_workers", "3", "--reward_failed", "-1.5"]
    reward = make_reward(parse_config(CommonConfig, flags, "x"))
    assert (reward.seconds, len(reward.workers), reward.failed) == (3.0, 3, -1.5)
    reward = make_reward(parse_config(CommonConfig, flags[:2], "x"))
    assert (reward.seconds, len(reward.workers), reward.failed) == (10.0, min(8, os.cpu_count()), None)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--reward_timeout", "3"], "--reward_timeout does nothing without --reward"),
        (["--reward_failed", "0"], "--reward_failed does nothing without --reward"),
        (["--reward", "a.py:f", "--reward_failed", "low"], "--reward_failed low cannot work: give lowest or a number"),
        (["--reward", "a.py:f", "--reward_failed", "1e999"], "give lowest or a number"),
        (["--reward", "a.py:f", "--reward_workers", "0"], "--reward_workers 0 cannot work"),
        (["--reward", "a.py:f", "--reward_timeout", "0"], "--reward_timeout 0.0 cannot work"),
    ],
)
def test_flags_that_cannot_work(flags, message):
    with pytest.raises(UserError, match=message):
        parse_config(CommonConfig, flags, "x")


class OneAnswer:
    """An engine: greedy completions say 7, sampled ones 8."""

    def generate(self, requests):
        return [[Completion([1], [0.0], "stop", "#### 8" if request.temperature else "#### 7")] for request in requests]


def test_an_evaluation_is_named_by_its_reward(tmp_path):
    problems = batch(["", ""])[0]
    fill = partial(sample, engine=OneAnswer(), config=CommonConfig())
    assert evaluate(fill, problems, CommonConfig(), VerifierReward()) == {"eval/pass@1": 0.0, "eval/greedy": 1.0, "eval/problems": 2}
    reward = load(tmp_path, "def reward(completion, problem): return -2.5 * completion.endswith('7')")
    assert evaluate(fill, problems, CommonConfig(), reward) == {"eval/reward": 0.0, "eval/reward_greedy": -2.5, "eval/problems": 2}


def test_console_report_and_card_speak_of_the_reward(tmp_path, monkeypatch, capsys):
    (tmp_path / "f.py").write_text("def f(completion, problem): return completion.tokens / 10 - 5")
    folder = tmp_path / "run"
    assert run("train_grpo", folder, "--reward", f"{tmp_path}/f.py:f", monkeypatch=monkeypatch, quick=SHORT) == 0
    shown = capsys.readouterr().out
    page, card, metrics = ((folder / name).read_text() for name in ("report.html", "README.md", "metrics.jsonl"))
    assert "step    0  eval_reward -" in shown and "reward -" in shown.splitlines()[-2] and "greedy -" in shown.splitlines()[-2]
    assert "<h3>Reward on held-out problems</h3>" in page and 'class="band"' not in page and "Greedy reward" not in page
    assert "| step | reward | greedy |" in card and "means of the reward function `f.py:f`" in card
    for text in (shown, page, card, metrics):
        assert "pass@1" not in text and "eval/greedy" not in text


def test_one_page_may_hold_runs_of_both_kinds(tmp_path):
    for name, row in (("a", {"eval/pass@1": 0.5, "eval/greedy": 0.6}), ("b", {"eval/reward": 7.5, "eval/reward_greedy": 8.0})):
        (tmp_path / name).mkdir()
        flags = {"model": "tiny", "dataset": "arithmetic", "seed": 0, "reward": name}
        (tmp_path / name / "config.json").write_text(json.dumps({"script": "s", "flags": flags}))
        mix = {"sampling/frac_solved": 0.0, "sampling/frac_mixed": 1.0, "sampling/frac_hopeless": 0.2 if name == "b" else 0.0}
        lines = [json.dumps({"step": step, "eval/problems": 9, "memory/peak_gb": 1.0, **mix, **row}) for step in (0, 1)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h3>Problems, a</h3>" in page and "<h3>Problems, b</h3>" not in page
    assert "<h3>pass@1 on held-out problems</h3>" in page and "<h3>Reward on held-out problems</h3>" in page
    write_report([tmp_path / "b"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Problems</h3>" not in page  # solved, mixed and hopeless add up to more than 1 in the second step
    assert "pass@1" not in page and "reward 7.500 → 7.500, greedy 8.000" in page and 'class="band"' not in page


def test_a_run_that_an_older_version_began_compares_like_with_like():
    old, *new = [{"eval/pass@1": 0.1, "eval/greedy": 0.2}, *({"eval/reward": x, "eval/reward_greedy": x} for x in (0.3, 0.4))]
    assert comparable([old, {"reward": 1.0}, *new]) == new and comparable([old]) == [old] and comparable([]) == []
