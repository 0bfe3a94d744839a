"""The rows of a data set: a question and a reference answer each. The rows of a large data set are made when they are asked for."""
from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

Table = Sequence[dict[str, Any]]  # the rows of a split; each has the same columns

LARGE = 20_000  # A data set with more rows is large. Up to here all prompts are made at the start, which takes some seconds
# What is kept of a row of a large data set. part, place: where it is. high, low: the first 16 bytes of the hash of its question.
# size: bytes of its question. ascii: whether all of them are. chat: whether messages come before the question. content: a hash of
# its reference, or of all its columns. fault: why it cannot be used, a number of LargeRows.faults; 0: it can.
FACTS = np.dtype([("part", "u1"), ("place", "i8"), ("high", "u8"), ("low", "u8"), ("size", "i8"), ("ascii", "?"), ("chat", "?"),
                  ("content", "u8"), ("fault", "i4")])


@dataclass(frozen=True)
class Row:
    """A row of a data set. `question` or `answer` is None if the data has no usable one."""

    id: str  # "gsm8k/train/12": data set, split, and number of the row
    question: str | None
    answer: str | None
    fault: str = ""  # why a row with a text in the answer column has no answer
    earlier: tuple[dict[str, Any], ...] = ()  # if the question is a chat: the messages before the last one, with "role" and "content"
    table: Table = field(default=(), compare=False, repr=False)  # of the split
    place: int = 0  # number of the row in the table

    @property
    def raw(self) -> dict[str, Any]:
        """The value of every column."""
        return self.table[self.place]


def asked(row: Row) -> str:
    """The whole question as one text: of a chat, with its earlier messages. Two rows with the same text ask the same."""
    return json.dumps([row.earlier, row.question], default=str) if row.earlier else row.question or ""


def why_unusable(row: Row) -> str:
    """Why the row makes no problem, or ""."""
    if row.question is None:
        return "without a usable question"
    if row.answer is None:
        return f"without a usable answer ({row.fault})" if row.fault else "without a usable answer"
    return ""


def in_fixed_order(rows: Iterable[Row]) -> Sequence[Row]:
    """The rows in the order of a hash of their questions. This order is the same in every run, so all runs use the same problems."""
    if isinstance(rows, LargeRows):
        return rows.take(in_order_of_keys(rows.facts))
    return sorted(rows, key=lambda row: hashlib.sha256(asked(row).encode()).digest())


