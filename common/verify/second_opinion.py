"""math-verify's view of an answer, for `eval.py --second_opinion math_verify`. Never used in training.

Runs in the processes of `common/rewards.py`: some answers keep it busy for longer than anybody waits.
"""
from __future__ import annotations

import logging
from typing import Any

logging.disable(logging.WARNING)  # it warns of every call without its own timeout, which works in main threads only


def math_verify(completion: str, problem: Any) -> float:
    """1.0 if math-verify finds the reference's answer in the completion. Needs `pip install math-verify`."""
    from math_verify import parse, verify

    gold = parse(f"$\\boxed{{{problem.answer}}}$", parsing_timeout=None)
    return float(verify(gold, parse(completion, parsing_timeout=None), timeout_seconds=None))
