"""Reads the files of a local data set into rows. Nothing is cached on disk, and nothing in a file is run.

Files come from other people: what cannot be read is a UserError that names the file, and sizes are limited.
"""
from __future__ import annotations

import os
import re
import stat
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from common.console import say
from common.errors import UserError
from common.problems.rows import LARGE, Table
from common.problems.text_files import RATIO, Rows, check_count, read_csv, read_json

FEW = 64  # rows of a table that are unpacked at once
ROOM_ARROW = 2**30  # as RATIO and ROOM of text files. A table keeps a text that repeats once, so that honest ones unpack to more
MOST_ENTRIES = 100_000  # files and folders in a folder. One with more is no data set, but perhaps a home folder
# which split a file is of, by its name or that of a folder above it
SPLIT_NAME = re.compile(r"^(train|test|validation)|(?:^|[\W_\d])(train|test|validation|valid|val|dev)(?:$|[\W_\d])", re.I)
SHORT = {"valid": "validation", "val": "validation", "dev": "validation"}
INFORMATION = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}  # of `datasets`, no rows


def read_tables(path: Path) -> dict[str, Table]:
    """The rows of every split of a file or folder. A file has the split "train", unless it is a .json object of splits.

    Every row of a split has the same columns; a value that is not there is None. Raises UserError if something cannot be read.
    """
    if not path.is_dir():
        tables = _read_file(path)
        return {split or "train": _with_all_columns(rows, path) for split, rows in tables.items()}
    splits: dict[str, Table] = {}
    for split, files in _files_by_split(path).items():
        suffixes = sorted({_suffix(file) for file in files})
        if len(suffixes) > 1:
            names = ", ".join(next(file.name for file in files if _suffix(file) == suffix) for suffix in suffixes)
            raise UserError(f"{path}: the files of a split must have one format, and there are {names}; name one of the files, or move "
                            "the others away")
        parts: list[Table] = []
        for file in files:
            tables = _read_file(file)
            if set(tables) != {""}:
                raise UserError(f"{file}: it has splits of its own ({', '.join(tables)}); name this file instead of its folder")
            if not tables[""]:
                raise UserError(f"{file} is empty; delete it")
            parts.append(tables[""])
        splits[split] = _one_after_the_other(parts)
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
        say(f"data: {folder}: {', '.join(file.name for file in other[:5])}{', ...' if len(other) > 5 else ''} left out: no split has its "
            "name in these names")
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
        if split := split_in_name(path.name.partition(".")[0] if path == file else path.name):
            return split, path.parent
    return "", file.parent


def split_in_name(name: str) -> str:
    """The split that the name of a file or folder says: "math_test.jsonl" -> "test". No split gives ""."""
    match = SPLIT_NAME.search(name)
    found = (match[1] or match[2]).lower() if match else ""
    return SHORT.get(found, found)


# ---- files ----------------------------------------------------------------------------------------------------------

def _suffix(path: Path) -> str | None:
    """The suffix that says the format, in small letters: ".jsonl", ".csv.gz". None: no format that is read."""
    ends = [suffix.lower() for suffix in path.suffixes[-2:]]
    plain = ends[-1] if ends else ""
    if plain == ".gz" and len(ends) == 2 and ends[0] in READERS and ends[0] not in (".parquet", ".arrow"):
        return "".join(ends)
    return plain if plain in READERS else None


def _read_file(path: Path) -> dict[str, Table]:
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


# ---- columns ------------------------------------------------------------------------------------------------------

class ArrowRows(Sequence[dict[str, Any]]):
    """The rows of a large .parquet file, kept as columns, which take a fraction of the memory. A row is made when it is asked for."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches  # RecordBatches with the same columns
        self.ends = list(accumulate(batch.num_rows for batch in batches))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, i: Any) -> Any:
        number = range(len(self))[i]
        batch = bisect_right(self.ends, number)
        return self.batches[batch].slice(number - self.ends[batch] + self.batches[batch].num_rows, 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batches:
            yield from batch.to_pylist()


def _one_after_the_other(parts: list[Table]) -> Table:
    """The rows of several files of a split."""
    if all(isinstance(part, ArrowRows) and part.batches[0].schema.names == parts[0].batches[0].schema.names for part in parts):
        return ArrowRows([batch for part in parts for batch in part.batches])
    return [row for part in parts for row in part]


def _read_arrow(path: Path) -> Table:
    """The rows of a .parquet file, or of an .arrow file, which `save_to_disk` writes."""
    import pyarrow
    import pyarrow.parquet

    rows: Rows = []
    kept: list[Any] | None = None  # the batches of a large file
    limit, size = ROOM_ARROW + RATIO * path.stat().st_size, 0
    try:
        if path.suffix.lower() == ".parquet" and pyarrow.parquet.ParquetFile(path).metadata.num_rows > LARGE:
            kept = []
        for batch in _batches(path):
            if kept is not None:
                kept.append(batch)
            if len(set(batch.schema.names)) < len(batch.schema.names):
                raise UserError(f"{path}: two columns have the same name; rename one")
            for start in range(0, batch.num_rows, FEW):
                part = batch.slice(start, FEW)
                size += sum(map(_unpacked_bytes, part.columns))
                if size > limit:
                    raise UserError(f"{path} unpacks to more than {limit >> 20} MiB, {RATIO} times its size; if that is right, write it "
                                    "as .jsonl")
                if kept is None:
                    rows += part.to_pylist()
                    check_count(path, rows)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, RecursionError) as error:
        cause = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{path} is damaged, or not what its name says: {cause[:300]}") from error
    return rows if kept is None else ArrowRows(kept)


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
        check_count(path, range(file.metadata.num_rows))
        yield from file.iter_batches(batch_size=FEW, use_threads=False)  # for so few rows threads take three times as long
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


def _with_all_columns(rows: Table, path: Path) -> Table:
    """The rows, each with the columns of all. Raises UserError if that would make far more cells than there are."""
    if isinstance(rows, ArrowRows):
        return rows
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
    ".jsonl": read_json, ".json": read_json, ".parquet": _read_arrow, ".csv": read_csv, ".tsv": read_csv, ".arrow": _read_arrow}
