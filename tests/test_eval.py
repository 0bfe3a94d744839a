import errno
import importlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
from helpers import QUICK, SHARED, evaluate, exit_code, launch, output_of, run, save_random_model
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import common.rollout.transformers_engine as transformers_engine
from common.errors import UserError
from common.files import write_file
from common.problems.data import load_split
from common.problems.prompts import Template
from common.run.compare import difference
from common.run.judging import whole_row
from common.verify.answers import answers_equal
from eval import Config, interval, majority_at_k, majority_vote, pass_at_k


def test_the_script_runs_from_the_command_line(tmp_path):
    process = launch("eval", tmp_path / "eval", "--num_samples", "0", "--max_problems", "2", quick=QUICK[:2])
    assert exit_code(process, seconds=300) == 0, output_of(tmp_path / "eval").read_text()
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["problems"] == 2


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for n, c in [(6, 0), (6, 1), (6, 3), (6, 6)]:
        for k in range(1, n + 1):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="does not exist"):
        pass_at_k(3, 1, 4)


def test_majority_vote_groups_by_value():
    assert majority_vote(["3", "0.5", None, "1/2"]) == "0.5"
    assert majority_vote(["4", "7"]) == "4" and majority_vote([None]) is None
    samples = [{"answer": a, "finish_reason": r} for a, r in [("1", "stop"), ("2", "length"), ("2", "stop"), ("2", "stop")]]
    row = {"reference": "2", "samples": samples}
    assert majority_at_k(row, 1) == 0.5 and majority_at_k(row, 2) == 0.5 and majority_at_k(row, 4) == 1.0


@pytest.mark.parametrize("problems", [30, 100, 500])
@pytest.mark.parametrize("kind", ["rare", "even", "fractions"])
def test_intervals_cover_the_truth(problems, kind):
    """1,000 simulated evaluations: 95 % within what a Wilson interval does at these sizes."""
    rng = np.random.default_rng(0)
    truth = {"rare": 0.05, "even": 0.5, "fractions": 0.2}[kind]
    covered = 0
    for _ in range(1000):
        rates = rng.beta(0.2, 0.8, problems) if kind == "fractions" else np.full(problems, truth)
        draws = 16 if kind == "fractions" else 1
        found = interval((rng.binomial(draws, rates) / draws).tolist(), draws)
        covered += found["low"] <= truth <= found["high"]
    assert 0.92 <= covered / 1000 <= 0.99


def test_nothing_solved_is_not_certainty():
    assert interval([0.0] * 100) == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.037, abs=1e-3)}
    assert interval([1.0] * 100)["low"] == pytest.approx(0.963, abs=1e-3)


def test_an_evaluation_agrees_with_brute_force_and_continues(tmp_path, monkeypatch):
    summary = evaluate(tmp_path / "a", monkeypatch=monkeypatch)
    text = (tmp_path / "a" / "problems.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == summary["problems"] == 30 and summary["samples"] == 4
    for row in rows:
        for sample in [row["greedy"], *row["samples"]]:
            right = sample["answer"] is not None and answers_equal(sample["answer"], row["reference"])
            assert sample["correct"] == (right and sample["finish_reason"] == "stop")
    for k in (1, 4):
        brute = [np.mean([any(s["correct"] for s in subset) for subset in itertools.combinations(row["samples"], k)]) for row in rows]
        assert summary[f"pass@{k}"]["value"] == pytest.approx(np.mean(brute))
    assert summary["maj@1"]["value"] == pytest.approx(summary["mean"]["value"])
    assert 0 < summary["mean"]["value"] < 1 and summary["greedy"]["low"] <= summary["greedy"]["value"] <= summary["greedy"]["high"]
    lines = text.splitlines(keepends=True)  # interrupted in the middle of a line
    (tmp_path / "a" / "problems.jsonl").write_text("".join(lines[:7]) + lines[7][:20])
    assert evaluate(tmp_path / "a", monkeypatch=monkeypatch) == summary
    assert (tmp_path / "a" / "problems.jsonl").read_text() == text
    assert "holds another evaluation" in evaluate(tmp_path / "a", "--temperature", "0.5", monkeypatch=monkeypatch)
    assert "give numbers from 1 to the 4" in evaluate(tmp_path / "b", "--k", "8", monkeypatch=monkeypatch)


def test_the_bar_moves_while_a_part_is_sampled(tmp_path, monkeypatch):
    made, moves = [], []

    class Recorder(tqdm):
        def update(self, n=1):
            moves.append((n, sys._getframe(1).f_code.co_name))
            return super().update(n)

    def recorded(**options):
        made.append(Recorder(file=io.StringIO(), **options | {"disable": False}))
        return made[-1]

    monkeypatch.setattr(importlib.import_module("eval"), "bar", recorded)
    evaluate(tmp_path / "a", monkeypatch=monkeypatch)
    assert made[0].n == made[0].total == 30 * 5
    ended = [count for count, caller in moves if caller != "sample_missing"]  # told by the engine, and none is left to correct
    assert len(ended) > 5 and sum(ended) == 150 and all(count > 0 for count in ended)
    text = (tmp_path / "a" / "problems.jsonl").read_text()
    (tmp_path / "a" / "problems.jsonl").write_text("".join(text.splitlines(keepends=True)[:7]))
    evaluate(tmp_path / "a", "--num_samples", "5", monkeypatch=monkeypatch)  # a sample more of 7 problems, and all of 23
    assert made[1].initial == 35 and made[1].n == made[1].total == 30 * 6


def test_an_adapter_that_has_changed_or_was_made_for_another_base_is_refused(tmp_path, monkeypatch):
    run("train_grpo", tmp_path / "run", "--max_steps", "1", monkeypatch=monkeypatch)
    adapter = tmp_path / "run" / "checkpoint-1"
    flags = ["--adapter", str(adapter), "--num_samples", "0", "--max_problems", "3"]
    first = evaluate(tmp_path / "a", *flags, monkeypatch=monkeypatch)
    assert evaluate(tmp_path / "a", *flags, monkeypatch=monkeypatch) == first
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, adapter / "adapter_model.safetensors", {"format": "pt"})
    assert "was begun with another adapter_sha256" in evaluate(tmp_path / "a", *flags, monkeypatch=monkeypatch)
    other = ["--dataset", "arithmetic:warm_steps=1,train=9,test=9"]
    assert re.search(r"another --dataset, .* or --model /", evaluate(tmp_path / "b", *flags, *other, monkeypatch=monkeypatch))


