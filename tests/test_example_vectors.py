"""The functions of examples/ that compare completions or steps, against numbers that were worked out apart from them."""

from dataclasses import replace
from itertools import combinations, product
from statistics import mean, pstdev
from types import SimpleNamespace

import pytest
import torch
from helpers import completions, make_policy, metrics, own, random_batch, reference, run
from safetensors.torch import load_file
from torch.testing import assert_close

import train_ppo
from common.errors import UserError
from common.policy.critic import Critic
from common.policy.loss import aggregate, whiten
from common.policy.micro_batches import microbatches
from common.records import Completion
from examples import egae, guide_grpo, igpo, pairs, pass_at_k, pcl, prime, roll_in, vine_dpo
from train_grpo import group_advantages

NEAR = {"atol": 2e-6, "rtol": 0}


def close(actual, expected):
    assert_close(torch.as_tensor(actual).double(), torch.as_tensor(expected).double(), **NEAR)


def group_of(right, n):
    return torch.tensor([1.0] * right + [0.0] * (n - right)), torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize(
    ("k", "right", "expected"),
    [
        (4, 1, reference("pass_at_k", (1, -0.142857))),
        (4, 2, reference("pass_at_k", (0.522233, -0.174078))),
        (4, 3, reference("pass_at_k", (0.277350, -0.166410))),
        (4, 4, reference("pass_at_k", (0.120386, -0.120386))),
        (4, 5, reference("pass_at_k", (0, 0))),
        (2, 2, reference("pass_at_k", (1.074172, -0.358057))),
        (1, 2, reference("pass_at_k", (1.732051, -0.577350))),
    ],
)
def test_pass_at_k_advantages(k, right, expected):
    advantages = pass_at_k.pass_at_k_advantages(*group_of(right, 8), k)
    close(advantages[[0, -1]], expected)


def test_pass_at_k_is_the_mean_over_the_sets_that_hold_a_completion_and_grpo_with_k_1():
    rewards, groups = torch.tensor([0.0, 1, 0, 1, 0, 0, 1]), torch.tensor([5, 2, 2, 5, 2, 2, 5])
    expected = torch.zeros(7)
    for number in (2, 5):
        rows = [i for i in range(7) if groups[i] == number]
        sets = [(chosen, max(rewards[list(chosen)]).item()) for chosen in combinations(rows, 2)]
        middle, spread = mean(score for _, score in sets), pstdev(score for _, score in sets)
        for i in rows:
            expected[i] = mean((score - middle) / spread for chosen, score in sets if i in chosen) if spread else 0
    close(pass_at_k.pass_at_k_advantages(rewards, groups, 2), expected)
    assert expected[groups == 5].eq(0).all()  # two of three are right: every set of two is
    assert_close(pass_at_k.pass_at_k_advantages(rewards, groups, 1), group_advantages(rewards, groups), atol=1e-5, rtol=0)
    assert pass_at_k.pass_at_k_advantages(rewards, groups, 5).eq(0).all()  # fewer completions than k


def test_a_k_that_leaves_one_set_is_refused():
    with pytest.raises(UserError, match="below num_generations"):
        pass_at_k.Config(model="m", dataset="d", k=8, num_generations=8).check()


LOGPS, REF, OLD = ([-10.0, -12, -9, -15], [-11, -12.5, -9, -14], [-10.2, -12.1, -9.1, -14.6])


def loss_and_coefficients(loss, beta=0.1, old=OLD, logps=LOGPS, ref=REF, rewards=(1.0, 0, 1, 0), levels=(1, 2, 1, 4)):
    logps = torch.tensor(logps, dtype=torch.float64, requires_grad=True)
    others = [torch.tensor(x, dtype=torch.float64) for x in (ref, old, rewards)]
    lengths = torch.tensor([5, 6, 4, 8])[: len(logps)]
    value = pairs.group_loss(loss, logps, *others, torch.tensor(levels), lengths, beta=beta, eta=2.0, epsilon=0.2)
    return value.item(), torch.autograd.grad(value, logps)[0]


@pytest.mark.parametrize(
    ("loss", "value", "coefficients"),
    [
        ("copg", *reference("pairs", (1.162500, [-0.11, 0.143333, -0.136667, 0.103333]))),
        ("dpo", *reference("pairs", (0.657364, [-0.023442, 0.025, -0.024688, 0.023130]))),
        ("ipo", *reference("pairs", (18.875, [-3.75, 5, -4.75, 3.5]))),
        ("lipo", *reference("pairs", (1.047371, [-0.062932, 0.035638, -0.014431, 0.041726]))),
        ("trpa", *reference("pairs", (0.679213, [-0.009724, 0.006667, -0.012467, 0.007311]))),
    ],
)
def test_losses_of_whole_completions(loss, value, coefficients):
    found, gradient = loss_and_coefficients(loss)
    close(found, value)
    close(gradient, coefficients)


