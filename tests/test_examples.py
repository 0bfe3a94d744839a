"""Every script in examples/: what it says of itself, how far it is from its base, and three steps of it."""

import html
import importlib
import re
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, assert_same_checkpoint, completions, metrics, own, reference, run
from torch.testing import assert_close

from common.errors import UserError
from common.policy.loss import aggregate, selected_logps

sys.path.append(str(ROOT / "tools"))  # the folder of tools is no package
import gallery
import list_examples as catalogue

EXAMPLES = [path.stem for path in catalogue.examples()]
# two optimiser steps a batch, since some methods are their base with one; a length that cuts no solution off
FURTHER = {"entropy_target": ("--target_entropy", "5")}  # flags without which three steps would not show the method
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


def test_the_numbers_in_the_tests_are_counted_as_they_are_written():
    text = """close(x, reference("gspo sapo", [[-0.5, 1], [*[0.25] * 3, 0]]))\nclose(y, own("gspo", -2.0))\nother("gspo", 3)"""
    assert catalogue.tested([text, text]) == {("reference", "gspo"): 8, ("reference", "sapo"): 8, ("own", "gspo"): 2}
    for unclear in ("list(range(10))", "[0.5 + x]", "[True]", "'1'", "3 * [1]"):
        with pytest.raises(ValueError, match="give numbers and lists of them"):
            catalogue.tested([f'reference("gspo", {unclear})'])
    counted = catalogue.tested(path.read_text() for path in (ROOT / "tests").glob("test_example*.py"))
    assert {name for _, name in counted} == set(EXAMPLES)


def test_the_gallery_has_every_difference_and_needs_no_network():
    page = gallery.page()
    assert re.findall(r'<h2 id="(\w+)"', page) == EXAMPLES
    assert not re.search(r"(src|href)=\"(?!#)|@import|url\(|<script", page)
    sections = page.split("<section>")[1:]
    for name, section in zip(EXAMPLES, sections, strict=True):
        text, base, _ = both(name)
        (here, _), (there, _) = gallery.code_of(text), gallery.code_of(base)
        for source in (here, there):  # colours leave the text as it is
            assert [html.unescape(re.sub(r"<[^>]*>", "", line)) for line in gallery.coloured(source)] == source.splitlines()
        rows = re.findall(r'<div class="(add|del)">(.*)</div>', section)
        shown = [(kind, html.unescape(re.sub(r"<[^>]*>", "", line))) for kind, line in rows]
        assert {line for kind, line in shown if kind == "add"} >= set(here.splitlines()) - set(there.splitlines())
        assert {line for kind, line in shown if kind == "del"} >= set(there.splitlines()) - set(here.splitlines())


@pytest.mark.parametrize("name", EXAMPLES)
def test_three_steps_and_exact_resume_where_there_is_more_to_save(name, finished, tmp_path, monkeypatch):
    whole = finished(f"examples.{name}", *THREE_STEPS, *FURTHER.get(name, ()))
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3] and any(row["grad_norm"] > 0 for row in rows)
    text, base, _ = both(name)
    if name == "entropy_target":
        assert [row["entropy_coef"] for row in rows] == pytest.approx([0.01, 0.02, 0.03])
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


# ---- the functions of the examples ----------------------------------------------------------------------------------------------------


def test_gspo_has_one_ratio_for_a_completion():
    gspo = importlib.import_module("examples.gspo")
    logps = torch.tensor([[-1.0, -2.0, -0.5], [-0.3, -0.9, 0.0]], requires_grad=True)
    old, mask = torch.tensor([[-1.002, -2.0, -0.5005], [-0.3005, -0.899, 0.0]]), torch.tensor([[True] * 3, [True, True, False]])
    sequence, advantages = gspo.sequence_logps(logps, old, mask), torch.tensor([1.0, -1.0])
    assert_close((sequence - old).exp()[:, 0], torch.tensor(reference("gspo", [1.000834, 0.999750])), atol=1e-6, rtol=0)
    token_loss = gspo.grpo_token_loss(sequence, old, advantages, epsilon=3e-4, epsilon_high=4e-4)
    loss = aggregate(token_loss, mask, "seq-mean-token-mean", 2.0)
    loss.backward()
    assert_close(loss.detach(), torch.tensor(reference("gspo", -0.000325)), atol=1e-6, rtol=0)
    assert_close(logps.grad[mask], torch.tensor(reference("gspo", [0.0, 0, 0, 0.249938, 0.249938])), atol=1e-6, rtol=0)
    assert logps.grad[~mask].eq(0).all()
    # completions of one token: GRPO at the same epsilon
    one, before = logps.detach()[:, :1], old[:, :1] - 0.1
    args = {"advantages": advantages, "epsilon": 0.2, "epsilon_high": 0.2}
    assert_close(gspo.grpo_token_loss(gspo.sequence_logps(one, before, mask[:, :1]), before, **args),
                 gspo.grpo_token_loss(one, before, **args))  # fmt: skip


