"""Every training script from end to end: learns nothing here, but runs, resumes, stops and fails as it should."""

import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import QUICK, ROOT, SCRIPTS, metrics, run, save_random_model
from safetensors.torch import load_file

from common.launch import parse_command_line, run_script
from common.run.resume import what_is_missing

pytestmark = pytest.mark.parametrize("script", SCRIPTS)


def completions(folder):
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def assert_same_checkpoint(a, b):
    """Equal to the last bit, and something was learned."""
    files = sorted(path.relative_to(a) for path in a.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(b) for path in b.rglob("*.safetensors"))
    for file in files:
        left, right = (load_file(folder / file) for folder in (a, b))
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
        assert any(value.abs().max() > 1e-4 for key, value in left.items() if "lora_A" not in key)
    left, right = (torch.load(folder / "trainer_state.pt", weights_only=True) for folder in (a, b))
    assert left["step"] == right["step"] and left["sampler"] == right["sampler"] and left["run"] == right["run"]
    for optimizer in (name for name in left if "optimizer" in name):
        for i, state in left[optimizer]["state"].items():
            assert state and all(torch.equal(value, right[optimizer]["state"][i][key]) for key, value in state.items())


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--beta", "0.1", "--num_iterations", "2", "--num_minibatches", "2"],
        ["--mask_truncated_completions", "--loss_aggregation", "constant", "--importance_cap", "0", "--top_p", "0.9"],
        ["--gradient_checkpointing", "--stop", "nothing", "--temperature", "0.7", "--max_tokens_per_microbatch", "1"],
    ],
    ids=["defaults", "kl-and-minibatches", "masked", "checkpointing-and-stop"],
)
def test_three_steps(script, flags, tmp_path, monkeypatch):
    assert run(script, tmp_path / "run", "--max_steps", "3", *flags, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run", times=True)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert set(rows[0]) == {"step", "eval/pass@1", "eval/greedy", "eval/problems"}
    wanted = {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "completions/mean_length",
        "completions/clipped_ratio",
        "grad_norm",
        "learning_rate",
        "num_tokens",
        "num_completions",
        "step_time",
        "time/sample",
        "time/verify",
        "time/update",
        "time/sync",
        "memory/peak_gb",
    }
    assert all(wanted <= set(row) for row in rows[1:])
    assert all(row["grad_norm"] > 0 and row["entropy"] > 0 and row["sampling/sampling_logp_difference/max"] < 1e-3 for row in rows[1:])
    assert ("kl" in rows[-1]) == ("--beta" in flags)
    assert ["eval/pass@1" in row for row in rows] == [True, False, True, True]  # every second step and the last
    told = completions(tmp_path / "run")
    continued = sum(row.get("value/continuations", 0) for row in rows)  # of those the file tells nothing
    assert len(told) == 3 * 16 == rows[-1]["num_completions"] - continued
    assert sum(row["tokens"] for row in told) == rows[-1]["num_tokens"] or 0 < continued <= rows[-1]["num_tokens"]
    assert {row["reward"] for row in told} <= {0.0, 1.0} and all(row["finish_reason"] == "stop" or row["reward"] == 0 for row in told)
    assert (tmp_path / "run" / "checkpoint-3" / "adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["flags"]["max_steps"] == 3


def test_three_steps_on_a_base_in_four_bits(script, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    flags = ["--load_in_4bit", "--beta", "0.1", "--max_steps", "3", "--num_minibatches", "1"]
    assert run(script, tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")[1:]
    assert [row["step"] for row in rows] == [1, 2, 3] and any(row["grad_norm"] > 0 for row in rows)
    first = next(row for row in rows if "kl" in row)
    assert abs(first["kl"]) < 1e-3 and all(row["sampling/sampling_logp_difference/max"] < 1e-3 for row in rows if "entropy" in row)
    assert (tmp_path / "run" / "checkpoint-3" / "adapter_model.safetensors").exists()


SAMPLING = {
    "lilo": ["--sampling", "lilo"],
    "adaptive": ["--sampling", "adaptive", "--candidate_factor", "1"],
    "dynamic": ["--sampling", "dynamic", "--candidate_factor", "2"],
    "buffer": ["--sampling", "buffer", "--buffer_steps", "3"],
    "memory": ["--sampling", "lilo", "--candidate_factor", "2", "--candidate_generations", "2", "--candidate_choice", "memory"],
}


@pytest.mark.parametrize("sampling", SAMPLING)
def test_three_steps_of_each_way_to_choose_problems(script, sampling, tmp_path, monkeypatch):
    assert run(script, tmp_path / "run", "--max_steps", "3", *SAMPLING[sampling], monkeypatch=monkeypatch) == 0
    rows, told = metrics(tmp_path / "run")[1:], completions(tmp_path / "run")
    assert any(row["grad_norm"] > 0 for row in rows) and [row["step"] for row in rows] == [1, 2, 3]
    continued = sum(row.get("value/continuations", 0) for row in rows)
    candidates = sum(row["sampling/candidates"] for row in rows)
    tried = {
        "lilo": 3 * 4 * 16,
        "adaptive": 3 * 16,
        "dynamic": 4 * candidates,
        "buffer": 4 * 16 + 3 * 16,
        "memory": 3 * 2 * 4 * 2 + 3 * 4 * 2,
    }
    assert rows[-1]["num_completions"] - continued == tried[sampling]  # dropped candidates are counted
    assert len(told) == 3 * 16 and rows[-1]["num_tokens"] >= sum(row["tokens"] for row in told)
    for row in rows:
        outcomes = [row[f"sampling/frac_{name}"] for name in ("solved", "hopeless", "mixed")]
        assert sum(outcomes) == pytest.approx(1) and min(outcomes) >= 0
        assert 0 <= row["sampling/learnability_candidates"] <= 0.5 and 0 <= row["sampling/learnability_batch"] <= 0.5
    if sampling in ("lilo", "dynamic"):
        assert all(
            row["frac_reward_zero_std"] < 1 and row["sampling/learnability_batch"] > row["sampling/learnability_candidates"] for row in rows
        )
    if "value/states" in rows[0]:  # values are asked for what is kept alone: one state a step of the completion, the prompt's included
        for row in rows:
            kept = [c for c in told if c["step"] == row["step"]]
            assert row["value/states"] <= sum(len(c["step_starts"]) for c in kept)


def test_resume_in_the_middle_of_a_buffer_period_is_exact(script, tmp_path, monkeypatch):
    flags = ["--max_steps", "5", "--sampling", "buffer", "--buffer_steps", "3", "--save_total_limit", "0", "--eval_steps", "0"]
    assert run(script, tmp_path / "whole", *flags, monkeypatch=monkeypatch) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    where = str(tmp_path / "resumed" / "checkpoint-2")
    assert run(script, tmp_path / "resumed", "--resume_from_checkpoint", where, monkeypatch=monkeypatch, quick=[]) == 0
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "whole")
    assert completions(tmp_path / "resumed") == completions(tmp_path / "whole")
    assert_same_checkpoint(tmp_path / "resumed" / "checkpoint-5", tmp_path / "whole" / "checkpoint-5")


@pytest.mark.parametrize("habits", ["0:0:0", "1:1:1"], ids=["solved", "hopeless"])
def test_dynamic_sampling_survives_steps_without_a_mixed_group(script, habits, tmp_path, monkeypatch, capsys):
    """The teacher never or always uses the wrong operator, so that hardly a group is mixed, and greedy sampling does the rest."""
    data = ["--dataset", f"arithmetic:warm_steps=80,values=18,tiers=plus:1:1-1,habits={habits},train=60,test=30"]
    flags = ["--max_steps", "2", "--sampling", "dynamic", "--temperature", "0.01"]
    assert run(script, tmp_path / "run", *flags, monkeypatch=monkeypatch, quick=data + QUICK[2:]) == 0
    assert "had both right and wrong completions; going on with" in capsys.readouterr().out
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2]


def test_the_microbatch_budget_does_not_change_the_run(script, tmp_path, monkeypatch):
    """The same first step, and after three updates adapters that agree to rounding."""
    for budget in ("1", "60", "100000"):
        assert run(script, tmp_path / budget, "--max_steps", "3", "--max_tokens_per_microbatch", budget, monkeypatch=monkeypatch) == 0
    first = load_file(tmp_path / "1" / "checkpoint-3" / "adapter_model.safetensors")
    assert [row["completion"] for row in completions(tmp_path / "1")] == [row["completion"] for row in completions(tmp_path / "100000")]
    for other in ("60", "100000"):
        second = load_file(tmp_path / other / "checkpoint-3" / "adapter_model.safetensors")
        assert max((first[key] - second[key]).abs().max().item() for key in first) < 1e-4  # Adam magnifies rounding of tiny gradients


def test_the_same_seed_gives_the_same_run_and_another_seed_another(script, tmp_path, monkeypatch):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run(script, tmp_path / name, "--max_steps", "2", "--seed", seed, monkeypatch=monkeypatch) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") and completions(tmp_path / "a") == completions(tmp_path / "b")
    assert_same_checkpoint(tmp_path / "a" / "checkpoint-2", tmp_path / "b" / "checkpoint-2")
    assert completions(tmp_path / "a") != completions(tmp_path / "c")


def launch(script, folder, *flags, quick=QUICK):
    return subprocess.Popen(
        [sys.executable, f"{script}.py", *quick, "--output_dir", str(folder), *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)


def test_resume_after_kill_is_exact(script, tmp_path, monkeypatch):
    """6 steps = 3 steps, kill -9 somewhere after, resume, the rest: adapter, optimiser, metrics, completions."""
    flags = ["--max_steps", "6", "--save_steps", "3", "--num_minibatches", "2", "--beta", "0.05", "--save_total_limit", "0"]
    assert run(script, tmp_path / "whole", *flags, monkeypatch=monkeypatch) == 0
    killed = tmp_path / "killed"
    process = launch(script, killed, *flags)
    wait_for(lambda: (killed / "checkpoint-3").exists(), process)
    process.kill()
    process.wait()
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "rew')  # as a kill in the middle of a line leaves it
    assert not (killed / "checkpoint-6").exists()
    assert run(script, killed, "--resume_from_checkpoint", "auto", monkeypatch=monkeypatch, quick=[]) == 0  # its flags come from the run
    assert metrics(killed) == metrics(tmp_path / "whole")
    assert completions(killed) == completions(tmp_path / "whole")
    assert_same_checkpoint(killed / "checkpoint-6", tmp_path / "whole" / "checkpoint-6")


def test_a_resumed_run_may_go_on_for_longer(script, tmp_path, monkeypatch, capsys):
    assert run(script, tmp_path / "run", "--max_steps", "2", monkeypatch=monkeypatch) == 0
    where = str(tmp_path / "run" / "checkpoint-1")
    assert run(script, tmp_path / "run", "--resume_from_checkpoint", where, "--max_steps", "3", monkeypatch=monkeypatch) == 0
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 3]
    assert "changed on resume: --max_steps 2 -> 3" in capsys.readouterr().out
    assert (tmp_path / "run" / "superseded-checkpoint-2").exists()  # of the future that was replaced: kept, and never resumed by itself


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_exits(script, number, tmp_path, monkeypatch):
    flags = ["--max_steps", "400", "--save_steps", "0", "--eval_steps", "0"]
    process = launch(script, tmp_path, *flags)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and (tmp_path / "metrics.jsonl").read_text().count("\n") >= 2, process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number and "stopped after step" in output and "Traceback" not in output
    last = metrics(tmp_path)[-1]["step"]
    assert (
        what_is_missing(tmp_path / f"checkpoint-{last}") is None and f"--resume_from_checkpoint {tmp_path / f'checkpoint-{last}'}" in output
    )
    assert run(script, tmp_path, "--resume_from_checkpoint", "auto", "--max_steps", str(last + 1), monkeypatch=monkeypatch, quick=[]) == 0
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, last + 2))


