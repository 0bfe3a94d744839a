import pytest
from helpers import run

from common.config import CommonConfig
from common.records import Completion, Problem, make_batch
from common.run.lines import no_signal, sample_line


def test_a_sample_shows_the_question_and_not_the_template():
    completion = Completion([7], [-0.5], "stop", "2")
    asked = Problem("a", "<user>What is 1 + 1?<end><assistant>", (1, 2), "2", question="What is 1 + 1?")
    written = Problem("b", "1 + 1 =", (1, 2), "2")
    lines = [sample_line(make_batch([problem], [[completion]]), 1.0) for problem in (asked, written)]
    assert lines == ["  What is 1 + 1?  ->  2  (reward 1, reference 2)", "  1 + 1 =  ->  2  (reward 1, reference 2)"]


# ---- rewards that say nothing ----

ANSWERED, SILENT = "so \\boxed{4}", "I do not know, my friend"


def line_of(texts, rewards, ended=None, **flags):
    """The line about completions with these texts and rewards. ended: whether each ended by itself."""
    ends = ["stop" if one else "length" for one in ended or [True] * len(texts)]
    completions = [Completion([7], [-0.5], end, text) for text, end in zip(texts, ends, strict=True)]
    return no_signal(completions, rewards, CommonConfig(max_completion_length=64, **flags))


def test_zeros_are_told_with_their_cause():
    cut = line_of([SILENT] * 3 + [ANSWERED], [0.0] * 4, [False, False, False, True])
    assert cut.startswith("note: 4 of 4 completions score 0: 75 % hold no answer, 75 % were cut off; give a higher --max_completion_length")
    silent = line_of([SILENT] * 3 + [ANSWERED], [0.0] * 4)
    assert "75 % hold no answer, 0 % were cut off; read some" in silent and "--prompt_template" in silent
    wrong = line_of([ANSWERED] * 4, [0.0] * 4)
    assert "0 % hold no answer, 0 % were cut off; take easier problems or a better model" in wrong
    penalised = line_of([ANSWERED] * 2, [0.0, -0.5])  # --overlong_buffer
    assert penalised.startswith("note: 2 of 2 completions score 0: 0 % hold no answer")
    assert all("\n" not in line for line in (cut, silent, wrong, penalised))


def test_ones_are_told():
    assert line_of([ANSWERED] * 2, [1.0, 1.0]) == "note: 2 of 2 completions score 1: nothing is left to learn; take harder problems"


def test_a_reward_of_the_user_that_never_differs_is_told():
    reward = {"reward": "mine.py:shaped"}
    line = line_of([SILENT] * 2, [-0.5, -0.5], **reward)
    assert line.startswith("note: 2 of 2 completions have the reward -0.5, and 0 % were cut off: nothing can be learnt")
    assert "; call shaped on some texts" in line
    assert "give a higher --max_completion_length than 64" in line_of([SILENT] * 2, [0.0, 0.0], [False, False], **reward)


def test_nothing_is_told_where_rewards_differ():
    assert line_of([ANSWERED] * 2, [0.0, 1.0]) is None
    assert line_of([ANSWERED] * 2, [0.5, 1.0]) is None  # right ones, of which one is penalised
    assert line_of([ANSWERED] * 2, [-1.0, 0.0], reward="mine.py:shaped") is None


@pytest.mark.parametrize("steps", [2, 5])
def test_a_run_tells_it_once_after_three_steps_or_at_its_end(steps, tmp_path, monkeypatch, capsys):
    flags = ["--max_completion_length", "2", "--eval_steps", "0", "--save_steps", "0", "--max_steps", str(steps)]
    assert run("train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    lines = [line for line in capsys.readouterr().out.split("\n") if line.startswith(("note: ", "step "))]
    told = [i for i, line in enumerate(lines) if "completions score 0: 100 % hold no answer, 100 % were cut off; give a higher" in line]
    assert told == [min(steps, 3)] and lines[told[0]].startswith(f"note: {16 * min(steps, 3)} of {16 * min(steps, 3)} completions")


def test_a_run_with_a_constant_reward_tells_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("def same(completion, problem):\n    return 3\n")
    flags = ["--reward", f"{tmp_path / 'mine.py'}:same", "--reward_failed", "3", "--eval_steps", "0", "--max_steps", "3"]
    assert run("train_nft", tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.count("48 of 48 completions have the reward 3, and ") == 1
