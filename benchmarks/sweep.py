"""Runs a training script once for every combination of flag values and every seed, and compares the runs on one page.

    python benchmarks/sweep.py train_grpo.py --seeds 5 --set learning_rate=1e-5,2e-5 --jobs 2 -- --dataset gsm8k
    python benchmarks/sweep.py train_mine.py --seeds 3 --set sampling=uniform,lilo --set beta=0,0.01 --out runs/mine

A cell is one combination of the values of --set. The runs of a cell differ in the seed alone. Flags after -- go to every run. The script
may be one of yours: it has to take --seed and --output_dir and to write metrics.jsonl, as a copy of a training script does.

The same command again goes on after an interruption. A finished run is not done again. An unfinished run continues from its checkpoint, or
starts over if it has none. Seeds and values may be added. Ctrl-C lets the runs in hand save a checkpoint; a second Ctrl-C kills them.

--out then holds sweep.html (curves with intervals over the seeds, a table, every command), results.json, results.csv and the run folders.
Each run gets one CPU thread.
"""
from __future__ import annotations

import argparse
import csv
import fcntl
import io
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zlib
from html import escape
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.console import bar, fail, guard, say
from common.errors import UserError
from common.files import UNFINISHED, open_plain, read_file, write_file
from common.run.lock import LOCK, Lock

ROOT = Path(__file__).parents[1]
NOTE = "command.json"  # in each run's folder: its command, whether it is finished, seconds, revision of the code
OURS = ("seed", "output_dir", "resume_from_checkpoint")  # flags that the sweep gives


# ---- the runner ------------------------------------------------------------------------------------------------------

