"""Several rewards with weights. Add a function to WEIGHTS, or change a weight.

python train_grpo.py --reward examples/rewards/several.py:several
"""

from common.verify import extract_answer, is_correct


def right(completion: str, problem) -> float:
    """1 if the answer equals the reference, else 0."""
    return float(is_correct(completion, problem.answer))


def answered(completion: str, problem) -> float:
    """1 if there is an answer at all, right or wrong."""
    return float(extract_answer(completion) is not None)


def without_repeats(completion: str, problem) -> float:
    """The share of lines that are different. 1 if no line is repeated."""
    lines = [line for line in completion.splitlines() if line.strip()]
    return len(set(lines)) / max(1, len(lines))


WEIGHTS = {right: 1.0, answered: 0.1, without_repeats: 0.1}


def several(completion: str, problem) -> float:
    """The weighted sum."""
    return sum(weight * function(completion, problem) for function, weight in WEIGHTS.items())
