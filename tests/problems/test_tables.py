"""Files of data as people have them, and as other people made them."""

import csv
import gzip
import io
import json
import sys

import datasets
import pytest
from hostile import data as hostile
from hostile import makers

from common.config import CommonConfig
from common.errors import UserError
from common.problems.data import load_rows, load_split
from common.problems.tables import read_tables

ROWS = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
LINES = [json.dumps(row) for row in ROWS]
TEXT = "".join(f"{line}\n" for line in LINES)


def comma_separated(delimiter=","):
    file = io.StringIO()
    writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue()


FILES = {
    "a [1].jsonl": TEXT,
    "[train].jsonl": TEXT,
    "what?*.jsonl": TEXT,
    "zip::a.jsonl": TEXT,
    "50% #1 ~.jsonl": TEXT,
    "Größe 数.jsonl": TEXT,
    "A.JSONL": TEXT,
    "a.Json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "lines.json": TEXT,
    "list.jsonl": json.dumps(ROWS),
    "list over lines.jsonl": "[\n" + ",\n".join(LINES) + "\n]\n",
    "under data.json": json.dumps({"version": 1, "data": ROWS}),
    "under data, pretty.json": json.dumps({"version": 1, "data": ROWS}, indent=1),
    "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "mark.jsonl": "\ufeff" + TEXT,
    "mark.json": "\ufeff" + json.dumps(ROWS),
    "mark.csv": "\ufeff" + comma_separated(),
    "windows.jsonl": TEXT.replace("\n", "\r\n"),
    "blank.jsonl": "\n \n" + TEXT.replace("\n", "\n\n"),
    "no end.jsonl": TEXT.rstrip("\n"),
    "a.jsonl.gz": gzip.compress(TEXT.encode()),
    "A.JSON.GZ": gzip.compress(json.dumps(ROWS).encode()),
    "a.csv.gz": gzip.compress(comma_separated().encode()),
    "a.tsv": comma_separated("\t"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_there_is_read(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # local files need no cache, and so no place for one
    content = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    config = CommonConfig(model="a/b", dataset=str(tmp_path / name))
    assert [(row.question, row.answer) for row in load_split(config, "all")] == [(row["question"], row["answer"]) for row in ROWS]


def test_a_home_folder_and_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(TEXT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("~/a.jsonl", "a.jsonl", "./a.jsonl", "."):
        assert len(load_rows(CommonConfig(model="a/b", dataset=name))[0]) == 3
    monkeypatch.delenv("HOME")
    assert len(load_rows(CommonConfig(model="a/b", dataset="a.jsonl"))[0]) == 3


def test_cells_are_as_they_were_written(tmp_path):
    """No date, no number and no missing value is guessed; every row has every column."""
    rows = [
        {"question": "2024-01-01", "answer": 10**30, "x": None},
        {"question": "q\u2028r", "answer": ["1", "2"]},
        {"question": "NA", "answer": float("nan"), "y": {"a": 1}},
        {"question": {"a": 1}, "answer": "1"},
        {"question": "emoji \U0001f600", "answer": {"a": 1}},
        {"question": ["text", {"role": "user", "content": "?"}], "answer": True},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_split(CommonConfig(model="a/b", dataset=str(tmp_path / "a.jsonl")), "all")
    assert [row.question for row in found] == ["2024-01-01", "q\u2028r", "NA", None, "emoji \U0001f600", None]
    assert [row.answer for row in found] == [str(10**30), "1, 2", None, "1", None, "True"]
    assert all(list(row.raw) == ["question", "answer", "x", "y"] for row in found)
    (tmp_path / "a.csv").write_text("question,answer,level,share\n2024-01-01,025,3,0.5\nNA,1e5,,7\n\n")
    assert read_tables(tmp_path / "a.csv")["train"] == [
        {"question": "2024-01-01", "answer": "025", "level": 3, "share": 0.5},
        {"question": "NA", "answer": "1e5", "level": None, "share": 7.0},
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        (f'{TEXT}{{"question": "a", "answer"\n', "line 4: not JSON: Expecting ':' delimiter"),
        (f"{TEXT}\n\nnull\n", "line 6: it is null, and a row is an object"),
        (f"{TEXT}3\n", "line 4: it is the value 3"),
        ('{"question": "a", "answer": "1"} {"question": "b"}\n', "line 1: not JSON: Extra data at column 34"),
        ("question,answer\n", "line 1: not JSON"),
        ("[\n1\n]", "entry 1 is the value 1"),
        ('[\n{"question": "q"},\n{"question": }\n]', "line 3: not JSON"),
    ],
)
def test_a_bad_line_is_named(content, message, tmp_path):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(UserError, match=f"bad.jsonl,? ?:?.*{message}") as error:
        read_tables(tmp_path / "bad.jsonl")
    assert "\n" not in str(error.value)


# ---- folders ----


def counts(path):
    return {split: len(rows) for split, rows in read_tables(path).items()}


def test_a_document_may_have_splits(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    assert counts(tmp_path / "a.json") == {"train": 3, "test": 1}
    with pytest.raises(UserError, match=r"a.json: it has splits of its own \(train, test\); name this file"):
        read_tables(tmp_path)


def test_a_snapshot_of_the_hub(tmp_path):
    """Links to files that have hashes for names, in a folder of the cache, beside a page and hidden files."""
    cache, revision = tmp_path / "datasets--owner--name", "0123456789abcdef" * 2 + "01234567"
    snapshot = cache / "snapshots" / revision
    for folder in (cache / "blobs", cache / "refs", snapshot / "data", snapshot / ".cache"):
        folder.mkdir(parents=True)
    for i, split in enumerate(("train", "test")):
        datasets.Dataset.from_list(ROWS[i:]).to_parquet(cache / "blobs" / f"{i:040x}")
        (snapshot / "data" / f"{split}-00000-of-00001.parquet").symlink_to(f"../../../blobs/{i:040x}")
    (snapshot / "README.md").write_text("# A page\n")
    (snapshot / ".cache" / "train.jsonl").write_text("no data")
    (cache / "refs" / "main").write_text(revision)
    assert counts(snapshot) == counts(cache) == {"train": 3, "test": 2}


def test_what_save_to_disk_writes(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    assert read_tables(tmp_path / "one") == {"train": ROWS}
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(tmp_path / "two", num_shards={"train": 2, "test": 1})
    (tmp_path / "two" / "train" / "cache-0123.arrow").write_bytes(b"what map() left there")
    assert read_tables(tmp_path / "two") == {"train": ROWS, "test": ROWS[:1]}


def folder_of(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(TEXT)
    return root


@pytest.mark.parametrize(
    "names, found",
    [
        (["math_train.jsonl", "math_test.jsonl"], {"train": 3, "test": 3}),
        (["train/0.jsonl", "train/1.jsonl", "val/0.jsonl"], {"train": 6, "validation": 3}),
        (["data/a/train.jsonl", "data/a/dev.jsonl"], {"train": 3, "validation": 3}),
        (["value.jsonl", "device.jsonl", "latest.jsonl"], {"train": 9}),
        (["train.jsonl", "old/train.jsonl"], {"train": 3}),
        (["train.jsonl", ".train-copy.jsonl"], {"train": 3}),
    ],
)
def test_the_names_in_a_folder_say_the_split(names, found, tmp_path):
    assert counts(folder_of(tmp_path, *names)) == found


def test_what_a_folder_does_not_say_is_asked_for(tmp_path, capsys):
    with pytest.raises(UserError, match=r"holds several data sets; name one of their folders: .*/main, .*/socratic"):
        read_tables(folder_of(tmp_path / "a", "main/train.jsonl", "socratic/train.jsonl"))
    assert counts(folder_of(tmp_path / "b", "train.jsonl", "extra.jsonl")) == {"train": 3}
    assert "extra.jsonl left out" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"one format, and there are train.csv, train.jsonl"):
        read_tables(folder_of(tmp_path / "c", "train.jsonl", "train.csv"))
    with pytest.raises(UserError, match=r"holds no \.jsonl"):
        read_tables(folder_of(tmp_path / "d", "notes.txt"))


# ---- other people's files ----

REFUSED = {
    "deep_row": "deep.jsonl, line 3: its brackets are nested too deeply",
    "deep_document": "deep.json: its brackets are nested too deeply",
    "deep_enough_to_load": "deep.jsonl, line 3: its brackets are nested too deeply",
    "half_character": "half.jsonl, line 2: .*half a character",
    "key_twice": "twice.jsonl, line 2: it has the key 'answer' twice",
    "long_number": "number.jsonl, line 2: .*4300 digits",
    "row_is_a_list": "list.jsonl, line 2: it is a list",
    "keys_without_end": "keys.jsonl: its rows have 100,002 different keys",
    "line_without_end": "line.jsonl, line 1: it has more than 64 MiB",
    "utf16": "utf16.jsonl is UTF-16",
    "utf16_without_mark": "utf16.jsonl, line 1: it has a zero byte",
    "latin1": "latin1.jsonl, line 2: it is not UTF-8 text",
    "escapes": "escapes.jsonl has no column question",
    "bomb_by_another_name": "bomb.jsonl is a gzip file; its name must end in .gz",
    "bomb": "bomb.jsonl.gz unpacks to more than 286 MiB",
    "gzip_cut": "cut.jsonl.gz cannot be read: Compressed file ended",
    "parquet_bomb": "bomb.parquet unpacks to more than 1024 MiB",
    "parquet_of_many_rows": "rows.parquet has more than 10,000,000 rows",
    "csv_open_quote": "quote.csv, line 1003: unexpected end",
    "csv_wide_row": "wide.csv, line 3: it has 3 cells, and there are 2 columns",
    "csv_zero_bytes": "zero.csv, line 2: it has a zero byte",
    "csv_huge_cell": "cell.csv, line 69: field larger",
    "csv_names_twice": "names.csv, line 1: two columns have the same name",
    "parquet_cut": "cut.parquet is damaged",
    "parquet_broken_footer": "footer.parquet cannot be read",
    "parquet_huge_footer": "footer.parquet is damaged",
    "parquet_broken_pages": "pages.parquet cannot be read",
    "arrow_offsets_out_of_the_file": "offsets.arrow is damaged",
    "arrow_list_of_nothing": "nothing.arrow unpacks to more than 1024 MiB",
    "pipe": "pipe.jsonl is not a plain file",
    "device": "zero.jsonl is not a plain file",
    "link_to_nothing": "train.jsonl cannot be read: No such file",
    "link_to_itself": "train.jsonl cannot be read: Too many levels",
}
HARMLESS = {"arrow_with_a_pickle": 20, "folder_with_a_script": 20, "folder_that_leads_back": 1}  # case -> rows
MAKERS = makers(hostile)


@pytest.mark.parametrize("case", sorted(MAKERS))
def test_a_hostile_file_is_one_line_and_nothing_runs(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "case").mkdir()
    config = CommonConfig(model="a/b", dataset=str(MAKERS[case](tmp_path / "case")))
    if case in HARMLESS:
        assert sum(map(len, load_rows(config))) == HARMLESS[case]
    else:
        with pytest.raises(UserError, match=REFUSED[case]) as error:
            load_rows(config)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["case"]
