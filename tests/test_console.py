"""Showing never ends a run, and nobody's text can steer the terminal."""

import ast
import errno
import io
import logging
import os
import subprocess
import sys
import warnings

import pytest
from helpers import ROOT, run
from hostile import terminal

from common.console import bar, fail, guard, say, show_exception, shown
from common.errors import UserError

STEERING = (
    "\x00\x07\x08\t\n\r\x0b\x0c\x1b\x7f\x80\x85\x9b\x9d\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff"
    "\ud800\udc1b\U000e0041"
)
WRITING = "Grüße 数学の問題 مسألة שאלה 🎓 \u00a0\u3000 C:\\new é"


def test_what_a_terminal_obeys_is_shown_and_other_writing_stays():
    assert shown("\x1b]0;owned\x07") == r"\x1b]0;owned\x07" and shown("a\u202eb\nc") == r"a\u202eb\nc"
    assert shown(STEERING).isprintable() and all(not shown(c).startswith(c) for c in STEERING)
    assert shown(WRITING) == WRITING


def test_a_line_is_one_line_whatever_is_in_it(capsys):
    say("note: 3\nstep 1  reward 1.0", "next\r\x1b[2K\x1b]52;c;aGk=\x07")
    assert capsys.readouterr().out == "note: 3\\nstep 1  reward 1.0\nnext\\r\\x1b[2K\\x1b]52;c;aGk=\\x07\n"
    with pytest.raises(SystemExit) as end:
        fail(*UserError("no column a\nb", "  table\x1b").lines)
    assert end.value.code == "error: no column a\\nb\n  table\\x1b"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "shift_jis"])
