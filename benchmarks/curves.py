"""What runs over seeds say: their folders read, means with intervals, tables, and figures for the documents.

Figures are SVG files with real text. They have no background and take the reader's light or dark colours.
"""
from __future__ import annotations

import io
import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mpmath
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.console import fail, say
from common.files import write_file
from common.run.report_runs import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {"steps": "training step", "tokens": "generated tokens", "seconds": "seconds of training steps (evaluation not counted)"}
Curve = dict[float, float]  # y by x
Run = dict[str, Any]  # what `read` gives
Runs = dict[str, list[Run]]  # by method, in the order of the seeds
Interval = Callable[[list[float]], tuple[float, float]]


# ---- runs ------------------------------------------------------------------------------------------------------------

def read(folder: Path, metric: str = "eval/pass@1") -> Run:
    """A finished run: a curve of the metric for each of AXES, totals, and all rows of metrics.jsonl. Exits if the metric is not there."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    run, seconds = {**{axis: {} for axis in AXES}, "rows": rows}, 0.0
    for row in rows:
        seconds += row.get("step_time", 0.0)
        for axis, x in (("steps", row["step"]), ("tokens", row.get("num_tokens", 0)), ("seconds", seconds)) if metric in row else ():
            run[axis][x] = row[metric]
    if not run["steps"]:
        fail(f"error: no row of {path} has {metric}; there is {', '.join(sorted({name for row in rows for name in row})) or 'no row'}")
    problems = next((row["eval/problems"] for row in rows if "eval/problems" in row), None)
    return run | {"all_tokens": rows[-1].get("num_tokens", 0), "all_seconds": seconds, "problems": problems}


def binned(run: Run, name: str, size: int = 10) -> Curve:
    """Means of a metric over the steps 1-10, 11-20, ..., by the last step of each."""
    rows = [row for row in run["rows"] if name in row and row["step"] > 0]
    parts = [rows[i:i + size] for i in range(0, len(rows), size)]
    return {part[-1]["step"]: statistics.fmean(row[name] for row in part) for part in parts}


def greedy(run: Run) -> list[float]:
    """Greedy accuracy, or the greedy mean of a reward of one's own, at each evaluation."""
    return [row[name] for row in run["rows"] for name in ("eval/greedy", "eval/reward_greedy") if name in row]


def tenths(run: Run) -> dict[str, str]:
    """Cells of a table: the evaluations at steps 0, 10, 20, ..., or all of them if they are few."""
    return {f"step {step}": f"{value:.3f}" for step, value in run["steps"].items() if step % 10 == 0 or len(run["steps"]) <= 5}


def totals(run: Run) -> dict[str, str]:
    """Cells of a table: tokens and seconds of all steps."""
    return {"tokens": f"{run['all_tokens'] / 1e3:.0f}k", "steps, s": f"{run['all_seconds']:.0f}"}


# ---- numbers ---------------------------------------------------------------------------------------------------------

def height(curve: Curve, end: float | None = None) -> float:
    """Mean height of a curve up to `end`: the area under it over its width. Example: {0: 0, 10: 1, 20: 1} -> 0.75."""
    x, y = np.array(list(curve.items())).T
    points = [*x] if end is None else [*x[x < end], end]
    width = points[-1] - points[0]
    return float(np.trapezoid(np.interp(points, x, y), points) / width) if width else float(y[0])


def mean_curve(curves: list[Curve]) -> list[tuple[float, float]]:
    """Over runs that were evaluated equally often: the mean x and the mean y of each evaluation."""
    points = zip(*(curve.items() for curve in curves), strict=True)
    return [(statistics.fmean(x for x, _ in point), statistics.fmean(y for _, y in point)) for point in points]


