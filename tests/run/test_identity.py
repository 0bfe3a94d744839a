"""What a resumed run is made of: the same content is taken from wherever it lies, and other content is refused by its name."""

import json
import re
import shutil

import pytest
from helpers import completions, metrics, run, save_random_model
from safetensors.torch import load_file, save_file

from common.run.identity import imported_beside
from common.run.resume import IDENTITY

REWARD = """
import helper

def score(completion, problem):
    if len(completion) % 4 == 0:
        raise ValueError("a failure to count")
    return helper.share(completion) + float(problem.row["bonus"])
"""
FLAGS = "--model model --adapter adapter --beta 0.1 --dataset data.jsonl --eval_dataset held.jsonl --prompt_template template.txt"
FLAGS += " --problems_per_step 4 --num_generations 2 --max_completion_length 8 --eval_problems 4 --eval_steps 2 --save_steps 1"
FLAGS += " --stop e --max_steps 2 --lora_r 4 --learning_rate 0.01 --num_minibatches 1 --reward_workers 1 --reward reward.py:score"
RESUME = ["--resume_from_checkpoint", "run/checkpoint-1", "--reward", "reward.py:score"]


def go(folder, *flags, monkeypatch):
    monkeypatch.chdir(folder)
    return run("train_grpo", "run", *flags, monkeypatch=monkeypatch, quick=[])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    """A folder with all that a run is made of, and the finished run."""
    folder = tmp_path_factory.mktemp("whole")
    save_random_model(folder / "model", "llama", tokenizer, tie_word_embeddings=True)
    rows = [{"question": f"{i} + {i + 1} ?", "answer": str(2 * i + 1), "bonus": i % 2} for i in range(30)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    (folder / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[20:]))
    (folder / "template.txt").write_text("{question}\n")
    (folder / "reward.py").write_text(REWARD)
    (folder / "helper.py").write_text("def share(text):\n    return len(text) % 7 / 7\n")
    with pytest.MonkeyPatch.context() as patch:
        first = FLAGS.replace("--adapter adapter --beta 0.1", "").split()
        patch.chdir(folder)
        assert run("train_grpo", "first", *first, "--eval_steps", "0", monkeypatch=patch, quick=[]) == 0
        (folder / "first" / "checkpoint-2").rename(folder / "adapter")
        shutil.rmtree(folder / "first")
        assert go(folder, *FLAGS.split(), monkeypatch=patch) == 0
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) >= 1, old
    path.write_text(text.replace(old, new, 1))


def lines(path, change):
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def nudge(path, name=""):
    tensors = load_file(path)
    key = next(key for key in tensors if name in key)
    tensors[key].view(-1)[-1] += 1
    save_file(tensors, path, {"format": "pt"})


