"""Reads the config.json of a run, and checks it as the command line is checked. Needs no torch."""
from __future__ import annotations

import json
import os
from collections.abc import Set
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, NoReturn, Union, get_args, get_origin, get_type_hints

from common.config import C, SamplingConfig
from common.console import say
from common.errors import UserError
from common.files import without_repeats
from common.flags import PLANNED, as_now
from common.run.folder import CONFIG, CONFIG_COPY

START_FLAGS = ("config", "resume_from_checkpoint", "output_dir")  # these say how a run is started; a saved config does not pass them on
# flags that name something to read: the same content may lie elsewhere when a run is resumed, since its checkpoints have fingerprints
PATHS = ("model", "adapter", "dataset", "eval_dataset", "prompt_template", "system_prompt", "reward")
MAX_BYTES = 10_000_000  # of a config.json; real ones have some thousand
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}


class Saved(NamedTuple):
    """What config.json says of a run."""

    path: Path
    script: str | None
    flags: dict[str, Any]  # without START_FLAGS and derived values
    given: Set[str] = frozenset()  # names of the flags that were typed; the others are defaults of that time
    derived: dict[str, Any] = {}  # noqa: RUF012 -- never changed. Values that the run worked out itself


def resolve(config_class: type[C], saved: dict[str, Any], typed: dict[str, Any], given: Set[str] | None = None) -> C:
    """The config that has `typed` flags, else `saved` flags, else the defaults of the embedded model, else those of the script.

    saved: flags of a config.json. typed: flags of the command line. given: names of the saved flags that were typed for that run; None:
    all of them. The other saved flags are defaults of that time. They count if both runs have the embedded model, or neither.
    """
    given = set(saved) if given is None else given & set(saved)
    chosen = {**{name: saved[name] for name in given}, **typed}
    config = config_class(**{**saved, **typed})
    defaults = {} if (config.model == "tiny") != (saved.get("model", config.model) == "tiny") else saved
    own = config.embedded_defaults()
    longest = {name: own[name] for name in ("max_completion_length",) if name in own}  # for this run's problems
    config = config_class(**{**own, **defaults, **longest, **chosen})
    config.given = frozenset(chosen)
    return config


def read_record(path: Path) -> dict[str, Any]:
    """The whole content of a config.json, or of its copy where it is damaged. Raises UserError if neither is of a run."""
    try:
        return _read_record(path)
    except UserError as error:
        copy = path.with_name(CONFIG_COPY)
        if path.name != CONFIG or not os.path.lexists(copy):
            raise
        record = _read_record(copy)
        _note(f"note: {str(error).partition(';')[0]}; its copy {CONFIG_COPY} is read instead")
        return record


_note = lru_cache(maxsize=64)(say)  # several places read the file of one run, and one note is enough


def _read_record(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # a pipe or a device could be read for ever
            raise ValueError("there is no such file")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        record = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=without_repeats, parse_constant=_refused)
        if not isinstance(record, dict) or not isinstance(record.get("flags"), dict):
            raise ValueError("it has no flags")
        return record
    except (OSError, ValueError, RecursionError) as error:
        cause = "it is nested too deeply" if isinstance(error, RecursionError) else getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} is not the config.json of a run ({cause}); give a file that lies in a run folder") from None


def read_config(path: Path, config_class: type[SamplingConfig]) -> Saved:
    """The flags in a saved config.json. Raises UserError as `read_record`, for flags of another script, and for values of a wrong type."""
    record = read_record(path)
    types = get_type_hints(config_class)
    specs = {spec.name: spec for spec in fields(config_class)}
    hints = {name: types[name] for name in specs}
    unknown = sorted(set(record["flags"]) - set(hints))
    if unknown:
        named = ", ".join(unknown[:5])[:200] + ", ..." * (len(unknown) > 5)
        raise UserError(f"{path} has flags that this script does not have ({named}): it belongs to another script, or to a newer version "
                        "of this one")
    flags = {name: _checked(path, name, as_now(specs[name], value), hints[name])
             for name, value in record["flags"].items() if name not in START_FLAGS}
    derived = record.get("derived", {} if "given" in record else _worked_out_by_older_version(record, flags))
    given = record.get("given", sorted(set(flags) - set(derived)))
    given = set(_checked(path, "given", given, list[str])) & set(flags)
    if not isinstance(derived, dict):
        _refuse(path, "derived", derived, "an object")
    derived = {name: _checked(path, name, value, hints.get(name, str)) for name, value in derived.items() if name not in START_FLAGS}
    if "given" not in record:
        flags = {name: value for name, value in flags.items() if name not in derived}
    return Saved(path, _checked(path, "script", record.get("script"), str | None), flags, given, derived)


