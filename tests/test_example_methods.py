"""More functions of examples/, against numbers that were worked out apart from them, and short runs where a function is not all."""

import importlib
import shutil
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from helpers import metrics, own, reference, run
from torch.testing import assert_close

from common.errors import UserError
from common.records import Completion, Problem, make_batch
from common.rollout.reasoning_steps import split_steps
from common.rollout.text import token_offsets
from examples import astar_po, capo, dppo, empg, kl_cov, pass_at_k, self_correction, vespo


def close(actual, expected):
    assert_close(torch.as_tensor(actual).double(), torch.as_tensor(expected).double(), atol=2e-6, rtol=0)


def group_of(right, n):
    return torch.tensor([1.0] * right + [0.0] * (n - right)), torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize(
    ("k", "plain", "centred"),
    [
        (2, *reference("pass_at_k", ((0.25, 0.071429), 0.214286))),
        (4, *reference("pass_at_k", ((0.5, 0.357143), 0.285714))),
        (8, own("pass_at_k", (1, 1)), reference("pass_at_k", 0)),
    ],
)
def test_pkpo_has_the_weights_of_the_gradient_of_pass_at_k(k, plain, centred):
    rewards, groups = group_of(2, 8)
    close(pass_at_k.pass_at_k_advantages(rewards, groups, k, "pkpo")[[0, -1]], plain)
    close(pass_at_k.pass_at_k_advantages(rewards, groups, k, "pkpo_loo")[[0, -1]], (centred, 0))


@pytest.mark.parametrize("right", range(6))
def test_pkpo_is_the_mean_over_the_sets(right):
    rewards, groups = group_of(right, 5)
    sets = list(combinations(range(5), 3))
    best = [rewards[list(chosen)].max().item() for chosen in sets]
    plain = [sum(score for chosen, score in zip(sets, best, strict=True) if i in chosen) / len(sets) for i in range(5)]
    without = [sum(rewards[[j for j in chosen if j != i]].max().item() for chosen in sets if i in chosen) / len(sets) for i in range(5)]
    close(pass_at_k.pass_at_k_advantages(rewards, groups, 3, "pkpo"), plain)
    close(pass_at_k.pass_at_k_advantages(rewards, groups, 3, "pkpo_loo"), torch.tensor(plain) - torch.tensor(without))


def test_pkpo_runs(finished):
    flags = ("--max_steps", "1", "--eval_steps", "0", "--num_minibatches", "2", "--method", "pkpo")
    assert metrics(finished("examples.pass_at_k", *flags))[0]["grad_norm"] > 0


def test_clip_cov_holds_a_token_back_in_each_step(finished, tmp_path, monkeypatch):
    flags, found, real = ("--max_steps", "2", "--eval_steps", "0", "--num_minibatches", "2"), [], kl_cov.held_back
    monkeypatch.setattr(kl_cov, "held_back", lambda cov, *rest: found.append((cov, real(cov, *rest))) or found[-1][1])
    assert run("examples.kl_cov", tmp_path / "run", *flags, "--method", "clip", "--cov_share", "2e-4", monkeypatch=monkeypatch) == 0
    base = metrics(finished("train_grpo", *flags))
    for row, expected, (cov, chosen) in zip(metrics(tmp_path / "run"), base, found, strict=True):
        assert chosen.sum() == min(1, ((cov > 1) & (cov < 5)).sum()) and (chosen & ((cov <= 1) | (cov >= 5))).sum() == 0
        assert (row["clip_ratio/region_mean"] > 0) == bool(chosen.any())
        if expected["step"] == 1:  # afterwards the two policies differ
            assert (row["grad_norm"] != expected["grad_norm"]) == bool(chosen.any())
    assert any(chosen.any() for _, chosen in found)
    kl_cov.Config(method="clip", num_minibatches=1).check()


STEPS_OF = torch.tensor([[1, 2, 3], [4, 5, -1]])  # numbers of steps, one token each


