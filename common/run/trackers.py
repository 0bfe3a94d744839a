"""--report_to: sends the content of metrics.jsonl to TensorBoard, Weights & Biases or Trackio, through accelerate's trackers."""
from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from common.config import CommonConfig
from common.console import say
from common.errors import UserError

ROWS = 32  # completions in a sample table; completions.jsonl has all
COLUMNS = ("problem", "prompt", "completion", "answer", "reward", "advantage", "finish_reason", "tokens")


def check_login(report_to: str) -> None:
    """Raises UserError, before anything is loaded, if wandb has no account to report to. It may ask for one."""
    if report_to != "wandb" or os.environ.get("WANDB_MODE", "online") not in ("online", "run"):
        return
    import wandb

    try:
        wandb.login()
    except wandb.Error as error:
        raise UserError(f"--report_to wandb: {str(error).rstrip('.')}; call `wandb login` once, or set WANDB_MODE=offline and "
                        "`wandb sync` later") from error


class Tracker:
    """Sends the numbers and sample tables of a run to a tracker. If the tracker fails, a line says so and the run goes on without it."""

    def __init__(self, config: CommonConfig, folder: Path, step: int) -> None:
        """Starts to report. `step`: the last step of a run that is resumed, else 0. Raises UserError if the tracker does not start.

        A resumed run may differ from the earlier one after `step`. Only TensorBoard can replace the earlier values. In wandb and Trackio
        each start is therefore a run of its own, and the runs of one folder share a group.
        """
        self.name, self.failed = config.report_to, False
        name = f"{folder.name}-from-step-{step}" if step else folder.name
        project = os.environ.get(f"{self.name.upper()}_PROJECT", "vinery")
        PartialState()  # accelerate's trackers read from it which process they are in
        try:
            if self.name == "tensorboard":
                self.tracker: GeneralTracker = TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else 0)
            elif self.name == "wandb":
                self.tracker = WandBTracker(project, name=name, group=folder.name, dir=folder)
            else:
                self.tracker = TrackioTracker(project, name=name, group=folder.name, resume="never")
            self.tracker.start()
            self.tracker.store_init_configuration({key: " ".join(value) if isinstance(value, list) else value
                                                   for key, value in asdict(config).items()})
        except Exception as error:  # a service may raise anything
            raise UserError(f"--report_to {self.name} could not start: {error}; put that right or leave the flag out") from error

    def log(self, values: dict[str, float], step: int) -> None:
        """The numbers of one step."""
        self._guarded(lambda: self.tracker.log(values, step=step))

    def log_completions(self, rows: list[dict[str, Any]], step: int) -> None:
        """Sends the first completions of one step as a table (as text to TensorBoard). `rows` as in completions.jsonl."""
        self._guarded(lambda: self._table([[row[column] for column in COLUMNS] for row in rows[:ROWS]], step))

    def finish(self) -> None:
        """Sends everything that is still waiting."""
        self._guarded(lambda: self.tracker.finish())

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _table(self, data: list[list[Any]], step: int) -> None:
        if self.name == "wandb":
            self.tracker.log_table("completions", columns=list(COLUMNS), data=data, step=step)
        elif self.name == "trackio":
            import trackio

            self.tracker.log({"completions": trackio.Table(columns=list(COLUMNS), data=data)}, step=step)
        else:
            self.tracker.log({"completions": "\n\n---\n\n".join(as_markdown(row) for row in data)}, step=step)

    def _guarded(self, call: Any) -> None:
        if self.failed:
            return
        try:
            call()
        except Exception as error:  # a full disk or a lost service must not end the run
            self.failed = True
            say(f"note: --report_to {self.name} failed and gets no more of this run ({error}); metrics.jsonl has everything")


def as_markdown(row: list[Any]) -> str:
    """One completion as Markdown. Prompt and completion are code blocks, so that line breaks and signs stay as they are."""
    told = dict(zip(COLUMNS, row, strict=True))
    head = (f"**{told['problem']}**: reward {told['reward']:g}, advantage {told['advantage']:.3g}, reference `{told['answer']}`, "
            f"{told['tokens']} tokens, finish reason {told['finish_reason']}")
    parts = [f"{part}:\n\n" + "\n".join(f"    {line}" for line in told[part].splitlines()) for part in ("prompt", "completion")]
    return "\n\n".join([head, *parts])
