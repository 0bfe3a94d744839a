"""The command line: HfArgumentParser over a dataclass of flags, grouped in --help, with errors that name the remedy."""
from __future__ import annotations

import difflib
import re
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace
from dataclasses import field, fields
from typing import Any, NoReturn

from transformers import HfArgumentParser


class UserError(Exception):
    """Something the user can put right: the text names the cause and the remedy, and is shown without a stack trace."""


def flag(default: Any, group: str, help: str) -> Any:
    """A dataclass field that becomes `--name`, listed under `group` in --help."""
    metadata = {"help": help.replace("%", "%%"), "group": group}
    return field(default=default, metadata=metadata)


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
        names = {spec.name: spec.metadata["group"] for spec in fields(config_class)}
        for action in [a for a in self._optionals._group_actions if a.dest in names]:
            self._optionals._group_actions.remove(action)
            groups[names[action.dest]]._group_actions.append(action)

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

    def parse(self, argv: list[str]) -> Namespace:
        """The parsed flags. Raises UserError for unknown ones, with the nearest that there is."""
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [name for name in self._option_string_actions if "-" not in name[2:]]
            name = unknown[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
            raise UserError(f"unknown argument {unknown[0]}: {nearest(name, flags) if name.startswith('--') else ''}see --help")
        return namespace


def nearest(word: str, choices: list[str]) -> str:
    """"did you mean X? ", or nothing if no choice is near."""
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {match[0]}? " if match else ""
