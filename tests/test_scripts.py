"""Every training script from end to end: learns nothing here, but runs, resumes, stops and fails as it should."""

import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time

import pytest
import torch
from helpers import (
    QUICK,
    SCRIPTS,
    assert_same_checkpoint,
    completions,
    exit_code,
    forked,
    launch,
    metrics,
    output_of,
    run,
    save_random_model,
    wait_for,
)
from safetensors.torch import load_file

from common.launch import parse_command_line, run_script
from common.policy.policy import Policy
from common.run.resume import what_is_missing
from common.run.run import Run

pytestmark = pytest.mark.parametrize("script", SCRIPTS)
THREE_STEPS = ("--max_steps", "3")  # with evaluations before step 1 and after steps 2 and 3; checkpoints 2 and 3 are kept


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
def test_three_steps(script, flags, finished):
    folder = finished(script, *THREE_STEPS, *flags)
    rows = metrics(folder, times=True)
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
    told = completions(folder)
    continued = sum(row.get("value/continuations", 0) for row in rows)  # of those the file tells nothing
    assert len(told) == 3 * 16 == rows[-1]["num_completions"] - continued
    assert sum(row["tokens"] for row in told) == rows[-1]["num_tokens"] or 0 < continued <= rows[-1]["num_tokens"]
    assert {row["reward"] for row in told} <= {0.0, 1.0} and all(row["finish_reason"] == "stop" or row["reward"] == 0 for row in told)
    assert (folder / "checkpoint-3" / "adapter_model.safetensors").exists()
    assert json.loads((folder / "config.json").read_text())["flags"]["max_steps"] == 3
    # of three checkpoints the newest two are kept, and nothing is left half-made
    files = {"config.json", ".config.json", "metrics.jsonl", "completions.jsonl", "README.md", "report.html"}
    assert {path.name for path in folder.iterdir()} == files | {"checkpoint-2", "checkpoint-3"} and (folder / "checkpoint-3").is_dir()
    assert not list(folder.rglob("*.tmp"))