def test_what_an_encoding_lacks_is_shown_as_its_escape(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    say(STEERING + WRITING, file=stream)
    text = raw.getvalue().decode(encoding)
    assert text.startswith("\\x00\\x07") and "Gr" in text and text.endswith("\n") and not set(STEERING) & set(text.rstrip("\n"))


class Broken(io.TextIOBase):
    """A stream on which everything fails."""

    encoding = "no-such-encoding"

    def __init__(self, error):
        self.error = error

    def fails(self, *_):
        raise self.error

    write = flush = isatty = fileno = fails


ERRORS = [
    *(OSError(number, os.strerror(number)) for number in (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF, errno.EFBIG, errno.EDQUOT)),
    BlockingIOError(errno.EAGAIN, "would block", 3),
    ValueError("I/O operation on closed file"),
    RuntimeError("a notebook's stream of a kernel that has gone"),
    None,
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__ + str(getattr(error, "errno", "")))
def test_nothing_that_happens_to_a_stream_is_raised(error, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken(error) if error else None)
    say("a", "b")
    with bar(range(3), disable=False) as progress:
        for _ in progress:
            say("between")
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    guard()
    print("a library's", file=sys.stdout, flush=True)
    warnings.warn("of a library", stacklevel=1)
    logging.getLogger("some.library").warning("of a library")
    show_exception(ValueError, ValueError("x"), None)
    for bars in (range(3), None):
        with bar(bars) as progress:
            progress.update(0)
    if error:
        error.__traceback__ = None  # it holds a bar that could not be made, and later bars would be drawn below that


def test_streams_of_a_script_show_what_libraries_write_and_keep_their_bars(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    handler = logging.StreamHandler()  # a library made it when it was imported
    logging.getLogger("some.library").addHandler(handler)
    guard()
    logging.getLogger("some.library").warning("config of \x1b]0;owned\x07")
    logging.getLogger("some.library").removeHandler(handler)
    sys.stderr.write("\r 50% done")
    sys.stderr.write("\n\x1b[A")  # between two bars
    sys.stderr.writelines(["\x1b[31mred\x1b[0m\n", "two\nlines\x1b[A\n"])
    assert stream.getvalue() == "config of \\x1b]0;owned\\x07\n\r 50% done\n\x1b[Ared\ntwo\nlines\\x1b[A\n"
    assert sys.stderr == stream and hash(sys.stderr) == id(stream)


def test_a_stack_trace_cannot_be_taken_for_lines_of_ours(capsys):
    show_exception(ValueError, ValueError("\x1b]0;owned\x07\nstep 9  reward 1.000\r\x1b[A"), None)
    assert capsys.readouterr().err == "ValueError: \\x1b]0;owned\\x07\n    step 9  reward 1.000\\r\\x1b[A\n"


PROCESS = "import sys; sys.path.insert(0, {root!r}); from common.console import guard, say, fail; guard(); {body}"


@pytest.mark.parametrize(
    "body, code", [("say('x' * 99999)", 0), ("print('x' * 99999)", 0), ("fail('error: x' * 9999)", 1), ("1 / 0", 1)], ids=str
)
@pytest.mark.parametrize("ends", ["{} >&- 2>&-", "{} >/dev/full 2>/dev/full", "nobody reads"])
def test_the_code_of_a_process_is_its_own_whatever_its_streams_are(ends, body, code):
    command = [sys.executable, "-c", PROCESS.format(root=str(ROOT), body=body)]
    if ends == "nobody reads":
        reading, writing = os.pipe()
        os.close(reading)
        assert subprocess.run(command, stdout=writing, stderr=writing).returncode == code
        os.close(writing)
    else:
        done = subprocess.run(["sh", "-c", ends.format('"$@"'), "sh", *command], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_files_that_are_opened_later_do_not_get_the_numbers_of_closed_streams(tmp_path):
    body = f"file = open({str(tmp_path / 'metrics')!r}, 'w'); import os; os.write(2, b'to the console'); sys.exit(file.fileno() < 3)"
    command = [sys.executable, "-c", PROCESS.format(root=str(ROOT), body=body)]
    assert subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *command]).returncode == 0
    assert (tmp_path / "metrics").read_text() == ""


def test_all_that_is_shown_goes_through_the_console():
    """No print, no sys.exit with a text, no writing to a stream, no bar of tqdm's own. What a reward's process prints, the run shows."""
    rewards = {ROOT / "common/verify/reward_worker.py", *(ROOT / "examples/rewards").glob("*.py")}
    paths = {path for room in ("common", "examples", "benchmarks", "tools") for path in (ROOT / room).rglob("*.py")}
    for path in {*ROOT.glob("*.py"), *paths} - {ROOT / "common/console.py"} - rewards:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called, first = ast.unparse(node.func), node.args[0] if node.args else ast.Constant(0)
                number = isinstance(first, (ast.Constant, ast.IfExp, ast.BinOp)) and not isinstance(getattr(first, "value", 0), str)
                shows = called == "print" or called.endswith((".print_exc", "tqdm.write", "stdout.write", "stderr.write"))
                assert not shows and not (called in ("sys.exit", "SystemExit") and not number), (path, node.lineno, called)
            assert not isinstance(node, ast.ImportFrom) or node.module != "tqdm", path


def test_other_peoples_text_cannot_steer_the_terminal(tmp_path, random_models, monkeypatch, capfd):
    def told(*flags):
        code = run("train_grpo", tmp_path / "run", *flags, "--max_steps", "1", "--eval_steps", "0", monkeypatch=monkeypatch)
        return str(code) + "".join(capfd.readouterr())

    model = ["--model", str(random_models["qwen3"]), "--dataset"]
    for name in ("columns", "file_name", "reward"):
        (tmp_path / name).mkdir()
    texts = [
        told(*model, str(terminal.make_columns(tmp_path / "columns"))),
        told(*model, str(terminal.make_file_name(tmp_path / "file_name"))),
        told("--reward", f"{terminal.make_reward(tmp_path / 'reward')}:f"),
    ]
    for text in texts:
        assert "owned" in text and "\nstep    9" not in text, text
        assert not {c for c in text if not c.isprintable()} - {"\n", "\r"}, text  # a return: of the progress bar
        assert "\r\\x9b" not in text and "\\x1b]0;owned\\x07" in text
