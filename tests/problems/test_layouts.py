"""Data as people have it: layouts of well-known libraries, references that cannot be right, and the rows that an evaluation scores."""

import csv
import gzip
import io
import json
from dataclasses import dataclass

import datasets
import pytest

from common.config import CommonConfig, SamplingConfig
from common.errors import UserError
from common.problems.data import hold_out, load_rows, load_split
from common.problems.references import reference_of
from common.registered import REGISTERED
from common.verify.answers import is_correct


def config_for(path, **flags):
    return CommonConfig(model="some/model", dataset=str(path), **flags)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(path, **flags):
    """(question, answer) of every row of the data, and the splits in the ids."""
    rows = load_split(config_for(path, **flags), "all")
    return [(row.question, row.answer) for row in rows], sorted({row.id.split("/")[-2] for row in rows})


def chat(text, *before):
    return [*({"role": "system", "content": one} for one in before), {"role": "user", "content": text}]


# name -> (a row with the answer one half, in some spelling; the flags that it needs)
ROWS = {
    "TRL, bare": {"prompt": "q", "solution": "1/2"},
    "TRL, bare LaTeX": {"prompt": "q", "solution": "$\\frac{1}{2}$"},
    "TRL, chat": {"prompt": chat("q"), "solution": "0.5"},
    "TRL, worked": {"prompt": "q", "solution": "Half of 1.\nSo \\boxed{\\frac12}."},
    "TRL, with its completion": {"prompt": chat("q", "Be kind."), "completion": "x", "solution": "\\dfrac{1}{2}"},
    "verl": {"data_source": "d", "prompt": chat("q"), "ability": "math", "reward_model": {"style": "rule", "ground_truth": "0.5"},
             "extra_info": {"index": 0, "split": "train", "answer": "long"}},
    "verl, capitals": {"Prompt": chat("q"), "Reward_Model": {"style": "rule", "ground_truth": "\\frac{1}{2}"}},
    "verl, a number": {"prompt": chat("q"), "reward_model": {"ground_truth": 0.5}},
    "OpenMath": {"problem": "q", "generated_solution": "so 7", "expected_answer": "0.50"},
    "expected answer beside a solution": {"question": "q", "solution": "Worked out at length\nin lines.", "expected_answer": "1/2"},
    "ground truth": {"question": "q", "ground_truth": "1/2", "Solution": "Proof."},
    "OlympiadBench": {"question": "q", "solution": ["Long."], "final_answer": ["$\\frac{1}{2}$"]},
    "GSM8K": {"question": "q", "answer": "1/2=<<1/2=0.5>>0.5\n#### 0.5"},
    "capitals": {"PROBLEM": "q", "Answer": "0.5", "LEVEL": 3},
    "answers as chats": {"prompt": chat("q"), "answer": [{"role": "assistant", "content": "\\boxed{0.5}"}]},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_columns_of_well_known_layouts_are_found(name, suffix, tmp_path):
    rows = [ROWS[name]] * 3
    path = write(tmp_path / "a.jsonl", rows)
    if suffix == "parquet":
        path = tmp_path / "a.parquet"
        datasets.Dataset.from_list(rows).to_parquet(path)
    rows, _ = found(path)
    assert len(rows) == 3 and {question for question, _ in rows} == {"q"}
    assert is_correct("\\boxed{\\frac{1}{2}}", rows[0][1]) and not is_correct("\\boxed{2}", rows[0][1])


PLAIN = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in PLAIN)
TABLE = "question\tanswer\n" + "".join(f"{row['question']}\t{row['answer']}\n" for row in PLAIN)


def comma_separated(quoting):
    file = io.StringIO()
    writer = csv.DictWriter(file, PLAIN[0], delimiter="\t", quoting=quoting)
    writer.writeheader()
    writer.writerows(PLAIN)
    return file.getvalue()