def test_a_second_signal_ends_at_once(script, tmp_path):
    # steps that take long: many long completions
    process = launch(
        script,
        tmp_path,
        "--max_steps",
        "9",
        "--save_steps",
        "0",
        "--eval_steps",
        "0",
        "--num_generations",
        "3000",
        "--max_completion_length",
        "200",
    )
    wait_for(lambda: (tmp_path / "config.json").exists(), process)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) != 0
    assert not list(tmp_path.glob("checkpoint-*"))
    process.stdout.close()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_problems(script, tmp_path, monkeypatch):
    """From the second step on, one token's loss is NaN."""
    from common.policy.policy import Policy

    real, calls = Policy.logps, []

    def broken(self, batch, entropy=False):
        logps, entropies = real(self, batch, entropy)
        if torch.is_grad_enabled():
            calls.append(1)
            if (tmp_path / "run" / "checkpoint-1").exists():
                logps = logps * torch.where(torch.arange(logps.numel()).reshape(logps.shape) == 0, float("nan"), 1.0)
        return logps, entropies

    monkeypatch.setattr(Policy, "logps", broken)
    message = run(script, tmp_path / "run", "--max_steps", "6", monkeypatch=monkeypatch)
    assert calls and "is not finite" in message and "arithmetic/train/" in message and "checkpoint-1" in message
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert what_is_missing(tmp_path / "run" / "checkpoint-1") is None
    (written,) = (tmp_path / "run").glob("nonfinite-step-*.json")
    assert all(row["problem"] in message or ", ..." in message for row in json.loads(written.read_text()))


