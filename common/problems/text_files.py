"""Reads text files of data: JSON, an object a line or one document, and comma-separated values. Also their packed form, .gz.

Files come from other people. What cannot be read is a UserError that names the file and the line. A file may not unpack to much more
than its size, because a small file could otherwise fill the memory.
"""
from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any, NoReturn

from common.errors import UserError
from common.files import without_repeats

Rows = list[dict[str, Any]]

LARGEST_LINE = 2**26  # bytes of a line of text: 64 MiB. The context of a model is a hundredth of that
LARGEST_DOCUMENT = 2**31  # bytes of a .json file that is one list or object, which is parsed as a whole
# keys of an object with a list of rows for each split, and keys of one list of all rows
SPLITS = {"train": "train", "training": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation",
          "dev": "validation"}
LISTS = ("data", "rows", "examples", "instances", "problems", "questions")
DECODER = json.JSONDecoder()
DEEPEST = 100  # lists and objects in each other
MOST_ROWS = 10_000_000
# A packed file may unpack to 64 MiB, and beyond that to 100 times its size. Questions and answers pack to a tenth, and files that
# are made to fill a memory to a thousandth.
RATIO, ROOM = 100, 2**26


# ---- lines ----------------------------------------------------------------------------------------------------------

def _lines(path: Path, largest: int = LARGEST_LINE) -> Iterator[str]:
    """The lines of a text file, with their ends, blank ones too. A byte order mark of UTF-8 is left out. Raises UserError."""
    with _open_text(path) as file:
        for number in count(1):
            line = file.readline(largest + 1)
            if number == 1:
                _check_encoding(path, line)
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line:
                return
            if len(line) > largest:
                refuse(path, number, f"it has more than {largest >> 20} MiB")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                refuse(path, number, f"it is not UTF-8 text (byte {line[error.start]:#04x} at {error.start + 1})")
            if "\0" in text:
                refuse(path, number, "it has a zero byte, which no text has")
            yield text


def _open_text(path: Path) -> IO[bytes]:
    """The bytes of a text file, unpacked if the name ends in .gz. Raises UserError if it unpacks to too much."""
    if path.suffix.lower() != ".gz":
        return open(path, "rb")
    limit, size = ROOM + RATIO * path.stat().st_size, 0
    with gzip.open(path, "rb") as file:
        while part := file.read(2**20):
            size += len(part)
            if size > limit:
                raise UserError(f"{path} unpacks to more than {limit >> 20} MiB, {RATIO} times its size; if that is right, unpack it "
                                "with gunzip and name the result")
    return gzip.open(path, "rb")  # type: ignore[return-value]  # a GzipFile reads bytes as a file does


def _plain_name(path: Path) -> str:
    """The name of the unpacked file, in small letters."""
    return path.name.lower().removesuffix(".gz")


def _check_encoding(path: Path, start: bytes) -> None:
    if start.startswith(b"\x1f\x8b"):
        raise UserError(f"{path} is a gzip file; its name must end in .gz")
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise UserError(f"{path} is UTF-16 or UTF-32 text; save it as UTF-8")


def refuse(path: Path, line: int, cause: str) -> NoReturn:
    raise UserError(f"{path}, line {line}: {cause}; put the line right or delete it")


def check_count(path: Path, rows: Sequence[Any]) -> None:
    if len(rows) > MOST_ROWS:
        raise UserError(f"{path} has more than {MOST_ROWS:,} rows; take a part of it")


# ---- JSON -----------------------------------------------------------------------------------------------------------

def read_json(path: Path) -> Rows | dict[str, Rows]:
    """An object a line, or one document: a list of objects, an object of splits, or an object with the list under "data"."""
    rows: Rows = []
    document = _plain_name(path).endswith(".json")
    for number, line in enumerate(_lines(path, LARGEST_DOCUMENT if document else LARGEST_LINE), start=1):
        if line.isspace():
            continue
        if document and not rows and line.lstrip()[0] == "[":
            return _read_document(path)
        try:
            row = _parse(line)
        except ValueError as error:
            if not rows and isinstance(error, json.JSONDecodeError) and line.rstrip()[-1] in "[{,":  # a document of several lines
                return _read_document(path)
            refuse(path, number, _json_error(error, line))
        if isinstance(row, list) and not rows:
            return _read_document(path)
        if not isinstance(row, dict):
            refuse(path, number, f"it is {_kind(row)}, and a row is an object, as {{\"question\": ...}}")
        rows.append(row)
        check_count(path, rows)
    return _in_document(rows[0], path) if len(rows) == 1 else rows


def _read_document(path: Path) -> Rows | dict[str, Rows]:
    text = "".join(_some(_lines(path, LARGEST_DOCUMENT), path))
    try:
        return _in_document(_parse(text), path)
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            refuse(path, error.lineno, _json_error(error, text))
        raise UserError(f"{path}: {_json_error(error, text)}; put it right, or write one object a line (.jsonl)") from None


