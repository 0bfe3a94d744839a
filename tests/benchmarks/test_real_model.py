"""benchmarks/real_model.py: what it says of answers and curves, and what the documents say of the recorded runs."""

import json
import re
import sys

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import curves
import real_model

RECORD = ROOT / "docs" / "real_model.json"


def row(question, completion, reference, finish_reason="stop"):
    prompt = f"<|im_start|>user\nWhat is {question}? Answer with the number only.<|im_end|>\n<|im_start|>assistant\n"
    greedy = {"completion": completion, "finish_reason": finish_reason}
    return {"problem": question, "prompt": prompt, "reference": reference, "greedy": greedy}


def test_an_answer_is_right_by_its_last_number_and_wrong_if_it_was_cut_off():
    before = [row("18 - 15", "18 -\n15 = 4", "3"), row("9 + 4", "9 + 4 = 13", "13", "length"), row("2 + 2", "Two and two", "4")]
    after = [row("18 - 15", "18 - 15 = 3.", "3"), row("9 + 4", "13", "13"), row("2 + 2", "5 or 4", "4")]
    assert real_model.side_by_side(before, after) == [
        {"question": "18 - 15", "before": ("18 - 15 = 4", False), "after": ("18 - 15 = 3.", True)},
        {"question": "9 + 4", "before": ("9 + 4 = 13...", False), "after": ("13", True)},
        {"question": "2 + 2", "before": ("Two and two", False), "after": ("5 or 4", True)}]  # fmt: skip
    with pytest.raises(ValueError, match="not the same question: 18 - 15 and 9"):
        real_model.side_by_side(before[:1], after[1:2])


def test_what_is_kept_of_a_run_and_shown(tmp_path):
    rows = [{"step": 0, "eval/reward": 0.05, "eval/reward_greedy": 0.25}]
    rows += [{"step": step, "reward": step / 100, "entropy": 1.0} for step in range(1, real_model.STEPS)]
    rows += [{"step": real_model.STEPS, "reward": 0.5, "eval/reward": 0.45, "eval/reward_greedy": 0.55}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    kept = real_model.curves_of(tmp_path)
    assert kept["eval/reward_greedy"] == {"0": 0.25, "30": 0.55} and list(kept["reward"]) == [str(step) for step in range(1, 31)]
    points = {step: step / 100 for step in range(3, 24, 5)} | {28: 0.32}
    assert real_model.binned(kept["reward"]) == pytest.approx(points)
    answers = real_model.side_by_side([row("7 + 5", "It is " + 9 * "not " + "12", "12")], [row("7 + 5", "7 + 5 = 11", "12")])
    text = "\n".join(real_model.lines_of({"seeds": {"4": kept}, "answers": answers}))
    assert re.search(r"7 \+ 5 +It is not not not not no\.\.\. *right +7 \+ 5 = 11 +wrong", text)
    assert "seed 4  sampled     0: 0.050   30: 0.450" in text and "seed 4  greedy      0: 0.250   30: 0.550" in text

def test_the_picture_and_the_tables_are_those_of_the_recorded_runs(tmp_path):
    results = json.loads(RECORD.read_text())
    assert list(results["seeds"]) == ["0", "1", "2"] and len(results["answers"]) == real_model.SHOWN
    curves.save(real_model.drawn(results), tmp_path / "real_model.svg")  # another version of matplotlib may write it otherwise
    new, kept = ((folder / "real_model.svg").read_text() for folder in (tmp_path, RECORD.parent))
    marks = [[float(x) for x in re.findall(r'<use [^>]*y="([\d.]+)"', text)] for text in (new, kept)]
    assert len(marks[0]) > 12 and marks[0] == pytest.approx(marks[1], abs=1)
    for answer in results["answers"]:
        assert f">{answer['question']}</text>" in kept
    page = (ROOT / "docs" / "models.md").read_text()
    for seed, own in results["seeds"].items():
        cells = [" -> ".join(f"{value:.3f}".lstrip("0") for value in own[name].values()) for name in ("eval/reward", "eval/reward_greedy")]
        assert f"| {seed} | {cells[0]} | {cells[1]} |" in page
