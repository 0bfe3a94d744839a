import json
import subprocess
import sys

from helpers import ROOT


def test_the_benchmark_at_7b_rehearses_without_a_gpu(tmp_path):
    command = [sys.executable, "benchmarks/gpu_7b.py", "--cards", "24", "--scripts", "train_ppo", "train_vineppo", "--steps", "2"]
    process = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["script"] for row in results] == ["train_ppo", "train_vineppo"] and all(row["result"] == "ok" for row in results)
    assert all(row["sampled_per_second"] > 0 and row["trained_per_second"] > 0 and row["plan_gb"] > 2 for row in results)
