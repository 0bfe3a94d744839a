"""What a run is made of: fingerprints of its data, reward, base and reference. Checkpoints have them, and a resume compares them."""
from __future__ import annotations

import ast
import base64
import hashlib
import json
import shlex
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

from common.config import CommonConfig
from common.console import say
from common.errors import UserError
from common.files import sha256, write_file
from common.policy.fingerprint import adapter_fingerprint, base_fingerprint, tokenizer_fingerprint
from common.records import Problem, Problems
from common.run.folder import CONFIG, CONFIG_COPY
from common.run.resume import IDENTITY
from common.run.saved_config import PATHS, START_FLAGS

ROW = 6  # bytes of the fingerprint of a problem; as text 8 characters
BLOCKS = "train_blocks"  # of a large data set, instead of "train"
KINDS = {"train": "training", "held_out": "held-out"}


class Identity:
    """Fingerprints of one run. A checkpoint saves it like a model, in `identity.json`.

    The methods `check_*` take the fingerprints of what is there now. In a resumed run they raise UserError if the checkpoint has others.
    """

    def __init__(self, config: CommonConfig) -> None:
        """Raises UserError if the run is resumed and its checkpoint has a damaged identity.json."""
        self.config, self.now, self.before = config, {}, {}
        self.checkpoint = Path(config.resume_from_checkpoint) if config.resume_from_checkpoint not in (None, "auto") else None
        if self.checkpoint is None:
            return
        try:
            self.before = json.loads((self.checkpoint / IDENTITY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            say(f"note: {self.checkpoint} is of an older version and has no fingerprints: whether data, reward and base are as before "
                "is not checked")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{self.checkpoint / IDENTITY} cannot be read ({error}); resume from an older checkpoint") from error
        if not isinstance(self.before, dict):
            raise UserError(f"{self.checkpoint / IDENTITY} is damaged; resume from an older checkpoint")

    def check_files(self) -> None:
        """Compares the flags, the reward and the reference. Call it before the code of the reward runs."""
        self._check_flags()
        self._check_reward()
        self._check_reference()

    def _check_flags(self) -> None:
        """Compares the flags that may not change on resume, those that name files apart."""
        may_differ = {*START_FLAGS, *PATHS, *self.config.resumable, "plan_memory"}
        flags = {name: value for name, value in self.config.flags().items() if name not in may_differ}
        before = self.before.get("flags")
        self.now["flags"] = {name: flag_fingerprint(value) for name, value in flags.items()}
        for name, found in self.now["flags"].items():
            if self.checkpoint and isinstance(before, dict) and before.get(name, found) != found:
                raise UserError(f"{self.checkpoint.parent / CONFIG} says --{name} {flags[name]}, and {self.checkpoint.name} was trained "
                                "with another value: the file has changed, or the checkpoint is of another run. Put the file back (beside "
                                f"it is a copy, {CONFIG_COPY}), or start a new run: --adapter {shlex.quote(str(self.checkpoint))}")

    def _check_reward(self) -> None:
        """Compares the file of `--reward`, its function, and files beside it that it imports. What the function reads is not compared."""
        if not self.config.reward:
            return
        path, _, function = self.config.reward.rpartition(":")
        files = {"": sha256(Path(path))} if Path(path).is_file() else {}
        files |= {file.relative_to(Path(path).parent).as_posix(): sha256(file) for file in imported_beside(Path(path))}
        self._check("reward function", function, f"--reward {self.config.reward}: the function")
        before = self.before.get("reward")
        self.now["reward"] = files
        if isinstance(before, dict) and before != files:
            name = next(name for name in [*before, *files] if before.get(name) != files.get(name))
            self._refuse(f"--reward {path}: {f'the file {name}, which it imports,' if name else 'the file'}")

    def check(self, tokenizer: PreTrainedTokenizerBase, prompt: str, problems: Sequence[Problem], held_out: list[Problem]) -> None:
        """Compares all else. prompt: that of a short question, which shows the template. Call it before weights are loaded."""
        self.check_base()
        self._check("tokenizer", tokenizer_fingerprint(tokenizer), f"the tokenizer of --model {self.config.model}")
        # a hash, as the system message may come from a file of this machine, and checkpoints are given away
        prompt = hashlib.sha256(prompt.encode("utf-8", "backslashreplace")).hexdigest()
        self._check("prompt", prompt, f"the prompt template ({self.config.prompt_template}), with its system message,")
        self._check("stop", self.config.stop, "the list of stop strings")
        if isinstance(problems, Problems) or BLOCKS in self.before:
            self._check_blocks(problems)
        if not isinstance(problems, Problems) or "train" in self.before:  # a checkpoint of a version without blocks has all problems
            self._check_problems("train", problems)
        if self.config.eval_steps:
            self._check_problems("held_out", held_out)
        if "tokens" in self.before or not isinstance(problems, Problems):
            self._check("tokens", tokens_fingerprint(problems), "the way in which prompts become tokens")

    def check_base(self) -> None:
        """Compares the files of the base. Nothing is compared while they are still on the hub: call it again when they have been loaded."""
        found = None if "base" in self.now else base_fingerprint(self.config)
        if found is None:
            return
        before = self.before.get("base")
        self.now["base"] = found
        if isinstance(before, dict) and before != found:
            part = next((name for name in found if before.get(name) != found[name]), "files")
            self._refuse(f"--model {self.config.model}: the {'list of ' if part == 'end tokens' else ''}{part} of the base")

    def _check_reference(self) -> None:
        """Compares the adapter that the run began with. A resumed run needs it only as reference policy: its checkpoint has its own."""
        config = self.config
        if not config.adapter or (self.checkpoint and not config.needs_reference):
            return
        try:
            found = adapter_fingerprint(Path(config.adapter))
        except OSError as error:
            if self.checkpoint is None:
                return  # whoever loads it says what is wrong with it
            raise UserError(f"--adapter {config.adapter}, the reference policy, cannot be read: {error.strerror}; put it back, or "
                            "give the path where it is now") from error
        self._check("reference", found, f"--adapter {config.adapter}: the adapter that the run began with")

    def _check_blocks(self, problems: Sequence[Problem]) -> None:
        """Compares the training problems of a large data set: blocks of them, and the tokens of some."""
        size, found = problems.fingerprints() if isinstance(problems, Problems) else (1, b"")
        before = self.before.get(BLOCKS)
        self.now[BLOCKS] = {"problems": len(problems), "size": size, "hashes": base64.b64encode(found).decode()}
        if isinstance(before, dict) and before != self.now[BLOCKS]:
            was = base64.b64decode(before["hashes"])
            first = next((i for i in range(0, len(found), ROW) if found[i:i + ROW] != was[i:i + ROW]), 0) // ROW * size
            self._refuse(f"--dataset {self.config.dataset}: of the training problems, {before['problems']} before and {len(problems)} now, "
                         f"one of the numbers {first + 1} to {first + size} is another, so that the data")
        if isinstance(problems, Problems):
            self._check("tokens_of_some", tokens_fingerprint(problems.examples), "the way in which prompts become tokens")

    def _check_problems(self, kind: str, problems: Sequence[Problem]) -> None:
        rows = b"".join(self._row(problem) for problem in problems)
        self.now[kind] = base64.b64encode(rows).decode()
        self.now["eval_problems"] = self.config.eval_problems
        try:
            before = base64.b64decode(self.before[kind])
        except (KeyError, TypeError, ValueError):
            return
        changed = self.before.get("eval_problems") != self.config.eval_problems
        if kind == "held_out" and changed:  # more or fewer of the same
            rows, before = rows[:len(before)], before[:len(rows)]
        if rows != before:
            count, was = len(rows) // ROW, len(before) // ROW
            shorter = min(count, was)
            first = next((i for i in range(shorter) if rows[i * ROW:(i + 1) * ROW] != before[i * ROW:(i + 1) * ROW]), shorter)
            where = f"number {first + 1} ({problems[first].id}) is another" if first < count else f"number {first + 1} is missing"
            cause = f" (--eval_problems was {self.before.get('eval_problems')}, and held-out rows may be taken from it)" if changed else ""
            flag = "--eval_dataset" if kind == "held_out" and self.config.eval_dataset else "--dataset"
            self._refuse(f"{flag} {getattr(self.config, flag[2:])}: of the {KINDS[kind]} problems, {was} before and {count} now, {where}, "
                         f"so that the data{cause}")

    def _row(self, problem: Problem) -> bytes:
        """What of a problem reaches the run: its id, prompt and reference, and with `--reward` its row."""
        row = sorted(problem.row.items()) if self.config.reward else ""
        text = json.dumps([problem.id, problem.prompt, problem.answer, row], default=lambda value: type(value).__name__)
        return hashlib.sha256(text.encode()).digest()[:ROW]

    def _check(self, name: str, found: Any, words: str) -> None:
        """Raises UserError if the checkpoint has another value. words: the subject of the message."""
        self.now[name] = found
        if name in self.before and self.before[name] != found:
            self._refuse(words)

    def _refuse(self, words: str) -> NoReturn:
        raise UserError(f"{words} differs from that of the resumed run. Put back what the run was made of (another path is fine), or "
                        f"start a new run from its adapter: --adapter {shlex.quote(str(self.checkpoint))}")

    # ---- as part of a checkpoint ------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        record = {**self.before, **self.now}
        if BLOCKS in self.now:  # in place of 8 bytes for each problem
            record = {name: value for name, value in record.items() if name not in ("train", "tokens")}
        write_file(folder / IDENTITY, json.dumps(record))

    def load(self, folder: Path) -> None:
        """Nothing: what the checkpoint has was compared before anything was loaded."""


def imported_beside(path: Path) -> list[Path]:
    """The Python files in the folder of `path` and below that it imports, directly or through each other, sorted."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        for module in _imports(waiting.pop(), path.parent):
            for file in (module.parent / f"{module.name}.py", module / "__init__.py"):
                if file.is_file() and file not in found and file != path and file.is_relative_to(path.parent):
                    found.add(file)
                    waiting.append(file)
    return sorted(found)


def _imports(path: Path, root: Path) -> Iterable[Path]:
    """Where the modules that a file imports would be, and those that may be among the names that it imports. root: of absolute imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return  # the reward does not load, and says why
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (root.joinpath(*alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= len(path.parents):
            module = (path.parents[node.level - 1] if node.level else root).joinpath(*(node.module or "").split("."))
            yield from (module, *(module / alias.name for alias in node.names))


def flag_fingerprint(value: Any) -> str:
    """The fingerprint of the value of a flag. 1 and 1.0 have the same."""
    return hashlib.sha256(repr(float(value) if isinstance(value, int) else value).encode()).hexdigest()[:16]


def tokens_fingerprint(problems: Sequence[Problem]) -> str:
    """The fingerprint of the token ids of all prompts."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(array("q", (len(problem.prompt_ids), *problem.prompt_ids)).tobytes())
    return digest.hexdigest()
