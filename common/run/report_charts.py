"""The charts of report.html, and one sentence on each metric that says what it shows and what to look for.

A chart is a drawing that stretches to the width it gets, with ticks as text of the page around it. So one chart is sharp and has letters
of one size on a phone and on a desktop, in the page's own colours.
"""
from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from common.run.report_runs import Group, Row

POINTS = 400  # of one curve at most
PAGE_POINTS = 50_000  # of all curves of a page together, about 0.6 MB
X = {"steps": "steps", "tokens": "generated tokens", "seconds": "seconds of training"}
PHASES = ("sample", "verify", "value", "update", "sync")  # from the bottom of the stack to its top
MIX = {"sampling/frac_solved": ("all right", "#009e73"), "sampling/frac_mixed": ("some better than others", "#2588cf"),
       "sampling/frac_hopeless": ("all wrong", "#d55e00")}

# What the page says about a metric: title, and a sentence or two. These come first, in this order.
IMPORTANT = {
    "reward": ("Reward",
        "Mean reward of the completions that a step trains on. It should rise over the run, although single steps are noisy."),
    "eval/greedy": ("Greedy accuracy",
        "Share of the held-out problems that greedy decoding solves. The gap to pass@1 closes as the model becomes sure of its answers."),
    "eval/reward": ("Reward on held-out problems",
        "Mean reward of one sampled completion per problem. It should rise with the reward of the training problems."),
    "eval/reward_greedy": ("Greedy reward on held-out problems",
        "Mean reward of the greedy completion. It comes near the sampled reward as the model becomes sure of its answers."),
    "entropy": ("Entropy, nats per token",
        "Entropy of the policy over the vocabulary, averaged over the tokens that the update runs on. It usually falls. "
        "Near 0, all samples of a problem are alike, and comparing them teaches nothing."),
    "completions/mean_length": ("Tokens per completion",
        "Mean length of a step's completions. Worry if it climbs to the length limit, or if it falls together with the reward."),
    "frac_reward_zero_std": ("Problems with equal rewards, share",
        "Share of a step's problems whose completions all have the same reward. "
        "The nearer to 1, the fewer problems show the difference between a good and a bad completion."),
    "grad_norm": ("Gradient norm",
        "Norm of the gradient before clipping. Look for spikes and for steady growth. A lower learning rate helps against both."),
    "kl": ("KL to the reference, nats per token",
        "Distance of the policy from the reference policy. A slow rise is normal. A jump means that an update went too far."),
    "clip_ratio/region_mean": ("Clipped tokens, share",
        "Share of the tokens for which the loss is clipped. A large share means that the policy moves far within one batch."),
    "value/explained_variance": ("Explained variance of the values",
        "At 1, the values predict the returns exactly. At 0, they are no better than predicting the same number everywhere. "
        "Below 0, they are worse than that."),
    "value/frac_mixed": ("States with an undecided outcome, share",
        "Share of the valued states whose continuations did not all have the same reward: some were better than others."),
}
# The page has these, and a fork's metrics after the first six, in a section to open.
OTHERS = {
    "reward_std": ("Spread of rewards within a problem",
        "Standard deviation of the rewards of one problem's completions, averaged over the problems of a step."),
    "completions/clipped_ratio": ("Completions cut off, share",
        "Share of the completions that reached the length limit. If it is large, raise --max_completion_length."),
    "neg_logp": ("Negative log-prob, nats per token",
        "Mean negative log-prob of all sampled tokens. It estimates the entropy of the policy from the samples. "
        "Compare runs by this number, because the chart of the entropy may leave completions out."),
    "learning_rate": ("Learning rate",
        "Learning rate of the step, after warm-up and schedule."),
    "sampling/sampling_logp_difference/mean": ("Sampler against trainer, mean difference",
        "Mean difference, in nats, between the log-probs that sampler and trainer give to a token. It should stay small and flat."),
    "sampling/sampling_logp_difference/max": ("Sampler against trainer, largest difference",
        "Largest difference, in nats, between the log-probs that sampler and trainer give to a token."),
    "sampling/importance_weights/kept": ("Tokens whose weight is not masked, share",
        "Share of the tokens whose importance weight lies within --importance_floor and --importance_cap. The others are not trained on."),
    "sampling/candidates": ("Problems tried",
        "Number of problems that a step sampled before it chose those to train on."),
    "sampling/learnability_candidates": ("Learnability of the problems tried",
        "Mean of p (1 - p), where p is the success rate of a problem. A problem solved half of the time has 0.25, the most possible."),
    "sampling/learnability_batch": ("Learnability of the problems chosen",
        "Mean of p (1 - p) over the problems that a step trains on. It is higher than that of the problems tried if the choice helps."),
    "value/loss": ("Loss of the value function",
        "Loss on the returns of a step. It should fall while the value function learns."),
    "value/mean": ("Mean value",
        "Mean of the predicted values. It should follow the reward."),
    "value/states": ("States valued",
        "Number of states whose value a step estimated."),
    "value/continuations": ("Continuations sampled",
        "Number of completions that a step sampled only to value states."),
    "value/mean_abs_advantage": ("Mean size of the advantages",
        "Mean absolute advantage of a reasoning step. Near 0, the outcome hardly depends on any single step."),
    "reward/errors": ("Errors of the reward function",
        "Number of failed calls of the reward function since the start. It should be 0."),
    "reward/timeouts": ("Timeouts of the reward function",
        "Number of calls of the reward function that took too long, since the start. It should be 0."),
    "step_time": ("Seconds per step",
        "Duration of a step without evaluation."),
    "memory/peak_gb": ("Peak memory, GB",
        "Largest use of memory since the start: on the GPU if there is one, else in the process."),
}
# Names with a chart or a place of their own, and counters
ELSEWHERE = {"step", *X, *MIX, "eval/problems", "num_tokens", "num_completions"}


