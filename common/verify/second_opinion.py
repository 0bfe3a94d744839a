"""The verdict of the package math-verify, for `eval.py --second_opinion math_verify`. Training never uses it.

It runs as a custom reward, in processes that can be killed, because some answers keep math-verify busy for more than 10 seconds.
"""
from __future__ import annotations

import logging
from typing import Any

logging.disable(logging.WARNING)  # math-verify warns of each call without its own timeout, which works in the main thread only


def math_verify(completion: str, problem: Any) -> float:
    """1.0 if math-verify finds the reference answer in the completion, else 0.0. Needs `pip install math-verify`."""
    from math_verify import parse, verify

    gold = parse(f"$\\boxed{{{problem.answer}}}$", parsing_timeout=None)
    return float(verify(gold, parse(completion, parsing_timeout=None), timeout_seconds=None))