def all_flags(saved: Saved, config_class: type[SamplingConfig]) -> dict[str, Any]:
    """Every flag of the saved run: those that an older version did not have at their defaults, and without derived values."""
    return resolve(config_class, saved.flags, {}).flags()


def different(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """The names of the flags in `now` that have another value in `before`. Two paths of the same file or folder are one value."""
    return [name for name, value in now.items() if name not in START_FLAGS and not _same(name, value, before[name])]


def what_differs(saved: Saved, config: SamplingConfig, script: str, but: Set[str] = frozenset()) -> str | None:
    """How the saved run is another one than this command would start, in words; None if it is the same. but: flags that may differ."""
    if saved.script not in (None, script):
        return f"it is of {saved.script}.py"
    before, now = all_flags(saved, type(config)), config.flags()
    other = next((name for name in different(now, before) if name not in but), None)
    return f"its --{other} is {before[other]}, not {now[other]}" if other else None


def _same(name: str, one: Any, other: Any) -> bool:
    if one == other or name not in PATHS or one is None or other is None:
        return one == other
    if name == "reward":
        (one, _, function), (other, _, other_function) = one.rpartition(":"), other.rpartition(":")
        if function != other_function:
            return False
    return os.path.exists(one) and os.path.realpath(one) == os.path.realpath(other)


def _worked_out_by_older_version(record: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The flags of a config.json without "derived" that the run worked out itself, as far as its command line tells."""
    command = record.get("command")
    if not isinstance(command, list):
        return {}
    typed = {str(word).partition("=")[0].lstrip("-").replace("-", "_").removeprefix("no_") for word in command if str(word)[:2] == "--"}
    names = [*PLANNED]
    if not typed & {"config", "resume_from_checkpoint"}:  # else the flags may have been typed for an earlier run
        names += ["stop", *(("lora_r", "lora_alpha") if flags.get("adapter") else ())]
    return {name: flags[name] for name in names if name in flags and name not in typed}


# ---- types ----------------------------------------------------------------------------------------------------------

def _checked(path: Path, name: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the type that the flag has, a whole number made a float where one is wanted. Raises UserError."""
    found = _fitting(value, hint)
    if found is _NO:
        _refuse(path, name, value, _in_words(hint))
    return found


_NO = object()  # `_fitting` found no type that the value has


def _fitting(value: Any, hint: Any) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if get_origin(kind) is Literal:
            if any(type(value) is type(choice) and value == choice for choice in get_args(kind)):
                return value
        elif get_origin(kind) is list:
            if isinstance(value, list):
                items = [_fitting(item, get_args(kind)[0]) for item in value]
                if _NO not in items:
                    return items
        elif kind is float and type(value) is int and abs(value) < 2**1023:
            return float(value)
        elif kind not in WORDS or (type(value) is kind and (kind is not str or _is_text(value))):
            return value  # not in WORDS: a type of a fork's own, about which its check() knows more
    return _NO


def _is_text(value: str) -> bool:
    """Whether the string could have been typed: it has no NUL, and no half of a surrogate pair."""
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)


def _in_words(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_in_words(kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(json.dumps, get_args(hint)))}"
    return f"a list, each {_in_words(get_args(hint)[0])}" if get_origin(hint) is list else WORDS.get(hint, str(hint))


def _refuse(path: Path, name: str, value: Any, wanted: str) -> NoReturn:
    shown = json.dumps(value)
    raise UserError(f"{path}: {name} is {shown if len(shown) <= 80 else f'{shown[:80]}...'}, and must be {wanted}; correct the file, or "
                    f"give another config.json")


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"it has the value {constant}, which is no JSON")
