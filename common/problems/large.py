"""The problems of a large data set. A prompt is rendered and tokenised when a step wants it, and its length is known by a bound before.

A token stands for one byte of text at least, so that most questions are short enough by their size alone. The others are tokenised at
the start, and so are the rows that may have the longest and the shortest prompts.
"""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from common.problems.rows import LargeRows, Row
from common.records import Problem, Problems

CHUNK = 4096  # problems that are made at once when all are gone through
LONGEST, SHORTEST = 1000, 100  # rows that are tokenised at the start: those with the most bytes, and with the fewest
BLOCK = 100  # problems that have a fingerprint together
LEAST_MESSAGE = 28  # bytes of an empty message in the text of a chat: {"role": "", "content": ""}
BLANKS, FORMS = 3, 11  # at most so many times the bytes: if blanks are written as one character of 3 bytes, and in Unicode's normal forms

Make = Callable[[list[Row]], list[Problem]]


@dataclass(frozen=True, eq=False)
class LargeProblems(Problems):
    """The problems of `rows`, each made when it is asked for, and behind them those of `more`."""

    rows: LargeRows
    make: Make
    longest: int  # no prompt has more tokens. A bound, as most prompts are not tokenised
    examples: list[Problem]  # those that were made at the start
    more: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.rows) + len(self.more)

    def __getitem__(self, i: Any) -> Any:
        return self.pick(list(range(len(self))[i])) if isinstance(i, slice) else self.pick([range(len(self))[i]])[0]

    def __iter__(self) -> Iterator[Problem]:
        for start in range(0, len(self), CHUNK):
            yield from self.pick(list(range(start, min(start + CHUNK, len(self)))))

    def __add__(self, others: list[Problem]) -> LargeProblems:
        longest = max([self.longest, *(len(problem.prompt_ids) for problem in others)])
        return dataclasses.replace(self, more=(*self.more, *others), examples=[*self.examples, *others], longest=longest)

    def pick(self, numbers: Sequence[int]) -> list[Problem]:
        """The problems with these numbers. Raises UserError if a prompt is longer than the bound."""
        count = len(self.rows)
        made = iter(self.make([self.rows[i] for i in numbers if i < count]))
        problems = [next(made) if i < count else self.more[i - count] for i in numbers]
        for problem in problems:
            if not 0 < len(problem.prompt_ids) <= self.longest:
                raise UserError(f"{problem.id}: its prompt has {len(problem.prompt_ids)} tokens, and the tokenizer and the prompt template "
                                f"make at most {self.longest} of a text of its size; take this row out of the data")
        return problems

    def ids(self) -> list[str]:
        return self.rows.ids() + [problem.id for problem in self.more]

    def number_of(self, id: str) -> int | None:
        return self.rows.place_of(id)

    def fingerprints(self) -> tuple[int, bytes]:
        return BLOCK, self.rows.fingerprints(BLOCK)


class Bound:
    """At most how many tokens a row's prompt has, from the size of its question."""

    def __init__(self, render: Callable[[str], str], tokenizer: PreTrainedTokenizerBase) -> None:
        short, long = (len(render(text).encode()) for text in ("?", "?" * 1001))
        self.times = -(-(long - short) // 1000)  # how often the template writes the question
        self.around = short - self.times  # bytes of the template
        self.special = tokenizer.num_special_tokens_to_add() + 2  # and a blank or two that some tokenizers put before a text
        self.blanks, self.forms = growth(tokenizer)

    def tokens(self, facts: np.ndarray) -> np.ndarray:
        """(n,) float64: a bound for each row; infinite if the tokenizer may make more tokens than a text has bytes."""
        messages = np.where(facts["chat"], facts["size"] // LEAST_MESSAGE + 1, 1)
        size = self.times * facts["size"] + self.around * messages
        return self.special + size * self.blanks * np.where(facts["ascii"], 1.0, self.forms)


def growth(tokenizer: PreTrainedTokenizerBase) -> tuple[float, float]:
    """How many times its bytes a text may have once a tokenizer has normalised it: (an ASCII text, any other one on top)."""
    if not getattr(tokenizer, "is_fast", False):
        return np.inf, np.inf
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, steps = state["model"], [state["normalizer"]]
    # a model of subwords without bytes gives a token a character at most, one of whole words a token a word
    known = model.get("type") in ("BPE", "Unigram", "WordPiece", "WordLevel")
    blanks = forms = 1.0
    while steps:
        step = steps.pop()
        kind = step and step["type"]
        if kind == "Sequence":
            steps += step["normalizers"]
        elif kind == "Replace" and step["pattern"] == {"String": " "} and len(step["content"].encode()) <= BLANKS:
            blanks = BLANKS
        elif kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "BertNormalizer"):
            forms *= FORMS
        elif kind not in (None, "Prepend", "Strip", "StripAccents"):
            known = False
    return (blanks, forms) if known else (np.inf, np.inf)


def lengths_checked(rows: LargeRows, bound: Bound, make: Make, longest: int) -> tuple[np.ndarray, int, list[Problem]]:
    """(which rows have too long a prompt (n,) bool, a bound of the tokens of the others' prompts, problems that were made for it).

    longest: tokens that a prompt may have.
    """
    tokens = bound.tokens(rows.facts)
    order = np.argsort(-tokens, kind="stable")
    surely = int((tokens > longest).sum())  # so many may be too long
    some = order[:max(surely, LONGEST)]
    too_long, examples, most = np.zeros(len(rows), dtype=bool), [], 1
    for start in range(0, len(some), CHUNK):
        numbers = some[start:start + CHUNK].tolist()
        problems = make([rows[i] for i in numbers])
        for i, problem in zip(numbers, problems, strict=True):
            too_long[i] = not 0 < len(problem.prompt_ids) <= longest
            if not too_long[i]:
                examples.append(problem)
                most = max(most, len(problem.prompt_ids))
        examples = sorted(examples, key=lambda problem: -len(problem.prompt_ids))[:LONGEST]
    rest = order[len(some):]
    if len(rest):
        most = max(most, int(tokens[rest[0]]))
        examples += make([rows[int(i)] for i in rest[-SHORTEST:]])
    return too_long, most, examples