def _some(lines: Iterator[str], path: Path) -> Iterator[str]:
    """The lines, up to the largest document."""
    size = 0
    for line in lines:
        size += len(line)
        if size > LARGEST_DOCUMENT:
            raise UserError(f"{path} is one JSON document of more than {LARGEST_DOCUMENT >> 30} GiB; write one object a line (.jsonl)")
        yield line


def _in_document(document: Any, path: Path) -> Rows | dict[str, Rows]:
    """The rows in a JSON document."""
    if isinstance(document, dict):
        tables = {name: rows for name, value in document.items() if (rows := _table_in(value))}
        splits = {SPLITS[name.lower()]: rows for name, rows in tables.items() if name.lower() in SPLITS}
        if splits:
            return splits
        if name := next((name for name in LISTS if name in tables), None):
            return tables[name]
        return _table_in(document) or [document]
    for number, row in enumerate(document if isinstance(document, list) else [document], start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: entry {number} is {_kind(row)}, and a row is an object, as {{\"question\": ...}}")
    check_count(path, document)
    return document


def _table_in(value: Any) -> Rows:
    """The rows of a list of objects, or of an object with a list for each column, all of one length. Anything else has none."""
    if _are_rows(value):
        return value
    lists = list(value.values()) if isinstance(value, dict) else []
    if lists and all(isinstance(one, list) and len(one) == len(lists[0]) and not _are_rows(one) for one in lists):
        return [dict(zip(value, values, strict=True)) for values in zip(*lists, strict=True)]
    return []


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), f"the value {str(value)[:30]}")


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _parse(text: str) -> Any:
    """Raises ValueError for text that is not JSON, nests too deeply, names a key twice or has half a character."""
    try:
        value = _loaded(text)
        # with as many colons as keys none is there twice, and no object is in another one; looking for repeats doubles the time
        plain = isinstance(value, dict) and text.count(":") == len(value)
        if not plain:
            value = json.loads(text, object_pairs_hook=without_repeats)
        # two escapes are one character; one alone is none, and no tokenizer takes it
        if "\\u" in text and re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
        if ("[" in text or not plain) and text.count("[") + text.count("{") > DEEPEST:
            _check_depth(value)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it has an escape \\ud... that is half a character") from None
    return value


def _loaded(text: str) -> Any:
    """What json.loads gives, in half the time: it looks for blanks before and behind with regular expressions."""
    try:
        value, end = DECODER.raw_decode(text)
    except ValueError:  # blanks before, or an error, which json.loads names
        return json.loads(text)
    return value if text[end:] in ("\n", "\r\n", "") else json.loads(text)


def _check_depth(value: Any) -> None:
    """Raises RecursionError for more levels than the programs that get the row can take."""
    level, depth = [value], 0
    while level := [part for one in level for part in (one.values() if isinstance(one, dict) else one) if isinstance(part, (dict, list))]:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError


def _json_error(error: ValueError, text: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}, {text[max(0, error.pos - 10):error.pos + 20].strip()!r}"
    return str(error).partition(";")[0]  # a number of more than 4,300 digits, for example


# ---- comma-separated values -----------------------------------------------------------------------------------------

def read_csv(path: Path) -> Rows:
    """The rows of a .csv or .tsv file, whose first line names the columns. A column of numbers has numbers, another one texts.

    A .tsv file whose quotes do not fit together is read again with quotes as plain characters, because many programs write no others.
    """
    if not _plain_name(path).endswith(".tsv"):
        return _read_cells(path, ",", csv.QUOTE_MINIMAL)
    try:
        return _read_cells(path, "\t", csv.QUOTE_MINIMAL)
    except UserError:
        return _read_cells(path, "\t", csv.QUOTE_NONE)


def _read_cells(path: Path, delimiter: str, quoting: int) -> Rows:
    limit = csv.field_size_limit(LARGEST_LINE)  # 128 KiB by default; it holds for the whole process
    # strict: a quote that is never closed would otherwise take the rest of the file for one cell
    reader = csv.reader(_lines(path), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    lists: list[list[str]] = []
    try:
        columns = [column.strip() for column in next(reader, [])]
        if len(set(columns)) < len(columns):
            refuse(path, 1, "two columns have the same name")
        for cells in reader:
            if len(cells) > len(columns):
                refuse(path, reader.line_num, f"it has {len(cells)} cells, and there are {len(columns)} columns")
            if cells:
                lists.append(cells + [""] * (len(columns) - len(cells)))
            check_count(path, lists)
    except csv.Error as error:
        refuse(path, reader.line_num, str(error))
    finally:
        csv.field_size_limit(limit)
    values = [_numbers([cells[i] for cells in lists]) for i in range(len(columns))]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _numbers(cells: list[str]) -> list[Any]:
    """The cells of a column, an empty one as None. If all others are numbers as one writes them (not 025), they become numbers."""
    for kind, form in ((int, r"-?(0|[1-9]\d{0,17})"), (float, r"-?(0|[1-9]\d{0,17})(\.\d+)?")):
        if all(not cell or re.fullmatch(form, cell, re.A) for cell in cells):
            return [kind(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]