@dataclass
class Plot:
    """A chart's ranges. Drawings are 1000 wide and 1000 high, and the page stretches them."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def at(self, x: float, y: float) -> str:
        return f"{self.across(x):.1f} {self.down(y):.1f}"

    def across(self, x: float) -> float:
        return 1000 * (x - self.x_low) / (self.x_high - self.x_low)

    def down(self, y: float) -> float:
        return 1000 * (self.y_high - y) / (self.y_high - self.y_low)

    def line(self, points: Iterable[tuple[float, float]], colour: str, kind: str = "") -> str:
        """A line through the points, with a gap where a number is not finite. `kind`: thin, dashed or dots."""
        parts, gap = [], True
        for x, y in points:
            if math.isfinite(y):  # h0 makes a dot of a point that no line goes to
                parts.append(f"M{self.at(x, y)}h0" if gap or kind == "dots" else f"L{self.at(x, y)}")
            gap = not math.isfinite(y)
        return f'<path class="line {kind}" stroke="{colour}" d="{"".join(parts)}"/>'

    def area(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str, kind: str) -> str:
        """The area between two lines. `kind`: band or stack."""
        edge = [*zip(xs, high, strict=True), *reversed([*zip(xs, low, strict=True)])]
        return f'<path class="{kind}" fill="{colour}" d="M{"L".join(self.at(x, y) for x, y in edge)}Z"/>'

    def html(self, shapes: Iterable[str], x: str, title: str) -> str:
        """The chart with its grid and ticks. `x`: a name of X."""
        columns = [(self.across(value), value) for value in ticks(self.x_low, self.x_high, whole=x == "steps")]
        rows = [(self.down(value), value) for value in ticks(self.y_low, self.y_high)]
        grid = "".join(f"M{place:.1f} 0V1000" for place, _ in columns) + "".join(f"M0 {place:.1f}H1000" for place, _ in rows)
        labels = "".join(f'<span class="tx" style="left:{place / 10:.2f}%">{short(value)}</span>' for place, value in columns)
        labels += "".join(f'<span class="ty" style="top:{place / 10:.2f}%">{short(value)}</span>' for place, value in rows)
        return (f'<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
                f'<path class="grid" d="{grid}"/>{"".join(shapes)}</svg>{labels}<span class="xlabel">{X[x]}</span></div>')


def ticks(low: float, high: float, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers from low to high, about `most` of them. 0 to 20 -> 0, 5, 10, 15, 20. `whole`: whole numbers only."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def short(number: float) -> str:
    """A tick's text. 0.25 -> 0.25, 12500 -> 12.5k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}".replace("e-0", "e-").replace("-", "\u2212")  # a minus sign


