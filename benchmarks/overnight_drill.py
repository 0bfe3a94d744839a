"""Disturbs a run at random, requeues it until it is finished, and compares it with a run that nobody disturbed: equal to the bit?

    python benchmarks/overnight_drill.py                        # all targets, 30 events each: an hour or two on 2 cores
    python benchmarks/overnight_drill.py --target ppo eval --events 10 --seed 7 --warm

A target is a training script with short steps on the embedded model, or eval.py. An event is a signal, a closed terminal or pipe, a full
disk, a folder that cannot be written for a moment, a second start of the same command, or damage to the newest checkpoint, each at a random
instant. After an event the command is started again. If a run is finished before all events are used, another one begins.

Of a finished run every file must be that of the undisturbed run (of metrics.jsonl, times apart), and none may be left behind. A start of
it must change nothing. No process may end in a stack trace. The exit code is 1 if anything was wrong. What the processes printed is in
log.txt. Linux only. As root, a folder is made read-only with chattr, since root may write where chmod forbids it.
"""
from __future__ import annotations

import argparse
import importlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from children import PATIENCE, Child
from measure import parser, show
from same_run import changes, differences, snapshot

from common.console import fail, say
from common.run.resume import checkpoints

DATA = "--dataset arithmetic:warm_steps=80,values=18,tiers=plus:1:1-2,habits=0.3:0.3:0.3,train=60,test=30"  # a task for seconds
SIZES = "--problems_per_step 4 --num_generations 4 --eval_problems 8 --eval_steps 2 --save_steps 1 --resume_from_checkpoint auto"
TARGETS = {
    "grpo": f"train_grpo.py --sampling lilo --num_minibatches 2 {SIZES}",
    "nft": f"train_nft.py --reward examples/rewards/several.py:several {SIZES}",
    "vineppo": f"train_vineppo.py --sampling buffer --buffer_steps 3 {SIZES}",
    "ppo": f"train_ppo.py {SIZES}",
    "eval": "eval.py --num_samples 64",  # three problems are sampled and written at a time
}
SIGNALS = {"kill -9": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT, "USR1": signal.SIGUSR1, "HUP": signal.SIGHUP}
KINDS = [*SIGNALS, "terminal closed", "pipe closed", "disk full", "read-only", "second start", "two starts", "damage"]


def read_only(folder: Path, on: bool) -> None:
    """Makes a folder read-only, or writable again."""
    if os.geteuid() == 0:
        subprocess.run(["chattr", "+i" if on else "-i", str(folder)], check=True)
    else:
        folder.chmod(0o555 if on else 0o755)