@cache
def t_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t distribution. Example: 4 degrees of freedom -> 2.776."""
    # P(|T| > t) is the regularized incomplete beta function at freedom / (freedom + t^2)
    share = mpmath.findroot(lambda x: mpmath.betainc(freedom / 2, 0.5, 0, x, regularized=True) - 0.05, (0, 1), solver="bisect",
                            maxsteps=100, tol=1e-24)
    return float(mpmath.sqrt(freedom * (1 / share - 1)))


def t_interval(values: list[float]) -> tuple[float, float]:
    """The 95 % Student t interval of the mean; NaN for a single value. Example: [1, 2, 3] -> (-0.484, 4.484)."""
    if len(values) < 2:
        return float("nan"), float("nan")
    mean, half = statistics.fmean(values), t_quantile(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def minus(a: list[float], b: list[float]) -> list[float]:
    """a - b, seed by seed."""
    return [x - y for x, y in zip(a, b, strict=True)]


def shown(values: list[float], form: str = ".3f", interval: Interval = t_interval, between: str = "to", what: str = "") -> str:
    """Mean and interval. Example: [1, 2, 3] -> "2.000 (-0.484 to 4.484)"."""
    low, high = interval(values)
    return f"{statistics.fmean(values):{form}}" + (f" ({what}{low:{form}} {between} {high:{form}})" if low == low else "")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def listed(rows: list[dict[str, str]]) -> str:
    """A Markdown table of rows that all have the same keys: its header."""
    return table(list(rows[0]), [list(row.values()) for row in rows])


# ---- figures ---------------------------------------------------------------------------------------------------------

# Inches. A figure is as wide as a phone: shown 400 pixels wide, its smallest letters (8.5 points) are 11 pixels high.
WIDTH, LEFT, RIGHT, LETTERS = 4.2, 0.48, 0.18, 8.5
INK = "#010203"  # stands for the text colour of the page that shows the figure
COLOURS = [*PALETTE[:6], PALETTE[7]]  # without the grey: that is for what stands behind
TOGETHER = 3  # methods that share a panel; more get a panel each
STYLE = "<style>svg{color:#1c1e21}@media(prefers-color-scheme:dark){svg{color:#e8eaed}}</style>"


class Chart(NamedTuple):
    """Curves of one quantity by method, one for each seed."""

    runs: dict[str, list[Curve]]
    x: str
    y: str
    wide: str = ""  # a method with wide lines, so that it is seen under another one that covers it

    @property
    def last(self) -> float:
        """The largest x."""
        return max(x for runs in self.runs.values() for curve in runs for x in curve)


def charts_of(runs: Runs, axes: list[str], metric: str = "eval/pass@1") -> list[Chart]:
    """The metric on each of these axes. The number of problems is the runs' own."""
    counts = sorted({run["problems"] for own in runs.values() for run in own if run["problems"]})
    where = f", {' or '.join(map(str, counts))} unseen problems" if counts and metric.startswith("eval/") else ""
    y = ("sampled pass@1" if metric == "eval/pass@1" else metric) + where
    return [Chart({name: [run[axis] for run in own] for name, own in runs.items()}, AXES[axis], y) for axis in axes]


def sheet(title: str, note: str, height: float) -> Figure:
    """A figure with a title and room of this height below it, inches."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, 46)
    whole = height + 0.19 * len(lines) + 0.25
    figure = Figure(figsize=(WIDTH, whole))
    write(figure, 0.08, whole - 0.05, "\n".join(lines), fontsize=10, weight="bold")
    write(figure, 0.08, height + 0.17, note)
    return figure


def write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Text below this place, inches."""
    wide, high = figure.get_size_inches()
    figure.text(x / wide, y / high, text, **{"fontsize": LETTERS, "color": INK, "va": "top", "parse_math": False, **style})


def place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at this place, inches."""
    from matplotlib.ticker import MaxNLocator

    wide, high = figure.get_size_inches()
    axes = figure.add_axes((left / wide, bottom / high, width / wide, height / high))
    axes.tick_params(labelsize=LETTERS, color=INK, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(alpha=0.15, color=INK, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4 if width > 2 else 3, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5 if height > 1.5 else 3, steps=[1, 2, 5, 10]))
    return axes


def draw(axes: Axes, runs: list[Curve], colour: str, label: str, wider: float) -> None:
    """The seeds' curves, their mean, and its interval over the seeds (that of two seeds is too wide to show anything)."""
    for curve in runs:
        axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.6 * wider, alpha=0.5)
    x, y = zip(*mean_curve(runs), strict=True)
    axes.plot(x, y, "o-", color=colour, markersize=3, linewidth=2 * wider, alpha=1 / wider**0.5, label=label)
    if len(runs) > 2:
        bounds = [t_interval(list(values)) for values in zip(*(curve.values() for curve in runs), strict=True)]
        axes.fill_between(x, *zip(*bounds, strict=True), color=colour, alpha=0.16, linewidth=0)


