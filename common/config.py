"""The flags that every script has, and their checks.

This file does not import torch at its top. Importing torch takes seconds, and a wrong flag should be reported at once.
"""
from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, TypeVar

from common.errors import UserError
from common.flags import as_now, flag, require
from common.tiny.task import Arithmetic, Generator


@dataclass
class SamplingConfig:
    """The flags that `eval.py` shares with the training scripts: model, data set, sampling of completions, run folder."""

    model: str = flag("tiny", "model", "Hub id or folder of a causal language model; smollm2, of a package; or tiny, which ships here.")
    adapter: str | None = flag(
        None, "model", "Folder of a PEFT LoRA adapter to start from. The same adapter, frozen, is then the reference policy.")
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "model", "Number type of the frozen base. auto: bfloat16 on a GPU, float32 on a CPU.")
    load_in_4bit: bool = flag(False, "model", "QLoRA: keep the frozen base in 4-bit NF4. Needs bitsandbytes.")

    dataset: str = flag(
        "arithmetic", "data", "Registered name, .jsonl/.json/.parquet/.csv file, folder, hub id, or arithmetic:key=value,...")
    prompt_template: str = flag(
        "auto", "data", "chat, chat:TEXT with {question}, plain, math_task, question, or a file with {question}. auto: chat, else plain.")
    enable_thinking: Literal["auto", "true", "false"] = flag(
        "auto", "data", "Value of enable_thinking in the chat template. auto: not set.")
    system_prompt: str | None = flag(
        None, "data", r"Text of the system message in the chat template, or a text file. It replaces our request for oxed{}.")
    prompt_column: str | None = flag(None, "data", "Name of the question column. Default: the first found of question, problem, prompt.")
    answer_column: str | None = flag(None, "data", "Name of the answer column. Default: the first found of answer, solution, reference.")

    max_completion_length: int = flag(
        1024, "completions", "Longest completion, in tokens. One cut off there has reward 0 (with --reward: that of a failed call).")
    temperature: float = flag(1.0, "completions", "Sampling temperature. The trainer divides its logits by it as well.")
    top_p: float = flag(1.0, "completions", "Nucleus sampling: share of probability kept. Below 1 the importance weights are biased.")
    stop: list[str] | None = flag(
        None, "completions", r"Strings that end a completion. \n is a newline. Default: those of the prompt template.")
    engine: Literal["auto", "vllm", "transformers"] = flag(
        "auto", "completions", "Program that samples. auto: vllm if it can run on a GPU here.")
    vllm_server_base_url: list[str] | None = flag(
        None, "completions", "http://host:port of vLLM servers that sample, one or more. Their key: environment variable VLLM_API_KEY.")
    vllm_server_timeout: float = flag(240.0, "completions", "Seconds without a new token after which a vLLM server is given up.")
    vllm_gpu_memory_utilization: float = flag(0.3, "completions", "Share of the GPU's memory that vLLM takes, weights included.")

    output_dir: str | None = flag(None, "run", "Run folder. Default: runs/{script}-{model}-{dataset}-s{seed}-{time}.")
    config: str | None = flag(None, "run", "A saved config.json: use its flags. Flags on the command line win over it.")
    seed: int = flag(0, "run", "Seed of everything that is random in the run.")

    # defaults that hold with --model tiny, for flags that the user did not give
    tiny_defaults: ClassVar[dict[str, Any]] = {"prompt_template": "question"}
    resumable: ClassVar[Set[str]] = frozenset()  # flags that may change when a run or an evaluation goes on
    given: ClassVar[Set[str]] = frozenset()  # names of the flags that were typed, here or for the saved config.json
    derived: ClassVar[dict[str, Any]] = {}  # values that the run worked out itself, by name; config.json has them apart from the flags
    release: ClassVar[Callable[[], None]] = staticmethod(lambda: None)  # releases the run folder, if it was taken
    seen: ClassVar[tuple[str, ...]] = ()  # the checkpoints among which `auto` chose, by name
    planned: ClassVar[dict[str, int]] = {}  # what the memory plan of a run on a GPU chose beside flags, by name
    before_derived: ClassVar[dict[str, Any]] = {}  # the values of these flags before that
    passed: ClassVar[Set[str]] = frozenset()  # names of the flags that a program gave when it made the config

    def __new__(cls, *values: Any, **named: Any) -> Self:
        """Notes which flags were given. The config itself cannot tell a default from the same value given."""
        config = super().__new__(cls)
        config.passed = frozenset([spec.name for spec in fields(cls)][:len(values)]) | named.keys()
        return config

    def __post_init__(self) -> None:
        for spec in fields(self):
            setattr(self, spec.name, as_now(spec, getattr(self, spec.name)))

    def complete(self) -> None:
        """For a config that a program made, and not a command line: sets the defaults of the embedded model, and checks all values.

        A value that was given, or that is no longer the default of the script, stays. Raises UserError.
        """
        if "given" in vars(self):  # of a command line
            return
        own = self.embedded_defaults()
        for spec in fields(self):
            if spec.name in own and spec.name not in self.passed and getattr(self, spec.name) == spec.default:
                setattr(self, spec.name, own[spec.name])
        self.given = self.passed
        self.check()

    def embedded_defaults(self) -> dict[str, Any]:
        """The defaults that hold with `--model tiny`, by name. With other models there are none."""
        if self.model != "tiny":
            return {}
        name, _, settings = self.dataset.partition(":")
        longest = {"max_completion_length": Generator(Arithmetic.parse(settings)).longest_solution()} if name == "arithmetic" else {}
        return {**self.tiny_defaults, **longest}

    def derive(self, **values: Any) -> None:
        """Sets values that the run works out itself, such as the stop strings of the template. values: flags, and texts under new names.

        A rerun of the saved config.json works them out anew. A resumed run keeps those of its checkpoint, except the planned ones.
        """
        values = {name: value for name, value in values.items() if name not in self.given or getattr(self, name) != value}
        self.before_derived = {**{name: getattr(self, name) for name in values if hasattr(self, name)}, **self.before_derived}
        self.derived = {**self.derived, **values}
        for name, value in values.items():
            setattr(self, name, value)

    def flags(self) -> dict[str, Any]:
        """The value of every flag, by name, as typed, as in the file of --config, or its default: without derived values."""
        return {spec.name: self.before_derived.get(spec.name, getattr(self, spec.name)) for spec in fields(self)}

    def check(self) -> None:
        """Raises UserError for values and combinations that cannot work, before anything is loaded."""
        for name, value in asdict(self).items():
            require(not isinstance(value, float) or math.isfinite(value), name, value, "a finite number")
        for name in ("model", "adapter", "dataset", "eval_dataset", "reward", "output_dir", "config", "resume_from_checkpoint"):
            require(getattr(self, name, None) != "", name, '""', "a name, or leave it out: a variable of the shell may not be set")
        require(self.max_completion_length >= 1, "max_completion_length", self.max_completion_length, "a whole number from 1 up")
        require(all(self.stop or ["-"]), "stop", self.stop, "strings of one character or more")  # "-": no stop string to check
        require(-2**63 <= self.seed < 2**63, "seed", self.seed, "a whole number of 64 bits")
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        for name in ("top_p", "vllm_gpu_memory_utilization"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        if self.load_in_4bit and not importlib.util.find_spec("bitsandbytes"):
            raise UserError("--load_in_4bit needs bitsandbytes: pip install bitsandbytes, or leave the flag out")
        require(self.vllm_server_timeout > 0, "vllm_server_timeout", self.vllm_server_timeout, "a number of seconds above 0")
        if self.vllm_server_base_url and self.engine == "transformers":
            raise UserError("--engine transformers samples in this process, and --vllm_server_base_url names servers: give one of the two")
        if not self.vllm_server_base_url and self.vllm_server_timeout != 240:
            raise UserError("--vllm_server_timeout does nothing without --vllm_server_base_url: leave it out, or name servers")
        in_process = self.engine == "vllm" and not self.vllm_server_base_url
        if in_process and not importlib.util.find_spec("vllm"):
            raise UserError("--engine vllm: vllm is not installed; pip install -r requirements.txt on a machine with an NVIDIA GPU, "
                            "or use --engine transformers")
        if in_process and self.dtype == "float32" and _cuda():
            raise UserError("--engine vllm --dtype float32: on a GPU vLLM's adapters are bfloat16; use --engine transformers for float32")
        if in_process and self.load_in_4bit and not _cuda():
            raise UserError("--engine vllm --load_in_4bit: vLLM can hold a 4-bit base on a GPU only; use --engine transformers here")
        if self.model == "tiny" and self.dataset.partition(":")[0] != "arithmetic":
            raise UserError(f"--model tiny knows only the words of --dataset arithmetic, not those of {self.dataset}; name a larger model")


@dataclass
class CommonConfig(SamplingConfig):
    """The flags that every training script has. The defaults for real models are starting points. They are not tuned."""

    lora_r: int = flag(32, "model", "LoRA rank.")
    lora_alpha: int = flag(64, "model", "LoRA scale: the adapter's output is multiplied by alpha / r.")
    lora_target_modules: list[str] | None = flag(
        None, "model", "Names of the linear layers that get an adapter. Default: all except the output head.")
    gradient_checkpointing: bool = flag(
        False, "model", "Recompute activations in the backward pass. Takes less memory, and a third more time.")

    eval_dataset: str | None = flag(
        None, "data", "Held-out problems, named as in --dataset. Default: the test split of --dataset, else a tenth of its rows.")

    reward: str | None = flag(None, "data", "path/to/file.py:function that scores completions, in place of the built-in verifier.")
    reward_timeout: float = flag(10.0, "data", "Longest call of the --reward function, in seconds. A slower call has failed.")
    reward_workers: int | None = flag(None, "data", "Processes that call the --reward function. Default: one per processor, at most 8.")
    reward_failed: str = flag(
        "lowest", "data", "Reward of a failed call, and of a completion cut off at the length limit: a number, or lowest (so far).")

    problems_per_step: int = flag(16, "problems", "Number of problems in a step.")
    num_generations: int = flag(8, "completions", "Completions per problem.")
    sampling: Literal["uniform", "lilo", "adaptive", "dynamic", "buffer"] = flag(
        "uniform", "problems", "How the problems of a step are chosen. All ways but uniform look for problems that are sometimes solved.")
    candidate_factor: int | None = flag(
        None, "problems", "Candidates, as a multiple of --problems_per_step. Default: lilo and buffer 4, adaptive 2, dynamic 1 per round.")
    candidate_generations: int | None = flag(
        None, "problems", "Completions with which lilo and buffer try each candidate. Default: --num_generations.")
    candidate_choice: Literal["epochs", "memory"] = flag(
        "epochs", "problems", "Candidates. epochs: the next of the epoch. memory: those that look most learnable by earlier steps.")
    buffer_steps: int | None = flag(None, "problems", "Steps after which buffer chooses its problems again. Default: 10.")
    sample_ahead: int = flag(
        0, "completions", "1: vLLM servers sample the next step while this one updates, from the adapter of before. 0: in turn.")
    vllm_enable_sleep_mode: bool = flag(
        True, "completions", "On a GPU, vLLM gives up the memory of its keys and values during the update.")

    max_steps: int = flag(200, "update", "Number of training steps. Each step samples, verifies and updates.")
    learning_rate: float = flag(2e-5, "update", "Peak learning rate of AdamW. LoRA needs about 10 times the rate of full fine-tuning.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = flag(
        "constant", "update", "Schedule of the learning rate after the warm-up.")
    warmup_steps: int = flag(5, "update", "Steps over which the learning rate rises to its peak.")
    max_grad_norm: float = flag(1.0, "update", "The gradient is scaled down to this norm if its norm is larger.")
    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = flag(
        "adamw_torch", "update", "AdamW, or bitsandbytes' AdamW with 8-bit state. paged: the state can move to the host, until a resume.")
    num_iterations: int = flag(1, "update", "Passes over the completions of a step.")
    num_minibatches: int = flag(1, "update", "Optimiser steps per pass.")
    max_tokens_per_microbatch: int = flag(
        4096, "update", "Tokens in one forward and backward pass, padding included. Changes memory and speed, never the update.")
    loss_aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"] = flag(
        "token-mean", "update", "How the token losses become one number. constant: sum / (completions x --max_completion_length).")
    beta: float = flag(0.0, "update", "Weight of the KL divergence from the reference policy. 0: no KL term, no reference pass.")
    importance_cap: float = flag(
        2.0, "update", "Cap of the importance weights, which correct for sampler log-probs that differ from the trainer's. 0: no weights.")
    importance_mode: Literal["token", "sequence"] = flag("token", "update", "sequence: the tokens of a completion share one weight.")
    importance_bound: Literal["truncate", "mask"] = flag("truncate", "update", "A weight beyond cap or floor becomes the bound, or 0.")
    importance_floor: float = flag(0.0, "update", "Lower bound of the importance weights. IcePop: 0.5 with --importance_bound mask.")
    mask_truncated_completions: bool = flag(False, "update", "Leave completions that reached the length limit out of the loss.")

    eval_steps: int = flag(20, "run", "Steps between evaluations. 0: none.")
    eval_problems: int = flag(200, "run", "Number of held-out problems in an evaluation.")
    save_steps: int = flag(50, "run", "Steps between checkpoints. 0: only one, after the last step.")
    save_total_limit: int = flag(2, "run", "Number of newest checkpoints that are kept. 0: all.")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = flag("none", "run", "Tracker that also gets the metrics.")
    plan_memory: float | None = flag(
        None, "run", "Memory of a GPU, in GB. Print the memory that the run needs and settings that fit, then end.")
    resume_from_checkpoint: str | None = flag(
        None, "run", "A checkpoint folder to continue from. auto: the newest one in --output_dir, else of this very command.")

    tiny_defaults: ClassVar[dict[str, Any]] = {
        **SamplingConfig.tiny_defaults, "learning_rate": 1e-3, "lr_scheduler_type": "linear", "max_steps": 60,
        "eval_steps": 10, "eval_problems": 400, "save_steps": 20, "max_tokens_per_microbatch": 2048}
    trained_adapters: ClassVar[int] = 1  # number of adapters that have gradients and optimiser state
    # flags that may change when a run is resumed
    resumable: ClassVar[Set[str]] = {
        "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "eval_steps", "eval_problems", "save_steps", "save_total_limit",
        "max_tokens_per_microbatch", "gradient_checkpointing", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode", "report_to",
        "reward_timeout", "reward_workers", "vllm_server_base_url", "vllm_server_timeout"}

    def check(self) -> None:
        """Raises UserError for values and combinations that cannot work, before anything is loaded."""
        super().check()
        for name in ("lora_r", "lora_alpha", "problems_per_step", "num_generations", "max_steps", "num_iterations",
                     "num_minibatches", "max_tokens_per_microbatch", "eval_problems"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number from 1 up")
        for name in ("warmup_steps", "eval_steps", "save_steps", "save_total_limit", "beta", "importance_cap", "importance_floor"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "max_grad_norm"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        if self.importance_cap == 0 and (self.importance_mode, self.importance_bound) != ("token", "truncate"):
            raise UserError("--importance_mode and --importance_bound do nothing with --importance_cap 0: leave them out, or give a cap")
        require(self.importance_floor <= self.importance_cap, "importance_floor", self.importance_floor, "at most the cap, as 0.5")
        self._check_sampling()
        self._check_reward()
        require(self.sample_ahead in (0, 1), "sample_ahead", self.sample_ahead, "0 or 1")
        if self.sample_ahead and not (self.vllm_server_base_url and self.importance_cap > 0 and self.sampling == "uniform"):
            raise UserError("--sample_ahead 1 needs servers (--vllm_server_base_url), importance weights (--importance_cap above 0), and "
                            "--sampling uniform, which chooses problems before it knows how this step went")
        most = self.problems_per_step * self.num_generations
        require(self.num_minibatches <= most, "num_minibatches", self.num_minibatches, f"at most the {most} completions of a step")
        if heads := {"lm_head", "embed_tokens"} & set(self.lora_target_modules or ()):
            raise UserError(f"--lora_target_modules {' '.join(heads)}: the output head and the embeddings stay frozen; leave them out")
        if self.optim != "adamw_torch" and not importlib.util.find_spec("bitsandbytes"):
            raise UserError(f"--optim {self.optim} needs bitsandbytes: pip install bitsandbytes, or leave the flag out")
        require(self.plan_memory is None or self.plan_memory > 0, "plan_memory", self.plan_memory, "the memory of a GPU in GB, as 24")
        if self.report_to != "none" and not importlib.util.find_spec(self.report_to):
            raise UserError(f"--report_to {self.report_to}: it is not installed; pip install {self.report_to}, or leave the flag out")

    @property
    def needs_reference(self) -> bool:
        """Whether the run has a reference policy: with a KL term. A fork that uses one in another way sets `needs_reference = True`."""
        return self.beta > 0

    @property
    def importance(self) -> dict[str, Any]:
        """How importance weights are bounded: arguments of `importance_weights` in policy/loss.py."""
        return {"cap": self.importance_cap, "floor": self.importance_floor, "mode": self.importance_mode, "bound": self.importance_bound}

    @property
    def candidates_per_step(self) -> int:
        """Number of candidates that are tried at once to choose the problems of a step. `--sampling uniform` has no candidates."""
        return self.problems_per_step * (self.candidate_factor or {"adaptive": 2, "dynamic": 1}.get(self.sampling, 4))

    def _check_reward(self) -> None:
        """Raises UserError for values of the flags about --reward that cannot work."""
        for name, default in (("reward_timeout", 10.0), ("reward_workers", None), ("reward_failed", "lowest")):
            if self.reward is None and getattr(self, name) != default:
                raise UserError(f"--{name} does nothing without --reward: leave it out, or give --reward path/to/file.py:function")
        require(self.reward_timeout > 0, "reward_timeout", self.reward_timeout, "a number of seconds above 0")
        require(self.reward_workers is None or self.reward_workers >= 1, "reward_workers", self.reward_workers, "a whole number from 1 up")
        try:
            usable = self.reward_failed == "lowest" or abs(float(self.reward_failed)) < 3e38  # finite in float32
        except ValueError:
            usable = False
        require(usable, "reward_failed", self.reward_failed, "lowest or a number, as -1")

    def _check_sampling(self) -> None:
        """Raises UserError for values of --sampling and its further flags that cannot work together."""
        for name in ("candidate_factor", "candidate_generations", "buffer_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "a whole number from 1 up")
        read_by = {"candidate_factor": ("lilo", "adaptive", "dynamic", "buffer"), "candidate_generations": ("lilo", "buffer"),
                   "buffer_steps": ("buffer",)}
        if self.candidate_choice != "epochs" and self.sampling == "uniform":
            raise UserError("--candidate_choice memory does nothing with --sampling uniform: give lilo, adaptive, dynamic or buffer; "
                            "--sampling lilo --candidate_factor 1 trains on every problem that the memory chooses")
        for name, modes in read_by.items():
            if getattr(self, name) is not None and self.sampling not in modes:
                raise UserError(f"--{name} does nothing with --sampling {self.sampling}: leave it out, or give --sampling "
                                f"{' or '.join(modes)}")
        if self.sampling != "uniform" and (self.candidate_generations or self.num_generations) < 2:
            raise UserError(f"--sampling {self.sampling} compares a problem's completions: give --num_generations 2 or more. With lilo and "
                            "buffer, --candidate_generations 2 or more is enough")
        completions = self.problems_per_step * self.num_generations
        if self.sampling == "adaptive" and 2 * self.candidates_per_step >= completions:
            raise UserError(f"--sampling adaptive first samples 2 completions of each of {self.candidates_per_step} candidates, which "
                            f"leaves none of the step's {completions} completions for the learnable ones: give a lower "
                            "--candidate_factor or a higher --num_generations")


def _cuda() -> bool:
    """Whether there is a CUDA device. Called only for flags that depend on it, because importing torch takes seconds."""
    import torch

    return torch.cuda.is_available()


C = TypeVar("C", bound=SamplingConfig)
