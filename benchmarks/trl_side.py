"""TRL's side of benchmarks/vs_trl.py, which starts it: one run of TRL's GRPOTrainer, in TRL's own environment.

    TRL_PYTHON benchmarks/trl_side.py JOB.json RESULT.json

JOB.json: `model` (folder), `problems` (prompt and answer, in the order in which they are trained on), `lora`, `attention`, and
`config`, the arguments of GRPOConfig. RESULT.json: when each step began, sampled, verified and ended; every completion's length and
reward; peak memory. Of this repository it uses `common/verify.py` alone, which needs no package that torch does not bring.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.verify.answers import is_correct


def peak_gb() -> float:
    """The most resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Clock(TrainerCallback):
    """Notes when each step begins. What comes before the first reward of a step is sampling, what comes after it the update."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.before_gb = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.before_gb = self.before_gb or peak_gb()
        self.steps.append({"began": time.perf_counter()})


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    clock = Clock()

    def reward(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        """As common/rewards.py: 1 for the right answer of a completion that ended by itself, else 0."""
        step = clock.steps[-1]
        step["sampled"] = time.perf_counter()
        ended = [ids[-1] == tokenizer.eos_token_id for ids in completion_ids]
        rewards = [float(e and is_correct(c, a)) for e, c, a in zip(ended, completions, answer, strict=True)]
        step |= {"verified": time.perf_counter(), "lengths": [len(ids) for ids in completion_ids], "rewards": rewards}
        return rewards

    trainer = GRPOTrainer(
        model=job["model"],
        reward_funcs=reward,
        args=GRPOConfig(**job["config"], model_init_kwargs={"dtype": "float32", "attn_implementation": job["attention"]}),
        train_dataset=Dataset.from_list(job["problems"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(**job["lora"], lora_dropout=0.0, task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    result = {
        "steps": clock.steps,
        "optimizer_steps": trainer.state.global_step,
        "peak_gb": peak_gb(),
        "before_gb": clock.before_gb,
        "trainable": sum(p.numel() for p in trainable.values()),
        "dtypes": sorted({str(p.dtype) for p in trainer.model.parameters()}),
        "threads": torch.get_num_threads(),
        "versions": {package: importlib.metadata.version(package) for package in ("trl", "torch", "transformers", "peft")},
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
