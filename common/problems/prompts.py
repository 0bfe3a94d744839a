"""From rows of text to problems in token ids: the prompt templates, and which rows cannot be used."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.config import CommonConfig, SamplingConfig
from common.errors import UserError
from common.problems.data import Row, _shuffled
from common.records import Problem

ASK = "Reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Template:
    """How a question becomes a prompt: `render` gives the text; `stop` ends completions that ramble on."""

    name: str
    render: Callable[[str], str]
    add_special_tokens: bool
    stop: tuple[str, ...] = ()



# ---- prompts --------------------------------------------------------------------------------------------------------

def load_template(config: SamplingConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The prompt template of `--prompt_template`. Raises UserError for one that is missing or cannot work."""
    name = config.prompt_template
    if name == "auto":
        name = "chat" if tokenizer.chat_template else "plain"
    if name == "chat":
        if not tokenizer.chat_template:
            raise UserError(f"--prompt_template chat: the tokenizer of {config.model} has no chat template; use plain, or a file "
                            "of your own")
        thinking = {} if config.enable_thinking == "auto" else {"enable_thinking": config.enable_thinking == "true"}
        return Template(name, lambda question: tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{question}\n\n{ASK}"}], tokenize=False, add_generation_prompt=True, **thinking), False)
    if name == "plain":
        return Template(name, lambda question: f"Problem: {question}\n{ASK}\nSolution:", True, ("\nProblem:",))
    if name == "math_task":  # VinePPO's
        return Template(name, lambda question: f"[MATH_TASK] Problem:\n{question}\n\nSolution:", True, ("\n\n\nProblem:",))
    if name == "question":
        return Template(name, lambda question: question + "\n", True)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--prompt_template {name}: not auto, chat, plain, math_task or question, and no such text file") from None
    if "{question}" not in text:
        raise UserError(f"--prompt_template {name}: the file must hold {{question}} where the question goes")
    starts_itself = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    return Template(name, lambda question: text.replace("{question}", question), not starts_itself)



def make_problems(rows: tuple[list[Row], list[Row]], config: CommonConfig, template: Template,
                  tokenizer: PreTrainedTokenizerBase, context_length: int) -> tuple[list[Problem], list[Problem]]:
    """Training problems, and `--eval_problems` held-out ones that share no prompt with them.

    Rows without a usable question or answer, repeated ones, and ones too long for the context are counted, named and
    left out. Raises UserError if none is left.
    """
    budget = room_for_prompts(config, context_length)
    seen: set[str] = set()
    held_out = render("held-out", _shuffled(rows[1]), seen, template, tokenizer, budget)[:config.eval_problems]
    train = render("training", rows[0], seen, template, tokenizer, budget)
    if not train:
        raise UserError(f"--dataset {config.dataset}: no usable row is left to train on; the lines above say why")
    if config.eval_steps and not held_out:
        raise UserError("no usable row is left to evaluate on; name a data set with --eval_dataset, or give --eval_steps 0")
    return train, held_out



def make_eval_problems(rows: list[Row], config: SamplingConfig, template: Template, tokenizer: PreTrainedTokenizerBase,
                       context_length: int, count: int) -> list[Problem]:
    """`count` problems (0: all usable ones), always the same, copies included: a published score counts them too."""
    problems = render("evaluation", rows, None, template, tokenizer, room_for_prompts(config, context_length))
    if not problems:
        raise UserError(f"--dataset {config.dataset}: no usable row is left to evaluate on; the lines above say why")
    order = {row.id: place for place, row in enumerate(_shuffled(rows))}
    return sorted(problems, key=lambda problem: order[problem.id])[:count or None]



def room_for_prompts(config: SamplingConfig, context_length: int) -> int:
    """Tokens that the longest completion leaves. Raises UserError if there are none."""
    if config.max_completion_length >= context_length:
        raise UserError(f"--max_completion_length {config.max_completion_length} leaves no room for a prompt in the model's context of "
                        f"{context_length} tokens; for example {context_length // 2}")
    return context_length - config.max_completion_length



def render(what: str, rows: list[Row], seen: set[str] | None, template: Template, tokenizer: PreTrainedTokenizerBase,
           budget: int) -> list[Problem]:
    """The problems of usable rows; the others are counted, named and left out, as are prompts in `seen`, to which these are added."""
    left_out: dict[str, list[str]] = {}
    kept = []
    for row in rows:
        if row.question is None or row.answer is None:
            left_out.setdefault(f"without a usable {'question' if row.question is None else 'answer'}", []).append(row.id)
            continue
        prompt = template.render(row.question)
        if seen is not None and prompt in seen:
            left_out.setdefault("with a prompt seen before", []).append(row.id)
            continue
        if seen is not None:
            seen.add(prompt)
        kept.append((row, prompt))
    encoded = tokenizer([prompt for _, prompt in kept], add_special_tokens=template.add_special_tokens)["input_ids"] if kept else []
    problems = []
    for (row, prompt), ids in zip(kept, encoded, strict=True):
        if not 0 < len(ids) <= budget:
            left_out.setdefault(f"with a prompt longer than the {budget} tokens that the completion leaves", []).append(row.id)
        else:
            problems.append(Problem(row.id, prompt, tuple(ids), row.answer))
    for reason, ids in left_out.items():
        print(f"data: left out {len(ids)} {what} rows {reason}: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}")
    return problems
