"""The scripts as several processes on loopback: the run of one process, in one folder, whoever ends first and whatever fails."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers import (
    QUICK,
    ROOT,
    SCRIPTS,
    completions,
    errors_of,
    exit_code,
    free_port,
    metrics,
    output_of,
    run,
    several,
    wait_for,
)
from safetensors.torch import load_file

from common.policy.policy import Policy
from common.run.resume import what_is_missing

MINIBATCHES = ("--max_steps", "2", "--num_minibatches", "2")
WAYS = {
    "lilo": ("--sampling", "lilo", *MINIBATCHES),
    "kl": ("--beta", "0.1", "--loss_aggregation", "seq-mean-token-mean", *MINIBATCHES),
}
# with the default floor of 1, whether a token is below it in the first minibatch is a matter of rounding
FLOOR = {"train_nft": ("--nft_clip", "0.9")}
EACH = [pytest.param(script, "lilo", id=f"{script}-lilo") for script in SCRIPTS]
EACH += [pytest.param(script, "kl", id=f"{script}-kl") for script in ("train_ppo", "train_vineppo", "examples.prime")]


def assert_same_run(a, b, exact=("step", "problem", "prompt", "completion", "answer", "reward", "finish_reason", "tokens")):
    """Equal completions, and numbers that differ by the order of sums alone."""
    left, right = completions(a), completions(b)
    assert [[row[name] for name in exact] for row in left] == [[row[name] for name in exact] for row in right]
    assert all(one["advantage"] == pytest.approx(other["advantage"], abs=1e-5) for one, other in zip(left, right, strict=True))
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    for path in sorted(a.glob("checkpoint-*/**/*.safetensors")):
        weights, others = load_file(path), load_file(b / path.relative_to(a))
        assert all(torch.allclose(weights[name], others[name], rtol=0, atol=2e-5) for name in weights)


def codes_of(processes, seconds=120):
    return [exit_code(process, seconds) for process in processes]


@pytest.mark.parametrize("script, way", EACH)
def test_two_processes_are_the_run_of_one(script, way, finished, tmp_path, monkeypatch):
    flags = *WAYS[way], *FLOOR.get(script, ())
    alone, folder = finished(script, *flags), tmp_path / "run"
    assert codes_of(several(2, script, folder, *flags, monkeypatch=monkeypatch)) == [0, 0]
    assert any(row["grad_norm"] > 0 for row in metrics(folder)[1:])
    assert_same_run(alone, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in alone.iterdir())
    output = output_of(folder).read_text()
    assert errors_of(folder, 1).read_text() == ""
    assert re.findall(r"^step +(\d)", output, re.M) == ["0", "1", "2"] and output.count("writing ") == output.count("parity: ") == 1


REWARD = """
import os, pathlib
def long(completion, problem):
    with open(pathlib.Path(__file__).with_name("callers.txt"), "a") as file:
        file.write(f"{os.getpid()}\\n")
    if completion[-1:] == "8":
        raise ValueError(completion)
    return float(len(completion))
