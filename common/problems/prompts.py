"""Prompt templates, and the way from rows of text to problems with token ids."""
from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from common.config import CommonConfig, SamplingConfig
from common.console import say
from common.errors import UserError
from common.flags import CHAT_TEXT
from common.policy.chat import TemplateError, end_of_turn, render_chats
from common.problems.rows import LargeRows, Row, in_fixed_order
from common.problems.usable import Template, large_problems, usable_problems, with_answers
from common.records import Problem
from common.run.folder import CONFIG
from common.run.saved_config import read_record

LARGEST_TEXT = 2**20  # bytes of a template file or a system prompt
# the request for an answer, in the templates chat and plain
ASK = "Reason step by step, and put your final answer within \\boxed{}."


# ---- prompts --------------------------------------------------------------------------------------------------------

def load_template(config: SamplingConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that `--prompt_template` names. Raises UserError if it does not exist or cannot work."""
    name = config.prompt_template
    if name == "auto":
        name = "chat" if tokenizer.chat_template else "plain"
    if name == "chat" or name.startswith(CHAT_TEXT):
        return _chat_template(name, config, tokenizer)
    if config.system_prompt is not None:
        raise UserError(f"--system_prompt needs --prompt_template chat, and this run has {name}; write the text into a template file with "
                        "{question}, and give that file as --prompt_template")
    if name == "plain":
        return Template(name, lambda question, _=(): f"Problem: {question}\n{ASK}\nSolution:", True, ("\nProblem:",))
    if name == "math_task":  # the template of the VinePPO paper
        return Template(name, lambda question, _=(): f"[MATH_TASK] Problem:\n{question}\n\nSolution:", True, ("\n\n\nProblem:",))
    if name == "question":
        return Template(name, lambda question, _=(): question + "\n", True)
    try:
        text = text_of(Path(name))
    except (OSError, ValueError) as error:
        raise UserError(f"--prompt_template {name}: not auto, chat, chat:TEXT, plain, math_task or question, and there is no such text "
                        f"file ({getattr(error, 'strerror', None) or error})") from None
    if "{question}" not in text:
        raise UserError(f"--prompt_template {name}: the file must hold {{question}} at the place of the question")
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return Template(name, lambda question, _=(): text.replace("{question}", question), not has_bos)


def _chat_template(name: str, config: SamplingConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The chat template of the tokenizer. Raises UserError if there is none, or if it has no place for the text of `--system_prompt`.

    name: "chat", or "chat:" and the text of the user message.
    """
    if not tokenizer.chat_template:
        raise UserError(f"--prompt_template {name}: the tokenizer of {config.model} has no chat template; use plain, or a template "
                        "file of your own")
    system = None if config.system_prompt is None else text_given(config.system_prompt, f"--system_prompt {config.system_prompt}")
    user = user_text(name, system)
    options: dict[str, Any] = {} if config.enable_thinking == "auto" else {"enable_thinking": config.enable_thinking == "true"}

    if "strftime_now" in str(tokenizer.chat_template):
        date = prompt_date(config)
        options["strftime_now"] = date.strftime  # in place of transformers' own, which has the date of the day
        say(f"data: the chat template writes the date; this run keeps {date:%Y-%m-%d}, also when it is resumed")

    def messages_of(question: str, earlier: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        asked = {"role": "user", "content": user.replace("{question}", question)}
        if system is None:
            return [*earlier, asked]
        return [{"role": "system", "content": system}, *kept(earlier), asked]

    def kept(earlier: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        # the system message is in place of one of the data
        return earlier if system is None else [message for message in earlier if message.get("role") != "system"]

    own = f"give --prompt_template a file of your own{', without --system_prompt' if system is not None else ''}"

    def write(chats: list[list[dict[str, Any]]]) -> list[str | TemplateError]:
        try:
            return render_chats(tokenizer, chats, add_generation_prompt=True, **options)
        except TemplateError as error:
            raise UserError(f"the chat template of {config.model} cannot be used: {error}; {own}") from error

    def render_all(asked: list[tuple[str, Sequence[dict[str, Any]]]]) -> list[str]:
        chats = [messages_of(*one) for one in asked]
        texts = write(chats)
        for chat, text in zip(chats, texts, strict=True):
            if isinstance(text, TemplateError):
                roles = ", ".join(str(message.get("role")) for message in chat)
                raise UserError(f"the chat template of {config.model} cannot write the messages {roles}: {text}; {own}") from text
        return texts  # type: ignore[return-value]  # no error is among them

    write([messages_of("?", ())])  # a template without end is found before thousands of prompts are tried
    token, end = end_of_turn(tokenizer)
    template = Template(name, lambda question, earlier=(): render_all([(question, earlier)])[0], False,
                        (end,) if end and token is None else (), render_all, kept)
    if system is not None and system.strip() not in template.render("?"):
        raise UserError(f"--system_prompt: the chat template of {config.model} has no place for a system message; write the text into a "
                        "template file with {question}, and give that file as --prompt_template")
    return template


def prompt_date(config: SamplingConfig) -> datetime:
    """The time that the run's chat template takes for the present: that of the first start. It is saved in config.json.

    An evaluation that goes on has the time of its own first start, and that of an adapter has the time of the adapter's run.
    """
    places = [Path(folder) / CONFIG for folder in (config.output_dir, config.adapter and Path(config.adapter).parent) if folder]
    records = [config.derived]
    for path in places:
        with contextlib.suppress(UserError):  # another folder than that of a run
            records.append(read_record(path).get("derived"))
    for record in records:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            date = datetime.fromisoformat(record["prompt_date"])
            break
    else:
        date = datetime.now().replace(microsecond=0)
    config.derive(prompt_date=date.isoformat())
    return date


def text_of(path: Path) -> str:
    """The text of a file. Raises OSError or ValueError for a file that cannot be such a text, for example a device."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a plain file")
    if path.stat().st_size > LARGEST_TEXT:
        raise ValueError(f"it has more than {LARGEST_TEXT >> 20} MiB")
    return path.read_text(encoding="utf-8")


def user_text(name: str, system: str | None) -> str:
    """The user message of the chat template, with {question} at the place of the question. Raises UserError for "chat:" without it.

    name: the prompt template. system: the system message, which stands for our request.
    """
    if name == "chat":
        return f"{{question}}\n\n{ASK}" if system is None else "{question}"
    text = text_given(name.removeprefix(CHAT_TEXT), f"--prompt_template {name}")
    if "{question}" not in text:
        raise UserError(f"--prompt_template {name[:200]}: the user message must hold {{question}} at the place of the question; "
                        "--prompt_template 'chat:{question}' is the question alone")
    return text


def text_given(given: str, named: str) -> str:
    """The text that a flag gives, which is a text or the path of a text file. Raises UserError for a file that cannot be read.

    named: the flag with its value, for that error.
    """
    try:
        if Path(given).is_file():
            return text_of(Path(given)).strip()
    except (OSError, ValueError) as error:
        if len(given) < 256:  # a longer text is no path; the system says so with an OSError
            raise UserError(f"{named}: the file cannot be read: {error}") from error
    if Path(given).suffix in (".txt", ".md") and len(given.split()) == 1:
        raise UserError(f"{named}: there is no such file; give the path of a text file, or the text itself")
    return given


def make_problems(rows: tuple[Sequence[Row], Sequence[Row]], config: CommonConfig, template: Template,
                  tokenizer: PreTrainedTokenizerBase, context_length: int) -> tuple[Sequence[Problem], list[Problem]]:
    """(training problems, held-out problems). There are at most `--eval_problems` held-out problems.

    rows: (training rows, held-out rows). context_length: tokens that the model can read, prompt and completion together.
    A prompt that is in both kinds of rows stays in the held-out problems only. The console shows how many rows are left out
    and why: no usable question or answer, a repeated prompt, or a prompt that is too long. The training problems of a large data set
    are made when they are asked for.
    Raises UserError if no training row is left, or no held-out row although `--eval_steps` asks for evaluations.
    """
    longest = max_prompt_length(config, context_length)
    if isinstance(rows[0], LargeRows):
        train, held_out = large_problems(rows, config, template, tokenizer, longest)
    else:
        seen: set[str] = set()
        held_out = usable_problems("held-out", in_fixed_order(rows[1]), seen, template, tokenizer, longest)[:config.eval_problems]
        train = usable_problems("training", rows[0], seen, template, tokenizer, longest)
    if not train:
        raise UserError(f"--dataset {config.dataset}: no usable row is left to train on; the lines above say why")
    if config.eval_steps and not held_out:
        raise UserError("no usable row is left to evaluate on; name another data set with --eval_dataset, or give --eval_steps 0")
    return train, held_out


def make_eval_problems(rows: Sequence[Row], config: SamplingConfig, template: Template, tokenizer: PreTrainedTokenizerBase,
                       context_length: int, count: int) -> list[Problem]:
    """The problems that eval.py evaluates: the same `count` problems every time (0: all usable problems). Raises UserError.

    Repeated prompts stay, because published scores count them too.
    """
    longest = max_prompt_length(config, context_length)
    if isinstance(rows, LargeRows) and count:  # no more rows are looked at than are needed
        ordered = with_answers("evaluation", in_fixed_order(rows))
        problems: list[Problem] = []
        while len(problems) < count and len(ordered):
            part, ordered = ordered[:count - len(problems)], ordered[count - len(problems):]
            problems += usable_problems("evaluation", list(part), None, template, tokenizer, longest)
    else:
        problems = usable_problems("evaluation", list(rows), None, template, tokenizer, longest)
    if not problems:
        raise UserError(f"--dataset {config.dataset}: no usable row is left to evaluate on; the lines above say why")
    order = {row.id: place for place, row in enumerate(in_fixed_order(rows))} if not isinstance(rows, LargeRows) or not count else {}
    return sorted(problems, key=lambda problem: order[problem.id])[:count or None] if order else problems


def max_prompt_length(config: SamplingConfig, context_length: int) -> int:
    """The longest possible prompt, in tokens: the context less the longest completion. Raises UserError if this is 0 or less."""
    if config.max_completion_length >= context_length:
        raise UserError(f"--max_completion_length {config.max_completion_length} leaves no room for a prompt in the model's context of "
                        f"{context_length} tokens; give a lower length, for example {context_length // 2}")
    return context_length - config.max_completion_length
