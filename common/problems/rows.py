"""The rows of a data set: a question and a reference answer each. The rows of a large data set are made when they are asked for."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

Table = Sequence[dict[str, Any]]  # the rows of a split; each has the same columns
Contents = tuple[str | None, str | None, str, tuple[dict[str, Any], ...]]  # question, answer, fault and earlier of a Row

LARGE = 20_000  # A data set with more rows is large. Up to here all prompts are made at the start, which takes some seconds
AT_ONCE = 4096  # rows of a large data set whose facts are found together
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
    return _asked(row.question, row.earlier)


def _asked(question: str | None, earlier: tuple[dict[str, Any], ...]) -> str:
    return json.dumps([earlier, question], default=str) if earlier else question or ""


def why_unusable(row: Row) -> str:
    """Why the row makes no problem, or ""."""
    return _why_unusable(row.question, row.answer, row.fault)


def _why_unusable(question: str | None, answer: str | None, fault: str) -> str:
    if question is None:
        return "without a usable question"
    if answer is None:
        return f"without a usable answer ({fault})" if fault else "without a usable answer"
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
    contents: Callable[[dict[str, Any]], Contents]  # of a row's columns

    def row(self, place: int, raw: dict[str, Any]) -> Row:
        """The row at this place in the table, which has these columns."""
        return Row(f"{self.label}/{place}", *self.contents(raw), self.table, place)


class LargeRows(Sequence[Row]):
    """The rows of a large data set, each made from its table when it is asked for. Arrays keep what decides over them at the start."""

    def __init__(self, parts: list[Part], facts: np.ndarray, faults: list[str]) -> None:
        """facts (n,): of FACTS. faults: why a row cannot be used, by number."""
        self.parts, self.facts, self.faults = parts, facts, faults

    @classmethod
    def read(cls, part: Part, whole: bool) -> LargeRows:
        """All rows of a split. whole: a fingerprint of a row covers all its columns, and not the reference alone."""
        facts = np.zeros(len(part.table), FACTS)
        facts["place"] = np.arange(len(facts))
        numbers, start, table = {"": 0}, 0, iter(part.table)
        while raws := list(islice(table, AT_ONCE)):
            rows = [part.contents(raw) for raw in raws]
            texts = [_asked(question, earlier).encode() for question, _, _, earlier in rows]
            contents = map(whole_content, raws) if whole else [answer or "" for _, answer, _, _ in rows]
            here = facts[start:start + len(rows)]
            here["high"], here["low"] = _hashes(texts)[:, :2].T
            here["content"] = _hashes([content.encode() for content in contents])[:, 0]
            here["size"], here["ascii"] = list(map(len, texts)), list(map(bytes.isascii, texts))
            here["chat"] = [bool(earlier) for _, _, _, earlier in rows]
            here["fault"] = [numbers.setdefault(_why_unusable(question, answer, fault), len(numbers))
                             for question, answer, fault, _ in rows]
            start += len(rows)
        return cls([part], facts, list(numbers))

    def take(self, which: np.ndarray) -> LargeRows:
        """Some of the rows. which: their numbers, or (n,) bool."""
        facts = self.facts[which] if which.dtype == bool else np.take(self.facts, which)  # an eighth of the time of facts[which]
        return LargeRows(self.parts, facts, self.faults)

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        part, place = self.parts[self.facts["part"][i]], int(self.facts["place"][i])
        return part.row(place, part.table[place])

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


def _hashes(texts: list[bytes]) -> np.ndarray:
    """(n, 4) uint64: the SHA-256 of each text."""
    sha256 = hashlib.sha256
    return np.frombuffer(b"".join([sha256(text).digest() for text in texts]), ">u8").reshape(-1, 4)


def whole_content(raw: dict[str, Any]) -> str:
    """All columns of a row as one text."""
    return json.dumps(sorted(raw.items()), default=lambda value: type(value).__name__)


def keys_of(rows: Sequence[Row], text: Callable[[Row], str] = asked) -> np.ndarray:
    """(n,) of FACTS, of which high and low are set: the hashes of what rows ask, or of another text of them."""
    facts = np.zeros(len(rows), FACTS)
    facts["high"], facts["low"] = _hashes([text(row).encode() for row in rows])[:, :2].T
    return facts


def in_order_of_keys(facts: np.ndarray) -> np.ndarray:
    """(n,) int64: the numbers of the rows in the order of the hashes of their questions. Equal ones keep their order."""
    order = np.argsort(facts["high"], kind="stable")  # takes a third of the time of both, or none if they are in order
    high, low = facts["high"][order], facts["low"][order]
    if ((high[1:] == high[:-1]) & (low[1:] != low[:-1])).any():
        order = np.lexsort((facts["low"], facts["high"]))
    return order


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
