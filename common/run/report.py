"""report.html: learning curves, where the time goes, which problems teach, and completions with the credit of each token.

    python -m common.run report RUN [RUN ...] [--out report.html]

A page is made from run folders alone and holds all it needs. Every run writes its own at each evaluation; several runs make one that
compares them.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import short_name
from common.errors import UserError
from common.run.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = Path(__file__).with_name("report_page.html")
SAMPLE_BYTES = 1_200_000  # of completions in one page: of longer runs, some steps are left out
TOKENS = 2000  # of a completion in the page
POINTS = 400  # of a curve: of longer runs, means of neighbours
PALETTE = ("#2588cf", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")  # seen on light and on dark
INK = "#010203"  # stands for the page's own text colour
X = {"steps": "steps", "tokens": "generated tokens", "seconds": "seconds of training"}
PHASES = ("sample", "verify", "value", "update", "sync")
# name in metrics.jsonl, what it says
DETAILS = {"reward": "mean reward", "completions/mean_length": "tokens a completion", "neg_logp": "-log p, nats a token",
           "grad_norm": "gradient norm", "clip_ratio/region_mean": "clipped tokens, share", "kl": "KL to the reference, nats a token"}
MIX = {"sampling/frac_solved": ("always solved", "#009e73"), "sampling/frac_mixed": ("sometimes: these teach", "#2588cf"),
       "sampling/frac_hopeless": ("never solved", "#d55e00")}


@dataclass
class RunData:
    """What a run folder says. `evaluations` and `steps` are rows of metrics.jsonl with x-values under the names of X."""

    name: str
    record: dict[str, Any]  # config.json
    evaluations: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    samples: dict[int, list[dict[str, Any]]]  # by step



def read_run(folder: Path) -> RunData:
    """Raises UserError if the folder is not a run's."""
    try:
        record = json.loads((folder / "config.json").read_text())
        rows = list(whole_rows((folder / "metrics.jsonl").read_text().split("\n")))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a run folder (config.json, metrics.jsonl): {error}") from error
    seconds = accumulate(row.get("step_time", 0.0) for row in rows)
    for row, passed in zip(rows, seconds, strict=True):
        row |= {"steps": row["step"], "tokens": row.get("num_tokens", 0), "seconds": passed}
    samples: dict[int, list[dict[str, Any]]] = {}
    path = folder / "completions.jsonl"
    with open(path, encoding="utf-8") if path.exists() else io.StringIO() as file:
        for row in whole_rows(line for line in file if '"token_advantages"' in line):  # only those that are shown are worth parsing
            samples.setdefault(row["step"], []).append(row)
    return RunData(folder.name, record, [row for row in rows if "eval/pass@1" in row], [row for row in rows if row["step"] > 0], samples)



def whole_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a jsonl file; of a run that is going on or was killed, the last line may be cut."""
    for line in lines:
        with contextlib.suppress(ValueError):
            yield json.loads(line)



def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of `count` problems, one sample each (Wilson 1927). .5 of 100 -> .404, .596; 1 of 400 -> .990, 1.

    Of the mean of rewards between 0 and 1 as well, where it is wider than need be: none vary more than those that are 0 or 1.
    """
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (max(share * (1 - share), 0.0) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)



# ---- figures ---------------------------------------------------------------------------------------------------------

def svg(figure: Figure, name: str) -> str:
    """The figure as an element of a page: in the page's colours and font, with ids of its own."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace(INK, "currentColor")
    text = re.sub(r"(font: [\d.]+px)[^;\"]*", r"\1 sans-serif", text)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text).replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)



def panel(title: str, x: str, height: float, below: float = 0.45) -> tuple[Figure, Axes]:
    """An empty chart, narrow enough for a phone; inches. `below`: what the x-axis and a legend under it take."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(4.8, height))
    axes = figure.add_axes((0.11, below / height, 0.87, 1 - (below + 0.28) / height))  # quicker than working out the margins
    axes.set_title(title, loc="left", fontsize=min(10, 520 / len(title)), color=INK, parse_math=False)  # a run's name may be long
    axes.set_xlabel(X.get(x, x), fontsize=9, color=INK)
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(alpha=0.15, color=INK, linewidth=0.6)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure, axes