def test_empg_gives_sure_steps_more_of_the_advantage():
    entropies, advantages = torch.tensor([[0.2, 0.8, 0.5], [1.0, 0.4, 9.0]]), torch.tensor([1.0, -1.0])
    found = empg.empg_advantages(entropies, advantages, STEPS_OF, k=1.0, k_next=1.0, zeta=0.1)
    mask = STEPS_OF >= 0
    close(found[mask], reference("empg", [1.214341, 0.437921, 0.694209, -0.823588, -1.522883]))
    before = torch.tensor(reference("empg", [1.559485, 0.783064, 1.039352, -0.478445, -1.177740]))
    close(found[mask], before - before.mean())
    assert found[~mask].eq(0).all()
    plain = empg.empg_advantages(entropies, advantages, STEPS_OF, k=0.0, k_next=0.0, zeta=0.0)  # advantage minus its mean over the steps
    close(plain[mask], own("empg", [*[0.8] * 3, *[-1.2] * 2]))
    twice = torch.tensor([[1, 1, 2], [3, 3, 3]])  # H of a step is the mean of its tokens
    found = empg.empg_advantages(torch.tensor([[0.1, 0.3, 0.4], [0.1, 0.2, 0.3]]), advantages, twice, k=1.0, k_next=0.0, zeta=0.5)
    weight = torch.exp(-torch.tensor([0.0, 1, 0]))
    values = torch.tensor([1.0, 1, -1]) * weight / weight.mean() + torch.tensor([0.5, 0, 0])
    close(found, (values - values.mean())[torch.tensor([[0, 0, 1], [2, 2, 2]])])
    alike = empg.empg_advantages(torch.ones(2, 3), advantages, STEPS_OF, k=5.0, k_next=0.0, zeta=0.0)
    close(alike, [[0.8] * 3, [-1.2, -1.2, 0]])
    assert not empg.empg_advantages(torch.ones(1, 2), torch.ones(1), torch.full((1, 2), -1), k=1.0, k_next=1.0, zeta=1.0).any()


def test_empg_counts_the_lines_of_completions(tokenizer):
    texts = ["3+4=7\n7-2=5\n#### 5", "#### 5"]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    problem = Problem("p", "?", (1,), "5")
    batch = make_batch([problem], [[Completion(own, [0.0] * len(own), "stop", text) for own, text in zip(ids, texts, strict=True)]])
    numbers = empg.step_numbers(batch, batch.loss_mask(), tokenizer, "lines")
    offsets = token_offsets(tokenizer, ids[0])
    expected = [1 + sum(offset >= cut for cut in split_steps(texts[0])[1:-1]) for offset in offsets]
    assert numbers[0].tolist() == expected and len(set(expected)) > 1
    assert numbers[1].tolist() == [expected[-1] + 1] * len(ids[1]) + [-1] * (len(ids[0]) - len(ids[1]))
    dropped = empg.step_numbers(batch, batch.loss_mask(torch.tensor([True, False])), tokenizer, "lines")
    assert dropped[0].eq(-1).all() and dropped[1, : len(ids[1])].unique().numel() == 1


def test_capo_predicts_what_a_step_on_one_token_does():
    logits, token, one = torch.tensor([[2.0, 0, -1]]), torch.tensor([1]), torch.ones(1)
    shift, change = capo.predicted_changes(logits, token, one, 4 * one, 0.05)
    close(torch.cat([shift, change]), reference("capo", [0.044904, 0.338282]))
    # the objective A log p(token) after such a step of the head W on one token, to second order in the rate
    hidden, rate = torch.tensor([[1.0, 1, 1, 1]], dtype=torch.float64), 1e-3
    head = (logits.double().T @ torch.ones(1, 4, dtype=torch.float64) / 4).requires_grad_()

    def objective(weight):
        return -0.5 * torch.log_softmax(hidden @ weight.T, dim=1)[0, 1]

    (gradient,) = torch.autograd.grad(objective(head), head)
    gain = (objective(head + rate * gradient) - objective(head)).item()
    _, change = capo.predicted_changes(logits.double(), token, torch.tensor([-0.5]), torch.tensor([4.0]), rate)
    first = rate * 0.25 * 4 * reference("capo", 1.498405)
    assert gain == pytest.approx(first, rel=0.01) and change.item() == pytest.approx(first, rel=0.01)
    assert not capo.predicted_changes(logits, token, 0 * one, 4 * one, 0.05)[1].any()


