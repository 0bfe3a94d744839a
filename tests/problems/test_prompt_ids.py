"""Prompts as the tokenizers and chat templates of real families write them, and templates that were written against us."""

import json
import os
from datetime import datetime

import pytest
import torch
from helpers import completions, evaluate, run, save_random_model
from hostile import makers
from hostile import templates as hostile
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from common.config import CommonConfig
from common.errors import UserError
from common.policy import chat
from common.policy.chat import end_of_turn
from common.policy.load import load_policy
from common.policy.pretrained import load_tokenizer, note_end_of_turn, stop_token_ids
from common.problems import prompts
from common.problems.data import Row, load_split
from common.problems.prompts import load_template, usable_problems
from common.records import Request
from common.rollout.transformers_engine import TransformersEngine
from common.run.record import config_record

TEXTS = ["What is 1 + 1? Reason step by step, and put your final answer within \\boxed{}.", "user assistant system\n\nProblem: Solution:"]


def make_tokenizer(kind, special, template=None, before=(), behind=(), **roles):
    """A small tokenizer of one of three kinds. before, behind: tokens that it puts around every text."""
    if kind == "bytes":  # Qwen, Llama 3
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special)
    elif kind == "pieces":  # Llama 2, Gemma, T5
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Prepend("\u2581")
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=[*special, "<unk>"], unk_token="<unk>")
    else:  # BERT
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=[*special, "[UNK]"])
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if before or behind:
        around = [(token, tokenizer.token_to_id(token)) for token in {*before, *behind}]
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join([*before, "$A", *behind]), special_tokens=around)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **roles)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
GLM = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
TURNS = ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]


def llama3(template):
    tokens = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = make_tokenizer("bytes", tokens, template, before=tokens[:1], bos_token=tokens[0], eos_token=tokens[1])
    return tokenizer, ["<|end_of_text|>", "<|eot_id|>"]


def family(name):
    """(tokenizer, the tokens that must end an answer)"""
    return {
        "qwen base": lambda: (
            make_tokenizer("bytes", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, eos_token="<|endoftext|>"),
            ["<|endoftext|>", "<|im_end|>"],
        ),
        "llama 3": lambda: llama3(LLAMA3),
        "llama 3, two begins": lambda: llama3("{{ bos_token }}" + LLAMA3),
        "llama 2, add_eos_token": lambda: (
            make_tokenizer("pieces", ["<s>", "</s>"], LLAMA2, before=["<s>"], behind=["</s>"], bos_token="<s>", eos_token="</s>"),
            ["</s>"],
        ),
        "gemma": lambda: (
            make_tokenizer(
                "pieces",
                ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
                GEMMA,
                before=["<bos>"],
                bos_token="<bos>",
                eos_token="<eos>",
            ),
            ["<eos>", "<end_of_turn>"],
        ),
        "phi 3": lambda: (make_tokenizer("bytes", TURNS, PHI3, eos_token="<|endoftext|>"), ["<|endoftext|>", "<|end|>"]),
        "glm": lambda: (make_tokenizer("bytes", TURNS, GLM, eos_token="<|endoftext|>"), ["<|endoftext|>", "<|user|>"]),
        "harmony": lambda: (
            make_tokenizer("bytes", ["<|start|>", "<|message|>", "<|end|>", "<|return|>"], HARMONY, eos_token="<|return|>"),
            ["<|return|>"],  # and not <|end|>, which ends its thoughts too
        ),
        "t5": lambda: (make_tokenizer("pieces", ["</s>"], behind=["</s>"], eos_token="</s>"), ["</s>"]),
        "bert": lambda: (
            make_tokenizer(
                "words", ["[CLS]", "[SEP]"], before=["[CLS]"], behind=["[SEP]"], cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]"
            ),
            ["[SEP]"],
        ),
        "gpt 2 with both": lambda: (
            make_tokenizer(
                "bytes",
                ["<|endoftext|>"],
                before=["<|endoftext|>"],
                behind=["<|endoftext|>"],
                bos_token="<|endoftext|>",
                eos_token="<|endoftext|>",
            ),
            ["<|endoftext|>"],
        ),
    }[name]()


FAMILIES = [
    "qwen base",
    "llama 3",
    "llama 3, two begins",
    "llama 2, add_eos_token",
    "gemma",
    "phi 3",
    "glm",
    "harmony",
    "t5",
    "bert",
    "gpt 2 with both",
]


def config_for(**flags):
    return CommonConfig(model="some/model", dataset="x", max_completion_length=16, **flags)


