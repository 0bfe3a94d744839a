import json

import pytest
from helpers import SHARED
from transformers import AutoTokenizer

from common.config import CommonConfig
from common.errors import UserError
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.registered import REGISTERED
from common.verify.answers import answers_equal, is_correct

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")


def config_for(path, **flags):
    return CommonConfig(model="some/model", dataset=str(path), max_completion_length=16, **flags)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problems_of(config, tokenizer, context=4096):
    return make_problems(load_rows(config), config, load_template(config, tokenizer), tokenizer, context)


@pytest.fixture
def rows():
    return [{"question": f"What is {i} + 1?", "answer": f"think\n#### {i + 1}"} for i in range(40)]


@needs_shared
def test_gsm8k_and_math_load_whole(tokenizer):
    """Real input: every row has a question and an extracted reference that its own solution satisfies."""
    # two MATH training solutions end in an empty \\boxed{}
    for name, train_size, test_size, unusable in (("gsm8k", 7473, 1319, []), ("math", 7500, 5000, ["math/train/5341", "math/train/5343"])):
        train, test = load_rows(config_for(SHARED / name))
        assert (len(train), len(test)) == (train_size, test_size)
        assert all(row.question for row in [*train, *test])
        assert [row.id for row in [*train, *test] if row.answer is None] == unusable
        key = "answer" if name == "gsm8k" else "solution"
        solutions = [json.loads(line)[key] for line in (SHARED / name / "test.jsonl").read_text().splitlines()]
        for row, solution in zip(test, solutions, strict=True):
            assert "####" not in row.answer and "boxed" not in row.answer
            # a solution whose answer is "3 or 2/5", each in a box of its own: it names no one answer, and MATH takes the second
            assert is_correct(solution, row.answer) == (row.id != "math/test/2703"), (row, solution)
    assert load_rows(config_for(SHARED / "gsm8k"))[0][0].answer == "72"


@needs_shared
@pytest.mark.parametrize("name", ["svamp/test.jsonl", "olympiadbench/test.jsonl", "college_math/test.jsonl", "math/math500.jsonl"])
def test_other_real_sets_load_and_hold_out_a_tenth(name, capsys):
    train, held_out = load_rows(config_for(SHARED / name))
    total = len((SHARED / name).read_text().splitlines())
    assert 0 < len(held_out) <= total / 10
    assert 0.99 * total < len(train) + len(held_out) <= total  # copies of held-out problems are in neither
    assert f"{len(held_out)} of its {total} rows are held out" in capsys.readouterr().out
    # 106 answers of College Math are sentences, or longer than any final answer
    share = sum(row.answer is None for row in [*train, *held_out]) / total
    assert (0.08 < share < 0.09) if "college" in name else share < 0.002


