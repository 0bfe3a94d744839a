"""What happens around an algorithm: the command line, resuming, the memory plan, and errors that end in one line.

A script calls `parse_command_line` before it imports torch, so that --help and wrong flags are answered at once, and `run_script`
at its end. Of several values of a flag the last one in this list counts: the default of the script, the default of the embedded
model, a saved config.json (that of `--config`, or of the run that is resumed), the command line.
"""
from __future__ import annotations

import contextlib
import ctypes
import difflib
import errno
import json
import re
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser

from common.config import C, CommonConfig, SamplingConfig, resolve, run_prefix
from common.errors import UserError
from common.run.resume import newest_checkpoint

NOT_TYPED = object()
OF_THE_START = ("config", "resume_from_checkpoint", "output_dir")  # flags that say how a run is started, not what it is


class Formatter(ArgumentDefaultsHelpFormatter):
    """--help with the default of each flag."""

    def _format_action_invocation(self, action: Action) -> str:
        """One spelling of each flag; --with-hyphens is accepted as well."""
        if action.nargs == "?" or isinstance(action.default, bool):
            return action.option_strings[0]
        return f"{action.option_strings[0]} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


class Parser(HfArgumentParser):
    """HfArgumentParser with groups in --help, exact flag names, and errors that name the nearest valid one."""

    def __init__(self, config_class: type) -> None:
        super().__init__([config_class], allow_abbrev=False, usage="%(prog)s [--flag value ...]", formatter_class=Formatter)
        groups: dict[str, Any] = {}
        for spec in fields(config_class):
            groups.setdefault(spec.metadata["group"], self.add_argument_group(spec.metadata["group"]))
        self.names = {spec.name: spec.metadata["group"] for spec in fields(config_class)}
        for action in [a for a in self._optionals._group_actions if a.dest in self.names]:
            self._optionals._group_actions.remove(action)
            groups[self.names[action.dest]]._group_actions.append(action)

    def add_argument(self, *names: str, **options: Any) -> Any:
        """As argparse's, without our metadata, which HfArgumentParser hands on."""
        options.pop("group", None)
        if names[0].startswith("--no_"):
            options["help"] = f"The opposite of --{names[0][5:]}."
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        """Raises UserError where argparse would print its usage and exit."""
        bad = re.search(r"argument (--\w+).*invalid choice: '?(.*?)'? \(choose from (.*)\)", message)
        if bad:
            choices = [choice.strip(" '") for choice in bad[3].split(",")]
            raise UserError(f"{bad[1]} {bad[2]}: {nearest(bad[2], choices)}the choices are {', '.join(choices)}")
        message = re.sub(r"^argument (--\w+)\S*:", r"\1:", message)  # one spelling of the flag
        raise UserError(f"{message.rstrip('.')} (see --help)")

    def typed(self, argv: list[str]) -> dict[str, Any]:
        """The values of the flags in `argv`, and of no others. Raises UserError for an unknown flag, with the nearest one there is."""
        # argparse puts defaults only where a namespace has nothing yet
        namespace, unknown = self.parse_known_args(argv, Namespace(**dict.fromkeys(self.names, NOT_TYPED)))
        if unknown:
            flags = [name for name in self._option_string_actions if "-" not in name[2:]]
            name = unknown[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
            raise UserError(f"unknown argument {unknown[0]}: {nearest(name, flags) if name.startswith('--') else ''}see --help")
        return {name: value for name, value in vars(namespace).items() if value is not NOT_TYPED}


def nearest(word: str, choices: list[str]) -> str:
    """"did you mean X? ", or nothing if no choice is near."""
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {match[0]}? " if match else ""


def parse_config(config_class: type[C], argv: list[str], script: str) -> C:
    """The checked config of a command line.

    `resume_from_checkpoint` comes back as the folder found, with `output_dir` its run. It comes back as `auto` if nothing was found
    and a new run starts. Raises UserError.
    """
    typed = Parser(config_class).typed(argv)
    if typed.get("stop"):
        typed["stop"] = [text.replace("\\n", "\n") for text in typed["stop"]]
    saved = read_config(Path(typed["config"]), config_class) if typed.get("config") else {}
    config = resolve(config_class, saved, typed)
    if typed.get("resume_from_checkpoint"):
        checkpoint = newest_checkpoint(typed["resume_from_checkpoint"], typed.get("output_dir"), run_prefix(config, script))
        if checkpoint is not None:
            config = _resumed(config_class, checkpoint, saved, typed)
    config.check()
    return config


def _resumed(config_class: type[C], checkpoint: Path, asked: dict[str, Any], typed: dict[str, Any]) -> C:
    """The config of a run that goes on from `checkpoint`: its own flags, and those typed that a resumed run may change.

    `asked`: the flags of --config. Raises UserError for a change that is not allowed.
    """
    folder = checkpoint.parent
    if typed.get("output_dir") and Path(typed["output_dir"]).resolve() != folder.resolve():
        raise UserError(f"--output_dir {typed['output_dir']}: a resumed run goes on in its own folder, {folder}; leave it out")
    saved = read_config(folder / "config.json", config_class)
    other = sorted(name for name in asked if name not in typed and asked[name] != saved.get(name))
    if other:  # the same command again, --config included, is fine; another config is not
        raise UserError(f"--config {typed['config']}: the resumed run has its own flags, and {other[0]} differs; leave it out")
    config = resolve(config_class, saved, typed)
    changed = {name: value for name, value in asdict(config).items() if name in typed and name in saved and value != saved[name]}
    fixed = sorted(set(changed) - config_class.resumable)
    if fixed:
        raise UserError(f"--{fixed[0]} {changed[fixed[0]]} differs from the resumed run's {saved[fixed[0]]}; leave it out, "
                        f"or start a new run from its adapter: --adapter {checkpoint}")
    for name in sorted(set(changed) - set(OF_THE_START)):
        print(f"changed on resume: --{name} {saved[name]} -> {changed[name]}")
    config.output_dir, config.resume_from_checkpoint = str(folder), str(checkpoint)
    return config


def read_config(path: Path, config_class: type[SamplingConfig]) -> dict[str, Any]:
    """The flags in a saved config.json. Raises UserError if the file is missing, or is not one of this script."""
    try:
        saved = json.loads(path.read_text())["flags"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not the config.json of a run; give the one in a run folder") from None
    unknown = sorted(set(saved) - {spec.name for spec in fields(config_class)})
    if unknown:
        raise UserError(f"{path} has flags that this script lacks ({', '.join(unknown)}): it belongs to another script")
    return {name: value for name, value in saved.items() if name not in OF_THE_START}


def parse_command_line(config_class: type[C], file: str) -> C:
    """The config of the command line of the script `file`. Ends the process with one line if something is wrong with a flag."""
    with _errors_in_one_line():
        return parse_config(config_class, sys.argv[1:], Path(file).stem)


def run_script(run: Callable[[C], Any], config: C) -> None:
    """Plans the memory of a training run, then calls `run(config)`. Ends with one line instead of a stack trace where that helps."""
    keep_freed_memory()
    with _errors_in_one_line(config):
        if isinstance(config, CommonConfig):
            from common.run.memory_plan import plan_run, table  # imports torch

            plan = plan_run(config)
            if plan is not None:
                print(table(plan, config), flush=True)
                if config.plan_memory is not None:
                    sys.exit(0 if plan.settings is not None else 1)
        run(config)


@contextlib.contextmanager
def _errors_in_one_line(config: SamplingConfig | None = None) -> Iterator[None]:
    """Inside, an error that the user can put right ends the process with its one line; so does a full disk."""
    try:
        yield
    except UserError as error:
        with contextlib.suppress(OSError):  # a run folder goes if there is nothing in it
            Path(config.output_dir if config and config.output_dir else "").rmdir()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        remedy = ("older checkpoints are whole: free some space and go on with --resume_from_checkpoint auto"
                  if hasattr(config, "resume_from_checkpoint") else "free some space; the same command with its --output_dir goes on")
        sys.exit(f"error: no room left to write {error.filename or 'the run folder'} ({error.strerror}); {remedy}")


def keep_freed_memory() -> None:
    """Makes glibc reuse memory that was freed, where by default it hands large blocks back at once and gets them zeroed again.

    That was a fifth of the time of an update on the CPU. A no-op for other C libraries.
    """
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**25)  # the most that every version takes: blocks of up to 32 MiB come from the heap
        mallopt(trim_threshold, 2**31 - 1)  # which does not shrink