def test_three_steps_on_a_base_in_four_bits(script, tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    flags = ["--load_in_4bit", "--beta", "0.1", *THREE_STEPS, "--num_minibatches", "1", "--eval_steps", "0"]
    assert run(script, tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")
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
    flags = [*THREE_STEPS, *SAMPLING[sampling], "--eval_steps", "0"]
    assert run(script, tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    rows, told = metrics(tmp_path / "run"), completions(tmp_path / "run")
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


@pytest.mark.parametrize("reward", [1.0, 0.0], ids=["solved", "hopeless"])
def test_dynamic_sampling_survives_steps_without_a_mixed_group(script, reward, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.verify.rewards.score", lambda problems, completions: torch.full((len(completions),), reward))
    flags = ["--max_steps", "2", "--sampling", "dynamic", "--eval_steps", "0"]
    assert run(script, tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    assert "had both right and wrong completions; going on with" in capsys.readouterr().out
    assert [(row["step"], row["reward"]) for row in metrics(tmp_path / "run")] == [(1, reward), (2, reward)]


def test_the_microbatch_budget_does_not_change_the_run(script, tmp_path, monkeypatch):
    """The same first step, and after three updates adapters that agree to rounding."""
    flags = [*THREE_STEPS, "--eval_steps", "0", "--max_tokens_per_microbatch"]
    for budget in ("1", "60", "100000"):
        assert run(script, tmp_path / budget, *flags, budget, monkeypatch=monkeypatch) == 0
    first = load_file(tmp_path / "1" / "checkpoint-3" / "adapter_model.safetensors")
    assert [row["completion"] for row in completions(tmp_path / "1")] == [row["completion"] for row in completions(tmp_path / "100000")]
    for other in ("60", "100000"):
        second = load_file(tmp_path / other / "checkpoint-3" / "adapter_model.safetensors")
        assert max((first[key] - second[key]).abs().max().item() for key in first) < 1e-4  # Adam magnifies rounding of tiny gradients


def test_the_same_seed_gives_the_same_run_and_another_seed_another(script, finished, tmp_path, monkeypatch):
    once = finished(script, *THREE_STEPS)
    assert run(script, tmp_path / "again", *THREE_STEPS, monkeypatch=monkeypatch) == 0
    assert metrics(once) == metrics(tmp_path / "again") and completions(once) == completions(tmp_path / "again")
    assert_same_checkpoint(once / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    assert run(script, tmp_path / "other", "--max_steps", "1", "--eval_steps", "0", "--seed", "1", monkeypatch=monkeypatch) == 0
    told = completions(tmp_path / "other")
    assert told != completions(once)[: len(told)] and all(row["step"] == 1 for row in [*told, *completions(once)[: len(told)]])


def test_resume_after_kill_is_exact(script, tmp_path, monkeypatch):
    """Two steps = one step, kill -9 in the second, resume, the rest: adapter, optimiser, metrics, completions."""
    flags = ["--max_steps", "2", "--num_minibatches", "2", "--beta", "0.05", "--save_total_limit", "0"]
    assert run(script, tmp_path / "whole", *flags, monkeypatch=monkeypatch) == 0
    killed, real = tmp_path / "killed", Run.count

    def count(self, completions):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, completions)

    process = forked(script, killed, *flags, monkeypatch=monkeypatch, first=lambda: setattr(Run, "count", count))
    assert exit_code(process) == -signal.SIGKILL, output_of(killed).read_text()
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "rew')  # as a kill in the middle of a line leaves it
    assert [path.name for path in killed.glob("checkpoint-*")] == ["checkpoint-1"]
    assert run(script, killed, "--resume_from_checkpoint", "auto", monkeypatch=monkeypatch, quick=[]) == 0  # its flags come from the run
    assert metrics(killed) == metrics(tmp_path / "whole")
    assert completions(killed) == completions(tmp_path / "whole")
    assert_same_checkpoint(killed / "checkpoint-2", tmp_path / "whole" / "checkpoint-2")


def test_a_resumed_run_may_go_on_for_longer(script, finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished(script, *THREE_STEPS), tmp_path / "run")
    where = str(tmp_path / "run" / "checkpoint-2")
    assert run(script, tmp_path / "run", "--resume_from_checkpoint", where, "--max_steps", "4", monkeypatch=monkeypatch) == 0
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert "changed on resume: --max_steps 3 -> 4" in capsys.readouterr().out
    assert (tmp_path / "run" / "superseded-checkpoint-3").exists()  # of the future that was replaced: kept, and never resumed by itself


@pytest.mark.parametrize("number, fresh", [(signal.SIGINT, False), (signal.SIGTERM, True)], ids=["SIGINT", "SIGTERM, a fresh process"])
def test_a_signal_finishes_the_step_saves_and_exits(script, number, fresh, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    flags = ["--max_steps", "400", "--save_steps", "0", "--eval_steps", "0"]
    process = launch(script, folder, *flags) if fresh else forked(script, folder, *flags, monkeypatch=monkeypatch)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and "\n" in (folder / "metrics.jsonl").read_text(), process, folder)
    os.kill(process.pid, number)
    code, output = exit_code(process), output_of(folder).read_text()
    assert code == 128 + number and "stopped after step" in output and "Traceback" not in output
    last = metrics(folder)[-1]["step"]
    assert what_is_missing(folder / f"checkpoint-{last}") is None and f"--resume_from_checkpoint {folder / f'checkpoint-{last}'}" in output
    assert run(script, folder, "--resume_from_checkpoint", "auto", "--max_steps", str(last + 1), monkeypatch=monkeypatch, quick=[]) == 0
    assert [row["step"] for row in metrics(folder)] == list(range(1, last + 2))


def test_a_second_signal_ends_at_once(script, tmp_path, monkeypatch):
    """In the middle of a step that would take longer than the test waits."""
    folder = tmp_path / "run"

    def wait(self, completions):
        (tmp_path / "inside").touch()
        time.sleep(600)

    flags = ["--max_steps", "9", "--save_steps", "0", "--eval_steps", "0"]
    process = forked(script, folder, *flags, monkeypatch=monkeypatch, first=lambda: setattr(Run, "count", wait))
    wait_for((tmp_path / "inside").exists, process, folder)
    os.kill(process.pid, signal.SIGINT)
    wait_for(lambda: "once more: stop now" in output_of(folder).read_text(), process, folder)
    os.kill(process.pid, signal.SIGINT)
    assert exit_code(process) == 128 + signal.SIGINT
    assert not list(folder.glob("checkpoint-*"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_problems(script, tmp_path, monkeypatch):
    """From the second step on, one token's loss is NaN."""
    real, calls = Policy.logps, []

    def broken(self, batch, entropy=False):
        logps, entropies = real(self, batch, entropy)
        if torch.is_grad_enabled():
            calls.append(1)
            if (tmp_path / "run" / "checkpoint-1").exists():
                logps = logps * torch.where(torch.arange(logps.numel()).reshape(logps.shape) == 0, float("nan"), 1.0)
        return logps, entropies

    monkeypatch.setattr(Policy, "logps", broken)
    message = run(script, tmp_path / "run", "--max_steps", "6", "--eval_steps", "0", monkeypatch=monkeypatch)
    assert calls and "is not finite" in message and "arithmetic/train/" in message and "checkpoint-1" in message
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    assert what_is_missing(tmp_path / "run" / "checkpoint-1") is None
    (written,) = (tmp_path / "run").glob("nonfinite-step-*.json")
    assert all(row["problem"] in message or ", ..." in message for row in json.loads(written.read_text()))


@pytest.mark.parametrize("limit", [100_000, 1_200_000], ids=["adapter", "trainer state"])
def test_a_disk_without_room_stops_the_run_with_the_last_checkpoint_whole(script, limit, finished, tmp_path, monkeypatch):
    """Three checkpoints were written in full; then no file may grow past the limit, as the system enforces it."""
    folder = tmp_path / "run"
    shutil.copytree(finished(script, *THREE_STEPS), folder)
    process = forked(
        script,
        folder,
        *("--resume_from_checkpoint", str(folder / "checkpoint-3"), "--max_steps", "4"),
        monkeypatch=monkeypatch,
        quick=[],
        first=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    code, output = exit_code(process), output_of(folder).read_text()
    assert code == 1 and "Traceback" not in output
    assert "(File too large)" in output and "raise the limit for the size of a file (ulimit -f), and go on after step 3 with: " in output
    assert output.rstrip().endswith(f"--resume_from_checkpoint {folder / 'checkpoint-3'}")
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert what_is_missing(folder / "checkpoint-3") is None
    assert run(script, folder, "--resume_from_checkpoint", "auto", "--max_steps", "4", monkeypatch=monkeypatch, quick=[]) == 0
    assert [row["step"] for row in metrics(folder)] == [0, 1, 2, 3, 4]


def test_a_run_that_never_came_to_a_checkpoint_starts_over_with_the_same_command(script, tmp_path, monkeypatch, capsys):
    import common.verify.rewards

    real = common.verify.rewards.score

    def killed(*_):
        raise KeyboardInterrupt

    flags = ["--max_steps", "1", "--resume_from_checkpoint", "auto"]
    with monkeypatch.context() as patch:
        patch.setattr("common.verify.rewards.score", lambda *_: killed() if (tmp_path / "run" / "metrics.jsonl").exists() else real(*_))
        assert run(script, tmp_path / "run", *flags, monkeypatch=patch) == 130
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0]
    assert run(script, tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    assert "a new run starts" in capsys.readouterr().out
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1]


def test_rows_after_the_checkpoint_are_cut_off_wherever_they_end(script, finished, tmp_path, monkeypatch):
    shutil.copytree(finished(script, *THREE_STEPS), tmp_path / "run")
    row = {"step": 3, "completion": "a\u20285\u2028b\u0085c"}
    with open(tmp_path / "run" / "completions.jsonl", "ab") as file:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n" + '{"step": 3, "completion": "\u03c0'.encode()[:-1])
    assert run(script, tmp_path / "run", "--resume_from_checkpoint", "auto", "--max_steps", "4", monkeypatch=monkeypatch, quick=[]) == 0
    lines = (tmp_path / "run" / "completions.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 4 * 16 + 1 and json.loads(lines[3 * 16])["step"] == 4


def test_two_runs_of_the_same_second_get_two_folders(script, tmp_path, monkeypatch):
    import time as clock

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clock, "strftime", lambda form: "20260101-000000")
    module = importlib.import_module(script)
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *QUICK, "--max_steps", "1", "--eval_steps", "0"])
        run_script(module.train, parse_command_line(module.Config, module.__file__))
    first, second = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert second == f"{first}-2"


def test_folders_that_cannot_be_used_are_refused_before_anything_is_loaded(script, finished, tmp_path, monkeypatch):
    from common.policy import load

    other = finished(script, *THREE_STEPS)
    monkeypatch.setattr(load, "model_folder", lambda config: pytest.fail("a model was looked for"))
    assert "holds another run" in run(script, other, monkeypatch=monkeypatch)
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
    flags = ["--lora_r", "8", "--max_steps", "2", "--learning_rate", "0.01", "--eval_steps", "0"]
    assert run(script, tmp_path / "a", *flags, monkeypatch=monkeypatch) == 0
    flags = ["--adapter", str(tmp_path / "a" / "checkpoint-2"), "--beta", "0.1", "--num_minibatches", "1", "--max_steps", "1"]
    assert run(script, tmp_path / "b", *flags, "--eval_steps", "0", monkeypatch=monkeypatch) == 0
    record = json.loads((tmp_path / "b" / "config.json").read_text())
    assert record["derived"]["lora_r"] == 8 and "lora_r" not in record["given"]
    assert metrics(tmp_path / "b")[0]["kl"] == pytest.approx(0.0, abs=1e-6)  # the reference is the adapter that the run started from
    first, second = (load_file(tmp_path / path / "adapter_model.safetensors") for path in ("a/checkpoint-2", "b/checkpoint-1"))
    assert first.keys() == second.keys()