CHANGES = {
    "a question": (lambda f: edit(f / "data.jsonl", "3 + 4", "3 + 5"), r"--dataset data.jsonl: .* 4 \(data.jsonl/train/3\) is another"),
    "a reference": (lambda f: edit(f / "data.jsonl", '"answer": "9"', '"answer": "8"'), r"number 5 \(data.jsonl/train/4\) is another"),
    "a column that the reward reads": (lambda f: edit(f / "data.jsonl", '"bonus": 1', '"bonus": 2'), r"2 \(data.jsonl/train/1\)"),
    "two rows swapped": (lambda f: lines(f / "data.jsonl", lambda t: [*t[:6], t[7], t[6], *t[8:]]), "number 7 .* is another"),
    "a row less": (lambda f: lines(f / "data.jsonl", lambda t: t[:-1]), "20 before and 19 now, number 20 is missing"),
    "a row more": (lambda f: lines(f / "data.jsonl", lambda t: [*t, t[0].replace("0 + 1", "9 + 9")]), "20 before and 21 now, number 21"),
    "held-out data": (lambda f: lines(f / "held.jsonl", lambda t: t[5:]), r"--eval_dataset held.jsonl: of the held-out problems"),
    "the template": (lambda f: edit(f / "template.txt", "\n", " \n"), r"the prompt template \(template.txt\)"),
    "the reward file": (lambda f: edit(f / "reward.py", "+ float", "+  float"), "--reward reward.py: the file differs"),
    "what it imports": (lambda f: edit(f / "helper.py", "7", "8"), "--reward reward.py: the file helper.py, which it imports,"),
    "a flag in config.json": (lambda f: edit(f / "run" / "config.json", '"temperature": 1.0', '"temperature": 1.5'),
                              r"config.json says --temperature 1.5, and checkpoint-1 was trained with another value"),
    "a weight": (lambda f: nudge(f / "model" / "model.safetensors", "norm"), "--model model: the weights of the base"),
    "the base's config": (lambda f: edit(f / "model" / "config.json", '_eps": 1e-06', '_eps": 1e-05'), "the config of the base"),
    "its end tokens": (lambda f: edit(f / "model" / "generation_config.json", '_id": 0', '_id": 3'), "the list of end tokens of the base"),
    "the tokenizer": (lambda f: edit(f / "model" / "tokenizer.json", '" many": 137', '" money": 137'), "the tokenizer of --model model"),
    "the reference adapter": (lambda f: nudge(f / "adapter" / "adapter_model.safetensors"), "the adapter that the run began with differs"),
    "the reference is gone": (lambda f: shutil.rmtree(f / "adapter"), "--adapter adapter, the reference policy, cannot be read"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_named_before_weights_are_loaded(name, copy, monkeypatch):
    change, message = CHANGES[name]
    change(copy)
    before = {path: path.read_bytes() for path in (copy / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr("common.policy.load.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    found = go(copy, *RESUME, monkeypatch=monkeypatch)
    assert re.search(message, found) and "\n" not in found
    assert re.search("start a new run( from its adapter)?: --adapter run/checkpoint-1", found) or "put it back" in found
    assert {path: path.read_bytes() for path in (copy / "run").rglob("*") if path.is_file()} == before


def test_the_same_content_under_other_paths_is_the_same_run(whole, copy, monkeypatch, capsys):
    """Everything moved and renamed, the weights in other files: equal to the run that was never stopped."""
    (copy / "new place").mkdir()
    moves = {"model": "base", "adapter": "start", "template.txt": "t.txt", "reward.py": "points.py", "helper.py": "helper.py"}
    for old, new in {**moves, "data.jsonl": "other data.jsonl", "held.jsonl": "other held.jsonl"}.items():
        (copy / old).rename(copy / "new place" / new)
    weights = load_file(copy / "new place" / "base" / "model.safetensors")
    files = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in weights if files[name] == file}, copy / "new place" / "base" / file, {"format": "pt"})
    (copy / "new place" / "base" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (copy / "new place" / "base" / "model.safetensors").unlink()
    flags = ["--resume_from_checkpoint", "run/checkpoint-1", "--reward", "new place/points.py:score", "--model", "new place/base"]
    flags += ["--adapter", "new place/start", "--prompt_template", "new place/t.txt"]
    flags += ["--dataset", "new place/other data.jsonl", "--eval_dataset", "new place/other held.jsonl"]
    assert go(copy, *flags, monkeypatch=monkeypatch) == 0
    assert "changed on resume: --dataset data.jsonl -> new place/other data.jsonl" in capsys.readouterr().out
    assert metrics(copy / "run") == metrics(whole / "run") and completions(copy / "run") == completions(whole / "run")
    errors = [row.get("reward/errors", 0) for row in metrics(whole / "run")]
    assert errors[2] > errors[1] > 0, errors  # counted on, and not from 0
    adapters = [(folder / "run" / "checkpoint-2" / "adapter_model.safetensors").read_bytes() for folder in (whole, copy)]
    assert adapters[0] == adapters[1]
    assert go(copy, *flags[2:], "--resume_from_checkpoint", "auto", "--max_steps", "3", monkeypatch=monkeypatch) == 0


def test_without_a_kl_term_the_first_adapter_is_not_asked_for(whole, copy, monkeypatch):
    shutil.rmtree(copy / "run")
    assert go(copy, *FLAGS.split(), "--beta", "0", monkeypatch=monkeypatch) == 0
    shutil.copytree(copy / "run", copy / "before")
    shutil.rmtree(copy / "adapter")
    assert go(copy, *RESUME, monkeypatch=monkeypatch) == 0
    assert metrics(copy / "run") == metrics(copy / "before") and completions(copy / "run") == completions(copy / "before")
    assert "--adapter start differs" in go(copy, *RESUME, "--adapter", "start", monkeypatch=monkeypatch)


def test_what_may_change_is_no_other_run(copy, monkeypatch, capsys):
    assert go(copy, *RESUME, "--eval_problems", "6", monkeypatch=monkeypatch) == 0  # more of the same held-out problems
    (copy / "run" / "checkpoint-1" / IDENTITY).unlink()  # as an older version left it
    manifest = json.loads((copy / "run" / "checkpoint-1" / "manifest.json").read_text())
    manifest.pop(IDENTITY)
    (copy / "run" / "checkpoint-1" / "manifest.json").write_text(json.dumps(manifest))
    lines(copy / "data.jsonl", lambda rows: rows[1:])
    assert go(copy, *RESUME, monkeypatch=monkeypatch) == 0
    assert "is of an older version and has no fingerprints" in capsys.readouterr().out
    (copy / "data.jsonl").rename(copy / "d.jsonl")
    assert "--dataset d.jsonl differs from the resumed run's data.jsonl" in go(
        copy, "--dataset", "d.jsonl", "--resume_from_checkpoint", "run/checkpoint-1", "--reward", "reward.py:score", monkeypatch=monkeypatch
    )


def test_a_checkpoint_names_no_folder_of_this_machine(whole):
    text = (whole / "run" / "checkpoint-2" / IDENTITY).read_text()
    assert str(whole) not in text and len(text) < 4000


def test_files_that_a_reward_imports_are_found_and_no_others(tmp_path):
    (tmp_path / "package" / "deep").mkdir(parents=True)
    texts = {
        "reward.py": "from . import nothing\nimport json, helper\nfrom package import one\nimport not_there\n",
        "helper.py": "import reward\n",
        "other.py": "",
        "package/__init__.py": "from .two import x\nfrom . import deep\n",
        "package/one.py": "def f():\n    from package.deep.three import y\n",
        "package/two.py": "from ... import outside\n",
        "package/deep/__init__.py": "",
        "package/deep/three.py": "this is no Python",
        "../outside.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found = {str(path.relative_to(tmp_path)) for path in imported_beside(tmp_path / "reward.py")}
    assert found == texts.keys() - {"reward.py", "other.py", "../outside.py"}
