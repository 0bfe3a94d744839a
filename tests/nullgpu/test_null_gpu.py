"""The GPU path on a card that computes nothing: `make test-nullgpu`. See card.py for what this shows, and what it cannot.

Each run is a process of its own on a sparse model of a published shape: a fork of one that has imported everything. vLLM starts without
torch.compile and CUDA graphs.
"""

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, SCRIPTS

sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "benchmarks")]
from card import PACKAGES, environment  # noqa: E402

DRIVE = Path(__file__).parent / "drive.py"
LIB = Path(os.environ.get("NULLGPU_LIB", PACKAGES / "nullgpu"))
if not (LIB / "libnullgpu.so").exists():
    pytest.skip("the simulated GPU has an environment of its own: make test-nullgpu", allow_module_level=True)

from shapes import FITS  # noqa: E402
from simulated_gpu import simulate  # noqa: E402
from sparse import sparse_model  # noqa: E402

QUICK = ["--prompt_template", "question", "--max_completion_length", "16", "--problems_per_step", "4", "--num_generations", "4"]
QUICK += ["--max_steps", "2", "--eval_steps", "2", "--eval_problems", "4", "--save_steps", "1"]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder of a sparse model of this shape."""
    folder = tmp_path_factory.mktemp("models")
    return lambda name: sparse_model(name, folder / name)


@pytest.fixture(scope="session")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i} + " * 60 + "1", "answer": "1"}) + "\n" for i in range(60)))
    return path


@functools.cache
def server():
    """A process that has imported everything and runs each script in a fork of itself."""
    process = subprocess.Popen([sys.executable, str(DRIVE), "--serve"], env=environment(LIB, 79.1), cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def drive(script, model, problems, folder, *flags, gib=79.1, capability=80, code=0, **variables):
    """The run's output and what each of its phases counted. Fails if it ends with another code."""
    counts, output = (folder.with_name(f"{folder.name}.{kind}") for kind in ("counts", "output"))
    words = [script, *QUICK, "--model", str(model), "--dataset", str(problems), "--output_dir", str(folder), *flags]
    card = {"NULLGPU_GIB": str(gib), "NULLGPU_CC": str(capability), "COUNTS": str(counts)}
    print(json.dumps({"words": words, "environment": card | variables, "output": str(output)}), file=server().stdin, flush=True)
    found = int(server().stdout.readline())
    assert found == code, output.read_text()[-4000:]
    return output.read_text(), [json.loads(line) for line in counts.read_text().splitlines()] if counts.exists() else []