@needs_shared
def test_real_train_and_test_share_no_prompt(tokenizer, capsys):
    config = config_for(SHARED / "math", eval_problems=5000)
    train, held_out = problems_of(config, tokenizer)
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert "with a prompt seen before" in capsys.readouterr().out  # MATH repeats a few problems


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_local_format_gives_the_same_problems(suffix, rows, tmp_path, tokenizer):
    import pandas

    path, frame = tmp_path / f"data.{suffix}", pandas.DataFrame(rows)
    if suffix == "jsonl":
        write(path, rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        getattr(frame, f"to_{suffix}")(path, index=False)
    train, held_out = problems_of(config_for(path, prompt_template="question"), tokenizer)
    assert len(train) == 36 and len(held_out) == 4
    found = {p.prompt: p.answer for p in [*train, *held_out]}
    assert found == {f"What is {i} + 1?\n": str(i + 1) for i in range(40)}


def test_a_folder_has_splits_and_an_eval_dataset_wins(rows, tmp_path, tokenizer):
    write(tmp_path / "train.jsonl", rows[:30])
    write(tmp_path / "test.jsonl", rows[30:])
    train, held_out = load_rows(config_for(tmp_path))
    assert (len(train), len(held_out)) == (30, 10) and train[0].id.endswith("/train/0")
    other = write(tmp_path / "other.jsonl", rows[:5])
    config = config_for(tmp_path / "train.jsonl", eval_dataset=str(other))
    train, held_out = problems_of(config, tokenizer)
    assert len(held_out) == 5 and len(train) == 25  # the shared ones are taken out of training


def test_unusable_rows_are_counted_named_and_skipped(tmp_path, tokenizer, capsys):
    rows = [
        {"question": "ok?", "answer": "1"},
        {"question": "", "answer": "1"},
        {"question": "no answer?", "answer": None},
        {"question": "long " * 50, "answer": "1"},
        {"question": "ok?", "answer": "1"},
        {"question": "x", "answer": "y" * 600},
    ]
    config = config_for(
        write(tmp_path / "a.jsonl", rows),
        eval_dataset=str(write(tmp_path / "b.jsonl", [{"question": "e", "answer": "2"}])),
        prompt_template="question",
    )
    train, held_out = problems_of(config, tokenizer, context=60)
    assert [p.id for p in train] == ["a.jsonl/train/0"] and len(held_out) == 1
    out = capsys.readouterr().out
    for line in (
        "1 training rows without a usable question: a.jsonl/train/1",
        "1 training rows without a usable answer: a.jsonl/train/2",
        "1 training rows without a usable answer (more than 500 characters): a.jsonl/train/5",
        "1 training rows with a prompt seen before: a.jsonl/train/4",
        "longer than the 44 tokens that the completion leaves: a.jsonl/train/3",
    ):
        assert line in out
    with pytest.raises(UserError, match="no usable row is left to train on"):
        problems_of(config_for(write(tmp_path / "c.jsonl", rows[1:3]), eval_dataset=config.eval_dataset), tokenizer)
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        problems_of(config, tokenizer, context=16)


def test_columns_are_found_given_or_listed(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"Problem": "p", "reference": 3.0, "note": "n"}] * 20)
    assert load_rows(config_for(path))[0][0].answer == "3"
    with pytest.raises(UserError, match=r"no column answr; it has Problem, reference, note"):
        load_rows(config_for(path, answer_column="answr"))
    path = write(tmp_path / "b.jsonl", [{"text": "p", "gold": "3"}] * 20)
    with pytest.raises(UserError, match=r"no column question, problem, prompt; it has text, gold: name one with --prompt_column"):
        load_rows(config_for(path))
    assert load_rows(config_for(path, prompt_column="text", answer_column="gold"))[0][0].question == "p"


def test_data_that_is_not_there_or_empty_is_named(tmp_path):
    for name, message in [
        ("gsm9k", "did you mean gsm8k"),
        (str(tmp_path / "no.jsonl"), "no such file"),
        (str(tmp_path), "holds no"),
        ("owner/nothing-here", "could not be loaded"),
    ]:
        with pytest.raises(UserError, match=message):
            load_rows(config_for(name))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        load_rows(config_for(tmp_path / "empty.jsonl"))
    (tmp_path / "bare.jsonl").write_text("{}\n{}\n")
    with pytest.raises(UserError, match="its rows have no columns"):
        load_rows(config_for(tmp_path / "bare.jsonl"))
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "answer"\n')
    with pytest.raises(UserError, match=r"broken.jsonl, line 1: not JSON"):
        load_rows(config_for(tmp_path / "broken.jsonl"))


@pytest.mark.parametrize(
    "name, raw, question, answer",
    [
        ("svamp", {"Body": "Ann has 3.", "Question": "How many?", "Answer": "3.0"}, "Ann has 3. How many?", "3.0"),
        ("olympiadbench", {"question": "q", "final_answer": ["$4$"], "answer_type": "n"}, "q", "$4$"),
        ("math", {"problem": "p", "solution": r"so \boxed{\frac12}", "level": "1"}, "p", r"\frac12"),
        ("aime24", {"id": 1, "problem": "p", "solution": "s", "answer": "025", "url": "u"}, "p", "025"),
        (
            "dapo17k",
            {
                "prompt": [
                    {
                        "role": "user",
                        "content": "Solve the following math problem step by step. The last line of your response should be "
                        'of the form Answer: $Answer.\n\nq\n\nmore\n\nRemember to put your answer on its own line after "Answer:".',
                    }
                ],
                "reward_model": {"ground_truth": "34", "style": "rule"},
            },
            "q\n\nmore",
            "34",
        ),
    ],
)
def test_registered_sets_are_read_by_their_own_columns(name, raw, question, answer, monkeypatch):
    """The hub is out of reach here: rows of the published form stand in for it."""
    import datasets

    table = datasets.Dataset.from_list([raw] * 20)
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, subset=None: asked.append((path, subset)) or datasets.DatasetDict(train=table)
    )
    row = load_rows(config_for(name))[0][0]
    assert (row.question, row.answer) == (question, answer) and row.id == f"{name}/train/{row.id.split('/')[-1]}"
    assert asked == [(REGISTERED[name].path, REGISTERED[name].subset)]