def test_capo_without_thresholds_is_the_base_and_rejected_tokens_leave_the_divisor(finished):
    steps = ("--max_steps", "2", "--eval_steps", "0", "--num_minibatches", "2")
    base = metrics(finished("train_grpo", *steps))
    rows = metrics(finished("examples.capo", *steps, "--capo_tau_shift", "1e30", "--capo_tau_change", "1e30"))
    assert [row.pop("capo/rejected") for row in rows] == [0, 0] and rows == base
    some = metrics(finished("examples.capo", *steps, "--capo_tau_shift", "1e-7"))
    assert 0 < some[0]["capo/rejected"] < 1 and some[0]["grad_norm"] != base[0]["grad_norm"]


def test_astar_po_regresses_on_the_distance_from_the_best_value():
    assert astar_po.best_value([1.0, *[0.0] * 7], 0.5) == pytest.approx(reference("astar_po", 0.293513), abs=1e-6)
    assert astar_po.best_value([1.0, 0.0], 1e3) == pytest.approx(0.5, abs=1e-3)
    assert astar_po.best_value([0.0, 1.0], 1e-3) == pytest.approx(1, abs=1e-3)
    logps = torch.tensor([[1.0, 2.0, 5.0]], requires_grad=True)
    mask, advantages = torch.tensor([[True, True, False]]), torch.tensor([1 - 0.293513])
    loss = astar_po.astar_loss(logps, torch.zeros(1, 3), advantages, mask, 1e-3)
    loss.sum().backward()
    close(loss.detach(), reference("astar_po", [0.494894]))
    close(logps.grad[mask], reference("astar_po", [*[-0.001407] * 2]))
    assert logps.grad[~mask].eq(0).all()


def test_a_first_step_of_astar_po_is_reinforce_with_v_star(finished):
    """At the reference h is 0: the gradient is that of 2 beta2 (R - V*) log-prob."""
    steps = ("--max_steps", "1", "--eval_steps", "0", "--max_tokens_per_microbatch", "200")
    first, second = (metrics(finished("examples.astar_po", *steps, "--beta", beta))[0] for beta in ("1e-3", "1e-2"))
    assert second["grad_norm"] == pytest.approx(10 * first["grad_norm"], rel=1e-4) and first["grad_norm"] > 0
    assert 0 < first["value/mean"] < 1 and first["kl"] == 0
    assert first["num_completions"] == 4 * 4 + 4 * 8  # 16 of the step, and 8 of the reference for each of its problems


def test_astar_po_resumes_with_its_values_and_not_with_problems_that_it_does_not_know(finished, tmp_path, monkeypatch):
    steps = ("--max_steps", "2", "--eval_steps", "0")
    whole = finished("examples.astar_po", *steps)
    shutil.copytree(whole, tmp_path / "run")
    where = ("--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-1"))
    message = run("examples.astar_po", tmp_path / "run", *where, "--max_steps", "3", monkeypatch=monkeypatch, quick=[])
    assert "has no V*" in message
    assert run("examples.astar_po", tmp_path / "run", *where, monkeypatch=monkeypatch, quick=[]) == 0
    assert metrics(tmp_path / "run") == metrics(whole)


def test_a_turn_has_the_advantage_of_its_own_reward():
    rewards, first, groups = torch.tensor([1.0, 1]), torch.tensor([1.0, 0]), torch.zeros(2, dtype=torch.long)
    mask = torch.tensor([[True, False, True, True], [True, True, False, True]])
    found = self_correction.turn_advantages(
        rewards, first, groups, torch.tensor([1, 2]), mask, bonus=1.0, scale_rewards="none", leave_one_out=False
    )
    close(found[mask], own("self_correction", [0.5, *[-0.5] * 2, *[-0.5] * 2, 0.5]))
    found = self_correction.turn_advantages(
        rewards, first, groups, torch.tensor([1, 2]), mask, bonus=0.0, scale_rewards="group", leave_one_out=False
    )
    close(found[mask], own("self_correction", [0.999998, *[0] * 2, *[-0.999998] * 2, 0]))
    assert found[~mask].eq(0).all()