def benchmark(name, *words, gib=79.1, **variables):
    """What a script of benchmarks/ printed. Fails if it ends with an error. Its model is there already."""
    command = [sys.executable, str(DRIVE), str(ROOT / "benchmarks" / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, env={**environment(LIB, gib), "EAGER": "1", "SAMPLED": "8", **variables}, cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


VARIANTS = {
    "train_grpo": ["", "--gradient_checkpointing", "--dtype float32", "--optim adamw_8bit", "--optim paged_adamw_8bit", "--load_in_4bit",
                   "--num_iterations 2 --num_minibatches 2 --beta 0.04 --top_p 0.9 --stop ###", "--load_in_4bit --dtype float32",
                   "--sampling lilo --lora_target_modules q_proj v_proj --mask_truncated_completions"],
    "train_nft": ["", "--ratio_level sequence --num_minibatches 2"],
    "train_ppo": ["", "--kl_in_reward --beta 0.05 --gradient_checkpointing", "--load_in_4bit --critic_warmup_steps 1"],
    "train_vineppo": ["--step_split tokens:8", "--step_split tokens:8 --load_in_4bit"]}


@pytest.mark.parametrize(("script", "flags"), [(script, flags) for script in SCRIPTS for flags in VARIANTS[script]])
def test_variants_end_and_nothing_waits_inside_the_loop_over_micro_batches(script, flags, models, problems, tmp_path):
    _, rows = drive(script, models("Qwen2.5-0.5B"), problems, tmp_path / "run", "--engine", "transformers", *flags.split())
    loops = [row for row in rows if row["phase"] == "micro-batches"]
    # in float32 rows are padded on a GPU, and then transformers asks once a forward whether they are packed
    padded = "float32" in flags
    assert loops and all(row["waits"] == padded * row["microbatches"] for row in loops)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
def test_a_run_resumes_and_goes_on_from_an_adapter(optim, models, problems, tmp_path):
    flags = ["--engine", "transformers", "--optim", optim]
    drive("train_grpo", models("Qwen2.5-0.5B"), problems, tmp_path / "run", *flags)
    again = ["--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2"), "--max_steps", "3"]
    text, _ = drive("train_grpo", models("Qwen2.5-0.5B"), problems, tmp_path / "run", *again)
    assert "resumed" in text
    adapter = ["--adapter", str(tmp_path / "run" / "checkpoint-3"), "--beta", "0.04"]
    drive("train_grpo", models("Qwen2.5-0.5B"), problems, tmp_path / "next", "--engine", "transformers", *adapter)


def test_launches_are_few(models, problems, tmp_path):
    """At the 7B shape: 5,600 a micro-batch and 1,300 a token when this was written."""
    flags = ["--engine", "transformers", "--max_steps", "1", "--eval_steps", "0", "--max_completion_length", "32"]
    _, rows = drive("train_grpo", models("Qwen2.5-7B"), problems, tmp_path / "run", *flags)
    (sample,), (loop,) = ([row for row in rows if row["phase"] == phase] for phase in ("sample", "micro-batches"))
    assert sample["launches"] / 32 < 1500
    assert loop["launches"] / loop["microbatches"] < 6000


# what the README says fits. NFT has the memory of GRPO; VinePPO samples twice a step
RUNS = [(*row, script) for row in FITS for script in ("train_grpo", "train_ppo") if (row[0], script) != (16, "train_ppo")]
RUNS += [(16, "Qwen2.5-14B", f"{flags} --optim adamw_8bit", "train_ppo") for card, _, flags in FITS if card == 16]  # two adapters
RUNS += [(24, "Qwen2.5-7B", "", "train_nft"), (48, "Qwen2.5-14B", "", "train_vineppo")]
GIB = {12: 11.6, 16: 15.6, 24: 23.64, 32: 31.3, 48: 47.5, 80: 79.1}  # what CUDA says such cards have


@pytest.mark.parametrize(("card", "name", "flags", "script"), RUNS)
def test_what_the_readme_says_fits_keeps_to_its_plan(card, name, flags, script, models, problems, tmp_path):
    """The trainer's base is vLLM's, an adapter goes to vLLM in one transfer, and the release moves nothing."""
    sizes = ["--engine", "vllm", "--problems_per_step", "16", "--num_generations", "8", "--max_completion_length", "1024"]
    sizes += ["--eval_steps", "0", "--save_steps", "0", "--num_iterations", "1", "--num_minibatches", "1", *flags.split()]
    sizes += ["--step_split", "tokens:256", "--mc_samples", "1"] if script == "train_vineppo" else []
    text, rows = drive(script, models(name), problems, tmp_path / "run", *sizes, gib=GIB[card], EAGER="1", SAMPLED="4", MICROBATCHES="1",
                       PARITY="0")
    shutil.rmtree(tmp_path / "run")  # checkpoints of up to 3 GB
    by_phase = {phase: [row for row in rows if row["phase"] == phase] for phase in {row["phase"] for row in rows}}
    (base,), syncs = by_phase["base"], by_phase["sync"]
    assert base["shared"] > 4e9 and base["left"] - base["held"] < 5e4  # left: buffers of the rotary embedding
    assert base["allocated"] - base["held"] < 1e9  # pieces of the checkpoint, which are compared
    assert len(syncs) == 2 and all(row["down"] == 1 for row in syncs)
    changes = [row for phase in ("sleep", "release_kv_cache_memory", "wake_up") for row in by_phase[phase]]
    assert len(changes) > 6 and not any(row["bytes_up"] + row["bytes_down"] for row in changes)
    planned = 1e9 * float(re.search(r"at once, at most ([\d.]+) GB", text)[1])
    most = max(row.get("device_peak", 0) for row in rows) + 500 * 2**20  # of the driver, as card.py assumes it
    assert 0.8 * planned < most <= planned and "out of memory" not in text


@pytest.mark.parametrize("name", ["Qwen2.5-7B", "Llama-3.1-8B", "Qwen3-8B"])
@pytest.mark.parametrize("layers", [0, 14, None])
def test_the_plan_is_a_little_above_what_is_counted(name, layers, models):
    """layers None: as planned for 24 GB in 4 bits; else that many are checkpointed, on a card with room enough."""
    four_bits = layers is None
    found = simulate(LIB, "train_grpo", models(name), 24 if four_bits else 80, four_bits, layers, gib=120)
    assert 1.0 <= found["plan_update"] / found["update"] <= 1.1
    assert 0.99 <= found["plan"] / found["counted"] <= 1.1


def test_the_checks_for_a_gpu_end_at_the_7b_shape(models, tmp_path):
    """A check of gpu_smoke.py that needs no numbers, and a run of gpu_7b.py within its plan: both what the README names for 24 GB."""
    model = sparse_model("Qwen2.5-7B", tmp_path / "model-Qwen2.5-7B")
    (model / "done").touch()
    text = benchmark("gpu_smoke", "--only", "train", "--out", tmp_path, gib=23.64)
    assert "| train | Qwen2.5-7B | ok |" in text
    benchmark("gpu_7b", "--cards", 24, "--models", "Qwen2.5-7B", "--scripts", "train_ppo", "--steps", 2, "--out", tmp_path, gib=23.64)
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["result"] == "ok" and 15 < row["peak_gb"] <= row["plan_gb"]


STREAMS = """
import torch
from common.policy.optim import make_optimizer, take_step

torch.cuda.set_stream(torch.cuda.Stream())  # as vLLM leaves it
mine, default = torch.cuda.current_stream(), torch.cuda.default_stream()
for name, wanted in (("adamw_8bit", default), ("paged_adamw_8bit", default), ("adamw_torch", mine)):
    optimizer, seen = make_optimizer({"w": torch.nn.Parameter(torch.zeros(8, device="cuda"))}, 1e-3, name), []
    optimizer.step = lambda: seen.append(torch.cuda.current_stream())
    take_step(optimizer, 1e-3)
    assert seen == [wanted] and torch.cuda.current_stream() == mine, name
"""


def test_bitsandbytes_updates_on_the_default_stream_where_its_kernels_run():
    subprocess.run([sys.executable, "-c", STREAMS], env=environment(LIB, 8), cwd=ROOT, check=True)


def test_an_old_driver_and_an_old_card_are_named(models, problems, tmp_path):
    text, _ = drive("train_grpo", models("Qwen2.5-0.5B"), problems, tmp_path / "run", capability=75, gib=15, code=1)
    assert "has compute capability 7.5" in text and not (tmp_path / "run").exists()
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 550.54\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    text, _ = drive("train_grpo", models("Qwen2.5-0.5B"), problems, tmp_path / "run", code=1, PATH=path, NULLGPU_OLD_DRIVER="1")
    assert "(driver 550.54)" in text and "needs driver 580 or newer" in text


def test_a_trial_without_room_goes_on_with_less(models, problems, tmp_path):
    """A plan that hoped for more: the card is smaller than it was told."""
    sizes = ["--engine", "transformers", "--max_completion_length", "1024", "--eval_steps", "0", "--max_steps", "1"]
    text, _ = drive("train_grpo", models("Qwen2.5-0.5B"), problems, tmp_path / "run", *sizes, gib=8, CARD_GB="24",
                    SAMPLED="8")
    assert "going on with --gradient_checkpointing" in text and "step    1" in text
