"""For data whose answer column has a list of accepted answers: a completion that gives one of them is right.

    python train_grpo.py --dataset my.jsonl --reward examples/rewards/any_of.py:any_of --reward_failed 0

Without this reward a list is one answer with several parts, and a completion must give them all. The column is `answer`, or the one in the
variable COLUMN.
"""

from common.verify.answers import is_correct

COLUMN = "answer"


def any_of(completion: str, problem) -> float:
    """1 if the checker finds the completion equal to one of the accepted answers, else 0. A cell that is no list is one answer."""
    cell = problem.row[COLUMN]
    return float(any(is_correct(completion, str(answer)) for answer in (cell if isinstance(cell, list) else [cell])))
