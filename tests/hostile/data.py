"""Data sets that other people made: damaged, malicious, or written in ways that no reader expects."""
from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
from pathlib import Path

import pyarrow
import pyarrow.parquet

ROW = {"question": "What is 1 + 1?", "answer": "2"}
GOOD = json.dumps(ROW).encode() + b"\n"


class Runs:
    """An object whose pickle writes the file `ran` in the working folder."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


# ---- JSON ----

def make_deep_row(folder: Path) -> Path:
    """The third row opens 100,000 lists."""
    return written(folder, "deep.jsonl", 2 * GOOD + b'{"question": ' + b"[" * 100_000 + b"\n")


def make_deep_document(folder: Path) -> Path:
    return written(folder, "deep.json", b"[" * 100_000 + b"]" * 100_000)


def make_deep_enough_to_load(folder: Path) -> Path:
    """Nested less deeply than a parser refuses, but deeper than what later copies or prints the row."""
    return written(folder, "deep.jsonl", 2 * GOOD + b'{"question": "q", "answer": "1", "x": ' + b'{"x":' * 900 + b"1" + b"}" * 900 + b"}\n")


def make_half_character(folder: Path) -> Path:
    return written(folder, "half.jsonl", GOOD + b'{"question": "a \\ud83d b", "answer": "1"}\n')


def make_key_twice(folder: Path) -> Path:
    return written(folder, "twice.jsonl", GOOD + b'{"question": "q", "answer": "1", "answer": "2"}\n')


def make_long_number(folder: Path) -> Path:
    return written(folder, "number.jsonl", GOOD + b'{"question": "q", "answer": ' + b"9" * 100_000 + b"}\n")


def make_row_is_a_list(folder: Path) -> Path:
    return written(folder, "list.jsonl", GOOD + b'["q", "1"]\n')


def make_keys_without_end(folder: Path) -> Path:
    """Every row has a key of its own: as a table, that is 10^10 cells."""
    return written(folder, "keys.jsonl", b"".join(b'{"question": "q%d", "answer": "1", "k%d": 1}\n' % (i, i) for i in range(100_000)))


def make_line_without_end(folder: Path) -> Path:
    """A sparse file of 100 GB without a line break."""
    with open(folder / "line.jsonl", "wb") as file:
        file.write(b'{"question": "')
        file.truncate(100 * 10**9)
    return folder / "line.jsonl"


def make_utf16(folder: Path) -> Path:
    return written(folder, "utf16.jsonl", GOOD.decode().encode("utf-16"))


def make_utf16_without_mark(folder: Path) -> Path:
    return written(folder, "utf16.jsonl", GOOD.decode().encode("utf-16-le"))


def make_latin1(folder: Path) -> Path:
    return written(folder, "latin1.jsonl", GOOD + '{"question": "caf\xe9", "answer": "1"}\n'.encode("latin-1"))


def make_escapes(folder: Path) -> Path:
    """A column whose name changes the title of a terminal."""
    return written(folder, "escapes.jsonl", json.dumps({"\x1b]0;owned\x07": "q", "\x1b[2J": "1"}).encode() + b"\n")


# ---- packed ----

def make_bomb_by_another_name(folder: Path) -> Path:
    """A gzip file of 0.8 GB of rows that is called .jsonl."""
    return make_bomb(folder).rename(folder / "bomb.jsonl")


def make_bomb(folder: Path) -> Path:
    part = gzip.compress(GOOD * (10**8 // len(GOOD)), 6)  # gzip files behind each other are one gzip file
    return written(folder, "bomb.jsonl.gz", part * 8)


def make_gzip_cut(folder: Path) -> Path:
    return written(folder, "cut.jsonl.gz", gzip.compress(os.urandom(2000).hex().encode())[:1500])


def make_parquet_bomb(folder: Path) -> Path:
    """A text of 1 MB that 20,000 rows have, in a file of a few kilobytes."""
    indices = pyarrow.array([0] * 20_000, pyarrow.int32())
    texts = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array(["word " * 200_000]))
    pyarrow.parquet.write_table(pyarrow.table({"question": texts, "answer": indices}), folder / "bomb.parquet", compression="zstd")
    return folder / "bomb.parquet"


def make_parquet_of_many_rows(folder: Path) -> Path:
    """20,000,000 rows of nothing."""
    nothing = pyarrow.nulls(10_000_000, pyarrow.bool_())
    with pyarrow.parquet.ParquetWriter(folder / "rows.parquet", pyarrow.schema({"answer": pyarrow.bool_()})) as file:
        for _ in range(2):
            file.write_table(pyarrow.table({"answer": nothing}))
    return folder / "rows.parquet"


# ---- tables ----

def make_csv_open_quote(folder: Path) -> Path:
    return written(folder, "quote.csv", b'question,answer\nq,1\n"open,2\n' + b"a,3\n" * 1000)


def make_csv_wide_row(folder: Path) -> Path:
    return written(folder, "wide.csv", b"question,answer\nq,1\nWhat is 1,000 + 1?,1001\n")


def make_csv_zero_bytes(folder: Path) -> Path:
    return written(folder, "zero.csv", b"question,answer\nq\0,1\n")


def make_csv_huge_cell(folder: Path) -> Path:
    return written(folder, "cell.csv", b'question,answer\n"' + (b"x" * 10**6 + b"\n") * 80 + b'",1\n')


def make_csv_names_twice(folder: Path) -> Path:
    return written(folder, "names.csv", b"question,answer,answer\nq,1,2\n")


def parquet_of(folder: Path) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table({"question": [f"q{i}" for i in range(100)], "answer": ["1"] * 100}), folder / "good.parquet")
    content = (folder / "good.parquet").read_bytes()
    (folder / "good.parquet").unlink()
    return content


def make_parquet_cut(folder: Path) -> Path:
    return written(folder, "cut.parquet", parquet_of(folder)[:-30])


def make_parquet_broken_footer(folder: Path) -> Path:
    content = bytearray(parquet_of(folder))
    size = struct.unpack("<I", content[-8:-4])[0]
    content[-8 - size:-8] = b"\xff" * size
    return written(folder, "footer.parquet", bytes(content))


def make_parquet_huge_footer(folder: Path) -> Path:
    return written(folder, "footer.parquet", parquet_of(folder)[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1")


def make_parquet_broken_pages(folder: Path) -> Path:
    content = bytearray(parquet_of(folder))
    content[4:60] = b"\xff" * 56
    return written(folder, "pages.parquet", bytes(content))


def arrow_of(folder: Path, name: str, table: pyarrow.Table) -> Path:
    with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return folder / name


def make_arrow_with_a_pickle(folder: Path) -> Path:
    """A column of a type that old versions of pyarrow unpickled."""
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Runs())}
    fields = [pyarrow.field("question", pyarrow.string()), pyarrow.field("answer", pyarrow.string(), metadata=metadata)]
    return arrow_of(folder, "pickle.arrow", pyarrow.table([["q"] * 20, ["1"] * 20], pyarrow.schema(fields)))


def make_arrow_offsets_out_of_the_file(folder: Path) -> Path:
    path = arrow_of(folder, "offsets.arrow", pyarrow.table({"question": ["a", "b"], "answer": ["x" * 7, "y" * 9]}))
    right = struct.pack("<3i", 0, 7, 16)
    assert right in path.read_bytes()
    return written(folder, "offsets.arrow", path.read_bytes().replace(right, struct.pack("<3i", 0, 7, 10**9)))


def make_arrow_list_of_nothing(folder: Path) -> Path:
    """A list of 10^9 empty values, which takes a few bytes in the file and gigabytes in Python."""
    offsets = pyarrow.array([0, 10**9], pyarrow.int32())
    return arrow_of(folder, "nothing.arrow", pyarrow.table({"question": pyarrow.ListArray.from_arrays(offsets, pyarrow.nulls(10**9))}))


# ---- files and folders ----

def make_pipe(folder: Path) -> Path:
    """A named pipe: whoever opens it waits."""
    os.mkfifo(folder / "pipe.jsonl")
    return folder / "pipe.jsonl"


def make_device(folder: Path) -> Path:
    (folder / "zero.jsonl").symlink_to("/dev/zero")
    return folder / "zero.jsonl"


def make_link_to_nothing(folder: Path) -> Path:
    (folder / "train.jsonl").symlink_to("../blobs/gone")
    return folder


def make_link_to_itself(folder: Path) -> Path:
    (folder / "train.jsonl").symlink_to("train.jsonl")
    return folder


def make_folder_with_a_script(folder: Path) -> Path:
    """As data sets of the hub once were: a script that loads them, which must not run, with surprises in the descriptions."""
    code = "import os\nos.system('touch ran')\n"
    (folder / f"{folder.name}.py").write_text(code)
    (folder / "dataset_infos.json").write_text(json.dumps({"default": {"features": {"question": {"_type": "Runs"}}}}))
    (folder / "README.md").write_text("---\nconfigs: !!python/object/apply:os.system ['touch ran']\n---\n")
    (folder / "train.jsonl").write_bytes(GOOD * 20)
    return folder


def make_folder_that_leads_back(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_bytes(GOOD)
    (folder / "data" / "again").symlink_to("..")
    return folder
