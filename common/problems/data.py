"""Problems: from a registered name, a local file or a hub id, to prompts in token ids and bare reference answers."""
from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import REGISTERED, CommonConfig, SamplingConfig, Source
from common.errors import UserError
from common.tiny.task import Arithmetic, Generator
from common.verify.answers import MAX_ANSWER_LENGTH, extract_answer

if TYPE_CHECKING:
    import datasets

QUESTION_COLUMNS = ("question", "problem", "prompt")
ANSWER_COLUMNS = ("answer", "solution", "reference")
FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Row:
    """A raw row: `question` and `answer` are None where the data had nothing usable."""

    id: str
    question: str | None
    answer: str | None



# ---- rows -----------------------------------------------------------------------------------------------------------

def load_rows(config: CommonConfig) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows of `--dataset` and `--eval_dataset`. Needs no tokenizer, so it runs before any model.

    Without a test split, a tenth of the rows (at most `--eval_problems`) is held out, chosen by a hash of the question.
    Raises UserError for what cannot be found or has no such columns.
    """
    splits = _rows(config.dataset, config.prompt_column, config.answer_column, _train_and_test)
    train, held_out = splits["train"], splits.get("test")
    if config.eval_dataset:
        splits = _rows(config.eval_dataset, config.prompt_column, config.answer_column, _train_and_test, columns_needed=False)
        held_out = splits.get("test", splits["train"])
    if held_out is None:
        train = _shuffled(train)
        different = list({row.question: row for row in train if row.question and row.answer}.values())  # copies count once
        held_out = different[:min(config.eval_problems, len(different) // 10)]
        print(f"data: {config.dataset} has no test split; {len(held_out)} of its {len(train)} rows are held out")
        taken = {row.question for row in held_out}
        train = [row for row in train if row.question not in taken]
    return train, held_out



def load_split(config: SamplingConfig, split: str) -> list[Row]:
    """All rows of one split of `--dataset`: the named one, or the only one that there is. Raises UserError."""
    def pick(tables: dict[str, Any]) -> dict[str, Any]:
        name = split if split in tables else next(iter(tables))
        if split not in tables and len(tables) > 1:
            raise UserError(f"--split {split}: {config.dataset} has {', '.join(tables)}")
        return {name: tables[name]}

    return next(iter(_rows(config.dataset, config.prompt_column, config.answer_column, pick).values()))



def _train_and_test(tables: dict[str, Any]) -> dict[str, Any]:
    """{"train": table[, "test": table]} of all splits: the first is trained on if none is called so."""
    train = "train" if "train" in tables else next(iter(tables))
    test = next((split for split in ("test", "validation") if split in tables and split != train), None)
    return {"train": tables[train]} | ({"test": tables[test]} if test else {})



def _shuffled(rows: Iterable[Row]) -> list[Row]:
    """In an order that depends on the questions alone, so that every run and seed evaluates on the same problems."""
    return sorted(rows, key=lambda row: hashlib.sha256((row.question or "").encode()).digest())



def _rows(name: str, question: str | None, answer: str | None, pick: Callable[[dict[str, Any]], dict[str, Any]],
          columns_needed: bool = True) -> dict[str, list[Row]]:
    """The rows of the splits that `pick` chooses. Without `columns_needed`, a column that the data lacks is found by name."""
    base, _, settings = name.partition(":")
    if base == "arithmetic":
        train, test = Generator(Arithmetic.parse(settings)).problems()
        tables = pick({"train": train, "test": test})
        questions, answer_column, columns = (question or "question",), answer or "answer", ["question", "answer"]
    else:
        tables = pick(_tables(name))
        if not len(next(iter(tables.values()))):
            raise UserError(f"--dataset {name} is empty")
        columns, source = list(next(iter(tables.values())).column_names), REGISTERED.get(name, Source(name))
        if not columns_needed:
            question, answer = (column if column and _has(columns, column) else None for column in (question, answer))
        if not all(_has(columns, column) for column in (*source.question, source.answer or columns[0])):
            source = Source(name)  # a local folder that only shares the registered name
        questions = (question,) if question else source.question or (_find(name, columns, QUESTION_COLUMNS, "prompt_column"),)
        answer_column = answer or source.answer or _find(name, columns, ANSWER_COLUMNS, "answer_column")
    missing = [column for column in (*questions, answer_column) if not _has(columns, column)]
    if missing:
        raise UserError(f"{name} has no column {missing[0]}; it has {', '.join(columns)}")
    label = base if base in (*REGISTERED, "arithmetic") else Path(name).name
    return {split: [_row(f"{label}/{split}/{i}", raw, questions, answer_column) for i, raw in enumerate(table)]
            for split, table in tables.items()}



def _tables(name: str) -> dict[str, datasets.Dataset]:
    """Every split of a file (one), a folder (by the files' names), or a hub id."""
    import datasets  # takes a second and 100 MB, which the embedded task does without

    path = Path(name)
    try:
        if path.is_dir():
            files = {file for file in path.iterdir() if file.suffix in FORMATS}
            splits = {split: {file for file in files if file.stem.startswith(split)} for split in ("train", "validation", "test")}
            splits["train"] = splits["train"] or files - splits["validation"] - splits["test"]
            tables = {split: _read(found, name) for split, found in splits.items() if found} or {"train": _read(files, name)}
        elif path.is_file():
            tables = {"train": _read({path}, name)}
        elif path.suffix in FORMATS or name.startswith((".", "/", "~")):
            raise UserError(f"--dataset {name}: no such file or folder; give a path that exists, a registered name or a hub id")
        elif name not in REGISTERED and "/" not in name:
            near = difflib.get_close_matches(name, [*REGISTERED, "arithmetic"], n=1)
            raise UserError(f"--dataset {name} is not known; {f'did you mean {near[0]}? ' if near else ''}registered: arithmetic, "
                            f"{', '.join(REGISTERED)}; or give a .jsonl/.json/.parquet/.csv file, a folder, or a hub id (owner/name)")
        else:
            source = REGISTERED.get(name, Source(name))
            tables = dict(datasets.load_dataset(source.path, source.subset))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:  # a hub that cannot be reached is an OSError
        cause = str(error.__cause__ or error).strip().split("\n")[0]
        if "corresponds to no data" in cause:
            raise UserError(f"--dataset {name} is empty") from error
        raise UserError(f"--dataset {name} could not be loaded: {cause}; check the name and the network, or give a local file") from error
    return tables



def _read(files: set[Path], name: str) -> datasets.Dataset:
    if not files:
        raise UserError(f"--dataset {name}: the folder holds no {', '.join(FORMATS)} file")
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= set(FORMATS):
        raise UserError(f"--dataset {name}: files of one kind are needed ({', '.join(FORMATS)}), not {', '.join(sorted(suffixes))}")
    empty = [file for file in files if file.stat().st_size == 0]
    if empty:
        raise UserError(f"--dataset {name}: {empty[0].name} is empty")
    import datasets

    return datasets.load_dataset(FORMATS[suffixes.pop()], data_files=sorted(map(str, files)), split="train")



def _find(name: str, columns: list[str], candidates: tuple[str, ...], flag: str) -> str:
    lower = {column.lower(): column for column in reversed(columns)}
    for candidate in candidates:
        if candidate in lower:
            return lower[candidate]
    raise UserError(f"{name} has no column {', '.join(candidates)}; it has {', '.join(columns)}: name one with --{flag}")



def _has(columns: list[str], column: str) -> bool:
    return column in columns or column.split(".")[0] in columns



def _cell(raw: dict[str, Any], column: str) -> Any:
    """The value of a column; a dot looks inside one, unless the column itself is called so."""
    value: Any = raw
    for key in [column] if column in raw else column.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value



def _row(id: str, raw: dict[str, Any], questions: tuple[str, ...], answer_column: str) -> Row:
    parts = [part for part in (_text(_cell(raw, column)) for column in questions) if part]
    question = " ".join(parts) if len(parts) == len(questions) else None
    text = _text(_cell(raw, answer_column))
    # the reference is extracted once, here; a worked solution without a marked answer has no reference
    answer = text and (extract_answer(text) or (text if answer_column.lower() != "solution" else None))
    return Row(id, question, answer if answer and len(answer) <= MAX_ANSWER_LENGTH else None)



def _text(value: Any) -> str | None:
    """A cell as text: numbers as written, a list of answers joined, a chat as its last message; None where empty."""
    if isinstance(value, list):
        chat = bool(value) and isinstance(value[-1], dict)
        value = value[-1].get("content") if chat else ", ".join(str(part) for part in value if part is not None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    head, tail = "Solve the following math problem step by step.", "Remember to put your answer on its own line"
    if text.startswith(head) and tail in text and "\n\n" in text:  # the wrapper of DAPO-Math-17k: our template asks instead
        text = text.partition("\n\n")[2].rpartition(tail)[0].strip()
    return text or None