@pytest.mark.parametrize("limit", [100_000, 1_200_000], ids=["adapter", "trainer state"])
def test_a_disk_without_room_stops_the_run_with_the_last_checkpoint_whole(script, limit, tmp_path, monkeypatch):
    """The first checkpoint is written in full; then no file may grow past the limit, as the system enforces it."""
    assert run(script, tmp_path / "run", "--max_steps", "1", monkeypatch=monkeypatch) == 0
    process = subprocess.run(
        [sys.executable, f"{script}.py", "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-1"), "--max_steps", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "no room left" in process.stderr and "--resume_from_checkpoint auto" in process.stderr
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert what_is_missing(tmp_path / "run" / "checkpoint-1") is None
    assert run(script, tmp_path / "run", "--resume_from_checkpoint", "auto", "--max_steps", "3", monkeypatch=monkeypatch, quick=[]) == 0
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_run_that_never_came_to_a_checkpoint_starts_over_with_the_same_command(script, tmp_path, monkeypatch, capsys):
    import common.verify.rewards

    real = common.verify.rewards.score

    def killed(*_):
        raise KeyboardInterrupt

    flags = ["--max_steps", "2", "--resume_from_checkpoint", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr("common.verify.rewards.score", lambda *_: killed() if (tmp_path / "run" / "metrics.jsonl").exists() else real(*_))
        assert run(script, tmp_path / "run", *flags, monkeypatch=patch) == 130
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0]
    assert run(script, tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    assert "a new run starts" in capsys.readouterr().out
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2]


def test_rows_cut_anywhere_or_with_odd_line_ends_survive_a_resume(script, tmp_path, monkeypatch):
    assert run(script, tmp_path / "run", "--max_steps", "1", monkeypatch=monkeypatch) == 0
    row = {"step": 1, "completion": "a\u20285\u2028b\u0085c"}
    with open(tmp_path / "run" / "completions.jsonl", "ab") as file:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n" + '{"step": 1, "completion": "\u03c0'.encode()[:-1])
    assert run(script, tmp_path / "run", "--resume_from_checkpoint", "auto", "--max_steps", "2", monkeypatch=monkeypatch, quick=[]) == 0
    lines = (tmp_path / "run" / "completions.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 16 + 1 + 16 + 1 and json.loads(lines[16]) == row


def test_two_runs_of_the_same_second_get_two_folders(script, tmp_path, monkeypatch):
    import time as clock

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clock, "strftime", lambda form: "20260101-000000")
    module = importlib.import_module(script)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *QUICK, "--max_steps", "1"])
        run_script(module.train, parse_command_line(module.Config, module.__file__))
    first, second = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert second == f"{first}-2"


