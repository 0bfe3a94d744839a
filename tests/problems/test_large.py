"""Large data sets: prompts are made when a step wants them, and the problems are those that a small data set would give."""

import gc
import json
import random
import re
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from helpers import completions, run, save_random_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from common.config import CommonConfig, SamplingConfig
from common.errors import UserError
from common.problems import data, rows, usable
from common.problems.choose import ProblemSampler
from common.problems.data import load_rows, load_split
from common.problems.large import Bound, LargeProblems
from common.problems.prompts import load_template, make_eval_problems, make_problems
from common.problems.rows import LargeRows, Part, Row, hold_out
from common.problems.tables import ArrowRows, read_tables
from common.records import prompts_of
from common.run.resume import IDENTITY

ROWS = 30_000
TRAIN = "--prompt_template question --problems_per_step 4 --num_generations 2 --max_completion_length 8 --max_steps 2 --eval_problems 8"
TRAIN += " --eval_steps 2 --save_steps 1 --sampling lilo --report_to none --num_minibatches 1"


def row_of(i, draw):
    """A row of every kind: usable, asked before, in other letters, too long, without an answer, or with one that cannot be right."""
    question = f"Eva has {draw.randint(2, 30)} figs and {i} {draw.choice(['plums', 'Äpfel', '苹果', 'pears'])}. How many?"
    if i % 97 == 5:
        question = "Eva has 7 figs. How many?" if i % 2 else "She eats 8. How many?"
    if i % 1009 == 7:
        question += " She eats 8." * 400
    answer = "proof" if i % 501 == 3 else None if i % 703 == 4 else str(i) if i % 3 else f"\\frac{{{i + 1}}}{{7}}"
    return {"question": question, "answer": answer, "number": i}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    draw, path = random.Random(1), tmp_path_factory.mktemp("large") / "rows.jsonl"
    path.write_text("".join(json.dumps(row_of(i, draw)) + "\n" for i in range(ROWS)))
    return path


def config_of(file, kind=CommonConfig, **flags):
    return kind(dataset=str(file), prompt_template="question", max_completion_length=100, **flags)


def made(file, tokenizer, monkeypatch, large, capsys, size=rows.LARGE, **flags):
    """(training problems, held-out problems, what the console says) as a large or as a small data set. size: LARGE."""
    with monkeypatch.context() as patch:
        for module in (data, usable):
            patch.setattr(module, "LARGE", size if large else 10**9)
        config = config_of(file, **flags)
        found = load_rows(config)
        assert isinstance(found[0], LargeRows) == large
        return *make_problems(found, config, load_template(config, tokenizer), tokenizer, 1024), capsys.readouterr().out


def whole(problems):
    return [(p, p.question, p.row) for p in problems]


def test_a_large_data_set_gives_the_same_problems(file, tokenizer, monkeypatch, capsys):
    train, held_out, said = made(file, tokenizer, monkeypatch, True, capsys)
    eager, eager_held_out, eager_said = made(file, tokenizer, monkeypatch, False, capsys)
    assert isinstance(train, LargeProblems) and isinstance(eager, list) and isinstance(held_out, list)
    assert whole(held_out) == whole(eager_held_out) and len(held_out) == 200
    assert len(train) == len(eager) > ROWS - 700 and whole(train) == whole(eager)
    for reason in ("without a usable answer (a word that stands for no answer)", "without a usable answer:", "longer than the 924 tokens"):
        lines = [next(line for line in text.splitlines() if reason in line) for text in (said, eager_said)]
        assert lines[0] == lines[1], reason
    repeated = [next(line for line in text.splitlines() if " seen before" in line) for text in (said, eager_said)]
    assert repeated[0] == repeated[1].replace("with a prompt seen", "with a question seen")
    assert "30,000" not in eager_said and "training rows ask" in said


