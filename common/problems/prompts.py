"""Prompt templates, and the way from rows of text to problems with token ids. Rows that cannot be used are left out here."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.config import CommonConfig, SamplingConfig
from common.console import say
from common.errors import UserError
from common.flags import CHAT_TEXT
from common.policy.chat import TemplateError, end_of_turn, render_chats
from common.problems.large import Bound, LargeProblems, lengths_checked
from common.problems.rows import LARGE, LargeRows, Row, asked, in_fixed_order, keys_of, repeats, why_unusable
from common.records import Problem
from common.run.folder import CONFIG
from common.run.saved_config import read_record

FIRST = 1000  # of these rows of a large data set the console shows what the template drops
LARGEST_TEXT = 2**20  # bytes of a template file or a system prompt
# the request for an answer, in the templates chat and plain
ASK = "Reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Template:
    """The way to turn a question into a prompt.

    `render(question)` is the text of the prompt. The chat template also takes `render(question, earlier)`, where `earlier` are the
    messages before the question. The other templates ignore them.
    """

    name: str
    render: Callable[..., str]
    add_special_tokens: bool  # whether the tokenizer adds its special tokens; False if the text of the prompt has them already
    stop: tuple[str, ...] = ()  # strings that end a completion, for models that write on after the answer
    render_many: Callable[[list[tuple[str, Sequence[dict[str, Any]]]]], list[str]] | None = None  # `render` for many, where it is faster
    # which of the earlier messages are written
    kept: Callable[[Sequence[dict[str, Any]]], Sequence[dict[str, Any]]] = lambda earlier: ()

    def render_all(self, asked: list[tuple[str, Sequence[dict[str, Any]]]]) -> list[str]:
        """The prompts of many pairs (question, earlier)."""
        return self.render_many(asked) if self.render_many else [self.render(*one) for one in asked]

    def asked(self, row: Row) -> str:
        """What of the row the prompt is made of: two rows with the same text have the same prompt."""
        return asked(replace(row, earlier=tuple(self.kept(row.earlier)))) if row.earlier else row.question or ""


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
        train, held_out = _large_problems(rows, config, template, tokenizer, longest)
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
        ordered = _with_answers("evaluation", in_fixed_order(rows))
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


def usable_problems(kind: str, rows: Sequence[Row], seen: set[str] | None, template: Template, tokenizer: PreTrainedTokenizerBase,
                    longest: int) -> list[Problem]:
    """The problems of the rows that can be used, in the order of the rows. The console shows how many rows are left out and why.

    kind: a word for these rows on the console. longest: the longest allowed prompt, in tokens. seen: prompts that were used before.
    Rows with such a prompt are left out, and the prompts of this call are added to `seen`. None: repeated prompts stay.
    """
    left_out: dict[str, list[str]] = {}
    usable = []
    for row in rows:
        if why := why_unusable(row):
            left_out.setdefault(why, []).append(row.id)
        else:
            usable.append(row)
    kept, lost = [], []  # lost: rows whose chat is not whole in the prompt
    for row, prompt in zip(usable, template.render_all([(row.question, row.earlier) for row in usable]) if usable else [], strict=True):
        if seen is not None and prompt in seen:
            left_out.setdefault("with a prompt seen before", []).append(row.id)
            continue
        if seen is not None:
            seen.add(prompt)
        kept.append((row, prompt))
        if not all(str(message.get("content") or "").strip() in prompt for message in row.earlier):
            lost.append(row.id)
    problems = []
    for (row, prompt), ids in zip(kept, prompt_ids(kind, [prompt for _, prompt in kept], template, tokenizer), strict=True):
        if not 0 < len(ids) <= longest:
            left_out.setdefault(_too_long(longest), []).append(row.id)
        else:
            problems.append(Problem(row.id, prompt, tuple(ids), row.answer, row.question, row.raw))
    if lost:
        why = "--system_prompt or the chat template dropped them" if template.name.partition(":")[0] == "chat" else \
            f"--prompt_template {template.name} writes the last message only, and chat writes all"
        say(f"data: the prompts of {len(lost)} {kind} rows lack system messages or earlier turns of their chats ({why}): "
            f"{', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}")
    for reason, ids in left_out.items():
        _say_left_out(kind, len(ids), reason, ids)
    return problems


def _too_long(longest: int) -> str:
    return f"with a prompt longer than the {longest} tokens that the completion leaves"


def _say_left_out(kind: str, count: int, reason: str, ids: list[str]) -> None:
    if count:
        say(f"data: left out {count} {kind} rows {reason}: {', '.join(ids[:5])}{', ...' if count > 5 else ''}")


# ---- large data sets ------------------------------------------------------------------------------------------------

def _large_problems(rows: tuple[LargeRows, Sequence[Row]], config: CommonConfig, template: Template,
                    tokenizer: PreTrainedTokenizerBase, longest: int) -> tuple[Sequence[Problem], list[Problem]]:
    """(training problems, held-out problems), as `make_problems` gives them. Questions are compared, and not prompts."""
    seen: set[str] = set()
    if isinstance(rows[1], LargeRows):
        others = _with_answers("held-out", in_fixed_order(rows[1]))
        keys = _keys(others, template)
        others = others.take(~repeats(keys))
        held_out = _made_later("held-out", others, template, tokenizer, longest)[:config.eval_problems]
    else:
        held_out = usable_problems("held-out", in_fixed_order(rows[1]), seen, template, tokenizer, longest)[:config.eval_problems]
        keys = keys_of([row for row in rows[1] if not why_unusable(row)], template.asked)
    train = _with_answers("training", rows[0])
    again = repeats(np.concatenate([keys, _keys(train, template)]))[len(keys):]
    _say_left_out("training", int(again.sum()), "with a question seen before", train.take(np.flatnonzero(again)[:6]).ids())
    train = train.take(~again)
    say(f"data: {config.dataset}: {len(rows[0]):,} training rows ask {len(train):,} different questions")
    if len(train) <= LARGE:
        return usable_problems("training", list(train), seen, template, tokenizer, longest), held_out
    return _made_later("training", train, template, tokenizer, longest), held_out


def _made_later(kind: str, rows: LargeRows, template: Template, tokenizer: PreTrainedTokenizerBase, longest: int) -> LargeProblems:
    """The problems of those rows whose prompts are short enough."""
    def make(some: list[Row], shown: str | None = None) -> list[Problem]:
        prompts = template.render_all([(row.question, row.earlier) for row in some]) if some else []
        ids = prompt_ids(shown, prompts, template, tokenizer)
        return [Problem(row.id, prompt, tuple(tokens), row.answer, row.question, row.raw)
                for row, prompt, tokens in zip(some, prompts, ids, strict=True)]

    usable_problems(f"of the first {FIRST} {kind}", list(rows[:FIRST]), None, template, tokenizer, 10**9)  # says what the templates drop
    too_long, most, examples = lengths_checked(rows, Bound(template.render, tokenizer), make, longest)
    _say_left_out(kind, int(too_long.sum()), _too_long(longest), rows.take(np.flatnonzero(too_long)[:6]).ids())
    return LargeProblems(rows.take(~too_long), make, most, examples)


def _with_answers(kind: str, rows: LargeRows) -> LargeRows:
    """The rows with a usable question and answer."""
    for number, why in enumerate(rows.faults):
        found = np.flatnonzero(rows.facts["fault"] == number) if why else []
        _say_left_out(kind, len(found), why, rows.take(found[:6]).ids() if why else [])
    return rows.take(rows.facts["fault"] == 0)


def _keys(rows: LargeRows, template: Template) -> np.ndarray:
    """(n,) of FACTS: high and low are the hashes of what the prompts are made of."""
    keys = rows.facts.copy()
    chats = np.flatnonzero(keys["chat"])
    if len(chats):  # a template may leave messages out
        keys[chats] = keys_of([rows[i] for i in chats.tolist()], template.asked)
    return keys


def prompt_ids(kind: str | None, prompts: list[str], template: Template, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of the prompts: with one begin token where one is wanted, not two, and without an end token at the end.

    A completion goes on from the last token. Behind an end token it would begin a new text, which has nothing to do with the question.
    The console shows what was removed. kind: a word for these prompts. None: nothing is shown.
    """
    if not prompts:
        return []
    begin, ends = tokenizer.bos_token_id, {tokenizer.eos_token_id, tokenizer.sep_token_id, end_of_turn(tokenizer)[0]} - {None}
    removed: dict[str, int] = {}
    result = []
    for whole in tokenizer(prompts, add_special_tokens=template.add_special_tokens)["input_ids"]:
        ids = whole
        while len(ids) > 1 and ids[-1] in ends:
            ids = ids[:-1]
        ended = len(whole) - len(ids)
        if ids.count(begin) > 1:
            # the tokenizer's own goes, if the text has one later, behind a blank for example
            first = int(template.add_special_tokens and ids[0] == begin and begin not in ends)
            ids = [token for i, token in enumerate(ids) if i >= first and not (token == begin and i > first and ids[i - 1] == begin)]
        for count, what in ((ended, "an end token"), (len(whole) - len(ids) - ended, "a second begin token")):
            if count:
                removed[what] = removed.get(what, 0) + 1
        result.append(ids)
    for what, count in removed.items() if kind else ():
        say(f"data: {what} was removed from {count} of the {len(prompts)} {kind} prompts: the tokenizer or the template had put it there")
    return result