def test_folders_that_cannot_be_used_are_refused_before_anything_is_loaded(script, tmp_path, monkeypatch):
    from common.policy import load

    assert run(script, tmp_path / "run", "--max_steps", "1", monkeypatch=monkeypatch) == 0
    monkeypatch.setattr(load, "model_folder", lambda config: pytest.fail("a model was looked for"))
    assert "holds another run" in run(script, tmp_path / "run", monkeypatch=monkeypatch)
    (tmp_path / "file").write_text("")
    assert "cannot be written" in run(script, tmp_path / "file" / "below", monkeypatch=monkeypatch)
    assert "no such file" in run(script, tmp_path / "x", "--eval_dataset", "nowhere.jsonl", monkeypatch=monkeypatch)
    assert "did you mean --max_steps" in run(script, tmp_path / "x", "--max_step", "3", monkeypatch=monkeypatch)


def test_models_and_adapters_that_are_not_there_are_named(script, tmp_path, monkeypatch):
    data = ["--dataset", "arithmetic:train=40,test=20", "--eval_problems", "4"]
    assert "--model no/such-model could not be loaded" in run(
        script, tmp_path / "a", "--model", "no/such-model", monkeypatch=monkeypatch, quick=data
    )
    assert not (tmp_path / "a").exists()  # no empty run folders from starts that failed
    assert "not a PEFT folder" in run(script, tmp_path / "b", "--adapter", str(tmp_path), monkeypatch=monkeypatch)
    assert "no such linear layer" in run(script, tmp_path / "c", "--lora_target_modules", "qq_proj", monkeypatch=monkeypatch)
    assert "leaves no room for a prompt" in run(script, tmp_path / "d", "--max_completion_length", "1024", monkeypatch=monkeypatch)