@pytest.mark.parametrize(
    "cap, loss, gradient",
    [
        (1.28, *reference("cispo", (0.783664, [-0.32, -0.25, -0.112332, -0.32]))),
        (5.0, *reference("cispo", (1.061845, [-0.412180, -0.25, -0.112332, -1.25]))),
    ],
)
def test_cispo_caps_the_weight_and_keeps_every_gradient(cap, loss, gradient):
    cispo = importlib.import_module("examples.cispo")
    logps = torch.tensor([[-1.0, -0.7, -2.0, -0.2]], requires_grad=True)
    token_loss = cispo.cispo_token_loss(logps, torch.tensor([[-1.5, -0.7, -1.2, -1.9]]), torch.ones(1), max_ratio=cap)
    token_loss.mean().backward()
    assert_close(token_loss.mean().detach(), torch.tensor(loss), atol=1e-6, rtol=0)
    assert_close(logps.grad, torch.tensor([gradient]), atol=1e-6, rtol=0)


def close(found, wanted):
    assert_close(found.float(), torch.tensor(wanted, dtype=torch.float32), atol=1.5e-6, rtol=0)


def masks(*lengths):
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def test_opo_weights_the_baseline_with_lengths():
    opo = importlib.import_module("examples.opo")
    lengths, zeros = torch.tensor([100, 300, 400, 200]), torch.zeros(4, dtype=torch.long)
    advantages = opo.opo_advantages(torch.tensor([1.0, 0, 0, 1]), lengths, zeros)
    close(advantages, reference("opo", [0.7, -0.3, -0.3, 0.7]))
    assert abs((lengths * advantages).sum()) < 1e-3
    assert opo.opo_advantages(torch.full((4,), 0.1), lengths, zeros).tolist() == [0] * 4


@pytest.mark.parametrize("greedy, wanted", [(1.0, reference("remax", [0, -1, -1, 0])), (0.0, reference("remax", [1, 0, 0, 1]))])
def test_remax_subtracts_the_reward_of_the_greedy_completion(greedy, wanted):
    remax = importlib.import_module("examples.remax")
    rewards, groups = torch.tensor([0.5, 1.0, 0, 0, 1]), torch.tensor([0, 1, 1, 1, 1])
    assert remax.remax_advantages(rewards, torch.tensor([0.5, greedy]), groups).tolist() == [0, *wanted]


@pytest.mark.parametrize(
    "ratio, positive, negative",
    [
        (1.0, *reference("sapo", ((2, 1), (1.904762, 1)))),
        (1.5, *reference("sapo", ((2.489837, 1.410022), (2.393585, 1.401210)))),
        (0.5, *reference("sapo", ((1.510163, 0.470007), (1.415938, 0.467070)))),
    ],
)
def test_sapo_has_a_soft_gate(ratio, positive, negative):
    sapo = importlib.import_module("examples.sapo")
    logps = torch.full((2, 1), ratio).log().requires_grad_()
    loss = sapo.sapo_token_loss(logps, torch.zeros(2, 1), torch.tensor([1.0, -1.0]), tau_positive=1.0, tau_negative=1.05)
    loss.sum().backward()
    close(loss.detach()[:, 0], [-positive[0], negative[0]])
    close(logps.grad[:, 0], [-positive[1], negative[1]])


