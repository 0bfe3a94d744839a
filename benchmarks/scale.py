"""A short run on 1, 2, ... processes, side by side: completions and updates per second, and how they grow. The table of docs/scale.md.

    python benchmarks/scale.py [--processes 1 2] [--script train_grpo] [--steps 6] [--repeats 2] [--weak] [flags of the script ...]
    python benchmarks/scale.py --processes 1 8 --weak --model Qwen/Qwen2.5-7B-Instruct --dataset gsm8k
    python benchmarks/scale.py --processes 1 2 --servers http://gpu1:8000 http://gpu2:8000

With --servers each number of processes runs once more with all these vLLM servers as its samplers. With --weak the batch grows with the
processes: `--problems_per_step` is that of one process. The rows take turns, `--repeats` times, so that other programs on the machine
disturb all of them. The processes are on this machine, one for each card. On a machine without cards they share the cores. The first
step of each run warms up and is not counted.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from measure import device_name, parser, read_rows, run_logged, show, spread, table, versions

from common.console import fail

COLUMNS = ["sampler", "processes", "completions a step", "completions/s", "update, s", "step, s", "sampled, times", "update, times"]


def measure(script: str, processes: int, flags: list[str], folder: Path) -> dict[str, list[float]]:
    """Numbers of each step but the first. Ends the program if the run fails."""
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    log = folder.with_suffix(".txt")
    # torchrun would set one thread as well, if there are several processes
    if run_logged([sys.executable, *launcher, f"{script}.py", *flags, "--output_dir", str(folder)], log, OMP_NUM_THREADS="1"):
        fail(f"{script} on {processes} processes failed:", *log.read_text(errors="replace").splitlines()[-40:])
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["step"] > 0]
    sampled = [later["num_completions"] - before["num_completions"] for before, later in itertools.pairwise(rows)]
    # VinePPO's continuations are sampled in the phase "value"
    seconds = [row["time/sample"] + row.get("time/value", 0.0) for row in rows[1:]]
    return {"completions": sampled, "rate": [count / s for count, s in zip(sampled, seconds, strict=True)],
            "update": [row["time/update"] for row in rows[1:]], "step": [row["step_time"] for row in rows[1:]]}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options.add_argument("--script", default="train_grpo")
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--weak", action="store_true", help="the batch grows with the processes")
    options.add_argument("--problems_per_step", type=int, default=16)
    options.add_argument("--servers", nargs="+", default=[], metavar="URL")
    chosen, flags = options.parse_known_args()
    flags += ["--max_steps", str(chosen.steps), "--eval_steps", "0", "--save_steps", "0"]
    samplers = [("in each process", [])] + ([(f"{len(chosen.servers)} servers", ["--vllm_server_base_url", *chosen.servers])]
                                            if chosen.servers else [])
    rows = [(name, more, processes) for name, more in samplers for processes in chosen.processes]
    found = [{name: [] for name in ("completions", "rate", "update", "step")} for _ in rows]
    with tempfile.TemporaryDirectory() as place:
        for turn in range(chosen.repeats):
            for number, (_, more, processes) in enumerate(rows):
                problems = chosen.problems_per_step * (processes if chosen.weak else 1)
                measured = measure(chosen.script, processes, [*flags, "--problems_per_step", str(problems), *more],
                                   Path(place) / f"{turn}-{number}")
                for name, values in measured.items():
                    found[number][name] += values
    lines, first = [], {name: statistics.median(values) for name, values in found[0].items()}
    for (name, _, processes), numbers in zip(rows, found, strict=True):
        median = {name: statistics.median(values) for name, values in numbers.items()}
        # in completions per second, so that a batch that grew counts
        gain = [median["rate"] / first["rate"], median["completions"] / first["completions"] * first["update"] / median["update"]]
        lines.append([name, str(processes), f"{median['completions']:.0f}", spread(numbers["rate"], ".1f"), spread(numbers["update"]),
                      spread(numbers["step"]), *(f"{one:.2f}" for one in gain)])
    device = device_name() if torch.cuda.is_available() else "CPU, one thread a process"
    show(f"{chosen.script}, {device}, {', '.join(f'{package} {number}' for package, number in versions().items())}")
    show(table(COLUMNS, lines))


if __name__ == "__main__":
    main()
