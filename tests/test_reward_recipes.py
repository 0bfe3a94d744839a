"""The rewards in examples/rewards/ and on docs/rewards.md: what they score, and two steps of the embedded model with each."""

import importlib.util
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import hostile.rewards as hostile
import pytest
from helpers import ROOT, metrics, run

from common.config import CommonConfig
from common.problems.data import load_rows
from common.records import Completion, Problem
from common.tiny.model import tiny_model
from common.tiny.task import Arithmetic, Generator
from common.verify.reward_worker import Completion as Text
from common.verify.rewards import CustomReward

FOLDER = ROOT / "examples" / "rewards"
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs landlock and seccomp")
# two steps of the model that ships with the project; no completion is cut off
STEPS = ["--max_steps", "2", "--problems_per_step", "2", "--num_generations", "4", "--eval_problems", "4"]


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(content, tokens=10):
    completion = Text(content)
    completion.tokens, completion.finish_reason = tokens, "stop"
    return completion


def train(folder, monkeypatch, reward, *flags):
    """Two steps with a reward. Returns the rows of metrics.jsonl, after a look that no call failed."""
    assert run("train_grpo", folder, "--reward", reward, *flags, monkeypatch=monkeypatch, quick=STEPS) == 0
    rows = metrics(folder)
    assert rows[-1]["reward/errors"] == rows[-1]["reward/timeouts"] == 0
    assert {"eval/reward", "eval/reward_greedy"} <= set(rows[0]) and "reward" in rows[1]
    return rows


# ---- length and format, several rewards ----


def test_shaping(tmp_path, monkeypatch):
    shaped, problem = recipe("shaping").shaped, SimpleNamespace(answer="7")
    scores = [shaped(text(t, n), problem) for t, n in [("#### 7", 0), (r"so \boxed{7}.", 256), ("#### 8", 512), ("it is eight", 99)]]
    assert scores == pytest.approx([1.1, 1.0, 0.1, 0.0])
    rows = train(tmp_path / "run", monkeypatch, f"{FOLDER}/shaping.py:shaped", "--reward_failed", "0")
    assert 0 < rows[1]["reward"] < 1.1


def test_several(tmp_path, monkeypatch):
    several, problem = recipe("several").several, SimpleNamespace(answer="7")
    scores = [several(text(t), problem) for t in ("a\nb\n#### 7", "a\na\n#### 8", "")]
    assert scores == pytest.approx([1.2, 0.1 + 0.1 * 2 / 3, 0.0])
    assert train(tmp_path / "run", monkeypatch, f"{FOLDER}/several.py:several")[0]["eval/reward_greedy"] > 0.1


def test_any_of(tmp_path, monkeypatch, capsys):
    any_of, two = recipe("any_of").any_of, SimpleNamespace(row={"answer": ["1/2", "x = 3"]})
    assert [any_of(f"\\boxed{{{said}}}", two) for said in ("0.5", "3", "4", "1/2, 3")] == [1, 1, 0, 0]
    assert [any_of(f"\\boxed{{{said}}}", SimpleNamespace(row={"answer": "7"})) for said in ("7", "8")] == [1, 0]
    rows = [{"question": f"Eva has {i} figs. How many?", "answer": [str(i), str(i + 1)]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = load_rows(CommonConfig(dataset=str(tmp_path / "rows.jsonl")))[0]
    assert {row.answer for row in both} <= {f"{i}, {i + 1}" for i in range(20)}
    assert "such a list is one answer, and a completion must give all its parts" in capsys.readouterr().out
    load_rows(CommonConfig(dataset=str(tmp_path / "rows.jsonl"), reward=f"{FOLDER}/any_of.py:any_of"))
    assert "list" not in capsys.readouterr().out
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"answer": row["answer"][:1]}) + "\n" for row in rows))
    load_rows(CommonConfig(dataset=str(tmp_path / "rows.jsonl")))  # one entry: both readings are the same
    assert "list" not in capsys.readouterr().out


SAID = [("18 - 15 = 3", 1), ("It is 3.", 1), ("3 or 4", 0), ("none", 0), ("", 0), ("\\boxed{3}, not 4", 1), ("-3", 0), ("3.0", 1)]


@pytest.mark.parametrize("said, score", SAID)
def test_last_number(said, score):
    assert recipe("last_number").last_number(said, SimpleNamespace(answer="3")) == score


