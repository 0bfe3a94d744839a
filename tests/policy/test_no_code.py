"""What keeps other people's code from running is held for all of the source: one argument that is left out would be enough."""

import ast
from pathlib import Path

import torch
from helpers import ROOT, run
from hostile.models import Call

from common.files import sha256

SOURCES = [path for folder in (".", "common", "examples", "benchmarks", "tools")
           for path in ((ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py"))]
LOADERS = {"from_pretrained", "from_config", "LLM"}


def calls(path: Path):
    """(name, call) of each call in a file; the name of a.b.c() is b.c."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ".".join(ast.unparse(node.func).split(".")[-2:]), node


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(word.value) for word in call.keywords if word.arg == name), None)


def test_every_load_says_that_no_code_is_trusted():
    found = [(path, call.lineno) for path in SOURCES for name, call in calls(path)
             if name.rpartition(".")[2] in LOADERS and keyword(call, "trust_remote_code") is not False]
    assert not found
    assert sum(name.rpartition(".")[2] in LOADERS for path in SOURCES for name, _ in calls(path)) > 5


def test_no_pickle_is_read_and_nothing_is_executed():
    read = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "dill.loads", "numpy.load", "np.load", "eval",
            "exec", "pandas.read_pickle", "yaml.load", "PeftModel.from_pretrained"}
    allowed = {
        # runs the programs of a model, in a process that can do nothing else
        (ROOT / "examples" / "rewards" / "unit_tests.py", "exec"),
        # what the processes of one run send each other. torch.distributed pickles as well, and their network must be trusted
        (ROOT / "common" / "parallel.py", "pickle.loads")}
    assert not [(path, call.lineno) for path in SOURCES for name, call in calls(path)
                if name in read and path.parent.name != "benchmarks" and (path, name) not in allowed]
    loads = [(path, call) for path in SOURCES for name, call in calls(path) if name == "torch.load"]
    assert loads and not [(path, call.lineno) for path, call in loads if keyword(call, "weights_only") is not True]


def test_pickles_in_a_checkpoint_are_not_run(finished, tmp_path, monkeypatch):
    """A trainer's state with a call in it, and pickles beside it that other programs leave there."""
    import json
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished("train_grpo", "--max_steps", "2"), folder)
    for checkpoint in folder.glob("checkpoint-*"):
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        for name in ("trainer_state.pt", "training_args.bin", "optimizer.pt", "rng_state.pth"):
            torch.save({"step": Call(tmp_path)}, checkpoint / name)
            if name in manifest:  # as somebody would who wants it to look whole
                manifest[name] = {"bytes": (checkpoint / name).stat().st_size, "sha256": sha256(checkpoint / name)}
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    ended = run("train_grpo", folder, "--max_steps", "3", "--resume_from_checkpoint", "auto", monkeypatch=monkeypatch)
    assert not (tmp_path / "RAN").exists()
    assert isinstance(ended, str) and "trainer_state.pt" in ended and "\n" not in ended
