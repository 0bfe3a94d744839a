"""A loss or a gradient that is NaN or infinite ends the run, before it can reach the weights. The rows behind it are written down."""
from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from common import parallel
from common.errors import UserError
from common.files import write_file
from common.records import Batch
from common.run.rescue import cause


def check_finite(losses: list[tuple[Tensor, Tensor]], grad_norm: Tensor, batch: Batch, path: Path, saved: Path | None) -> None:
    """Raises UserError, and writes the offending rows to `path`, if a loss or the gradient is not finite, in whatever process.

    losses: the rows (b,) and the loss of each micro-batch. saved: the last checkpoint.
    """
    bad = [rows for rows, loss in losses if not torch.isfinite(loss)]
    if not parallel.anywhere(bool(bad) or not torch.isfinite(grad_norm), "whether losses and gradients are finite"):
        return
    bad = parallel.gather(bad, "rows without a finite loss") or parallel.gather([rows for rows, _ in losses], "rows")
    rows = torch.cat(bad).tolist()
    where = parallel.first(lambda: _write_down(rows, batch, path), "where the rows are")
    names = sorted({batch.problems[i].id for i in rows})
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise UserError(f"{path.stem.removeprefix('nonfinite-').replace('-', ' ')}: the loss or its gradient is not finite (gradient norm "
                    f"{float(grad_norm)}); problems {shown}; {where}; last good checkpoint: {saved or 'none yet'}. "
                    "Try a lower --learning_rate, or --dtype float32")


def _write_down(rows: list[int], batch: Batch, path: Path) -> str:
    """Writes rows of a batch to a file. Returns where they are, in words."""
    try:
        write_file(path, json.dumps([
            {"problem": batch.problems[i].id, "prompt": batch.problems[i].prompt, "completion": batch.completions[i].text,
             "ids": batch.completions[i].ids, "sampling_logps": batch.completions[i].logps} for i in rows], indent=1))
    except OSError as error:
        return cause(error, path)
    return f"the batch is in {path}"