def test_the_functions_on_the_page(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "rewards.md").read_text()
    assert len(page.splitlines()) <= 150
    blocks = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", page, re.DOTALL))
    assert set(blocks) == {"concise", "shortest"}
    for name, code in blocks.items():
        (tmp_path / f"{name}.py").write_text(code)
        train(tmp_path / name, monkeypatch, f"{tmp_path}/{name}.py:{name}")
    problems = [Problem(name, "", (), "7") for name in "aaab"]
    completions = [Completion([0] * n, [0.0] * n, "stop", f"#### {answer}") for n, answer in ((3, 7), (5, 7), (2, 8), (9, 7))]
    reward = CustomReward(f"{tmp_path}/shortest.py:shortest")
    assert reward(problems, completions).tolist() == pytest.approx([1.2, 1.0, 0.0, 1.2])
    named = set(re.findall(r"--reward examples/rewards/(\S+)", page))
    files = {path.stem: path.read_text() for path in FOLDER.glob("*.py")}
    assert {name.partition(".py:")[0] for name in named} == set(files)
    assert all(f"def {function}(" in files[name] for name, function in (entry.split(".py:") for entry in named))


# ---- unit tests ----

ADD = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    "program, share",
    [
        (ADD, 1.0),
        ("from __future__ import annotations\n" + ADD, 1.0),
        (ADD.replace("+", "-"), 1 / 3),  # add(0, 0) is right
        ("def add(a, b) return", 0.0),
        (ADD + "1 / 0", 0.0),
        (ADD + "import os; os._exit(0)", 0.0),  # the exit code of a program that is right
        ("def add(a, b):\n    import os; os._exit(0)", 0.0),
        (ADD + "x = bytearray(2 ** 31)", 0.0),  # over the limit of memory
        (ADD + "print('x' * 2 ** 21, flush=True)", 0.0),  # over the limit of output
    ],
)
def test_a_program_gets_the_share_of_its_tests(program, share):
    tests = ["assert add(2, 3) == 5", "assert add(0, 0) == 0", "assert add('a', 'b') == 'ab'"]
    assert recipe("unit_tests").share_passed(program, tests) == pytest.approx(share)


def test_programs_that_do_not_end():
    module = recipe("unit_tests")
    module.SECONDS = 0.7
    began = time.monotonic()
    assert module.share_passed("while True: pass", ["assert True"]) == 0.0
    loops = "def f(x):\n    while x: pass\n    return 1"
    assert module.share_passed(loops, ["assert f(0) == 1", "assert f(1) == 1"]) == 0.5  # the tests before the endless one count
    assert time.monotonic() - began < 20


def test_the_last_code_block_is_the_program():
    program_of = recipe("unit_tests").program_of
    assert program_of("First:\n```python\nx = 1\n```\nBetter:\n```\nx = 2\n```\nDone.") == "x = 2\n"
    assert program_of("x = 3") == "x = 3"
    completion = text("```python\n" + ADD + "```")
    assert recipe("unit_tests").unit_tests(completion, SimpleNamespace(row={"tests": ["assert add(1, 1) == 2", "assert add"]})) == 1.0


@pytest.mark.parametrize("name", hostile.PROGRAMS)
def test_a_program_passes_no_test_but_by_the_right_result(name, monkeypatch):
    module = recipe("unit_tests")
    monkeypatch.setattr(module, "SECONDS", 1)
    tests = ["assert add(17, 25) == 42", "assert abs(add(1, 1) - 2) < 0.1", "assert len([add(1, 2)]) == 3"]
    assert module.passed(hostile.PROGRAMS[name], tests) in ([], [False] * 3)


@linux
@pytest.mark.parametrize("name", hostile.ESCAPES)
def test_a_program_does_not_get_out(name, tmp_path, monkeypatch):
    module = recipe("unit_tests")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    home = hostile.make_programs_that_try_to_get_out(tmp_path)
    before = {path: path.read_text() for path in home.glob("*") if path.is_file()}
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = {"home": str(home), "port": server.getsockname()[1], "worker": os.getpid()}
        found = module.passed(hostile.ESCAPES[name].format(**words), ["assert out()", "assert 1"])
    assert found == ([] if name in ("daemon", "many_files") else [False, True])  # []: the program itself failed
    assert {path: path.read_text() for path in home.glob("*") if path.is_file()} == before
    assert not list((tmp_path / "temporary").iterdir())


@linux
def test_what_a_machine_does_not_enforce_is_said(monkeypatch, capsys):
    module = recipe("unit_tests")
    module.say_what_is_open()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(module, "passed", lambda *_: [True, False])
    module.say_what_is_open.cache_clear()
    module.say_what_is_open()
    assert "can get at files, processes on this machine" in capsys.readouterr().out


