import json
from itertools import pairwise

import pytest
import torch
from helpers import QUICK, documented_flag_sets, metrics, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from common.errors import UserError
from common.policy.loss import aggregate, loss_divisor, whiten
from common.records import Completion, Problem
from common.rollout.reasoning_steps import split_steps
from common.rollout.text import decode, token_offsets
from train_grpo import group_advantages
from train_vineppo import (
    Config,
    State,
    estimate_values,
    others_mean,
    ppo_token_loss,
    states_of,
    step_advantages,
    step_starts,
    token_advantages,
)

RULES = ["lines", "math"]
texts = st.lists(st.sampled_from(["\n", "\n\n", "A. B", "x=1", "$a$", " ", "#### 7", "\n#### ", "é", "\U0001f600"]), max_size=30).map(
    "".join
)

# ---- where steps begin, in tokens -----------------------------------------------------------------------------------


def test_starts_of_the_example():
    assert step_starts("A\nB\nC", [0, 1, 2, 3, 5], "lines") == [0, 1, 3]


@pytest.mark.parametrize(
    "text, offsets, starts",
    [
        ("A\nB\nC", [0, 2, 4], [0, 1, 2]),  # tokens "A\n", "B\n", "C": a step begins with the first token that begins in it
        ("A\nB\nC", [0, 3], [0, 1]),  # the second step has no such token
        ("A\nB\nC", [0, 5], [0]),  # nor has any: what is left has no character
        ("A\nB", [0, 1, 2, 3, 3, 7], [0, 1]),  # cut at a stop string: the tokens behind the text are of the last step
        ("A\n\U0001f600\nB", [0, 1, 2, 2, 2, 3], [0, 1, 5]),
        ("", [0], [0]),
        ("", [], []),
    ],
)
def test_starts_by_the_text(text, offsets, starts):
    assert step_starts(text, offsets, "lines") == starts


@pytest.mark.parametrize("rule, starts", [("tokens:1", [0, 1, 2, 3, 4]), ("tokens:2", [0, 2, 4]), ("tokens:5", [0]), ("tokens:100", [0])])
def test_starts_by_the_number_of_tokens(rule, starts):
    assert step_starts("any text", [0, 1, 2, 3, 8], rule) == starts
    assert step_starts("", [], rule) == []


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=texts, data=st.data(), rule=st.sampled_from(RULES))
def test_starts_are_where_the_steps_are(text, data, rule):
    offsets = sorted(data.draw(st.lists(st.integers(0, len(text) + 3), max_size=40)))
    starts = step_starts(text, [0, *offsets], rule)
    assert starts[0] == 0 and all(a < b for a, b in pairwise(starts))
    boundaries = split_steps(text, rule)
    for start in starts[1:]:
        here, before = [0, *offsets][start], [0, *offsets][start - 1]
        assert here < len(text) and any(before < boundary <= here for boundary in boundaries[1:-1])


def test_the_tokens_of_each_step_are_its_text(tokenizer):
    text = "3+4=7\n7-2=5\n\n5-1=4\n#### 4"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    starts = step_starts(text, token_offsets(tokenizer, ids), "lines")
    assert [decode(tokenizer, ids[a:b]) for a, b in pairwise([*starts, len(ids)])] == [text[a:b] for a, b in pairwise(split_steps(text))]


# ---- states, values, advantages -------------------------------------------------------------------------------------


def test_docstring_numbers():
    assert step_advantages([5 / 9, 7 / 9, 4 / 9], 1.0, 3) == pytest.approx([0.2222, -0.3333, 0.5556], abs=1e-4)
    assert step_advantages([4 / 9, 6 / 9], 0.0, 4) == pytest.approx([0.2222, -0.6667, 0, 0], abs=1e-4)
    assert token_advantages([0.5, -1], [0, 3], 5) == [0.5, 0.5, 0.5, -1, -1]
    assert others_mean(torch.tensor([1.0, 0, 0]), torch.tensor([4, 4, 4])).tolist() == [0, 0.5, 0.5]
    assert others_mean(torch.tensor([1.0, 0, 1]), torch.tensor([1, 1, 2])).tolist() == [0, 1, 0]


