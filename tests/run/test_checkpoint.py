import errno
import json
import random
import re

import pytest
import torch
from helpers import make_policy
from hostile import pages

import common.files as files
import common.run.checkpoint as checkpoint
from common.errors import UserError
from common.policy.optim import make_optimizer
from common.run.checkpoint import load_checkpoint, save_checkpoint
from common.run.resume import checkpoints, newest_checkpoint, what_is_missing
from common.run.run import Run


class Counter:
    def __init__(self):
        self.value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


@pytest.fixture
def policy(random_models, tokenizer):
    return make_policy(random_models["llama"], tokenizer)


def train_a_little(policy, optimizer, steps=2):
    for _ in range(steps):
        sum(p.square().sum() for p in policy.parameters_of().values()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_checkpoint_brings_everything_back(policy, tmp_path):
    optimizer, counter = make_optimizer(policy.parameters_of(), 0.1), Counter()
    train_a_little(policy, optimizer)
    counter.value = 7
    folder = save_checkpoint(tmp_path, 4, [policy], {"optimizer": optimizer, "counter": counter}, keep=2, card="# card")
    weights = {name: p.detach().clone() for name, p in policy.parameters_of().items()}
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    random_before = torch.rand(3)
    train_a_little(policy, optimizer)
    counter.value = 0
    fresh = make_optimizer(policy.parameters_of(), 0.1)
    assert load_checkpoint(folder, [policy], {"optimizer": fresh, "counter": counter}) == 4
    assert all(torch.equal(p, weights[name]) for name, p in policy.parameters_of().items())
    assert all(torch.equal(state["exp_avg"], moment) for state, moment in zip(fresh.state.values(), moments, strict=True))
    assert counter.value == 7 and torch.equal(torch.rand(3), random_before)
    assert {"adapter_model.safetensors", "adapter_config.json", "trainer_state.pt"} <= {p.name for p in folder.iterdir()}


def test_cut_off_at_any_byte_it_never_loads(policy, tmp_path):
    folder = save_checkpoint(tmp_path, 1, [policy], {"counter": Counter()}, keep=0, card="# card")
    assert what_is_missing(folder) is None
    rng = random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        cuts = (
            range(len(whole))
            if path.name == files.MANIFEST
            else {0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))}
        )
        for cut in cuts:
            path.write_bytes(whole[:cut])
            assert what_is_missing(folder) is not None, (path.name, cut)
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert what_is_missing(folder) is not None, path.name
        path.unlink()
        assert what_is_missing(folder) is not None, path.name
        with pytest.raises(UserError, match="not a whole checkpoint"):
            load_checkpoint(folder, [policy], {})
        path.write_bytes(whole)
    assert what_is_missing(folder) is None


@pytest.mark.parametrize("where", ["save", "torch.save", "_flush", "rename"])
def test_a_save_that_breaks_off_leaves_the_older_one(where, policy, tmp_path, monkeypatch):
    first = save_checkpoint(tmp_path, 1, [policy], {"counter": Counter()}, keep=1, card="# card")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    owner, name = {
        "save": (policy, "save"),
        "torch.save": (torch, "save"),
        "_flush": (files, "_flush"),
        "rename": (checkpoint.Path, "rename"),
    }[where]
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, [policy], {"counter": Counter()}, keep=1, card="# card")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"] and what_is_missing(first) is None


def test_only_the_newest_are_kept_and_auto_finds_the_newest_whole_one(policy, tmp_path, capsys):
    run = tmp_path / "run-1"
    run.mkdir()
    for step in (2, 10, 9):
        save_checkpoint(run, step, [policy], {"counter": Counter()}, keep=2, card="# card")
    assert [p.name for p in checkpoints(run)] == ["checkpoint-9", "checkpoint-10"]
    (run / "checkpoint-11.tmp").mkdir()
    assert newest_checkpoint(run) == run / "checkpoint-10"
    (run / "checkpoint-10" / "trainer_state.pt").write_bytes(b"cut")
    assert newest_checkpoint(run) == run / "checkpoint-9"
    assert "skipping" in capsys.readouterr().out
    assert newest_checkpoint(tmp_path / "empty") is None


def test_trainer_state_holds_nothing_that_runs_code_when_loaded(policy, tmp_path):
    folder = save_checkpoint(tmp_path, 1, [policy], {"optimizer": make_optimizer(policy.parameters_of(), 0.1)}, keep=0, card="# card")
    assert torch.load(folder / "trainer_state.pt", weights_only=True)["step"] == 1
    assert set(json.loads((folder / files.MANIFEST).read_text())) == {p.name for p in folder.iterdir()} - {files.MANIFEST}


MANIFESTS = {
    "device": "names /dev/zero, which is no file of this folder",
    "outside": r"names \.\./.*, which is no file of this folder",
    "link": "x/zero is behind a link",
    "lists_a_pipe": "it is a pipe and not a plain file: pipe",
    "is_a_pipe": "it is a pipe and not a plain file: manifest.json",
    "one_file_by_many_names": "names ./trainer_state.pt, which is no file of this folder",
    "large": "manifest.json has more than 1 MiB",
    "deep": "manifest.json is damaged",
    "of_wrong_types": "manifest.json is damaged",
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_of_other_people_reads_nothing_elsewhere(case, tmp_path):
    assert re.search(MANIFESTS[case], what_is_missing(getattr(pages, f"make_manifest_{case}")(tmp_path)))


@pytest.mark.parametrize("state", [[1], {}, {"value": "x"}, {"value": -1}])
def test_a_state_of_other_people_is_refused_in_one_line(state, policy, tmp_path):
    class Part:
        def state_dict(self):
            return state

        def load_state_dict(self, state):
            if state["value"] < 0:
                raise ValueError

    folder = save_checkpoint(tmp_path, 1, [policy], {"part": Part()}, keep=0, card="# card")
    with pytest.raises(UserError, match=r"trainer_state.pt is not the state of a run"):
        load_checkpoint(folder, [policy], {"part": Part()})


def test_the_progress_of_a_run_is_counts():
    run = object.__new__(Run)
    good = {"step": 2, "num_tokens": 5, "num_completions": 4}
    run.load_state_dict(good)
    assert run.state_dict() == good
    for wrong in ({"step": -(10**9)}, {"num_tokens": "5"}, {"num_completions": None}):
        with pytest.raises(ValueError, match="no counts"):
            run.load_state_dict({**good, **wrong})