@pytest.mark.parametrize("flags", [[], ["--load_in_4bit"], ["--dtype", "bfloat16"]], ids=["float32", "4bit", "bfloat16"])
def test_a_model_from_a_folder_on_a_file_of_ones_own(script, flags, tmp_path, tokenizer, monkeypatch):
    """What a user of real models does: a folder, a jsonl, the plain template, the real defaults but for the sizes."""
    if "--load_in_4bit" in flags:
        pytest.importorskip("bitsandbytes")
    model = save_random_model(tmp_path / "model", "llama", tokenizer)
    rng = random.Random(0)
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"problem": f"{rng.randint(1, 30)} + {i} ?", "solution": rf"\boxed{{{i}}}"}) + "\n" for i in range(30))
    )
    sizes = [
        "--model",
        str(model),
        "--dataset",
        str(tmp_path / "mine.jsonl"),
        "--problems_per_step",
        "2",
        "--num_generations",
        "2",
        "--max_completion_length",
        "8",
        "--eval_problems",
        "2",
        "--lora_r",
        "4",
        "--num_minibatches",
        "1",
        "--max_steps",
        "2",
    ]
    assert run(script, tmp_path / "run", *flags, monkeypatch=monkeypatch, quick=sizes) == 0
    rows = metrics(tmp_path / "run")
    assert rows[-1]["step"] == 2 and rows[-1]["reward"] == 0 and rows[-1]["frac_reward_zero_std"] == 1  # honest zeros from a random model
    assert rows[-1]["grad_norm"] == 0


def test_a_run_goes_on_from_the_adapter_of_another(script, tmp_path, monkeypatch):
    assert run(script, tmp_path / "a", "--max_steps", "2", "--lora_r", "8", monkeypatch=monkeypatch) == 0
    assert (
        run(
            script,
            tmp_path / "b",
            "--max_steps",
            "2",
            "--adapter",
            str(tmp_path / "a" / "checkpoint-2"),
            "--beta",
            "0.1",
            "--num_minibatches",
            "1",
            monkeypatch=monkeypatch,
        )
        == 0
    )
    assert json.loads((tmp_path / "b" / "config.json").read_text())["flags"]["lora_r"] == 8
    first = metrics(tmp_path / "b")[1]
    assert first.get("kl", 0.0) == pytest.approx(0.0, abs=1e-6)  # the reference is the adapter that the run started from
    assert (
        load_file(tmp_path / "b" / "checkpoint-2" / "adapter_model.safetensors").keys()
        == load_file(tmp_path / "a" / "checkpoint-2" / "adapter_model.safetensors").keys()
    )


def test_the_run_folder_speaks_of_no_half_made_files(script, tmp_path, monkeypatch):
    assert run(script, tmp_path / "run", "--max_steps", "2", "--save_total_limit", "1", monkeypatch=monkeypatch) == 0
    names = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "metrics.jsonl", "completions.jsonl", "README.md", "report.html", "checkpoint-2"}
    assert not [name for _, _, files in os.walk(tmp_path) for name in files if name.endswith(".tmp")]
    assert Path(tmp_path / "run" / "checkpoint-2").is_dir()