def test_states_are_the_prefixes_before_the_steps_and_never_the_whole():
    problem = Problem("p", "", (7, 8), "")
    states = states_of(problem, [1, 2, 3, 4, 5], [0, 2, 3], 0)
    assert states == [State(problem, ()), State(problem, (1, 2)), State(problem, (1, 2, 3))]
    assert states_of(problem, [1, 2, 3, 4, 5], [0, 2, 3], 2) == states[:2]
    assert len({*states, *states_of(problem, [1, 2, 9], [0, 2], 0)}) == 3  # equal beginnings are one state


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 1), st.integers(0, 5))
def test_advantages_add_up_to_the_reward_less_the_first_value_for_every_cap(values, reward, unvalued):
    steps = len(values) + unvalued
    advantages = step_advantages(values, reward, steps)
    assert len(advantages) == steps
    assert sum(advantages) == pytest.approx(reward - values[0], abs=1e-9)
    assert all(advantage == 0 for advantage in advantages[len(values) :])


def test_vector_2_3_tokens_and_whitening():
    starts = [0, 4, 7]
    advantages = token_advantages(step_advantages([5 / 9, 7 / 9, 4 / 9], 1.0, 3), starts, 10)
    whitened = whiten(torch.tensor([advantages]), torch.ones(1, 10, dtype=torch.bool))[0]
    assert_close(whitened, torch.tensor([0.181458] * 4 + [-1.330688] * 3 + [1.088745] * 3), atol=1e-5, rtol=0)


def test_with_one_step_and_the_groups_mean_it_is_rloo(tmp_path, tokenizer):
    """Advantages equal RLOO's, and so, on-policy and without whitening, do the gradients."""
    rewards, groups = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 1]), torch.arange(8) // 4
    values = others_mean(rewards, groups).tolist()
    ours = torch.tensor([step_advantages([v], r, 1)[0] for v, r in zip(values, rewards.tolist(), strict=True)])
    rloo = group_advantages(rewards, groups, scale_rewards="none", leave_one_out=True)
    assert_close(ours, rloo)
    lengths = [3, 1, 5, 2, 4, 4, 2, 6]
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    spread = torch.zeros(8, 6)
    for i, length in enumerate(lengths):
        spread[i, :length] = torch.tensor(token_advantages([ours[i].item()], [0], length))
    logps = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = ppo_token_loss(logps, logps.detach(), spread, epsilon=0.2)
    divisor = loss_divisor(mask, "seq-mean-token-sum")
    (gradient,) = torch.autograd.grad(aggregate(loss, mask, "seq-mean-token-sum", divisor), logps)
    assert_close(gradient, torch.where(mask, -rloo[:, None] / 8, 0.0))


class FakeEngine:
    """Answers each request with completions from a list, and remembers what it was asked."""

    def __init__(self, answers):
        self.answers, self.calls = answers, []

    def generate(self, requests):
        self.calls.append(requests)
        return [[Completion(ids, [0.0] * len(ids), reason, "") for ids, reason in self.answers] for _ in requests]


class FakeRun:
    step, counted = 4, 0

    def count(self, completions):
        self.counted += len(completions)


def test_a_value_is_the_mean_reward_of_whole_completions(tokenizer):
    """Prefix and continuation are scored together, a cut-off one scores 0, equal states are asked for once, all in one call."""
    config = Config(mc_samples=3, max_completion_length=20, top_p=0.9, temperature=0.7, stop=["\n\n"])
    problem = Problem("p", "", tuple(tokenizer("Tom has 3 figs.")["input_ids"]), "7")
    prefix = tuple(tokenizer("3+4=7\n")["input_ids"])
    end = tokenizer.eos_token_id
    right, wrong = ([*tokenizer(text)["input_ids"], end] for text in ("#### 7", "#### 8"))
    engine, run, seen = FakeEngine([(right, "stop"), (wrong, "stop"), (right, "length")]), FakeRun(), []

    def reward(problems, completions):
        seen.extend(completion.text for completion in completions)
        return torch.tensor([float(c.finish_reason == "stop" and c.text.endswith("#### 7")) for c in completions])

    states = [State(problem, prefix), State(problem, ()), State(problem, prefix)]
    values, mixed = estimate_values(states, engine, reward, tokenizer, config, run)
    assert values == {states[0]: pytest.approx(1 / 3), states[1]: pytest.approx(1 / 3)} and mixed == 1.0
    assert seen[:3] == ["3+4=7\n#### 7", "3+4=7\n#### 8", "3+4=7\n#### 7"] and seen[3] == "#### 7"
    ((first, second),) = engine.calls
    assert first.prompt_ids == problem.prompt_ids + prefix and second.prompt_ids == problem.prompt_ids
    assert first.max_tokens == 20 - len(prefix) and second.max_tokens == 20 and first.seed != second.seed
    assert (first.n, first.temperature, first.top_p, first.stop) == (3, 0.7, 0.9, ("\n\n",))
    assert run.counted == 6
    values, mixed = estimate_values(states, engine, lambda _, whole: torch.full((len(whole),), 0.3), tokenizer, config, run)
    assert mixed == 0.0 and list(values.values()) == pytest.approx([0.3, 0.3])  # a reward between 0 and 1 may be equal everywhere


