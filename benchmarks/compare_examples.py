"""Every script in examples/ beside its base, on the testbeds `few` and `habits` of benchmarks/claims.py, at two learning rates.

    python benchmarks/compare_examples.py [--seeds 3] [--out runs/compare-examples]

The learning rates are the one that claims.py found best for the base, and half of it. All methods make four updates a step, as there. Flags
of a method keep the defaults of its script. All examples run on one seed before the next seed begins. One process runs both rates of an
example. The same command goes on after an interruption. One thread a run.
"""
from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from claims import TESTBEDS
from sweep import ROOT, folder_name, run_all, seeds_of

from common.console import guard
from common.files import write_file

sys.path.append(str(ROOT / "tools"))
from list_examples import base_of, examples, read_fields

STEPS, EVERY, PROBLEMS = 10, 5, 150
RATES = [1.2e-3, 6e-4]  # claims.py found the first best for GRPO and for PPO on both testbeds
CRITIC = {"few": 10.0, "habits": 2.5}  # PPO's critic learning rate, in multiples of the policy's; from claims.py, too
SETTINGS = f"--max_steps {STEPS} --eval_steps {EVERY} --eval_problems {PROBLEMS} --save_steps 0 --warmup_steps 2 --num_minibatches 4"
FAILED = "failed.txt"  # in the folder of a run: why it ended early


def methods() -> dict[str, str]:
    """Base of each method by the name of its script, bases themselves included."""
    bases = {path.stem: base_of(read_fields(path.read_text(encoding="utf-8")))[0].stem for path in examples()}
    return {**{base: base for base in dict.fromkeys(bases.values())}, **bases}


# ---- runs ------------------------------------------------------------------------------------------------------------

def flags_of(testbed: str, name: str, rate: float) -> list[str]:
    """The flags of a run without seed and folder."""
    sizes = TESTBEDS[testbed].flags.partition(" --max_steps")[0]
    critic = f" --critic_learning_rate {CRITIC[testbed] * rate:g}" if methods()[name] == "train_ppo" else ""
    return f"{sizes} {SETTINGS} --learning_rate {rate:g}{critic}".split()


def train_both(testbed: str, name: str, seed: int, folder: Path) -> None:
    """Runs a method at both rates, each in a folder of `folder`. A finished run is not done again."""
    from common.errors import UserError
    from common.launch import parse_config

    module: Any = importlib.import_module(name if methods()[name] == name else f"examples.{name}")
    for rate in RATES:
        own = folder / f"{rate:g}"
        if (own / FAILED).exists() or ((own / "metrics.jsonl").exists() and last_step(own) == STEPS):
            continue
        shutil.rmtree(own, ignore_errors=True)
        argv = [*flags_of(testbed, name, rate), "--seed", str(seed), "--output_dir", str(own)]
        config = parse_config(module.Config, argv, Path(module.__file__).stem)
        try:
            module.train(config)
        except UserError as error:
            own.mkdir(exist_ok=True)
            write_file(own / FAILED, "\n".join(error.lines) + "\n")


def last_step(folder: Path) -> int:
    """The last step in a run's metrics.jsonl."""
    return int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])


def jobs_of(out: Path, seeds: list[int]) -> dict[Path, list[str]]:
    """The command of every testbed, method and seed, by folder; the whole of a seed, then the next seed."""
    return {out / testbed / folder_name(name) / f"seed-{seed}":
            ["benchmarks/compare_examples.py", "--train", testbed, name, "--seed", str(seed)]
            for seed in seeds for testbed in CRITIC for name in methods()}


def main() -> None:
    """The command line."""
    guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default="3", help="how many (0, 1, ...), or which, as 7,9 (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default: 1)")
    parser.add_argument("--out", "--output_dir", type=Path, metavar="DIR", default="runs/compare-examples", help="folder of the runs")
    parser.add_argument("--train", nargs=2, metavar=("TESTBED", "NAME"), help="one process of the comparison, which it starts itself")
    parser.add_argument("--seed", type=int, default=0, help="seed of --train")
    asked = parser.parse_args()
    out = asked.out.absolute()
    if asked.train:
        train_both(*asked.train, asked.seed, out)
    else:
        run_all(jobs_of(out, asked.seeds), asked.jobs, "examples")


if __name__ == "__main__":
    main()
