"""Phase 3: is a completion's answer right? Text goes in, a bool or a number comes out. Nothing in the text is ever executed.

Import from here: `extract_answer`, `is_correct`, `answers_equal`. From rewards.py: `make_reward`, `Reward`, `CustomReward`.

The files in the order in which a text goes through them:
- extract.py finds the answer in the completion;
- spelling.py and macros.py give it one spelling;
- readings.py takes away the words around it, by remarks.py, wording.py, phrases.py and words.py, and has forms.py read the rest as a
  list, an interval, an equation and so on; relations.py, names.py, real_sets.py, vectors.py, values.py, units.py and measures.py know
  the kinds of parts;
- tokens.py, latex.py, notation.py and trees.py parse an expression;
- answers.py compares two answers part by part, sums.py those with dots, piecewise.py those by cases. equal.py compares the values of two
  expressions, by points.py, expression_values.py and rounding.py;
- statements.py knows what an answer states about a plain value: x^3 - y^3 = 10 states 10;
- voting.py groups equal answers.
"""
from common.verify.answers import answers_equal, extract_answer, is_correct

__all__ = ["answers_equal", "extract_answer", "is_correct"]