"""
FEW_ROWS = ("--problems_per_step", "1", "--num_generations", "2", "--max_steps", "2", "--eval_problems", "1", "--eval_steps", "1")


def test_an_evaluation_by_two_processes_is_that_of_one(tmp_path, monkeypatch):
    flags = (*QUICK[:2], "--max_problems", "9", "--num_samples", "3")
    for count in (1, 2):
        folder = tmp_path / str(count)
        assert codes_of(several(count, "eval", folder, *flags, monkeypatch=monkeypatch, quick=[])) == [0] * count
        assert output_of(folder).read_text().count("written to ") == 1
    files = [{path.name: path.read_text() for path in (tmp_path / str(count)).iterdir() if "config" not in path.name} for count in (1, 2)]
    assert files[0] == files[1] and set(files[0]) == {"problems.jsonl", "summary.json"}


@pytest.mark.parametrize("workers", [1, 3])
def test_a_process_may_have_no_row_no_request_and_no_process_of_the_reward(workers, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(REWARD)
    flags = (*FEW_ROWS, "--reward", f"{tmp_path / 'mine.py'}:long", "--reward_workers", str(workers))
    for count, name in ((1, "alone"), (3, "run")):
        (tmp_path / "callers.txt").unlink(missing_ok=True)
        assert codes_of(several(count, "train_grpo", tmp_path / name, *flags, monkeypatch=monkeypatch)) == [0] * count
        assert 1 <= len(set((tmp_path / "callers.txt").read_text().splitlines())) <= workers
    assert_same_run(tmp_path / "alone", tmp_path / "run")
    assert any(row["grad_norm"] > 0 for row in metrics(tmp_path / "run")[1:])
    assert metrics(tmp_path / "run")[-1]["reward/errors"] == output_of(tmp_path / "run").read_text().count(" failed and is ")


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_models_of_other_families_run_in_several_processes(architecture, random_models, tmp_path, monkeypatch):
    """They are tried on a miniature first, which each process does alone."""
    (tmp_path / "mine.py").write_text("def long(completion, problem):\n    return float(len(completion))\n")
    flags = ("--model", str(random_models[architecture]), "--reward", f"{tmp_path / 'mine.py'}:long", "--max_completion_length", "9",
             "--max_steps", "1", "--lora_r", "4")  # fmt: skip
    for count in (1, 2):
        assert codes_of(several(count, "train_grpo", tmp_path / str(count), *flags, monkeypatch=monkeypatch), 240) == [0] * count
    assert_same_run(tmp_path / "1", tmp_path / "2")
    assert metrics(tmp_path / "2")[-1]["grad_norm"] > 0


def test_a_loss_that_is_not_finite_in_one_process_ends_all(tmp_path, monkeypatch):
    real = Policy.logps

    def broken(self, batch, entropy=False):
        logps, entropies = real(self, batch, entropy)
        if entropy and os.environ["RANK"] == "1" and (tmp_path / "run" / "checkpoint-1").exists():
            logps = logps * float("nan")
        return logps, entropies

    monkeypatch.setattr(Policy, "logps", broken)
    flags = ("--beta", "0.1", "--max_steps", "4", "--eval_steps", "0")
    assert codes_of(several(2, "train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch)) == [1, 1]
    told = output_of(tmp_path / "run").read_text() + errors_of(tmp_path / "run", 1).read_text()
    assert told.count("the loss or its gradient is not finite") == 1 and "Traceback" not in told
    (written,) = (tmp_path / "run").glob("nonfinite-step-*.json")
    rows = json.loads(written.read_text())
    assert 0 < len(rows) < 16 and str(written) in told  # those of process 1
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


def test_processes_that_sample_from_different_adapters_end(tmp_path, monkeypatch):
    def drift(rank):
        from common.policy import optim

        real = torch.optim.AdamW.step

        def step(self, *args, **kwargs):
            real(self, *args, **kwargs)
            if rank == 1:
                with torch.no_grad():
                    self.param_groups[0]["params"][0].view(-1)[7] += 1e-7

        assert optim.torch.optim.AdamW is torch.optim.AdamW
        torch.optim.AdamW.step = step

    flags = ("--beta", "0.1", "--max_steps", "3", "--eval_steps", "0")
    assert codes_of(several(2, "train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch, first=drift)) == [1, 1]
    told = output_of(tmp_path / "run").read_text() + errors_of(tmp_path / "run", 1).read_text()
    assert "process 1 on" in told and "has another adapter default (its checksum) than process 0" in told and "Traceback" not in told


def test_wrong_flags_and_folders_are_said_once(finished, tmp_path, monkeypatch):
    other = finished("train_grpo", *WAYS["lilo"])
    for flags, said in (
        (("--max_step", "3"), "error: unknown argument --max_step: did you mean --max_steps? see --help"),
        (("--output_dir", str(other)), "holds another run; name another folder, delete that one, or continue it"),
        (("--model", "no/such-model"), "error: --model no/such-model could not be loaded"),
        (("--output_dir", str(other), "--resume_from_checkpoint", "auto", "--lora_r", "3"), "differs from the resumed run's"),
    ):
        before = sorted((path, path.stat().st_mtime) for path in other.rglob("*"))
        assert codes_of(several(2, "train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch)) == [1, 1]
        told = output_of(tmp_path / "run").read_text() + errors_of(tmp_path / "run", 1).read_text()
        assert told.count(said) == told.count("error: ") == 1 and "Traceback" not in told, told
        assert sorted((path, path.stat().st_mtime) for path in other.rglob("*")) == before and not (tmp_path / "run").exists()


def test_a_finished_run_is_left_alone(finished, tmp_path, monkeypatch):
    shutil.copytree(finished("train_grpo", *WAYS["lilo"]), tmp_path / "run")
    flags = ("--resume_from_checkpoint", "auto", *WAYS["lilo"])
    assert codes_of(several(2, "train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch)) == [0, 0]
    assert output_of(tmp_path / "run").read_text().count("is finished: it has done 2 steps") == 1


def test_a_process_that_is_killed_ends_all_and_three_go_on(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    flags = ("--max_steps", "60", "--eval_steps", "0", "--beta", "0.1")
    processes = several(2, "train_grpo", folder, *flags, monkeypatch=monkeypatch)
    wait_for(lambda: (folder / "checkpoint-2").exists(), processes[0], folder)
    processes[1].kill()
    assert codes_of(processes) == [1, -9]
    told = output_of(folder).read_text()
    assert "the connection to another process of this run is lost" in told and "Traceback" not in told
    done = max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    assert what_is_missing(folder / f"checkpoint-{done}") is None and not (folder / ".lock").exists()
    flags = ("--max_steps", str(done + 2), "--eval_steps", "0", "--beta", "0.1")
    assert codes_of(several(3, "train_grpo", folder, "--resume_from_checkpoint", "auto", *flags, monkeypatch=monkeypatch)) == [0, 0, 0]
    assert run("train_grpo", tmp_path / "alone", *flags, monkeypatch=monkeypatch) == 0
    assert_same_run(tmp_path / "alone", folder)


def test_torchrun_is_stopped_in_order_and_one_process_goes_on(tmp_path, monkeypatch):
    """The one test with the launcher itself."""
    folder = tmp_path / "run"
    flags = [*QUICK, "--eval_steps", "0", "--beta", "0.1", "--max_steps", "60", "--output_dir", str(folder)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    with open(output_of(folder), "w") as output:
        process = subprocess.Popen([*launcher, "train_grpo.py", *flags], cwd=ROOT, stdout=output, stderr=output)
    wait_for(lambda: (folder / "checkpoint-2").exists(), process, folder)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    told = output_of(folder).read_text()
    done = metrics(folder)[-1]["step"]
    assert what_is_missing(folder / f"checkpoint-{done}") is None and not (folder / ".lock").exists()
    assert told.count("stopping after this step (once more: stop now)") == 1
    (line,) = re.findall(f"^stopped after step {done}; go on with: (.*)$", told, re.M)
    assert line == shlex.join([*launcher, "train_grpo.py", "--resume_from_checkpoint", str(folder / f"checkpoint-{done}")])
    flags = ("--max_steps", str(done + 2), "--eval_steps", "0", "--beta", "0.1")
    assert run("train_grpo", folder, "--resume_from_checkpoint", "auto", *flags, monkeypatch=monkeypatch) == 0
    assert run("train_grpo", tmp_path / "alone", *flags, monkeypatch=monkeypatch) == 0
    assert_same_run(tmp_path / "alone", folder)


LAST_WORDS = """
import atexit, os, pathlib, runpy, sys

def write(own=pathlib.Path(__file__)):
    threads = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
    own.with_name(f"threads-{os.environ['RANK']}.txt").write_text(" ".join(threads))

atexit.register(write)  # the first that is registered is the last that is called
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_threads_of_the_connections_end_before_the_process(tmp_path):
    """One that is left aborts the process now and then, when all is done and written."""
    script = tmp_path / "script.py"
    script.write_text(LAST_WORDS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    subprocess.run([*torchrun, script, ROOT / "train_grpo.py", *QUICK, "--max_steps", "1", "--output_dir", tmp_path / "run"],
                   check=True, capture_output=True, timeout=300)  # fmt: skip
    for rank in range(2):
        assert "gloo" not in (tmp_path / f"threads-{rank}.txt").read_text()