def thin(rows: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    """The points of a curve, neighbours averaged where there are too many to see."""
    points = [(row[x], row[y]) for row in rows if y in row]
    size = -(-len(points) // POINTS) or 1
    parts = [points[i:i + size] for i in range(0, len(points), size)]
    return [statistics.fmean(a for a, _ in part) for part in parts], [statistics.fmean(b for _, b in part) for part in parts]



def legend(axes: Axes, **options: Any) -> None:
    for text in axes.legend(frameon=False, fontsize=8, labelcolor=INK, **options).get_texts():
        text.set_parse_math(False)  # of a run's name



def under(figure: Figure, axes: Axes, columns: int) -> None:
    """The legend at the figure's lower edge."""
    legend(axes, loc="lower left", ncols=columns, bbox_to_anchor=(0.1, 0), bbox_transform=figure.transFigure, borderaxespad=0.2)



def learning_curve(runs: list[RunData], x: str) -> str:
    columns = 1 if any(len(run.name) > 24 for run in runs) else 2
    below = 0.2 * -(-len(runs) // columns) if 1 < len(runs) <= len(PALETTE) else 0.0  # names of several runs would hide curves
    figure, axes = panel("pass@1 on held-out problems", x, 3.0 + below, 0.45 + below)
    for run, colour in zip(runs, colours(runs), strict=True):
        at = [row[x] for row in run.evaluations]
        sampled = [row["eval/pass@1"] for row in run.evaluations]
        counts = [row.get("eval/problems", 0) for row in run.evaluations]
        if all(counts) and all(0 <= p <= 1 for p in sampled):
            axes.fill_between(at, *zip(*map(wilson, sampled, counts), strict=True), color=colour, alpha=0.18, linewidth=0)
        axes.plot(at, sampled, "o-", color=colour, markersize=3, linewidth=1.6, label=run.name if len(runs) > 1 else "sampled")
        axes.plot(at, [row["eval/greedy"] for row in run.evaluations], "--", color=colour, linewidth=1, alpha=0.8,
                  label="greedy" if len(runs) == 1 else None)
    if below:
        under(figure, axes, columns)
    elif len(runs) == 1:
        legend(axes, loc="lower right")
    return svg(figure, f"curve-{x}")



def detail(runs: list[RunData], y: str, what: str) -> str:
    figure, axes = panel(what, "steps", 2.2)
    for run, colour in zip(runs, colours(runs), strict=True):
        axes.plot(*thin(run.steps, "steps", y), color=colour, linewidth=1.1)
    return svg(figure, "detail-" + re.sub(r"\W", "-", y))



def stacked(run: RunData, number: int, title: str, parts: dict[str, tuple[str, str]], kind: str) -> str:
    """Areas on top of each other: `parts` are names in metrics.jsonl with label and colour."""
    figure, axes = panel(title, "steps", 2.7, 0.45 + 0.2 * -(-len(parts) // 3))
    rows = [{"steps": row["steps"], **{name: row.get(name, 0.0) for name in parts}} for row in run.steps]
    curves = [thin(rows, "steps", name) for name in parts]
    axes.stackplot(curves[0][0], *(y for _, y in curves), labels=[label for label, _ in parts.values()],
                   colors=[colour for _, colour in parts.values()], alpha=0.75, linewidth=0)
    axes.set_xlim(curves[0][0][0], max(curves[0][0][-1], curves[0][0][0] + 1))
    axes.set_ylim(bottom=0)
    under(figure, axes, 3)
    return svg(figure, f"{kind}-{number}")



def colours(runs: list[RunData]) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(len(runs))]



# ---- the page --------------------------------------------------------------------------------------------------------

def pieces(row: dict[str, Any]) -> list[str]:
    """The text of each token; of the end token, and of one that is part of a character, there may be none."""
    return [row["completion"][a:b] for a, b in zip(row["offsets"], [*row["offsets"][1:], len(row["completion"])], strict=True)]



def browser(runs: list[RunData]) -> list[dict[str, Any]]:
    """What the page's script shows: completions by run and step; steps are left out evenly where they would make the page too large."""
    kept = []
    for run in runs:
        steps = [{"step": step, "samples": samples_of(rows)} for step, rows in sorted(run.samples.items())]
        sizes, every = [len(json.dumps(step)) for step in steps], 1
        while sum(sizes[::-every]) > SAMPLE_BYTES / len(runs) and every < len(steps):
            every += 1
        some = steps[::-every][::-1]  # the last one is always among them
        kept.append({"name": run.name, "steps": some, "left_out": len(steps) - len(some)})
    return kept



def samples_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A step's completions for the page, problem by problem, those with the most spread among their rewards first."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    order = sorted(by_prompt.values(), key=lambda own: min(row["reward"] for row in own) - max(row["reward"] for row in own))
    return [{**{key: finite(row[key]) for key in ("prompt", "answer", "reward", "advantage", "finish_reason", "tokens")},
             "pieces": pieces(row)[:TOKENS], "credit": finite(row["token_advantages"][:TOKENS]),
             "values": finite(row.get("token_values"))[:TOKENS] if "token_values" in row else None, "starts": row.get("step_starts"),
             "states": finite(row.get("state_values"))} for own in order for row in own]



def finite(value: Any) -> Any:
    """NaN and infinities as None, which JSON has; in lists too."""
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value



def summary(run: RunData) -> str:
    """A line on a run: what, from where to where, at what cost."""
    flags, last = run.record["flags"], run.steps[-1] if run.steps else None
    words = [f"{run.record['script']}.py, {short_name(flags['model'])} on {short_name(flags['dataset'])}, seed {flags['seed']}"]
    if run.evaluations:
        first, final = run.evaluations[0], run.evaluations[-1]
        words.append(f"pass@1 {first['eval/pass@1']:.3f} → {final['eval/pass@1']:.3f}, greedy {final['eval/greedy']:.3f} after step "
                     f"{final['step']}")
    if last:
        words.append(f"{last['tokens']:,} tokens, {last['seconds']:,.0f} s, peak memory {last['memory/peak_gb']:.1f} GB")
    return "; ".join(words)



def page(runs: list[RunData]) -> str:
    """The whole page."""
    if not any(run.steps or run.evaluations for run in runs):
        raise UserError("nothing to show yet: metrics.jsonl is empty")
    items = "".join(f'<li><span class="dot" style="background:{colour}"></span><b>{escape(run.name)}</b><br>{escape(summary(run))}</li>'
                    for run, colour in zip(runs, colours(runs), strict=True))
    seen = {name for run in runs for row in run.steps for name in row}
    times = {f"time/{phase}": (phase, colour) for phase, colour in zip(PHASES, PALETTE, strict=False) if f"time/{phase}" in seen}
    curves = "".join(f'<div class="x {x}">{learning_curve(runs, x)}</div>' for x in X) if any(run.evaluations for run in runs) else ""
    details = "".join(detail(runs, name, what) for name, what in DETAILS.items() if name in seen)
    charts = {"time": "", "mix": ""}
    for number, run in enumerate(runs):
        after = f", {run.name}" if len(runs) > 1 else ""
        if any(name in row for row in run.steps for name in times):
            charts["time"] += stacked(run, number, f"seconds a step{after}", times, "time")
        if any("sampling/frac_mixed" in row for row in run.steps):
            charts["mix"] += stacked(run, number, f"problems tried in a step, share{after}", MIX, "mix")
    data = json.dumps(browser(runs), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":  # nothing in it can end the element that it stands in
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = {"TITLE": escape(title), "RUNS": items, "CURVES": curves, "DETAILS": details, "TIME": charts["time"], "MIX": charts["mix"],
             "DATA": data}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], PAGE.read_text(encoding="utf-8"))



def write_report(folders: list[Path], path: Path) -> None:
    """The page of these runs into a file. Raises UserError for a folder that is not a run's."""
    runs = [read_run(folder) for folder in folders]
    depth, parts = 1, [folder.resolve().parts for folder in folders]
    while len({own[-depth:] for own in parts}) < len(set(parts)):  # folders of the same name, as seeds of several methods have
        depth += 1
    for run, own in zip(runs, parts, strict=True):
        run.name = "/".join(own[-depth:])
    write_atomically(path, page(runs))



def try_report(folder: Path) -> str | None:
    """Writes a run's own report. A run never ends for its report: what went wrong is returned as a line for the console."""
    try:
        write_report([folder], folder / "report.html")
    except Exception as error:  # whatever it is
        return f"note: report.html was not written: {type(error).__name__}: {error}; later: python -m common.run report {folder}"
    return None



def main() -> None:
    program = argparse.ArgumentParser(prog="python -m common.run", allow_abbrev=False)
    parser = program.add_subparsers(required=True).add_parser("report", help="one page of one or several runs", description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="default: report.html in the run's folder; for several runs, here")
    arguments = program.parse_args()
    out = arguments.out or (arguments.runs[0] / "report.html" if len(arguments.runs) == 1 else Path("report.html"))
    try:
        write_report(arguments.runs, out)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(out)
