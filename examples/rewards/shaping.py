"""The right answer counts most, the format a little, and a long right answer loses a little.

python train_grpo.py --reward examples/rewards/shaping.py:shaped --reward_failed 0
"""

import re

from common.verify import is_correct

MARKED = re.compile(r"(\\boxed\{.+\}|#### *\S+)[\s.$]*$")  # the completion ends with a marked answer
LONG = 512  # tokens at which the whole cost is paid


def shaped(completion: str, problem) -> float:
    """1 for the right answer and 0.1 for a marked one, less up to 0.2 for length. Wrong answers pay nothing for their length.

    If wrong answers did, a model that is mostly wrong would learn to be short before it learns to be right.
    """
    right = is_correct(completion, problem.answer)
    marked = MARKED.search(completion) is not None
    cost = 0.2 * min(1.0, completion.tokens / LONG) if right else 0.0
    return right + 0.1 * marked - cost
