"""The flags that every script has, and their checks. Nothing here imports torch, so that a wrong flag is answered at once."""
from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import re
from collections.abc import Set
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from common.errors import UserError
from common.tiny.task import Arithmetic, Generator


def flag(default: Any, group: str, help: str) -> Any:
    """A dataclass field that becomes `--name`, listed under `group` in --help."""
    metadata = {"help": help.replace("%", "%%"), "group": group}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Source:
    """Where a registered data set lies on the hub. `question` columns are joined; a dot looks inside a column."""

    path: str
    subset: str | None = None
    question: tuple[str, ...] = ()
    answer: str | None = None


REGISTERED = {
    "gsm8k": Source("openai/gsm8k", "main"),
    "math": Source("DigitalLearningGmbH/MATH-lighteval"),
    "math500": Source("HuggingFaceH4/MATH-500"),
    "aime24": Source("HuggingFaceH4/aime_2024"),
    "aime25": Source("math-ai/aime25"),
    "amc23": Source("math-ai/amc23"),
    "svamp": Source("ChilleD/SVAMP", question=("Body", "Question"), answer="Answer"),
    "olympiadbench": Source("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", answer="final_answer"),
    "dapo17k": Source("BytedTsinghua-SIA/DAPO-Math-17k", answer="reward_model.ground_truth"),
}


