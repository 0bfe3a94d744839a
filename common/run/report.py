"""The page report.html of a run or of several runs: learning curves, time, problems, and completions with the credit of each token.

    python -m common.run report RUN [RUN ...] [--out report.html]

The page is made from run folders alone, and it is one file that needs nothing else. Every run writes its own page at each evaluation.
A page of several runs compares them. Runs of the same script and flags, apart from the seed, form a group and are drawn with their mean.
"""
from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from common.console import fail, guard, say
from common.errors import UserError
from common.files import write_file
from common.run.folder import EVALUATIONS, evaluation_names, short_name
from common.run.report_charts import IMPORTANT, MIX, OTHERS, PAGE_POINTS, PHASES, POINTS, X, line_chart, metrics_to_chart, stacked_chart
from common.run.report_runs import PALETTE, Group, RunData, differences, group_runs, is_number, read_run, shown

PAGE = Path(__file__).with_name("report_page.html")
SAMPLE_BYTES = 1_200_000  # of completions in one page. Steps of longer runs are left out
TOKENS = 2000  # of one completion in the page


# ---- completions -----------------------------------------------------------------------------------------------------

def pieces(row: dict[str, Any]) -> list[str]:
    """The text of each token. It is empty for the end token, and may be empty for a token that is a part of a character."""
    return [row["completion"][a:b] for a, b in zip(row["offsets"], [*row["offsets"][1:], len(row["completion"])], strict=True)]


def browser(runs: list[RunData]) -> list[dict[str, Any]]:
    """The data of the page's script: completions by run and step. Steps are left out evenly if the page would become too large."""
    kept = []
    for run in runs:
        steps = [{"step": step, "samples": samples_of(rows)} for step, rows in sorted(run.samples.items())]
        sizes, every = [len(json.dumps(step)) for step in steps], 1
        while sum(sizes[::-every]) > SAMPLE_BYTES / len(runs) and every < len(steps):
            every += 1
        some = steps[::-every][::-1]  # the last step is always among them
        kept.append({"name": run.name, "steps": some, "left_out": len(steps) - len(some)})
    return kept


def samples_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A step's completions for the page, problem by problem. Problems whose rewards differ most come first."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    order = sorted(by_prompt.values(), key=lambda own: min(row["reward"] for row in own) - max(row["reward"] for row in own))
    return [{**{key: finite(row[key]) for key in ("prompt", "answer", "reward", "advantage", "finish_reason", "tokens")},
             "pieces": pieces(row)[:TOKENS], "credit": finite(row["token_advantages"][:TOKENS]),
             "values": finite(row.get("token_values"))[:TOKENS] if "token_values" in row else None,
             "starts": finite(row.get("step_starts")), "states": finite(row.get("state_values"))} for own in order for row in own]


def finite(value: Any) -> Any:
    """The value with None, which JSON has, in place of NaN and infinities. Goes into lists."""
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def equal_rewards_give_no_advantage(runs: list[RunData]) -> bool:
    """Whether every completion of a problem with equal rewards has advantage 0, in samples without values of tokens or states."""
    rewards: dict[tuple[int, int, str], set[float]] = {}
    rows = [((i, step, row["prompt"]), row) for i, run in enumerate(runs) for step, own in run.samples.items() for row in own]
    for key, row in rows:
        rewards.setdefault(key, set()).add(row["reward"])
    equal = [row for key, row in rows if len(rewards[key]) == 1]
    return bool(equal) and not any(any(row["token_advantages"]) or "token_values" in row or "state_values" in row for row in equal)


# ---- the page --------------------------------------------------------------------------------------------------------

def summary(group: Group) -> str:
    """One line: script, model, data, learning and cost."""
    record = group.runs[0].record
    flags = record["flags"]
    many, last = len(group.runs) > 1, group.steps[-1] if group.steps else None
    seeds = ", ".join(str(run.record["flags"]["seed"]) for run in group.runs)
    words = [f"{record['script']}.py, {short_name(str(flags['model']))} on {short_name(str(flags['dataset']))}, seed{'s' * many} {seeds}"]
    if group.evaluations:
        first, final = group.evaluations[0], group.evaluations[-1]
        sampled, greedy = evaluation_names(final)
        words.append(f"{f'mean of {len(group.runs)} runs: ' if many else ''}{sampled.removeprefix('eval/')} {first[sampled]:.3f} → "
                     f"{final[sampled]:.3f}, greedy {final[greedy]:.3f} after step {final['steps']:g}")
    if last:
        words.append(f"{last['tokens']:,.0f} tokens, {last['seconds']:,.0f} s, peak memory {last.get('memory/peak_gb', math.nan):.1f} GB"
                     f"{' each' if many else ''}")
        if is_number(flags.get("max_steps")) and flags["max_steps"] > last["steps"]:
            words.append(f"step {last['steps']:g} of {flags['max_steps']}")
    return "; ".join(words)


