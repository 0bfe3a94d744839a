"""Chat templates. They are programs that came with a model, so they run in a process of their own, with limits on time and memory.

The sandbox of transformers keeps a template from files and from Python, but not from loops of 10^10 rounds or texts of gigabytes. Such
a loop is one call into C, which no signal and no thread can stop. A process can be stopped, and a fork of this one is made in
milliseconds.
"""
from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

Chat = Sequence[dict[str, Any]]  # messages with "role" and "content"

SECONDS, SECONDS_A_CHAT = 10.0, 0.01  # a prompt takes some 0.0001 s
MEMORY = 2**30  # bytes that a template may take
ROOM, RATIO = 2**26, 100  # bytes of all prompts: 64 MiB, and beyond that 100 times the size of the messages


class TemplateError(Exception):
    """A chat template that cannot write a chat, in words."""


def render_chats(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], **options: Any) -> list[str | TemplateError]:
    """For each chat its prompt, or why the template cannot write it. options: as of `apply_chat_template`.

    Raises TemplateError if the template takes too long or too much memory.
    """
    if not hasattr(os, "fork"):  # Windows
        return [_render(tokenizer, chat, options) for chat in chats]
    seconds = SECONDS + SECONDS_A_CHAT * len(chats)
    limit = ROOM + RATIO * sum(len(str(message.get("content"))) for chat in chats for message in chat)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _write_all(writing, tokenizer, chats, options, seconds)
    os.close(writing)
    try:
        content = b"".join(_parts(reading, limit, time.monotonic() + seconds))
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    answers = [json.loads(line) for line in content.split(b"\n")[:-1]]
    if len(answers) < len(chats):
        raise TemplateError("it made its process end")
    return [answer if isinstance(answer, str) else TemplateError(answer[0]) for answer in answers]


def _parts(reading: int, limit: int, end: float) -> Iterator[bytes]:
    """What comes through the pipe until it is closed. Raises TemplateError after `limit` bytes, and at the time `end`."""
    ready, size = select.poll(), 0
    ready.register(reading, select.POLLIN)
    while True:
        if not ready.poll(max(0.0, end - time.monotonic()) * 1000):
            raise TemplateError("it takes too long")
        part = os.read(reading, 2**20)
        if not part:
            return
        size += len(part)
        if size > limit:
            raise TemplateError(f"it writes prompts of more than {limit >> 20} MiB")
        yield part


def _write_all(writing: int, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], options: dict[str, Any],
               seconds: float) -> NoReturn:
    """The work of the other process: writes a line of JSON for each chat, a text or a list with an error."""
    import resource  # not there on Windows

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the other process too
        # the process ends by itself if this one is killed
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        _limit_memory()
        with open(writing, "wb") as file:
            for chat in chats:
                answer = _render(tokenizer, chat, options)
                answer = answer if isinstance(answer, str) else [str(answer)]
                file.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    finally:
        os._exit(0)


def _limit_memory() -> None:
    """This process may take MEMORY more than it has. Only Linux says how much it has."""
    import resource

    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (OSError, ValueError):  # a lower limit is set already
        pass


def _render(tokenizer: PreTrainedTokenizerBase, chat: Chat, options: dict[str, Any]) -> str | TemplateError:
    try:
        return tokenizer.apply_chat_template(list(chat), tokenize=False, **options)
    except MemoryError:
        return TemplateError(f"it takes more than {MEMORY >> 30} GiB of memory")
    except RecursionError:
        return TemplateError("it calls itself without end")
    except Exception as error:  # a template may do anything that Python raises an error for
        return TemplateError(str(error).strip().split("\n")[0][:300] or type(error).__name__)


@lru_cache(maxsize=8)
def _behind_an_answer(tokenizer: PreTrainedTokenizerBase, template: str) -> list[str]:
    """What stands behind an answer at the end of a chat, and behind one before another question. template: for the cache alone."""
    question, answer = {"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "That is two"}
    try:
        texts = render_chats(tokenizer, [[question, answer], [question, answer, question]])
    except TemplateError:
        return []
    return [text.rpartition("That is two")[2] for text in texts if isinstance(text, str) and "That is two" in text]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, str]:
    """(id, text) of what ends an answer in the chat template: (151645, "<|im_end|>"). A text that is no token of its own has id None.

    Text counts only directly behind the answer. (None, "") if the tokenizer has no template, or one that ends answers with nothing.
    """
    if not tokenizer.chat_template:
        return None, ""
    tokens = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
    tokens |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    behind = _behind_an_answer(tokenizer, str(tokenizer.chat_template))
    for text in behind:
        found = max((token for token in tokens if token.strip() and text.lstrip().startswith(token)), key=len, default=None)
        if found is not None:
            return tokens[found], found
        if text.strip():
            return None, text.split("\n")[0].strip() if text is behind[0] else ""
    return None, ""
