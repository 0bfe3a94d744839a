"""The run folder: metrics.jsonl, completions.jsonl, checkpoints, one console line per step, and an orderly end."""
from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.config import CommonConfig, run_prefix
from common.errors import UserError
from common.policy.policy import Policy
from common.records import Batch, Completion
from common.run.checkpoint import Saved, Stateful, load_checkpoint, save_checkpoint
from common.run.completion_rows import add_tokens, completion_rows
from common.run.files import write_atomically
from common.run.model_card import model_card
from common.run.record import config_record
from common.run.report import try_report
from common.run.resume import checkpoints
from common.run.trackers import Tracker, check_login

METRICS, COMPLETIONS = "metrics.jsonl", "completions.jsonl"


class Run:
    """One run's folder and its progress. `num_tokens` counts what was generated to train on, evaluation apart."""

    def __init__(self, config: CommonConfig, file: Path) -> None:
        """Of the script `file`. Checks the folder, before anything is loaded.

        Raises UserError if it cannot be written or holds another run.
        """
        self.config, self.script, self.file = config, file.stem, file
        self.resumed = config.resume_from_checkpoint not in (None, "auto")
        self.folder = Path(config.output_dir or f"{run_prefix(config, self.script)}-{time.strftime('%Y%m%d-%H%M%S')}")
        self.num_tokens = self.num_completions = self.step = 0
        self.seconds: dict[str, float] = {}
        self.step_seconds: list[float] = []
        self.rewarded = False
        self.sample = ""
        self.evaluations: list[dict[str, Any]] = []
        self.stop_signal: int | None = None
        self.started = self.step_started = time.perf_counter()
        self.saved: Path | None = None
        self.saved_step = 0
        check_login(config.report_to)
        self.tracker: Tracker | None = None
        config.output_dir = str(self._claim_folder())

    def start(self, policy: Policy, parts: dict[str, Stateful], *others: Saved) -> None:
        """Writes config.json; on resume, first puts everything back to the checkpoint and cuts both jsonl files to its step.

        `others`: what is saved as files of its own beside the policy, as a critic.
        """
        self.models, self.parts = [policy, *others], {"run": self, **parts}
        self.progress = tqdm(total=self.config.max_steps, desc=self.script, dynamic_ncols=True, file=sys.stderr, disable=None)
        if self.resumed:
            self.saved = Path(self.config.resume_from_checkpoint or "")
            load_checkpoint(self.saved, self.models, self.parts)
            for name in (METRICS, COMPLETIONS):
                self._cut_back(self.folder / name)
            for later in checkpoints(self.folder):
                if int(later.name.split("-")[1]) > self.step:  # of the future that this run is about to replace
                    shutil.rmtree(later.with_name(f"superseded-{later.name}"), ignore_errors=True)
                    later.rename(later.with_name(f"superseded-{later.name}"))
                    self.say(f"set aside {later.name} as superseded-{later.name}: this run goes on from before it")
            self.progress.update(self.step)
            self.say(f"resumed {self.saved} after step {self.step}")
        if self.config.report_to != "none":
            self.tracker = Tracker(self.config, self.folder, self.step)
        self.record = config_record(self.config, self.script)
        write_atomically(self.folder / "config.json", json.dumps(self.record, indent=2) + "\n")
        self.say(f"writing {self.folder}")

    def steps(self) -> Iterator[int]:
        """The steps still to do. SIGINT or SIGTERM: the step in hand is finished and saved; a second one ends at once."""
        self.before_steps = time.perf_counter() - self.started
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for step in range(self.step + 1, self.config.max_steps + 1):
                self.step, self.seconds, self.step_started = step, {}, time.perf_counter()
                yield step
                if self.stop_signal is not None:
                    if self.saved_step != step:  # the signal came after the step had looked for one
                        self._save()
                    break
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.progress.close()
        if self.tracker is not None:
            self.tracker.finish()
        if self.stop_signal is not None and self.step < self.config.max_steps:
            self.say(f"stopped after step {self.step}; go on with: python {self.script}.py --resume_from_checkpoint {self.saved}")
            sys.exit(128 + self.stop_signal)
        if len(self.evaluations) > 1:
            first, last = self.evaluations[0], self.evaluations[-1]
            self.say(f"pass@1 {first['eval/pass@1']:.3f} -> {last['eval/pass@1']:.3f}, greedy {first['eval/greedy']:.3f} -> "
                     f"{last['eval/greedy']:.3f} on unseen problems; {time.perf_counter() - self.started:.0f} s"
                     f"{' since the resume' if self.resumed else ''}; the adapter is in {self.saved}")
        if (self.folder / "report.html").exists():
            self.say(f"curves and completions: {self.folder / 'report.html'}")

    @property
    def due_for_evaluation(self) -> bool:
        """Whether this step is one of every `--eval_steps`, or the last."""
        every = self.config.eval_steps
        return every > 0 and (self.step % every == 0 or self.step == self.config.max_steps)

    @contextlib.contextmanager
    def timer(self, phase: str) -> Iterator[None]:
        """Adds the seconds spent inside to the step's `time/{phase}`."""
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began

    def log(self, metrics: dict[str, float | None]) -> None:
        """Writes the step's line to metrics.jsonl and the console. None values are left out: not measured in this step."""
        row: dict[str, Any] = {"step": self.step, **{name: value for name, value in metrics.items() if value is not None}}
        if "eval/pass@1" in row:
            self.evaluations.append(row)
        if self.step > 0:
            peak_gb = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else resource.getrusage(
                resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
            row |= {"num_tokens": self.num_tokens, "num_completions": self.num_completions,
                    "step_time": self._step_time(), **{f"time/{k}": v for k, v in self.seconds.items()}, "memory/peak_gb": peak_gb}
        self._append(METRICS, [row])
        if self.tracker is not None:
            self.tracker.log({name: value for name, value in row.items() if name != "step"}, self.step)
        self.say(self._console_line(row))
        if self.sample:
            self.say(self.sample)
            self.sample = ""
        if self.step > 0:
            self.progress.update(1)
            self._announce(row)
        if "eval/pass@1" in row and (problem := try_report(self.folder)):
            self.say(problem)

    def count(self, completions: list[Completion]) -> None:
        """Adds to the run's completions and tokens what was generated to learn from, in whatever way."""
        self.num_tokens += sum(len(completion.ids) for completion in completions)
        self.num_completions += len(completions)

    def log_completions(self, batch: Batch, rewards: Tensor, advantages: Tensor, token_advantages: Tensor | None = None,
                        token_values: Tensor | None = None, **more: list[Any]) -> None:
        """Appends every completion of the step to completions.jsonl. rewards, advantages (B,); `more`: a field each, by row.

        Some of an evaluated step are kept token by token, with token_advantages (else the completion's) and token_values, (B, T).
        """
        rows = completion_rows(self.step, batch, rewards, advantages, more)
        if self.due_for_evaluation:
            add_tokens(rows, batch, self.models[0].tokenizer, advantages if token_advantages is None else token_advantages, token_values)
        self._append(COMPLETIONS, rows)
        if self.due_for_evaluation:  # one sample to look at; the rest is in the file
            if self.tracker is not None:
                self.tracker.log_completions(rows, self.step)
            prompt, completion = (" | ".join(text.strip().split("\n")) for text in (batch.problems[0].prompt, batch.completions[0].text))
            self.sample = f"  {prompt[-100:]}  ->  {completion[:160]}  (reward {rewards[0]:g}, reference {batch.problems[0].answer})"

    def save_if_due(self) -> None:
        """A checkpoint every `--save_steps`, after the last step, and before an orderly stop."""
        every = self.config.save_steps
        if (every and self.step % every == 0) or self.step == self.config.max_steps or self.stop_signal is not None:
            self._save()

    def stop_if_not_finite(self, losses: list[tuple[Tensor, Tensor]], grad_norm: Tensor, batch: Batch) -> None:
        """Raises UserError, the offending rows written down, if a micro-batch's loss or the gradient is NaN or infinite.

        losses: of each micro-batch its rows (b,) and its loss. Called before the optimiser moves, so the last checkpoint and the weights
        in memory are still good.
        """
        if torch.isfinite(grad_norm) and all(torch.isfinite(loss) for _, loss in losses):
            return
        bad = [rows for rows, loss in losses if not torch.isfinite(loss)] or [rows for rows, _ in losses]
        rows = torch.cat(bad).tolist()
        path = self.folder / f"nonfinite-step-{self.step}.json"
        write_atomically(path, json.dumps([
            {"problem": batch.problems[i].id, "prompt": batch.problems[i].prompt, "completion": batch.completions[i].text,
             "ids": batch.completions[i].ids, "sampling_logps": batch.completions[i].logps} for i in rows], indent=1))
        names = sorted({batch.problems[i].id for i in rows})
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise UserError(f"step {self.step}: the loss or its gradient is not finite (gradient norm {float(grad_norm)}); problems "
                        f"{shown}; the batch is in {path}; last good checkpoint: {self.saved or 'none yet'}. "
                        "Try a lower --learning_rate, or --dtype float32")

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "num_tokens": self.num_tokens, "num_completions": self.num_completions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.num_tokens, self.num_completions = state["step"], state["num_tokens"], state["num_completions"]

    def say(self, text: str) -> None:
        """A line on the console that leaves the progress bar whole."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _claim_folder(self) -> Path:
        """Makes the run folder, and makes sure that it can be written and is this run's alone."""
        named = self.config.output_dir is not None
        held = named and any((self.folder / name).exists() for name in ("config.json", METRICS))
        # `auto` in a folder whose run never came to a checkpoint: nothing in it can be continued, so it starts over
        over = held and self.config.resume_from_checkpoint == "auto" and not checkpoints(self.folder)
        if held and not self.resumed and not over:
            raise UserError(f"--output_dir {self.folder} holds another run; name another folder, delete that one, or continue it with "
                            "--resume_from_checkpoint auto")
        try:
            while not named and self.folder.exists():  # two runs that start in the same second
                self.folder = self.folder.with_name(f"{self.folder.name}-2")
            self.folder.mkdir(parents=True, exist_ok=named)
            write_atomically(self.folder / "probe", "")
            (self.folder / "probe").unlink()
            for name in (METRICS, COMPLETIONS) if over else ():
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            if isinstance(error, FileExistsError) and not named:
                return self._claim_folder()  # another run was faster
            raise UserError(f"--output_dir {self.folder} cannot be written: {error.strerror}; name another folder") from error
        return self.folder

    def _save(self) -> None:
        card = model_card(self.config, self.file, self.record, self.evaluations, self.step)
        self.saved = save_checkpoint(self.folder, self.step, self.models, self.parts, self.config.save_total_limit, card)
        write_atomically(self.folder / "README.md", card)
        self.saved_step = self.step

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _cut_back(self, path: Path) -> None:
        """Drops the rows after the checkpoint's step, and a last row that was cut off in the middle."""
        kept = []
        for line in path.read_bytes().split(b"\n") if path.exists() else []:  # bytes: it may have been cut inside a character
            try:
                row = json.loads(line)
            except ValueError:  # UnicodeDecodeError too
                continue
            if isinstance(row, dict) and row.get("step", math.inf) <= self.step:
                kept.append(line.decode() + "\n")
                if "eval/pass@1" in row:
                    self.evaluations.append(row)
        write_atomically(path, "".join(kept))

    def _console_line(self, row: dict[str, Any]) -> str:
        shown = {"eval/pass@1": "pass@1 {:.3f}", "eval/greedy": "greedy {:.3f}", "reward": "reward {:.3f}",
                 "frac_reward_zero_std": "zero-spread {:.2f}", "completions/mean_length": "length {:.1f}", "entropy": "entropy {:.3f}",
                 "kl": "kl {:.4f}", "grad_norm": "grad {:.3f}", "step_time": "{:.2f} s"}
        return "  ".join([f"step {self.step:>4}", *(form.format(row[name]) for name, form in shown.items() if name in row)])

    def _step_time(self) -> float:
        """Seconds of the step, evaluation apart."""
        return time.perf_counter() - self.step_started - self.seconds.get("evaluate", 0.0)

    def _announce(self, row: dict[str, Any]) -> None:
        """Says once when the first reward came, and after three steps what the whole run will take."""
        done = time.perf_counter() - self.started
        if row.get("reward", 0) > 0 and not self.rewarded:
            self.rewarded = True
            self.say(f"first reward {done:.0f} s after the start, {done - self.before_steps:.1f} s after the first step began")
        self.step_seconds.append(self._step_time())
        if len(self.step_seconds) == 3 and self.step < self.config.max_steps:
            whole = self.config.max_steps * sum(self.step_seconds) / 3
            tokens = self.num_tokens * self.config.max_steps / self.step
            self.say(f"expected for all {self.config.max_steps} steps: {f'{whole / 60:.0f} min' if whole > 120 else f'{whole:.0f} s'} "
                     f"(evaluations apart), {f'{tokens / 1e6:.1f} M' if tokens > 1e6 else f'{tokens / 1e3:.0f} k'} tokens sampled")

    def _on_signal(self, number: int, _: Any) -> None:
        if self.stop_signal is not None:
            os._exit(128 + number)
        self.stop_signal = number
        os.write(2, b"\nstopping after this step (once more: stop now)\n")  # print is not for signal handlers