def ids_of(tokenizer, config, *rows):
    found = usable_problems("training", list(rows), None, load_template(config, tokenizer), tokenizer, 10_000)
    return [list(problem.prompt_ids) for problem in found]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_begins_once_and_does_not_end(name, tmp_path):
    tokenizer, ends = family(name)
    end_ids = set(tokenizer.convert_tokens_to_ids(ends))
    begin = tokenizer.bos_token_id
    files = {"begin.txt": "{begin}{question}", "blank.txt": "\n{begin}{question}", "end.txt": "{question}{end}"}
    for file, text in files.items():
        text = text.replace("{begin}", tokenizer.bos_token or "").replace("{end}", ends[-1])
        (tmp_path / file).write_text(text)
    templates = ["plain", "question", "math_task", *(str(tmp_path / file) for file in files)]
    templates += ["chat"] if tokenizer.chat_template else []
    questions = ["What is 1 + 1?", (tokenizer.bos_token or "") + "What is 1 + 1?"]
    for template in templates:
        rows = [Row("a/0", question, "2", table=({},)) for question in questions[: 1 if template == "chat" else 2]]
        for ids in ids_of(tokenizer, config_for(prompt_template=template), *rows):
            assert len(ids) > 1 and ids[-1] not in end_ids, template
            if begin is not None and begin not in end_ids:
                assert ids.count(begin) == 1, template
            assert "1 + 1" in tokenizer.decode(ids) or name == "bert"


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_ends_where_the_template_ends_it(name):
    tokenizer, ends = family(name)
    assert stop_token_ids(tokenizer, GenerationConfig()) == set(tokenizer.convert_tokens_to_ids(ends))
    assert load_template(config_for(), tokenizer).stop == (() if tokenizer.chat_template else ("\nProblem:",))


def test_what_was_removed_is_said(capsys):
    tokenizer, _ = family("llama 2, add_eos_token")
    assert ids_of(tokenizer, config_for(prompt_template="plain"), Row("a/0", "1 + 1?", "2", table=({},)))
    assert "data: an end token was removed from 1 of the 1 training prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    "template, token, text",
    [
        ("{% for m in messages %}{{ m.content }}[END]\n{% endfor %}", None, "[END]"),  # no token: the text stops
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None, ""),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]", None, ""),  # the next turn is no end of this one
        ("{{ raise_exception('no') }}", None, ""),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}<eos>{% endfor %}", None, ""),  # answers are not shown
    ],
)
def test_the_end_of_a_turn_may_be_text_or_nothing(template, token, text, tokenizer):
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", chat_template=template)
    assert end_of_turn(other) == (token, text)


TEXT_END = "{% for m in messages %}{{ m.content }}[END]\n{% endfor %}"


