"""Reads the files of a local data set into rows. Nothing is cached on disk, and nothing in a file is run.

Files come from other people. What cannot be read is a UserError that names the file and the line. A file may not unpack to much more
than its size, because a small file could otherwise fill the memory.
"""
from __future__ import annotations

import csv
import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any, NoReturn

from common.errors import UserError

Rows = list[dict[str, Any]]

LARGEST_LINE = 2**26  # bytes of a line of text: 64 MiB. The context of a model is a hundredth of that
LARGEST_DOCUMENT = 2**31  # bytes of a .json file that is one list or object, which is parsed as a whole
DEEPEST = 100  # lists and objects in each other
FEW = 64  # rows of a table that are unpacked at once
MOST_ROWS = 10_000_000
MOST_ENTRIES = 100_000  # files and folders in a folder: more are no data set, but somebody's home
# A packed file may unpack to 64 MiB, and beyond that to 100 times its size. Questions and answers pack to a tenth, and files that
# fill a disk or the memory to a thousandth. Parquet keeps a text that repeats once, so that honest tables unpack to more.
RATIO, ROOM_GZIP, ROOM_PARQUET = 100, 2**26, 2**30
# which split a file is of, by its name or that of a folder above it
SPLIT_NAME = re.compile(r"^(train|test|validation)|(?:^|[\W_\d])(train|test|validation|valid|val|dev)(?:$|[\W_\d])", re.I)
SHORT = {"valid": "validation", "val": "validation", "dev": "validation"}
INFORMATION = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}  # of `datasets`, no rows


def read_tables(path: Path) -> dict[str, Rows]:
    """The rows of every split of a file or folder. A file has the split "train", unless it is a .json object of splits.

    Every row of a split has the same columns; a value that is not there is None. Raises UserError if something cannot be read.
    """
    if not path.is_dir():
        tables = _read_file(path)
        return {split or "train": _with_all_columns(rows, path) for split, rows in tables.items()}
    splits: dict[str, Rows] = {}
    for split, files in _files_by_split(path).items():
        suffixes = sorted({_suffix(file) for file in files})
        if len(suffixes) > 1:
            names = ", ".join(next(file.name for file in files if _suffix(file) == suffix) for suffix in suffixes)
            raise UserError(f"{path}: the files of a split must have one format, and there are {names}; name one of the files, or move "
                            "the others away")
        splits[split] = []
        for file in files:
            tables = _read_file(file)
            if set(tables) != {""}:
                raise UserError(f"{file}: it has splits of its own ({', '.join(tables)}); name this file instead of its folder")
            if not tables[""]:
                raise UserError(f"{file} is empty; delete it")
            splits[split] += tables[""]
    return {split: _with_all_columns(rows, path) for split, rows in splits.items()}


# ---- folders --------------------------------------------------------------------------------------------------------

