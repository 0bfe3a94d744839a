import importlib
import itertools
import json
import sys

import numpy as np
import pytest

from common.config import run_script
from common.verify import answers_equal
from eval import interval, majority_at_k, majority_vote, pass_at_k

TASK = ["--dataset", "arithmetic:warm_steps=80,values=18,tiers=plus:1:1-2,habits=0.3:0.3:0.3,train=60,test=30"]


def evaluate(folder, *flags, monkeypatch):
    module = importlib.import_module("eval")
    monkeypatch.setattr(sys, "argv", ["eval.py", *TASK, "--num_samples", "4", "--output_dir", str(folder), *flags])
    try:
        run_script(module.Config, module.evaluate, module.__file__)
    except SystemExit as end:
        return end.code
    return json.loads((folder / "summary.json").read_text())


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n, c in [(6, 0), (6, 1), (6, 3), (6, 6)]:
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="does not exist"):
        pass_at_k(3, 1, 4)


def test_majority_vote_groups_by_value():
    assert majority_vote(["3", "0.5", None, "1/2"]) == "0.5"
    assert majority_vote(["4", "7"]) == "4" and majority_vote([None]) is None
    samples = [{"answer": a, "finish_reason": r} for a, r in [("1", "stop"), ("2", "length"), ("2", "stop"), ("2", "stop")]]
    row = {"reference": "2", "samples": samples}
    assert majority_at_k(row, 1) == 0.5 and majority_at_k(row, 2) == 0.5 and majority_at_k(row, 4) == 1.0


@pytest.mark.parametrize("problems", [30, 100, 500])
@pytest.mark.parametrize("kind", ["rare", "even", "fractions"])
def test_intervals_cover_the_truth(problems, kind):
    """1,000 simulated evaluations: 95 % within what a Wilson interval does at these sizes."""
    rng = np.random.default_rng(0)
    truth = {"rare": 0.05, "even": 0.5, "fractions": 0.2}[kind]
    covered = 0
    for _ in range(1000):
        rates = rng.beta(0.2, 0.8, problems) if kind == "fractions" else np.full(problems, truth)
        draws = 16 if kind == "fractions" else 1
        found = interval((rng.binomial(draws, rates) / draws).tolist(), draws)
        covered += found["low"] <= truth <= found["high"]
    assert 0.92 <= covered / 1000 <= 0.99


def test_nothing_solved_is_not_certainty():
    assert interval([0.0] * 100) == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.037, abs=1e-3)}
    assert interval([1.0] * 100)["low"] == pytest.approx(0.963, abs=1e-3)


def test_an_evaluation_agrees_with_brute_force_and_continues(tmp_path, monkeypatch):
    summary = evaluate(tmp_path / "a", monkeypatch=monkeypatch)
    text = (tmp_path / "a" / "problems.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == summary["problems"] == 30 and summary["samples"] == 4
    for row in rows:
        for sample in [row["greedy"], *row["samples"]]:
            right = sample["answer"] is not None and answers_equal(sample["answer"], row["reference"])
            assert sample["correct"] == (right and sample["finish_reason"] == "stop")
    for k in (1, 4):
        brute = [np.mean([any(s["correct"] for s in subset) for subset in itertools.combinations(row["samples"], k)]) for row in rows]
        assert summary[f"pass@{k}"]["value"] == pytest.approx(np.mean(brute))
    assert summary["maj@1"]["value"] == pytest.approx(summary["mean"]["value"])
    assert 0 < summary["mean"]["value"] < 1 and summary["greedy"]["low"] <= summary["greedy"]["value"] <= summary["greedy"]["high"]
    lines = text.splitlines(keepends=True)  # interrupted in the middle of a line
    (tmp_path / "a" / "problems.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    assert evaluate(tmp_path / "a", monkeypatch=monkeypatch) == summary
    assert (tmp_path / "a" / "problems.jsonl").read_text() == text
    assert "holds another evaluation" in evaluate(tmp_path / "a", "--temperature", "0.5", monkeypatch=monkeypatch)
    assert "give numbers from 1 to the 4" in evaluate(tmp_path / "b", "--k", "8", monkeypatch=monkeypatch)