FOLDERS = {
    "hub, one split": {"data/train-00000-of-00001.jsonl": LINES, "README.md": "# Data"},
    "hub, several files": {"data/train-00000-of-00002.jsonl": LINES, "data/train-00001-of-00002.jsonl": LINES},
    "train and test": {"train/a.jsonl": LINES, "test/b.jsonl": LINES},
    "Train and TEST": {"Train/a.JSONL": LINES, "TEST/b.jsonl": LINES},
    "packed": {"train.jsonl.gz": gzip.compress(LINES.encode())},
    "PACKED": {"TRAIN.JSONL.GZ": gzip.compress(LINES.encode())},
    "converted by the hub": {"default/train/0000.jsonl": LINES, "default/test/0000.jsonl": LINES},
    "tsv": {"a.tsv": TABLE},
    "tsv, all quoted": {"a.tsv": comma_separated(csv.QUOTE_ALL)},
    "tsv, packed": {"a.tsv.gz": gzip.compress(TABLE.encode())},
    "tsv with a blank before a name": {"a.tsv": TABLE.replace("\tanswer", "\t answer")},
    "a document": {"a.json": json.dumps({"train": PLAIN})},
    "a document of two": {"a.json": json.dumps({"train": PLAIN, "test": PLAIN[:1]})},
    "a document in capitals": {"a.json": json.dumps({"Train": PLAIN, "Valid": PLAIN[:1]}, indent=2)},
    "a document of columns": {"a.json": json.dumps({"train": {name: [row[name] for row in PLAIN] for name in PLAIN[0]}})},
    "a document on one line": {"a.jsonl": json.dumps({"train": PLAIN, "version": 1})},
    "a document of examples": {"a.json": json.dumps({"version": "1", "examples": PLAIN})},
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_files_and_folders_as_people_have_them(name, tmp_path):
    for file, content in FOLDERS[name].items():
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    file = next(iter(FOLDERS[name]))
    rows, splits = found(tmp_path / file if "document" in name else tmp_path)
    assert rows[:4] == [(row["question"], row["answer"]) for row in PLAIN]
    assert ("test" in splits) == ("test" in name.lower() or name in ("a document of two", "converted by the hub"))
    assert ("validation" in splits) == ("capitals" in name)
    assert len(rows) == {"hub, several files": 8, "a document of two": 5, "a document in capitals": 5}.get(
        name, 8 if "test" in splits else 4
    )


def test_quotes_of_a_table_without_quoting_are_characters(tmp_path):
    (tmp_path / "a.tsv").write_text('question\tanswer\n"Two" and "three" make?\t5\nA 6" pipe and a 7" one?\t13\n')
    assert found(tmp_path / "a.tsv")[0] == [('"Two" and "three" make?', "5"), ('A 6" pipe and a 7" one?', "13")]
    (tmp_path / "b.tsv").write_text("question\tanswer\na\t1\t2\n")
    with pytest.raises(UserError, match="line 2: it has 3 cells, and there are 2 columns"):
        found(tmp_path / "b.tsv")


def test_a_row_that_is_a_chat_alone_is_no_list_of_rows(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"prompt": chat("q"), "answer": "4"}))
    assert found(tmp_path / "a.json")[0] == [("q", "4")]


def test_what_save_to_disk_wrote_of_another_library_layout(tmp_path):
    table = datasets.Dataset.from_list([ROWS["verl"]] * 3)
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(tmp_path / "both")
    assert found(tmp_path / "both") == ([("q", "0.5")] * 4, ["test", "train"])


@pytest.mark.parametrize("cells", [{}, {"answer": None}, {"answer": {"a": 1}}, {"answer": "Proof."}, {"solution": "Long.\nLonger."}])
def test_with_a_reward_no_answer_is_needed_and_none_is_judged(cells, tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"prompt": f"{i}?", **cells} for i in range(20)])
    train, held_out = load_rows(config_for(path, reward="mine.py:f"))
    assert (len(train), len(held_out)) == (18, 2) and all(row.answer is not None for row in [*train, *held_out])


# ---- references ----


@pytest.mark.parametrize(
    "text, answer",
    [
        ("42", "42"),
        ("so it is #### 42", "42"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
        ("no solution", "no solution"),
        ("\\text{yes}", "\\text{yes}"),
        ("x = 3 or x = 4", "x = 3 or x = 4"),
        ("3 cubic centimeters per square meter", "3 cubic centimeters per square meter"),
        ("30 square feet per minute.", "30 square feet per minute."),
        ("\\emptyset", "\\emptyset"),
        ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}"),
        ("Proof.", None),
        ("**notfound**", None),
        ("\\text{Not found}", None),
        ("\\boxed{\\text{proof}}", None),
        ("NaN", None),
        ("N/A", None),
        ("None", None),
        ("$$", None),
        ("The function rises because its derivative is positive everywhere on the line.", None),
        ("It does not change the determinant.", None),
        ("因为函数在整个实数轴上单调递增,所以方程只有一个实数根,证毕", None),
        ("x" * 501, None),
    ],
)
def test_what_can_be_a_reference(text, answer):
    found, why = reference_of(text, worked=False)
    assert found == answer and bool(why) == (answer is None)
    if answer:
        assert is_correct(f"\\boxed{{{answer}}}", answer)