def test_inpo_has_the_old_policy_in_its_reference():
    value, gradient = loss_and_coefficients("inpo", beta=0.5)
    close(value, reference("pairs", 0.240313))
    close(gradient, reference("pairs", [0.325, 0.391667, -0.108333, -0.608333]))


def test_on_policy_p3o_and_copg_are_reinforce_with_the_others_as_baseline():
    _, gradient = loss_and_coefficients("p3o", old=LOGPS)
    close(-gradient, reference("pairs", [0.166667, -0.166667, 0.166667, -0.166667]))
    others = group_advantages(torch.tensor([1.0, 0, 1, 0]), torch.zeros(4, dtype=torch.long), scale_rewards="none", leave_one_out=True)
    close(-gradient, others / 4)
    _, gradient = loss_and_coefficients("copg", beta=1e-7)
    close(-gradient / 2e-7, others)


def test_p3o_clips_the_ratio_of_a_completion():
    _, gradient = loss_and_coefficients("p3o", old=[-10.5, -12, -9, -14])  # ratios 1.65 of a right one, 0.37 of a wrong one
    close(-gradient, own("pairs", [0, -0.166667, 0.166667, 0]))


def test_lipo_weights_pairs_alike_while_all_ranks_are_tied():
    value, gradient = loss_and_coefficients("lipo", ref=LOGPS)
    close(value, 4 * reference("pairs", 0.442162) * torch.log(torch.tensor(2.0)))
    assert gradient.unique().numel() == 2


@pytest.mark.parametrize("loss", ["dpo", "ipo", "lipo", "trpa", "p3o"])
def test_without_a_pair_there_is_no_gradient(loss):
    same = {"rewards": (1.0, 1, 1, 1), "levels": (1, 1, 1, 1)}
    assert loss_and_coefficients(loss, **same)[1].eq(0).all()
    alone = {"logps": [-3.0], "ref": [-4.0], "old": [-3.0], "rewards": (1.0,), "levels": (1,)}
    value, gradient = loss_and_coefficients(loss, **alone)
    assert value == 0 and gradient.eq(0).all()


@pytest.mark.parametrize("flags", [{"beta": 0.0}, {"importance_cap": 2.0}, {"loss_aggregation": "constant"}, {"num_minibatches": 17}])
def test_flags_that_a_loss_of_completions_cannot_use_are_refused(flags):
    with pytest.raises(UserError):
        pairs.Config(model="m", dataset="d", **flags).check()
    pairs.Config(model="m", dataset="d").check()


def test_a_step_of_p3o_is_the_step_of_the_base_with_the_gradient_that_it_should_have(finished):
    """The coefficients reach the gradient: with one update per batch P3O is REINFORCE with leave-one-out, which the base has by flags."""
    steps = ("--max_steps", "3", "--eval_steps", "0", "--importance_cap", "0", "--max_tokens_per_microbatch", "200")
    flags = ("--scale_rewards", "none", "--leave_one_out", "true", "--loss_aggregation", "seq-mean-token-sum")
    base = metrics(finished("train_grpo", *steps, *flags))
    rows = metrics(finished("examples.pairs", *steps, "--loss", "p3o"))
    for row, expected in zip(rows, base, strict=True):
        assert row["reward"] == expected["reward"] and row["num_tokens"] == expected["num_tokens"]
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert max(row["grad_norm"] for row in rows) > 0


@pytest.mark.parametrize("loss", ["copg", "inpo", "trpa"])  # copg and inpo have a gradient where all rewards are equal, trpa has levels
def test_other_losses_of_whole_completions_run(loss, finished):
    (row,) = metrics(finished("examples.pairs", "--max_steps", "1", "--eval_steps", "0", "--loss", loss, "--num_minibatches", "2"))
    assert row["grad_norm"] > 0 and row["loss"] > 0


def test_the_problems_nearest_to_the_target_are_taken():
    predicted = torch.tensor([0.1, 0.48, 0.95, 0.6, 0.3, 0.55])
    order = reference("pcl", [1, 5, 3, 4, 0, 2])
    assert [pcl.nearest(predicted, 0.5, count) for count in range(1, 7)] == [sorted(order[:count]) for count in range(1, 7)]
    assert pcl.nearest(torch.zeros(9), 0.5, 3) == [0, 1, 2]  # before the critic has learned: the order of the epoch
    values = torch.tensor([[0.48], [0.55]], requires_grad=True)
    loss = aggregate(pcl.rate_token_loss(values, torch.tensor([0.5, 0.25])), torch.ones(2, 1, dtype=torch.bool), "token-mean", 2)
    loss.backward()
    close(loss, reference("pcl", 0.0452))
    close(values.grad, reference("pcl", [[-0.02], [0.3]]))
    assert pcl.correlation(torch.zeros(3), torch.tensor([0.0, 0.5, 1])) is None
    assert pcl.correlation(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 0.5, 0])) == pytest.approx(-1)


