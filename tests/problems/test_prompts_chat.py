"""--system_prompt, questions in chat format, and rows whose answers only a custom reward can use."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from common.config import CommonConfig, SamplingConfig
from common.errors import UserError
from common.launch import parse_config
from common.problems.data import load_rows, load_split
from common.problems.prompts import load_template, make_eval_problems, make_problems
from common.records import Completion, make_batch
from common.run.completion_rows import completion_rows
from common.run.model_card import command
from common.tiny.model import build_tokenizer
from common.tiny.task import Arithmetic

WRITE_ALL = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant]"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + WRITE_ALL
DROP_SYSTEM = WRITE_ALL.replace("messages %}", "messages if m['role'] != 'system' %}")
ASKED = "Reason step by step, and put your final answer within \\boxed{}."


def tokenizer_with(template):
    tokenizer = build_tokenizer(Arithmetic())
    tokenizer.chat_template = template
    return tokenizer


def config_for(path="x", **flags):
    return CommonConfig(model="some/model", dataset=str(path), max_completion_length=16, eval_steps=0, **flags)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problems_of(config, tokenizer):
    train, held_out = make_problems(load_rows(config), config, load_template(config, tokenizer), tokenizer, 4096)
    return sorted(train + held_out, key=lambda problem: problem.id)


# ---- the system prompt ----


def test_the_system_prompt_replaces_our_request(tmp_path):
    tokenizer = tokenizer_with(WRITE_ALL)
    (tmp_path / "system.txt").write_text("Be brief.\nBe right.\n")
    assert load_template(config_for(), tokenizer).render("1+1?") == f"[user] 1+1?\n\n{ASKED}\n[assistant]"
    for given, text in [("Be kind.", "Be kind."), (str(tmp_path / "system.txt"), "Be brief.\nBe right."), ("a" * 5000, "a" * 5000)]:
        template = load_template(config_for(system_prompt=given), tokenizer)
        assert template.render("1+1?") == f"[system] {text}\n[user] 1+1?\n[assistant]"


@pytest.mark.parametrize(
    "template, flags, message",
    [
        (None, {}, "--system_prompt needs --prompt_template chat, and this run has plain"),
        (WRITE_ALL, {"prompt_template": "math_task"}, "--system_prompt needs --prompt_template chat, and this run has math_task"),
        (NO_SYSTEM, {}, "some/model cannot write the messages system, user: System role not supported; .*without --system_prompt"),
        (DROP_SYSTEM, {}, "the chat template of some/model has no place for a system message"),
        (WRITE_ALL, {"system_prompt": "nowhere/system.txt"}, "--system_prompt nowhere/system.txt: there is no such file"),
    ],
)
def test_a_system_prompt_that_cannot_work_is_one_line(template, flags, message):
    with pytest.raises(UserError, match=message) as error:
        load_template(config_for(**{"system_prompt": "Be kind.", **flags}), tokenizer_with(template))
    assert "\n" not in str(error.value)


# ---- the user message ----


def test_the_user_message_is_the_question_alone_or_a_text_of_the_user(tmp_path):
    tokenizer = tokenizer_with(WRITE_ALL)
    (tmp_path / "user.txt").write_text("Q: {question}\n\nShow {x} and \\nabla.\n")
    cases = [
        ("chat:{question}", "1+1?"),
        ("chat:{question} Answer with the number only.", "1+1? Answer with the number only."),
        ("chat:{question}, once more: {question}", "1+1?, once more: 1+1?"),
        (f"chat:{tmp_path / 'user.txt'}", "Q: 1+1?\n\nShow {x} and \\nabla."),
    ]
    for given, text in cases:
        template = load_template(config_for(prompt_template=given), tokenizer)
        assert template.render("1+1?") == f"[user] {text}\n[assistant]" and not template.add_special_tokens
        with_system = load_template(config_for(prompt_template=given, system_prompt="Be kind."), tokenizer)
        assert with_system.render("1+1?") == f"[system] Be kind.\n[user] {text}\n[assistant]"


def test_a_question_that_holds_the_place_of_the_question_stays_as_it_is():
    template = load_template(config_for(prompt_template="chat:{question}!"), tokenizer_with(WRITE_ALL))
    assert template.render("What is {question}?") == "[user] What is {question}?!\n[assistant]"


@pytest.mark.parametrize(
    "template, given, message",
    [
        (WRITE_ALL, "chat:", "must hold {question}.*'chat:{question}' is the question alone"),
        (WRITE_ALL, "chat:Answer with the number only.", "must hold {question}"),
        (WRITE_ALL, "chat:{Question}", "must hold {question}"),
        (WRITE_ALL, "chat:nowhere/user.txt", "--prompt_template chat:nowhere/user.txt: there is no such file"),
        (None, "chat:{question}", "the tokenizer of some/model has no chat template"),
        (WRITE_ALL, "chta:{question}", "not auto, chat, chat:TEXT, plain, math_task or question"),
    ],
)
def test_a_user_message_that_cannot_work_is_one_line(template, given, message):
    with pytest.raises(UserError, match=message) as error:
        load_template(config_for(prompt_template=given), tokenizer_with(template))
    assert "\n" not in str(error.value)


def test_a_file_without_the_question_is_one_line(tmp_path):
    (tmp_path / "user.txt").write_text("Answer with the number only.")
    with pytest.raises(UserError, match=r"user\.txt: the user message must hold {question}"):
        load_template(config_for(prompt_template=f"chat:{tmp_path / 'user.txt'}"), tokenizer_with(WRITE_ALL))


def test_the_user_message_is_typed_with_newlines_and_the_model_card_repeats_it(tmp_path):
    (tmp_path / "user.txt").write_text("{question}")
    flags = ["--model", "a/b", "--dataset", "c/d", "--prompt_template"]
    cases = [("chat:{question}\\n\\n'Quote' it.", "chat:{question}\n\n'Quote' it."), (f"chat:{tmp_path / 'user.txt'}", "chat:user.txt")]
    for typed, text in cases:
        config = parse_config(CommonConfig, [*flags, typed], "train_x")
        words = shlex.split(command(config, Path("train_x.py")).replace("\\\n", ""))
        again = parse_config(CommonConfig, words[2:], "train_x")
        assert again.prompt_template == text


def test_a_chat_with_a_user_message_keeps_its_turns_and_says_what_it_lacks(tmp_path, capsys):
    flags = {"prompt_template": "chat:{question} Be brief."}
    first = problems_of(config_for(chats(tmp_path), **flags), tokenizer_with(WRITE_ALL))[0]
    assert first.prompt == "[system] You are a clerk.\n[user] Hello\n[assistant] Hi\n[user] 1+1? Be brief.\n[assistant]"
    assert first.question == "1+1?" and "lack" not in capsys.readouterr().out
    problems_of(config_for(chats(tmp_path), **flags), tokenizer_with(DROP_SYSTEM))
    assert "(--system_prompt or the chat template dropped them)" in capsys.readouterr().out


def test_evaluation_has_the_same_prompts(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"question": "1+1?", "answer": "2"}])
    config = SamplingConfig(model="some/model", dataset=str(path), max_completion_length=16, system_prompt="Be kind.")
    tokenizer = tokenizer_with(WRITE_ALL)
    problems = make_eval_problems(load_split(config, "all"), config, load_template(config, tokenizer), tokenizer, 4096, 0)
    assert [problem.prompt for problem in problems] == ["[system] Be kind.\n[user] 1+1?\n[assistant]"]


def test_the_model_card_repeats_the_system_prompt(monkeypatch):
    for text in ("two\nlines, 'quoted'", "long " * 100):
        config = parse_config(CommonConfig, ["--model", "a/b", "--dataset", "c/d", "--system_prompt", text], "train_x")
        words = shlex.split(command(config, Path("train_x.py")).replace("\\\n", ""))
        assert words[words.index("--system_prompt") + 1] == text


# ---- questions in chat format ----

CHAT = [
    {"role": "system", "content": "You are a clerk."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "1+1?"},
]


def chats(tmp_path, *more):
    rows = [{"prompt": CHAT, "answer": "2"}, {"prompt": [{"role": "user", "content": "2+2?"}], "answer": "4"}, *more]
    return write(tmp_path / "chats.jsonl", rows)


def test_a_chat_keeps_its_system_message_and_its_turns(tmp_path, capsys):
    first, second = problems_of(config_for(chats(tmp_path)), tokenizer_with(WRITE_ALL))
    assert first.prompt == f"[system] You are a clerk.\n[user] Hello\n[assistant] Hi\n[user] 1+1?\n\n{ASKED}\n[assistant]"
    assert second.prompt == f"[user] 2+2?\n\n{ASKED}\n[assistant]"
    assert (first.question, first.row["prompt"]) == ("1+1?", CHAT)
    assert "lack" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "template, flags, prompt, why",
    [
        (None, {}, f"Problem: 1+1?\n{ASKED}\nSolution:", "--prompt_template plain writes the last message only"),
        (WRITE_ALL, {"prompt_template": "question"}, "1+1?\n", "--prompt_template question writes the last message only"),
        (
            WRITE_ALL,
            {"system_prompt": "Be kind."},
            "[system] Be kind.\n[user] Hello\n[assistant] Hi\n[user] 1+1?\n[assistant]",
            "--system_prompt or the chat template dropped them",
        ),
        (DROP_SYSTEM, {}, f"[user] Hello\n[assistant] Hi\n[user] 1+1?\n\n{ASKED}\n[assistant]", "or the chat template dropped them"),
    ],
)
def test_what_a_prompt_lacks_of_its_chat_is_said(tmp_path, capsys, template, flags, prompt, why):
    assert problems_of(config_for(chats(tmp_path), **flags), tokenizer_with(template))[0].prompt == prompt
    shown = capsys.readouterr().out
    assert "the prompts of 1 training rows lack system messages or earlier turns" in shown and why in shown
    assert "chats.jsonl/train/0" in shown and "chats.jsonl/train/1" not in shown


def test_a_chat_that_the_template_refuses_is_one_line(tmp_path):
    with pytest.raises(UserError, match="cannot write the messages system, user, assistant, user: System role not supported"):
        problems_of(config_for(chats(tmp_path)), tokenizer_with(NO_SYSTEM))


def test_a_chat_that_ends_with_an_answer_asks_nothing(tmp_path, capsys):
    answered = {"prompt": [{"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "6"}], "answer": "6"}
    assert len(problems_of(config_for(chats(tmp_path, answered)), tokenizer_with(WRITE_ALL))) == 2
    assert "left out 1 training rows without a usable question: chats.jsonl/train/2" in capsys.readouterr().out


# ---- rows for a custom reward ----


def test_with_a_reward_no_row_needs_an_answer_and_the_row_is_whole(tmp_path, capsys):
    tests = ["assert f(1) == 2"] * 100
    rows = [
        {"question": "a?", "answer": tests, "level": 3},
        {"question": "b?", "answer": None, "level": None},
        {"question": "c?", "answer": ["#### 7"], "level": 4},
    ]
    path, tokenizer = write(tmp_path / "data.jsonl", rows), build_tokenizer(Arithmetic())
    assert [problem.answer for problem in problems_of(config_for(path), tokenizer)] == ["7"]
    told = capsys.readouterr().out
    assert "left out 1 training rows without a usable answer (more than 500 characters): data.jsonl/train/0" in told
    assert "left out 1 training rows without a usable answer: data.jsonl/train/1" in told
    problems = problems_of(config_for(path, reward="mine.py:f"), tokenizer)
    assert [problem.answer for problem in problems] == [", ".join(tests), "", "7"] and "left out" not in capsys.readouterr().out
    assert [problem.row for problem in problems] == rows
    batch = make_batch(problems[:1], [[Completion([1], [0.0], "stop", "x")]])
    row = completion_rows(1, batch, torch.zeros(1), torch.zeros(1), {})[0]
    assert len(row["answer"]) == 500 and problems[0].answer.startswith(row["answer"])  # completions.jsonl has one of these a completion


def test_with_a_reward_the_data_may_have_no_answer_column(tmp_path):
    path, tokenizer = write(tmp_path / "data.jsonl", [{"question": f"{i}?", "x": i} for i in range(20)]), build_tokenizer(Arithmetic())
    with pytest.raises(UserError, match="has no column answer, expected_answer, ground_truth"):
        load_rows(config_for(path))
    config = config_for(path, reward="mine.py:f")
    train, held_out = load_rows(config)
    assert len(train) == 18 and len(held_out) == 2  # a tenth is held out, as with answers
    assert {problem.answer for problem in problems_of(config, tokenizer)} == {""}
    with pytest.raises(UserError, match="no column y"):  # a named column must exist
        load_rows(config_for(path, reward="mine.py:f", answer_column="y"))


def test_the_embedded_problems_have_rows_too():
    config = CommonConfig(reward="mine.py:f")
    assert load_rows(config)[0][0].raw.keys() == {"question", "answer"}
