"""The process of a reward: what it writes, prints, leaves behind, takes and knows."""

import multiprocessing
import os
import re
import select
import signal
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import hostile.rewards as hostile
import pytest
from helpers import exit_code, forked, metrics, run, wait_for
from processes import gone

from common.errors import UserError
from common.records import Completion, Problem
from common.verify import reward_process, reward_worker
from common.verify.rewards import CustomReward

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
STRAY = "its process wrote something that is no answer to this call"


def batch(texts):
    return [Problem(f"p{i}", "?", (), "7") for i in range(len(texts))], [Completion([1], [0.0], "stop", text) for text in texts]


def load(case, folder, **options):
    return CustomReward(f"{getattr(hostile, f'make_{case}')(folder)}:reward", **{"workers": 1, "failed": -9.0, **options})


# ---- the run's signals ----


@linux
def test_signals_that_a_scheduler_sends_to_all_processes_cost_no_reward(tmp_path):
    (tmp_path / "slow.py").write_text("import time\n\ndef reward(completion, problem):\n    time.sleep(0.5)\n    return 1.0\n")
    reward = CustomReward(f"{tmp_path / 'slow.py'}:reward", 10.0, 1, failed=-9.0)
    guard = reward.workers[0].process.pid
    with open(f"/proc/{guard}/task/{guard}/children") as file:
        both = [guard, *map(int, file.read().split())]

    def send():
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
            for process in both:
                os.kill(process, getattr(signal, name))

    timer = threading.Timer(0.2, send)
    timer.start()
    assert reward(*batch(["a", "b"])).tolist() == [1.0, 1.0] and not any(reward.failures.values())
    timer.join()
    del reward
    assert all(gone(process) for process in both)


# ---- the channel ----


@pytest.mark.parametrize(
    "case, cause",
    [
        ("writes_to_every_descriptor", STRAY),
        ("writes_half_a_line", STRAY),
        ("forges_an_answer", STRAY),
        ("writes_deep_json", STRAY),
        ("answers_without_end", STRAY),
        ("answers_a_byte_at_a_time", "no result within 1 s"),
        ("closes_every_descriptor", "its process ended with code 1"),
        ("reads_the_calls", "no result within 1 s"),
        ("stops_itself", "no result within 1 s"),
        ("kills_its_guard", "its process ended with code -9"),
        ("long_message", "ValueError: xxx"),
        ("message_that_raises", "Bad: its message cannot be read (reward.py, line"),
        ("message_that_steers_the_terminal", r"ValueError: \x1b]0;owned\x07 \u202e two lines"),
        ("takes_all_memory", "MemoryError"),
        ("deep_recursion", "RecursionError"),
    ],
)
def test_one_call_fails_and_all_others_keep_their_scores(case, cause, tmp_path, capsys):
    reward = load(case, tmp_path, seconds=1.0)
    assert reward(*batch(["good", "bad", "good", "good"])).tolist() == [1.0, -9.0, 1.0, 1.0]
    shown = capsys.readouterr().out
    assert f"the reward of p1 failed and is -9: reward: {cause}" in shown and len(shown) < 2000
    assert sum(reward.failures.values()) == 1 and reward(*batch(["good"])).tolist() == [1.0]


@pytest.mark.parametrize("case", ["lets_a_child_write", "forks_and_both_return", "leaves_daemons"])
def test_what_a_child_does_never_reaches_the_run(case, tmp_path):
    reward = load(case, tmp_path)
    assert reward(*batch(["good", "bad", "good"])).tolist() == [1.0, 0.5, 1.0] and not sum(reward.failures.values())


def test_an_answer_to_a_call_that_is_over_belongs_to_no_other(tmp_path):
    """The function answers its own call by itself, with the right number, and returns as well: neither moves the later ones."""
    code = """
        import os, sys
        def reward(completion, problem):
            if completion == "twice":
                number = sys._getframe(1).f_locals["job"]["id"]
                os.write(101, b'{"id": "%s", "answers": [{"score": 5.0}]}\\n' % number.encode())
            return float(completion) if completion.isdigit() else 0.0
        """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    reward = CustomReward(f"{tmp_path}/mine.py:reward", workers=1, failed=-9.0)
    found = reward(*batch(["1", "twice", "2", "3", "4"])).tolist()
    assert found[0] == 1.0 and found[1] in (5.0, -9.0) and found[2] in (2.0, -9.0) and found[3:] == [3.0, 4.0]


