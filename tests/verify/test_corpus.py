"""The rows of answers.jsonl: for each reference, predictions that are the same answer and predictions that are not.

A convention is a row there: to change one, move a prediction from "right" to "wrong".
"""

import json
from pathlib import Path

import pytest

from common.verify.answers import answers_equal, is_correct

GROUPS = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("group", GROUPS, ids=[group["kind"] for group in GROUPS])
def test_rows(group):
    is_text = group.get("form") == "completion"
    for predictions, verdict in ((group["right"], True), (group["wrong"], False)):
        for prediction in predictions:
            completion = prediction if is_text else rf"The final answer is $\boxed{{{prediction}}}$."
            assert is_correct(completion, group["reference"]) is verdict, (prediction, group["reference"])
            if not is_text:
                assert answers_equal(prediction, group["reference"]) is answers_equal(group["reference"], prediction) is verdict, prediction
