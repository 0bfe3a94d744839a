import importlib
import json
import sys

from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))


def test_the_benchmark_at_7b_rehearses_without_a_gpu(tmp_path):
    """Without a GPU it runs at a toy shape. A run is a process of its own; a second one in this process is enough to test the rest."""
    gpu_7b = importlib.import_module("gpu_7b")
    for script, flags in (("train_ppo", []), ("train_vineppo", ["--same_process"])):
        gpu_7b.main(["--cards", "24", "--scripts", script, "--steps", "2", "--out", str(tmp_path / script), *flags])
        (row,) = json.loads((tmp_path / script / "results.json").read_text())
        assert row["script"] == script and row["result"] == "ok" and row["plan_gb"] > 2
        assert row["sampled_per_second"] > 0 and row["trained_per_second"] > 0
