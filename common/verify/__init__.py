"""Phase 3: is a completion's answer right? Text goes in, a bool or a number comes out. Nothing in the text is ever executed.

Import from here: `extract_answer`, `is_correct`, `answers_equal`. From rewards.py: `make_reward`, `Reward`, `CustomReward`.

An answer passes through these files: extract.py finds it in the completion, spelling.py gives it one spelling, forms.py reads it as a
list, an interval, an equation and so on, and answers.py compares two of them part by part. For expressions, latex.py is the parser,
expression_values.py computes values, and equal.py compares the values.
"""
from common.verify.answers import answers_equal, extract_answer, is_correct

__all__ = ["answers_equal", "extract_answer", "is_correct"]