def flags_table(group: Group) -> str:
    """The flags of the runs: first those from the command line, then the others, by name."""
    records = [run.record for run in group.runs]
    given = {match[1].replace("-", "_") for word in records[0].get("command", []) if (match := re.match(r"--([\w-]+)", str(word)))}
    flags = {name: ", ".join(dict.fromkeys(shown(record["flags"].get(name)) for record in records)) for name in sorted(records[0]["flags"])}
    parts = {"On the command line": given & set(flags), "All others": set(flags) - given}
    return "".join(f"<h4>{title}</h4><dl>" + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(flags[name])}</dd></div>"
                                                    for name in sorted(names)) + "</dl>" for title, names in parts.items() if names)


def heading(groups: list[Group]) -> str:
    """The list of groups, with their runs and flags."""
    items = []
    for group in groups:
        name = f"{dot(group.colour)}<b>{escape(group.name)}</b>" if len(groups) > 1 else ""
        differing = ", ".join(differences(group, groups))
        many = len(group.runs) > 1
        own = f"<p>{', '.join(f'<b>{escape(run.name)}</b>' for run in group.runs)}</p>" if many else ""
        items.append(f"<li>{name}<p>{escape(summary(group))}{escape(f'; {differing}' if differing else '')}</p><details><summary>"
                     f"{'Runs and flags' if many else 'Flags'}</summary>{own}{flags_table(group)}</details></li>")
    return "".join(items)


def dot(colour: str) -> str:
    return f'<span class="dot" style="background:{colour}"></span>'


def key(labels: Iterable[tuple[str, str]], kind: str = "") -> str:
    """A legend: labels and their colours. `kind`: all, for the legend of all charts."""
    return f'<p class="key {kind}">' + "".join(f"<span>{dot(colour)}{escape(label)}</span>" for label, colour in labels) + "</p>"


def figure(title: str, chart: str, sentence: str = "", legend: str = "", name: str = "") -> str:
    """A chart with its title above, and below the sentence that says what it shows and the metric's name."""
    code = f" <code>{escape(name)}</code>" if name and name != title else ""
    top = f'<div class="top"><h3>{escape(title)}</h3>{legend}</div>'
    return f"<figure>{top}{chart}<figcaption>{escape(sentence)}{code}</figcaption></figure>"


def stacks(groups: list[Group]) -> str:
    """The charts of time and of problems, for each group."""
    found = sorted({name[5:] for group in groups for row in group.steps for name in row if name.startswith("time/")} - {"evaluate"})
    phases = [phase for phase in PHASES if phase in found] + [phase for phase in found if phase not in PHASES]
    times = {f"time/{phase}": (phase, PALETTE[i % len(PALETTE)]) for i, phase in enumerate(phases)}
    mixed = ("Share of the problems tried in a step. In the blue area their completions have different rewards, else all were right or all "
             "wrong. A growing orange area means that the problems are too hard, a growing green area that they are too easy.")
    if equal_rewards_give_no_advantage([run for group in groups for run in group.runs]):
        mixed += " Completions in the green and orange areas get advantage 0 here, so the model learns from the blue area alone."
    timed = "Duration of the phases of a step. Evaluation is not included. The thickest area is the phase to make faster."
    charts = []
    for group in groups:
        for title, parts, sentence in (("Seconds per step", times, timed), ("Problems", MIX, mixed)):
            own = {name: part for name, part in parts.items() if any(name in row for row in group.steps)}
            # in runs of older versions, graded rewards that differ counted as wrong too, so that the parts are no shares of a whole
            if own and not (parts is MIX and any(sum(row.get(name, 0.0) for name in own) > 1.001 for row in group.steps)):
                full = title if len(groups) == 1 else f"{title}, {group.name}"
                legend = key([*own.values()][::-1])  # from the top of the stack to its bottom
                charts.append(figure(full, stacked_chart(group.steps, own, full), sentence if group is groups[0] else "", legend))
    return "".join(charts)


def main_metrics(groups: list[Group]) -> tuple[str, str]:
    """The metrics of the first chart, sampled and greedy: those of pass@1 if a group has them, else those of a custom reward."""
    found = {evaluation_names(row) for group in groups for row in group.evaluations}
    return next((names for names in EVALUATIONS if names in found), EVALUATIONS[0])


