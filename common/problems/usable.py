"""Rows become problems: their prompts are rendered and tokenised, and rows that cannot be used are left out. The console says which."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.config import CommonConfig
from common.console import say
from common.policy.chat import end_of_turn
from common.problems.large import Bound, LargeProblems, lengths_checked
from common.problems.rows import LARGE, LargeRows, Row, asked, in_fixed_order, keys_of, repeats, why_unusable
from common.records import Problem

FIRST = 1000  # of these rows of a large data set the console shows what the template drops


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

def large_problems(rows: tuple[LargeRows, Sequence[Row]], config: CommonConfig, template: Template,
                    tokenizer: PreTrainedTokenizerBase, longest: int) -> tuple[Sequence[Problem], list[Problem]]:
    """(training problems, held-out problems), as `make_problems` gives them. Questions are compared, and not prompts."""
    seen: set[str] = set()
    if isinstance(rows[1], LargeRows):
        others = with_answers("held-out", in_fixed_order(rows[1]))
        keys = _keys(others, template)
        others = others.take(~repeats(keys))
        held_out = _made_later("held-out", others, template, tokenizer, longest)[:config.eval_problems]
    else:
        held_out = usable_problems("held-out", in_fixed_order(rows[1]), seen, template, tokenizer, longest)[:config.eval_problems]
        keys = keys_of([row for row in rows[1] if not why_unusable(row)], template.asked)
    train = with_answers("training", rows[0])
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


def with_answers(kind: str, rows: LargeRows) -> LargeRows:
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