def test_two_turns_are_trained_with_the_question_between_them_left_out(tmp_path, monkeypatch):
    batches, real = [], self_correction.make_batch
    tokenizers, load = [], self_correction.load_tokenizer
    monkeypatch.setattr(self_correction, "load_tokenizer", lambda config: tokenizers.append(load(config)) or tokenizers[-1])
    monkeypatch.setattr(self_correction, "make_batch", lambda *parts: batches.append(real(*parts)) or batches[-1])
    flags = ("--max_steps", "1", "--eval_steps", "1", "--sampling", "lilo", "--candidate_factor", "2")
    assert run("examples.self_correction", tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    before, row = metrics(tmp_path / "run")
    assert {"eval/pass@1", "eval/greedy"} <= before.keys() and 0 <= row["reward/first"] <= 1 and "reward" in row
    for problem, completion in zip(batches[0].problems, batches[0].completions, strict=True):
        given = list(problem.prompt_ids)  # the embedded model is asked the same question again
        place = completion.sampled.index(False)
        assert completion.ids[place : place + len(given)] == given and completion.num_sampled == len(completion.ids) - len(given)
        assert tokenizers[0][0].decode(completion.ids[place + len(given) :], skip_special_tokens=True).startswith(completion.text)
    message = run("examples.self_correction", tmp_path / "short", "--max_completion_length", "9", monkeypatch=monkeypatch)
    assert "no room for two answers" in message


def test_the_second_question_has_the_form_of_the_chat_template():
    class Chat:
        def apply_chat_template(self, chat, **_):
            return "".join(f"<{one['role']}>{one['content']}<end>" for one in chat) + "<assistant>"

        def encode(self, text, **_):
            return text

    config = self_correction.Config(model="m", dataset="d", second_turn="Again: {question}")
    problem, template = Problem("p", "", (1,), "5", question="1+1?"), SimpleNamespace(name="chat")
    assert self_correction.second_question(problem, config, template, Chat()) == "<end><user>Again: 1+1?<end><assistant>"
    assert self_correction.second_question(problem, config, SimpleNamespace(name="plain"), Chat()) == "Again: 1+1?"


def test_dppo_holds_tokens_back_by_how_far_their_probability_moved():
    before, now = (
        torch.tensor([[0.10, 0.50], [0.40, 0.70], [0.50, 0.50]]).log(),
        torch.tensor([[0.30, 0.90], [0.10, 0.52], [0.90, 0.1]]).log(),
    )
    advantages = torch.tensor([1.0, -1.0, -1.0])
    held = dppo.moved_too_far(now, before, advantages, divergence="tv", delta=0.25)
    assert held.tolist() == [[False, True], [True, False], [False, True]]  # moved 0.2, 0.4, 0.3, 0.18; then against A, and with it
    held = dppo.moved_too_far(now, before, advantages, divergence="kl", delta=0.5)
    assert held.tolist() == [[False, True], [False, False], [False, True]]  # nats: 0.1163, 0.5108, 0.3112, 0.0721, then 0.5108 twice
    assert not dppo.moved_too_far(now, before, advantages, divergence="kl", delta=0.511).any()
    sure = torch.tensor([[0.0, -1e-9]])
    assert not dppo.moved_too_far(sure, sure.flip(1), torch.ones(1), divergence="kl", delta=1e-3).any()
    now.requires_grad_()
    loss = dppo.dppo_token_loss(now, before, advantages, held)
    loss.sum().backward()
    close(loss.detach(), own("dppo", [[-3, 0], [0.25, 0.742857], [1.8, 0]]))
    close(now.grad, loss.detach())  # of -ratio A
    far = torch.tensor([[0.0]], requires_grad=True)
    loss = dppo.dppo_token_loss(far, torch.tensor([[-5.0]]), torch.ones(1), torch.tensor([[False]]))
    loss.backward()
    assert loss.item() == far.grad.item() == own("dppo", -20)


def test_dppo_at_the_sampler_has_the_gradient_of_the_base(finished):
    steps = ("--max_steps", "2", "--eval_steps", "0")
    base, rows = (metrics(finished(script, *steps)) for script in ("train_grpo", "examples.dppo"))
    assert [row["grad_norm"] for row in rows] == pytest.approx([row["grad_norm"] for row in base], rel=1e-3)
    assert any(row["grad_norm"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("differences", "advantage", "weight"),
    [
        ([0.2, -0.2, 9.0], 1.0, own("vespo", 1.0)),
        ([0.5, 0.193147, 9.0], 0.0, own("vespo", 0.199148)),
        ([0.5, 0.193147, 9.0], -1.0, own("vespo", 1.082682)),
        ([-0.5, -0.193147, 9.0], 2.0, own("vespo", 1.120422)),
        ([-0.5, -0.193147, 9.0], -2.0, own("vespo", 0.339785)),
        ([40.0, 40.0, 0.0], -1.0, own("vespo", 0.0)),
        ([-40.0, -40.0, 0.0], 1.0, own("vespo", 0.0)),
    ],
)
def test_vespo_weighs_a_completion_by_the_product_of_its_ratios(differences, advantage, weight):
    logps = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    old, mask, advantages = logps.detach() - torch.tensor([differences]), torch.tensor([[True, True, False]]), torch.tensor([advantage])
    kernel = {"positive": (2.0, 3.0), "negative": (3.0, 2.0)}
    found = vespo.vespo_weights(logps, old, torch.ones(1, 3), mask, advantages, **kernel)
    close(found, [[weight]])
    loss = vespo.vespo_token_loss(logps, advantages, found)
    (loss * mask).sum().backward()
    close(loss.detach(), [[weight * advantage * nats for nats in (1, 2, 0.5)]])
    close(logps.grad, [[-weight * advantage] * 2 + [0]])
    # half of the product in the importance weights; a token whose weight is 0 takes its completion out
    half = torch.tensor([differences]).exp().clamp(max=1e6).sqrt()
    close(vespo.vespo_weights(old + half.log(), old, half, mask, advantages, **kernel), found)
    close(vespo.vespo_weights(logps, old, torch.tensor([[1.0, 0, 1]]), mask, advantages, **kernel), [[0.0]])


def test_vespo_with_one_update_has_the_gradient_of_the_base_and_differs_with_two(finished):
    steps = ("--max_steps", "2", "--eval_steps", "0")
    base, rows = (metrics(finished(script, *steps)) for script in ("train_grpo", "examples.vespo"))
    assert [row["grad_norm"] for row in rows] == pytest.approx([row["grad_norm"] for row in base], rel=1e-3)
    assert [row["vespo/weight"] for row in rows] == pytest.approx([1, 1], abs=1e-3) and any(row["grad_norm"] > 0 for row in rows)
    two = metrics(finished("examples.vespo", *steps, "--num_minibatches", "2"))
    assert two[0]["vespo/weight"] != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("flags", [{"vespo_k_pos": -1.0}, {"vespo_lambda_neg": -0.1}, {"importance_mode": "sequence"}])
def test_flags_that_vespo_cannot_use_are_refused(flags):
    with pytest.raises(UserError, match=r"give 0 or more|take --importance_mode token"):
        vespo.Config(**flags).check()


@pytest.mark.parametrize("name", ["astar_po", "dppo", "pairs", "vine_dpo"])
@pytest.mark.parametrize("flags", [{"importance_cap": 2.0}, {"importance_floor": 0.5}, {"sample_ahead": 1}])
def test_a_method_without_importance_weights_says_which_flags_do_nothing(name, flags):
    """Also for flags that need a cap above 0: a message that asks for one would lead to one that refuses it."""
    config_class = importlib.import_module(f"examples.{name}").Config
    config_class(model="m", dataset="d").check()
    with pytest.raises(UserError, match="do nothing here: leave them out"):
        config_class(model="m", dataset="d", **flags).check()
