"""Reads a data set: from a registered name, a file, a folder or a hub id to rows with a question and a reference answer."""
from __future__ import annotations

import contextlib
import difflib
import errno
import gc
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.config import CommonConfig, SamplingConfig
from common.console import say
from common.errors import UserError
from common.problems.references import kind_of, reference_of
from common.problems.rows import LARGE, Contents, LargeRows, Part, Row, Table, hold_out, together
from common.problems.sums import sums
from common.problems.tables import READERS, read_tables, split_in_name
from common.registered import MADE, REGISTERED, Source
from common.run.folder import CONFIG
from common.run.saved_config import read_record
from common.tiny.task import Arithmetic, Generator
from common.verify.answers import extract_answer

# column names that are looked for, in this order, if no flag names the column
QUESTION_COLUMNS = ("question", "problem", "prompt")
ANSWER_COLUMNS = ("answer", "expected_answer", "ground_truth", "reward_model.ground_truth", "final_answer", "reference", "solution")
FIRST_ROWS = 100  # of these rows one must have the key inside a column that is looked for
NOT_ASKING = ("assistant", "gpt", "system", "developer", "tool", "function")  # roles of messages that are no question


# ---- rows -----------------------------------------------------------------------------------------------------------

def load_rows(config: CommonConfig) -> tuple[Sequence[Row], Sequence[Row]]:
    """(training rows, held-out rows) of `--dataset` and `--eval_dataset`. No model is needed for this.

    If there is no test split, a tenth of the rows is held out, and at most `--eval_problems` rows. A hash of the question chooses them.
    With `--reward` no row needs an answer. Raises UserError if a data set or a column does not exist.
    """
    columns, any_answer = (config.prompt_column, config.answer_column), config.reward is not None
    first = config.derived.get  # the name of the data before it was moved, in a resumed run
    read = partial(_rows_of, config.dataset, *columns, _train_and_test, any_answer=any_answer, called=first("first_dataset"))
    splits = read()
    train, held_out = splits["train"], splits.get("test")
    if config.eval_dataset:
        splits = _rows_of(config.eval_dataset, *columns, _train_and_test, columns_needed=False, any_answer=any_answer,
                          called=first("first_eval_dataset"))
        held_out = splits.get("test", splits["train"])
        if isinstance(held_out, LargeRows) and not isinstance(train, LargeRows):
            train = read(large=True)["train"]  # both in the same form, so that they can be compared
    if held_out is None:
        count = len(train)
        train, held_out = hold_out(train, config.eval_problems)
        say(f"data: {config.dataset} has no test split; {len(held_out)} of its {count} rows are held out")
    return train, held_out