def test_other_problems_and_files_that_are_not_ours_are_left_alone(tmp_path, tokenizer, monkeypatch):
    model = save_random_model(tmp_path / "model", "qwen3", tokenizer)
    data = tmp_path / "problems.jsonl"
    flags = ["--model", str(model), "--dataset", str(data), "--num_samples", "0", "--max_completion_length", "4", "--split", "all"]
    data.write_text('{"question": "1 + 1 ?", "answer": "2"}\n')
    assert "is not of an evaluation" in evaluate(tmp_path, *flags, monkeypatch=monkeypatch)
    assert data.read_text().count("\n") == 1
    assert evaluate(tmp_path / "a", *flags, monkeypatch=monkeypatch)["problems"] == 1
    data.write_text('{"question": "1 + 1 ?", "answer": "3"}\n')
    assert "other problems or prompts" in evaluate(tmp_path / "a", *flags, monkeypatch=monkeypatch)


def test_an_evaluation_goes_on_with_the_same_base_flags_and_derived_values_alone(tmp_path, tokenizer, monkeypatch):
    model, data, folder = save_random_model(tmp_path / "model", "qwen3", tokenizer), tmp_path / "my.jsonl", tmp_path / "a"
    data.write_text('{"question": "1 + 1 ?", "answer": "2"}\n')
    flags = ["--dataset", str(data), "--split", "all", "--num_samples", "0", "--max_completion_length", "4"]
    flags += ["--prompt_template", "plain", "--model"]
    first = evaluate(folder, *flags, str(model), monkeypatch=monkeypatch)
    record = json.loads((folder / "config.json").read_text())
    assert record["flags"]["stop"] is None and record["derived"]["stop"] == ["\nProblem:"]
    monkeypatch.setattr("eval.load_template", lambda *_: Template("plain", lambda question, _=(): f"Problem: {question}", True, ("other",)))
    assert "other problems or prompts" in evaluate(folder, *flags, str(model), monkeypatch=monkeypatch)
    monkeypatch.undo()
    record["derived"] = {"stop": ["\nProblem:", "END"], "date": "26 Jul 2026"}
    for name in ("config.json", ".config.json"):
        (folder / name).write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    assert evaluate(folder, *flags, "model", monkeypatch=monkeypatch) == first  # the same folder by another path
    assert json.loads((folder / "config.json").read_text())["derived"] == record["derived"]  # kept, and not worked out anew
    assert "its --temperature is 1.0, not 0.5" in evaluate(folder, *flags, "model", "--temperature", "0.5", monkeypatch=monkeypatch)
    record["script"] = "train_grpo"
    (folder / "config.json").write_text(json.dumps(record))
    assert "it is of train_grpo.py" in evaluate(folder, *flags, "model", monkeypatch=monkeypatch)
    record["script"], record["flags"]["temperature"] = "eval", "hot"
    (folder / "config.json").write_text(json.dumps(record))
    assert 'temperature is "hot", and must be a number' in evaluate(folder, *flags, "model", monkeypatch=monkeypatch)
    assert 'temperature is "hot"' in evaluate(tmp_path / "b", "--config", str(folder / "config.json"), monkeypatch=monkeypatch)
    record["flags"]["temperature"] = 1
    (folder / "config.json").write_text(json.dumps(record))
    weights = load_file(model / "model.safetensors")
    save_file({name: value + 1e-3 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    assert "was begun with another base" in evaluate(folder, *flags, "model", monkeypatch=monkeypatch)


def test_an_interrupted_evaluation_says_how_to_go_on(tmp_path, monkeypatch, capfd):
    calls, engine = [], transformers_engine.TransformersEngine
    real = engine.generate

    def generate(self, requests, ended=None):
        calls.append(1)
        if len(calls) == 4:  # the check at the start makes two calls; this is the second of the evaluation
            signal.raise_signal(signal.SIGUSR2)
        return real(self, requests, ended)

    monkeypatch.setattr(engine, "generate", generate)
    monkeypatch.setattr(transformers_engine, "MAX_ROWS", {"cpu": 60})
    assert evaluate(tmp_path / "a", monkeypatch=monkeypatch) == 128 + signal.SIGUSR2
    told = capfd.readouterr()
    assert "stopping after these problems" in told.err + told.out
    assert f"--output_dir {tmp_path / 'a'}" in told.out.partition("stopped by SIGUSR2; go on with: ")[2]
    assert len((tmp_path / "a" / "problems.jsonl").read_text().splitlines()) == 24  # the part in hand was finished
    assert evaluate(tmp_path / "a", monkeypatch=monkeypatch)["problems"] == 30


LONG = "def long(completion, problem):\n    return 0.7 if len(completion) > {longest} and problem.row['answer'] else -1.3\n"


def test_a_reward_judges_in_place_of_the_checker(tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.py"
    file.write_text(LONG.format(longest=16))
    flags = ["--reward", f"{file}:long"]
    plain = evaluate(tmp_path / "plain", monkeypatch=monkeypatch)
    summary = evaluate(tmp_path / "a", *flags, monkeypatch=monkeypatch)

    def check(summary, folder, longest):
        rows = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
        samples = [sample for row in rows for sample in row["samples"]]
        ended = [sample["finish_reason"] == "stop" for sample in samples]
        right = [end and len(sample["completion"]) > longest for sample, end in zip(samples, ended, strict=True)]
        assert [sample["correct"] for sample in samples] == right and 0 < np.mean(right) < 1
        scores = [(0.7 if ok else -1.3) if end else 0.0 for ok, end in zip(right, ended, strict=True)]
        assert summary["mean"]["value"] == pytest.approx(np.mean(right)) and summary["reward"] == pytest.approx(np.mean(scores), abs=1e-6)
        greedy = [row["greedy"]["finish_reason"] == "stop" and len(row["greedy"]["completion"]) > longest for row in rows]
        assert summary["greedy"]["value"] == pytest.approx(np.mean(greedy))

    check(summary, tmp_path / "a", 16)
    assert "pass@4" in summary and not any(name.startswith("maj@") for name in summary) and "maj@4" in plain
    assert "mean reward" in capsys.readouterr().out
    # saved completions: by the function without sampling, and anew where the function has changed
    monkeypatch.setattr("eval.make_engine", lambda *_: pytest.fail("something is sampled"))
    judged = evaluate(tmp_path / "b", "--judge", str(tmp_path / "plain"), *flags, monkeypatch=monkeypatch)
    assert judged["mean"] == summary["mean"] and judged["greedy"] == summary["greedy"] and judged["reward"] == summary["reward"]
    capsys.readouterr()
    assert evaluate(tmp_path / "c", "--judge", str(tmp_path / "a"), monkeypatch=monkeypatch) == plain  # by the checker again
    assert f"was judged by --reward {file}:long; without --reward the checker judges" in capsys.readouterr().out
    assert json.loads((tmp_path / "c" / "config.json").read_text())["flags"]["reward"] is None
    for one, other in (("plain", "a"), ("a", "plain")):  # never by two judges
        message = evaluate(tmp_path / "x", "--compare", str(tmp_path / one), str(tmp_path / other), monkeypatch=monkeypatch)
        assert message.endswith(f"by python eval.py --judge {tmp_path / 'plain'} --reward {file}:long")
    assert evaluate(tmp_path / "x", "--compare", str(tmp_path / "a"), str(tmp_path / "b"), monkeypatch=monkeypatch) == 0
    assert "all completions of A and B are the same" in capsys.readouterr().out
    file.write_text(LONG.format(longest=20))
    check(evaluate(tmp_path / "a", *flags, monkeypatch=monkeypatch), tmp_path / "a", 20)
    assert "its --reward is" in evaluate(tmp_path / "a", monkeypatch=monkeypatch)
    code = evaluate(tmp_path / "d", "--config", str(tmp_path / "a" / "config.json"), monkeypatch=monkeypatch)
    assert "names code" in code and f"--reward {file}:long" in code


def test_a_saved_reward_that_is_no_number_is_damage(evaluated):
    line = evaluated[1].splitlines()[0]
    for wrong in ("x", True, None, float("nan"), [1.0]):
        row = json.loads(line)
        row["samples"][0]["reward"] = wrong
        assert whole_row(json.dumps(row).encode()) is None
    row["samples"][0]["reward"] = 0.75
    row["samples"][0]["finish_reason"] = "stop"
    assert whole_row(json.dumps(row).encode())["samples"][0]["correct"] is True


def test_an_adapter_that_was_trained_by_a_reward_says_so(tmp_path, capsys):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"question": f"{i}+1?"}) + "\n" for i in range(3)))
    record = {"script": "train_grpo", "flags": {"reward": "mine.py:long"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    flags = {"model": "a/b", "dataset": str(tmp_path / "data.jsonl"), "adapter": str(tmp_path / "checkpoint-1")}
    with pytest.raises(UserError, match="has no column answer"):
        load_split(Config(**flags), "all")
    rows = load_split(Config(**flags, reward="mine.py:long"), "all")
    assert [row.answer for row in rows] == ["", "", ""] and "note" not in capsys.readouterr().out
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n")
    load_split(Config(**flags), "all")
    assert "note: the run of --adapter was scored by --reward mine.py:long, and this evaluation by the" in capsys.readouterr().out


def test_a_second_opinion_stands_beside_ours(tmp_path, monkeypatch):
    pytest.importorskip("math_verify")
    summary = evaluate(tmp_path / "a", "--second_opinion", "math_verify", monkeypatch=monkeypatch)
    rows = [json.loads(line) for line in (tmp_path / "a" / "problems.jsonl").read_text().splitlines()]
    samples = [sample for row in rows for sample in row["samples"]]
    assert summary["second_opinion"]["value"] == pytest.approx(np.mean([sample["second_opinion"] for sample in samples]))
    assert summary["second_opinion"]["value"] > 0
    assert summary["disagree"] == np.mean([sample["second_opinion"] != sample["correct"] for sample in samples])
    assert all(sample["second_opinion"] for sample in samples if sample["correct"])  # whole numbers after ####
    assert summary["mean"] == evaluate(tmp_path / "b", monkeypatch=monkeypatch)["mean"]


@pytest.mark.parametrize("name", ["gsm8k/test.jsonl", "math/math500.jsonl"])
def test_a_random_model_on_real_problems_gets_honest_zeros(name, tmp_path, tokenizer, monkeypatch):
    file = SHARED / name
    if not file.exists():
        pytest.skip(f"{file} is not there")
    model = save_random_model(tmp_path / "model", "qwen3", tokenizer, max_position_embeddings=4096)
    flags = ["--model", str(model), "--dataset", str(file), "--max_problems", "20", "--max_completion_length", "8"]
    summary = evaluate(tmp_path / "run", *flags, monkeypatch=monkeypatch)
    assert summary["problems"] == 20 and summary["greedy"]["value"] == summary["mean"]["value"] == summary["pass@4"]["value"] == 0
    assert summary["greedy"]["low"] == 0 and 0.1 < summary["greedy"]["high"] < 0.2  # of 20


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """A finished evaluation, and the text of its rows."""
    evaluate(tmp_path / "a", monkeypatch=monkeypatch)
    return tmp_path / "a", (tmp_path / "a" / "problems.jsonl").read_text()


def test_rows_that_are_not_whole_are_sampled_again(evaluated, monkeypatch, capsys):
    folder, text = evaluated
    lines = text.splitlines(keepends=True)
    summary = (folder / "summary.json").read_bytes()

    def without(name, row):
        return json.dumps({key: value for key, value in row.items() if key != name}) + "\n"

    second = json.loads(lines[1])
    wrong_type = {**second, "greedy": {**second["greedy"], "tokens": "4"}}
    other_end = {**second, "greedy": {**second["greedy"], "finish_reason": "tired"}}
    broken = [without("samples", second), without("greedy", second), "null\n", "[]\n", '{"problem": {}}\n', "\n", "\x00" * 50 + "\n",
              "[" * 9999, *(json.dumps(row) + "\n" for row in (wrong_type, other_end))]  # fmt: skip
    for line in broken:
        (folder / "problems.jsonl").write_text(lines[0] + line + "".join(lines[2:]))
        assert importlib.import_module("common.run.judging").whole_row(line.encode()) is None, line
    for kept in (lines[:1] + broken[:1] + lines[2:], lines[:1] + lines[2:], lines[:2] + lines[1:]):  # damaged, missing, twice
        (folder / "problems.jsonl").write_text("".join(kept))
        evaluate(folder, monkeypatch=monkeypatch)
        assert (folder / "problems.jsonl").read_text() == text and (folder / "summary.json").read_bytes() == summary
        assert "is not whole: it is sampled again" in capsys.readouterr().out
    (folder / "problems.jsonl").write_text(text + "{}\n")
    evaluate(folder, monkeypatch=monkeypatch)
    assert (folder / "problems.jsonl").read_text() == text and "is one too many, and is removed" in capsys.readouterr().out
    (folder / "config.json").unlink()
    (folder / ".config.json").unlink()
    (folder / "problems.jsonl").unlink()
    assert "has a summary.json that is not of an evaluation" in evaluate(folder, monkeypatch=monkeypatch)
    assert (folder / "summary.json").read_bytes() == summary


def test_the_same_command_judges_saved_completions_anew(evaluated, monkeypatch, capsys):
    """Verdicts of an older checker, or wrong ones, are put right without sampling."""
    folder, text = evaluated
    rows = [json.loads(line) for line in text.splitlines()]
    right = sum(sample["correct"] for row in rows for sample in row["samples"])
    for row in rows:
        for sample in row["samples"]:
            sample |= {"answer": "x", "correct": False}
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("eval.make_engine", lambda *_: pytest.fail("something is sampled"))
    summary = (folder / "summary.json").read_bytes()
    evaluate(folder, monkeypatch=monkeypatch)
    assert (folder / "problems.jsonl").read_text() == text and (folder / "summary.json").read_bytes() == summary
    assert right > 0 and f"the checker now gives {right} other verdicts" in capsys.readouterr().out


def test_judging_a_folder_needs_no_model_and_leaves_it_as_it_is(evaluated, tmp_path, monkeypatch, capsys):
    folder, text = evaluated
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("make_engine", "load_tokenizer"):
        monkeypatch.setattr(f"eval.{name}", lambda *_: pytest.fail("a model is loaded"))
    again = evaluate(tmp_path / "b", "--judge", str(folder), monkeypatch=monkeypatch)
    assert again == summary and (tmp_path / "b" / "problems.jsonl").read_text() == text
    assert "150 completions of 30 problems judged anew: 0 that were wrong are right, and 0 that were right are wrong" in (
        capsys.readouterr().out)
    (tmp_path / "mine.py").write_text("def odd(completion, problem):\n    return int(problem.row['answer'].split()[-1]) % 2\n")
    own = evaluate(tmp_path / "c", "--judge", str(folder), "--second_opinion", f"{tmp_path / 'mine.py'}:odd", monkeypatch=monkeypatch)
    rows = [json.loads(line) for line in text.splitlines()]
    # a reward never sees a completion that was cut off
    odd = [int(row["reference"]) % 2 and sample["finish_reason"] == "stop" for row in rows for sample in row["samples"]]
    assert own["second_opinion"]["value"] == pytest.approx(np.mean(odd)) and 0 < np.mean(odd) < 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "exists; name a new folder" in evaluate(tmp_path / "c", "--judge", str(folder), monkeypatch=monkeypatch)
    monkeypatch.setattr("common.run.judging.is_correct", lambda completion, reference: False)  # a stricter checker
    lost = evaluate(tmp_path / "e", "--judge", str(folder), monkeypatch=monkeypatch)
    assert lost["mean"]["value"] == lost["greedy"]["value"] == 0 and "0 that were wrong are right, and " in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--reward", "--second_opinion"])
def test_completions_are_kept_when_a_judge_fails(flag, evaluated, tmp_path, monkeypatch):
    _, text = evaluated
    for body in ("raise OSError('no connection')", "return 1.0"):
        (tmp_path / "mine.py").write_text(f"def even(completion, problem):\n    {body}\n")
        result = evaluate(tmp_path / "judged", flag, f"{tmp_path / 'mine.py'}:even", monkeypatch=monkeypatch)
        rows = [json.loads(line) for line in (tmp_path / "judged" / "problems.jsonl").read_text().splitlines()]
        if body.startswith("raise"):
            assert "no connection" in result and rows
            monkeypatch.setattr("eval.make_engine", lambda *_: pytest.fail("it is sampled again"))
    expected = [[sample["completion"] for sample in json.loads(line)["samples"]] for line in text.splitlines()]
    assert [[sample["completion"] for sample in row["samples"]] for row in rows] == expected and result["problems"] == len(expected)


@pytest.mark.parametrize("name", ["--judge", "--compare"])
def test_folders_that_are_no_evaluation_are_named_as_what_they_are(name, evaluated, tmp_path, monkeypatch):
    folder, text = evaluated
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "problems.jsonl").unlink()
    record = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(record.replace('"script": "eval"', '"script": "train_ppo"'))
    shutil.copytree(folder, tmp_path / "none")
    (tmp_path / "none" / "problems.jsonl").write_text("")
    shutil.copytree(folder, tmp_path / "cut")
    (tmp_path / "cut" / "problems.jsonl").write_text(text[:-50])
    for place, cause in {
        "nowhere": "there is no such folder",
        "empty": "it has no problems.jsonl",
        "file": "it is a file",
        "run": "it is of train_ppo.py and has no problems.jsonl",
        "none": "problems.jsonl is empty: that evaluation was stopped early",
        "cut": "1 of its 30 rows are damaged",
    }.items():
        others = [str(folder)] if name == "--compare" else []
        message = evaluate(tmp_path / "new", name, str(tmp_path / place), *others, monkeypatch=monkeypatch)
        assert cause in message and str(tmp_path / place) in message and "\n" not in message
    assert not (tmp_path / "new").exists()


def test_flags_that_do_nothing_beside_saved_completions_are_refused(evaluated, tmp_path, monkeypatch):
    folder, _ = evaluated

    def refused(*flags):
        message = evaluate(tmp_path / "new", *flags, monkeypatch=monkeypatch)
        assert not (tmp_path / "new").exists()
        return message

    for flags in (["--num_samples", "2"], ["--adapter", "x"], ["--dataset", "gsm8k"], ["--temperature", "0"], ["--model", "tiny"]):
        assert f"leave out {flags[0]}, which would do nothing" in refused("--judge", str(folder), *flags)
        assert f"leave out {flags[0]}, which would do nothing" in refused("--compare", str(folder), str(tmp_path), *flags)
    assert "--judge, --k, which" in refused("--compare", str(folder), str(tmp_path), "--judge", str(folder), "--k", "2")
    assert "leave out --reward, which" in refused("--compare", str(folder), str(tmp_path), "--reward", "x.py:f")
    assert "leave out --config, which" in refused("--judge", str(folder), "--config", str(folder / "config.json"))
    assert "--k 9: give numbers from 1 to the 4 samples of a problem" in refused("--judge", str(folder), "--k", "9")
    assert "--k 0 4: give numbers from 1 to the 4" in refused("--judge", str(folder), "--k", "0", "4")
    assert "--k 1: there are no samples of a problem; leave it out" in refused("--num_samples", "0", "--k", "1")
    assert "both are the same folder" in refused("--compare", str(folder), f"{folder}/../{folder.name}")
    module = importlib.import_module("eval")
    with pytest.raises(UserError, match="leave out --num_samples, which would do nothing"):
        module.evaluate_model(module.Config(judge=str(folder), num_samples=4))
    found = evaluate(tmp_path / "new", "--judge", str(folder), "--k", "2", "3", monkeypatch=monkeypatch)
    assert {name for name in found if name.startswith("pass@")} == {"pass@2", "pass@3"}


def test_what_cannot_be_judged_is_refused(evaluated, tmp_path, monkeypatch):
    folder, text = evaluated
    (tmp_path / "mine.py").write_text("def odd(completion, problem):\n    return len(completion) % 2\n")
    own = ["--judge", str(folder), "--reward", f"{tmp_path / 'mine.py'}:odd"]
    rows = [json.loads(line) for line in text.splitlines()]

    def judged(flags, **changed):
        lines = [json.dumps(row | (changed if row is rows[3] else {})) + "\n" for row in rows]
        (folder / "problems.jsonl").write_text("".join(lines))
        return evaluate(tmp_path / "new", *flags, monkeypatch=monkeypatch)

    assert "some problems have more samples than others" in judged(own[:2], samples=rows[3]["samples"][:2])
    assert f"{rows[3]['problem']} has no reference for the checker; give --reward" in judged(own[:2], reference="")
    assert "its data have changed since, " in judged(own, reference="77")
    assert "its data have changed since, elsewhere/7 is" in judged(own, problem="elsewhere/7")
    assert not (tmp_path / "new").exists() and judged(own)["problems"] == 30


def test_a_comparison_says_in_which_other_flags_the_two_differ(evaluated, tmp_path, monkeypatch, capsys):
    folder, _ = evaluated
    flags = ("--temperature", "0.3", "--max_completion_length", "20", "--num_samples", "2", "--stop", " ", "--max_problems", "20")
    evaluate(tmp_path / "b", *flags, monkeypatch=monkeypatch)
    record = json.loads((folder / "config.json").read_text())
    path = tmp_path / "b" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"context": 128, "prompt_template": "chat"}))
    capsys.readouterr()
    evaluate(tmp_path / "x", "--compare", str(folder), str(tmp_path / "b"), monkeypatch=monkeypatch)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "differ in" in line]
    longest, context = record["flags"]["max_completion_length"], json.loads((folder / "summary.json").read_text())["context"]
    assert set(line.removeprefix("A and B differ in: ").split(", ")) == {
        f"max_completion_length {longest} / 20",
        "temperature 1 / 0.3",
        "stop none / ' '",
        f"context {context} / 128",
        "prompt_template question / chat",
        "num_samples 4 / 2",
    }
    for name in ("config.json", ".config.json"):
        (tmp_path / "b" / name).unlink()
    evaluate(tmp_path / "x", "--compare", str(folder), str(tmp_path / "b"), monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "A and B differ in: num_samples 4 / 2\n" in said and f"{tmp_path / 'b'} has no config.json" in said


def test_a_damaged_config_is_told_once(evaluated, tmp_path, monkeypatch, capsys):
    folder, _ = evaluated
    (folder / "config.json").write_text("{")
    for flags in (["--judge", str(folder)], ["--compare", str(folder), str(tmp_path / "judged")], []):
        capsys.readouterr()
        importlib.import_module("common.run.saved_config")._note.cache_clear()  # a new process
        evaluate(folder if not flags else tmp_path / "judged", *flags, monkeypatch=monkeypatch)
        assert capsys.readouterr().out.count("its copy .config.json is read instead") == 1


def test_more_problems_and_more_samples_go_into_the_same_folder(evaluated, tmp_path, monkeypatch):
    _, text = evaluated
    small = tmp_path / "small"
    first = evaluate(small, "--max_problems", "10", "--num_samples", "0", monkeypatch=monkeypatch)
    assert first["problems"] == 10 and "mean" not in first
    assert evaluate(small, "--num_samples", "0", monkeypatch=monkeypatch)["problems"] == 30  # more problems
    evaluate(small, monkeypatch=monkeypatch)  # and the samples, with the seeds of an evaluation that had them from the start
    assert (small / "problems.jsonl").read_text() == text
    more = evaluate(small, "--num_samples", "6", monkeypatch=monkeypatch)
    rows = [json.loads(line) for line in (small / "problems.jsonl").read_text().splitlines()]
    old = [json.loads(line) for line in text.splitlines()]
    assert more["samples"] == 6 and {"pass@1", "pass@4", "pass@6", "maj@6"} <= set(more)
    assert all(row["samples"][:4] == one["samples"] and len(row["samples"]) == 6 for row, one in zip(rows, old, strict=True))
    texts = [[sample["completion"] for sample in row["samples"]] for row in rows]
    assert any(set(some[4:]) - set(some[:4]) for some in texts)  # other draws, not the first ones again
    assert "has 6 samples a problem: give --num_samples 6 or more" in evaluate(small, monkeypatch=monkeypatch)
    assert "is of 30 problems: give --max_problems 30 or more" in evaluate(
        small, "--max_problems", "5", "--num_samples", "6", monkeypatch=monkeypatch)  # fmt: skip


def test_temperature_0_names_the_flag_that_means_it(tmp_path, monkeypatch):
    assert "give --num_samples 0" in evaluate(tmp_path / "a", "--temperature", "0", monkeypatch=monkeypatch)


def test_a_summary_names_what_decides_its_numbers(evaluated):
    summary = json.loads((evaluated[0] / "summary.json").read_text())
    assert summary["prompt_template"] == "question" and summary["prompt_date"] is None
    assert re.fullmatch("[0-9a-f]{12}", summary["checker"]) and re.fullmatch("[0-9a-f]{16}", summary["prompt_sha256"])


def test_two_evaluations_are_compared_problem_by_problem(evaluated, tmp_path, monkeypatch, capsys):
    folder, text = evaluated
    rows = [json.loads(line) for line in text.splitlines()][:20]
    better = tmp_path / "better"
    better.mkdir()
    changed = 0
    for row in rows:
        if not row["greedy"]["correct"] and changed < 3:
            row["greedy"] |= {"completion": f"#### {row['reference']}", "finish_reason": "stop"}
            changed += 1
    (better / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = importlib.import_module("eval")
    found = module.evaluate_model(module.Config(compare=[str(folder), str(better)]))
    assert found["problems"] == 20 and found["left_out"] == 10 and changed > 0
    assert found["greedy"]["value"] == pytest.approx(changed / 20) and found["greedy"]["better"] == changed
    assert found["mean"]["value"] == 0 and found["mean"]["low"] < 0 < found["mean"]["high"]
    assert "paired over 20 problems" in capsys.readouterr().out
    assert "two result folders" in evaluate(tmp_path / "x", "--compare", str(folder), monkeypatch=monkeypatch)
    (better / "problems.jsonl").write_text(json.dumps({**rows[0], "reference": "77"}) + "\n")
    assert "different references" in evaluate(tmp_path / "x", "--compare", str(folder), str(better), monkeypatch=monkeypatch)


@pytest.mark.parametrize("problems", [30, 500])
@pytest.mark.parametrize("gain, churn", [(0.0, 0.02), (0.05, 0.2), (0.3, 0.05)])
def test_paired_intervals_cover_the_true_difference(problems, gain, churn):
    """1,000 simulated pairs of greedy evaluations: a share `churn` of the problems gets worse, and `churn` + `gain` better."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        change = rng.choice([-1, 1, 0], problems, p=[churn, churn + gain, 1 - 2 * churn - gain])
        found = difference((change < 0).astype(float).tolist(), (change > 0).astype(float).tolist())
        covered += found["low"] <= gain <= found["high"]
    assert covered / 1000 >= 0.92
    assert difference([0.0] * 100, [0.0] * 100) == {"value": 0, "low": pytest.approx(-0.0192, abs=1e-4),
                                                    "high": pytest.approx(0.0192, abs=1e-4)}  # fmt: skip


def test_a_damaged_config_is_replaced_by_its_copy_and_without_one_refused(evaluated, monkeypatch):
    folder, text = evaluated
    for content in (None, b"", (folder / "config.json").read_bytes()[:100]):
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_bytes(content)
        assert "problems" in evaluate(folder, monkeypatch=monkeypatch)
        assert json.loads((folder / "config.json").read_text())["flags"]["num_samples"] == 4
    for name in ("config.json", ".config.json"):
        (folder / name).write_text("{")
    message = evaluate(folder, monkeypatch=monkeypatch)
    assert "is not the config.json of a run" in message and "\n" not in message
    assert (folder / "problems.jsonl").read_text() == text


def test_a_finished_evaluation_that_is_started_again_touches_nothing(evaluated, monkeypatch):
    def state():
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}

    folder, _ = evaluated
    before = state()
    assert evaluate(folder, monkeypatch=monkeypatch)["problems"] == 30
    assert state() == before


def test_a_disk_that_is_full_at_the_start_is_no_obstacle_later(tmp_path, monkeypatch):
    def full(path, content):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_file(path, content)

    for name in (".config.json", "config.json", "problems.jsonl"):
        folder = tmp_path / name.strip(".")
        with monkeypatch.context() as patch:
            patch.setattr("common.run.evaluation.write_file", full)
            patch.setattr("common.run.folder.write_file", full)
            assert "No space left on device" in evaluate(folder, monkeypatch=patch)
        assert evaluate(folder, monkeypatch=monkeypatch)["problems"] == 30


def test_a_result_folder_that_cannot_be_written_loses_no_problems(evaluated, tmp_path, monkeypatch):
    module = importlib.import_module("eval")
    monkeypatch.setattr(transformers_engine, "MAX_ROWS", {"cpu": 60})
    real, calls = module.append_rows, []

    def full(path, rows):
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, rows)

    monkeypatch.setattr(module, "append_rows", full)
    message = evaluate(tmp_path / "b", monkeypatch=monkeypatch)
    saved = tmp_path / "b-saved-with-24-problems"
    assert f"No space left on device); all 24 problems so far are saved in {saved}" in message and "\n" not in message
    monkeypatch.setattr(module, "append_rows", real)
    evaluate(saved, monkeypatch=monkeypatch)
    assert (saved / "problems.jsonl").read_text() == evaluated[1]