def test_what_makes_no_sense_for_this_algorithm_is_refused():
    for flags, message in [
        ({"mc_samples": 0}, "give 1 or more samples"),
        ({"mc_max_states": -1}, "or more states"),
        ({"step_split": "sentences"}, "give lines, math, or tokens:N"),
        ({"step_split": "tokens:0"}, "give lines, math, or tokens:N"),
        ({"v0": "group", "num_generations": 1}, "needs a group"),
        ({"epsilon": 1.0}, "from 0 to below 1"),
    ]:
        with pytest.raises(UserError, match=message):
            Config(**flags).check()


# ---- end to end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags", [[], ["--v0", "group", "--mc_max_states", "2"], ["--step_split", "tokens:3"]], ids=["lines", "group", "tokens"]
)
def test_completions_and_metrics_tell_the_steps(flags, tmp_path, monkeypatch):
    assert run("train_vineppo", tmp_path / "run", "--max_steps", "2", "--eval_steps", "0", *flags, monkeypatch=monkeypatch) == 0
    told = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    rows = metrics(tmp_path / "run")
    assert len(rows) == 2
    for row in told:
        starts, values = row["step_starts"], row["state_values"]
        assert starts[0] == 0 and all(a < b for a, b in pairwise(starts)) and starts[-1] < row["tokens"]
        assert len(values) == (min(2, len(starts)) if flags[:1] == ["--v0"] else len(starts)) and all(0 <= v <= 1 for v in values)
        assert row["advantage"] == pytest.approx(row["reward"] - values[0], abs=1e-6)
        assert sum(step_advantages(values, row["reward"], len(starts))) == pytest.approx(row["advantage"], abs=1e-6)
        if not flags:
            assert len(starts) == 1 + row["completion"].count("\n") - row["completion"].count("\n#### ")
            assert all(round(3 * value, 6) % 1 == 0 for value in values)  # K = 3
        if flags == ["--step_split", "tokens:3"]:
            assert starts == list(range(0, row["tokens"], 3))
    every = sum(len(row["state_values"]) for row in told)  # equal ones are valued once: completions of a problem share its prompt
    assert 0 < sum(row["value/states"] for row in rows) < every
    assert all(row["value/continuations"] == 3 * row["value/states"] and row["value/mean_abs_advantage"] > 0 for row in rows)
    assert rows[-1]["num_completions"] == len(told) + sum(row["value/continuations"] for row in rows)


def test_states_that_are_valued_do_not_depend_on_what_else_is(tmp_path, monkeypatch):
    """The same prompt value with and without the other states: a state's seed is its own."""
    found = []
    for name, flags in (("all", []), ("first", ["--mc_max_states", "1"])):
        assert run("train_vineppo", tmp_path / name, "--max_steps", "1", "--eval_steps", "0", *flags, monkeypatch=monkeypatch) == 0
        found.append([json.loads(line)["state_values"][0] for line in (tmp_path / name / "completions.jsonl").read_text().splitlines()])
    assert found[0] == found[1] and sum(found[0]) > 0


@pytest.mark.parametrize("name", documented_flag_sets("vineppo"))
def test_every_documented_flag_set_trains(name, tmp_path, monkeypatch):
    assert len(documented_flag_sets("vineppo")) == 5
    flags = [*documented_flag_sets("vineppo")[name], "--problems_per_step", "4", "--num_generations", "4", "--max_steps", "2"]
    flags += ["--num_minibatches", "2", "--mc_samples", "2", "--prompt_template", "question", "--max_completion_length", "30"]
    flags += ["--eval_steps", "0"]
    assert run("train_vineppo", tmp_path / "run", *flags, monkeypatch=monkeypatch, quick=QUICK[:2]) == 0
    rows = metrics(tmp_path / "run")
    assert len(rows) == 2 and all(row["grad_norm"] > 0 for row in rows)
