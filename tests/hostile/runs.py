"""Run folders and saved configs that other people made: code that they name, values that cannot be typed, damage."""
from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

CODE = "from pathlib import Path\n\nPath(__file__).with_name('ran').touch()\n\n\ndef score(completion, problem):\n    return 1.0\n"


def config(folder: Path, content: object) -> Path:
    """config.json with these bytes, or with this value as JSON."""
    path = folder / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def checkpoint(folder: Path, flags: dict[str, object], identity: str = "{}") -> Path:
    """A run folder with a checkpoint that is whole by its manifest."""
    config(folder, {"script": "train_grpo", "flags": flags})
    made = folder / "checkpoint-1"
    made.mkdir()
    files = {"trainer_state.pt": b"-", "identity.json": identity.encode()}
    for name, content in files.items():
        (made / name).write_bytes(content)
    manifest = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def make_config_that_names_code(folder: Path) -> Path:
    """A reward beside the config: it would run with everything that the user may do. It leaves the file `ran`."""
    (folder / "tools.py").write_text(CODE)
    return config(folder, {"script": "train_grpo", "flags": {"reward": f"{folder / 'tools.py'}:score"}})


def make_checkpoint_that_names_code(folder: Path) -> Path:
    """The same in the folder of a run that asks to be continued."""
    (folder / "tools.py").write_text(CODE)
    return checkpoint(folder, {"reward": f"{folder / 'tools.py'}:score", "max_steps": 9})


def make_checkpoint_deep_identity(folder: Path) -> Path:
    """Fingerprints nested deeper than a parser's recursion goes."""
    return checkpoint(folder, {"max_steps": 9}, "[" * 100_000)


def make_config_unknown_choice(folder: Path) -> Path:
    return config(folder, {"flags": {"dtype": "float16"}})


def make_config_null(folder: Path) -> Path:
    return config(folder, {"flags": {"max_steps": None}})


def make_config_text_for_a_list(folder: Path) -> Path:
    """Its characters would become the stop strings."""
    return config(folder, {"flags": {"stop": "END"}})


def make_config_text_for_a_bool(folder: Path) -> Path:
    """A text is true, whatever it says."""
    return config(folder, {"flags": {"load_in_4bit": "false"}})


def make_config_zero_byte_in_a_path(folder: Path) -> Path:
    return config(folder, {"flags": {"dataset": "data\0.jsonl"}})


def make_config_derived_of_a_wrong_type(folder: Path) -> Path:
    return config(folder, {"flags": {}, "given": [], "derived": {"stop": [1]}})


def make_config_no_object(folder: Path) -> Path:
    return config(folder, [])


def make_config_flags_no_object(folder: Path) -> Path:
    return config(folder, {"flags": []})


def make_config_a_flag_twice(folder: Path) -> Path:
    """Which of the two counts, a reader who looks at the file cannot know."""
    return config(folder, b'{"flags": {"seed": 1, "seed": 2}}')


def make_config_not_a_number(folder: Path) -> Path:
    return config(folder, b'{"flags": {"learning_rate": NaN}}')


def make_config_infinite(folder: Path) -> Path:
    return config(folder, b'{"flags": {"learning_rate": 1e999}}')


def make_config_number_of_5000_digits(folder: Path) -> Path:
    return config(folder, b'{"flags": {"seed": ' + b"9" * 5000 + b"}}")


def make_config_utf16(folder: Path) -> Path:
    return config(folder, '{"flags": {"seed": 1}}'.encode("utf-16"))


def make_config_deep(folder: Path) -> Path:
    return config(folder, b'{"flags": ' + b'{"a":' * 100_000)


def make_config_huge(folder: Path) -> Path:
    return config(folder, b'{"flags": {}, "more": "' + b"x" * 20_000_000 + b'"}')


def make_config_cut_off(folder: Path) -> Path:
    return config(folder, b'{"flags": {"seed": 1')


def make_config_pipe(folder: Path) -> Path:
    """A pipe without a writer: reading it would never end."""
    os.mkfifo(folder / "config.json")
    return folder / "config.json"