def test_prompts_are_made_when_they_are_wanted(file, tokenizer, monkeypatch, capsys):
    rendered = []
    real = usable.Template.render_all
    monkeypatch.setattr(usable.Template, "render_all", lambda self, asked: rendered.append(len(asked)) or real(self, asked))
    train, _, _ = made(file, tokenizer, monkeypatch, True, capsys)
    assert sum(rendered) < 3000
    rendered.clear()
    some = train.pick([3, 29_000, 3])
    assert sum(rendered) == 3 and some[0] == some[2] == train[3] and some[1] == train[29_000] == train[29_000 - len(train)]
    assert train[5:8] == train.pick([5, 6, 7]) and train.number_of(train[17].id) == 17 and train.ids()[17] == train[17].id
    assert train.number_of("rows.jsonl/train/999999") is None and train.number_of("rows.jsonl/test/1") is None
    # what an engine and the trial of memory are told holds for all prompts
    both = prompts_of(train + some)
    assert len(both) < 2000 and both.longest >= max(len(problem.prompt_ids) for problem in train)
    assert min(map(len, both)) == min(len(problem.prompt_ids) for problem in train)


@pytest.mark.parametrize("choice, sampling", [("epochs", "uniform"), ("memory", "lilo")])
def test_the_steps_choose_the_same_problems(file, tokenizer, monkeypatch, capsys, choice, sampling):
    chosen = []
    for large in (True, False):
        train, _, _ = made(file, tokenizer, monkeypatch, large, capsys)
        config = CommonConfig(problems_per_step=4, num_generations=2, candidate_choice=choice, sampling=sampling)
        sampler = ProblemSampler(train, config, None, None, None)
        sampler.step, steps = 1, []
        for sampler.step in range(1, 4):
            sampler.tried = []
            groups = sampler._candidates(2)
            for group in groups:
                group.scores = [1.0, float(group.seed % 2)]
            sampler.memory.record(groups, sampler.step)
            steps.append([(group.problem, group.seed) for group in groups])
        chosen.append(steps)
    assert chosen[0] == chosen[1]


def small_rows(draw):
    count = draw.randint(1, 60)
    table = [{"question": draw.choice("abcdefghijklmnopqrstuvwxyz"), "answer": draw.choice(["1", "2", None])} for _ in range(count)]
    return [Row(f"x/train/{i}", raw["question"], raw["answer"], table=table, place=i) for i, raw in enumerate(table)]


def test_the_same_rows_are_held_out():
    draw = random.Random(3)
    for _ in range(200):
        some, most = small_rows(draw), draw.randint(1, 4)
        large = LargeRows.read(Part("x/train", some[0].table, lambda raw: (raw["question"], raw["answer"], "", ())), False)
        train, held_out = hold_out(some, most)
        assert (list(hold_out(large, most)[0]), hold_out(large, most)[1]) == (train, held_out)


def test_rows_are_in_the_order_of_both_halves_of_the_hash():
    draw = random.Random(4)
    for most in (3, 2**64):  # with 3 many first halves are the same
        facts = np.zeros(500, rows.FACTS)
        pairs = [(draw.randrange(most), draw.randrange(3)) for _ in facts]
        facts["high"], facts["low"] = np.array(pairs, dtype="u8").T
        assert rows.in_order_of_keys(facts).tolist() == sorted(range(500), key=pairs.__getitem__)
        assert rows.repeats(facts).tolist() == [pair in pairs[:i] for i, pair in enumerate(pairs)]


def test_the_search_for_garbage_is_as_before_the_rows_are_read(file):
    for switch in (gc.disable, gc.enable):
        switch()
        before = gc.isenabled()
        load_rows(config_of(file))
        assert gc.isenabled() == before
    with pytest.raises(UserError):
        load_rows(config_of(file, prompt_column="none"))
    assert gc.isenabled()


def test_a_table_that_repeats_few_questions_is_a_small_data_set(file, tokenizer, monkeypatch, capsys, tmp_path):
    copies = tmp_path / "copies.jsonl"
    copies.write_text("".join(file.read_text().splitlines(keepends=True)[:100] * 250))
    train, held_out, said = made(copies, tokenizer, monkeypatch, True, capsys, eval_problems=5)
    eager, eager_held_out, _ = made(copies, tokenizer, monkeypatch, False, capsys, eval_problems=5)
    assert isinstance(train, list) and whole(train) == whole(eager) and whole(held_out) == whole(eager_held_out)
    assert f"{len(rows.in_fixed_order(load_rows(config_of(copies, eval_problems=5))[0])):,} training rows ask " in said