def test_results_of_every_plain_type_reach_the_tests():
    program = """
from collections import Counter, namedtuple
P = namedtuple("P", "a b")
X = [1, {2: (3,)}]
def count(text): return Counter(text)
def pair(): return P(1, float("inf"))
def many(n):
    if n < 0: raise ValueError(n)
    return {n}, set(), b"x", "inf", None, True, -1.5, 2j
class Stack: pass
"""
    tests = {"assert count('aab') == {'a': 2, 'b': 1}": True, "import math\nassert pair() == (1, math.inf)": True,
             "assert many(2) == ({2}, set(), b'x', 'inf', None, True, -1.5, 2j)": True, "assert X == [1, {2: (3,)}]": True,
             "try:\n    many(-1)\nexcept ValueError: pass\nelse: assert 0": True, "assert many(n=1)[0] == {1}": True,
             "assert Stack()": False, "assert missing": False, "this is no Python": False}  # fmt: skip
    assert recipe("unit_tests").passed(program, list(tests)) == list(tests.values())


def test_unit_tests_of_the_rows_in_a_run(tmp_path, monkeypatch):
    """The embedded model writes no programs, so its text becomes a variable that the tests of its row look at."""
    rows = [
        {**row, "tests": ["assert '####' in text", f"assert text.split()[-1] == {row['answer'].split()[-1]!r}"]}
        for row in Generator(Arithmetic()).problems()[0][:60]
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.append({str(FOLDER)!r})\nfrom unit_tests import share_passed\n\n"
        "def reward(completion, problem):\n    return share_passed(f'text = {str(completion)!r}', problem.row['tests'])\n"
    )
    model = ["--model", str(tiny_model(Arithmetic())), "--prompt_template", "question", "--max_completion_length", "51"]
    flags = [*model, "--dataset", str(tmp_path / "data.jsonl"), "--lora_r", "4"]
    rows = train(tmp_path / "run", monkeypatch, f"{tmp_path}/mine.py:reward", *flags)
    assert all(row["reward"] in [i / 16 for i in range(1, 17)] for row in rows[1:])  # shares of two tests, over 8 completions


# ---- the judge ----


class Judge(BaseHTTPRequestHandler):
    """Answers like a chat endpoint: the grade of a completion whose answer is the reference is 10, else 2."""

    seen, together, busy, lock = [], [0], [], threading.Lock()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.seen.append((self.path, self.headers["Authorization"], body))
            self.together[0] += 1
            self.busy.append(self.together[0])
            refuse = len(self.seen) % 7 == 1
        time.sleep(0.05)
        with self.lock:
            self.together[0] -= 1
        asked = body["messages"][0]["content"]
        reference, answer = (re.search(f"{name}(.*)", asked) for name in ("Reference answer: ", "#### "))
        grade = "I give it 10." if answer and reference[1] == answer[1] else "2/10"
        self.send_response(503 if refuse else 200)
        self.end_headers()
        self.wfile.write(b"busy" if refuse else json.dumps({"choices": [{"message": {"content": grade}}]}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    for value in (Judge.seen, Judge.busy):
        value.clear()
    monkeypatch.setenv("JUDGE_URL", f"http://127.0.0.1:{httpd.server_port}/v1/chat/completions")
    monkeypatch.setenv("JUDGE_MODEL", "my-judge")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def test_the_judge(server, tmp_path, monkeypatch):
    reward = f"{FOLDER}/judge.py:judge"
    rows = train(tmp_path / "run", monkeypatch, reward, "--reward_timeout", "60", "--reward_workers", "1")
    assert all(0.2 <= row["reward"] <= 1.0 for row in rows[1:])
    path, key, body = Judge.seen[-1]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "my-judge")
    assert max(Judge.busy) >= 4  # requests are under way together
    scored = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert all(row["reward"] == pytest.approx(1.0 if row["completion"].endswith(f"#### {row['answer']}") else 0.2) for row in scored)


def test_a_judge_that_gives_no_grade_is_a_failure(server, monkeypatch, capsys):
    problem, completion = Problem("p", "", (), "7", "3+4?"), Completion([0], [0.0], "stop", "#### 7")
    monkeypatch.setattr("json.dumps", lambda value, real=json.dumps, **more: real(value, **more).replace("2/10", "none"))
    reward = CustomReward(f"{FOLDER}/judge.py:judge", seconds=60, workers=1, failed=-1.0)
    found = reward([problem] * 2, [completion, Completion([0], [0.0], "stop", "#### 8")]).tolist()
    assert found == [1.0, -1.0] and reward.failures["reward/errors"] == 1
    assert "judge: ValueError: no grade in the reply 'none' (judge.py, line" in capsys.readouterr().out
