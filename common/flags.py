"""One flag: a field of a config, with its line in --help; values of older versions; the check of a value. Needs no torch."""
from __future__ import annotations

from collections.abc import Set
from dataclasses import Field, field
from typing import Any

from common.errors import UserError

# flags that fit a run to its card, worked out anew on each card if nobody typed them; they do not change what a run computes
PLANNED = ("max_tokens_per_microbatch", "gradient_checkpointing", "vllm_enable_sleep_mode", "vllm_gpu_memory_utilization")
CHAT_TEXT = "chat:"  # in --prompt_template, before the text of the user message or its file
GROUPS = ("model", "data", "problems", "completions", "update", "algorithm", "run")  # the order of the flag groups in --help


def flag(default: Any, group: str, help: str, once_bool: tuple[Any, Any] | None = None, metavar: str | None = None) -> Any:
    """A dataclass field that becomes the flag `--name`. --help lists it under `group`, with `help` as its line.

    once_bool: of a flag that was true or false in older versions, what these two are now. metavar: how --help writes its values.
    """
    metadata: dict[str, Any] = {"metavar": metavar} if metavar else {}
    metadata |= {"help": help.replace("%", "%%"), "group": group, "once_bool": once_bool}  # argparse takes a single % for a format
    return field(default=default, metadata=metadata)


def as_now(spec: Field[Any], value: Any) -> Any:
    """A flag's value, which may be of an older version. spec: the field of the flag."""
    once = spec.metadata.get("once_bool")
    return once[not value] if once and isinstance(value, bool) else value


def require(condition: bool, name: str, value: object, wanted: str) -> None:
    """Raises UserError for the flag `name` if `condition` is False. `wanted`: values that work."""
    if not condition:
        raise UserError(f"--{name} {value} cannot work: give {wanted}")


def within(name: str, values: list[int] | None, most: int, what: str) -> None:
    """Raises UserError for the flag `name` if a value is not from 1 to `most`, the number of `what`."""
    if values and not 1 <= min(values) <= max(values) <= most:
        raise UserError(f"--{name} {' '.join(map(str, values))}: " + (f"give numbers from 1 to the {most} {what}" if most else
                        f"there are no {what}; leave it out"))


def alone(config: Any, **reads: Set[str]) -> None:
    """Raises UserError if a flag was given that does nothing beside one of `reads`, each with the names of the flags that it reads."""
    for name, read in reads.items():
        ignored = {"config"} & config.given or config.given - read - {name}
        if getattr(config, name) is not None and ignored:
            raise UserError(f"--{name} works on saved completions: leave out --{', --'.join(sorted(ignored))}, which would do nothing")
