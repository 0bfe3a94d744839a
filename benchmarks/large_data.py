"""How long a training script takes, and how much memory, until a model is loaded: on data sets of many rows.

    python benchmarks/large_data.py --model SmolLM2-135M-Instruct
    python benchmarks/large_data.py --model ... --rows 100000 --before ../another-version

The data is made by a rule: questions of 140 to 260 characters, and answers that are a whole number (60 %), a fraction or a root. --model
needs a tokenizer and a config.json alone. Two processes do the same on each file, of this version and of the one in --before, one after the
other. "processor" counts the seconds in which the process had a processor; "wall" also has those in which it waited for one.
"""
from __future__ import annotations

import contextlib
import json
import platform
import random
import resource
import sys
import time
from pathlib import Path

from measure import ROOT, parser, result_of, show

TEXT = "train apple Tom garden price number minutes litres speed bought sold each more than half of the remaining class total how many"
WORDS = TEXT.split() * 2


def write_data(folder: Path, rows: int) -> list[Path]:
    """A .jsonl and a .parquet file with the same rows."""
    import pyarrow
    import pyarrow.parquet

    draw, questions, answers = random.Random(0), [], []
    for i in range(rows):
        words, size, long = [], 0, draw.randint(140, 260)
        while size < long:
            words.append(draw.choice(WORDS) if draw.random() < 0.85 else str(draw.randint(2, 999)))
            size += len(words[-1]) + 1
        questions.append(f"{' '.join(words)} ({i})?")
        kind, a, b = draw.random(), draw.randint(1, 999), draw.randint(2, 99)
        answers.append(str(a) if kind < 0.6 else f"\\frac{{{a}}}{{{b}}}" if kind < 0.85 else f"{a}\\sqrt{{{b}}}")
    folder.mkdir(parents=True, exist_ok=True)
    table, text = folder / f"rows-{rows}.parquet", folder / f"rows-{rows}.jsonl"
    pyarrow.parquet.write_table(pyarrow.table({"question": questions, "answer": answers}), table)
    with open(text, "w") as file:
        file.writelines(json.dumps({"question": q, "answer": a}) + "\n" for q, a in zip(questions, answers, strict=True))
    return [text, table]


class EnoughSeen(BaseException):
    """Not an error that a run would take for one of its own."""


def start(version: str, flags: list[str]) -> None:
    """Starts train_grpo.py of a version as far as the loading of a model. Prints what it took, as JSON."""
    began, script, process = time.perf_counter(), f"{version}/train_grpo.py", sys.modules["__main__"]
    sys.path.insert(0, version)
    for name in [name for name in sys.modules if name.partition(".")[0] == "common"]:  # those of this version
        del sys.modules[name]
    sys.argv, process.__file__ = [script, *flags], script  # from here on the process runs that script
    loads = "policy = load_policy("
    text = Path(script).read_text()
    assert text.count(loads) == 1
    with contextlib.suppress(EnoughSeen):
        exec(compile(text.replace(loads, "raise EnoughSeen; " + loads), script, "exec"), vars(process))
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    show(json.dumps({"wall": time.perf_counter() - began, "processor": sum(one.ru_utime + one.ru_stime for one in usage),
                     "gb": usage[0].ru_maxrss / 1e6}))


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--rows", type=int, default=1_000_000)
    args.add_argument("--model", required=True, help="folder with a tokenizer and a config.json")
    args.add_argument("--before", help="folder of another version, for a comparison")
    args.add_argument("--folder", type=Path, default=Path("runs/large_data"))
    given = args.parse_args()
    machine = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    show(f"{given.rows:,} rows, tokenizer of {given.model}, {machine}\nfile | version | wall, s | processor, s | peak GB")
    for file in write_data(given.folder, given.rows):
        for name, version in (("before", given.before), ("now", str(ROOT))):
            if version is None:
                continue
            found = result_of([sys.executable, __file__, "--start", version, "--model", given.model, "--dataset", str(file), "--report_to",
                               "none", "--output_dir", str(given.folder / f"run-{name}-{time.time_ns()}")], OMP_NUM_THREADS="1")
            show(f"{file.suffix} | {name} | {found['wall']:.1f} | {found['processor']:.1f} | {found['gb']:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:  # one of the processes that are measured
        start(sys.argv[2], sys.argv[3:])
    else:
        main()
