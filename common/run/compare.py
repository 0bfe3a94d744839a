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
from common.run.folder import CONFIG, is_begun
from common.run.judging import MADE_WITH, Row, about, read_rows
from common.run.saved_config import all_flags, different, read_config, read_record


def _scores(row: Row) -> dict[str, float]:
    """The scores of a row that are compared: of the greedy completion, and the mean of the samples if there are any."""
    samples = [sample["correct"] for sample in row["samples"]]
    return {"greedy": float(row["greedy"]["correct"]), **({"mean": statistics.fmean(samples)} if samples else {})}


def _texts(row: Row) -> list[str]:
    return [entry["completion"] for entry in (row["greedy"], *row["samples"])]


def _shown(value: Any) -> str:
    """A value of a flag in few words."""
    value = "none" if value is None else " ".join(value) if isinstance(value, list) else value
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return repr(text[:60]) if text != text.strip() or "," in text else text[:60]


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


def made_with(folder: Path, row: Row, config_class: type[SamplingConfig]) -> dict[str, Any]:
    """What decides the numbers of a saved evaluation beside its problems, by name. row: one of its rows.

    Without a config.json nothing but the number of samples is known.
    """
    known: dict[str, Any] = {}
    if is_begun(folder):
        known = all_flags(read_config(folder / CONFIG, config_class), config_class)
        record = read_record(folder / CONFIG)
        known |= {name: record[name] for name in ("engine", "device") if name in record}  # the engine that `auto` chose
        known |= {name: value for name, value in about(folder).items() if name in MADE_WITH}
    return {name: value for name, value in known.items() if name not in config_class.resumable} | {"num_samples": len(row["samples"])}


def compare(folders: list[Path], config_class: type[SamplingConfig]) -> dict[str, Any]:
    """The paired differences of two saved evaluations, second less first, over the problems that both have, which it prints too.

    Both are judged by the checker as it is now, or by the saved values of one --reward, so that they differ in their completions alone. It
    also prints with which other flags the completions were made. config_class: that of eval.py. Raises UserError for folders of no
    evaluation, of different data, and of different judges.
    """
    if folders[0].resolve() == folders[1].resolve():
        raise UserError(f"--compare {folders[0]} {folders[1]}: both are the same folder; name two")
    first, second = ({row["problem"]: row for row in read_rows(folder)} for folder in folders)
    made = [made_with(folder, next(iter(rows.values())), config_class) for folder, rows in zip(folders, (first, second), strict=True)]
    differ = different({name: value for name, value in made[0].items() if name in made[1]}, made[1])
    own = ["reward" in next(iter(rows.values()))["greedy"] for rows in (first, second)]
    if own[0] != own[1] or (own[0] and "reward" in differ):
        judges = [f"--reward {one.get('reward')}" if its else "the checker" for one, its in zip(made, own, strict=True)]
        raise UserError(f"{folders[0]} is judged by {judges[0]}, and {folders[1]} by {judges[1]}: judge one of them as the other first, by "
                        f"python eval.py --judge {folders[own[0]]} {judges[not own[0]]}")
    shared = [name for name in first if name in second]
    for name in shared:
        if first[name]["reference"] != second[name]["reference"]:
            raise UserError(f"{folders[0]} and {folders[1]} have different references for {name}: they are of different data")
    if not shared:
        raise UserError(f"{folders[0]} and {folders[1]} have no problem in common")
    found: dict[str, Any] = {"problems": len(shared), "left_out": len(first) + len(second) - 2 * len(shared),
                             "other_prompts": sum(first[name]["prompt"] != second[name]["prompt"] for name in shared),
                             "differ": [f"{name} {_shown(made[0][name])} / {_shown(made[1][name])}" for name in differ],
                             "same_completions": all(_texts(first[name]) == _texts(second[name]) for name in shared)}
    scores = [(_scores(first[name]), _scores(second[name])) for name in shared]
    for score in ("greedy", "mean"):
        pairs = [(a[score], b[score]) for a, b in scores if score in a and score in b]
        if len(pairs) == len(shared):
            before, after = map(list, zip(*pairs, strict=True))
            found[score] = difference(before, after) | {"first": statistics.fmean(before), "second": statistics.fmean(after),
                                                        "better": sum(b > a for a, b in pairs), "worse": sum(b < a for a, b in pairs)}
    unknown = [f"{folder} has no config.json: with which flags it was made is not known" for folder in folders if not is_begun(folder)]
    say(*_comparison_lines(found, [str(folder) for folder in folders]), *unknown)
    return found


def _comparison_lines(found: dict[str, Any], names: list[str]) -> list[str]:
    """The lines of a table of the differences, for the console."""
    lines = [f"A {names[0]}", f"B {names[1]}",
             f"{'':8} {'A':>7} {'B':>7} {'B - A':>8}   95 % interval, paired over {found['problems']} problems; B better, B worse"]
    for name, entry in found.items():
        if isinstance(entry, dict):
            lines.append(f"{name:8} {entry['first']:7.4f} {entry['second']:7.4f} {entry['value']:+8.4f}   {entry['low']:+.4f} to "
                         f"{entry['high']:+.4f}; {entry['better']}, {entry['worse']}")
    if found["differ"]:
        lines.append(f"A and B differ in: {', '.join(found['differ'])}")
    if found["same_completions"]:
        lines.append("all completions of A and B are the same")
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
