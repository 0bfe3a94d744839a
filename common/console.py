"""All that is shown on the console goes through here. Printing never ends a run, and no text controls the terminal.

`say` prints lines, `fail` ends the process with a line, `bar` makes a progress bar. `guard` protects the two streams of a process as well:
from libraries, stack traces and Python's own end.
"""
from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterable
from typing import Any, NoReturn, TextIO


def say(*lines: str, file: TextIO | None = None) -> None:
    """Prints each text as one line, and leaves progress bars whole. file: by default stdout. Never raises."""
    from tqdm import tqdm  # not at the top: the process of a reward imports this file and needs to start in milliseconds

    stream = Stream(sys.stdout if file is None else file)
    with contextlib.suppress(Exception):
        tqdm.write("".join(f"{shown(str(line))}\n" for line in lines), file=stream, end="")
    stream.flush()


def fail(*lines: str) -> NoReturn:
    """Ends the process with code 1. Each text is shown as one line on stderr."""
    raise SystemExit("\n".join(shown(line) for line in lines))


def bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A progress bar of tqdm on stderr that never raises. options: those of tqdm. Without a terminal there is no bar."""
    from tqdm import tqdm

    try:
        return tqdm(items, file=Stream(sys.stderr), dynamic_ncols=True, **{"disable": None, **options})
    except Exception:  # the console has gone, and the streams are not guarded
        return tqdm(items, **{**options, "disable": True})


def hide_bars_of_libraries() -> None:
    """Drops the progress bars of the libraries that load models and data: a log would keep every state of them."""
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # datasets is imported when data is read
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bars()
    disable_progress_bar()


def shown(text: str, keep: str = "") -> str:
    r"""The text for a terminal: "\x1b" and other characters that cannot be seen become their escapes.

    These are control characters, format characters such as those that turn the direction of writing, line breaks of every kind, and lone
    surrogates. `keep`: characters that stay.
    """
    if text.isprintable():
        return text
    seen = (c.isprintable() or c in keep or unicodedata.category(c) == "Zs" for c in text)  # Zs: wide and unbreakable spaces
    return "".join(c if ok else c.encode("unicode_escape").decode() for c, ok in zip(text, seen, strict=True))


class Stream:
    """A stream of text around another. Writing to it never raises, and control characters are shown.

    Progress bars stay possible: line breaks, tabs and a return at the beginning of a text are kept, and so is a move of the cursor by
    itself. Colours are dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """stream: None stands for the stream of a process that has none."""
        self.stream: TextIO | None = stream.stream if isinstance(stream, Stream) else stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __eq__(self, other: object) -> bool:
        """tqdm compares streams to find the bars that a line would break."""
        return self.stream is (other.stream if isinstance(other, Stream) else other)

    def __hash__(self) -> int:
        return id(self.stream)

    def write(self, text: str) -> int:
        """Writes as much of the text as the stream takes. A character that its encoding does not have is shown as its escape."""
        with contextlib.suppress(Exception):  # the terminal has gone, the disk is full, the reader ended, the stream is closed, ...
            if not re.fullmatch(r"\n*(\x1b\[A)*\r?", text):  # as tqdm moves between bars
                text = re.sub(r"\x1b\[[0-9;]*m", "", text)
                text = text[:text.startswith("\r")] + shown(text[text.startswith("\r"):], keep="\n\t")
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        with contextlib.suppress(Exception):
            self.stream.flush()

    def isatty(self) -> bool:
        try:
            return self.stream.isatty()
        except Exception:
            return False


def guard() -> None:
    """For a process that runs a script: its stdout, stderr and stack traces never raise and are shown as `say` shows its lines.

    Nothing reads its input: in a loop of a shell that reads a list, the list would be gone. A terminal stays, for breakpoint().
    """
    for number in (0, 1, 2):  # else the next file that is opened would get the number, and with it what is meant for the console
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if not os.isatty(0):
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # children have it too
        os.close(nothing)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Stream):
            continue
        setattr(sys, name, Stream(stream or open(os.devnull, "w")))  # noqa: SIM115 (open until the process ends)
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):
                if type(handler) is logging.StreamHandler and handler.stream is stream:
                    handler.stream = getattr(sys, name)
    sys.excepthook = show_exception
    atexit.unregister(_let_go)
    atexit.register(_let_go)


def show_exception(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Prints a stack trace to stderr. Further lines of a message are indented, so that they cannot be taken for lines of ours."""
    for part in traceback.format_exception(kind, error, trace):
        first, *others = part.rstrip("\n").split("\n")
        say(first, *(line if line.startswith("  ") else f"    {line}" for line in others), file=sys.stderr)


def _let_go() -> None:
    """Drops, at the end of the process, what a broken stream still holds. Python would otherwise end with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.stream.flush()
        except Exception:
            with contextlib.suppress(Exception):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