def test_a_call_that_the_process_does_not_read_has_its_time_limit(tmp_path, capsys):
    """More than a pipe holds, and a function that lets nobody else run."""
    code = "import signal, os\nasync def reward(completion, problem):\n    os.kill(os.getpid(), signal.SIGSTOP)"
    (tmp_path / "mine.py").write_text(code)
    reward = CustomReward(f"{tmp_path}/mine.py:reward", seconds=0.3, workers=1)
    with pytest.raises(UserError, match="all of the first 20 calls failed"):
        reward(*batch(["x" * 300_000] * 20))


@pytest.mark.parametrize("value, score", hostile.VALUES.items())
def test_a_value_is_its_number_or_a_failure(value, score, odd):
    assert odd(*batch([value, "good"])).tolist() == [-9.0 if score is None else score, 1.0]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return load("odd_values", tmp_path_factory.mktemp("odd"))


# ---- loading ----


def test_a_slow_reload_shifts_no_answer_and_a_failed_one_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reward_process, "LOAD_SECONDS", 1.0)
    code = f"""
        import os, time
        time.sleep({{"slow": 1.5, "later": 0.5}}.get(open({str(tmp_path / "how")!r}).read(), 0))
        def reward(completion, problem):
            if completion == "die": os._exit(3)
            return float(completion)
        """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    (tmp_path / "how").write_text("")
    reward = CustomReward(f"{tmp_path}/mine.py:reward", seconds=0.4, workers=1, failed=-9.0)
    (tmp_path / "how").write_text("later")  # longer than the limit of a call
    assert reward(*batch(["1", "die", "2", "3"])).tolist() == [1.0, -9.0, 2.0, 3.0]
    (tmp_path / "how").write_text("slow")
    assert reward(*batch(["1", "die", "2", "3"])).tolist() == [1.0, -9.0, -9.0, -9.0]
    assert "its process does not start again: it was not ready after 1 s" in capsys.readouterr().out
    (tmp_path / "how").write_text("")
    reward.workers[0].restart()
    assert reward(*batch(["4", "5"])).tolist() == [4.0, 5.0]


def test_classes_of_the_file_can_be_pickled_in_pools_of_every_kind(tmp_path):
    code = """
        from __future__ import annotations
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from dataclasses import dataclass

        @dataclass
        class Pair:
            text: str
            number: float | None = None

        def count(pair): return Pair(pair.text, len(pair.text))

        def reward(completion, problem):
            with ProcessPoolExecutor(1, multiprocessing.get_context(problem.question)) as pool:
                return pool.submit(count, Pair(completion)).result().number
        """
    for name in ("judge.py", "json.py"):  # a name of its own, and one that the standard library has too
        (tmp_path / name).write_text(textwrap.dedent(code))
        reward = CustomReward(f"{tmp_path}/{name}:reward", seconds=60.0, workers=1, failed=-9.0)
        kinds = ["fork", "spawn", "forkserver"] if name == "judge.py" else ["fork"]
        problems = [Problem(kind, "", (), "", kind) for kind in kinds]
        assert reward(problems, batch(["four"] * len(kinds))[1]).tolist() == [4.0] * len(kinds)


# ---- prints ----


def test_prints_are_shown_up_to_a_limit_and_cannot_steer_the_terminal(tmp_path, capsys):
    reward = load("prints_without_measure", tmp_path, seconds=60.0)
    assert reward(*batch(["good", "bad"])).tolist() == [1.0, 0.5]
    shown = capsys.readouterr().out
    assert r"reward: \x1b[2Jxxx" in shown and "the reward prints more than 20 lines at a time" in shown
    assert len(shown) < 2000 and "\x1b" not in shown
    code = "import sys\nprint('loaded')\ndef f(c, p):\n    print(c)\n    print('seen', file=sys.stderr)\n    return 1"
    (tmp_path / "b.py").write_text(code)
    CustomReward(f"{tmp_path}/b.py:f", workers=1)(*batch(["one", "two"]))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("f: ")] == ["f: loaded", "f: one", "f: seen", "f: two", "f: seen"]


# ---- processes ----


def numbers(folder):
    return [int(line) for line in (folder / "pids").read_text().split()]


