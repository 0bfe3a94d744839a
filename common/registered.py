"""The data sets and models that --dataset and --model know by a short name."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """The place of a registered data set on the Hugging Face hub, and the columns to read.

    The texts of all `question` columns are joined with a space. No `question` or `answer`: the column is found by its usual names.
    A dot names a key inside a column, as in "reward_model.ground_truth".
    """

    path: str
    subset: str | None = None
    question: tuple[str, ...] = ()
    answer: str | None = None
    benchmark: bool = False  # no set to train on: evaluations take every row, also if the hub has them under "train"


MADE = ("arithmetic", "sums")  # data sets that are made by a rule: no file, no download
REGISTERED = {
    "gsm8k": Source("openai/gsm8k", "main"),
    "math": Source("DigitalLearningGmbH/MATH-lighteval"),
    "math500": Source("HuggingFaceH4/MATH-500", benchmark=True),
    "aime24": Source("HuggingFaceH4/aime_2024", benchmark=True),
    "aime25": Source("math-ai/aime25", benchmark=True),
    "amc23": Source("math-ai/amc23", benchmark=True),
    "svamp": Source("ChilleD/SVAMP", question=("Body", "Question"), answer="Answer"),
    "olympiadbench": Source("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", answer="final_answer", benchmark=True),
    "dapo17k": Source("BytedTsinghua-SIA/DAPO-Math-17k", answer="reward_model.ground_truth"),
}
