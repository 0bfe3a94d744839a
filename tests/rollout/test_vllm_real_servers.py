"""Two vLLM servers on this machine, through everything that can happen to them. Runs where vllm is installed: `make test-vllm`."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")

from helpers import QUICK, ROOT, completions, evaluate, largest_difference, make_policy, metrics, run

from common.config import CommonConfig
from common.errors import UserError
from common.files import remove
from common.policy.pretrained import load_tokenizer, model_folder
from common.records import Request, derive_seed
from common.rollout.choose_engine import connect, make_engine
from common.rollout.transformers_engine import TransformersEngine

sys.path.insert(0, str(ROOT / "benchmarks"))
from serving import serving

RANK = ["--lora_r", "4", "--lora_alpha", "8"]
# longer than two blocks of the cache, so that there is something to reuse, rightly or wrongly
PROMPTS = [tuple((7 * i + 3 * k) % 90 + 3 for k in range(69 + i)) for i in range(4)]
# Seconds without a token after which a server is given up. A server that has just started compiles for a while before its first token.
TIMEOUT, HANGS = 120.0, 15.0


@pytest.fixture(scope="module")
def model(model_cache):
    return Path(model_folder(CommonConfig(dataset=QUICK[1])))


@pytest.fixture(scope="module")
def servers(model):
    with serving(model, 2, rank=8, length=256) as started:
        yield started


@pytest.fixture
def engine_and_policy(servers, model, tmp_path):
    config = CommonConfig(model=str(model), max_completion_length=100, lora_r=4, lora_alpha=8, output_dir=str(tmp_path),
                          vllm_server_base_url=[server.url for server in servers], vllm_server_timeout=TIMEOUT)
    tokenizer, model_config = load_tokenizer(config)
    engine = make_engine(config, tokenizer, model_config, [request.prompt_ids for request in requests_for()])
    engine.pause = 0.1
    policy = make_policy(model, tokenizer, temperature=0.8)
    connect(engine, policy)
    yield engine, policy
    config.release()
    assert not engine.folder.exists()


def requests_for(prompts=PROMPTS, n=2, max_tokens=12, temperature=0.8, **options):
    return [Request(prompt, derive_seed(0, "test", i), n, max_tokens, temperature, **options) for i, prompt in enumerate(prompts)]


def change(policy):
    with torch.no_grad():
        for parameter in policy.parameters_of().values():
            parameter.mul_(-2)


def each_alone(engine):
    for member in engine.members:
        engine.only = member
        yield
    engine.only = None


def ids(groups):
    return [[completion.ids for completion in group] for group in groups]


def test_each_server_agrees_with_the_trainer_after_every_sync(engine_and_policy):
    engine, policy = engine_and_policy
    requests = requests_for()
    for _ in range(3):
        for _ in each_alone(engine):
            assert largest_difference(policy, requests, engine.generate(requests)) < 1e-4
        change(policy)
        for _ in each_alone(engine):
            assert largest_difference(policy, requests, engine.generate(requests)) > 0.1  # nothing moves before the sync
        engine.sync()
    assert largest_difference(policy, requests, engine.generate(requests)) < 1e-4
    assert len(list(engine.folder.iterdir())) == 2


def test_with_a_name_and_salt_that_stay_the_cache_is_stale_and_is_noticed(engine_and_policy, monkeypatch):
    engine, policy = engine_and_policy
    requests = requests_for()
    engine.sync()
    engine.generate(requests)  # fills the caches
    (name, folder), older = engine.adapter, engine.before

    def publish(write):
        remove(folder)
        folder.mkdir()
        write(folder)
        for member in engine.members:
            member.server.unload(name)
            member.server.load(name, str(folder), 4)
        return name, folder

    monkeypatch.setattr(engine, "_publish", publish)
    change(policy)
    engine.sync()
    assert largest_difference(policy, requests, engine.generate(requests)) > 0.1
    with pytest.raises(UserError, match=f"{engine.members[0].server.url}: the sampler does not sample from the policy"):
        engine.check()
    monkeypatch.undo()
    engine.before = older  # else nobody would remove its folder
    engine.sync()
    assert largest_difference(policy, requests, engine.generate(requests)) < 1e-4


def test_greedy_completions_texts_and_reasons_are_those_of_the_transformers_engine(engine_and_policy):
    engine, policy = engine_and_policy
    plain = TransformersEngine()
    plain.connect(policy)
    free = requests_for(n=1, max_tokens=40, temperature=0.0)
    stop = policy.tokenizer.decode(plain.generate(free)[0][0].ids[4:6])
    reasons = set()
    for requests in (free, requests_for(n=1, max_tokens=40, temperature=0.0, stop=("never there", stop, "<pad>"))):
        for (ours,), (theirs,) in zip(engine.generate(requests), plain.generate(requests), strict=True):
            assert (ours.ids, ours.text, ours.finish_reason) == (theirs.ids, theirs.text, theirs.finish_reason)
            assert ours.logps == pytest.approx(theirs.logps, abs=1e-4)
            reasons.add(ours.finish_reason)
    assert reasons == {"stop", "length"}


def test_seeds_decide_what_is_sampled_whoever_samples(engine_and_policy):
    engine, _ = engine_and_policy
    requests = requests_for(n=6)
    both = ids(engine.generate(requests))
    assert len({tuple(one) for one in both[0]}) > 3
    for _ in each_alone(engine):
        assert ids(engine.generate(requests)) == both
    assert [group[:1] for group in both] == ids(engine.generate(requests_for(n=1)))


def test_a_server_that_hangs_dies_or_comes_back_costs_no_completion(engine_and_policy, servers, capsys):
    engine, policy = engine_and_policy
    many = [request for start in range(6) for request in requests_for([p[start:] for p in PROMPTS], n=4, max_tokens=100)]
    wanted = ids(engine.generate(many))
    second = engine.members[1]

    def strike(number):
        """Sends a signal to the second server when it has begun to write."""
        begun = second.server.tokens()
        while second.server.tokens() == begun:
            time.sleep(0.01)
        servers[1].send(number)

    for number, said in ((signal.SIGSTOP, "it hangs, and owes"), (signal.SIGKILL, f"lost {servers[1].url}")):
        blow = threading.Thread(target=strike, args=[number])
        engine.timeout = HANGS
        blow.start()
        assert ids(engine.generate(many)) == wanted
        blow.join()
        assert said in capsys.readouterr().out and not second.up
        engine.timeout = TIMEOUT
        servers[1].send(signal.SIGCONT) if number == signal.SIGSTOP else (servers[1].start(), servers[1].wait())
        change(policy)
        engine.sync()  # a version that the second server has not seen
        end = time.monotonic() + TIMEOUT
        while not second.up:
            assert time.monotonic() < end, second.said
            engine.generate(many[:1])
        assert f"{servers[1].url} is back" in capsys.readouterr().out
        engine.only = second
        assert largest_difference(policy, many[:4], engine.generate(many[:4])) < 1e-4
        engine.only = None
        wanted = ids(engine.generate(many))


def test_a_run_whose_server_dies_ends_as_if_nothing_had_happened(servers, tmp_path, monkeypatch):
    flags = [*RANK, "--max_steps", "3", "--vllm_server_timeout", "120", "--vllm_server_base_url", *(one.url for one in servers)]
    assert run("train_grpo", tmp_path / "calm", *flags, monkeypatch=monkeypatch) == 0

    def strike():
        while not (tmp_path / "rough" / "metrics.jsonl").exists() or len(metrics(tmp_path / "rough")) < 2:
            time.sleep(0.01)
        servers[1].send(signal.SIGKILL)

    blow = threading.Thread(target=strike)
    blow.start()
    assert run("train_grpo", tmp_path / "rough", *flags, monkeypatch=monkeypatch) == 0
    blow.join()
    assert servers[1].process.poll() is not None
    ours, theirs = completions(tmp_path / "rough"), completions(tmp_path / "calm")
    assert len(ours) == 48 and [row["completion"] for row in ours] == [row["completion"] for row in theirs]
    assert all(row.get("sampling/sampling_logp_difference/max", 0) < 1e-4 for row in metrics(tmp_path / "rough"))


def test_an_evaluation_has_the_greedy_answers_of_the_transformers_engine(servers, finished, tmp_path, monkeypatch):
    adapter = ["--adapter", str(finished("train_grpo", "--max_steps", "2", *RANK) / "checkpoint-2")]
    ours = evaluate(tmp_path / "ours", *adapter, "--vllm_server_base_url", servers[0].url, monkeypatch=monkeypatch)
    theirs = evaluate(tmp_path / "theirs", *adapter, "--engine", "transformers", monkeypatch=monkeypatch)
    assert ours["greedy"] == theirs["greedy"] and ours["problems"] == 30