def test_what_the_checker_finds_unlike_itself_is_no_reference(monkeypatch):
    monkeypatch.setattr("common.problems.references.answers_equal", lambda a, b: "odd" not in a)
    assert reference_of("an odd one", worked=False) == (None, "nothing that the checker can compare")
    assert reference_of("another one", worked=False)[0] == "another one"


def test_rows_without_a_right_reference_are_counted_and_named_and_not_held_out(tmp_path):
    rows = [{"question": f"{i}?", "answer": "proof" if i < 30 else {"a": i} if i < 60 else str(i)} for i in range(100)]
    train, held_out = load_rows(config_for(write(tmp_path / "a.jsonl", rows)))
    assert len(held_out) == 4 and all(row.answer for row in held_out)
    assert sorted(row.fault for row in train if row.fault) == ["a word that stands for no answer"] * 30 + ["an object with keys"] * 30


# ---- what an evaluation scores ----


@dataclass
class Evaluation(SamplingConfig):
    adapter: str | None = None


def evaluated(path, split="test", **flags):
    return [row.question for row in load_split(Evaluation(model="some/model", dataset=str(path), **flags), split)]


def test_an_evaluation_scores_what_training_holds_out(tmp_path, capsys):
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(50)] * 2
    path = write(tmp_path / "mine.jsonl", rows)
    train, held_out = load_rows(config_for(path))
    assert evaluated(path) == [row.question for row in held_out] and len(held_out) == 5
    assert "the 5 of its 100 rows that training holds out are evaluated. --split all evaluates them all" in capsys.readouterr().out
    assert not {row.question for row in train} & set(evaluated(path))
    assert evaluated(path, "all") == evaluated(path, "train") == [row["question"] for row in rows]
    with pytest.raises(UserError, match=r"--split dev: .* has train; name one of them, or all"):
        evaluated(path, "dev")
    with pytest.raises(UserError, match="a tenth of its 4 rows is no row: add --split all"):
        evaluated(write(tmp_path / "few.jsonl", rows[:4]))


def test_an_evaluation_of_an_adapter_takes_the_number_of_its_run(tmp_path):
    path = write(tmp_path / "my_test.jsonl", [{"question": f"{i}?", "answer": str(i)} for i in range(100)])
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"flags": {"dataset": str(path), "eval_problems": 3}}))
    assert evaluated(path, adapter=str(run / "checkpoint-1")) == [row.question for row in load_rows(config_for(path, eval_problems=3))[1]]
    assert len(evaluated(path)) == 100  # it is called a test, and nothing says that it was trained on


def test_a_test_split_comes_first_then_a_validation_split_and_all_is_all(tmp_path, capsys):
    for name, count in (("train", 20), ("validation", 5), ("test", 3)):
        write(tmp_path / f"{name}.jsonl", [{"question": f"{name} {i}", "answer": "1"} for i in range(count)])
    assert len(evaluated(tmp_path)) == 3 and len(evaluated(tmp_path, "all")) == 28 and len(evaluated(tmp_path, "train")) == 20
    (tmp_path / "test.jsonl").unlink()
    assert len(evaluated(tmp_path)) == 5 and "no split test; its split validation is evaluated" in capsys.readouterr().out
    assert [row.question for row in load_rows(config_for(tmp_path))[1]] == evaluated(tmp_path)


@pytest.mark.parametrize("name", [name for name, source in REGISTERED.items() if source.benchmark])
def test_a_benchmark_is_evaluated_whole(name, monkeypatch):
    table = datasets.Dataset.from_list([{"problem": f"{i}?", "final_answer": "1", "answer": "1"} for i in range(30)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=table))
    assert len(evaluated(name)) == 30


def test_holding_out_counts_a_question_once():
    rows = load_rows(CommonConfig())[0][:40]
    train, held_out = hold_out([*rows, *rows], 200)
    assert (len(train), len(held_out)) == (72, 4) and hold_out(rows, 2)[1] == held_out[:2]