def note_of(folder: Path) -> dict[str, Any]:
    """What NOTE says in a run's folder; nothing if it is not there. Exits if it is damaged."""
    try:
        return dict(json.loads(read_file(folder / NOTE)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError):
        fail(f"error: {folder / NOTE} is damaged, so that nobody knows which run is there; name another --out, or delete that folder")


def write_note(folder: Path, **note: Any) -> None:
    """Writes NOTE."""
    write_file(folder / NOTE, json.dumps(note))


def is_begun(folder: Path) -> bool:
    """Whether there is more in the folder than NOTE, and than what a killed start leaves."""
    return folder.exists() and any(path.name not in (NOTE, LOCK) and not UNFINISHED.fullmatch(path.name) for path in folder.iterdir())


def is_done(folder: Path, command: list[str]) -> bool:
    """Whether the folder holds this command's finished run. Exits if it holds something else."""
    note = note_of(folder)
    if note.get("command") != command and is_begun(folder):
        fail(f"error: {folder} holds a run of another command; name another --out, or delete that folder")
    return note.get("command") == command and note.get("finished", False)


class Running(NamedTuple):
    """A run in hand."""

    folder: Path
    command: list[str]
    child: subprocess.Popen[bytes]
    began: float | None  # None: it goes on with an earlier part, so that its seconds are not those of a whole run


def open_log(path: Path) -> BinaryIO:
    """The log to add to. Ends the program if a link at its place leads elsewhere."""
    try:
        return os.fdopen(open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")
    except OSError as error:
        fail(f"error: {path} cannot be written ({error.strerror}); remove it, or name another folder")


def start(folder: Path, command: list[str]) -> Running:
    """Starts a script, or goes on with it. Its output goes to a log beside the folder, which is locked as long as it runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_log(folder.with_suffix(".log")) as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"error: {folder} is in use by another sweep, or a killed sweep left its run going; wait, or end that process")
        flags = ["--output_dir", str(folder)]
        if any(folder.glob("checkpoint-*")):
            flags += ["--resume_from_checkpoint", "auto"]
        elif (folder / "config.json").exists() or (folder / "metrics.jsonl").exists():
            try:
                lock = Lock(folder)
            except UserError as error:
                fail(*error.lines)
            shutil.rmtree(folder)  # of a run that never came to a checkpoint: nothing in it can be continued
            lock.release()
            folder.mkdir()
        began = None if is_begun(folder) else time.perf_counter()
        write_note(folder, command=command, finished=False)
        script = command[0] if Path(command[0]).exists() else str(ROOT / command[0])
        # a session of its own: Ctrl-C in the terminal must not reach the script, which takes a second signal for "stop now"
        child = subprocess.Popen([sys.executable, script, *flags, *command[1:]], stdout=log, stderr=log, start_new_session=True,
                                 env={**os.environ, "OMP_NUM_THREADS": "1"})
    return Running(folder, command, child, began)


def finish(run: Running) -> None:
    """Writes down that a run is finished. Exits with the last line that the script wrote if it failed."""
    log, code = run.folder.with_suffix(".log"), run.child.returncode
    if code:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no output"]
        fail(said[-1], f"stopped: {shlex.join(run.command)} ended with code {code}; its whole output is in {log}")
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]  # +: files differ from the revision
    revision = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    seconds = None if run.began is None else time.perf_counter() - run.began
    write_note(run.folder, command=run.command, finished=True, seconds=seconds, revision=revision or "unknown")


def run_all(jobs: dict[Path, list[str]], count: int, what: str = "runs") -> None:
    """Runs the commands, by folder, `count` at a time. Finished ones are not run again. One that fails ends all.

    SIGINT, SIGTERM or a closed terminal: the runs in hand save and end, and a line says how to go on. A second signal kills them.
    """
    waiting, running, signals = [job for job in jobs.items() if not is_done(*job)], [], []
    numbers = [signal.SIGINT, signal.SIGTERM, *([] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP])]  # nohup
    before = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in numbers}
    try:
        with bar(total=len(jobs), initial=len(jobs) - len(waiting), desc=what, disable=False) as progress:
            while (waiting or running) and not signals:
                while waiting and len(running) < count:
                    running.append(start(*waiting.pop(0)))
                time.sleep(0.1)
                for run in [run for run in running if run.child.poll() is not None]:
                    running.remove(run)
                    finish(run)
                    progress.update()
    finally:
        end(running, signals)
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        done, again = sum(is_done(*job) for job in jobs.items()), shlex.join(["python", *sys.argv])
        say(f"stopped with {done} of {len(jobs)} runs finished; go on with the same command: {again}", file=sys.stderr)
        sys.exit(130)


def end(running: list[Running], signals: list[int]) -> None:
    """Ends the runs in hand in an orderly way, and waits for it. Kills them at a second signal."""
    for run in running:
        run.child.terminate()
    if running:
        say("waiting until the runs in hand have saved (Ctrl-C: kill them)", file=sys.stderr)
    while alive := [run for run in running if run.child.poll() is None]:
        for run in alive if len(signals) > 1 else []:
            os.killpg(run.child.pid, signal.SIGKILL)
        time.sleep(0.1)


def sweep(cells: dict[str, list[str]], seeds: list[int], out: Path, count: int) -> dict[str, list[Path]]:
    """Runs each cell's command on each seed; all cells of a seed, then the next seed. The run folders by cell, one for each seed."""
    folders = {name: [out.absolute() / folder_name(name) / f"seed-{seed}" for seed in seeds] for name in cells}
    run_all({folders[name][i]: [*cells[name], "--seed", str(seed)] for i, seed in enumerate(seeds) for name in cells}, count)
    return folders


def folder_name(name: str) -> str:
    """A name for a folder. A long or unusual one gets a checksum, so that no two cells share a folder."""
    clean = re.sub(r"[^\w=.+-]+", "-", name.replace(", ", "_"))[:80].strip(".-")
    return clean if clean == name.replace(", ", "_") else f"{clean}-{zlib.crc32(name.encode()):08x}"


# ---- the command line ------------------------------------------------------------------------------------------------

class Parser(argparse.ArgumentParser):
    """The flags that all scripts over seeds share. Errors are one line. What comes after -- goes to the training script."""

    def __init__(self, doc: str | None, out: str, seeds: str = "5") -> None:
        guard()
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        self.add_argument("--seeds", type=seeds_of, default=seeds, help=f"how many (0, 1, ...), or which, as 7,9 (default: {seeds})")
        self.add_argument("--jobs", type=int, default=1, help="runs at a time; on a CPU as many as it has cores (default: 1)")
        self.add_argument("--out", "--output_dir", type=Path, metavar="DIR", default=out, help=f"folder of the runs (default: {out})")
        self.add_argument("--plot", type=Path, help="also write a figure that stands alone: docs/NAME.svg")

    def error(self, message: str) -> NoReturn:
        """Exits with the message."""
        fail(f"error: {message} (see --help)")

    def parse(self) -> tuple[argparse.Namespace, list[str]]:
        """Our flags, and those of the training script."""
        typed = sys.argv[1:]
        cut = typed.index("--") if "--" in typed else len(typed)
        arguments, unknown = self.parse_known_args(typed[:cut])
        if unknown:
            self.error(f"unknown argument {unknown[0]}; flags of the training script come after --")
        if arguments.jobs < 1:
            self.error(f"--jobs {arguments.jobs}: give 1 or more")
        return arguments, typed[cut + 1:]


def seeds_of(text: str) -> list[int]:
    """Seeds from a count or a list. Examples: "3" -> [0, 1, 2]; "7,9" -> [7, 9]; "7," -> [7]."""
    if not re.fullmatch(r"[1-9]\d*|(\d+,)+\d*", text):
        raise argparse.ArgumentTypeError(f"{text}: give how many, as 5, or which, as 7,9,11")
    return list(dict.fromkeys(int(part) for part in text.split(",") if part)) if "," in text else list(range(int(text)))


def cells_of(script: str, settings: list[str], flags: list[str]) -> dict[str, list[str]]:
    """Command of every combination of values, by its name. settings: as typed after --set. Exits if they cannot work together."""
    values: dict[str, list[str]] = {}
    for text in settings:
        name, _, listed = text.removeprefix("--").partition("=")
        own = [part for part in listed.split(";" if ";" in listed else ",") if part]
        if not name or not own or name in values or len(set(own)) < len(own):
            fail(f"error: --set {text}: give each flag once, with values that differ, as --set learning_rate=1e-5,2e-5")
        values[name] = own
    given = {flag[2:].partition("=")[0] for flag in flags if flag.startswith("--")}
    for name in (*values, *given):
        if name in OURS:
            fail(f"error: --{name} is given by the sweep itself; leave it out")
        if name in values and name in given:
            fail(f"error: --{name} stands both in --set and after --; leave one out")
    cells = {}
    for chosen in product(*values.values()):
        pairs = list(zip(values, chosen, strict=True))
        name = ", ".join(f"{flag}={value}" for flag, value in pairs) or Path(script).stem
        cells[name] = [script, *flags, *(word for flag, value in pairs for word in (f"--{flag}", value))]
    return cells


# ---- the page --------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>
:root{{color-scheme:light dark}} body{{font:16px/1.5 sans-serif;margin:1rem auto;padding:0 1rem;max-width:90rem}}
body{{background:light-dark(#fff,#16181c);color:light-dark(#1c1e21,#e8eaed)}} .wide{{overflow-x:auto}} table{{border-collapse:collapse}}
th,td{{text-align:left;white-space:nowrap;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8886}} svg{{width:100%;max-width:36rem}}
.curves{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}}
pre{{white-space:pre-wrap;overflow-wrap:anywhere}}</style></head>
<body><h1>{title}</h1><p>{about}</p><div class="wide"><table>{table}</table></div>
<p>The table has means over the seeds, and in brackets the 95 % interval of each mean (Student's t; there is none for a single seed). "Last
value" is that of the last evaluation of a run. "Area" is the mean height of the curve over the training steps.</p>
<div class="curves">{curves}</div><h2>Commands</h2><pre>{commands}</pre>
<p>Made by <code>{command}</code>. Revision of the code: {revision}.</p></body></html>
"""
FORMS = {"last value": ".3f", "area": ".3f", "generated tokens": ",.0f", "seconds of steps": ",.0f"}


def write_results(cells: dict[str, list[str]], folders: dict[str, list[Path]], out: Path, asked: argparse.Namespace) -> None:
    """sweep.html, results.json and results.csv of finished runs."""
    from curves import AXES, charts_of, height, picture, read, save, shown, svg, t_interval  # slow to import: not for --help

    metric, seeds = asked.metric, asked.seeds
    runs = {name: [read(folder, metric) for folder in own] for name, own in folders.items()}
    charts = [chart for chart in charts_of(runs, list(AXES), metric) if chart.last > 0]
    results, lines, sheet = [], [["cell", *FORMS]], [["cell", "seed", *FORMS]]
    for name, own in runs.items():
        each = [[list(run["steps"].values())[-1], height(run["steps"]), run["all_tokens"], run["all_seconds"]] for run in own]
        values = {key: list(column) for key, column in zip(FORMS, zip(*each, strict=True), strict=True)}
        summary = {key: {"mean": statistics.fmean(of), "interval": t_interval(of) if len(of) > 1 else None, "seeds": of}
                   for key, of in values.items()}
        points = [{axis: list(run[axis].items()) for axis in AXES} for run in own]
        results.append({"cell": name, "command": cells[name], "seeds": seeds, **summary, "curves": points})
        lines.append([name, *(shown(values[key], form) for key, form in FORMS.items())])
        sheet += [[name, seed, *row] for seed, row in zip(seeds, each, strict=True)]
    write_file(out / "results.json", json.dumps({"metric": metric, "cells": results}, indent=1) + "\n")
    table = io.StringIO(newline="")
    csv.writer(table).writerows(sheet)
    write_file(out / "results.csv", table.getvalue())
    tags = ["th", *["td"] * len(runs)]
    rows = [f"<tr>{''.join(f'<{tag}>{escape(word)}</{tag}>' for word in line)}</tr>" for tag, line in zip(tags, lines, strict=True)]
    commands = [shlex.join(["python", *command, "--seed", "SEED", "--output_dir", "FOLDER"]) for command in cells.values()]
    revisions = {note_of(folder)["revision"] for own in folders.values() for folder in own}
    parts = {"title": f"{Path(asked.script).stem}: {len(cells)} cells, {len(seeds)} seeds",
             "about": escape(f"{charts[0].y}. Seeds: {', '.join(map(str, seeds))}."), "table": "".join(rows),
             "curves": "".join(f"<div>{svg(picture([chart], 'Over ' + chart.x.split(' (')[0]), f'curves-{i}')}</div>"
                               for i, chart in enumerate(charts)),
             "commands": escape("\n".join(commands)), "command": escape(shlex.join(["python", *sys.argv])),
             "revision": ", ".join(sorted(revisions))}
    write_file(out / "sweep.html", PAGE.format_map(parts))
    say(f"{out / 'sweep.html'}: curves, table and commands; the same numbers are in results.json and results.csv beside it")
    if asked.plot:
        save(picture(charts, parts["title"]), asked.plot)


def main() -> None:
    """The command line."""
    parser = Parser(__doc__, "runs/sweep-SCRIPT")
    parser.add_argument("script", help="training script, as train_grpo.py")
    parser.add_argument("--set", action="append", default=[], metavar="FLAG=A,B", help="values of a flag; if they hold commas: FLAG=A;B")
    parser.add_argument("--metric", default="eval/pass@1", help="number in metrics.jsonl to compare (default: eval/pass@1)")
    arguments, flags = parser.parse()
    if not (Path(arguments.script).is_file() or (ROOT / arguments.script).is_file()):
        parser.error(f"there is no script {arguments.script}")
    cells = cells_of(arguments.script, arguments.set, flags)
    out = Path(str(arguments.out).replace("SCRIPT", Path(arguments.script).stem)).absolute()
    write_results(cells, sweep(cells, arguments.seeds, out, arguments.jobs), out, arguments)


if __name__ == "__main__":
    main()