@pytest.mark.parametrize(
    "name, template, ends, flags, said",
    [
        ("qwen base", None, None, {}, "<|im_end|>, which is no end token of the model (<|endoftext|>). Completions end at either"),
        ("qwen base", None, None, {"prompt_template": "chat:{question}"}, "ends answers with <|im_end|>"),
        ("qwen base", None, None, {"prompt_template": "plain"}, None),  # nothing in the prompt speaks of it
        ("qwen base", None, ["<|im_end|>"], {}, None),  # the generation config has it
        ("qwen base", TEXT_END, None, {}, "[END], which is no end token of the model (<|endoftext|>). Completions end at either"),
        ("qwen base", TEXT_END, None, {"stop": ["###"]}, "Completions do not end there, as --stop does not name it; add [END] to --stop"),
        ("qwen base", TEXT_END, None, {"stop": ["###", "[END]"]}, "Completions end at either"),
        ("qwen base", "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None, {}, None),  # it ends with nothing
        ("llama 3", None, ["<|eot_id|>"], {}, None),
    ],
)
def test_a_template_with_an_end_of_its_own_says_so(name, template, ends, flags, said, capsys):
    tokenizer, _ = family(name)
    tokenizer.chat_template = template or tokenizer.chat_template
    ids = tokenizer.convert_tokens_to_ids(ends) if ends else None
    note_end_of_turn(config_for(**flags), tokenizer, GenerationConfig(eos_token_id=ids))
    shown = capsys.readouterr().out
    assert shown.count("\n") == (said is not None) and (said or "") in shown


def test_a_run_says_that_its_template_has_an_end_of_its_own(tmp_path, capsys):
    tokenizer, _ = family("qwen base")
    folder = save_random_model(tmp_path / "model", "qwen2", tokenizer, eos_token_id=tokenizer.eos_token_id)
    load_tokenizer(CommonConfig(model=str(folder), dataset="sums"))
    assert capsys.readouterr().out.count("ends answers with <|im_end|>") == 1


def test_completions_end_at_the_end_of_the_turn(tmp_path):
    tokenizer, _ = family("qwen base")
    folder = save_random_model(tmp_path / "model", "qwen2", tokenizer, eos_token_id=tokenizer.eos_token_id)
    policy = load_policy(CommonConfig(model=str(folder), lora_r=4), tokenizer, AutoConfig.from_pretrained(folder))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        policy.base.get_output_embeddings().weight[end] *= 3  # so that it comes often
    engine = TransformersEngine()
    engine.connect(policy)
    found = [c for group in engine.generate([Request((5, 6), 1, 60, 200)]) for c in group]
    assert any(end in completion.ids for completion in found)
    for completion in found:
        if end in completion.ids:
            assert completion.ids.index(end) == len(completion.ids) - 1 and completion.finish_reason == "stop"


def test_stop_strings_do_not_replace_the_end_of_the_turn():
    tokenizer, _ = family("phi 3")
    config = config_for(stop=["###"])
    load_template(config, tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|end|>") in stop_token_ids(tokenizer, GenerationConfig())


# ---- chats ----

USER, SYSTEM = {"role": "user", "content": "1+1?"}, {"role": "system", "content": "You are a clerk."}


@pytest.mark.parametrize(
    "chat, roles",
    [
        ([SYSTEM, USER], ["system", "user"]),
        ([{"role": "developer", "content": "Be brief."}, USER], ["developer", "user"]),
        ([USER, {"role": "assistant", "content": "2"}, SYSTEM, USER], ["user", "assistant", "system", "user"]),
        ([USER, {"role": "assistant", "content": "f(1)"}, {"role": "tool", "content": "3"}, USER], ["user", "assistant", "tool", "user"]),
        ([SYSTEM], None),
        ([USER, {"role": "tool", "content": "3"}], None),
        ([{"content": "no role"}], ["user"]),
        (["a text", USER], None),
        ([], None),
    ],
)
def test_every_message_of_a_chat_is_in_the_prompt(chat, roles, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": chat, "answer": "2"}) + "\n")
    config = CommonConfig(model="some/model", dataset=str(tmp_path / "a.jsonl"), max_completion_length=16)
    tokenizer, _ = family("qwen base")
    found = usable_problems("training", load_split(config, "all"), None, load_template(config, tokenizer), tokenizer, 10_000)
    if roles is None:
        assert found == []
    else:
        turns = found[0].prompt.split("<|im_start|>")[1:-1]
        assert [turn.split("\n")[0] for turn in turns] == roles
        assert all(message["content"] in found[0].prompt for message in chat)


# ---- the date ----

DATED = "Today is {{ strftime_now('%d %B %Y %H:%M:%S') }}.\n" + hostile.PLAIN


class Clock(datetime):
    day = 1

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, cls.day, 4, 5, 6, 7)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(prompts, "datetime", Clock)
    monkeypatch.setattr(Clock, "day", 1)
    return Clock


@pytest.mark.parametrize("template", [DATED, "{% set date_string = strftime_now('%d %b %Y') %}{{ date_string }}" + hostile.PLAIN])
def test_the_date_in_a_prompt_is_that_of_the_first_start(template, tokenizer, clock, tmp_path, capsys):
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>", chat_template=template)
    config = config_for(output_dir=str(tmp_path / "run"))
    prompt = load_template(config, other).render("1 + 1?")
    assert "01 Mar" in prompt and "keeps 2026-03-01" in capsys.readouterr().out
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config_record(config, "train_x")))
    clock.day = 2
    for flags in ({"output_dir": str(tmp_path / "run")}, {"adapter": str(tmp_path / "run" / "checkpoint-3")}):
        assert load_template(config_for(**flags), other).render("1 + 1?") == prompt
    assert load_template(config_for(output_dir=str(tmp_path / "other")), other).render("1 + 1?") != prompt
    (tmp_path / "run" / "config.json").write_text('{"flags": {}, "derived": {"prompt_date": [1]}}')
    assert load_template(config_for(output_dir=str(tmp_path / "run")), other).render("1 + 1?") != prompt


