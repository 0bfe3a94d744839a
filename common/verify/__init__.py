"""Phase 3: is a completion's answer right? Text in, bool or number out; nothing in the text is ever executed.

Import from here: `extract_answer`, `is_correct`, `answers_equal`. From rewards.py: `make_reward`, `Reward`, `CustomReward`.
answers.py compares answers by their form, with spelling.py (one spelling for LaTeX, unicode, units), latex.py (a small bounded
parser), expression_values.py (values of expressions) and equal.py (the same values at the same points?).
"""
from common.verify.answers import answers_equal, extract_answer, is_correct

__all__ = ["answers_equal", "extract_answer", "is_correct"]