def test_gmpo_is_a_geometric_mean_clipped_on_one_side():
    gmpo = importlib.import_module("examples.gmpo")
    differences, mask = torch.tensor([[0.5, 0, -0.8, 9.0]] * 2), masks(3, 4)[:1].expand(2, 4)
    logps, advantages = differences.clone().requires_grad_(), torch.tensor([1.0, -1.0])
    x = gmpo.clipped_differences(logps, torch.zeros(2, 4), advantages, clip=0.4)
    close(x.detach()[:, :3], reference("gmpo", [[0.4, 0, -0.8], [0.5, 0, -0.4]]))
    loss = gmpo.gmpo_token_loss(logps, torch.zeros(2, 4), advantages, mask, clip=0.4)
    close(loss.detach()[:, 0], reference("gmpo", [-0.875173, 1.033895]))
    aggregate(loss, mask, "seq-mean-token-mean", 2.0).backward()
    # the gradient of -A exp(mean x) itself, by autograd
    again = differences.clone().requires_grad_()
    mean = gmpo.clipped_differences(again, torch.zeros(2, 4), advantages, clip=0.4)[:, :3].mean(dim=1)
    (-advantages * mean.exp()).mean().backward()
    assert_close(logps.grad, again.grad)


def test_reinforce_pp_whitens_over_tokens():
    module = importlib.import_module("examples.reinforce_pp")
    rewards, groups = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0]), torch.tensor([0] * 4 + [1] * 4)
    found = module.whitened_advantages(rewards, groups, masks(4, 2, 2, 2, 1, 1, 1, 7), group_baseline=True)
    close(found, reference("reinforce_pp", [1.562964, *[-0.173663] * 3, *[0.694651] * 3, -1.041976]))
    solved = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 1])  # a group with equal rewards gets an advantage
    found = module.whitened_advantages(solved, groups, masks(1, 3, 3, 3, 2, 2, 2, 2), group_baseline=True)
    close(found, reference("reinforce_pp", [3.435921, *[-0.687184] * 3, *[0.343592] * 4]))
    alone = module.whitened_advantages(torch.tensor([1.0, 0, 0, 1]), torch.arange(4), masks(2, 2, 2, 2), group_baseline=False)
    close(alone, own("reinforce_pp", [0.935414, -0.935414, -0.935414, 0.935414]))  # 0.5 / sqrt(2 / 7)


@pytest.mark.parametrize(
    "share, kept",
    [(0.2, reference("top_entropy", [1, 4])), (0.5, reference("top_entropy", [1, 4, 5, 8, 9])), (1.0, list(range(10)))],
)
def test_top_entropy_tokens_are_those_of_the_whole_batch(share, kept):
    module = importlib.import_module("examples.top_entropy")
    entropies = torch.tensor([[0.02, 1.3, 0.4, 0, 2.1, 9.0], [0.7, 0.05, 0.3, 1.1, 0.6, 9.0]])
    mask = torch.tensor([[True] * 5 + [False]] * 2)
    found = module.top_entropy(entropies, mask, share)
    assert not found[:, 5].any() and found[:, :5].flatten().nonzero()[:, 0].tolist() == kept


def test_kl_cov_and_clip_cov_hold_back_the_tokens_of_highest_covariance():
    module = importlib.import_module("examples.kl_cov")
    advantages, mask = torch.tensor([1.0, -1.0]), torch.tensor([[True] * 3 + [False]] * 2)
    logps = torch.tensor([[-0.1, -2.3, -0.7, 5], [-4, -0.05, -1.2, 5]])
    cov = module.covariances(advantages, logps, mask)
    close(cov[:, :3], reference("kl_cov", [[1.291667, -0.908333, 0.691667], [2.608333, -1.341667, -0.191667]]))
    chosen = module.held_back(cov, mask, "kl", 1 / 3, 0)
    assert chosen[mask].nonzero()[:, 0].tolist() == reference("kl_cov", [0, 3])
    candidates = module.held_back(cov, mask, "clip", 0.9, 0)  # no more than there are
    assert candidates[mask].nonzero()[:, 0].tolist() == reference("kl_cov", [0, 3]) and not (chosen | candidates)[~mask].any()
    drawn = {tuple(module.held_back(cov, mask, "clip", 1e-3, seed).nonzero()[0].tolist()) for seed in range(20)}
    assert drawn == {(0, 0), (1, 0)}
    now = (logps + torch.tensor([[0.1, -0.2, 0, 0], [0.3, 0, -0.1, 0]])).requires_grad_()
    loss = aggregate(module.kl_cov_token_loss(now, logps, advantages, chosen, 1.0), mask, "token-mean", 6.0)
    loss.backward()
    close(loss.detach(), reference("kl_cov", 0.121799))
    close(now.grad[:, :3], reference("kl_cov", [[-0.017528, -0.136455, -0.166667], [0.391643, 0.166667, 0.150806]]))
    with pytest.raises(UserError, match="num_minibatches 2 or more"):
        module.Config(num_minibatches=1).check()
    module.Config().check()


