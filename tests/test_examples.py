"""Every script in examples/: what it says of itself, how far it is from its base, and three steps of it."""

import importlib
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, assert_same_checkpoint, completions, metrics, run
from torch.testing import assert_close

from common.policy.loss import aggregate

sys.path.append(str(ROOT / "tools"))  # the folder of tools is no package
import list_examples as catalogue

EXAMPLES = [path.stem for path in catalogue.examples()]
# two optimiser steps a batch, since some methods are their base with one; a length that cuts no solution off
THREE_STEPS = ("--max_steps", "3", "--num_minibatches", "2", "--eval_steps", "0")


def both(name):
    """The text of an example, that of its base, and the parts that the example changes."""
    text = (ROOT / "examples" / f"{name}.py").read_text()
    base, changed = catalogue.base_of(catalogue.read_fields(text))
    return text, base.read_text(), changed


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_near_its_base(name):
    text, base, changed = both(name)
    added, _ = catalogue.changed_lines(text, base)
    assert 0 < added <= 60
    assert catalogue.PATH_LINE in text and f"    python examples/{name}.py" in text and "\nDeviations: " in text
    here, there = catalogue.parts(text), catalogue.parts(base)
    assert here.keys() == there.keys() and changed <= here.keys()
    differ = {part for part in there if here[part] != there[part]}
    assert differ == changed, "a fix of the base has not reached the example (tools/carry.py), or its line 'Base:' is wrong"


def test_a_phase_that_the_base_alone_has_changed_is_found():
    text, base, changed = both("gspo")
    assert changed == {"6"}
    moved = base.replace("sampler.record()", "sampler.record(again=True)")
    assert catalogue.parts(moved)["3"] != catalogue.parts(text)["3"]
    assert catalogue.changed_lines(base, base) == (0, 0) and catalogue.changed_lines(moved, base) == (1, 1)
    assert catalogue.changed_lines(base.replace("\nimport torch\n", "\nimport torch\n\nimport json\n"), base) == (0, 0)
    with pytest.raises(ValueError, match="'Cost: "):
        catalogue.read_fields(text.replace("\nCost: ", "\nPrice: "))


def test_the_table_of_the_examples_is_that_of_the_files():
    page = catalogue.PAGE.read_text()
    assert catalogue.MARKS[0] + "\n" + catalogue.table() + "\n" + catalogue.MARKS[1] in page, "run python tools/list_examples.py"


@pytest.mark.parametrize("name", EXAMPLES)
def test_three_steps_and_exact_resume_where_there_is_more_to_save(name, finished, tmp_path, monkeypatch):
    whole = finished(f"examples.{name}", *THREE_STEPS)
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3] and any(row["grad_norm"] > 0 for row in rows)
    text, base, _ = both(name)
    started = [line for line in text.splitlines() if "run.start(" in line]
    if started[0] in base:  # it saves what its base saves, whose resume is tested
        return
    shutil.copytree(whole, tmp_path / "run")
    where = str(tmp_path / "run" / "checkpoint-2")
    assert run(f"examples.{name}", tmp_path / "run", "--resume_from_checkpoint", where, monkeypatch=monkeypatch, quick=[]) == 0
    assert metrics(tmp_path / "run") == rows and completions(tmp_path / "run") == completions(whole)
    assert_same_checkpoint(tmp_path / "run" / "checkpoint-3", whole / "checkpoint-3")


def test_an_example_runs_from_anywhere(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "examples" / "gspo.py", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--epsilon_high" in done.stdout, done.stderr


# ---- the functions of the examples, with numbers that were computed by another program ------------------------------------------------


def test_gspo_has_one_ratio_for_a_completion():
    gspo = importlib.import_module("examples.gspo")
    logps = torch.tensor([[-1.0, -2.0, -0.5], [-0.3, -0.9, 0.0]], requires_grad=True)
    old, mask = torch.tensor([[-1.002, -2.0, -0.5005], [-0.3005, -0.899, 0.0]]), torch.tensor([[True] * 3, [True, True, False]])
    sequence, advantages = gspo.sequence_logps(logps, old, mask), torch.tensor([1.0, -1.0])
    assert_close((sequence - old).exp()[:, 0], torch.tensor([1.000834, 0.999750]), atol=1e-6, rtol=0)
    token_loss = gspo.grpo_token_loss(sequence, old, advantages, epsilon=3e-4, epsilon_high=4e-4)
    loss = aggregate(token_loss, mask, "seq-mean-token-mean", 2.0)
    loss.backward()
    assert_close(loss.detach(), torch.tensor(-0.000325), atol=1e-6, rtol=0)
    assert_close(logps.grad, torch.tensor([[0.0, 0, 0], [0.249938, 0.249938, 0]]), atol=1e-6, rtol=0)
    # completions of one token: GRPO at the same epsilon
    one, before = logps.detach()[:, :1], old[:, :1] - 0.1
    args = {"advantages": advantages, "epsilon": 0.2, "epsilon_high": 0.2}
    assert_close(gspo.grpo_token_loss(gspo.sequence_logps(one, before, mask[:, :1]), before, **args),
                 gspo.grpo_token_loss(one, before, **args))  # fmt: skip


@pytest.mark.parametrize(
    "cap, loss, gradient",
    [(1.28, 0.783664, [-0.32, -0.25, -0.112332, -0.32]), (5.0, 1.061845, [-0.412180, -0.25, -0.112332, -1.25])],
)
def test_cispo_caps_the_weight_and_keeps_every_gradient(cap, loss, gradient):
    cispo = importlib.import_module("examples.cispo")
    logps = torch.tensor([[-1.0, -0.7, -2.0, -0.2]], requires_grad=True)
    token_loss = cispo.cispo_token_loss(logps, torch.tensor([[-1.5, -0.7, -1.2, -1.9]]), torch.ones(1), max_ratio=cap)
    token_loss.mean().backward()
    assert_close(token_loss.mean().detach(), torch.tensor(loss), atol=1e-6, rtol=0)
    assert_close(logps.grad, torch.tensor([gradient]), atol=1e-6, rtol=0)
