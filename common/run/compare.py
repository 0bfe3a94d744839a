"""What the console shows of evaluations: the table of one, and the paired differences of two, problem by problem."""
from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from common.config import SamplingConfig
from common.console import say
from common.errors import UserError
from common.records import SUCCESS_ABOVE
from common.run.judging import Row, read_rows


def _scores(row: Row) -> dict[str, float]:
    """The scores of a row that are compared: of the greedy completion, and the mean of the samples if there are any."""
    samples = [sample["correct"] for sample in row["samples"]]
    return {"greedy": float(row["greedy"]["correct"]), **({"mean": statistics.fmean(samples)} if samples else {})}


def difference(first: list[float], second: list[float]) -> dict[str, float]:
    """{"value", "low", "high"}: the mean of second - first over problems, and its 95 % interval. Scores are in [0, 1].

    The interval is Agresti and Min's for matched pairs (Statistics in Medicine 24, 2005, 729-740): as if there were two more problems, one
    half of a problem each for the differences +1 and -1 and one for 0, mean +- 1.96 standard errors. For 0/1 scores this is their
    formula. It has a width above 0 even if no problem differs.
    Example: 100 problems without a difference -> value 0, low -0.0192, high 0.0192.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    n = len(differences) + 2
    middle = sum(differences) / n
    variance = (sum(d * d for d in differences) + 1) / n - middle**2
    width = statistics.NormalDist().inv_cdf(0.975) * math.sqrt(variance / n)
    value = statistics.fmean(differences)
    return {"value": value, "low": max(-1.0, min(value, middle - width)), "high": min(1.0, max(value, middle + width))}


def compare(*folders: Path) -> dict[str, Any]:
    """The paired differences of two saved evaluations, second less first, over the problems that both have, which it prints too.

    Both are judged by the checker as it is now, so that they differ in their completions alone. Raises UserError for folders of no
    evaluation, or of different data.
    """
    first, second = ({row["problem"]: row for row in read_rows(folder)} for folder in folders)
    shared = [name for name in first if name in second]
    for name in shared:
        if first[name]["reference"] != second[name]["reference"]:
            raise UserError(f"{folders[0]} and {folders[1]} have different references for {name}: they are of different data")
    if not shared:
        raise UserError(f"{folders[0]} and {folders[1]} have no problem in common")
    found: dict[str, Any] = {"problems": len(shared), "left_out": len(first) + len(second) - 2 * len(shared),
                             "other_prompts": sum(first[name]["prompt"] != second[name]["prompt"] for name in shared)}
    scores = [(_scores(first[name]), _scores(second[name])) for name in shared]
    for score in ("greedy", "mean"):
        pairs = [(a[score], b[score]) for a, b in scores if score in a and score in b]
        if len(pairs) == len(shared):
            before, after = map(list, zip(*pairs, strict=True))
            found[score] = difference(before, after) | {"first": statistics.fmean(before), "second": statistics.fmean(after),
                                                        "better": sum(b > a for a, b in pairs), "worse": sum(b < a for a, b in pairs)}
    say(*_comparison_lines(found, [str(folder) for folder in folders]))
    return found


def _comparison_lines(found: dict[str, Any], names: list[str]) -> list[str]:
    """The lines of a table of the differences, for the console."""
    lines = [f"A {names[0]}", f"B {names[1]}",
             f"{'':8} {'A':>7} {'B':>7} {'B - A':>8}   95 % interval, paired over {found['problems']} problems; B better, B worse"]
    for name, entry in found.items():
        if isinstance(entry, dict):
            lines.append(f"{name:8} {entry['first']:7.4f} {entry['second']:7.4f} {entry['value']:+8.4f}   {entry['low']:+.4f} to "
                         f"{entry['high']:+.4f}; {entry['better']}, {entry['worse']}")
    if found["left_out"]:
        lines.append(f"{found['left_out']} rows are in one of the two alone, and are not in these numbers")
    if found["other_prompts"]:
        lines.append(f"the prompts of {found['other_prompts']} problems differ: the template, its date or the system message is another")
    return lines


def table(summary: dict[str, Any], config: SamplingConfig) -> list[str]:
    """The lines of a table of the summary, for the console."""
    lines = [f"{'':10} {'value':>7}   95 % interval over {summary['problems']} problems"]
    for name, entry in summary.items():
        if isinstance(entry, dict):
            shown = f"mean@{summary['samples']}" if name == "mean" else name
            lines.append(f"{shown:10} {entry['value']:7.4f}   {entry['low']:.4f} - {entry['high']:.4f}")
    lines.append(f"truncated {summary['truncated']:.3f}, no answer {summary['no_answer']:.3f}, mean length "
                 f"{summary['mean_length']:.1f} tokens (temperature {config.temperature if summary['samples'] else 0:g}, at most "
                 f"{config.max_completion_length} tokens)")
    if "reward" in summary:
        lines.append(f"mean reward {summary['reward']:.4f}; right is a reward above {SUCCESS_ABOVE:g}")
    if summary["left_out"]:
        lines.append(f"{summary['left_out']} rows could not be used and are not in these numbers")
    return lines
