"""How a run that was stopped goes on: commands that can be pasted. Needs no torch."""
from __future__ import annotations

import signal
import sys
from pathlib import Path

from common.config import CommonConfig, SamplingConfig
from common.interrupt import command
from common.run.folder import is_begun
from common.run.resume import checkpoints, what_is_missing


def go_on(config: CommonConfig, checkpoint: Path) -> str:
    """The command with which a run goes on from its checkpoint. All flags come from there, but code and servers are named again."""
    again = ["--reward", config.reward] if config.reward else []
    again += ["--vllm_server_base_url", *config.vllm_server_base_url] if config.vllm_server_base_url else []
    return command(script_of(config), "--resume_from_checkpoint", str(checkpoint), *again)


def stopped_line(config: SamplingConfig, number: int) -> str:
    """The line with which a script ends that a signal stopped outside its steps. It looks at what there is, and says how to go on."""
    folder = Path(config.output_dir) if config.output_dir else None
    begun = folder is not None and is_begun(folder)
    said = f"stopped by {signal.Signals(number).name}"
    again = list(sys.argv[1:])
    if begun and "--output_dir" not in again:
        again += ["--output_dir", str(folder)]
    if not isinstance(config, CommonConfig):
        return f"{said}; {'go on' if begun else 'nothing was written; start again'} with: {command(script_of(config), *again)}"
    saved = next((path for path in reversed(checkpoints(folder)) if what_is_missing(path) is None), None) if begun else None
    if saved is not None and saved.name == f"checkpoint-{config.max_steps}":
        return f"{said}, but the run is finished; the adapter is in {saved}"
    if saved is not None:
        return f"{said} between two steps; go on with: {go_on(config, saved)}"
    if begun and "--resume_from_checkpoint" not in again:
        again += ["--resume_from_checkpoint", "auto"]
    return (f"{said} before the first step was done: the work of the start, and of evaluation 0 if it had begun, is lost; start again "
            f"with: {command(script_of(config), *again)}")


def script_of(config: SamplingConfig) -> Path:
    """The script that the flags belong to."""
    return Path(sys.modules[type(config).__module__].__file__ or "")