class Drill:
    """One target: its folders, its random numbers, and what went wrong."""

    def __init__(self, target: str, asked: argparse.Namespace) -> None:
        self.target, self.warm, self.events = target, asked.warm, asked.events
        base = (asked.out / target).absolute()
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        self.folder, self.whole, self.log = base / "run", base / "undisturbed", base / "log.txt"
        steps = [] if target == "eval" else ["--max_steps", str(asked.steps)]
        self.command = [*TARGETS[target].split(), *steps, *DATA.split(), "--output_dir", str(self.folder)]
        self.rng = random.Random(f"{asked.seed} {target}")
        self.what, self.faults, self.starts, self.rounds = "undisturbed", [], 0, 0
        self.failed = 0  # starts in a row that ended by themselves in an error

    def start(self, terminal: bool = False) -> Child:
        """The command, once more."""
        self.starts += 1
        return Child(self.command, self.warm, terminal)

    def end(self, child: Child, note: str = "") -> str:
        """Waits for its end. Returns its code and the last line that it printed."""
        text, hung = child.end()
        with open(self.log, "a") as file:
            file.write(f"\n==== {self.what}{note}: ended with {child.code}\n{text}\n")
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing printed")
        if hung:
            self.fault(f"hung{note}: {last}")
        if "Traceback" in text:
            self.fault(f"stack trace{note}: {last}")
        return f"ended with {child.code}: {last}"

    def fault(self, text: str) -> None:
        """Notes and prints what went wrong."""
        self.faults.append(f"{self.target} {self.what}: {text}")
        say(f"  FAULT {self.faults[-1]:.500}")

    def done(self) -> int:
        """How many steps or problems have been written."""
        path = self.folder / ("problems.jsonl" if self.target == "eval" else "metrics.jsonl")
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def checkpoints(self) -> list[Path]:
        """Oldest first. Of an evaluation: the file of its problems, after the first ones."""
        if self.target == "eval":
            return [self.folder / "problems.jsonl"] * min(2, self.done())
        return checkpoints(self.folder)

    def undisturbed(self) -> None:
        """Makes the run to compare with, and takes the time."""
        child = self.start()
        child.follow(until=lambda: self.done() >= 2)
        self.first, before = time.monotonic() - child.began, self.done()  # seconds to the first step
        says = self.end(child)
        if child.code:
            fail(f"error: the undisturbed run {says}; all of its output is in {self.log}")
        self.all = self.done()
        self.step = (time.monotonic() - child.began - self.first) / max(1, self.all - before)  # seconds of a step
        self.folder.rename(self.whole)
        say(f"{self.target}: undisturbed run: first step after {self.first:.1f} s, then {self.step:.2f} s a step")

    def wait(self, child: Child) -> None:
        """Waits for a random instant; every third time, until a file is being written."""
        longest = self.first + 2.5 * self.step
        if self.rng.random() < 1 / 3:
            child.follow(longest, until=lambda: any(".tmp" in path.name for path in self.folder.glob("*")))
            longest = 0.05
        child.follow(self.rng.uniform(0, longest))

    def event(self, kind: str | None) -> bool:
        """Starts the command and disturbs it; with None it is left alone. Whether it has finished the run."""
        at, child = self.done(), self.start(kind == "terminal closed")
        if kind == "two starts":
            child = self.race(child)
        elif kind in ("second start", "damage"):  # the folder is in use; there is an older checkpoint
            child.follow(until=lambda: self.done() > at and (kind != "damage" or len(self.checkpoints()) > 1))
        self.wait(child)
        after = time.monotonic() - child.began
        if alive := kind is not None and child.pulse():
            self.disturb(kind, child)
        says = self.end(child)
        self.failed = self.failed + 1 if child.code and not alive else 0
        if self.failed:
            self.fault(f"by itself it {says}")
        say(f"{self.target} {self.what}: {after:.1f} s after the start, {at} -> {self.done()}, {says:.100}")
        if kind == "damage" and child.code and len(self.checkpoints()) > 1:
            self.damage(self.checkpoints()[-1])
        return child.code == 0

    def disturb(self, kind: str, child: Child) -> None:
        """What happens to a process. After some time it is ended, if it goes on."""
        if kind in SIGNALS:
            child.send(SIGNALS[kind])
        elif kind in ("terminal closed", "pipe closed"):
            child.close()
        elif kind == "disk full":  # from now on no file may grow beyond a random size
            sizes = [path.stat().st_size for path in self.whole.rglob("*") if path.is_file()]
            resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (self.rng.choice([0, *sizes]), resource.RLIM_INFINITY))
        elif kind == "read-only" and self.folder.exists():
            read_only(self.folder, True)
            child.follow(self.rng.uniform(0.1, 3))
            read_only(self.folder, False)
        elif kind == "second start":
            child.send(signal.SIGSTOP)  # so that all changes are the other's
            before, other = snapshot(self.folder), self.start()
            says = self.end(other, ", the second start")
            if (changed := changes(before, snapshot(self.folder))) or (other.code == 0 and self.done() < self.all):  # 0: it was finished
                self.fault(f"the second start {says}; changed: {changed or 'nothing'}")
            child.send(signal.SIGCONT)
        at, ends = self.done(), kind in SIGNALS or kind == "terminal closed"
        alive = child.follow(PATIENCE if ends else self.rng.uniform(0, 3 * self.step))
        if ends and self.done() > at + 3:  # more than a step, or a part of an evaluation
            self.fault("it went on")
        elif kind == "pipe closed" and not alive and child.code:
            self.fault(f"it did not go on, but ended with {child.code}")
        elif not ends:
            child.send(self.rng.choice([signal.SIGKILL, signal.SIGTERM]))

    def race(self, first: Child) -> Child:
        """Starts a second process at the same instant. One is refused, and the other is returned."""
        second = self.start()
        first.follow(until=lambda: not second.pulse())
        loser, winner = (second, first) if first.pulse() else (first, second)
        loser.send(signal.SIGKILL)
        says = self.end(loser, ", the other start")
        if loser.code is None or loser.code <= 0 or not winner.pulse():
            self.fault(f"of two starts one {says}; the other: {winner.code}")
        return winner

    def damage(self, newest: Path) -> None:
        """Flips a byte of a file, or cuts the file off. An evaluation's rows are cut, as by a write that broke off."""
        path = self.rng.choice(sorted(path for path in newest.rglob("*") if path.is_file()) or [newest])
        data = bytearray(path.read_bytes())
        place = self.rng.randrange(len(data))
        data[place] ^= self.rng.randrange(1, 256)
        path.write_bytes(data[:place] if path == newest or self.rng.random() < 0.5 else data)

    def compare(self) -> None:
        """Compares a finished run with the undisturbed one, and starts it once more."""
        self.rounds += 1
        if differ := differences(self.folder, self.whole):
            self.fault(f"differs from the undisturbed run: {differ}")
        before, child = snapshot(self.folder), self.start()
        says = self.end(child, ", requeued after the finish")
        if (changed := changes(before, snapshot(self.folder))) or child.code:
            self.fault(f"a start after the finish {says}; changed: {changed or 'nothing'}")

    def play(self) -> dict[str, Any]:
        """All events, then starts without any until the run is finished. The target's row of the table."""
        began, left = time.monotonic(), KINDS * (1 + self.events // len(KINDS))
        self.undisturbed()
        self.rng.shuffle(left)
        del left[self.events:]
        finished = False
        while left or not finished:
            self.what = f"{self.events - len(left) + 1}/{self.events} {left[-1]}" if left else "last start"
            known = len(self.faults)
            finished = self.event(left.pop() if left else None)
            if finished:
                self.compare()
            if finished and len(self.faults) == known:
                shutil.rmtree(self.folder)
            elif finished or self.failed == 3:  # kept, to be looked at
                self.folder.rename(self.folder.with_name(f"faulty-{len(self.faults)}"))
            if self.failed == 3 and not left:
                break
        return {"target": self.target, "events": self.events, "starts": self.starts, "runs": self.rounds, "faults": len(self.faults),
                "minutes": round((time.monotonic() - began) / 60, 1)}


def main(argv: list[str] | None = None) -> None:
    """The command line. Ends with code 1 if anything was wrong."""
    flags = parser(__doc__)
    flags.add_argument("--target", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    flags.add_argument("--events", type=int, default=30, help="of each target (default: 30)")
    flags.add_argument("--steps", type=int, default=24, help="of a training run (default: 24)")
    flags.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the events (default: another one each time)")
    flags.add_argument("--warm", action="store_true", help="start copies of this process: faster, but nothing is disturbed in its imports")
    flags.add_argument("--out", type=Path, default=Path("runs/drill"), help="TARGET in it is emptied and used (default: runs/drill)")
    asked = flags.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for target in asked.target if asked.warm else ():
        importlib.import_module(TARGETS[target].split(".py")[0])
    say(f"--seed {asked.seed}")
    drills = [Drill(target, asked) for target in asked.target]
    rows = [drill.play() for drill in drills]
    show("\n".join("| " + " | ".join(map(str, row)) + " |" for row in (list(rows[0]), ["---"] * 6, *(row.values() for row in rows))))
    faults = [fault for drill in drills for fault in drill.faults]
    show("\n".join(faults) or "all runs ended as the undisturbed one")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
