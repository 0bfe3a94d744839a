import random
import sys

import pytest
import torch
from helpers import ARCHITECTURES, make_policy

import common.rollout.transformers_engine as rollout
from common.policy.micro_batches import microbatches
from common.records import Problem, Request, derive_seed, make_batch
from common.rollout import draw
from common.rollout.prefill import Prompts, window_of
from common.rollout.transformers_engine import TransformersEngine


def make_requests(count, vocabulary, n=3, max_tokens=12, **options):
    generator = random.Random(0)
    return [
        Request(
            tuple(generator.choices(range(3, vocabulary), k=generator.randint(2, 30))),
            derive_seed(0, "test", i),
            n,
            generator.randint(1, max_tokens),
            **options,
        )
        for i in range(count)
    ]


def connected(policy):
    engine = TransformersEngine()
    engine.connect(policy)
    return engine


@pytest.fixture
def engine(random_models, tokenizer):
    return connected(make_policy(random_models["qwen3"], tokenizer))


def ids_of(groups):
    return [[completion.ids for completion in group] for group in groups]


@pytest.mark.parametrize("race_from", [draw.RACE_VOCABULARY, 1])
def test_rollouts_do_not_depend_on_order_or_batching(race_from, engine, tokenizer, monkeypatch):
    monkeypatch.setattr(draw, "RACE_VOCABULARY", race_from)
    requests = make_requests(30, len(tokenizer))
    whole = engine.generate(requests)
    order = list(range(30))
    random.Random(1).shuffle(order)
    shuffled = dict(zip(order, engine.generate([requests[i] for i in order]), strict=True))
    assert [shuffled[i] for i in range(30)] == whole  # log-probs too, to the last bit
    assert ids_of([engine.generate([request])[0] for request in requests]) == ids_of(whole)
    monkeypatch.setattr(rollout, "CPU_CACHE_BYTES", 40 * engine.cache_bytes_per_token)  # about one row at a time
    batches, real = [], engine._run
    monkeypatch.setattr(engine, "_run", lambda rows, *others: batches.append(rows) or real(rows, *others))
    assert ids_of(engine.generate(requests)) == ids_of(whole) and len(batches) > 60
    # sample i is the same whether or not the others are asked for
    fewer = engine.generate([Request(r.prompt_ids, r.seed, 2, r.max_tokens) for r in requests])
    assert ids_of(fewer) == [ids[:2] for ids in ids_of(whole)]


def test_batches_keep_within_the_memory_for_keys_and_values(engine, tokenizer, monkeypatch):
    monkeypatch.setattr(rollout, "CPU_CACHE_BYTES", 200 * engine.cache_bytes_per_token)
    requests = make_requests(40, len(tokenizer), n=4)
    seen = []
    for together in engine._prefills(requests):
        prompts = Prompts(engine.policy, [requests[i].prompt_ids for i in together])
        assert prompts.tokens <= 50 or len({requests[i].prompt_ids for i in together}) == 1
        for rows in engine._batches(requests, together, prompts):
            longest = max(len(r.prompt_ids) for r in rows.requests) + max(r.max_tokens for r in rows.requests)
            assert len(rows.where) == 1 or longest * len(rows.where) <= 200 - prompts.tokens
            seen += rows.where
    assert sorted(seen) == [(i, k) for i in range(40) for k in range(4)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampler_and_trainer_agree(architecture, random_models, tokenizer):
    """What the sampler says of its tokens is what the trainer computes, adapter on, at the sampling temperature."""
    policy = make_policy(random_models[architecture], tokenizer, temperature=0.8)
    requests = make_requests(8, len(tokenizer), max_tokens=24, temperature=0.8)
    groups = connected(policy).generate(requests)
    batch = make_batch([Problem(str(i), "", r.prompt_ids, "") for i, r in enumerate(requests)], groups)
    on, off = [], []
    with torch.no_grad():
        for micro in microbatches(batch, torch.arange(len(batch)), 300, policy):
            on.append((policy.logps(micro)[0] - micro.sampling_logps).abs().max())
            with policy.reference():
                off.append((policy.logps(micro)[0] - micro.sampling_logps).abs().max())
    assert max(on) < 1e-4 and max(off) > 0.1


def test_greedy_is_what_transformers_generate_gives(engine, random_models, tokenizer):
    policy = engine.policy
    requests = make_requests(6, len(tokenizer), n=1, max_tokens=20, temperature=0.0)
    for request, (completion,) in zip(requests, engine.generate(requests), strict=True):
        prompt = torch.tensor([request.prompt_ids])
        out = policy.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=request.max_tokens,
            pad_token_id=1,
            eos_token_id=0,
        )
        assert completion.ids == out[0, len(request.prompt_ids) :].tolist()