def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """The files of each split, in the order of their names. Raises UserError if there is none, or if they are of several data sets.

    If the folder itself holds files of data, the folders in it do not count.
    """
    main = folder / "refs" / "main"  # the cache of the hub: refs/main names the newest of the snapshots
    if main.is_file() and re.fullmatch(r"[0-9a-f]{40}", revision := main.read_text(encoding="utf-8", errors="replace").strip()):
        folder = folder / "snapshots" / revision
    files = _data_files(folder)
    files = [file for file in files if file.parent == folder] or files
    found: dict[str, list[Path]] = {}
    homes: dict[str, set[Path]] = {}  # split -> folders in which its files, or the folders named after it, lie
    for file in files:
        split, home = _split_of(file.relative_to(folder))
        found.setdefault(split, []).append(file)
        homes.setdefault(split, set()).add(home)
    for several in homes.values():
        if len(several) > 1:
            names = ", ".join(sorted(str(folder / home) for home in several)[:5])
            raise UserError(f"{folder} holds several data sets; name one of their folders: {names}")
    if not found:
        raise UserError(f"{folder}: the folder holds no {', '.join(READERS)} file")
    other = found.pop("", [])
    if "train" not in found and other:
        return {"train": other, **found}
    if other:
        print(f"data: {folder}: {', '.join(file.name for file in other[:5])}{', ...' if len(other) > 5 else ''} left out: the names of "
              "no split are in these names")
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _data_files(folder: Path) -> list[Path]:
    """All files of data in a folder and the folders in it, by name. Hidden files and those of `datasets` itself do not count."""
    files, seen, entries = [], set(), 0

    def stop(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error

    for here, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        seen.add(os.path.realpath(here))
        entries += len(folders) + len(names)
        if entries > MOST_ENTRIES:
            raise UserError(f"{folder} holds more than {MOST_ENTRIES:,} files; name the folder of a data set")
        # a link may lead back to a folder above it
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")) and
                            os.path.realpath(os.path.join(here, name)) not in seen)
        files += [Path(here, name) for name in names if not name.startswith((".", "cache-")) and name not in INFORMATION]
    return sorted(file for file in files if _suffix(file))


def _split_of(file: Path) -> tuple[str, Path]:
    """(the split, the folder above the name that names it). file: a path inside the data set. A file of no split gives ""."""
    for path in (file, *file.parents):
        match = SPLIT_NAME.search(path.name.partition(".")[0] if path == file else path.name)
        if match:
            name = (match[1] or match[2]).lower()
            return SHORT.get(name, name), path.parent
    return "", file.parent


# ---- files ----------------------------------------------------------------------------------------------------------

def _suffix(path: Path) -> str | None:
    """The suffix that says the format, in small letters: ".jsonl", ".csv.gz". None: no format that is read."""
    ends = [suffix.lower() for suffix in path.suffixes[-2:]]
    plain = ends[-1] if ends else ""
    if plain == ".gz" and len(ends) == 2 and ends[0] in READERS and ends[0] not in (".parquet", ".arrow"):
        return "".join(ends)
    return plain if plain in READERS else None


