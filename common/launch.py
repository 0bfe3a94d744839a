"""The command line, resuming, the memory plan, and errors that end the process with one line.

A script calls `parse_command_line` before it imports torch, so that --help and wrong flags are answered at once. It calls `run_script`
at its end. A flag can have a value in several places. The last place in this list that has a value counts:

1. the default of the script
2. the default of the embedded model, with `--model tiny`
3. a saved config.json: the file of `--config`, or the file of the run that is resumed
4. the command line
"""
from __future__ import annotations

import contextlib
import ctypes
import difflib
import errno
import functools
import gc
import os
import re
import shlex
import sys
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from common import parallel
from common.config import C, CommonConfig, SamplingConfig
from common.console import fail, guard, hide_bars_of_libraries, say
from common.errors import UserError
from common.flags import CHAT_TEXT, GROUPS, PLANNED
from common.interrupt import Stop, Stopped
from common.run.claim import tidy
from common.run.folder import CONFIG, is_begun
from common.run.go_on import script_of, stopped_line
from common.run.rescue import cause, remedy
from common.run.resume import IDENTITY, checkpoints, find_checkpoint, step_of
from common.run.saved_config import PATHS, Saved, all_flags, different, read_config, resolve, what_differs

# errors of a path that the user has named, which no script can put right
UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ESTALE}
NOT_TYPED = object()  # the value of flags that are not on the command line


class Formatter(ArgumentDefaultsHelpFormatter):
    """Writes --help, with the default of each flag."""

    def _format_action_invocation(self, action: Action) -> str:
        """The flag with underscores only. The spelling --with-hyphens is accepted too, but not shown."""
        if action.nargs == "?" or isinstance(action.default, bool):
            return action.option_strings[0]
        values = action.metavar or self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {values}"