def learning(groups: list[Group], most: int) -> str:
    """The chart of pass@1, or of a custom reward, on held-out problems, for each x-axis."""
    lone = len(groups) == 1 and len(groups[0].runs) == 1
    sampled, greedy = main_metrics(groups)
    share = sampled == "eval/pass@1"  # else a mean of rewards, for which there is no band
    title = "pass@1 on held-out problems" if share else "Reward on held-out problems"
    charts = "".join(f'<div class="x {x}">' + line_chart(groups, x, sampled, title, most, band=share, dashed=greedy if lone else "")
                     + "</div>" for x in X)
    text = "Share of the held-out problems that the model solves. " if share else "Mean of your reward over the held-out problems. "
    if lone and not share:
        text += "Solid line: one sampled completion per problem. Dashed line: greedy decoding."
    elif lone:
        text += "Solid line: one sampled completion per problem, with a band for its 95 % interval over problems (Wilson). Dashed line: " \
                "greedy decoding. A rise counts if it is larger than the band. The band does not include the spread between seeds."
    else:
        text += "One sampled completion per problem. "
        if any(len(group.runs) > 1 for group in groups):
            text += "Thick line: mean of a group, up to the last step that all its runs have done. Thin lines: its runs. A difference " \
                    "between groups counts if it is larger than the spread of their thin lines. "
        if share and any(len(group.runs) == 1 for group in groups):
            text += "Band: 95 % interval over problems (Wilson) of a group with one run. It does not include the spread between seeds."
    text += " Tokens and seconds are those of training, evaluation apart."
    legend = '<p class="key"><span><i class="solid"></i>sampled</span><span><i class="broken"></i>greedy</span></p>' if lone else ""
    choice = "".join(f'<label><input type="radio" name="x" value="{x}"{" checked" * (x == "steps")}>{label}</label>'
                     for x, label in zip(X, ("steps", "tokens", "seconds"), strict=True))
    head = f'<div class="top"><h3>{title}</h3>{legend}<div class="choice" role="radiogroup" aria-label="x-axis">'
    return f'<figure class="main">{head}{choice}</div></div>{charts}<figcaption>{escape(text)}</figcaption></figure>'


def page(runs: list[RunData]) -> str:
    """The whole page. Raises UserError if there is nothing to show yet."""
    if not any(run.rows for run in runs):
        raise UserError("nothing to show yet: metrics.jsonl is empty")
    groups = group_runs(runs)
    sampled, greedy = main_metrics(groups)
    shown_first = (sampled, greedy) if len(runs) == 1 else (sampled,)  # the first chart has the greedy curve of a lone run only
    first, others = metrics_to_chart((row for run in runs for row in run.rows), shown_first)
    most = min(POINTS, max(20, PAGE_POINTS // (len(runs) + len(groups)) // (len(first) + len(others) + 8)))
    charts = {}
    for name in first + others:
        title, sentence = (IMPORTANT | OTHERS).get(name, (name, ""))
        charts[name] = figure(title, line_chart(groups, "steps", name, title, most), sentence, name=name)
    evaluated = any(group.evaluations for group in groups)
    data = json.dumps(browser(runs), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":  # nothing in the data can end the element that it stands in
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    parts = {"TITLE": escape(runs[0].name if len(runs) == 1 else f"{len(runs)} runs"), "RUNS": heading(groups),
             "KEY": key(((group.name, group.colour) for group in groups), "all") if len(groups) > 1 else "",
             "CURVES": (learning(groups, most) if evaluated else "") + "".join(charts[name] for name in first),
             "OTHERS": f'<details class="more"><summary>All other metrics ({len(others)})</summary><div class="charts">'
                       f'{"".join(charts[name] for name in others)}</div></details>' if others else "",
             "STACKS": stacks(groups), "DATA": data}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], PAGE.read_text(encoding="utf-8"))


def write_report(folders: list[Path], path: Path) -> None:
    """Writes the page of these runs to `path`. Raises UserError if a folder is not a run folder."""
    runs = [read_run(folder) for folder in folders]
    depth, parts = 1, [folder.resolve().parts for folder in folders]
    while len({own[-depth:] for own in parts}) < len(set(parts)):  # folders may have the same name, as seed-0 of several methods
        depth += 1
    for run, own in zip(runs, parts, strict=True):
        run.name = "/".join(own[-depth:])
    write_file(path, page(runs))


def try_report(folder: Path) -> str | None:
    """Writes a run's own page. Returns a line for the console if that fails, because a run must not end for its page."""
    try:
        write_report([folder], folder / "report.html")
    except Exception as error:  # the page is not worth a run, whatever went wrong
        return f"note: report.html was not written: {type(error).__name__}: {error}; later: python -m common.run report {folder}"
    return None


def _refuse_other_file(path: Path) -> None:
    """Raises UserError if there is something at `path` that is not a page: rows of a run, for example, or a device. Raises OSError."""
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file in it")
    if not path.exists():
        return
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(15) == b"<!doctype html>":
                return
    raise UserError(f"--out {path} is there already and is not a page; name a new file")


def main() -> None:
    guard()
    program = argparse.ArgumentParser(prog="python -m common.run", allow_abbrev=False)
    parser = program.add_subparsers(required=True).add_parser("report", help="one page of one or several runs", description=__doc__,
                                                              formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="default: report.html in the run folder; for several runs, in this folder")
    arguments = program.parse_args()
    out = arguments.out or (arguments.runs[0] / "report.html" if len(arguments.runs) == 1 else Path("report.html"))
    try:
        if arguments.out:
            _refuse_other_file(out)
        write_report(arguments.runs, out)
    except UserError as error:
        fail(*error.lines)
    except OSError as error:
        fail(f"error: {error.filename or out} cannot be written ({error.strerror}); give a file of your own with --out")
    say(str(out))