def load_split(config: SamplingConfig, split: str) -> Sequence[Row]:
    """The rows of `--dataset` that eval.py scores. Raises UserError.

    They are those of the split `split`, or of every split for "all". A data set without a split "test" gives the rows that training holds
    out. A benchmark, or data that is called a test, is evaluated whole, unless the run of `--adapter` was trained on it.
    """
    tables: dict[str, Table] = {}

    def pick(found: dict[str, Table]) -> dict[str, Table]:
        tables.update(found)
        if split in found or split == "all":
            return {split: found[split]} if split in found else found
        if split != "test":
            raise UserError(f"--split {split}: {config.dataset} has {', '.join(found)}; name one of them, or all")
        return {"validation": found["validation"]} if "validation" in found and len(found) > 1 else _train_and_test(found)

    reward = getattr(config, "reward", None)
    splits = _rows_of(config.dataset, config.prompt_column, config.answer_column, pick, any_answer=reward is not None)
    rows = together(list(splits.values()))
    name, trained = next(iter(splits)), _run_of(getattr(config, "adapter", None))
    if reward is None and isinstance(scored := trained.get("reward"), str):
        say(f"note: the run of --adapter was scored by --reward {scored}, and this evaluation by the answer checker; to judge by that "
            "function, give the flag")
    same = trained.get("dataset") is not None and (local_path(str(trained["dataset"])) or trained["dataset"]) in (
        config.dataset, local_path(config.dataset))
    if split == "all" or name == split != "test" or (split in tables and (len(tables) > 1 or not same)):
        return rows
    if name != "train" and len(tables) > 1:
        say(f"data: {config.dataset} has no split test; its split {name} is evaluated, as in training")
        return rows
    source, path = REGISTERED.get(config.dataset), local_path(config.dataset)
    if not same and ((source and source.benchmark) or (path and split_in_name(path.name) not in ("", "train"))):
        say(f"data: all {len(rows)} rows of {config.dataset} are evaluated: it is a benchmark, or called a test. Do not train on it")
        return rows
    most = trained.get("eval_problems") if same else None
    held_out = hold_out(rows, most if isinstance(most, int) else CommonConfig.eval_problems)[1]
    if not held_out:
        raise UserError(f"--dataset {config.dataset} has no test split, and a tenth of its {len(rows)} rows is no row: add --split all to "
                        "evaluate them all")
    say(f"data: {config.dataset} has no test split; the {len(held_out)} of its {len(rows)} rows that training holds out are evaluated. "
        "--split all evaluates them all")
    return held_out


def _run_of(adapter: str | None) -> dict[str, Any]:
    """The flags of the run that made the adapter, as its config.json has them. Empty for an adapter of elsewhere."""
    try:
        return read_record(Path(adapter).parent / CONFIG)["flags"] if adapter else {}
    except (UserError, LookupError, TypeError):
        return {}