def span(values: Iterable[float]) -> tuple[float, float]:
    """The y-range for these values, with some room. A curve that hardly changes is drawn as flat, between 0 and twice its value."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if high - low <= 1e-3 * max(abs(low), abs(high)):
        low, high = (min(0.0, 2 * low), max(0.0, 2 * high)) if high or low else (0.0, 1.0)
    room = 0.05 * (high - low)
    return low - room, high + room


def thin(rows: list[Row], x: str, y: str, most: int = POINTS) -> tuple[list[float], list[float]]:
    """The points of a curve: at most `most`, each the mean of neighbours."""
    points = [(row[x], row[y]) for row in rows if y in row]
    size = -(-len(points) // most) or 1
    parts = [points[i:i + size] for i in range(0, len(points), size)]
    finite = [[b for _, b in part if math.isfinite(b)] or [math.nan] for part in parts]
    return [statistics.fmean(a for a, _ in part) for part in parts], [statistics.fmean(part) for part in finite]


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of `count` problems, one sample each (Wilson 1927). .5 of 100 -> .404, .596; 1 of 400 -> .990, 1.

    It is for shares. The mean of a custom reward has no such interval, because nothing is known about the spread of the rewards.
    """
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (max(share * (1 - share), 0.0) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def line_chart(groups: list[Group], x: str, y: str, title: str, most: int = POINTS, band: bool = False, dashed: str = "") -> str:
    """The metric `y` of each group: thin lines for its runs, a thick one for their mean.

    `band`: with the interval over problems, for groups of one run. `dashed`: a second metric, as a dashed line.
    """
    wanted = [("thin", y, group, run.rows) for group in groups for run in group.runs if len(group.runs) > 1]
    wanted += [("dashed", dashed, group, group.rows) for group in groups if dashed]
    wanted += [("", y, group, group.rows) for group in groups]
    drawn = [(kind, group, *thin(rows, x, name, most)) for kind, name, group, rows in wanted if any(name in row for row in rows)]
    bands = []
    for kind, group, xs, ys in drawn if band else ():
        counts = [row.get("eval/problems") for row in group.rows if y in row]
        if not kind and len(group.runs) == 1 and all(counts) and all(0 <= share <= 1 for share in ys):
            bands.append((group, xs, *zip(*(wilson(share, counts[-1]) for share in ys), strict=True)))
    values = [value for _, _, _, ys in drawn for value in ys] + [value for *_, low, high in bands for value in (*low, *high)]
    plot = Plot(0.0, max((max(xs) for _, _, xs, _ in drawn), default=0.0) or 1.0, *span(values))
    shapes = [plot.area(xs, low, high, group.colour, "band") for group, xs, low, high in bands]
    for kind, group, xs, ys in drawn:
        shapes.append(plot.line(zip(xs, ys, strict=True), group.colour, kind))
        if not kind and (len(xs) == 1 or (y.startswith("eval/") and len(xs) <= 40)):
            shapes.append(plot.line(zip(xs, ys, strict=True), group.colour, "dots"))
    return plot.html(shapes, x, title)


def stacked_chart(rows: list[Row], parts: dict[str, tuple[str, str]], title: str, most: int = POINTS) -> str:
    """Shares of each step on top of each other, the first of `parts` at the bottom: names of metrics with label and colour."""
    full = [{"steps": row["steps"], **{name: row[name] if row.get(name, -1) >= 0 else 0.0 for name in parts}} for row in rows]
    curves = [thin(full, "steps", name, most) for name in parts]
    steps = curves[0][0]
    half = abs(steps[-1] - steps[0]) / (len(steps) - 1) / 2 if steps[-1] != steps[0] else 0.5
    xs = [edge for step in steps for edge in (step - half, step + half)]
    levels = [[0.0] * len(xs)]
    for _, ys in curves:
        levels.append([below + own for below, own in zip(levels[-1], [y for y in ys for _ in range(2)], strict=True)])
    plot = Plot(min(xs), max(xs), 0.0, max(levels[-1]) or 1.0)
    shapes = [plot.area(xs, low, high, colour, "stack") for low, high, (_, colour) in zip(levels, levels[1:], parts.values(), strict=False)]
    return plot.html(shapes, "steps", title)


def metrics_to_chart(rows: Iterable[Row], main: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of all numeric metrics in the rows: those to show at once, and the others. Metrics that only a fork has come early.

    `main`: metrics that the first chart of the page shows. They are left out.
    """
    seen = dict.fromkeys(name for row in rows for name, value in row.items() if type(value) in (int, float))
    names = [name for name in seen if name not in (*ELSEWHERE, *main) and not name.startswith("time/")]
    unknown = [name for name in names if name not in IMPORTANT and name not in OTHERS]
    first = [name for name in IMPORTANT if name in names] + unknown[:6]
    return first, unknown[6:] + [name for name in OTHERS if name in names]
