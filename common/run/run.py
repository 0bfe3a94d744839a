"""A run: its folder, its steps, its checkpoints, and an orderly end when it is interrupted."""
from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common import parallel
from common.config import CommonConfig
from common.console import bar, say
from common.errors import UserError
from common.files import append, flush, remove, write_file
from common.interrupt import Stop
from common.policy.policy import Policy
from common.records import Batch, Completion, Problem
from common.run.checkpoint import Saved, Stateful, load_checkpoint, save_checkpoint
from common.run.claim import claim_folder, tidy
from common.run.completion_rows import add_tokens, completion_rows
from common.run.folder import COMPLETIONS, METRICS, Rows, comparable, evaluation_names, run_prefix, write_config
from common.run.go_on import go_on
from common.run.identity import Identity
from common.run.lines import Forecast, result_line, sample_line, step_line
from common.run.lock import Lock
from common.run.metrics import peak_gb
from common.run.model_card import model_card
from common.run.not_finite import check_finite
from common.run.record import config_record
from common.run.report import try_report
from common.run.rescue import cause, patiently, remedy, save_elsewhere
from common.run.resume import checkpoints, newest_checkpoint, step_of, what_is_missing
from common.run.trackers import Tracker, check_login


class Run:
    """The folder of one run and its progress. `num_tokens` counts the tokens generated to train on; evaluation is not counted.

    In a run of several processes all have the same numbers, and process 0 writes the folder.
    """

    def __init__(self, config: CommonConfig, file: Path) -> None:
        """`file`: the script. Makes the folder before anything is loaded.

        Raises UserError if the folder cannot be written or holds another run.
        """
        config.complete()
        self.config, self.script, self.file = config, file.stem, file
        self.resumed = config.resume_from_checkpoint not in (None, "auto")
        self.num_tokens = self.num_completions = self.step = 0
        self.seconds: dict[str, float] = {}  # of the step's phases
        self.sample = ""  # a completion to show after the step's line
        self.evaluations: list[dict[str, Any]] = []  # rows of metrics.jsonl, oldest first
        self.stop = Stop("this step")
        self.stopped_by: int | None = None  # the signal that ends the run after this step
        self.writes = parallel.rank() == 0
        self.forecast = Forecast(config)
        self.step_started = time.perf_counter()
        self.saved: Path | None = None
        self.saved_step = 0
        self.identity = Identity(config)
        self.identity.check_files()
        if self.writes:
            check_login(config.report_to)
        self.tracker: Tracker | None = None
        self.progress: Any = None  # the bar, while the run goes on
        self.rows = {name: Rows(name) for name in (METRICS, COMPLETIONS)}
        self.lock: Lock | None = None  # of process 0
        config.output_dir, config.release = parallel.first(self._claim, "the run folder"), self.close

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.lock.folder if self.lock is not None else Path(self.config.output_dir or "")

    def identify(self, tokenizer: PreTrainedTokenizerBase, prompt: str, problems: Sequence[Problem],
                 held_out: list[Problem]) -> None:
        """Notes in later checkpoints what the run is made of. prompt: that of a short question, which shows the prompt template.

        Raises UserError if a resumed run is made of something else than before. Call it before weights are loaded.
        """
        self.identity.check(tokenizer, prompt, problems, held_out)

    def start(self, policy: Policy, parts: dict[str, Stateful], *others: Saved) -> None:
        """Writes config.json. A resumed run is first put back to its checkpoint, and its jsonl files are cut to that step.

        `others`: models besides the policy that have files of their own in a checkpoint, such as a critic.
        """
        self.identity.check_base()  # once more: its weights may have come from the hub just now
        parallel.agree({f"fingerprint of {name}": value for name, value in self.identity.now.items()})
        self.models, self.parts = [policy, *others, self.identity], {"run": self, **parts}
        self.progress = bar(total=self.config.max_steps, desc=self.script, disable=None if self.writes else True)
        if self.resumed:
            self._go_back()
        if not self.writes:
            return
        if self.config.report_to != "none":
            self.tracker = Tracker(self.config, self.folder, self.step)
        self.record = config_record(self.config, self.script)
        write_config(self.folder, self.record)
        say(f"writing {self.folder}")

    def steps(self) -> Iterator[int]:
        """The steps still to do. After a signal (Ctrl-C, or one of a scheduler) the current step is finished and saved."""
        self.forecast.begin_steps()
        with self.stop:
            for step in range(self.step + 1, self.config.max_steps + 1):
                self.step, self.seconds, self.step_started = step, {}, time.perf_counter()
                yield step
                if self._is_stopping():
                    if self.saved_step != step:  # the signal came after the step had looked for one
                        self._save()
                    break
        self._end()

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
        """Writes the step's row to metrics.jsonl, the tracker and the console. A value of None was not measured and is left out."""
        row: dict[str, Any] = {"step": self.step, **{name: value for name, value in metrics.items() if value is not None}}
        evaluated = evaluation_names(row) is not None
        if evaluated:
            self.evaluations.append(row)
        peak = peak_gb(self.models[0]) if self.step > 0 else 0.0
        if not self.writes:
            return
        if self.step > 0:
            evaluation_s = self.seconds.get("evaluate", 0.0)  # not part of the step's time
            row |= {"num_tokens": self.num_tokens, "num_completions": self.num_completions,
                    "step_time": time.perf_counter() - self.step_started - evaluation_s,
                    **{f"time/{phase}": seconds for phase, seconds in self.seconds.items()}, "memory/peak_gb": peak}
        self.rows[METRICS].add([row])
        self._keep(self._write_rows)
        if self.tracker is not None:
            self.tracker.log({name: value for name, value in row.items() if name != "step"}, self.step)
        say(step_line(row))
        if self.sample:
            say(self.sample)
            self.sample = ""
        if self.step > 0:
            self.progress.update(1)
            self.forecast.after_step(row)
        if evaluated and (problem := try_report(self.folder)):
            say(problem)

    def close(self) -> None:
        """Takes the progress bar away, and gives the folder free. A program may go on after a run, and after one that failed."""
        if self.progress is not None:
            self.progress.close()
        if self.lock is not None:
            self.lock.release()

    def say(self, text: str) -> None:
        """Prints a line and leaves the progress bar whole."""
        say(text)

    def count(self, completions: list[Completion]) -> None:
        """Adds completions that were generated to learn from, in whatever way, to the run's completions and tokens."""
        self.num_tokens += sum(completion.num_sampled for completion in completions)
        self.num_completions += len(completions)

    def log_completions(self, batch: Batch, rewards: Tensor, advantages: Tensor, token_advantages: Tensor | None = None,
                        token_values: Tensor | None = None, **more: list[Any]) -> None:
        """Appends every completion of the step to completions.jsonl. rewards, advantages (B,); `more`: further fields, one value a row.

        In an evaluated step some completions are kept token by token, with token_advantages and token_values (B, T). Without
        token_advantages each token gets the advantage of its completion.
        """
        if not self.writes:
            return
        self.forecast.scored(batch.completions, rewards)
        rows = completion_rows(self.step, batch, rewards, advantages, more)
        if self.due_for_evaluation:
            add_tokens(rows, batch, self.models[0].tokenizer, advantages if token_advantages is None else token_advantages, token_values)
        self.rows[COMPLETIONS].add(rows)
        with contextlib.suppress(OSError):  # the rows wait for the end of the step, when there is a state to save
            self.rows[COMPLETIONS].write(self.lock.find())
        if self.due_for_evaluation:
            if self.tracker is not None:
                self.tracker.log_completions(rows, self.step)
            self.sample = sample_line(batch, float(rewards[0]))

    def save_if_due(self) -> None:
        """Saves a checkpoint every `--save_steps`, after the last step, and before an orderly stop."""
        every = self.config.save_steps
        if (every and self.step % every == 0) or self.step == self.config.max_steps or self._is_stopping():
            self._save()

    def stop_if_not_finite(self, losses: list[tuple[Tensor, Tensor]], grad_norm: Tensor, batch: Batch) -> None:
        """Raises UserError, and writes the offending rows down, if a loss or the gradient is NaN or infinite.

        losses: the rows (b,) and the loss of each micro-batch. Call it before the optimiser moves, so that the last checkpoint and the
        weights in memory are still good.
        """
        check_finite(losses, grad_norm, batch, self.folder / f"nonfinite-step-{self.step}.json", self.saved)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "num_tokens": self.num_tokens, "num_completions": self.num_completions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        counts = [state[name] for name in ("step", "num_tokens", "num_completions")]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("no counts")
        self.step, self.num_tokens, self.num_completions = counts

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _claim(self) -> str:
        """Takes the run folder, and returns its path."""
        config = self.config
        wanted = config.output_dir or f"{run_prefix(config, self.script)}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.lock = claim_folder(Path(wanted), config.output_dir is not None, config.resume_from_checkpoint)
        config.release = self.close
        if config.seen and config.seen != tuple(path.name for path in checkpoints(self.folder)):
            raise UserError(f"{self.folder} went on in another process while this one started; start again")
        return str(self.folder)

    def _is_stopping(self) -> bool:
        """Whether the run ends after this step. A signal reaches the processes of a run at different moments, or only one of them."""
        self.stopped_by = next((number for number in parallel.gather([self.stop.number], "signals") if number is not None), None)
        return self.stopped_by is not None

    def _go_back(self) -> None:
        """Puts models, optimisers and files back to the checkpoint that the run is resumed from."""
        self.saved = Path(self.config.resume_from_checkpoint or "")
        load_checkpoint(self.saved, self.models, self.parts)  # sets self.step
        if not self.writes:
            return
        for later in checkpoints(self.folder):
            if step_of(later) <= self.step:
                continue
            if self.config.seen or what_is_missing(later):  # `auto` has passed it over
                remove(later)
                say(f"removed {later.name}: this run goes on from before it, and comes to its step again")
            else:
                aside = later.with_name(f"superseded-{later.name}")
                remove(aside)
                later.rename(aside)
                say(f"set aside {later.name} as {aside.name}: this run goes on from before it")
        for path in self.folder.glob("nonfinite-step-*.json"):
            remove(path)
        rows = {name: file.go_back(self.saved, self.step) for name, file in self.rows.items()}
        self.evaluations = [row for row in rows[METRICS] if evaluation_names(row)]
        self.progress.update(self.step)
        say(f"resumed {self.saved} after step {self.step}")

    def _save(self) -> None:
        if self.writes:
            self._keep(self._write_rows)
            self._keep(lambda: self._write_checkpoint(self.folder))
        self.saved, self.saved_step = self.folder / f"checkpoint-{self.step}", self.step

    def _write_rows(self) -> None:
        for file in self.rows.values():
            file.write(self.folder)

    def _write_checkpoint(self, folder: Path) -> None:
        """Writes README.md and the checkpoint. The checkpoint comes last: when it is there, all is there."""
        for file in self.rows.values():
            if (folder / file.name).exists():
                flush(folder / file.name)
        card = model_card(self.config, self.file, self.record, comparable(self.evaluations), self.step)
        write_file(folder / "README.md", card)
        marks = {name: file.mark for name, file in self.rows.items()}
        save_checkpoint(folder, self.step, self.models, self.parts, self.config.save_total_limit, card, marks)

    def _keep(self, work: Callable[[], None]) -> None:
        """Does `work`, which writes to the run folder at the end of a step.

        If that stays impossible, saves what is in memory elsewhere. Raises UserError then, which says how to go on.
        """
        try:
            patiently(self.lock, work)
        except OSError as error:
            raise UserError(f"{cause(error, self.folder)}; {self._rescue(error)}") from error

    def _rescue(self, error: OSError) -> str:
        """Saves what is in memory in another folder. Returns what there is now and how to go on, in words."""
        saved = newest_checkpoint(self.folder)
        if saved is not None and step_of(saved) == self.step:
            return f"nothing is lost: {remedy(error)}, and go on with: {go_on(self.config, saved)}"
        if self.step > 0 and (place := save_elsewhere(self.folder, f"saved-after-step-{self.step}", self._write_all)):
            return f"what was in memory is saved in {place}; go on with: {go_on(self.config, place / f'checkpoint-{self.step}')}"
        nowhere = "no other place could be written either; " if self.step > 0 else ""
        if saved is not None:
            return f"{nowhere}{remedy(error)}, and go on after step {step_of(saved)} with: {go_on(self.config, saved)}"
        return f"{nowhere}there is no checkpoint yet: {remedy(error)}, and start again with --resume_from_checkpoint auto"

    def _write_all(self, folder: Path) -> None:
        """Fills the new folder with the whole run, as far as its files can still be read."""
        write_config(folder, self.record)
        for file in self.rows.values():
            with contextlib.suppress(OSError):
                shutil.copyfile(self.folder / file.name, folder / file.name)
            append(folder / file.name, file.waiting)
        self._write_checkpoint(folder)

    def _end(self) -> None:
        """Says how the run ended. After a signal, ends the process as the signal would have."""
        self.progress.close()
        if self.tracker is not None:
            self.tracker.finish()
        if self.stopped_by is not None and self.step < self.config.max_steps:
            self.close()
            say(f"stopped after step {self.step}; go on with: {go_on(self.config, self.saved)}")
            sys.exit(128 + self.stopped_by)
        if not self.writes:
            return
        if len(evaluations := comparable(self.evaluations)) > 1:
            say(result_line(evaluations, self.forecast.seconds, self.resumed, self.saved))
        if (self.folder / "report.html").exists():
            say(f"curves and completions: {self.folder / 'report.html'}")
        self.close()
        tidy(self.folder)  # a folder that was renamed during a save has what was half written then