def _train_and_test(tables: dict[str, Table]) -> dict[str, Table]:
    """The splits to use: {"train": table} or {"train": table, "test": table}. Without a split "train", the first split is for training."""
    train = "train" if "train" in tables else next(iter(tables))
    test = next((split for split in ("test", "validation") if split in tables and split != train), None)
    return {"train": tables[train]} | ({"test": tables[test]} if test else {})


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """In it Python looks for no garbage: a million rows make none, and it takes a tenth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_gc()
def _rows_of(name: str, question: str | None, answer: str | None, pick: Callable[[dict[str, Table]], dict[str, Table]],
             columns_needed: bool = True, any_answer: bool = False, called: str | None = None,
             large: bool = False) -> dict[str, Sequence[Row]]:
    """The rows of the data set `name`, by split. `pick` chooses among all its splits. called: its name in the ids, if that is another.

    More than LARGE rows are a LargeRows, and so are fewer with `large`.

    question, answer: columns that a flag names, or None. columns_needed False: if the data has no such column, the usual names count.
    any_answer: no row has the answer None, and the data may have no answer column.
    """
    base, _, settings = name.partition(":")
    if base in MADE and (base == "arithmetic" or (not settings and local_path(name) is None)):
        train, test = Generator(Arithmetic.parse(settings)).problems() if base == "arithmetic" else sums()
        tables = pick({"train": train, "test": test})
        questions, answer_column, columns = (question or "question",), answer or "answer", ["question", "answer"]
    else:
        tables = pick(_load_tables(name))
        first = next(iter(tables.values()))
        if not len(first) or not first[0]:
            raise UserError(f"--dataset {name} is empty" if not len(first) else f"--dataset {name}: its rows have no columns")
        columns, source = list(first[0]), REGISTERED.get(called or name, Source(name))
        if not columns_needed:
            question, answer = (column if column and _has_column(columns, column) else None for column in (question, answer))
        if not all(_has_column(columns, column) for column in (*source.question, source.answer or columns[0])):
            source = Source(name)  # a local folder with the same name as a registered data set, but other columns
        questions = (question,) if question else source.question or (_find_column(name, first, QUESTION_COLUMNS, "prompt_column"),)
        answer_column = answer or source.answer or _find_column(name, first, ANSWER_COLUMNS, None if any_answer else "answer_column")
    missing = [column for column in (*questions, answer_column) if column and not _has_column(columns, column)]
    if missing:
        raise UserError(f"{name} has no column {missing[0]}; it has {', '.join(columns)}")
    called = called or name
    base = called.partition(":")[0]
    label = base if base in (*REGISTERED, *MADE) else Path(called).name or Path(called).resolve().name
    _say_lists(name, tables, answer_column, any_answer)
    contents = partial(_contents, questions, answer_column, any_answer)
    parts = {split: Part(f"{label}/{split}", table, contents) for split, table in tables.items()}
    if large or sum(map(len, tables.values())) > LARGE:
        return {split: LargeRows.read(part, any_answer) for split, part in parts.items()}
    return {split: [part.row(place, raw) for place, raw in enumerate(part.table)] for split, part in parts.items()}


def _say_lists(name: str, tables: dict[str, Table], column: str, any_answer: bool) -> None:
    """Says how lists in the answer column are read, if one of the first rows has one with several entries."""
    cells = [_cell(table[i], column) for table in tables.values() for i in range(min(len(table), FIRST_ROWS))]
    lists = [cell for cell in cells if isinstance(cell, list) and len(cell) > 1 and not any(isinstance(part, dict) for part in cell)]
    if lists and not any_answer:
        say(f"data: {name} has lists in the column {column}: such a list is one answer, and a completion must give all its parts. If each "
            "of them alone is right, add --reward examples/rewards/any_of.py:any_of")


def _load_tables(name: str) -> dict[str, Table]:
    """The rows of every split of a file, a folder, a registered name or a hub id. Raises UserError if they cannot be read."""
    path = local_path(name)
    if path is not None:
        return read_tables(path)
    if name.lower().endswith(tuple(READERS)) or name.startswith((".", "/", "~")):
        raise UserError(f"--dataset {name}: no such file or folder; give a path that exists, a registered name or a hub id")
    if name not in REGISTERED and "/" not in name:
        near = difflib.get_close_matches(name, [*REGISTERED, *MADE], n=1)
        raise UserError(f"--dataset {name} is not known; {f'did you mean {near[0]}? ' if near else ''}registered: "
                        f"{', '.join((*MADE, *REGISTERED))}; or give a {'/'.join(READERS)} file, a folder, or a hub id (owner/name)")
    source = REGISTERED.get(name, Source(name))
    try:
        import datasets  # imported only here: it takes a second and 100 MB, and only the hub needs it

        return dict(datasets.load_dataset(source.path, source.subset))
    except Exception as error:  # the hub's libraries, and files of the hub, raise whatever they like
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"--dataset {name}: the cache of the hub cannot be written ({error.filename}); name a folder of your own in "
                            "HF_HOME") from error
        cause = (str(error.__cause__ or error).strip() or type(error).__name__).split("\n")[0]
        if "corresponds to no data" in cause:
            raise UserError(f"--dataset {name} is empty") from error
        raise UserError(f"--dataset {name} could not be loaded: {cause}; check the name and the network, or give a local file") from error


def local_path(name: str) -> Path | None:
    """The file or folder of this name, or None if there is none. A ~ at the beginning is the home folder."""
    return next((Path(path) for path in (name, os.path.expanduser(name)) if os.path.lexists(path)), None)


def _find_column(name: str, table: Table, candidates: tuple[str, ...], flag: str | None) -> str:
    """The first of the `candidates` that is a column, in capital or small letters. "a.b" is one if cells of "a" have a key "b".

    If there is none: raises UserError and names `flag`. With flag None the result is then "".
    """
    columns = list(table[0])
    lower = {column.lower(): column for column in reversed(columns)}
    for candidate in candidates:
        outer, _, inner = candidate.partition(".")
        if candidate in lower:
            return lower[candidate]
        if inner and outer in lower and any(isinstance(cell := table[i][lower[outer]], dict) and inner in cell
                                            for i in range(min(len(table), FIRST_ROWS))):
            return f"{lower[outer]}.{inner}"
    if flag is None:
        return ""
    raise UserError(f"{name} has no column {', '.join(candidates)}; it has {', '.join(columns)}: name one with --{flag}")


def _has_column(columns: list[str], column: str) -> bool:
    """Whether a column exists, or for "a.b" whether the column "a" exists."""
    return column in columns or column.split(".")[0] in columns


def _cell(raw: dict[str, Any], column: str) -> Any:
    """The value in a column. "a.b" is the key "b" inside the column "a", unless a column has the name "a.b"."""
    value: Any = raw
    for key in [column] if column in raw else column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _contents(questions: tuple[str, ...], answer_column: str, any_answer: bool, raw: dict[str, Any]) -> Contents:
    """The texts of the `questions` columns of a row, joined by a space, and the reference answer from `answer_column`.

    any_answer: in place of None the answer is the text of the column as it stands, or "".
    """
    earlier: tuple[dict[str, Any], ...] = ()
    if len(questions) == 1 and isinstance(cell := raw.get(questions[0]), str):  # most are so, and a data set may have a million
        question = _text(cell)
    else:
        cells = [_cell(raw, column) for column in questions]
        parts = [_text(cell) for cell in cells]
        earlier, asks = _chat_before(cells)
        question = " ".join(parts) if asks and None not in parts else None
    given = raw[answer_column] if answer_column in raw else _cell(raw, answer_column)
    text, fault, answer = _text(given), kind_of(given), None
    if text and not fault:  # the reference answer is extracted here, once
        answer, fault = reference_of(text, worked=answer_column.lower() == "solution")
    if any_answer and answer is None:
        answer, fault = (text and extract_answer(text)) or text or "", ""
    return question, answer, fault, earlier


def _chat_before(cells: list[Any]) -> tuple[tuple[dict[str, Any], ...], bool]:
    """(the messages before the question, if a cell is a chat; whether the cells ask something that text templates can show)."""
    if not any(isinstance(cell, dict) or (isinstance(cell, list) and any(isinstance(part, dict) for part in cell)) for cell in cells):
        return (), True
    chat = cells[0] if len(cells) == 1 and isinstance(cells[0], list) and all(isinstance(message, dict) for message in cells[0]) else []
    earlier = tuple({key: plain(value) if key == "content" else value for key, value in message.items() if value is not None}
                    for message in chat[:-1])
    # a message with an image or a tool call cannot be shown
    texts = all(isinstance(message.get("content"), str) for message in earlier)
    return earlier, bool(chat) and chat[-1].get("role") not in NOT_ASKING and texts


def plain(content: Any) -> Any:
    """The text of a chat message. A content that is a list of text parts is joined; another content stays as it is, or is None."""
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else None
    return content


def _text(value: Any) -> str | None:
    """The text of a cell, or None if it is empty. 3.0 gives "3", a list of answers is joined by commas, a chat gives its last message."""
    if not isinstance(value, str):
        if isinstance(value, list):
            chat = bool(value) and isinstance(value[-1], dict)
            value = plain(value[-1].get("content")) if chat else ", ".join(str(part) for part in value if part is not None)
        if isinstance(value, bytes):
            value = value.decode("utf-8", errors="replace")
        if isinstance(value, float):  # NaN is how tables without a value are written
            value = int(value) if value.is_integer() else value if math.isfinite(value) else None
        value = "" if value is None else str(value)
    text = value.strip()
    head, tail = "Solve the following math problem step by step.", "Remember to put your answer on its own line"
    # DAPO-Math-17k puts a request around each question; it is removed, because our templates have their own request
    if text.startswith(head) and tail in text and "\n\n" in text:
        text = text.partition("\n\n")[2].rpartition(tail)[0].strip()
    return text or None