class Parser(HfArgumentParser):
    """HfArgumentParser with groups in --help, exact flag names, and errors that suggest the most similar flag."""

    def __init__(self, config_class: type) -> None:
        super().__init__([config_class], allow_abbrev=False, usage="%(prog)s [--flag value ...]", formatter_class=Formatter)
        self.names = {spec.name: spec.metadata["group"] for spec in fields(config_class)}
        # a script may add a group of its own; --help leaves out a group without flags
        groups: dict[str, Any] = {group: self.add_argument_group(group) for group in dict.fromkeys((*GROUPS, *self.names.values()))}
        for action in [a for a in self._optionals._group_actions if a.dest in self.names]:
            self._optionals._group_actions.remove(action)
            groups[self.names[action.dest]]._group_actions.append(action)
        for spec in fields(config_class):
            if spec.metadata.get("once_bool"):
                self._understand_bool(spec.name, *spec.metadata["once_bool"])

    def add_argument(self, *names: str, **options: Any) -> Any:
        """Adds a flag as argparse does, without the field metadata that HfArgumentParser passes on and argparse does not know."""
        options.pop("group", None), options.pop("once_bool", None)
        if names[0].startswith("--no_"):
            options["help"] = f"The opposite of --{names[0][5:]}."
        return super().add_argument(*names, **options)

    def _understand_bool(self, name: str, on: str, off: str) -> None:
        """The flag `--name` has values that are words. As in older versions it may stand alone, have a truth value, or begin with --no_."""
        action = self._option_string_actions[f"--{name}"]
        words = {**dict.fromkeys(("yes", "true", "t", "y", "1"), on), **dict.fromkeys(("no", "false", "f", "n", "0"), off)}
        action.nargs, action.const, action.type = "?", on, lambda word: words.get(word.lower(), word)
        for spelling in (f"--no_{name}", f"--no-{name.replace('_', '-')}"):
            super().add_argument(spelling, action="store_const", const=off, dest=name, help=SUPPRESS)

    def error(self, message: str) -> NoReturn:
        """Raises UserError. argparse would print its usage and exit."""
        bad = re.search(r"argument (--\w+).*invalid choice: '?(.*?)'? \(choose from (.*)\)", message)
        if bad:
            choices = [choice.strip(" '") for choice in bad[3].split(",")]
            raise UserError(f"{bad[1]} {bad[2]}: {did_you_mean(bad[2], choices)}the choices are {', '.join(choices)}")
        message = re.sub(r"^argument (--\w+)\S*:", r"\1:", message)  # argparse lists both spellings of the flag; keep the first
        raise UserError(f"{message.rstrip('.')} (see --help)")

    def typed(self, argv: list[str]) -> dict[str, Any]:
        """The values of the flags that are in `argv`, by name. Raises UserError for an unknown flag, and suggests the most similar one."""
        # argparse fills in a default only where the namespace has no value yet
        namespace, unknown = self.parse_known_args(argv, Namespace(**dict.fromkeys(self.names, NOT_TYPED)))
        if unknown:
            flags = [name for name in self._option_string_actions if "-" not in name[2:]]
            name = unknown[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
            raise UserError(f"unknown argument {unknown[0]}: {did_you_mean(name, flags) if name.startswith('--') else ''}see --help")
        return {name: value for name, value in vars(namespace).items() if value is not NOT_TYPED}


def did_you_mean(word: str, choices: list[str]) -> str:
    """The text "did you mean X? " with the most similar choice X, or "" if no choice is similar."""
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {match[0]}? " if match else ""


def parse_config(config_class: type[C], argv: list[str], script: str) -> C:
    """The config of a command line, checked. Raises UserError.

    If a checkpoint is found, `resume_from_checkpoint` of the config is its folder, and `output_dir` is its run folder. If
    `--resume_from_checkpoint auto` finds no checkpoint, it stays `auto`, and a new run starts.
    """
    typed = Parser(config_class).typed(argv)
    if typed.get("stop"):
        typed["stop"] = [text.replace("\\n", "\n") for text in typed["stop"]]
    if typed.get("prompt_template", "").startswith(CHAT_TEXT):
        typed["prompt_template"] = typed["prompt_template"].replace("\\n", "\n")
    return _resolved(config_class, typed, argv, script)


def for_programs(run: Callable[[C], Any]) -> Callable[[C], Any]:
    """Makes the function of a script fit for a program or a notebook that calls it, with a config that it made itself.

    --config and --resume_from_checkpoint are resolved as on the command line. However the function ends, its folder is released. Raises
    UserError in a program that a launcher has started several times: each process would do the whole run.
    """
    @functools.wraps(run)
    def called(config: C) -> Any:
        if parallel.count() == 1 and (several := int(os.environ.get("WORLD_SIZE") or 1)) > 1:
            raise UserError(f"a launcher has started {several} processes of this program, and each would do the whole run: call "
                            "common.parallel.join() at the beginning of the program, or start it once")
        try:
            if "given" not in vars(config) and (config.config or getattr(config, "resume_from_checkpoint", None)):  # not of a command line
                typed = {spec.name: getattr(config, spec.name) for spec in fields(config)
                         if spec.name in config.passed or getattr(config, spec.name) != spec.default}
                try:
                    vars(config).update(vars(_resolved(type(config), typed, [], script_of(config).stem)))
                except SystemExit:  # the run has done all its steps; the program goes on
                    return None
            return run(config)
        finally:
            config.release()

    return called


def _resolved(config_class: type[C], typed: dict[str, Any], argv: list[str], script: str) -> C:
    """The config of the flags that were `typed`, checked, as `parse_config`."""
    saved = _without_servers(read_config(Path(typed["config"]), config_class), typed) if typed.get("config") else None
    if saved:
        _refuse_code(saved, typed, [f"{script}.py", *argv])
    config = resolve(config_class, saved.flags, typed, saved.given) if saved else resolve(config_class, {}, typed)
    if typed.get("resume_from_checkpoint"):
        checkpoint = find_checkpoint(config, script)
        if checkpoint:
            begun = _without_servers(read_config(checkpoint.parent / CONFIG, config_class), typed)
            _refuse_code(begun, typed, [f"{script}.py", *argv])
            config, saved = _resumed_config(config_class, script, checkpoint, begun, saved, typed), begun
            if typed["resume_from_checkpoint"] == "auto":
                config.seen = tuple(path.name for path in checkpoints(checkpoint.parent))
        elif config.output_dir and is_begun(folder := Path(config.output_dir)) and (
                why := what_differs(read_config(folder / CONFIG, config_class), config, script, config.resumable)):
            raise UserError(  # starting over would delete its files
                f"--output_dir {folder} holds another run: {why}; name another folder, or delete that one")
    if saved:
        _say_what_is_read(saved, typed)
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{error} (the flags that were not typed are those of {saved.path})" if saved else str(error)) from None
    return config


def _resumed_config(config_class: type[C], script: str, checkpoint: Path, saved: Saved, given: Saved | None, typed: dict[str, Any]) -> C:
    """The config of a run that continues from `checkpoint`: its `saved` flags, and typed flags that may change on resume.

    given: the file of --config, if there is one. Ends the process with code 0 if the run has done all its steps. Raises UserError for a
    change that is not allowed.
    """
    folder = checkpoint.parent
    if typed.get("output_dir") and Path(typed["output_dir"]).resolve() != folder.resolve():
        raise UserError(f"--output_dir {typed['output_dir']}: a resumed run goes on in its own folder, {folder}; leave the flag out")
    if saved.script not in (None, script):
        raise UserError(f"{folder} is a run of {saved.script}.py; continue it with that script, or start a new run from its adapter: "
                        f"--adapter {shlex.quote(str(checkpoint))}")
    before = all_flags(saved, config_class)
    other = [name for name in different(all_flags(given, config_class), before) if name not in typed] if given else []
    if other:  # --config may stay in a repeated command, but it must not bring other flags
        raise UserError(f"--config {typed['config']}: the resumed run has its own flags, and {other[0]} differs; leave --config out")
    config = resolve(config_class, saved.flags, typed)
    config.given = frozenset({*saved.given, *typed})
    config.derive(**{name: value for name, value in saved.derived.items() if name not in (*PLANNED, *typed)})  # a plan is made anew
    before |= saved.derived
    changed = sorted(different(typed, before))
    movable = set(PATHS) if (checkpoint / IDENTITY).is_file() else set()  # what is there now is compared before anything is loaded
    movable -= set() if config.needs_reference else {"adapter"}  # without a reference the adapter is that of the checkpoint
    fixed = [name for name in changed if name not in config_class.resumable and name not in movable]
    if fixed:
        raise UserError(f"--{fixed[0]} {typed[fixed[0]]} differs from the resumed run's {before[fixed[0]]}; leave it out, "
                        f"or start a new run from its adapter: --adapter {shlex.quote(str(checkpoint))}")
    if step_of(checkpoint) >= config.max_steps:
        say(f"{folder} is finished: it has done {step_of(checkpoint)} steps, and --max_steps is {config.max_steps}. Nothing was changed. "
            f"To go on: --resume_from_checkpoint {shlex.quote(str(checkpoint))} with a higher --max_steps")
        tidy(folder)
        sys.exit(0)
    for name in changed:
        say(f"changed on resume: --{name} {before[name]} -> {typed[name]}")
        if name in ("dataset", "eval_dataset") and before[name] and f"first_{name}" not in config.derived:
            config.derive(**{f"first_{name}": before[name]})  # ids of problems, and with them random draws, begin with that name
    config.output_dir, config.resume_from_checkpoint = str(folder), str(checkpoint)
    return config


def _refuse_code(saved: Saved, typed: dict[str, Any], command: list[str]) -> None:
    """Raises UserError if a saved config.json names code and the command line does not: the file may be another person's."""
    code = saved.flags.get("reward")
    if code and not typed.get("reward"):
        file, _, function = code.rpartition(":")
        raise UserError(f"{saved.path} names code: the function {function} of the file {file}. Code runs only if the command line names "
                        f"it. Look at the file, then give: python {shlex.join([*command, '--reward', code])}")


def _without_servers(saved: Saved, typed: dict[str, Any]) -> Saved:
    """The saved flags without servers that the command line does not name, which is said: the file may be another person's.

    Servers get prompts, and the key in VLLM_API_KEY.
    """
    servers = saved.flags.get("vllm_server_base_url")
    if not servers or typed.get("vllm_server_base_url"):
        return saved
    say(f"note: {saved.path} names vLLM servers, and they are not asked: only the command line can name servers. To ask them, add "
        f"--vllm_server_base_url {shlex.join(servers)}")
    theirs = "vllm_server_base_url", "vllm_server_timeout", "sample_ahead"
    return saved._replace(flags={name: value for name, value in saved.flags.items() if name not in theirs})


def _say_what_is_read(saved: Saved, typed: dict[str, Any]) -> None:
    """Shows which files of this machine a saved config.json brings into prompts, and where it sends them: it may be another person's."""
    found = [f"--{name} {shlex.quote(saved.flags[name])}" for name in ("dataset", "eval_dataset", "prompt_template", "system_prompt")
             if saved.flags.get(name) and name not in typed
             and os.path.exists(os.path.expanduser(saved.flags[name].removeprefix(CHAT_TEXT)))]
    tracker = saved.flags.get("report_to") or "none"
    if tracker not in ("none", "tensorboard") and "report_to" not in typed:
        found.append(f"--report_to {tracker}, which gets metrics, flags and completions")
    if found:
        say(f"note: not typed but named by {saved.path}: {'; '.join(found)}")


def parse_command_line(config_class: type[C], file: str) -> C:
    """The config of the command line of the script `file`. Ends the process with one line if a flag is wrong.

    If the process runs that script, Python looks for no garbage until `run_script`: imports make none, and it takes a fifth of their time.
    """
    guard()
    if not sys.stderr.isatty():
        hide_bars_of_libraries()
    with parallel.together(), _errors_in_one_line():
        parallel.join()
        config = parallel.first(lambda: parse_config(config_class, sys.argv[1:], Path(file).stem), "the flags")
    if getattr(sys.modules["__main__"], "__file__", None) == file:
        gc.disable()
    return config


def run_script(run: Callable[[C], Any], config: C) -> None:
    """Plans the memory of a training run, then calls `run(config)`. At the end its folder is released, and removed if it is empty.

    Errors that the user can put right end the process with one line and without a stack trace.
    """
    guard()
    if not gc.isenabled():
        gc.freeze()  # what is imported stays
        gc.enable()
    keep_freed_memory()
    with parallel.together(to_the_end=True), Stop(), _errors_in_one_line(config):
        from common.run.gpu import check_gpu  # imports torch

        check_gpu(config)
        if isinstance(config, CommonConfig):
            from common.run.memory_plan import plan_run, table  # imports torch

            plan = plan_run(config)
            if plan is not None:
                say(*table(plan, config))
                if config.plan_memory is not None:
                    sys.exit(0 if plan.settings is not None else 1)
        try:
            run(config)
        finally:
            config.release()


@contextlib.contextmanager
def _errors_in_one_line(config: SamplingConfig | None = None) -> Iterator[None]:
    """In a `with` block: a UserError ends the process with one line. A full disk, a lost run folder or a signal does so too.

    All other errors keep their stack trace.
    """
    try:
        yield
    except UserError as error:
        fail(*error.lines)
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Stopped) else Stopped()
        if config is not None and parallel.first_to_say():
            say(stopped_line(config, stopped.number), file=sys.stderr if parallel.rank() else None)
        sys.exit(128 + stopped.number)
    except OSError as error:
        folder = Path(config.output_dir).absolute() if config and config.output_dir else None
        ours = folder and error.filename and Path(os.fsdecode(error.filename)).absolute().is_relative_to(folder)
        if not ours and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if error.errno not in UNUSABLE or not error.filename:
                raise
            fail(f"error: {os.fsdecode(error.filename)} cannot be used ({error.strerror}); put it right, or name another path")
        fail(f"error: {cause(error, folder or Path())}; {remedy(error)}, and start again")


def keep_freed_memory() -> None:
    """Makes the C library glibc keep freed memory for reuse. With other C libraries it does nothing.

    By default glibc returns large blocks to the system at once, and the system clears them before it gives them out again. This took
    a fifth of the time of an update on a CPU.
    """
    mmap_threshold, trim_threshold = -3, -1  # numbers of these options in malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**25)  # blocks of up to 32 MiB come from the heap; 32 MiB is the highest value that every version accepts
        mallopt(trim_threshold, 2**31 - 1)  # the heap does not shrink