def hold_out(rows: Sequence[Row], most: int) -> tuple[Sequence[Row], list[Row]]:
    """(training rows, held-out rows) of a data set without a test split. A tenth is held out, at most `most` rows.

    A hash of the question chooses them. Rows with the same question count once, and training keeps no row with the question of a held-out
    one. Example: 40 different rows and most 200 -> 36 and 4.
    """
    rows = in_fixed_order(rows)
    if isinstance(rows, LargeRows):
        groups = np.cumsum(~same_as_before(rows.facts))  # numbers of the different questions
        usable = np.flatnonzero(rows.facts["fault"] == 0)
        last = np.append(groups[usable][1:] != groups[usable][:-1], len(usable) > 0)  # of several rows with a question, the last
        held = usable[last][:min(most, int(last.sum()) // 10)]
        return rows.take(~np.isin(groups, groups[held])), list(rows.take(held))
    different = list({asked(row): row for row in rows if row.question and row.answer is not None}.values())
    held_out = different[:min(most, len(different) // 10)]
    taken = {asked(row) for row in held_out}
    return [row for row in rows if asked(row) not in taken], held_out


# ---- large data sets ------------------------------------------------------------------------------------------------

@dataclass
class Part:
    """A split of a large data set."""

    label: str  # what the ids of its rows begin with: "gsm8k/train"
    table: Table
    make: Callable[[int, dict[str, Any]], Row]  # a row from its place in the table and its columns


class LargeRows(Sequence[Row]):
    """The rows of a large data set, each made from its table when it is asked for. Arrays keep what decides over them at the start."""

    def __init__(self, parts: list[Part], facts: np.ndarray, faults: list[str]) -> None:
        """facts (n,): of FACTS. faults: why a row cannot be used, by number."""
        self.parts, self.facts, self.faults = parts, facts, faults

    @classmethod
    def read(cls, part: Part, whole: bool) -> LargeRows:
        """All rows of a split. whole: a fingerprint of a row covers all its columns, and not the reference alone."""
        digests, contents, sizes, kinds, faults = bytearray(), bytearray(), array("q"), array("i"), array("i")
        numbers = {"": 0}
        for place, raw in enumerate(part.table):
            row = part.make(place, raw)
            text = asked(row).encode()
            content = whole_content(raw) if whole else row.answer or ""
            digests += hashlib.sha256(text).digest()[:16]
            contents += hashlib.sha256(content.encode()).digest()[:8]
            sizes.append(len(text))
            kinds.append(text.isascii() + 2 * bool(row.earlier))
            faults.append(numbers.setdefault(why_unusable(row), len(numbers)))
        facts = np.zeros(len(sizes), FACTS)
        facts["high"], facts["low"] = np.frombuffer(digests, ">u8").reshape(-1, 2).T
        facts["content"], facts["size"] = np.frombuffer(contents, ">u8"), np.frombuffer(sizes, "i8")
        kind = np.frombuffer(kinds, "i4")
        facts["ascii"], facts["chat"] = kind % 2 == 1, kind >= 2
        facts["fault"], facts["place"] = np.frombuffer(faults, "i4"), np.arange(len(sizes))
        return cls([part], facts, list(numbers))

    def take(self, which: np.ndarray) -> LargeRows:
        """Some of the rows. which: their numbers, or (n,) bool."""
        return LargeRows(self.parts, self.facts[which], self.faults)

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        part, place = self.parts[self.facts["part"][i]], int(self.facts["place"][i])
        return part.make(place, part.table[place])

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def ids(self) -> list[str]:
        """The ids of all rows."""
        return [f"{self.parts[part].label}/{place}" for part, place in zip(
            self.facts["part"].tolist(), self.facts["place"].tolist(), strict=True)]

    def place_of(self, id: str) -> int | None:
        """The number of the row with this id, or None if there is none."""
        label, _, number = id.rpartition("/")
        found = self._numbers.get(label)
        if found is None or not number.isdecimal() or int(number) >= len(found) or found[int(number)] < 0:
            return None
        return int(found[int(number)])

    @cached_property
    def _numbers(self) -> dict[str, np.ndarray]:
        """For each label the numbers of its rows by place (n,) int64; -1: no row of here."""
        found = {}
        for i, part in enumerate(self.parts):
            mine = np.flatnonzero(self.facts["part"] == i)
            found[part.label] = np.full(len(part.table), -1)
            found[part.label][self.facts["place"][mine]] = mine
        return found

    def fingerprints(self, size: int) -> bytes:
        """6 bytes for each `size` rows: a hash of their ids, questions and references, in their order."""
        labels = json.dumps([part.label for part in self.parts]).encode()
        names = ["part", "place", "high", "low", "content"]
        blocks = (self.facts[start:start + size] for start in range(0, len(self), size))
        return b"".join(hashlib.sha256(labels + b"".join(block[name].tobytes() for name in names)).digest()[:6] for block in blocks)


def together(splits: list[Sequence[Row]]) -> Sequence[Row]:
    """The rows of several splits of a data set, one after the other."""
    if not splits or not isinstance(splits[0], LargeRows):
        return [row for rows in splits for row in rows]
    parts, faults, facts = [], [""], []
    for rows in splits:
        here = rows.facts.copy()
        here["part"] += len(parts)
        here["fault"] = np.where(here["fault"] > 0, here["fault"] + len(faults) - 1, 0)
        parts, faults, facts = parts + rows.parts, faults + rows.faults[1:], [*facts, here]
    return LargeRows(parts, np.concatenate(facts), faults)


def whole_content(raw: dict[str, Any]) -> str:
    """All columns of a row as one text."""
    return json.dumps(sorted(raw.items()), default=lambda value: type(value).__name__)


def keys_of(rows: Sequence[Row], text: Callable[[Row], str] = asked) -> np.ndarray:
    """(n,) of FACTS, of which high and low are set: the hashes of what rows ask, or of another text of them."""
    facts = np.zeros(len(rows), FACTS)
    for i, row in enumerate(rows):
        digest = hashlib.sha256(text(row).encode()).digest()
        facts["high"][i], facts["low"][i] = int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
    return facts


def in_order_of_keys(facts: np.ndarray) -> np.ndarray:
    """(n,) int64: the numbers of the rows in the order of the hashes of their questions. Equal ones keep their order."""
    return np.lexsort((facts["low"], facts["high"]))


def same_as_before(facts: np.ndarray) -> np.ndarray:
    """(n,) bool: True where the row has the question of the row before it."""
    same = np.zeros(len(facts), dtype=bool)
    same[1:] = (facts["high"][1:] == facts["high"][:-1]) & (facts["low"][1:] == facts["low"][:-1])
    return same


def repeats(facts: np.ndarray) -> np.ndarray:
    """(n,) bool: True where an earlier row has the same question."""
    order = in_order_of_keys(facts)
    found = np.empty(len(facts), dtype=bool)
    found[order] = same_as_before(facts[order])
    return found