@dataclass
class SamplingConfig:
    """What it takes to sample from a model on a data set: the flags that `eval.py` shares with the training scripts."""

    model: str = flag("tiny", "model", "Hub id or local folder of a causal language model; tiny: the embedded one.")
    adapter: str | None = flag(None, "model", "PEFT LoRA folder to start from; the reference policy is then that adapter, frozen.")
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto", "model", "Of the frozen base. auto: bfloat16 on a GPU, float32 on CPU.")
    load_in_4bit: bool = flag(False, "model", "QLoRA: hold the base in 4-bit NF4 (needs bitsandbytes).")

    dataset: str = flag("arithmetic", "data", "Registered name, .jsonl/.json/.parquet/.csv file, folder, hub id, arithmetic:key=value,...")
    prompt_template: str = flag(
        "auto", "data", "chat, plain, math_task, question, a text file with {question}; auto: chat if the tokenizer has it, else plain.")
    enable_thinking: Literal["auto", "true", "false"] = flag("auto", "data", "Handed to the chat template. auto: not handed over.")
    prompt_column: str | None = flag(None, "data", "Column of the question. Default: question, problem or prompt.")
    answer_column: str | None = flag(None, "data", "Column of the reference. Default: answer, solution or reference.")

    max_completion_length: int = flag(1024, "sampling", "Longest completion, tokens.")
    temperature: float = flag(1.0, "sampling", "Sampling temperature; logits are divided by it in the trainer too.")
    top_p: float = flag(1.0, "sampling", "Nucleus sampling. Below 1 the importance weights are biased.")
    stop: list[str] | None = flag(None, "sampling", r"Strings that end a completion; \n is a newline. Default: the prompt template's.")
    engine: Literal["auto", "vllm", "transformers"] = flag("auto", "sampling", "What samples. auto: vllm if there is a GPU for it.")
    vllm_gpu_memory_utilization: float = flag(0.3, "sampling", "Share of the GPU's memory that vLLM takes, its weights included.")

    output_dir: str | None = flag(None, "run", "Run folder. Default: runs/{script}-{model}-{dataset}-s{seed}-{time}.")
    config: str | None = flag(None, "run", "Rerun with the flags of a saved config.json; flags given beside it win.")
    seed: int = flag(0, "run", "Of everything random in the run.")

    # what --model tiny sets instead, for the flags that the user did not give
    tiny_defaults: ClassVar[dict[str, Any]] = {"prompt_template": "question"}
    given: ClassVar[Set[str]] = frozenset()  # flags that were typed, or come from a saved config.json

    def check(self) -> None:
        """Raises UserError for values and combinations that cannot work, before anything is loaded."""
        for name, value in asdict(self).items():
            _require(not isinstance(value, float) or math.isfinite(value), name, value, "a finite number")
        _require(self.max_completion_length >= 1, "max_completion_length", self.max_completion_length, "a whole number from 1 up")
        _require(all(self.stop or ["-"]), "stop", self.stop, "strings of one character or more")
        _require(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        for name in ("top_p", "vllm_gpu_memory_utilization"):
            _require(0 < getattr(self, name) <= 1, name, getattr(self, name), "above 0 and at most 1")
        if self.load_in_4bit and not importlib.util.find_spec("bitsandbytes"):
            raise UserError("--load_in_4bit needs bitsandbytes: pip install bitsandbytes, or leave the flag out")
        if self.engine == "vllm" and not importlib.util.find_spec("vllm"):
            raise UserError("--engine vllm: vllm is not installed; pip install -r requirements.txt on a machine with an NVIDIA GPU, "
                            "or use --engine transformers")
        if self.engine == "vllm" and self.dtype == "float32" and _cuda():
            raise UserError("--engine vllm --dtype float32: on a GPU vLLM's adapters are in bfloat16; use --engine transformers with it")
        if self.engine == "vllm" and self.load_in_4bit and not _cuda():
            raise UserError("--engine vllm --load_in_4bit: vLLM has 4-bit bases on GPUs only; use --engine transformers here")
        if self.model == "tiny" and self.dataset.partition(":")[0] != "arithmetic":
            raise UserError(f"--model tiny knows only the words of --dataset arithmetic, not {self.dataset}; name a real model for it")


@dataclass
class CommonConfig(SamplingConfig):
    """The flags that every training script has. Defaults for real models are starting points, not tuned."""

    lora_r: int = flag(32, "model", "LoRA rank.")
    lora_alpha: int = flag(64, "model", "LoRA scale: the update is multiplied by alpha / r.")
    lora_target_modules: list[str] | None = flag(None, "model", "Names of the linear layers to adapt. Default: all but the output head.")
    gradient_checkpointing: bool = flag(False, "model", "Recompute activations in the backward pass: less memory, about a third slower.")

    eval_dataset: str | None = flag(None, "data", "Held-out problems, given like --dataset. Default: its test split, else a tenth of it.")

    reward: str | None = flag(None, "data", "path/to/file.py:function that scores a completion instead of the verifier.")

    problems_per_step: int = flag(16, "sampling", "Problems in a step.")
    num_generations: int = flag(8, "sampling", "Completions per problem.")
    sampling: Literal["uniform", "lilo", "adaptive", "dynamic", "buffer"] = flag(
        "uniform", "sampling", "How a step's problems are chosen; all but uniform look for those that are sometimes solved.")
    candidate_factor: int | None = flag(
        None, "sampling", "Problems tried are this many times those of the step. Default: 4; adaptive 2; dynamic 1, and again until full.")
    candidate_generations: int | None = flag(
        None, "sampling", "lilo, buffer: completions of each candidate. Default: --num_generations, which lilo then trains on.")
    candidate_choice: Literal["epochs", "memory"] = flag(
        "epochs", "sampling", "Problems to try: the next of the epoch, or those that promise most by what the run saw of them.")
    buffer_steps: int | None = flag(None, "sampling", "buffer: steps between renewals. Default: 10.")
    vllm_enable_sleep_mode: bool = flag(False, "sampling", "vLLM moves its weights to host memory during the update (level 1).")

    max_steps: int = flag(200, "update", "Training steps: each samples, verifies, updates.")
    learning_rate: float = flag(2e-5, "update", "Peak learning rate of AdamW (LoRA wants about 10 times that of full fine-tuning).")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = flag("constant", "update", "Learning rate after the warm-up.")
    warmup_steps: int = flag(5, "update", "Steps over which the learning rate rises.")
    max_grad_norm: float = flag(1.0, "update", "Gradient norm is clipped to this.")
    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = flag(
        "adamw_torch", "update", "AdamW, or bitsandbytes' with its state in 8 bits; paged: which moves to the host if memory is short.")
    num_iterations: int = flag(1, "update", "Passes over each rollout batch.")
    num_minibatches: int = flag(1, "update", "Optimiser steps per pass.")
    max_tokens_per_microbatch: int = flag(4096, "update", "Tokens of a forward and backward, with padding: sets memory, never the update.")
    loss_aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"] = flag(
        "token-mean", "update", "How token losses become one number; constant: divided by completions x --max_completion_length.")
    beta: float = flag(0.0, "update", "Weight of the KL term to the reference policy (0: no reference pass).")
    importance_cap: float = flag(2.0, "update", "Cap of the weights that correct for sampler against trainer (0: no correction).")
    mask_truncated_completions: bool = flag(False, "update", "Leave completions that hit the length limit out of the loss.")

    eval_steps: int = flag(20, "run", "Steps between evaluations (0: none).")
    eval_problems: int = flag(200, "run", "Held-out problems per evaluation.")
    save_steps: int = flag(50, "run", "Steps between checkpoints (0: only the last).")
    save_total_limit: int = flag(2, "run", "Checkpoints kept (0: all).")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = flag("none", "run", "Tracker that gets the metrics as well.")
    plan_memory: float | None = flag(None, "run", "GB of a card: print what the run takes on it and settings that fit, and end.")
    resume_from_checkpoint: str | None = flag(
        None, "run", "A checkpoint folder, or auto: the newest of --output_dir, else of the newest matching run.")

    tiny_defaults: ClassVar[dict[str, Any]] = {
        **SamplingConfig.tiny_defaults, "learning_rate": 1e-3, "lr_scheduler_type": "linear", "max_steps": 60,
        "eval_steps": 10, "eval_problems": 400, "save_steps": 20, "max_tokens_per_microbatch": 2048}
    trained_adapters: ClassVar[int] = 1  # each with gradients and optimiser state
    # what a resumed run may change
    resumable: ClassVar[set[str]] = {
        "output_dir", "config", "resume_from_checkpoint", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
        "eval_steps", "eval_problems", "save_steps", "save_total_limit", "max_tokens_per_microbatch", "gradient_checkpointing",
        "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode", "report_to"}

    def check(self) -> None:
        """Raises UserError for values and combinations that cannot work, before anything is loaded."""
        super().check()
        at_least_one = ("lora_r", "lora_alpha", "problems_per_step", "num_generations", "max_steps", "num_iterations",
                        "num_minibatches", "max_tokens_per_microbatch", "eval_problems")
        for name in at_least_one:
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number from 1 up")
        for name in ("warmup_steps", "eval_steps", "save_steps", "save_total_limit", "beta", "importance_cap"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "max_grad_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        self._check_sampling()
        completions = self.problems_per_step * self.num_generations
        _require(self.num_minibatches <= completions, "num_minibatches", self.num_minibatches,
                 f"at most the {completions} completions of a step")
        heads = {"lm_head", "embed_tokens"} & set(self.lora_target_modules or ())
        if heads:
            raise UserError(f"--lora_target_modules {' '.join(heads)}: the output head and the embeddings stay frozen; leave them out")
        if self.optim != "adamw_torch" and not importlib.util.find_spec("bitsandbytes"):
            raise UserError(f"--optim {self.optim} needs bitsandbytes: pip install bitsandbytes, or leave the flag out")
        _require(self.plan_memory is None or self.plan_memory > 0, "plan_memory", self.plan_memory, "the GB of a card, as 24")
        if self.report_to != "none" and not importlib.util.find_spec(self.report_to):
            raise UserError(f"--report_to {self.report_to}: it is not installed; pip install {self.report_to}, or leave the flag out")
        if self.vllm_enable_sleep_mode and (self.engine == "transformers" or not _cuda()):
            raise UserError("--vllm_enable_sleep_mode frees the memory of vLLM on a CUDA GPU, which is not what samples here; leave it out")


    @property
    def candidates_per_step(self) -> int:
        """Problems tried at once to choose those of a step, for `--sampling` other than uniform."""
        return self.problems_per_step * (self.candidate_factor or {"adaptive": 2, "dynamic": 1}.get(self.sampling, 4))

    def _check_sampling(self) -> None:
        for name in ("candidate_factor", "candidate_generations", "buffer_steps"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "a whole number from 1 up")
        read = {"candidate_factor": ("lilo", "adaptive", "dynamic", "buffer"), "candidate_generations": ("lilo", "buffer"),
                "buffer_steps": ("buffer",)}
        if self.candidate_choice != "epochs" and self.sampling == "uniform":
            raise UserError("--candidate_choice memory does nothing with --sampling uniform: give lilo, adaptive, dynamic or buffer; "
                            "--sampling lilo --candidate_factor 1 trains on all that it chooses")
        for name, modes in read.items():
            if getattr(self, name) is not None and self.sampling not in modes:
                raise UserError(f"--{name} does nothing with --sampling {self.sampling}: leave it out, or give --sampling "
                                f"{' or '.join(modes)}")
        if self.sampling != "uniform" and (self.candidate_generations or self.num_generations) < 2:
            raise UserError(f"--sampling {self.sampling} compares a problem's completions: give --num_generations 2 or more, or lilo and "
                            "buffer --candidate_generations 2 or more")
        completions = self.problems_per_step * self.num_generations
        if self.sampling == "adaptive" and 2 * self.candidates_per_step >= completions:
            raise UserError(f"--sampling adaptive tries {self.candidates_per_step} problems twice, which leaves none of the step's "
                            f"{completions} completions for the learnable ones: give a lower --candidate_factor or more --num_generations")


def _cuda() -> bool:
    """Whether there is a CUDA device. Importing torch takes seconds: only for the flags that depend on it."""
    import torch

    return torch.cuda.is_available()


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise UserError(f"--{name} {value} cannot work: give {wanted}")


C = TypeVar("C", bound=SamplingConfig)


def resolve(config_class: type[C], saved: dict[str, Any], typed: dict[str, Any]) -> C:
    """The config of flags that were saved and typed: typed over saved, over the embedded model's defaults, over the script's."""
    config = config_class(**{**saved, **typed})
    if config.model == "tiny":
        name, _, settings = config.dataset.partition(":")
        longest = {"max_completion_length": Generator(Arithmetic.parse(settings)).longest_solution()} if name == "arithmetic" else {}
        config = config_class(**{**config_class.tiny_defaults, **longest, **saved, **typed})
    config.given = frozenset({**saved, **typed})
    return config


def short_name(text: str) -> str:
    """The last part of a path or hub name; settings of the embedded task, in which a / is none of a path, as they are."""
    return text if text.startswith("arithmetic") else text.rstrip("/").split("/")[-1]


def run_prefix(config: SamplingConfig, script: str) -> str:
    """The default run folder without its time: the same for reruns of the same script, model, data and seed."""
    model, dataset = (re.sub(r"[^A-Za-z0-9.]+", "-", short_name(text)).strip("-")[:60] for text in (config.model, config.dataset))
    return f"runs/{script}-{model}-{dataset}-s{config.seed}"