def test_a_large_set_to_hold_out_from_a_small_one(file, tokenizer, monkeypatch, capsys, tmp_path):
    small = tmp_path / "small.jsonl"
    small.write_text("".join(file.read_text().splitlines(keepends=True)[:50]) + '{"question": "Only here. How many?", "answer": "1"}\n')
    train, held_out, _ = made(small, tokenizer, monkeypatch, True, capsys, eval_dataset=str(file))
    eager, eager_held_out, _ = made(small, tokenizer, monkeypatch, False, capsys, eval_dataset=str(file))
    assert whole(train) == whole(eager) and [p.question for p in train] == ["Only here. How many?"]
    assert whole(held_out) == whole(eager_held_out)


def test_chats_that_differ_in_what_the_template_drops_count_once(file, tokenizer, monkeypatch, capsys, tmp_path):
    chats = tmp_path / "chats.jsonl"
    turns = [[{"role": "system", "content": f"Be {i % 40}."}, {"role": "user", "content": f"{i // 2} + 1 ?"}] for i in range(ROWS)]
    chats.write_text("".join(json.dumps({"prompt": turn, "answer": "1"}) + "\n" for turn in turns))
    train, held_out, said = made(chats, tokenizer, monkeypatch, True, capsys)
    eager, eager_held_out, _ = made(chats, tokenizer, monkeypatch, False, capsys)
    assert train[:] == eager and held_out == eager_held_out and "lack system messages" in said


@pytest.mark.parametrize("count", [1, 50])
def test_an_evaluation_takes_the_same_problems(file, tokenizer, monkeypatch, capsys, count):
    found = []
    for large in (True, False):
        monkeypatch.setattr(data, "LARGE", rows.LARGE if large else 10**9)
        config = config_of(file, SamplingConfig)
        split = load_split(config, "all")
        assert isinstance(split, LargeRows) == large
        found.append(whole(make_eval_problems(split, config, load_template(config, tokenizer), tokenizer, 1024, count)))
    assert found[0] == found[1] and len(found[0]) == count