def test_finish_reasons_and_the_end_token(engine, tokenizer):
    groups = engine.generate(make_requests(30, len(tokenizer), n=4, max_tokens=30))
    completions = [completion for group in groups for completion in group]
    ended = [c for c in completions if c.finish_reason == "stop"]
    assert ended and len(ended) < len(completions)
    for completion in completions:
        assert len(completion.ids) == len(completion.logps) > 0
        assert (completion.ids[-1] == tokenizer.eos_token_id) == (completion.finish_reason == "stop")
        assert tokenizer.eos_token_id not in completion.ids[:-1] and "<eos>" not in completion.text


def test_a_stop_string_cuts_the_text_and_keeps_the_tokens_that_completed_it(engine, tokenizer):
    requests = make_requests(20, len(tokenizer), n=2, max_tokens=30)
    free = [c for group in engine.generate(requests) for c in group]
    stop = tokenizer.decode(free[0].ids[2:4])  # two tokens long: found only once the second is there
    stopped = [c for group in engine.generate([Request(**{**vars(r), "stop": ("never there", stop)}) for r in requests]) for c in group]
    hits = 0
    for before, after in zip(free, stopped, strict=True):
        assert before.ids[: len(after.ids)] == after.ids
        if stop in before.text:
            hits += 1
            assert after.finish_reason == "stop" and after.text == before.text[: before.text.index(stop)]
            assert stop in tokenizer.decode(after.ids) and stop not in tokenizer.decode(after.ids[:-1])
        else:
            assert (after.ids, after.text, after.finish_reason) == (before.ids, before.text, before.finish_reason)
    assert hits


def test_sync_is_what_changes_the_sampler(random_models, tokenizer):
    policy = make_policy(random_models["llama"], tokenizer)
    engine = connected(policy)
    requests = make_requests(5, len(tokenizer), temperature=0.0)
    before = ids_of(engine.generate(requests))
    with torch.no_grad():
        for parameter in policy.parameters_of().values():
            parameter.mul_(-3)
    assert ids_of(engine.generate(requests)) == before
    engine.sync()
    assert ids_of(engine.generate(requests)) != before


def test_a_special_token_can_be_a_stop_string(engine, tokenizer):
    """Base models of chat families end their turns with one, and no decoded text shows it."""
    requests = make_requests(30, len(tokenizer), n=4, max_tokens=40)
    stopped = [c for group in engine.generate([Request(**{**vars(r), "stop": ("<pad>",)}) for r in requests]) for c in group]
    hits = [c for c in stopped if tokenizer.pad_token_id in c.ids]
    assert hits and all(c.finish_reason == "stop" and c.ids.index(tokenizer.pad_token_id) == len(c.ids) - 1 for c in hits)


def test_long_prompts_are_not_prefilled_all_at_once(engine, tokenizer, monkeypatch):
    monkeypatch.setattr(rollout, "PREFILL_TOKENS", 100)
    requests = make_requests(40, len(tokenizer), n=2)
    parts = list(engine._prefills(requests))
    assert sorted(i for some in parts for i in some) == list(range(40))
    for some in parts:
        prompts = {requests[i].prompt_ids for i in some}
        assert len(prompts) == 1 or Prompts(engine.policy, list(prompts)).tokens <= 100


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompts_that_begin_others_are_taken_from_their_cache(architecture, random_models, tokenizer, monkeypatch):
    """As in Monte-Carlo values: prefixes of a few trajectories. The same samples, with each trajectory run once."""
    engine = connected(make_policy(random_models[architecture], tokenizer))
    generator = random.Random(0)
    trajectories = [tuple(generator.choices(range(3, len(tokenizer)), k=length)) for length in (40, 31, 22)]
    cuts = [(40, 33, 20, 6), (31, 30, 9), (22,)]
    prompts = [trajectory[:cut] for trajectory, ends in zip(trajectories, cuts, strict=True) for cut in ends]
    requests = [Request(prompt, derive_seed(0, "prefix", i), 3, 45 - len(prompt)) for i, prompt in enumerate(prompts)]
    requests += [Request(prompts[1], derive_seed(0, "again"), 2, 5, temperature=0.0)]  # a prompt twice: one prefill too
    random.Random(1).shuffle(requests)
    prefilled, real = [], engine.policy.hidden_states

    def counted(input_ids, **inputs):
        if input_ids.shape[1] > 1:
            prefilled.append(int(inputs["attention_mask"].sum()))
        return real(input_ids, **inputs)

    monkeypatch.setattr(engine.policy, "hidden_states", counted)
    together = engine.generate(requests)
    monkeypatch.setattr(rollout, "MAX_ROWS", {"cpu": 4})  # rows of a batch are shorter than the prompts that were run
    assert ids_of(engine.generate(requests)) == ids_of(together)
    alone = [engine.generate([request])[0] for request in requests]
    assert ids_of(together) == ids_of(alone)
    for ours, theirs in zip(together, alone, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.logps == pytest.approx(b.logps, abs=2e-5)
    windowed = architecture.startswith("gemma")  # layers that keep 16 tokens; Mistral's keep 4,096
    assert window_of(engine.policy) == {"gemma2": 16, "gemma3_text": 16, "mistral": 4096}.get(architecture, sys.maxsize)
    assert prefilled[0] == sum(map(len, set(prompts) if windowed else trajectories))