def test_the_weight_of_the_entropy_bonus_follows_the_target():
    module = importlib.import_module("examples.entropy_target")
    bonus = module.EntropyBonus(target=0.2, delta=0.005, largest=0.008)
    assert bonus.weight == 0
    expected = own("entropy_target", [(0.005, 0.005), (0.008, 0.008), (0.003, 0), (0.003, 0), (0, 0)])
    for entropy, (coef, weight) in zip((0.1, 0.2, 0.3, None, 0.3), expected, strict=True):
        bonus.update(entropy)
        assert abs(bonus.coef - coef) < 1e-12 and abs(bonus.weight - weight) < 1e-12
    bonus.update(0.1)
    again = module.EntropyBonus(target=0.2, delta=0.005, largest=0.008)
    again.load_state_dict(bonus.state_dict())
    assert again == bonus


def test_the_gradient_of_the_entropy_bonus_is_exact():
    """Both examples take it from here; the score form, whose expectation is this, is not needed."""
    logits = torch.tensor([[1, 0.2, -0.5, 2]], requires_grad=True)
    _, entropy = selected_logps(logits, torch.eye(4), torch.tensor([0]), temperature=1.0, entropy=True)
    entropy.sum().backward()
    close(entropy.detach(), reference("entropy_bonus entropy_target", [1.018500]))
    close(logits.grad, reference("entropy_bonus entropy_target", [[0.104993, 0.129045, 0.099655, -0.333693]]))


def test_an_entropy_bonus_of_weight_zero_is_the_base(finished):
    flags = ("--max_steps", "2", "--num_minibatches", "2", "--eval_steps", "0")
    base, none = metrics(finished("train_grpo", *flags)), metrics(finished("examples.entropy_bonus", *flags, "--entropy_coef", "0"))
    for name in ("reward", "grad_norm"):
        assert [row[name] for row in none] == pytest.approx([row[name] for row in base], rel=1e-3)


def test_copo_weighs_group_and_batch_by_the_entropy_of_the_answers():
    copo = importlib.import_module("examples.copo")
    rewards, groups = torch.tensor([0.0] * 6 + [1, 1, 1, 0, 0, 0] + [1, 0, 0, 0, 0, 0]), torch.arange(3).repeat_interleave(6)
    of_group, of_batch = copo.copo_advantages(rewards, groups, torch.full((3,), 9.0), k=20.0, b=1.5)
    close(of_group[6:9], reference("copo", [*[0.912869] * 3]))  # w is 1, and 0 where the reward is 0
    assert not of_group[:6].any() and not of_group[9:12].any() and of_batch[6:9].abs().max() < 1e-6
    close(of_batch[[0, 9, 13]], reference("copo", [-0.872868, 1.091085, -0.218217]))
    for answers, k, b, (bits, weight) in (
        (["1", "1", "1.0", "2", "2", None], 5.0, 1.0, reference("copo", (1.459148, 0.908524))),
        (["1", "1", "1.0", "2", "2", None], 20.0, 1.5, (1.459148, reference("copo", 0.306392))),
        (["1/2", "0.5"], 5.0, 1.0, reference("copo", (0, 0.006693))),
        ([None, None], 5.0, 1.0, (0, 0.006693)),
        (["1", "2", "3", "4", "5", "6"], 5.0, 1.0, reference("copo", (2.584963, 0.999638))),
        (["1", "1", "1", "1", "2", "2"], 5.0, 1.0, reference("copo", (0.918296, 0.399267))),
    ):
        entropy = copo.answer_entropy(answers)
        assert entropy == pytest.approx(bits, abs=1e-6)
        weighted, rest = copo.copo_advantages(rewards, groups, torch.full((3,), entropy), k=k, b=b)
        assert (weighted / of_group)[6:9].tolist() == pytest.approx([weight] * 3, abs=2e-6)
        assert (rest / of_batch[9])[6:9].tolist() == pytest.approx([1 - weight] * 3, abs=2e-6)
    one, alone = copo.copo_advantages(rewards[:6], groups[:6], torch.zeros(1), k=5.0, b=1.0)
    assert not one.any() and not alone.any()