@pytest.mark.parametrize("other", [{}, {"more": 1}])
def test_a_large_table_keeps_its_columns(file, tmp_path, other):
    """A folder of two .parquet files. With other columns in the second one, its rows are dicts."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    halves = lines, [{**row, **other} for row in reversed(lines)]
    for name, half in zip("ab", halves, strict=True):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(half), tmp_path / f"train-{name}.parquet")
    table = read_tables(tmp_path)["train"]
    assert isinstance(table, list if other else ArrowRows) and len(table) == 2 * ROWS
    expected = [{**dict.fromkeys(other), **row} for half in halves for row in half]
    assert list(table) == expected and all(table[i] == expected[i] for i in (0, 63, 64, ROWS - 1, ROWS, -1, 2 * ROWS - 1))
    with pytest.raises(IndexError):
        table[2 * ROWS]


def tokenizer_of(kind):
    if kind == "bytes":
        built = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
        built.pre_tokenizer, built.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    else:
        pieces = {"<unk>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
        built = Tokenizer(models.BPE(vocab=pieces, merges=[], byte_fallback=True, unk_token="<unk>"))
        built.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return PreTrainedTokenizerFast(tokenizer_object=built)


@pytest.mark.parametrize("kind", ["bytes", "pieces without words"])
def test_no_prompt_has_more_tokens_than_the_bound(kind):
    built, draw = tokenizer_of(kind), random.Random(5)
    letters = ["a", " ", "7", "é", "苹", "\ufdfa", "\u1f82", "\u0390", "😀"]  # the fourth to last ones grow most in normal forms
    texts = ["".join(draw.choices(letters, k=draw.randint(1, 60))) for _ in range(300)] + ["\ufdfa" * 50, " " * 50 + "a", "a" * 100]
    large = LargeRows.read(Part("x", [{"question": text} for text in texts], lambda raw: (raw["question"], "1", "", ())), False)
    for template in (lambda text: f"Problem: {text}\nSolution:", lambda text: f"{text} Again, {text}"):
        counts = [len(ids) for ids in built([template(text) for text in texts])["input_ids"]]
        assert (np.array(counts) <= Bound(template, built).tokens(large.facts)).all()
    if kind == "bytes":  # and it is no larger than it must be
        assert Bound(lambda text: text, built).tokens(large.facts)[-1] <= 100 + 3


def test_a_tokenizer_that_makes_more_of_a_text_is_asked_for_every_prompt(file, tokenizer, monkeypatch, capsys, tmp_path):
    some = tmp_path / "some.jsonl"
    some.write_text("".join(file.read_text().splitlines(keepends=True)[:1500]))
    wide = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), eos_token="<eos>")
    wide.backend_tokenizer.normalizer = normalizers.Replace("plums", "figs " * 1000)
    train, _, said = made(some, wide, monkeypatch, True, capsys, size=500, eval_problems=20)
    eager, _, eager_said = made(some, wide, monkeypatch, False, capsys, eval_problems=20)
    line = next(line for line in said.splitlines() if "longer than" in line)
    assert line in eager_said and [*train] == eager and 900 < len(eager) < 1200


# ---- runs -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trained(file, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    save_random_model(folder / "model", "llama", tokenizer, tie_word_embeddings=True)
    with pytest.MonkeyPatch.context() as patch:
        assert go(folder, folder / "run", file, monkeypatch=patch) == 0
    return folder / "run"


def go(home, folder, file, *flags, monkeypatch):
    return run("train_grpo", folder, *TRAIN.split(), "--model", str(home / "model"), "--dataset", str(file), *flags,
               monkeypatch=monkeypatch, quick=[])


def resumed(begun, folder, file, trained, *, monkeypatch):
    shutil.copytree(begun, folder)
    return go(trained.parent, folder, file, "--resume_from_checkpoint", str(folder / "checkpoint-1"), monkeypatch=monkeypatch)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(file, trained, tmp_path, monkeypatch):
    assert (trained / "checkpoint-1" / IDENTITY).stat().st_size < 10_000
    assert resumed(trained, tmp_path / "again", file, trained, monkeypatch=monkeypatch) == 0
    assert completions(tmp_path / "again") == completions(trained)


@pytest.mark.parametrize("change", ["a reference", "a question", "a row less", "far fewer rows"])
def test_other_data_is_refused(file, trained, tmp_path, monkeypatch, change):
    lines = file.read_text().splitlines()
    line = json.loads(lines[20_000])
    other = {"a reference": {**line, "answer": "12345"}, "a question": {**line, "question": "Another one?"}}.get(change)
    lines = lines[:100] if change == "far fewer rows" else lines[:20_000] + ([json.dumps(other)] if other else []) + lines[20_001:]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    error = resumed(trained, tmp_path / "again", tmp_path / "rows.jsonl", trained, monkeypatch=monkeypatch)
    assert "so that the data differs from that of the resumed run" in error


def test_a_checkpoint_with_a_fingerprint_of_every_problem_is_resumed(file, trained, tmp_path, monkeypatch):
    for module in (data, usable):
        monkeypatch.setattr(module, "LARGE", 10**9)
    assert go(trained.parent, tmp_path / "before", file, monkeypatch=monkeypatch) == 0
    assert completions(tmp_path / "before") == completions(trained)
    for module in (data, usable):
        monkeypatch.setattr(module, "LARGE", rows.LARGE)
    checked = json.loads((tmp_path / "before" / "checkpoint-1" / IDENTITY).read_text())
    assert "train" in checked and "train_blocks" not in checked
    assert resumed(tmp_path / "before", tmp_path / "again", file, trained, monkeypatch=monkeypatch) == 0
    assert completions(tmp_path / "again") == completions(trained)
    record = json.loads((tmp_path / "again" / "checkpoint-2" / IDENTITY).read_text())
    assert "train" not in record and record["train_blocks"]["problems"] > 29_000
    lines = file.read_text().splitlines(keepends=True)
    lines[100] = lines[100].replace('"answer": "', '"answer": "7')
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    error = resumed(tmp_path / "before", tmp_path / "other", tmp_path / "rows.jsonl", trained, monkeypatch=monkeypatch)
    assert re.search(r"number \d+ \(rows.jsonl/train/100\) is another", error)
