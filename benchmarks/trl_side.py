"""One run of TRL's GRPOTrainer for benchmarks/vs_trl.py, which starts this script in TRL's own environment.

    TRL_PYTHON benchmarks/trl_side.py JOB.json RESULT.json

JOB.json holds `model` (a folder), `problems` (prompts and answers in the order of training), `lora`, `attention`, `dtype`, `reward`,
`clock` (of the module `time`), `profile` (number of a step, if its products are wanted), and `config`, the arguments of GRPOConfig.
RESULT.json gets, for each step, its beginning, the seconds of sampling and verifying, and every completion's
length and reward; and the memory of the process. Of this repository the script uses the answer checker alone,
or the reward that the job names.
"""

from __future__ import annotations

import contextlib
import json
import runpy
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from measure import Products, resident_gb, versions
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from common.files import write_file
from common.verify.answers import is_correct


class Clock(TrainerCallback):
    """Notes when each step begins. Sampling ends with the first reward of a step; the update comes after the rewards."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.steps: list[dict[str, Any]] = []
        self.before_gb = self.ended = 0.0
        self.clock, self.profile = getattr(time, job["clock"]), job.get("profile")
        self.phases: dict[str, Products] = {}
        self.within = contextlib.ExitStack()  # the profiler of a phase

    def enter(self, phase: str | None) -> None:
        """Ends the profile of the phase before. In the step to profile, begins that of `phase`."""
        self.within.close()
        if phase is not None and len(self.steps) == self.profile:
            self.within.enter_context(self.phases.setdefault(phase, Products()))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.before_gb = self.before_gb or resident_gb("VmHWM")
        self.steps.append({"began": self.clock()})
        self.enter("sample")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.enter(None)
        self.ended = self.clock()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(job["model"], trust_remote_code=False)
    clock, right = Clock(job), is_correct
    if job["reward"]:
        path, _, name = job["reward"].rpartition(":")
        own = runpy.run_path(path)[name]

        def right(completion: str, answer: str) -> float:
            return own(completion, types.SimpleNamespace(answer=answer))

    def reward(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        """The reward of train_grpo.py: that of the checker or of `own` for a completion that ended by itself, else 0."""
        clock.enter("verify")
        step, sampled = clock.steps[-1], clock.clock()
        ended = [ids[-1] == tokenizer.eos_token_id for ids in completion_ids]
        rewards = [float(right(c, a)) if e else 0.0 for e, c, a in zip(ended, completions, answer, strict=True)]
        step |= {"sample": sampled - step["began"], "verify": clock.clock() - sampled, "rewards": rewards}
        step |= {"lengths": [len(ids) for ids in completion_ids], "trained": 1.0}
        clock.enter("update")
        return rewards

    trainer = GRPOTrainer(
        model=job["model"],
        reward_funcs=reward,
        args=GRPOConfig(**job["config"], model_init_kwargs={"dtype": job["dtype"], "attn_implementation": job["attention"]}),
        train_dataset=Dataset.from_list(job["problems"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(**job["lora"], lora_dropout=0.0, task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    trainer.train()
    result = {
        "steps": clock.steps,
        "ended": clock.ended,
        "phases": {name: own.found() for name, own in clock.phases.items()},
        "optimizer_steps": trainer.state.global_step,
        "completions": sum(len(step["lengths"]) for step in clock.steps),
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "before_gb": clock.before_gb,
        "peak_gb": resident_gb("VmHWM"),
        "versions": versions(),
    }
    write_file(Path(sys.argv[2]), json.dumps(result))


if __name__ == "__main__":
    main()
