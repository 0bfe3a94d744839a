"""A training script whose seconds are those of the processor in place of the clock's, for a machine that other work shares.

    python benchmarks/sweep.py benchmarks/processor_time.py --set learning_rate=1e-4,3e-4 -- train_grpo.py --model smollm2 --dataset sums

The word that ends in .py names the script; the rest are its flags. Seconds of `step_time` and of the phases are then those that all threads
of this process took, so that runs on one thread can be compared even if each had another share of the machine. Processes beside it (custom
rewards, servers) are not counted.
"""
import runpy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.console import fail

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    name = next((word for word in sys.argv[1:] if word.endswith(".py")), None)
    if name is None:
        fail("error: name the training script among the flags, as train_grpo.py")
    sys.argv.remove(name)
    script = name if Path(name).is_file() else str(ROOT / name)
    sys.argv[0], sys.path[0] = script, str(Path(script).resolve().parent)  # as if it had been started itself
    time.perf_counter = time.process_time  # common/run/ asks this clock alone
    runpy.run_path(script, run_name="__main__")
