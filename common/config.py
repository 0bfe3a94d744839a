"""Flags: one flat dataclass per script, parsed by HfArgumentParser, checked before anything is loaded.

Where a value comes from, the later winning: the dataclass, tiny's own defaults, a saved config.json (`--config`, or the
run that is resumed), the command line.
"""
from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import subprocess
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

import torch
from transformers import HfArgumentParser


class UserError(Exception):
    """Something the user can put right: the text names the cause and the remedy, and is shown without a stack trace."""


def flag(default: Any, group: str, help: str) -> Any:
    """A dataclass field that becomes `--name`, listed under `group` in --help."""
    metadata = {"help": help.replace("%", "%%"), "group": group}
    return field(default=default, metadata=metadata)


@dataclass
class CommonConfig:
    """The flags that every training script has. Defaults for real models are starting points, not tuned."""

    model: str = flag("tiny", "model", "Hub id or local folder of a causal language model; tiny: the embedded one.")
    adapter: str | None = flag(None, "model", "PEFT LoRA folder to start from; the reference policy is then that adapter, frozen.")
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto", "model", "Of the frozen base. auto: bfloat16 on a GPU, float32 on CPU.")
    load_in_4bit: bool = flag(False, "model", "QLoRA: hold the base in 4-bit NF4 (needs bitsandbytes).")
    lora_r: int = flag(32, "model", "LoRA rank.")
    lora_alpha: int = flag(64, "model", "LoRA scale: the update is multiplied by alpha / r.")
    lora_target_modules: list[str] | None = flag(None, "model", "Names of the linear layers to adapt. Default: all but the output head.")
    gradient_checkpointing: bool = flag(False, "model", "Recompute activations in the backward pass: less memory, about a third slower.")

    dataset: str = flag("arithmetic", "data", "Registered name, .jsonl/.json/.parquet/.csv file, folder, hub id, arithmetic:key=value,...")
    eval_dataset: str | None = flag(None, "data", "Held-out problems, given like --dataset. Default: its test split, else a tenth of it.")
    prompt_template: str = flag(
        "auto", "data", "chat, plain, math_task, question, a text file with {question}; auto: chat if the tokenizer has it, else plain.")
    enable_thinking: Literal["auto", "true", "false"] = flag("auto", "data", "Handed to the chat template. auto: not handed over.")
    prompt_column: str | None = flag(None, "data", "Column of the question. Default: question, problem or prompt.")
    answer_column: str | None = flag(None, "data", "Column of the reference. Default: answer, solution or reference.")

    problems_per_step: int = flag(16, "rollouts", "Problems in a step.")
    num_generations: int = flag(8, "rollouts", "Completions per problem.")
    max_completion_length: int = flag(1024, "rollouts", "Longest completion, tokens.")
    temperature: float = flag(1.0, "rollouts", "Sampling temperature; logits are divided by it in the trainer too.")
    top_p: float = flag(1.0, "rollouts", "Nucleus sampling. Below 1 the importance weights are biased.")
    stop: list[str] | None = flag(None, "rollouts", r"Strings that end a completion; \n is a newline. Default: the prompt template's.")
    engine: Literal["auto", "vllm", "transformers"] = flag("auto", "rollouts", "What samples the completions.")

    max_steps: int = flag(200, "update", "Training steps: each samples, verifies, updates.")
    learning_rate: float = flag(2e-5, "update", "Peak learning rate of AdamW (LoRA wants about 10 times that of full fine-tuning).")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = flag("constant", "update", "Learning rate after the warm-up.")
    warmup_steps: int = flag(5, "update", "Steps over which the learning rate rises.")
    max_grad_norm: float = flag(1.0, "update", "Gradient norm is clipped to this.")
    num_iterations: int = flag(1, "update", "Passes over each rollout batch.")
    num_minibatches: int = flag(1, "update", "Optimiser steps per pass.")
    max_tokens_per_microbatch: int = flag(8192, "update", "Padded tokens in one forward and backward: sets memory, never the update.")
    loss_aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"] = flag(
        "token-mean", "update", "How token losses become one number; constant: divided by completions x --max_completion_length.")
    beta: float = flag(0.0, "update", "Weight of the KL term to the reference policy (0: no reference pass).")
    importance_cap: float = flag(2.0, "update", "Cap of the weights that correct for sampler against trainer (0: no correction).")
    mask_truncated_completions: bool = flag(False, "update", "Leave completions that hit the length limit out of the loss.")

    output_dir: str | None = flag(None, "run", "Run folder. Default: runs/{script}-{model}-{dataset}-s{seed}-{time}.")
    config: str | None = flag(None, "run", "Rerun with the flags of a saved config.json; flags given beside it win.")
    seed: int = flag(0, "run", "Of everything random in the run.")
    eval_steps: int = flag(20, "run", "Steps between evaluations (0: none).")
    eval_problems: int = flag(200, "run", "Held-out problems per evaluation.")
    save_steps: int = flag(50, "run", "Steps between checkpoints (0: only the last).")
    save_total_limit: int = flag(2, "run", "Checkpoints kept (0: all).")
    resume_from_checkpoint: str | None = flag(
        None, "run", "A checkpoint folder, or auto: the newest of --output_dir, else of the newest matching run.")

    # what --model tiny sets instead, for the flags that the user did not give
    tiny_defaults: ClassVar[dict[str, Any]] = {
        "prompt_template": "question", "learning_rate": 1e-3, "lr_scheduler_type": "linear", "max_steps": 60,
        "eval_steps": 10, "eval_problems": 400, "save_steps": 20, "max_tokens_per_microbatch": 2048}
    # what a resumed run may change
    resumable: ClassVar[set[str]] = {
        "output_dir", "config", "resume_from_checkpoint", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
        "eval_steps", "eval_problems", "save_steps", "save_total_limit", "max_tokens_per_microbatch", "gradient_checkpointing"}

    def check(self) -> None:
        """Raises UserError for values and combinations that cannot work, before anything is loaded."""
        at_least_one = ("lora_r", "lora_alpha", "problems_per_step", "num_generations", "max_completion_length", "max_steps",
                        "num_iterations", "num_minibatches", "max_tokens_per_microbatch", "eval_problems")
        for name in at_least_one:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number from 1 up")
        for name, value in asdict(self).items():
            _require(not isinstance(value, float) or math.isfinite(value), name, value, "a finite number")
        _require(all(self.stop or ["-"]), "stop", self.stop, "strings of one character or more")
        for name in ("warmup_steps", "eval_steps", "save_steps", "save_total_limit", "beta", "importance_cap"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("temperature", "learning_rate", "max_grad_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        completions = self.problems_per_step * self.num_generations
        _require(self.num_minibatches <= completions, "num_minibatches", self.num_minibatches,
                 f"at most the {completions} completions of a step")
        heads = {"lm_head", "embed_tokens"} & set(self.lora_target_modules or ())
        if heads:
            raise UserError(f"--lora_target_modules {' '.join(heads)}: the output head and the embeddings stay frozen; leave them out")
        if self.load_in_4bit and not importlib.util.find_spec("bitsandbytes"):
            raise UserError("--load_in_4bit needs bitsandbytes: pip install bitsandbytes, or leave the flag out")
        if self.engine == "vllm":
            missing = "" if importlib.util.find_spec("vllm") else "vllm is not installed, and "
            raise UserError(f"--engine vllm: {missing}this version samples with transformers only; use --engine transformers")
        if self.model == "tiny" and self.dataset.partition(":")[0] != "arithmetic":
            raise UserError(f"--model tiny knows only the words of --dataset arithmetic, not {self.dataset}; name a real model for it")


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"--{name} {value} cannot work: give {wanted}")


class _Formatter(ArgumentDefaultsHelpFormatter):
    def _format_action_invocation(self, action: Action) -> str:
        """One spelling of each flag; --with-hyphens is accepted as well."""
        if action.nargs == "?" or isinstance(action.default, bool):
            return action.option_strings[0]
        return f"{action.option_strings[0]} {self._format_args(action, self._get_default_metavar_for_optional(action))}"


class _Parser(HfArgumentParser):
    """HfArgumentParser with groups in --help, exact flag names, and errors that name the nearest valid one."""

    def __init__(self, config_class: type) -> None:
        super().__init__([config_class], allow_abbrev=False, usage="%(prog)s [--flag value ...]", formatter_class=_Formatter)
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
            raise UserError(f"{bad[1]} {bad[2]}: {_nearest(bad[2], choices)}the choices are {', '.join(choices)}")
        message = re.sub(r"^argument (--\w+)\S*:", r"\1:", message)  # one spelling of the flag
        raise UserError(f"{message.rstrip('.')} (see --help)")

    def parse(self, argv: list[str]) -> Namespace:
        """The parsed flags. Raises UserError for unknown ones, with the nearest that there is."""
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [name for name in self._option_string_actions if "-" not in name[2:]]
            name = unknown[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
            raise UserError(f"unknown argument {unknown[0]}: {_nearest(name, flags) if name.startswith('--') else ''}see --help")
        return namespace


def _nearest(word: str, choices: list[str]) -> str:
    """"did you mean X? ", or nothing if no choice is near."""
    match = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {match[0]}? " if match else ""


C = TypeVar("C", bound=CommonConfig)


def parse_config(config_class: type[C], argv: list[str], script: str) -> C:
    """The checked config of a command line.

    `resume_from_checkpoint` comes back as the folder found, with `output_dir` its run; or as `auto` when that found nothing
    and a new run starts. Raises UserError.
    """
    from common.checkpoint import newest_checkpoint

    parser = _Parser(config_class)
    typed = config_class(**vars(parser.parse(argv)))
    given = {arg[2:].split("=")[0].replace("-", "_") for arg in argv if arg.startswith("--")}
    given |= {name.removeprefix("no_") for name in given}

    def with_defaults(saved: dict[str, Any]) -> C:
        """The command line over `saved` over tiny's defaults over the dataclass."""
        # parsed again each time: argparse puts what was typed over its defaults, whatever their source
        parser.set_defaults(**saved)
        config = config_class(**vars(parser.parse(argv)))
        if config.model == "tiny":
            parser.set_defaults(**{**_tiny_defaults(config), **saved})
            config = config_class(**vars(parser.parse(argv)))
        if "stop" in given and config.stop:
            config.stop = [text.replace("\\n", "\n") for text in config.stop]
        return config

    saved = read_config(Path(typed.config), config_class) if typed.config else {}
    config = with_defaults(saved)
    checkpoint = None
    if typed.resume_from_checkpoint:
        checkpoint = newest_checkpoint(typed.resume_from_checkpoint, typed.output_dir, run_prefix(config, script))
    if checkpoint is not None:
        if typed.output_dir and Path(typed.output_dir).resolve() != checkpoint.parent.resolve():
            raise UserError(f"--output_dir {typed.output_dir}: a resumed run goes on in its own folder, {checkpoint.parent}; leave it out")
        asked, saved = saved, read_config(checkpoint.parent / "config.json", config_class)
        other = sorted(name for name in asked if name not in given and asked[name] != saved.get(name))
        if other:  # the same command again, --config included, is fine; another config is not
            raise UserError(f"--config {typed.config}: the resumed run has its own flags, and {other[0]} differs; leave it out")
        config = with_defaults(saved)
        changed = {n: v for n, v in asdict(config).items() if n in given and n in saved and v != saved[n]}
        fixed = sorted(set(changed) - config_class.resumable)
        if fixed:
            raise UserError(f"--{fixed[0]} {changed[fixed[0]]} differs from the resumed run's {saved[fixed[0]]}; leave it out, "
                            f"or start a new run from its adapter: --adapter {checkpoint}")
        for name in sorted(set(changed) - {"resume_from_checkpoint", "output_dir", "config"}):
            print(f"changed on resume: --{name} {saved[name]} -> {changed[name]}")
        config.output_dir, config.resume_from_checkpoint = str(checkpoint.parent), str(checkpoint)
    config.check()
    return config


def _tiny_defaults(config: CommonConfig) -> dict[str, Any]:
    from common.tiny import Arithmetic, Generator

    name, _, settings = config.dataset.partition(":")
    longest = Generator(Arithmetic.parse(settings)).longest_solution() if name == "arithmetic" else config.max_completion_length
    return {**config.tiny_defaults, "max_completion_length": longest}


def run_prefix(config: CommonConfig, script: str) -> str:
    """The default run folder without its time: the same for reruns of the same script, model, data and seed."""
    names = (text if text.startswith("arithmetic") else text.rstrip("/").split("/")[-1] for text in (config.model, config.dataset))
    model, dataset = (re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[:60] for name in names)
    return f"runs/{script}-{model}-{dataset}-s{config.seed}"


def read_config(path: Path, config_class: type[CommonConfig]) -> dict[str, Any]:
    """The flags in a saved config.json. Raises UserError if the file is missing, not ours, or of another script."""
    try:
        saved = json.loads(path.read_text())["flags"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not the config.json of a run; give the one in a run folder") from None
    unknown = sorted(set(saved) - {spec.name for spec in fields(config_class)})
    if unknown:
        raise UserError(f"{path} has flags that this script lacks ({', '.join(unknown)}): it belongs to another script")
    return {name: value for name, value in saved.items() if name not in ("config", "resume_from_checkpoint", "output_dir")}


def config_record(config: CommonConfig, script: str) -> dict[str, Any]:
    """What config.json holds: the resolved flags, and what is needed to tell two machines' runs apart."""
    versions = {}
    for package in ("torch", "transformers", "peft", "datasets", "tokenizers", "vllm", "bitsandbytes"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"script": script, "flags": asdict(config), "command": sys.argv, "commit": commit,
            "versions": {"python": platform.python_version(), **versions},
            "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}}


def run_script(config_class: type[C], train: Callable[[C], None], file: str) -> None:
    """What `python train_X.py ...` does: parse, train, and end with one line instead of a stack trace where that helps."""
    config = None
    try:
        config = parse_config(config_class, sys.argv[1:], Path(file).stem)
        train(config)
    except UserError as error:
        with contextlib.suppress(OSError):  # a run folder with nothing in it
            Path(config.output_dir if config and config.output_dir else "").rmdir()
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(f"error: no room left to write {error.filename or 'the run folder'} ({error.strerror}); older checkpoints are whole: "
                 "free some space and go on with --resume_from_checkpoint auto")