def picture(charts: list[Chart], title: str, order: Iterable[str] = ()) -> Figure:
    """The charts below each other. Up to three methods share a panel; of more, each has its own, with the others' means in grey.

    A method has one colour in all charts, by its place in `order`.
    """
    from matplotlib.ticker import EngFormatter

    names = list(dict.fromkeys([*order, *(name for chart in charts for name in chart.runs)]))
    grids = [(1, 1) if len(chart.runs) <= TOGETHER else (-(-len(chart.runs) // 2), 2) for chart in charts]
    heights = [0.75 + rows * (2.0 if columns == 1 else 1.2) for rows, columns in grids]
    several = any(len(runs) > 1 for chart in charts for runs in chart.runs.values())
    note = "thin: one seed; bold: mean; band: 95 % interval of it" if several else "one seed"
    figure, top = sheet(title, note, sum(heights)), sum(heights)
    for chart, (rows, columns), height in zip(charts, grids, heights, strict=True):
        write(figure, 0.08, top - 0.02, chart.y)
        ys = [y for runs in chart.runs.values() for curve in runs for y in curve.values()]
        room = 0.05 * (max(ys) - min(ys)) or 0.05
        wide, high, gap = (WIDTH - LEFT - RIGHT) / columns, (height - 0.65) / rows, 0.25 * (columns - 1)
        for i, name in enumerate(chart.runs) if columns == 2 else [(0, "")]:
            row, column = divmod(i, columns)
            axes = place(figure, LEFT + column * (wide + gap / 2), top - 0.2 - (row + 1) * high, wide - gap / 2, high - gap)
            axes.set(ylim=(min(ys) - room, max(ys) + room), xlim=(0, chart.last))
            for other, runs in chart.runs.items():
                if name in ("", other):
                    draw(axes, runs, COLOURS[names.index(other) % len(COLOURS)], other, 3 if other == chart.wide else 1)
                else:
                    axes.plot(*zip(*mean_curve(runs), strict=True), color=INK, linewidth=0.8, alpha=0.3, zorder=1)
            axes.set_title(name, loc="left", fontsize=LETTERS, color=INK, pad=2, parse_math=False)
            axes.tick_params(labelleft=column == 0, labelbottom=not name or i + columns >= len(chart.runs))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            if not name and len(chart.runs) > 1:
                for text in axes.legend(frameon=False, fontsize=LETTERS, labelcolor=INK).get_texts():
                    text.set_parse_math(False)
        top -= height
        write(figure, (LEFT + WIDTH - RIGHT) / 2, top + 0.24, chart.x, ha="center")
    return figure


def dots(rows: dict[str, dict[str, list[float]]], title: str, x: str, interval: Interval) -> Figure:
    """A row for each method, and within it for each series: a dot for each seed, the mean, and a bar for its interval."""
    series = list(dict.fromkeys(name for own in rows.values() for name in own))
    step, legend = 0.18, 0.25 if len(series) > 1 else 0.0
    left = max(1.0, 0.15 + 0.062 * max(map(len, rows)))  # a letter is about 0.062 wide
    inside = sum(step * len(own) + 0.1 for own in rows.values())
    figure = sheet(title, "dot: one seed; stroke: mean; bar: 95 % interval of it", inside + 0.5 + legend)
    axes = place(figure, left, 0.5 + legend, WIDTH - left - RIGHT, inside)
    y, centres = 0.0, []
    for own in rows.values():
        centres.append(y + 0.05 + step * len(own) / 2)
        for i, (name, values) in enumerate(own.items()):
            at, colour = y + 0.05 + step * (i + 0.5), COLOURS[series.index(name)]
            axes.plot(interval(values), [at, at], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
            axes.plot(values, [at] * len(values), "o", color=colour, markersize=3.2, alpha=0.85, markeredgewidth=0)
            axes.plot([statistics.fmean(values)], [at], "|", color=INK, markersize=8, markeredgewidth=1.6)
        y += step * len(own) + 0.1
    axes.set_ylim(y, 0)
    axes.set_yticks(centres, list(rows), parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    write(figure, WIDTH - RIGHT, legend + 0.26, x, ha="right")
    for i, name in enumerate(series) if legend else []:
        write(figure, left + 1.3 * i, 0.26, f"\u25cf {name}", color=COLOURS[i])
    return figure


def svg(figure: Figure, name: str) -> str:
    """The figure as an element of a page: in the page's own text colour, with ids that begin with `name`."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2).replace(INK, "currentColor")
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text).replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)


def save(figure: Figure, path: Path) -> None:
    """As a picture that stands alone: 480 pixels wide where there is room, narrower on a phone."""
    head, _, body = svg(figure, path.stem).partition(">")
    path.parent.mkdir(parents=True, exist_ok=True)
    body = re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", body)
    write_file(path, f'{head} width="480">{STYLE}{body}\n')
    say(f"wrote {path}")
