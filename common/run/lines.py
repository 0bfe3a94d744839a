"""The lines that a run shows on the console."""
from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from common.config import CommonConfig
from common.console import say
from common.records import Batch, Completion
from common.run.folder import evaluation_names
from common.verify.answers import extract_answer

# key in metrics.jsonl -> how the console shows it
SHOWN = {"eval/pass@1": "pass@1 {:.3f}", "eval/greedy": "greedy {:.3f}",
         "eval/reward": "eval_reward {:.3f}", "eval/reward_greedy": "eval_greedy {:.3f}",
         "reward": "reward {:.3f}", "frac_reward_zero_std": "zero_std {:.2f}",
         "completions/mean_length": "mean_length {:.1f}", "entropy": "entropy {:.3f}", "kl": "kl {:.4f}", "grad_norm": "grad_norm {:.3f}",
         "step_time": "{:.2f} s"}

FIRST = 3  # steps after which the run looks ahead


def step_line(row: dict[str, Any]) -> str:
    """The console's line of a row of metrics.jsonl."""
    return "  ".join([f"step {row['step']:>4}", *(form.format(row[name]) for name, form in SHOWN.items() if name in row)])


def sample_line(batch: Batch, reward: float) -> str:
    """The first completion of a step on one line: the end of its question, the beginning of its text, its reward."""
    problem = batch.problems[0]
    question = problem.question or problem.prompt  # the prompt of a chat ends with its template
    asked, text, answer = (" | ".join(text.strip().split("\n")) for text in (question, batch.completions[0].text, problem.answer))
    return f"  {asked[-100:]}  ->  {text[:160]}  (reward {reward:g}, reference {answer[:160]})"


def result_line(evaluations: list[dict[str, Any]], seconds: float, resumed: bool, adapter: Any) -> str:
    """The run in one line: its first and its last evaluation, its time, and where the adapter is."""
    first, last = evaluations[0], evaluations[-1]
    sampled, greedy = evaluation_names(last)
    return (f"{sampled.removeprefix('eval/')} {first[sampled]:.3f} -> {last[sampled]:.3f}, greedy {first[greedy]:.3f} -> "
            f"{last[greedy]:.3f} on unseen problems; {seconds:.0f} s{' since the resume' if resumed else ''}; "
            f"the adapter is in {adapter}")


def no_signal(completions: list[Completion], rewards: list[float], config: CommonConfig) -> str | None:
    """What is wrong and what to do, in one line, if the rewards say nothing about which completions are better. None if they do.

    Of the verifier that is so if no completion is right, whatever a penalty adds to its 0, or if all have 1.
    """
    count, low, high = len(rewards), min(rewards), max(rewards)
    if low < high and (config.reward or high > 0):
        return None
    cut = sum(completion.finish_reason == "length" for completion in completions) / count
    longer = (f"give a higher --max_completion_length than {config.max_completion_length}, or a --stop string if the model writes on "
              "after its answer")
    scored = f"note: {count} of {count} completions {'have the reward' if config.reward else 'score'}"
    if config.reward:
        remedy = f"{longer}: one that is cut off gets --reward_failed" if cut > 0.5 else \
            f"call {config.reward.rpartition(':')[2]} on some texts of completions.jsonl, or take problems that are sometimes solved"
        return f"{scored} {low:g}, and {100 * cut:.0f} % were cut off: nothing can be learnt from them; {remedy}"
    if low > 0:
        return f"{scored} {low:g}: nothing is left to learn; take harder problems"
    without = sum(extract_answer(completion.text) is None for completion in completions) / count
    remedy = longer if cut > 0.5 else (
        "read some in completions.jsonl; then ask for \\boxed{} in --prompt_template, or give a --reward that reads the model's own form"
        if without > 0.5 else "take easier problems or a better model")
    return f"{scored} 0: {100 * without:.0f} % hold no answer, {100 * cut:.0f} % were cut off; {remedy}"


class Forecast:
    """Says once when the first reward came. After three steps it says how long the whole run will take, and if rewards say nothing."""

    def __init__(self, config: CommonConfig) -> None:
        self.config = config
        self.completions: list[Completion] = []  # of the first three steps
        self.rewards: list[float] = []  # their rewards
        self.started = time.perf_counter()
        self.before_steps = 0.0  # seconds from the start to the first step
        self.rewarded = False
        self.step_seconds: list[float] = []

    def begin_steps(self) -> None:
        """Called when the first step begins."""
        self.before_steps = self.seconds

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def scored(self, completions: list[Completion], rewards: Tensor) -> None:
        """Called in each step, before `after_step`. rewards (B,): those of the completions."""
        if len(self.step_seconds) < FIRST:
            self.completions += completions
            self.rewards += rewards.tolist()

    def after_step(self, row: dict[str, Any]) -> None:
        """`row`: the step's row of metrics.jsonl."""
        if row.get("reward", 0) > 0 and not self.rewarded:
            self.rewarded = True
            say(f"first reward {self.seconds:.0f} s after the start, {self.seconds - self.before_steps:.1f} s after the first step began")
        self.step_seconds.append(row["step_time"])
        steps = self.config.max_steps
        if self.rewards and (len(self.step_seconds) == FIRST or row["step"] == steps):
            if line := no_signal(self.completions, self.rewards, self.config):
                say(line)
            self.completions, self.rewards = [], []
        if len(self.step_seconds) == FIRST and row["step"] < steps:
            whole = steps * sum(self.step_seconds) / FIRST
            tokens = row["num_tokens"] * steps / row["step"]
            say(f"expected for all {steps} steps: {f'{whole / 60:.0f} min' if whole > 120 else f'{whole:.0f} s'} "
                f"(evaluations apart), {f'{tokens / 1e6:.1f} M' if tokens > 1e6 else f'{tokens / 1e3:.0f} k'} tokens sampled")