def test_templates(tmp_path, tokenizer):
    question = "What is {x}?"
    plain = load_template(config_for("x"), tokenizer)
    assert plain.name == "plain" and question in plain.render(question) and "\\boxed{}" in plain.render(question) and plain.stop
    math_task = load_template(config_for("x", prompt_template="math_task"), tokenizer)
    assert math_task.render(question) == f"[MATH_TASK] Problem:\n{question}\n\nSolution:" and math_task.stop == ("\n\n\nProblem:",)
    (tmp_path / "mine.txt").write_text("Q: {question}\nA {brace}:")
    assert (
        load_template(config_for("x", prompt_template=str(tmp_path / "mine.txt")), tokenizer).render(question)
        == f"Q: {question}\nA {{brace}}:"
    )
    (tmp_path / "bad.txt").write_text("Q:")
    for name, message in [
        ("chat", "has no chat template"),
        (str(tmp_path / "bad.txt"), r"must hold \{question\}"),
        ("nope", "no such text file"),
    ]:
        with pytest.raises(UserError, match=message):
            load_template(config_for("x", prompt_template=name), tokenizer)


def test_chat_template_is_the_tokenizers_with_one_bos(random_models):
    tokenizer = AutoTokenizer.from_pretrained(random_models["llama"])
    tokenizer.chat_template = (
        "{% for m in messages %}<eos>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}\n{{ 'think' if enable_thinking else 'answer' }}{% endif %}"
    )
    for thinking, ending in (("auto", "answer"), ("true", "think"), ("false", "answer")):
        template = load_template(config_for("x", enable_thinking=thinking), tokenizer)
        text = template.render("How many?")
        assert template.name == "chat" and text.startswith("<eos>How many?") and text.endswith(ending) and "\\boxed{}" in text
        assert not template.add_special_tokens  # the template has written them


def test_held_out_problems_are_the_same_for_every_seed_and_order(rows, tmp_path, tokenizer):
    first = problems_of(config_for(write(tmp_path / "a.jsonl", rows), seed=0), tokenizer)[1]
    second = problems_of(config_for(write(tmp_path / "b.jsonl", rows[::-1]), seed=1), tokenizer)[1]
    assert [p.prompt for p in first] == [p.prompt for p in second] and len(first) == 4
    assert all(answers_equal(p.answer, str(int(p.prompt.split("What is ")[1].split()[0]) + 1)) for p in first)


def test_held_out_problems_are_different_ones_and_their_copies_leave_training(tmp_path, tokenizer):
    rows = [{"question": f"q{i % 50}", "answer": str(i % 50)} for i in range(2000)] + [{"question": "bad", "answer": None}] * 300
    config = config_for(write(tmp_path / "copies.jsonl", rows), eval_problems=20)
    train, held_out = problems_of(config, tokenizer)
    assert len({p.prompt for p in held_out}) == len(held_out) == 5
    assert len(train) == 45 and not {p.prompt for p in train} & {p.prompt for p in held_out}


def test_a_column_may_have_a_dot_in_its_name_or_lie_inside_another(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"p": {"t": "inside"}, "answer.text": "4"}] * 20)
    row = load_rows(config_for(path, prompt_column="p.t", answer_column="answer.text"))[0][0]
    assert (row.question, row.answer) == ("inside", "4")


def test_columns_given_for_training_need_not_exist_in_the_eval_dataset(tmp_path):
    train = write(tmp_path / "a.jsonl", [{"text": "t", "gold": "1"}] * 20)
    held_out = write(tmp_path / "b.jsonl", [{"question": "e", "answer": "2"}])
    rows = load_rows(config_for(train, eval_dataset=str(held_out), prompt_column="text", answer_column="gold"))
    assert (rows[0][0].question, rows[1][0].question) == ("t", "e")


@needs_shared
def test_a_local_folder_may_be_called_like_a_registered_set(monkeypatch):
    monkeypatch.chdir(SHARED)
    assert load_rows(config_for("svamp"))[0][0].question


def test_a_table_of_headers_alone_is_empty(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\n")
    with pytest.raises(UserError, match="is empty"):
        load_rows(config_for(tmp_path / "a.csv"))


def test_a_cache_of_the_hub_that_cannot_be_written_is_named(monkeypatch):
    import datasets

    def load(*_):
        raise PermissionError(13, "Permission denied", "/cache/datasets")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match=r"the cache of the hub cannot be written \(/cache/datasets\); name a folder"):
        load_rows(config_for("owner/name"))
