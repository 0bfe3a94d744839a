"""The last number of the text counts, for a small model that does not mark its answers.

python train_grpo.py --model smollm2 --dataset sums --reward examples/rewards/last_number.py:last_number --reward_failed 0
"""

import re

from common.verify import answers_equal, is_correct

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def last_number(completion: str, problem) -> float:
    """1 if the marked answer is right, or else the last number of the text; otherwise 0.

    "18 - 15 = 3" is right for 3. A guess in passing pays too, so this is for questions whose whole answer is a number.
    """
    numbers = NUMBER.findall(completion)
    return float(is_correct(completion, problem.answer) or (bool(numbers) and answers_equal(numbers[-1], problem.answer)))
