"""Shared by the scripts of this folder: the command line, runs in processes of their own, memory, medians, tables and figures.

Importing this file makes `common` and the training scripts importable. It needs the standard library alone, because `trl_side.py`
imports it in TRL's environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.console import fail, guard, say
from common.files import write_file

ROOT = Path(__file__).parents[1]
INK = "#1c1e21"  # text and axes of a figure; a pale colour in dark mode


def show(text: str) -> None:
    """Prints a text of several lines."""
    say(*text.split("\n"))


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line whose --help shows the script's docstring as it is."""
    guard()
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


def run_logged(command: list[str], log: Path, **environment: str) -> int:
    """The exit code of a command that ran in the repository's folder. Its output is in `log`."""
    log.unlink(missing_ok=True)  # a link could lead elsewhere
    with open(log, "x") as file:
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdout=file, stderr=file).returncode


def result_of(command: list[str], **environment: str) -> Any:
    """The JSON in the last line that a command printed. Ends the program if the command fails."""
    process = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if process.returncode:
        fail(f"{' '.join(command)} ended with code {process.returncode}:", *process.stderr.strip().split("\n"))
    return json.loads(process.stdout.splitlines()[-1])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def resident_gb(field: str) -> float:
    """Resident memory of this process in GB (10^9 bytes): "VmRSS" is the memory now, "VmHWM" the largest so far. Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


class Products:
    """Where the time of `with` blocks goes, by torch's profiler: products of linear layers, products of attention, and all else."""

    def __init__(self) -> None:
        self.seconds = self.linear = self.attention = 0.0
        self.products: Counter[tuple[int, int, int]] = Counter()  # (m, k, n) of the linear layers and the output head

    def __enter__(self) -> None:
        import torch.profiler

        self.profiler = torch.profiler.profile(record_shapes=True)
        self.profiler.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.profiler.__exit__(*error)
        for event in self.profiler.events():
            seconds = event.self_cpu_time_total / 1e6
            self.seconds += seconds
            if event.name in ("aten::mm", "aten::addmm"):
                self.linear += seconds
                (m, k), (_, n) = [shape for shape in event.input_shapes if len(shape) == 2][-2:]
                self.products[m, k, n] += 1
            elif event.name in ("aten::bmm", "aten::baddbmm") or "scaled_dot_product" in event.name:
                self.attention += seconds

    def found(self) -> dict[str, Any]:
        """The sums, for a file."""
        return {"seconds": self.seconds, "linear": self.linear, "attention": self.attention, "products": list(self.products.items())}


def device_name() -> str:
    """The GPU, or the CPU with the number of threads that torch uses."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """The installed versions of the libraries that matter most for speed."""
    return {package: importlib.metadata.version(package).split("+")[0] for package in ("torch", "transformers", "peft")}


def spread(values: list[float], form: str = ".2f") -> str:
    """median (lowest - highest)"""
    return f"{statistics.median(values):{form}} ({min(values):{form}} - {max(values):{form}})"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def stacked_panels(count: int) -> Any:
    """A matplotlib figure of `count` panels below each other, with letters that can be read when the figure is 400 pixels wide."""
    from matplotlib import pyplot

    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "vinery", "font.size": 12, **dict.fromkeys(names, INK)})
    return pyplot.subplots(count, 1, figsize=(5.8, 2.7 * count), squeeze=False, layout="constrained")


def save_svg(figure: Any, path: str) -> None:
    """Writes a figure as SVG without a background. Text stays text, and its colour follows the reader's light or dark mode."""
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", transparent=True, metadata={"Creator": None, "Date": None})
    style = f"<style>svg{{color:{INK}}} @media (prefers-color-scheme: dark){{svg{{color:#e8eaed}}}}</style>"
    head, tag, body = drawing.getvalue().partition("<defs>")
    write_file(Path(path), head + style + tag + body.replace(INK, "currentColor"))