def _read_file(path: Path) -> dict[str, Rows]:
    """The rows of a file, by split. A file without splits gives {"": rows}."""
    suffix = _suffix(path)
    if suffix is None:
        raise UserError(f"{path}: the name must end in one of {', '.join(READERS)}, and the name of a packed text file in .gz as well")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever, and a device has no end
            raise UserError(f"{path} is not a plain file; copy the data to one")
        found = READERS[suffix.removesuffix(".gz")](path)
    except (EOFError, zlib.error, OSError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        raise UserError(f"{path} cannot be read: {cause}") from error
    except MemoryError as error:
        raise UserError(f"{path} does not fit in memory") from error
    return found if isinstance(found, dict) else {"": found}


def _refuse(path: Path, line: int, cause: str) -> NoReturn:
    raise UserError(f"{path}, line {line}: {cause}; put the line right or delete it")


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
                _refuse(path, number, f"it has more than {largest >> 20} MiB")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                _refuse(path, number, f"it is not UTF-8 text (byte {line[error.start]:#04x} at {error.start + 1})")
            if "\0" in text:
                _refuse(path, number, "it has a zero byte, which no text has")
            yield text


def _open_text(path: Path) -> IO[bytes]:
    """The bytes of a text file, unpacked if the name ends in .gz. Raises UserError if it unpacks to too much."""
    if path.suffix.lower() != ".gz":
        return open(path, "rb")
    limit, size = ROOM_GZIP + RATIO * path.stat().st_size, 0
    with gzip.open(path, "rb") as file:
        while part := file.read(2**20):
            size += len(part)
            if size > limit:
                raise UserError(f"{path} unpacks to more than {limit >> 20} MiB, {RATIO} times its size; if that is right, unpack it "
                                "with gunzip and name the result")
    return gzip.open(path, "rb")  # type: ignore[return-value]  # a GzipFile reads bytes as a file does


def _check_encoding(path: Path, start: bytes) -> None:
    if start.startswith(b"\x1f\x8b"):
        raise UserError(f"{path} is a gzip file; its name must end in .gz")
    if start.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise UserError(f"{path} is UTF-16 or UTF-32 text; save it as UTF-8")


# ---- JSON -----------------------------------------------------------------------------------------------------------

def _read_json(path: Path) -> Rows | dict[str, Rows]:
    """An object a line, or one document: a list of objects, an object of splits, or an object with the list under "data"."""
    rows: Rows = []
    document = (_suffix(path) or "").startswith(".json.") or path.suffix.lower() == ".json"
    for number, line in enumerate(_lines(path, LARGEST_DOCUMENT if document else LARGEST_LINE), start=1):
        if not line.strip():
            continue
        if document and not rows and line.lstrip()[0] == "[":
            return _read_document(path)
        try:
            row = _parse(line)
        except ValueError as error:
            if not rows and isinstance(error, json.JSONDecodeError) and line.rstrip()[-1] in "[{,":  # a document of several lines
                return _read_document(path)
            _refuse(path, number, _json_error(error, line))
        if isinstance(row, list) and not rows:
            return _read_document(path)
        if not isinstance(row, dict):
            _refuse(path, number, f"it is {_kind(row)}, and a row is an object, as {{\"question\": ...}}")
        rows.append(row)
        _check_count(path, rows)
    return _in_document(rows[0], path) if len(rows) == 1 else rows


def _read_document(path: Path) -> Rows | dict[str, Rows]:
    text = "".join(_some(_lines(path, LARGEST_DOCUMENT), path))
    try:
        return _in_document(_parse(text), path)
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            _refuse(path, error.lineno, _json_error(error, text))
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
        splits = {name: value for name, value in document.items() if name in ("train", "validation", "test") and _are_rows(value)}
        if splits:
            return splits
        if _are_rows(document.get("data")):
            return document["data"]
        lists = list(document.values())
        if lists and all(isinstance(value, list) and len(value) == len(lists[0]) and not _are_rows(value) for value in lists):
            return [dict(zip(document, values, strict=True)) for values in zip(*lists, strict=True)]  # a list for each column
        return [document]
    for number, row in enumerate(document if isinstance(document, list) else [document], start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: entry {number} is {_kind(row)}, and a row is an object, as {{\"question\": ...}}")
    _check_count(path, document)
    return document


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), f"the value {str(value)[:30]}")


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _parse(text: str) -> Any:
    """Raises ValueError for text that is not JSON, nests too deeply, names a key twice or has half a character."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # two escapes are one character; one alone is none, and no tokenizer takes it
            json.dumps(value, ensure_ascii=False).encode()
        if text.count("[") + text.count("{") > DEEPEST:
            _check_depth(value)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it has an escape \\ud... that is half a character") from None
    return value


def _check_depth(value: Any) -> None:
    """Raises RecursionError for more levels than the programs that get the row can take."""
    level, depth = [value], 0
    while level := [part for one in level for part in (one.values() if isinstance(one, dict) else one) if isinstance(part, (dict, list))]:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _json_error(error: ValueError, text: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}, {text[max(0, error.pos - 10):error.pos + 20].strip()!r}"
    return str(error).partition(";")[0]  # a number of more than 4,300 digits, for example


# ---- tables ---------------------------------------------------------------------------------------------------------

def _read_csv(path: Path) -> Rows:
    """The rows of a .csv or .tsv file, whose first line names the columns. A column of numbers has numbers, another one texts."""
    limit = csv.field_size_limit(LARGEST_LINE)  # 128 KiB by default; it holds for the whole process
    # strict: a quote that is never closed would otherwise take the rest of the file for one cell
    reader = csv.reader(_lines(path), delimiter="\t" if (_suffix(path) or "").startswith(".tsv") else ",", strict=True)
    lists: list[list[str]] = []
    try:
        columns = next(reader, [])
        if len(set(columns)) < len(columns):
            _refuse(path, 1, "two columns have the same name")
        for cells in reader:
            if len(cells) > len(columns):
                _refuse(path, reader.line_num, f"it has {len(cells)} cells, and there are {len(columns)} columns")
            if cells:
                lists.append(cells + [""] * (len(columns) - len(cells)))
            _check_count(path, lists)
    except csv.Error as error:
        _refuse(path, reader.line_num, str(error))
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


def _read_arrow(path: Path) -> Rows:
    """The rows of a .parquet file, or of an .arrow file, which `save_to_disk` writes."""
    import pyarrow

    rows: Rows = []
    limit, size = ROOM_PARQUET + RATIO * path.stat().st_size, 0
    try:
        for batch in _batches(path):
            if len(set(batch.schema.names)) < len(batch.schema.names):
                raise UserError(f"{path}: two columns have the same name; rename one")
            for start in range(0, batch.num_rows, FEW):
                part = batch.slice(start, FEW)
                size += sum(map(_unpacked_bytes, part.columns))
                if size > limit:
                    raise UserError(f"{path} unpacks to more than {limit >> 20} MiB, {RATIO} times its size; if that is right, write it "
                                    "as .jsonl")
                rows += part.to_pylist()
                _check_count(path, rows)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, RecursionError) as error:
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged, or not what its name says: {cause[:300]}") from error
    return rows


def _unpacked_bytes(array: Any) -> int:
    """The size of an array as Python values, about. Values that the file has once and repeats count each time."""
    from pyarrow import types

    kind = array.type
    if "view" in str(kind) or "run_end" in str(kind):
        raise ValueError(f"columns of type {kind} are not read")
    if types.is_dictionary(kind):
        array = array.dictionary_decode()
    nested = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_map(kind)
    parts = array.flatten() if types.is_struct(kind) else [array.flatten()] if nested else []
    return array.nbytes + 8 * len(array) + sum(map(_unpacked_bytes, parts))


def _batches(path: Path) -> Iterator[Any]:
    """The record batches of a file. Those of an .arrow file are checked: an offset that points out of the file would end the process."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        file = pyarrow.parquet.ParquetFile(path)
        _check_count(path, range(file.metadata.num_rows))
        yield from file.iter_batches(batch_size=FEW)
        return
    with pyarrow.memory_map(str(path)) as memory:
        try:
            batches: Any = pyarrow.ipc.open_stream(memory)
        except pyarrow.ArrowInvalid:
            whole = pyarrow.ipc.open_file(memory)
            batches = map(whole.get_batch, range(whole.num_record_batches))
        for batch in batches:
            batch.validate(full=True)
            yield batch


def _check_count(path: Path, rows: Sequence[Any]) -> None:
    if len(rows) > MOST_ROWS:
        raise UserError(f"{path} has more than {MOST_ROWS:,} rows; take a part of it")


def _with_all_columns(rows: Rows, path: Path) -> Rows:
    """The rows, each with the columns of all. Raises UserError if that would make far more cells than there are."""
    columns: dict[str, None] = {}
    for row in rows:
        if not row.keys() <= columns.keys():
            columns |= dict.fromkeys(row)
    lacking = [place for place, row in enumerate(rows) if len(row) < len(columns)]
    if len(lacking) * len(columns) > 10**6 + 20 * sum(map(len, rows)):
        raise UserError(f"{path}: its rows have {len(columns):,} different keys, and few in common; give all rows the same keys")
    for place in lacking:
        rows[place] = {column: rows[place].get(column) for column in columns}
    return rows


READERS: dict[str, Callable[[Path], Any]] = {
    ".jsonl": _read_json, ".json": _read_json, ".parquet": _read_arrow, ".csv": _read_csv, ".tsv": _read_csv, ".arrow": _read_arrow}
