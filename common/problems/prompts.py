"""Prompt templates, and the way from rows of text to problems with token ids. Rows that cannot be used are left out here."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from common.config import CommonConfig, SamplingConfig
from common.console import say
from common.errors import UserError
from common.problems.data import Row, in_fixed_order
from common.records import Problem

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


# ---- prompts --------------------------------------------------------------------------------------------------------

def load_template(config: SamplingConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that `--prompt_template` names. Raises UserError if it does not exist or cannot work."""
    name = config.prompt_template
    if name == "auto":
        name = "chat" if tokenizer.chat_template else "plain"
    if name == "chat":
        return _chat_template(config, tokenizer)
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
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--prompt_template {name}: not auto, chat, plain, math_task or question, and there is no such text file") from None
    if "{question}" not in text:
        raise UserError(f"--prompt_template {name}: the file must hold {{question}} at the place of the question")
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return Template(name, lambda question, _=(): text.replace("{question}", question), not has_bos)


def _chat_template(config: SamplingConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The chat template of the tokenizer. Raises UserError if there is none, or if it has no place for the text of `--system_prompt`."""
    if not tokenizer.chat_template:
        raise UserError(f"--prompt_template chat: the tokenizer of {config.model} has no chat template; use plain, or a template "
                        "file of your own")
    system = None if config.system_prompt is None else system_text(config.system_prompt)
    thinking = {} if config.enable_thinking == "auto" else {"enable_thinking": config.enable_thinking == "true"}

    def render(question: str, earlier: Sequence[dict[str, Any]] = ()) -> str:
        messages = [*earlier, {"role": "user", "content": f"{question}\n\n{ASK}" if system is None else question}]
        if system is not None:  # in place of a system message of the data
            messages = [{"role": "system", "content": system}, *(message for message in messages if message.get("role") != "system")]
        try:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **thinking)
        except TemplateError as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise UserError(f"the chat template of {config.model} cannot write the messages {roles}: {error}; give --prompt_template a "
                            f"file of your own{', without --system_prompt' if system is not None else ''}") from error

    if system is not None and system.strip() not in render("?"):
        raise UserError(f"--system_prompt: the chat template of {config.model} has no place for a system message; write the text into a "
                        "template file with {question}, and give that file as --prompt_template")
    return Template("chat", render, False)


def system_text(given: str) -> str:
    """The text of `--system_prompt`, which is a text or the path of a text file. Raises UserError for a file that cannot be read."""
    try:
        if Path(given).is_file():
            return Path(given).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if len(given) < 256:  # a longer text is no path; the system says so with an OSError
            raise UserError(f"--system_prompt {given}: the file cannot be read: {error}") from error
    if Path(given).suffix in (".txt", ".md") and len(given.split()) == 1:
        raise UserError(f"--system_prompt {given}: there is no such file; give the path of a text file, or the text itself")
    return given


def make_problems(rows: tuple[list[Row], list[Row]], config: CommonConfig, template: Template,
                  tokenizer: PreTrainedTokenizerBase, context_length: int) -> tuple[list[Problem], list[Problem]]:
    """(training problems, held-out problems). There are at most `--eval_problems` held-out problems.

    rows: (training rows, held-out rows). context_length: tokens that the model can read, prompt and completion together.
    A prompt that is in both kinds of rows stays in the held-out problems only. The console shows how many rows are left out
    and why: no usable question or answer, a repeated prompt, or a prompt that is too long.
    Raises UserError if no training row is left, or no held-out row although `--eval_steps` asks for evaluations.
    """
    longest = max_prompt_length(config, context_length)
    seen: set[str] = set()
    held_out = usable_problems("held-out", in_fixed_order(rows[1]), seen, template, tokenizer, longest)[:config.eval_problems]
    train = usable_problems("training", rows[0], seen, template, tokenizer, longest)
    if not train:
        raise UserError(f"--dataset {config.dataset}: no usable row is left to train on; the lines above say why")
    if config.eval_steps and not held_out:
        raise UserError("no usable row is left to evaluate on; name another data set with --eval_dataset, or give --eval_steps 0")
    return train, held_out


def make_eval_problems(rows: list[Row], config: SamplingConfig, template: Template, tokenizer: PreTrainedTokenizerBase,
                       context_length: int, count: int) -> list[Problem]:
    """The problems that eval.py evaluates: the same `count` problems every time (0: all usable problems). Raises UserError.

    Repeated prompts stay, because published scores count them too.
    """
    problems = usable_problems("evaluation", rows, None, template, tokenizer, max_prompt_length(config, context_length))
    if not problems:
        raise UserError(f"--dataset {config.dataset}: no usable row is left to evaluate on; the lines above say why")
    order = {row.id: place for place, row in enumerate(in_fixed_order(rows))}
    return sorted(problems, key=lambda problem: order[problem.id])[:count or None]


def max_prompt_length(config: SamplingConfig, context_length: int) -> int:
    """The longest possible prompt, in tokens: the context less the longest completion. Raises UserError if this is 0 or less."""
    if config.max_completion_length >= context_length:
        raise UserError(f"--max_completion_length {config.max_completion_length} leaves no room for a prompt in the model's context of "
                        f"{context_length} tokens; give a lower length, for example {context_length // 2}")
    return context_length - config.max_completion_length


def usable_problems(kind: str, rows: list[Row], seen: set[str] | None, template: Template, tokenizer: PreTrainedTokenizerBase,
                    longest: int) -> list[Problem]:
    """The problems of the rows that can be used, in the order of the rows. The console shows how many rows are left out and why.

    kind: a word for these rows on the console. longest: the longest allowed prompt, in tokens. seen: prompts that were used before.
    Rows with such a prompt are left out, and the prompts of this call are added to `seen`. None: repeated prompts stay.
    """
    left_out: dict[str, list[str]] = {}
    kept, lost = [], []  # lost: rows whose chat is not whole in the prompt
    for row in rows:
        if row.question is None or row.answer is None:
            left_out.setdefault(f"without a usable {'question' if row.question is None else 'answer'}", []).append(row.id)
            continue
        prompt = template.render(row.question, row.earlier)
        if seen is not None and prompt in seen:
            left_out.setdefault("with a prompt seen before", []).append(row.id)
            continue
        if seen is not None:
            seen.add(prompt)
        kept.append((row, prompt))
        if not all(str(message.get("content") or "").strip() in prompt for message in row.earlier):
            lost.append(row.id)
    encoded = tokenizer([prompt for _, prompt in kept], add_special_tokens=template.add_special_tokens)["input_ids"] if kept else []
    problems = []
    for (row, prompt), ids in zip(kept, encoded, strict=True):
        if not 0 < len(ids) <= longest:
            left_out.setdefault(f"with a prompt longer than the {longest} tokens that the completion leaves", []).append(row.id)
        else:
            problems.append(Problem(row.id, prompt, tuple(ids), row.answer, row.question, row.raw))
    if lost:
        why = "--system_prompt or the chat template dropped them" if template.name == "chat" else \
            f"--prompt_template {template.name} writes the last message only, and chat writes all"
        say(f"data: the prompts of {len(lost)} {kind} rows lack system messages or earlier turns of their chats ({why}): "
            f"{', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}")
    for reason, ids in left_out.items():
        say(f"data: left out {len(ids)} {kind} rows {reason}: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}")
    return problems
