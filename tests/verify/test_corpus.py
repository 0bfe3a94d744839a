"""The rows of answers.jsonl and of conventions.jsonl, and the table of docs/verifier.md, which is drawn from the latter.

answers.jsonl has, for each reference, predictions that are the same answer and predictions that are not. conventions.jsonl has the
questions on which graders disagree: what was decided and why, pairs of answers, and the verdicts of two other graders on each pair.
In a group that is "one_way" the right predictions state more than the reference, which would be wrong the other way round.
To change a convention, change its row there; the tests then say what follows it no longer.
"""

import json
from pathlib import Path

import pytest

from common.verify.answers import answer_matches, answers_equal, is_correct

HERE = Path(__file__).parent
GROUPS, CONVENTIONS = ([json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
                       for name in ("answers.jsonl", "conventions.jsonl"))


@pytest.mark.parametrize("group", GROUPS, ids=[group["kind"] for group in GROUPS])
def test_rows(group):
    is_text = group.get("form") == "completion"
    for predictions, verdict in ((group["right"], True), (group["wrong"], False)):
        for prediction in predictions:
            completion = prediction if is_text else rf"The final answer is $\boxed{{{prediction}}}$."
            assert is_correct(completion, group["reference"]) is verdict, (prediction, group["reference"])
            if not is_text and not (verdict and group.get("one_way")):
                assert answers_equal(prediction, group["reference"]) is answers_equal(group["reference"], prediction) is verdict, prediction


@pytest.mark.parametrize("convention", CONVENTIONS, ids=[convention["question"] for convention in CONVENTIONS])
def test_conventions(convention):
    for pair in convention["pairs"]:
        same = is_correct if convention.get("form") == "completion" else answer_matches
        assert same(pair["answer"], pair["reference"]) is pair["equal"], pair


def test_the_table_of_conventions_is_drawn_from_the_rows():
    drawn = []
    for convention in CONVENTIONS:
        pairs = convention["pairs"]
        agree = [f"{name} {sum(pair[key] is pair['equal'] for pair in pairs)}"
                 for key, name in (("math_verify", "math-verify"), ("math", "MATH")) if key in pairs[0]]
        drawn.append(f"| {convention['question']} | {convention['here']} | {convention['why']} | {', '.join(agree)} of {len(pairs)} |")
    page = (HERE.parents[1] / "docs" / "verifier.md").read_text(encoding="utf-8")
    table = page.partition("## Conventions")[2].partition("|---|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert table == drawn, "\n".join(drawn)