def test_the_value_of_a_bare_prompt_is_the_value_before_the_first_token(random_models, tokenizer):
    batch = random_batch(tokenizer)
    critic = Critic(make_policy(random_models["llama"], tokenizer), seed=0)
    torch.nn.init.ones_(critic.head.weight)
    bare = pcl.bare_prompts(batch.problems)
    values = [critic.all_values(rows, torch.arange(3), 300) for rows in (bare, batch)]
    assert values[0].shape == (3, 1) and values[0].unique().numel() == 3
    assert_close(values[0][:, 0], values[1][:, 0], atol=1e-4, rtol=0)


def test_pcl_with_no_more_candidates_than_problems_is_the_base(finished):
    steps = ("--max_steps", "3", "--eval_steps", "0")
    rows = metrics(finished("examples.pcl", *steps, "--candidates", "1"))
    own = {"value/mean", "value/loss", "value/correlation", "sampling/coverage"}
    assert [{name: value for name, value in row.items() if name not in own} for row in rows] == metrics(finished("train_grpo", *steps))
    assert [row["sampling/coverage"] for row in rows] == pytest.approx([4 / 60, 8 / 60, 12 / 60])


def test_pcl_trains_on_the_candidates_that_the_critic_prefers(tmp_path, monkeypatch):
    asked, kept, bare, nearest = [], [], pcl.bare_prompts, pcl.nearest
    monkeypatch.setattr(pcl, "bare_prompts", lambda problems: asked.append(problems) or bare(problems))
    monkeypatch.setattr(pcl, "nearest", lambda predicted, *rest: kept.append((predicted, nearest(predicted, *rest))) or kept[-1][1])
    flags = ("--max_steps", "2", "--eval_steps", "0", "--candidates", "3", "--num_minibatches", "2")
    assert run("examples.pcl", tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    (first, _), (second, best) = kept
    assert first.eq(0).all() and second.unique().numel() > 1  # after one step the critic tells the problems apart
    assert sorted((second - 0.5).abs().argsort()[:4].tolist()) == best
    trained = list(dict.fromkeys(row["problem"] for row in completions(tmp_path / "run") if row["step"] == 2))
    assert trained == [asked[2][i].id for i in best] == [problem.id for problem in asked[3]]  # 0 and 2: candidates; 1 and 3: of the update


@pytest.mark.parametrize("flags", [{"candidates": 0}, {"target_rate": 1.5}, {"sampling": "lilo"}, {"critic_learning_rate": 0.0}])
def test_flags_with_which_no_critic_chooses_are_refused(flags):
    with pytest.raises(UserError):
        pcl.Config(model="m", dataset="d", **flags).check()
    pcl.Config(model="m", dataset="d").check()


def test_guided_tokens_are_shaped_and_not_clipped():
    old, mask = torch.tensor([[-0.3, -0.2, -0.4, -1.0, 5.0]]), torch.tensor([[True] * 4 + [False]])
    logps = torch.tensor([[-1.2, -3.0, -0.4, -0.9, 9.0]], requires_grad=True)
    gamma = guide_grpo.guide_gamma(logps.detach(), old, mask)
    close(gamma, reference("guide_grpo", 1.073620))
    loss = guide_grpo.guided_token_loss(logps, old, torch.tensor([-1.0]), gamma)
    torch.where(mask, loss, 0).sum().backward()
    close(loss[mask].detach(), reference("guide_grpo", [0.274674, 0.053604, 0.482249, 0.507241]))
    close(logps.grad[mask], reference("guide_grpo", [0.199228, 0.050731, 0.249685, 0.249948]))
    assert logps.grad[~mask].eq(0).all()
    assert guide_grpo.guide_gamma(old - 50, old, mask) == 1e-4


@pytest.mark.parametrize(
    ("solution", "share", "rule", "hint"),
    [
        ("1+1=2\n2+2=4\n#### 4", 0.5, "lines", "1+1=2"),
        ("1+1=2\n2+2=4\n#### 4", 1.0, "lines", "1+1=2"),
        ("1+1=2\n2+2=4\n4+4=8\n#### 8", 0.5, "lines", "1+1=2"),
        ("Half is 48/2=<<48/2=24>>24.\nBoth: 72.\n#### 72", 0.5, "lines", "Half is 48/2=24."),
        ("2+2=4\n#### 4", 1.0, "lines", ""),
        ("", 1.0, "math", ""),
        ("Let $x=3$ be the side. Then we have $x^2=9$ as its square. So the answer is $\\boxed{9}$.", 0.7, "math", None),
    ],
)
def test_a_hint_never_shows_the_last_step(solution, share, rule, hint):
    found = guide_grpo.hint_of(solution, share, rule)
    assert found == hint if hint is not None else solution.startswith(found) and found and "boxed" not in found


def test_guide_without_hints_is_the_base_and_with_them_trains_on_the_plain_prompt(finished, tmp_path, monkeypatch):
    steps = ("--max_steps", "3", "--eval_steps", "0", "--num_minibatches", "2")
    plain = finished("examples.guide_grpo", *steps, "--hint_share", "0")
    own = {"sampling/frac_asked_again": 0, "sampling/frac_hinted": 0}
    assert metrics(plain) == [row | own for row in metrics(finished("train_grpo", *steps))]
    made, passes, make, logps = [], [], guide_grpo.make_batch, guide_grpo.all_logps
    monkeypatch.setattr(guide_grpo, "make_batch", lambda *parts: made.append(make(*parts)) or made[-1])
    monkeypatch.setattr(guide_grpo, "all_logps", lambda *args: passes.append((args[1], args[2], logps(*args))) or passes[-1][2])
    assert run("examples.guide_grpo", tmp_path / "run", *steps, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")
    assert any(row["sampling/frac_hinted"] > 0 for row in rows)
    for step, row in enumerate(rows):
        first, batch, asked = made[3 * step : 3 * step + 3]
        (with_hint, _, old), (without, hinted_rows, now) = passes[2 * step : 2 * step + 2]
        assert (with_hint, without) == (asked, batch) and batch.completions == asked.completions
        given = [p.prompt_ids != q.prompt_ids for p, q in zip(batch.problems, asked.problems, strict=True)]
        logged = [line for line in completions(tmp_path / "run") if line["step"] == step + 1]
        assert [line["hinted"] for line in logged] == given and sum(given) == 16 * row["sampling/frac_hinted"]
        assert row["sampling/frac_hopeless"] >= row["sampling/frac_asked_again"] >= row["sampling/frac_hinted"]
        for i, hinted in enumerate(given):
            bare, read = batch.problems[i].prompt, asked.problems[i].prompt
            assert read == bare if not hinted else read.startswith(bare) and read.split("\n")[-2] in batch.problems[i].row["answer"]
            assert hinted or batch.completions[i] == first.completions[i]
        assert all(given[i] for i in hinted_rows)
        for i in hinted_rows.tolist():  # the sampler's log-probs are those under the hint
            sampled = torch.tensor(batch.completions[i].logps)
            assert_close(old[i, : len(sampled)], sampled, atol=1e-4, rtol=0)
            assert (now[i] - old[i]).abs().max() > 1e-3


@pytest.mark.parametrize("flags", [{"hint_share": 1.5}, {"hint_text": "Hint"}, {"sample_ahead": 1}])
def test_hints_that_cannot_be_given_are_refused(flags):
    with pytest.raises(UserError):
        guide_grpo.Config(model="m", dataset="d", **flags).check()
    guide_grpo.Config(model="m", dataset="d").check()


@pytest.mark.parametrize(
    ("right", "loss", "slope"), [(1.0, *reference("prime", (0.673347, -0.024500))), (0.0, *reference("prime", (0.713347, 0.025500)))]
)
def test_the_reward_model_of_prime_is_trained_on_outcomes(right, loss, slope):
    logps = torch.tensor([[-1.0, -0.5, -2.0, 7.0]], requires_grad=True)
    mask = torch.tensor([[True] * 3 + [False]])
    rewards, logit = prime.implicit_rewards(logps, torch.tensor([[-1.3, -0.4, -2.6, torch.nan]]), mask, 0.05)
    close(rewards.detach()[mask], reference("prime", [0.015, -0.005, 0.03]))
    close(logit.detach(), reference("prime", [0.04]))
    close(logit.detach().sigmoid(), reference("prime", [0.509999]))
    found = torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor([right]))
    found.backward()
    close(found.detach(), loss)
    close(logps.grad, [[slope] * 3 + [0]])


def test_prime_takes_token_rewards_and_outcome_against_the_group():
    mask, one = torch.tensor([[True] * 3, [True, True, False]]), torch.zeros(2, dtype=torch.long)
    rewards = torch.tensor([[0.015, -0.005, 0.03], [0.02, -0.04, torch.nan]])
    close(prime.process_rewards(rewards[:1], mask[:1]), reference("prime", [[1.499850, -0.499950, 0]]))
    clean = torch.where(mask, rewards, 0.0)
    means = torch.tensor([0.04 / 3, -0.01])
    expected = reference("prime", [0.026667, -0.013333, 0.056667, 0.036667, -0.083333])
    close(prime.against_others(clean, means, one)[mask], expected)
    found = prime.prime_advantages(clean, torch.zeros(2), mask, one, 1.0)
    close(found[mask], reference("prime", [0.07, 0.043333, 0.056667, -0.046667, -0.083333]))
    outcome = prime.prime_advantages(clean, torch.tensor([1.0, 0]), mask, one, 1.0) - found
    close(outcome[mask], own("prime", [*[1] * 3, *[-1] * 2]))
    assert found[~mask].eq(0).all() and outcome[~mask].eq(0).all()


def test_prime_without_token_rewards_is_leave_one_out_on_every_token():
    mask, groups = torch.arange(5)[None] < torch.tensor([[5], [1], [3], [2], [4], [5]]), torch.tensor([0, 1, 0, 1, 0, 1])
    rewards, process = torch.tensor([1.0, 0, 0, 1, 0, 1]), torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    plain = group_advantages(rewards, groups, scale_rewards="none", leave_one_out=True)[:, None].expand(6, 5)
    close(prime.prime_advantages(process, rewards, mask, groups, 0.0), torch.where(mask, plain, 0.0))
    assert whiten(prime.prime_advantages(process, rewards, mask, groups, 1.0), mask)[~mask].eq(0).all()


@pytest.mark.parametrize("flags", [{"num_generations": 1}, {"process_weight": -1.0}, {"process_beta": 0.0}, {"epsilon": 1.0}])
def test_flags_that_prime_cannot_use_are_refused(flags):
    with pytest.raises(UserError, match="2 or more completions"):
        prime.Config(model="m", dataset="d", **flags).check()
    prime.Config(model="m", dataset="d").check()


def test_the_reward_model_of_prime_learns_and_is_saved_beside_the_policy(finished, tmp_path, monkeypatch):
    whole = finished("examples.prime", "--max_steps", "3", "--num_minibatches", "2", "--eval_steps", "0")
    rows = metrics(whole)
    assert rows[0]["prm/loss"] == pytest.approx(0.693147, abs=1e-5)  # it starts as the reference, so that every logit is 0
    assert abs(rows[2]["prm/loss"] - 0.693147) > 1e-4 and all(0 <= row["prm/accuracy"] <= 1 for row in rows)
    saved, policy = (load_file(whole / "checkpoint-3" / part / "adapter_model.safetensors") for part in ("prm", ""))
    assert saved.keys() == policy.keys() and any(not saved[key].equal(policy[key]) for key in saved)
    # it starts as the adapter that the run starts from, which is the reference too
    flags = ("--max_steps", "1", "--eval_steps", "0", "--adapter", str(whole / "checkpoint-3"))
    assert run("examples.prime", tmp_path / "again", *flags, monkeypatch=monkeypatch) == 0
    (row,) = metrics(tmp_path / "again")
    assert row["prm/loss"] == pytest.approx(0.693147, abs=1e-5) and row["grad_norm"] > 0
    # a resumed run has the same reference
    flags = ("--max_steps", "2", "--eval_steps", "0", "--save_steps", "1", "--adapter", str(whole / "checkpoint-3"))
    assert run("examples.prime", tmp_path / "two", *flags, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "two")
    where = str(tmp_path / "two" / "checkpoint-1")
    assert run("examples.prime", tmp_path / "two", "--resume_from_checkpoint", where, monkeypatch=monkeypatch, quick=[]) == 0
    assert metrics(tmp_path / "two") == rows and rows[0]["prm/loss"] == row["prm/loss"] != rows[1]["prm/loss"]


def test_a_pair_is_the_first_right_and_the_first_wrong_continuation():
    made = [Completion([i], [0.0], "length" if i == 1 else "stop", "") for i in range(4)]
    assert vine_dpo.pair_of(made, [1.0, 0, 0, 1]) == made[:2] and vine_dpo.pair_of(made, [1.0, 0, 0, 1], False) == [made[0], made[2]]
    assert vine_dpo.pair_of(made, [0.0] * 4) == vine_dpo.pair_of(made, [1.0] * 4) == []
    nine = [Completion([i], [0.0], "stop", "") for i in range(9)]
    rare, even = reference("vine_dpo", (0.612580, 0.996094))
    for value, chance in ((0.1, rare), (0.9, rare), (0.5, even)):
        found = sum(
            value ** sum(rewards) * (1 - value) ** (9 - sum(rewards))
            for rewards in product((0.0, 1.0), repeat=9)
            if vine_dpo.pair_of(nine, list(rewards))
        )
        assert found == pytest.approx(chance, abs=1e-6)


def test_vine_dpo_prefers_the_right_continuation():
    logps, ref_logps = (torch.tensor([row], requires_grad=True) for row in ([-4.0, -5.0], [-4.4, -4.8]))
    for smoothing, (loss, slopes) in (
        (0.0, reference("vine_dpo", (0.663597, [-0.0485, 0.0485]))),
        (0.2, reference("vine_dpo", (0.675597, [-0.0285, 0.0285]))),
    ):
        found = vine_dpo.dpo_loss(logps, ref_logps.detach(), beta=0.1, label_smoothing=smoothing)
        close(found.detach(), [loss])
        close(torch.autograd.grad(found.sum(), logps)[0], [slopes])
    # visits of each continuation once would smooth by 1/2 (docs/examples.md): the reference policy is then where nothing is learned
    even = vine_dpo.dpo_loss(logps, logps.detach(), beta=0.1, label_smoothing=0.5)
    assert torch.autograd.grad(even.sum(), logps)[0].eq(0).all()


def test_the_gradient_of_vine_dpo_is_that_of_its_pairs(tmp_path, monkeypatch):
    """Found through coefficients in small micro-batches, and once more through the whole loss at once."""
    passes, checked, logps, clip = [], [], vine_dpo.all_logps, vine_dpo.clip_gradients
    monkeypatch.setattr(vine_dpo, "all_logps", lambda *args: passes.append(args) or logps(*args))

    def check(optimizer, max_norm, count):
        policy, batch = passes[-1][:2]
        parameters = list(policy.parameters_of().values())
        (micro,) = microbatches(batch, torch.arange(len(batch)), 10**6, policy)
        sums = []
        for inside in (policy.reference, lambda: policy.using("default")):
            with inside():
                sums.append((policy.logps(micro)[0] * micro.mask).sum(dim=1)[micro.rows.argsort()])
        margin = 0.2 * (sums[1] - sums[0]).reshape(-1, 2).diff(dim=1)
        wanted = torch.autograd.grad(torch.nn.functional.softplus(margin).mean(), parameters)
        for parameter, expected in zip(parameters, wanted, strict=True):
            assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-3)
        assert max(expected.abs().max() for expected in wanted) > 1e-3
        checked.append((batch, margin.detach(), count))
        return clip(optimizer, max_norm, count)

    monkeypatch.setattr(vine_dpo, "clip_gradients", check)
    flags = ("--max_steps", "2", "--eval_steps", "0", "--num_minibatches", "1", "--max_tokens_per_microbatch", "80", "--beta", "0.2",
             "--warmup_steps", "0")  # fmt: skip
    assert run("examples.vine_dpo", tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")
    assert [len(batch) // 2 for batch, *_ in checked] == [row["pairs/number"] for row in rows]
    assert checked[1][1].abs().max() > 1e-3 and max(count for *_, count in checked) > 1
    prompts = {row["prompt"]: row for row in completions(tmp_path / "run")}
    for batch, *_ in checked:
        for right, wrong, problem in zip(batch.completions[::2], batch.completions[1::2], batch.problems[::2], strict=True):
            assert right.text.endswith(f"#### {problem.answer}") and not wrong.text.endswith(f"#### {problem.answer}")
            assert problem.prompt in prompts
        prefixes = [p.prompt_ids for p in batch.problems[::2]]
        assert len({(ids, *b.ids) for ids, b in zip(prefixes, batch.completions[::2], strict=True)}) == len(prefixes)


def test_vine_dpo_rests_in_a_step_without_pairs_and_forks_at_the_prompt_alone_if_asked(tmp_path, monkeypatch):
    made, make, real = [], vine_dpo.make_batch, vine_dpo.pair_of
    monkeypatch.setattr(vine_dpo, "make_batch", lambda *parts: made.append(make(*parts)) or made[-1])
    flags = ("--max_steps", "1", "--eval_steps", "0", "--mc_max_states", "1")
    assert run("examples.vine_dpo", tmp_path / "one", *flags, monkeypatch=monkeypatch) == 0
    batch, compared = made
    assert {problem.prompt_ids for problem in compared.problems} <= {problem.prompt_ids for problem in batch.problems}
    assert len({problem.id for problem in compared.problems}) == len(compared) // 2 == metrics(tmp_path / "one")[0]["pairs/number"]
    monkeypatch.setattr(vine_dpo, "pair_of", lambda *parts: real(*parts)[:0])
    assert run("examples.vine_dpo", tmp_path / "none", *flags, monkeypatch=monkeypatch) == 0
    (row,) = metrics(tmp_path / "none")
    assert row["pairs/number"] == 0 and "grad_norm" not in row and row["value/states"] == 4
    saved = load_file(tmp_path / "none" / "checkpoint-1" / "adapter_model.safetensors")
    assert all(weight.eq(0).all() for name, weight in saved.items() if "lora_B" in name)


@pytest.mark.parametrize("flags", [{"beta": 0.0}, {"importance_cap": 2.0}, {"label_smoothing": 0.5}, {"mc_samples": 1}])
def test_flags_that_vine_dpo_cannot_use_are_refused(flags):
    with pytest.raises(UserError):
        vine_dpo.Config(model="m", dataset="d", **flags).check()
    vine_dpo.Config(model="m", dataset="d").check()


def test_the_gain_of_a_step_is_the_growth_of_the_probability_of_the_answer():
    logps = torch.tensor([[-2.0, -1, 9], [-1.2, -0.6, 9], [-1.6, -0.9, 9], [-0.2, -0.1, 9]])
    values = igpo.answer_values(logps, torch.tensor([[True, True, False]] * 4))
    close(values, reference("igpo", [0.223130, 0.406570, 0.286505, 0.860708]))
    close(values.diff(), reference("igpo", [0.183439, -0.120065, 0.574203]))


@pytest.mark.parametrize(
    ("joint", "first", "second"),
    [
        (False, *reference("igpo", ([2.297763, 2.135542, 0.999998], [-2.297763, -0.999998]))),
        (True, *reference("igpo", ([1.647301, 1.986452, 1.841102], [-1.647301, -0.581400]))),
    ],
)
def test_gains_and_outcomes_are_standardised_in_the_group(joint, first, second):
    found = igpo.igpo_advantages([[0.1, 0.3], [-0.2]], [1.0, 0], weight=1.0, joint=joint)
    for row, expected in zip(found, (first, second), strict=True):
        close(row, expected)
    assert igpo.igpo_advantages([[0.2], []], [1.0, 1], weight=1.0, joint=False) == [[0, 0], [0]]


def test_igpo_without_gains_is_grpo_on_every_token(finished):
    rewards = torch.tensor([1.0, 0, 0, 1, 0])
    found = igpo.igpo_advantages([[0.3, -0.1], [], [0.2], [0.4], [0.1]], rewards.tolist(), weight=0.0, joint=False)
    expected = group_advantages(rewards, torch.zeros(5, dtype=torch.long)).tolist()
    for row, advantage in zip(found, expected, strict=True):
        close(row, [advantage] * len(row))
    steps = ("--max_steps", "3", "--eval_steps", "0", "--num_minibatches", "2")
    base, rows = metrics(finished("train_grpo", *steps)), metrics(finished("examples.igpo", *steps, "--gain_weight", "0"))
    for row, wanted in zip(rows, base, strict=True):
        assert row["reward"] == wanted["reward"] and row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("answer", ["14", "7", "18"])
def test_the_answer_is_forced_as_the_completion_would_write_it(answer, tokenizer):
    cue, forced = igpo.forced_tokens(tokenizer, "\n#### ", answer)
    assert tokenizer.decode(cue) == "\n#### " and tokenizer.decode(forced) == answer
    assert cue + forced == tokenizer.encode(f"\n#### {answer}")


def test_states_ask_for_the_answer_behind_their_prefix(random_models, tokenizer):
    policy = make_policy(random_models["llama"], tokenizer)
    config = igpo.Config(model="m", dataset="d", answer_cue=r"\n#### ")
    problem = replace(random_batch(tokenizer).problems[0], answer="14")
    states = [igpo.State(problem, prefix) for prefix in ((), (5, 9), (5, 9, 7), ())]
    values = igpo.estimate_values(states, policy, tokenizer, config)
    assert list(values) == states[:3]
    for state, value in values.items():
        ids = torch.tensor([[*problem.prompt_ids, *state.prefix, *tokenizer.encode("\n#### 14")]])
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, -2]  # 14 is one token
        assert value == pytest.approx(logits.softmax(-1)[ids[0, -1]].item(), rel=1e-3)


@pytest.mark.parametrize("flags", [{"num_generations": 1}, {"gain_weight": -1.0}, {"reward": "file.py:f"}, {"step_split": "words"}])
def test_flags_that_igpo_cannot_use_are_refused(flags):
    with pytest.raises(UserError):
        igpo.Config(model="m", dataset="d", **flags).check()
    igpo.Config(model="m", dataset="d").check()


def cut_off(values, cut, lam, rewards=0.0):
    values = torch.tensor([values], dtype=torch.float64)
    mask = torch.ones_like(values, dtype=torch.bool)
    rewards = egae.terminal_rewards(torch.tensor([rewards]), mask)
    return egae.gae(rewards, values, mask, lam=lam, cut=None if cut is None else torch.tensor([cut]))[0][0]


def test_the_last_value_stands_behind_a_completion_that_was_cut_off():
    values = [0.4, 0.5, 0.6]
    close(cut_off(values, True, 0.95), reference("egae", [0.195, 0.1, 0]))
    close(cut_off(values, True, 1.0), reference("egae", [0.2, 0.1, 0]))
    close(cut_off(values, False, 0.95), reference("egae", [-0.3465, -0.47, -0.6]))
    close(cut_off(values, False, 1.0), reference("egae", [-0.4, -0.5, -0.6]))
    for lam in (0.0, 0.9, 1.0):  # of finished completions it is the base
        expected = train_ppo.gae(torch.tensor([[0.0, 0, 1]]), torch.tensor([values]), torch.ones(1, 3, dtype=torch.bool), lam=lam)[0][0]
        close(cut_off(values, False, lam, 1.0), expected)


def test_egae_is_the_base_while_no_completion_is_cut_off_and_differs_else(finished):
    steps = ("--max_steps", "2", "--eval_steps", "0")
    base, rows = (metrics(finished(script, *steps)) for script in ("train_ppo", "examples.egae"))
    assert rows == base and all(row["completions/clipped_ratio"] == 0 for row in rows)
    short = ("--max_steps", "3", "--eval_steps", "0", "--max_completion_length", "9", "--temperature", "1.2")
    base, rows = (metrics(finished(script, *short)) for script in ("train_ppo", "examples.egae"))
    assert any(0 < row["completions/clipped_ratio"] < 1 for row in rows)
    assert [row["value/loss"] for row in rows] != [row["value/loss"] for row in base]


def test_roll_in_gives_the_whole_part_of_a_drawn_share(monkeypatch):
    for u, expected in ((0.0, reference("roll_in", 0)), (0.5, reference("roll_in", 4)), (0.99, reference("roll_in", 8))):
        draw = SimpleNamespace(random=lambda _, u=u: (0.0, u))
        monkeypatch.setattr(roll_in.np.random, "default_rng", lambda _, draw=draw: draw)
        assert roll_in.given_length(9, 0.7, 0) == expected


@pytest.mark.parametrize(("solution", "share", "most"), [(9, 1.0, 8), (9, 0.0, 0), (1, 1.0, 0), (0, 1.0, 0)])
def test_roll_in_gives_less_than_the_solution(solution, share, most):
    drawn = [roll_in.given_length(solution, share, seed) for seed in range(300)]
    assert min(drawn) == 0 and max(drawn) == most
    if most == 8:
        assert set(drawn) == set(range(9))
        some = [roll_in.given_length(9, 0.5, seed) for seed in range(300)]
        assert 0.4 < sum(a == b for a, b in zip(some, drawn, strict=True) if b) / sum(b > 0 for b in drawn) < 0.6


def test_roll_in_without_beginnings_is_the_base_and_with_them_a_group_shares_one(finished, tokenizer, tmp_path, monkeypatch):
    steps = ("--max_steps", "2", "--eval_steps", "1")
    plain = finished("examples.roll_in", *steps, "--roll_in_share", "0")
    assert metrics(plain) == metrics(finished("train_grpo", *steps))
    batches, real = [], roll_in.make_batch
    monkeypatch.setattr(roll_in, "make_batch", lambda *parts: batches.append(real(*parts)) or batches[-1])
    assert run("examples.roll_in", tmp_path / "run", *steps, "--roll_in_share", "1", monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")
    assert rows[0] == metrics(plain)[0]  # the evaluation before training
    assert rows[1]["num_tokens"] == batches[0].num_sampled.sum() < batches[0].lengths.sum()
    beginnings = {}
    for problem, completion in zip(batches[0].problems, batches[0].completions, strict=True):
        given = len(completion.ids) - completion.num_sampled
        assert not given or not any(completion.sampled[:given])
        beginnings.setdefault(problem.id, set()).add(given)
        assert tuple(completion.ids[:given]) == tuple(tokenizer.encode(problem.row["answer"], add_special_tokens=False)[:given])
    assert all(len(lengths) == 1 for lengths in beginnings.values()) and len(beginnings) == 4
