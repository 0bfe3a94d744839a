"""The lines that a run shows on the console."""
from __future__ import annotations

import time
from typing import Any

from common.config import CommonConfig
from common.console import say
from common.records import Batch
from common.run.folder import evaluation_names

# key in metrics.jsonl -> how the console shows it
SHOWN = {"eval/pass@1": "pass@1 {:.3f}", "eval/greedy": "greedy {:.3f}",
         "eval/reward": "eval_reward {:.3f}", "eval/reward_greedy": "eval_greedy {:.3f}",
         "reward": "reward {:.3f}", "frac_reward_zero_std": "zero_std {:.2f}",
         "completions/mean_length": "mean_length {:.1f}", "entropy": "entropy {:.3f}", "kl": "kl {:.4f}", "grad_norm": "grad_norm {:.3f}",
         "step_time": "{:.2f} s"}


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


class Forecast:
    """Says once when the first reward came, and after three steps how long the whole run will take."""

    def __init__(self, config: CommonConfig) -> None:
        self.max_steps = config.max_steps
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

    def after_step(self, row: dict[str, Any]) -> None:
        """`row`: the step's row of metrics.jsonl."""
        if row.get("reward", 0) > 0 and not self.rewarded:
            self.rewarded = True
            say(f"first reward {self.seconds:.0f} s after the start, {self.seconds - self.before_steps:.1f} s after the first step began")
        self.step_seconds.append(row["step_time"])
        if len(self.step_seconds) == 3 and row["step"] < self.max_steps:
            whole = self.max_steps * sum(self.step_seconds) / 3
            tokens = row["num_tokens"] * self.max_steps / row["step"]
            say(f"expected for all {self.max_steps} steps: {f'{whole / 60:.0f} min' if whole > 120 else f'{whole:.0f} s'} "
                f"(evaluations apart), {f'{tokens / 1e6:.1f} M' if tokens > 1e6 else f'{tokens / 1e3:.0f} k'} tokens sampled")
