"""A short run on 1, 2, ... processes, side by side: completions and updates per second, and how they grow. The table of docs/scale.md.

    python benchmarks/scale.py [--processes 1 2] [--script train_grpo] [--steps 6] [--weak] [flags of the script ...]
    python benchmarks/scale.py --processes 1 8 --weak --model Qwen/Qwen2.5-7B-Instruct --dataset gsm8k
    python benchmarks/scale.py --processes 1 2 --servers http://gpu1:8000 http://gpu2:8000

With --servers each number of processes runs once more with all these vLLM servers as its samplers. With --weak the batch grows with the
processes: `--problems_per_step` is that of one process. The processes are on this machine, one for each card. On a machine without
cards they share the cores, so the table shows what the exchanges cost and no gain. The first step warms up and is not counted.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from pathlib import Path

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
    options.add_argument("--weak", action="store_true", help="the batch grows with the processes")
    options.add_argument("--problems_per_step", type=int, default=16)
    options.add_argument("--servers", nargs="+", default=[], metavar="URL")
    chosen, flags = options.parse_known_args()
    flags += ["--max_steps", str(chosen.steps), "--eval_steps", "0", "--save_steps", "0"]
    samplers = [("in each process", [])] + ([(f"{len(chosen.servers)} servers", ["--vllm_server_base_url", *chosen.servers])]
                                            if chosen.servers else [])
    lines, first = [], {}
    with tempfile.TemporaryDirectory() as place:
        for name, server_flags in samplers:
            for processes in chosen.processes:
                problems = chosen.problems_per_step * (processes if chosen.weak else 1)
                found = measure(chosen.script, processes, [*flags, "--problems_per_step", str(problems), *server_flags],
                                Path(place) / f"{len(lines)}")
                first = first or found
                # in completions per second, so that a batch that grew counts
                work = statistics.median(found["completions"]) / statistics.median(first["completions"])
                gain = [statistics.median(found["rate"]) / statistics.median(first["rate"]),
                        work * statistics.median(first["update"]) / statistics.median(found["update"])]
                lines.append([name, str(processes), f"{statistics.median(found['completions']):.0f}", spread(found["rate"], ".1f"),
                              spread(found["update"]), spread(found["step"]), *(f"{one:.2f}" for one in gain)])
    show(f"{chosen.script}, {device_name()}, {', '.join(f'{package} {number}' for package, number in versions().items())}")
    show(table(COLUMNS, lines))


if __name__ == "__main__":
    main()