@linux
@pytest.mark.parametrize("how", ["hang", "die", "end of the run"])
def test_a_worker_takes_along_whatever_it_has_started(how, tmp_path):
    reward = load("leaves_daemons", tmp_path, seconds=1.0)
    assert reward(*batch([how, "good"])).tolist() == [0.5 if how == "end of the run" else -9.0, 1.0]
    assert len(numbers(tmp_path)) == 2
    if how == "end of the run":
        del reward
    assert all(map(gone, numbers(tmp_path)))


@linux
def test_many_processes_end_with_the_worker(tmp_path):
    reward = load("forks_in_every_direction", tmp_path)
    assert reward(*batch(["bad", "good"])).tolist() == [-9.0, 1.0]
    assert len(numbers(tmp_path)) == 64 and all(map(gone, numbers(tmp_path)))


@linux
def test_a_signal_ends_a_run_whose_reward_does_not_answer(tmp_path, monkeypatch):
    """The step in hand is finished after the time limit, and saved."""
    file = hostile.make_answers_a_byte_at_a_time(tmp_path)
    first = f"open({str(tmp_path / 'n')!r}, 'a').write('.')\n    if os.path.getsize({str(tmp_path / 'n')!r}) < 4"
    file.write_text(file.read_text().replace("if completion == 'good'", first))
    flags = ["--reward", f"{file}:reward", "--reward_workers", "1", "--reward_timeout", "2", "--eval_steps", "0", "--save_steps", "0"]
    flags += ["--problems_per_step", "2", "--num_generations", "2"]
    process = forked("train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch)
    wait_for(lambda: (tmp_path / "n").exists() and len((tmp_path / "n").read_text()) == 4, process, tmp_path / "run")
    os.kill(process.pid, signal.SIGTERM)
    assert exit_code(process) == 143 and (tmp_path / "run" / "checkpoint-1").is_dir()


@linux
def test_a_stopped_guard_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(reward_process, "SWEEP_SECONDS", -1.9)
    reward = load("stops_its_guard", tmp_path, seconds=0.5)
    guard = reward.workers[0].process.pid
    assert reward(*batch(["bad", "good"])).tolist() == [-9.0, 1.0] and gone(guard)


@linux
def test_everything_ends_when_the_run_is_killed(tmp_path):
    """Also while the function never lets another thread run, and if a process of the run outlives it with all its descriptors."""
    (tmp_path / "spins.py").write_text("import re\n" + textwrap.dedent(f"""
        import os, subprocess
        def reward(completion, problem):
            pids = [os.getpid(), os.getppid(), subprocess.Popen(["sleep", "1000"]).pid]
            open("{tmp_path}/new", "w").write(" ".join(map(str, pids)))
            os.rename("{tmp_path}/new", "{tmp_path}/pids")
            re.match("(a+)+$", "a" * 64 + "b")
        """))

    def work():
        reward = CustomReward(f"{tmp_path}/spins.py:reward", seconds=60.0, workers=1)
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        reward(*batch(["x"]))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    for _ in range(600):
        if (tmp_path / "pids").exists() or not process.is_alive():
            break
        time.sleep(0.05)
    pids = numbers(tmp_path)
    process.kill()
    process.join()
    assert len(pids) == 3 and all(map(gone, pids))


# ---- the environment ----


def test_keys_are_kept_from_the_function_unless_asked(tmp_path, monkeypatch, capsys):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    (tmp_path / "a").mkdir()
    assert load("tells_the_environment", tmp_path / "a")(*batch(["bad"])).tolist() == [0.0]
    shown = capsys.readouterr().out
    assert "does not get the environment variables" in shown and "HF_TOKEN" in shown and "VINERY_REWARD_ENV=NAME" in shown
    monkeypatch.setenv("VINERY_REWARD_ENV", "HF_TOKEN, MY_PASSWORD")
    (tmp_path / "b").mkdir()
    assert load("tells_the_environment", tmp_path / "b")(*batch(["bad"])).tolist() == [2.0]


HARMLESS = ["PATH", "HOME", "TOKENIZERS_PARALLELISM", "PYTHONHASHSEED", "HF_HOME", "PWD", "KEYBOARD", "JUDGE_KEY", "AWS_REGION"]


@pytest.mark.parametrize("name", HARMLESS)
def test_other_variables_are_handed_on(name, monkeypatch):
    monkeypatch.setenv(name, "x")
    assert reward_process.environment()[0][name] == "x"


def test_the_clock_of_an_async_function_rests_while_its_process_is_stopped(monkeypatch):
    seconds = iter([0.0, 1.0, 2.5, 7202.5, 7203.0])
    monkeypatch.setattr(reward_worker, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    clock = reward_worker.resting_clock()
    assert [clock() for _ in range(4)] == [1.0, 2.5, 2.5, 3.0]


def test_a_job_that_is_stopped_for_hours_in_the_middle_of_a_call_has_no_timeout(tmp_path, monkeypatch):
    """As by SIGSTOP to all its processes: the run looks at the clock, is stopped, and goes on."""
    (tmp_path / "slow.py").write_text("import time\n\ndef reward(completion, problem):\n    time.sleep(0.5)\n    return 1.0\n")
    reward = CustomReward(f"{tmp_path / 'slow.py'}:reward", 5.0, 1, failed=-9.0)
    began, poll, stopped = time.monotonic, select.poll, []

    class Poll:
        def __init__(self):
            self.events = poll()

        def __getattr__(self, name):
            return getattr(self.events, name)

        def poll(self, milliseconds):
            stopped.append(7200 * (len(stopped) % 2))
            return self.events.poll(min(milliseconds, 100))

    for worker in reward.workers:
        own, worker.events = worker.events, Poll()
        for pipe in (worker.answers, worker.prints):
            own.unregister(pipe)
            worker.events.register(pipe, select.POLLIN)
    monkeypatch.setattr(reward_process, "time", SimpleNamespace(monotonic=lambda: began() + sum(stopped)))
    assert reward(*batch(["a", "b"])).tolist() == [1.0, 1.0] and len(stopped) > 4


# ---- far scores, and too many failures ----


def test_a_score_far_from_all_others_is_noted_once(tmp_path, capsys):
    reward = load("far_from_all_others", tmp_path, failed=None)
    problems, completions = batch(["a", "b", "low", "far", "c"])
    completions.append(Completion([1], [0.0], "length", ""))
    found = reward([*problems, problems[0]], completions).tolist()
    assert found[2:4] == pytest.approx([-1e30, 1e30]) and found[5] == 0.0  # it counts as it is, but not as the lowest
    reward(*batch(["far", "a"]))
    assert capsys.readouterr().out.count("far from the others") == 1
    (tmp_path / "b.py").write_text("def f(completion, problem): return float(completion)")
    reward = CustomReward(f"{tmp_path}/b.py:f", workers=1)
    for texts in (["0", "0", "0", "5"], ["1"], ["-5000", "4000", "3000"], ["2500", "0.001", "90000"]):
        reward(*batch(texts))
    assert "far" not in capsys.readouterr().out


def test_a_reward_of_another_library_ends_the_run_before_it_learns(tmp_path, monkeypatch):
    file = hostile.make_of_another_library(tmp_path)
    for steps in ("0", "2"):
        said = run("train_grpo", tmp_path / steps, "--reward", f"{file}:reward", "--eval_steps", steps, monkeypatch=monkeypatch)
        assert "it takes (prompts, completions, answer, **kwargs), and is called with (completion, problem): missing a required" in said
        assert "A reward is `def f(completion, problem)`" in said and not list((tmp_path / steps).glob("checkpoint*"))


def test_a_reward_that_begins_to_fail_ends_the_run_and_keeps_its_checkpoints(tmp_path, monkeypatch):
    file = hostile.make_fails_after_a_while(tmp_path)
    flags = ["--reward", f"{file}:reward", "--reward_workers", "1", "--eval_steps", "0"]
    said = run("train_grpo", tmp_path / "run", *flags, monkeypatch=monkeypatch)
    assert re.search(r"\d+ of the last (7\d|80) calls failed, more than half. The last failure: ConnectionError: the server has gone", said)
    rows, kept = metrics(tmp_path / "run"), sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert [f"checkpoint-{row['step']}" for row in rows[-2:]] == kept


def test_outages_that_pass_do_not_end_the_run(tmp_path):
    code = """
        def reward(completions, problems):
            if "down" in completions: raise ConnectionError("the server has gone")
            return [1.0] * len(completions)
        """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    reward = CustomReward(f"{tmp_path}/mine.py:reward")
    for state in ("up", "down", "up", "down", "up", "up", "down"):
        reward(*batch([state] * 8))
    reward(*batch(["up"] * 8))
    reward(*batch(["down"] * 8))
    with pytest.raises(UserError, match="24 of the last 40 calls failed"):
        reward(*batch(["down"] * 8))