def test_a_resumed_run_and_a_continued_evaluation_keep_the_date(clock, tmp_path, monkeypatch, capsys):
    model = hostile.model(tmp_path / "model", DATED)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"question": f"{i} + 1?", "answer": str(i + 1)}) + "\n" for i in range(30)))
    quick = ["--model", str(model), "--dataset", str(tmp_path / "a.jsonl"), "--max_completion_length", "4", "--engine", "transformers"]
    steps = ["--problems_per_step", "2", "--num_generations", "2", "--eval_steps", "0", "--save_steps", "1", "--lora_r", "2"]
    folder = tmp_path / "run"
    assert run("train_grpo", folder, "--max_steps", "1", monkeypatch=monkeypatch, quick=[*quick, *steps]) == 0
    clock.day = 2
    more = ("--resume_from_checkpoint", "auto", "--max_steps", "2")
    assert run("train_grpo", folder, *more, monkeypatch=monkeypatch, quick=[*quick, *steps]) == 0
    rows = completions(folder)
    assert {row["step"] for row in rows} == {1, 2} and all("Today is 01 March 2026 04:05:06." in row["prompt"] for row in rows)
    summary = tmp_path / "evaluation"
    flags = [*quick, "--max_problems", "2", "--num_samples", "1"]
    first = evaluate(summary, *flags, monkeypatch=monkeypatch)
    clock.day = 3
    assert isinstance(first, dict) and evaluate(summary, *flags, monkeypatch=monkeypatch) == first
    assert "holds 2 of 2 problems" in capsys.readouterr().out


# ---- other people's templates ----

CANNOT = {
    "loops": "cannot be used: it takes too long",
    "power": "takes too long|more than 1 GiB of memory|process end",
    "gigabytes_at_once": "it takes more than 1 GiB of memory",
    "doubling": "takes too long|more than 1 GiB of memory",
    "long_prompts": "it writes prompts of more than 64 MiB",
    "recursion": "it calls itself without end",
    "brackets": "it calls itself without end",
    "syntax": "unexpected '}'",
    "division": "division or modulo by zero",
    "classes": "'__class__' of 'str' object is unsafe",
    "function_globals": "'__globals__' of 'function' object is unsafe",
    "method_formats": "'__class__' of 'int' object is unsafe",
    "include": "no loader",
    "import": "no loader",
    "only_later": "it takes more than 1 GiB of memory",
}
MAKERS = makers(hostile)


@pytest.mark.parametrize("case", sorted(MAKERS))
def test_a_hostile_template_is_one_line_and_nothing_runs(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if case in ("loops", "power", "doubling"):
        monkeypatch.setattr(chat, "SECONDS", 0.7)
    (tmp_path / "case").mkdir()
    tokenizer = AutoTokenizer.from_pretrained(MAKERS[case](tmp_path / "case"))
    with pytest.raises(UserError, match=CANNOT[case]) as error:
        load_template(config_for(), tokenizer).render_all([("1 + 1?", ()), ("1 + 1? " * 100, ())])
    assert "\n" not in str(error.value) and "the chat template of some/model" in str(error.value)
    assert stop_token_ids(tokenizer, GenerationConfig())  # with another template the model can be used
    assert [path.name for path in tmp_path.iterdir()] == ["case"]


def test_a_template_file_is_no_program(tmp_path, tokenizer):
    (tmp_path / "mine.txt").write_text("{{ 7 * 7 }}{% for %} {question}")
    assert load_template(config_for(prompt_template=str(tmp_path / "mine.txt")), tokenizer).render("q?") == "{{ 7 * 7 }}{% for %} q?"


def test_a_text_file_is_a_plain_file_of_some_pages(tmp_path, tokenizer):
    """A saved config of other people may name anything."""
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "large.txt").touch()
    os.truncate(tmp_path / "large.txt", 10**12)
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9 {question}")
    for path, why in (("/dev/zero", "not a plain file"), (tmp_path / "pipe.txt", "not a plain file"), (tmp_path / "large.txt", "1 MiB"),
                      (tmp_path / "latin1.txt", "can't decode"), (tmp_path, "not a plain file"), (tmp_path / "no.txt", "No such file")):
        with pytest.raises(UserError, match=f"no such text file .*{why}"):
            load_template(config_for(prompt_template=str(path)), tokenizer)
    other, _ = family("qwen base")
    with pytest.raises(UserError, match=r"large.txt: the file cannot be read: it has more than 1 MiB"):
        load_template(config_for(system_prompt=str(tmp_path / "large.txt")), other)
