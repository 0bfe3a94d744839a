"""Signals at every moment: what is in hand is finished or nothing was begun, and a line says how to go on."""

import asyncio
import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers import QUICK, ROOT, exit_code, forked, metrics, output_of, run, wait_for

import common.verify.rewards
from common.interrupt import SIGNALS, Stop, Stopped, command, take_signals
from common.run.resume import what_is_missing
from common.run.run import Run

SOON = [number for number in SIGNALS if number.name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")]
SHORT = ("--eval_steps", "0", "--save_steps", "0")
REWARD = "def long(completion, problem):\n    return float(len(completion))\n"


@pytest.mark.parametrize("number", SOON, ids=lambda number: number.name)
def test_a_warning_finishes_the_step_saves_and_says_how_to_go_on(number, tmp_path, monkeypatch):
    real = Run.count

    def count(self, completions):
        if self.step == 2:
            os.kill(os.getpid(), number)
        real(self, completions)

    folder = tmp_path / "run"
    process = forked("train_grpo", folder, "--max_steps", "9", *SHORT, monkeypatch=monkeypatch, first=lambda: setattr(Run, "count", count))
    code, output = exit_code(process), output_of(folder).read_text()
    assert code == 128 + number and "stopping after this step" in output and "Traceback" not in output
    assert what_is_missing(folder / "checkpoint-2") is None and [row["step"] for row in metrics(folder)] == [1, 2]
    again = command(ROOT / "train_grpo.py", "--resume_from_checkpoint", str(folder / "checkpoint-2"))
    assert f"stopped after step 2; go on with: {again}\n" in output


def test_the_command_works_when_it_is_pasted(tmp_path):
    """From another folder, by a relative path with a space, with a reward whose name has one too."""
    (tmp_path / "my rewards.py").write_text(REWARD)
    script = os.path.relpath(ROOT / "train_grpo.py", tmp_path)
    flags = [*QUICK, "--reward", "my rewards.py:long", "--output_dir", "a run's folder", "--max_steps", "400", *SHORT]
    with open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen([sys.executable, "-u", script, *flags], cwd=tmp_path, stdout=output, stderr=output)
    folder = tmp_path / "a run's folder"
    wait_for(lambda: (folder / "metrics.jsonl").exists(), process, tmp_path / "output")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 128 + signal.SIGUSR1
    line = (tmp_path / "output.txt").read_text().partition("go on with: ")[2].splitlines()[0]
    last = metrics(folder)[-1]["step"]
    assert shlex.split(line)[:3] == [sys.executable, "-u", script]
    done = subprocess.run(f"{line} --max_steps {last + 1}", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in metrics(folder)] == list(range(1, last + 2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_signal_in_evaluation_0_says_what_is_lost_and_the_command_starts_again(number, tmp_path, monkeypatch):
    real = common.verify.rewards.score

    def score(problems, completions):
        if not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            os.kill(os.getpid(), number)
            time.sleep(9)
        return real(problems, completions)

    folder = tmp_path / "run"
    monkeypatch.setattr(common.verify.rewards, "score", score)
    process = forked("train_grpo", folder, "--max_steps", "1", monkeypatch=monkeypatch)
    code, output = exit_code(process), output_of(folder).read_text()
    assert code == 128 + number and "Traceback" not in output
    said, _, line = output.partition(f"stopped by {number.name} before the first step was done: ")[2].partition("start again with: ")
    assert "evaluation 0" in said and {path.name for path in folder.iterdir()} <= {"config.json", ".config.json"}
    again = shlex.split(line.splitlines()[0])[2:]
    assert run("train_grpo", folder, *again, monkeypatch=monkeypatch, quick=[]) == 0
    assert [row["step"] for row in metrics(folder)] == [0, 1]


def test_a_signal_while_the_model_is_loaded_leaves_no_folder(tmp_path, monkeypatch):
    import train_grpo

    monkeypatch.setattr(train_grpo, "load_policy", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(9))
    folder = tmp_path / "run"
    process = forked("train_grpo", folder, monkeypatch=monkeypatch)
    code, output = exit_code(process), output_of(folder).read_text()
    assert code == 128 + signal.SIGTERM and "start again with: " in output and "Traceback" not in output and not folder.exists()


@pytest.mark.parametrize("script, package", [("train_ppo.py", "transformers"), ("eval.py", "torch"), ("-m common.policy", "peft")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_during_the_imports_is_no_stack_trace(script, package, number, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"import os, time\nos.kill(os.getpid(), {number})\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, *script.split()], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"\nstopped by {number.name}\n")


def test_what_ends_at_once_is_a_person_who_insists(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for signals, ends in [
        ([signal.SIGHUP, signal.SIGHUP, signal.SIGHUP], False),  # of the shell, and of the terminal
        ([signal.SIGXCPU, signal.SIGXCPU], False),  # every second, from the soft limit on
        ([signal.SIGUSR1, signal.SIGTERM], False),  # a scheduler's warning, and its end
        ([signal.SIGUSR1, signal.SIGUSR1], True),
        ([signal.SIGTERM, signal.SIGTERM], True),
        ([signal.SIGTERM, signal.SIGINT], True),
        ([signal.SIGINT, signal.SIGINT], True),
    ]:
        ended.clear()
        with pytest.raises(Stopped), Stop():  # as in a script
            with Stop("this step") as stop:
                for number in signals:
                    signal.raise_signal(number)
            assert stop.number == signals[0] and bool(ended) == ends and set(ended) <= {128 + signals[-1]}
            signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Stop("this step"):  # in a notebook, which goes on
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_a_library_has_caught_and_dropped_stops_before_the_first_step():
    with pytest.raises(Stopped) as end, Stop():
        with contextlib.suppress(BaseException):  # as some library does while it is imported or loads a model
            signal.raise_signal(signal.SIGUSR1)
        with Stop("this step"):
            pytest.fail("a step was begun")
    assert end.value.number == signal.SIGUSR1


def test_handlers_are_put_back_and_what_was_ignored_stays_ignored():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with Stop("this step"):
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert all(signal.getsignal(number) not in (before[number], signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGUSR2))
            assert signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL and signal.getsignal(signal.SIGCONT) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])
    assert before == {number: signal.getsignal(number) for number in SIGNALS}


def test_another_thread_leaves_the_signals_alone():
    before, seen = {number: signal.getsignal(number) for number in SIGNALS}, []

    def work():
        with Stop("this step"):
            seen.append(take_signals(lambda *_: None) == {} and before == {number: signal.getsignal(number) for number in SIGNALS})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_a_run_in_another_thread_beside_a_running_loop(tmp_path):
    """As in a notebook, or in an actor of Ray."""
    import train_grpo

    sizes = {"problems_per_step": 4, "num_generations": 4, "eval_problems": 8, "eval_steps": 0, "max_steps": 1}
    before = {number: signal.getsignal(number) for number in SIGNALS}

    async def both():
        train_grpo.train(train_grpo.Config(dataset=QUICK[1], output_dir=str(tmp_path / "a"), **sizes))
        await asyncio.to_thread(train_grpo.train, train_grpo.Config(dataset=QUICK[1], output_dir=str(tmp_path / "b"), **sizes))

    asyncio.run(both())
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != []
    assert before == {number: signal.getsignal(number) for number in SIGNALS}
    assert json.loads((tmp_path / "b" / "config.json").read_text())["flags"]["learning_rate"] == 1e-3


def test_a_user_without_a_name_and_without_a_home(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import pwd\ndef unknown(*_): raise KeyError('uid not found')\npwd.getpwuid = unknown\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    flags = [*QUICK[2:], "--eval_steps", "0", "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    command = [sys.executable, "train_grpo.py", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and [row["step"] for row in metrics(tmp_path / "run")] == [1]
    command += ["--dataset", "arithmetic:warm_steps=2", "--output_dir", str(tmp_path / "other")]  # a model that has to be made
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: there is no home folder for the cache of models: name a folder in VINERY_CACHE\n"


def test_nothing_reads_the_input(tmp_path):
    """A script and its reward, in a loop of a shell that reads a list."""
    code = "import subprocess, sys\ndef f(c, p):\n    return len(sys.stdin.read() + subprocess.getoutput('cat'))\n"
    (tmp_path / "reads.py").write_text(code)
    flags = [*QUICK, "--eval_steps", "0", "--max_steps", "1", "--reward", f"{tmp_path / 'reads.py'}:f"]
    command = shlex.join([sys.executable, "train_grpo.py", *flags, "--output_dir"])
    loop = f"while read -r name; do {command} {tmp_path}/$name > /dev/null; echo done $name; done"
    done = subprocess.run(["sh", "-c", loop], cwd=ROOT, input="one\ntwo\n", capture_output=True, text=True)
    assert done.stdout == "done one\ndone two\n", done.stderr
    assert all(row["reward"] == 0 for name in ("one", "two") for row in metrics(tmp_path / name))


@pytest.mark.parametrize("nohup", [False, True], ids=["a terminal's end", "nohup"])
def test_a_terminal_that_goes_away(nohup, tmp_path, monkeypatch):
    """The run is the terminal's first process, so that the kernel sends it SIGHUP. Later each write to the terminal fails with EIO."""
    folder = tmp_path / "run"
    child, terminal = pty.fork()
    if child == 0:
        try:
            sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
            if nohup:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            code = run("train_grpo", folder, "--max_steps", "6", *SHORT, monkeypatch=monkeypatch)
            os._exit(code if isinstance(code, int) else 99)
        except BaseException:
            os._exit(98)
    shown = b""
    while b"step    2" not in shown:
        shown += os.read(terminal, 2**16)
    os.close(terminal)
    code, last = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), metrics(folder)[-1]["step"]
    assert code == (0 if nohup else 128 + signal.SIGHUP) and (last == 6 if nohup else 2 <= last < 6)
    assert what_is_missing(folder / f"checkpoint-{last}") is None
