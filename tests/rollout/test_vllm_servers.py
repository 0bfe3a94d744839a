"""The client of vLLM servers, against programs that answer as servers do. Real ones: test_vllm_engine.py and benchmarks."""

import math
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from fake_vllm import Fake, error, until
from helpers import (
    QUICK,
    completions,
    errors_of,
    evaluate,
    exit_code,
    make_policy,
    metrics,
    output_of,
    run,
    save_random_model,
    several,
)

from common.config import CommonConfig
from common.errors import UserError
from common.policy.pretrained import load_tokenizer, model_folder
from common.problems.choose import ProblemSampler
from common.records import Problem, Request, derive_seed, hash_seeds
from common.rollout import vllm_servers
from common.rollout.choose_engine import choose_engine, connect, make_engine
from common.rollout.transformers_engine import TransformersEngine
from common.rollout.vllm_http import Lost, Server
from common.rollout.vllm_queue import Member, Work
from common.rollout.vllm_servers import VLLMServers

PROMPTS = [tuple((7 * i + 3 * k) % 90 + 3 for k in range(6 + i)) for i in range(4)]
PATIENT, TIMEOUT = 30.0, 1.0  # seconds: where nothing is given up, and where something is


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    return save_random_model(tmp_path_factory.mktemp("model"), "qwen3", tokenizer)


@pytest.fixture(scope="module")
def pair(model, tokenizer):
    return [Fake(model, tokenizer) for _ in range(2)]


@pytest.fixture
def fakes(pair):
    """Two servers without troubles of an earlier test."""
    yield pair
    for fake in pair:
        fake.reset()


@pytest.fixture
def fake(fakes):
    return fakes[0]


@pytest.fixture
def policy(model, tokenizer):
    return make_policy(model, tokenizer, temperature=0.8)


@pytest.fixture
def start(model, tmp_path):
    """`start(*fakes, **flags)`: the engine of a run on these servers."""
    configs = []

    def make(*fakes, **flags):
        urls = [one if isinstance(one, str) else one.url for one in fakes]
        folder = tmp_path / f"run-{len(configs)}"
        folder.mkdir(exist_ok=True)
        options = {"vllm_server_timeout": PATIENT, "max_completion_length": 40, "lora_r": 4, "lora_alpha": 8, **flags}
        config = CommonConfig(model=str(model), output_dir=str(folder), vllm_server_base_url=urls, **options)
        config.check()
        configs.append(config)
        engine = make_engine(config, *load_tokenizer(config), PROMPTS)
        engine.release = config.release
        return engine

    yield make
    for config in configs:
        config.release()


@pytest.fixture
def ready(start, policy):
    """`ready(*fakes)`: an engine that samples from `policy`. The check of the start is a test of its own."""

    def make(*fakes, **flags):
        engine = start(*fakes, **flags)
        engine.connect(policy)
        engine.sync()
        engine.probe_prompts, engine.pause = engine.probe_prompts[:1], 0.02
        return engine

    return make


def requests_for(prompts=PROMPTS, n=2, max_tokens=8, temperature=0.8, **options):
    return [Request(prompt, derive_seed(0, "test", i), n, max_tokens, temperature, **options) for i, prompt in enumerate(prompts)]


def ids(groups):
    return [[completion.ids for completion in group] for group in groups]


def sampled(fake):
    return [body for path, body in fake.asked if path == "/v1/completions"]


def change(policy):
    with torch.no_grad():
        for parameter in policy.parameters_of().values():
            parameter.mul_(-1.5)


# ---- what is sampled -----------------------------------------------------------------------------------------------


def test_completions_are_those_of_the_policy_in_the_order_of_the_requests(ready, fakes, policy):
    engine = ready(*fakes)
    requests = requests_for(n=3, max_tokens=12)
    plain = TransformersEngine()
    plain.connect(policy)
    # a server counts its seeds up from the one that it is given
    single = [[Request(r.prompt_ids, int(hash_seeds(r.seed, 0)) % 2**62 + i, 1, 12, 0.8) for i in range(3)] for r in requests]
    wanted = [[plain.generate([one])[0][0] for one in group] for group in single]
    got = engine.generate(requests)
    assert ids(got) == ids(wanted) and len({tuple(c.ids) for group in got for c in group}) > 8
    for ours, theirs in zip(*([one for group in groups for one in group] for groups in (got, wanted)), strict=True):
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        assert ours.logps == pytest.approx(theirs.logps, abs=1e-5)
    assert ids(engine.generate(requests)) == ids(got)  # and again
    assert [group[:1] for group in ids(got)] == ids(engine.generate(requests_for(n=1, max_tokens=12)))
    assert engine.generate([]) == []
    assert all(len(sampled(fake)) > 2 for fake in fakes)  # both have worked


def test_greedy_completions_and_stop_strings_are_those_of_the_transformers_engine(ready, fakes, policy):
    engine, plain = ready(*fakes), TransformersEngine()
    plain.connect(policy)
    free = requests_for(n=1, max_tokens=20, temperature=0.0)
    stop = policy.tokenizer.decode(plain.generate(free)[0][0].ids[4:6])
    reasons = set()
    for requests in (free, requests_for(n=1, max_tokens=20, temperature=0.0, stop=("never there", stop, "<pad>"))):
        for (ours,), (theirs,) in zip(engine.generate(requests), plain.generate(requests), strict=True):
            assert (ours.ids, ours.text, ours.finish_reason) == (theirs.ids, theirs.text, theirs.finish_reason)
            reasons.add(ours.finish_reason)
    assert reasons == {"stop", "length"}
    body = sampled(fakes[0])[-1]
    assert set(policy.stop_ids) < set(body["stop_token_ids"]) and body["stop"][:1] == ["never there"]
    neutral = {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert neutral.items() <= body.items()  # else they come from the model's generation config


def test_the_check_of_the_start_asks_each_server_alone(start, fakes, policy, capsys):
    engine = start(*fakes)
    engine.probe_prompts = engine.probe_prompts[:1]
    connect(engine, policy)
    told = [line for line in capsys.readouterr().out.splitlines() if "parity:" in line]
    assert [line.split()[0] for line in told] == [fake.url for fake in fakes]
    assert len(sampled(fakes[0])) == len(sampled(fakes[1])) == 2


def test_one_server_with_other_log_probs_is_named(start, fakes, policy):
    def raw(path, body):  # as without --logprobs-mode processed_logprobs: of the tokens that were sampled, at temperature 1
        if path == "/v1/completions":
            status, answer = fakes[1].complete(body)
            for one in answer["choices"]:
                one["logprobs"]["token_logprobs"] = [0.8 * logp for logp in one["logprobs"]["token_logprobs"]]
            return status, answer
        return None

    fakes[1].trouble = raw
    with pytest.raises(UserError, match=f"{fakes[1].url}: the sampler does not sample from the policy.*processed_logprobs"):
        engine = start(*fakes)
        engine.probe_prompts = engine.probe_prompts[:1]
        connect(engine, policy)


# ---- versions of the adapter ---------------------------------------------------------------------------------------


def test_no_name_path_or_salt_is_used_twice_and_two_versions_are_kept(start, fake, policy):
    for _ in range(2):  # two runs, as after a resume
        engine = start(fake)
        engine.connect(policy)
        for _ in range(3):
            change(policy)
            engine.sync()
            assert [body["model"] for body in sampled(fake)[-1:]] != [engine.adapter[0]]
            engine.generate(requests_for(n=1, max_tokens=2))
            kept = sorted(path.name for path in engine.folder.iterdir())
            assert kept == sorted(fake.loaded) == sorted(name for name, _ in filter(None, (engine.before, engine.adapter)))
        engine.release()
        assert not engine.folder.exists() and not fake.loaded
    loads = [body for path, body in fake.asked if path == "/v1/load_lora_adapter"]
    assert len(loads) == 8 and all(body.keys() == {"lora_name", "lora_path"} for body in loads)  # never in place
    assert len({body["lora_name"] for body in loads}) == len({body["lora_path"] for body in loads}) == 8
    assert all(body["cache_salt"] == body["model"] for body in sampled(fake)) and len({body["cache_salt"] for body in sampled(fake)}) == 6


def test_every_sync_reaches_every_server(ready, fakes, policy):
    engine = ready(*fakes)
    before = ids(engine.generate(requests_for()))
    change(policy)
    assert ids(engine.generate(requests_for())) == before  # nothing moves before the sync
    engine.sync()
    plain = TransformersEngine()
    plain.connect(policy)
    assert [fake.loaded for fake in fakes] == [fakes[0].loaded] * 2
    for member in engine.members:
        engine.only = member
        assert ids(engine.generate(requests_for(n=1, temperature=0.0))) == ids(plain.generate(requests_for(n=1, temperature=0.0)))


def test_what_a_killed_run_left_is_removed(start, fake, tmp_path):
    left = tmp_path / "run-0" / "adapters" / "vinery-old-7"
    left.mkdir(parents=True)
    engine = start(fake)
    assert not left.exists() and len(list(engine.folder.iterdir())) == 1


def test_a_folder_that_comes_late_on_a_shared_file_system_is_waited_for(ready, fake, policy):
    engine = ready(fake)
    calls = []

    def late(path, body):
        if path == "/v1/load_lora_adapter":
            calls.append(path)
            if len(calls) < 3:
                return 404, error("Loading lora x failed: No adapter found for y")
        return None

    fake.trouble = late
    change(policy)
    engine.sync()
    assert len(calls) == 3 and engine.adapter[0] in fake.loaded
    fake.trouble = lambda path, body: (404, error("No adapter found for y")) if path == "/v1/load_lora_adapter" else None
    engine.timeout = 0.1
    with pytest.raises(UserError, match=f"{fake.url} does not find .*put --output_dir into a folder that the servers see"):
        engine.sync()


# ---- servers that fail ---------------------------------------------------------------------------------------------


def once(fake, what, path="/v1/completions", times=1):
    """The first call of `path` gets `what` in place of an answer: (status, content), or an exception."""
    left = [times]

    def trouble(asked, body):
        if asked == path and left[0] > 0:
            left[0] -= 1
            if isinstance(what, BaseException):
                raise what
            return what
        return None

    fake.trouble = trouble


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("what", [(500, error("boom")), (503, b"<html>"), (429, b""), ConnectionError(), "abort"])
def test_a_request_that_is_lost_is_asked_again(what, alone, ready, fakes, capsys):
    engine = ready(*fakes)
    wanted = ids(engine.generate(requests_for()))
    if what == "abort":  # what vLLM says of completions under way when it ends
        status, answer = fakes[0].complete(sampled(fakes[0])[0])
        answer["choices"][0]["finish_reason"] = "abort"
        what = status, answer
    once(fakes[0], what)
    if alone:
        fakes[1].stop()
    assert ids(engine.generate(requests_for())) == wanted
    assert f"lost {fakes[0].url}" in capsys.readouterr().out
    if alone:
        fakes[1].start()
    until(lambda: all(member.up or member.found for member in engine.members))
    assert ids(engine.generate(requests_for())) == wanted
    assert all(member.up for member in engine.members)


def test_a_server_that_started_again_gets_the_adapter_again(ready, fake, policy, capsys):
    engine = ready(fake)
    wanted = ids(engine.generate(requests_for()))
    fake.loaded.clear()  # it knows the base alone
    assert ids(engine.generate(requests_for())) == wanted
    assert "forgotten the adapter" in (told := capsys.readouterr().out) and f"{fake.url} is back" in told
    assert list(fake.loaded) == [engine.adapter[0]]


def test_a_dead_server_costs_nothing_and_is_found_when_it_is_back(ready, fakes, policy, capsys):
    engine = ready(*fakes)
    wanted = ids(engine.generate(requests_for()))
    fakes[1].stop()
    assert ids(engine.generate(requests_for())) == wanted
    change(policy)
    engine.sync()  # passes the dead one over
    changed = ids(engine.generate(requests_for()))
    assert changed != wanted
    fakes[1].start()
    until(lambda: engine.members[1].found)
    fakes[0].trouble = lambda path, body: (500, b"") if path == "/v1/completions" else None
    assert ids(engine.generate(requests_for())) == changed  # with the new version, which it had never seen
    assert f"{fakes[1].url} is back" in capsys.readouterr().out


def test_all_servers_gone_is_an_error_after_the_timeout(ready, fakes):
    engine = ready(*fakes, vllm_server_timeout=TIMEOUT)
    for fake in fakes:
        fake.stop()
    began = time.monotonic()
    with pytest.raises(UserError, match=f"no vLLM server has answered for 1 s.*{fakes[1].url}: .*go on from the last checkpoint"):
        engine.generate(requests_for())
    assert time.monotonic() - began >= TIMEOUT
    for fake in fakes:
        fake.start()


def test_one_that_comes_back_in_the_middle_of_a_call_goes_on(ready, fake):
    engine = ready(fake)
    wanted = ids(engine.generate(requests_for()))
    fake.stop()
    again = threading.Timer(0.2, fake.start)
    again.start()
    assert ids(engine.generate(requests_for())) == wanted
    again.join()


def hang(fake, release):
    """Completions wait until `release` is set, while everything else is answered. The counter stands still."""
    fake.trouble = lambda path, body: (release.wait(20), None)[1] if path == "/v1/completions" else None


def test_a_server_that_hangs_is_given_up_by_its_counter(ready, fakes, capsys):
    engine, release = ready(*fakes, vllm_server_timeout=TIMEOUT), threading.Event()
    wanted = ids(engine.generate(requests_for()))
    hang(fakes[0], release)
    assert ids(engine.generate(requests_for())) == wanted
    assert f"lost {fakes[0].url} (it hangs" in capsys.readouterr().out
    release.set()
    until(lambda: engine.members[0].found)
    fakes[0].trouble = lambda path, body: None
    assert ids(engine.generate(requests_for())) == wanted and engine.members[0].up


def test_a_slow_server_whose_counter_grows_is_waited_for(ready, fake):
    engine = ready(fake, vllm_server_timeout=TIMEOUT)

    def slow(path, body):
        if path == "/metrics":
            fake.tokens += 1
        if path == "/v1/completions":
            time.sleep(2 * TIMEOUT)

    fake.trouble = slow
    assert len(engine.generate(requests_for()[:1])) == 1


def test_a_server_that_only_counts_is_given_up_too(ready, fakes, capsys):
    engine, release = ready(*fakes), threading.Event()

    def busy(path, body):
        if path == "/metrics":
            fakes[0].tokens += 10**6
        elif path == "/v1/completions":
            release.wait(20)

    fakes[0].trouble = busy
    engine.generate(requests_for())
    release.set()
    assert f"lost {fakes[0].url} (it writes and does not answer" in capsys.readouterr().out


def test_a_look_that_fails_is_no_count():
    looks, lost = [Lost("it is busy"), 5e9, Lost("it is busy"), 5e9 + 1, 9e9], []

    class Counter:
        url = "http://there:1"

        def tokens(self):
            look = looks.pop(0)
            if isinstance(look, Lost):
                raise look
            return look

        def cut(self):
            pass

    work = Work(requests_for()[:1], lambda server, request: time.sleep(60), lambda member, why: lost.append(why))
    member = Member(Counter())
    work.start([member])
    for _ in range(4):
        work.listen(member, 0, 60)
    assert not lost
    work.listen(member, 0, 60)
    work.end()
    assert lost == ["it writes and does not answer, and owes 2 completions"] and not looks


def test_tokens_from_before_an_answer_and_of_others_do_not_count(ready, fake, capsys):
    """A server that answers all the time is not looked at. Its last completion may take a while, and others may ask it too."""
    engine = ready(fake)
    left = [4]

    def trouble(path, body):
        if path == "/v1/completions":
            left[0] -= 1
            fake.tokens += 10**6
            time.sleep(0.3 if left[0] == 0 else 0.1)
        if path == "/metrics" and left[0] == 0:
            fake.tokens += 1000

    fake.trouble = trouble
    for request in requests_for(n=1):
        engine.generate([request])
    left[0] = 4
    engine.generate(requests_for(n=1))
    assert "lost" not in capsys.readouterr().out


def test_a_request_that_no_server_survives_ends_the_run(ready, fakes):
    engine = ready(*fakes)
    for fake in fakes:
        fake.trouble = lambda path, body: (500, error("boom")) if path == "/v1/completions" else None
    engine.policy = None  # nothing that a server is asked when it is back
    with pytest.raises(UserError, match=r"was lost 10 times, at last by http.*boom"):
        engine.generate(requests_for()[:1])


@pytest.mark.parametrize("change, why", [({"base": "another"}, "serves another and not"), ({"max_model_len": 20}, "takes 20 tokens")])
def test_a_server_that_comes_back_as_another_stays_out(change, why, ready, fakes, capsys):
    engine = ready(*fakes)
    wanted = ids(engine.generate(requests_for()))
    fakes[0].stop()
    engine.generate(requests_for())
    for name, value in change.items():
        setattr(fakes[0], name, value)
    fakes[0].root = fakes[0].base
    fakes[0].start()
    until(lambda: why in engine.members[0].said)
    before = len(sampled(fakes[0]))
    assert ids(engine.generate(requests_for())) == wanted and len(sampled(fakes[0])) == before
    told = capsys.readouterr().out
    assert f"{fakes[0].url} is back but cannot be used" in told and why in told and told.count(why) == 1


def test_a_server_that_comes_back_with_other_weights_stays_out(ready, fakes, capsys):
    engine = ready(*fakes)
    fakes[0].loaded.clear()
    fakes[0].weights_of = lambda folder: {}
    engine.generate(requests_for())
    until(lambda: engine.members[0].found)
    engine.generate(requests_for())
    del fakes[0].weights_of
    assert "back but cannot be used: it does not sample from the policy that is trained" in capsys.readouterr().out


def test_an_interrupted_call_ends_and_the_next_one_works(ready, fakes, monkeypatch):
    engine, release = ready(*fakes), threading.Event()
    wanted = ids(engine.generate(requests_for()))
    for fake in fakes:
        hang(fake, release)
    with monkeypatch.context() as broken:
        broken.setattr(VLLMServers, "_look_after", _interrupted(engine))
        with pytest.raises(KeyboardInterrupt):
            engine.generate(requests_for())
    release.set()
    until(lambda: not any(member.server.open for member in engine.members))
    for fake in fakes:
        fake.trouble = lambda path, body: None
    assert ids(engine.generate(requests_for())) == wanted


def _interrupted(engine):
    real, calls = VLLMServers._look_after, []

    def look_after(self, work, here):
        calls.append(work)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, work, here)

    return look_after


# ---- servers that answer rubbish -----------------------------------------------------------------------------------


def broken(name):
    """Changes a good answer of /v1/completions."""
    changes = {
        "token beyond the vocabulary": lambda one, all: one["token_ids"].__setitem__(0, 10**6),
        "negative token": lambda one, all: one["token_ids"].__setitem__(0, -1),
        "token that is no number": lambda one, all: one["token_ids"].__setitem__(0, True),
        "text for tokens": lambda one, all: one.__setitem__("token_ids", "abc"),
        "no tokens": lambda one, all: one.__setitem__("token_ids", []),
        "a log-prob too few": lambda one, all: one["logprobs"]["token_logprobs"].pop(),
        "no log-probs": lambda one, all: one.__setitem__("logprobs", None),
        "NaN": lambda one, all: one["logprobs"]["token_logprobs"].__setitem__(1, math.nan),
        "minus infinity": lambda one, all: one["logprobs"]["token_logprobs"].__setitem__(1, -math.inf),
        "null": lambda one, all: one["logprobs"]["token_logprobs"].__setitem__(1, None),
        "a probability above 1": lambda one, all: one["logprobs"]["token_logprobs"].__setitem__(1, 0.5),
        "a sample too few": lambda one, all: all.pop(),
        "a sample twice": lambda one, all: all.__setitem__(1, one),
        "another prompt": lambda one, all: one.__setitem__("prompt_token_ids", [3, 4]),
        "cut off early": lambda one, all: one.update(
            token_ids=one["token_ids"][:1], logprobs={"token_logprobs": [-1.0]}, finish_reason="length"),
        "too long": lambda one, all: one.update(token_ids=[5] * 9, logprobs={"token_logprobs": [-1.0] * 9}),
    }
    return changes if name is None else changes[name]


@pytest.mark.parametrize("name", broken(None))
def test_wrong_numbers_are_an_error_that_names_the_server(name, ready, fake):
    engine = ready(fake)

    def trouble(path, body):
        if path == "/v1/completions":
            status, answer = fake.complete(body)
            broken(name)(answer["choices"][0], answer["choices"])
            return status, answer
        return None

    fake.trouble = trouble
    with pytest.raises(UserError, match=f"{fake.url} gave an answer that cannot be right"):
        engine.generate(requests_for()[:1])


@pytest.mark.parametrize(
    "content, why",
    [
        (b"<html>Welcome</html>", "is no vLLM server: /v1/completions gave no JSON"),
        (b"[" * 100_000, "gave no JSON"),
        (b"", "gave no JSON"),
        (b"[1, 2]", "cannot be right"),
        (b'{"choices": 7}', "cannot be right"),
        (b'{"choices": [' + b" " * (9 * 2**20), "nobody asked for"),
    ],
)
def test_answers_that_are_no_answers(content, why, ready, fake):
    engine = ready(fake)
    fake.trouble = lambda path, body: (200, content) if path == "/v1/completions" else None
    with pytest.raises(UserError, match=f"{fake.url}.*{why}"):
        engine.generate(requests_for()[:1])


def test_an_answer_without_end_is_cut(ready, fakes, monkeypatch):
    """Byte by byte, for ever: first in a call that must be short, then in completions."""
    engine = ready(*fakes, vllm_server_timeout=TIMEOUT)
    wanted = ids(engine.generate(requests_for()))

    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.02)

    real = fakes[0].answer
    monkeypatch.setattr(fakes[0], "answer", lambda handler, body: drip(handler))
    began = time.monotonic()
    assert not engine.members[0].server.healthy() and time.monotonic() - began >= TIMEOUT
    assert ids(engine.generate(requests_for())) == wanted
    monkeypatch.setattr(fakes[0], "answer", real)


def test_a_refused_request_ends_the_run_with_the_servers_words(ready, fake):
    engine = ready(fake)
    fake.trouble = lambda path, body: (400, error("max_tokens is too \x1b[31m large")) if path == "/v1/completions" else None
    with pytest.raises(UserError, match="refuses a request \\(status 400\\): max_tokens is too"):
        engine.generate(requests_for()[:1])


# ---- the key, and where it goes ------------------------------------------------------------------------------------


def test_the_key_is_sent_and_shown_nowhere(model, tokenizer, start, policy, monkeypatch, capsys, tmp_path):
    guarded = Fake(model, tokenizer, key="s3cret-key")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(UserError, match=f"{guarded.url} wants a key: set the environment variable VLLM_API_KEY"):
        start(guarded)
    monkeypatch.setenv("VLLM_API_KEY", "wr0ng-key")
    with pytest.raises(UserError, match=f"{guarded.url} does not take the key in VLLM_API_KEY") as refused:
        start(guarded)
    assert "wr0ng" not in str(refused.value)
    monkeypatch.setenv("VLLM_API_KEY", "s3cret-key")
    engine = start(guarded)
    connect(engine, policy)
    assert len(engine.generate(requests_for())) == len(PROMPTS)
    guarded.trouble = lambda path, body: (400, error("your key s3cret-key is odd")) if path == "/v1/completions" else None
    with pytest.raises(UserError, match=r"your key \(key\) is odd"):
        engine.generate(requests_for())
    assert "s3cret" not in capsys.readouterr().out
    assert not any(b"s3cret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    monkeypatch.setenv("VLLM_API_KEY", "two\nlines")
    with pytest.raises(UserError, match="VLLM_API_KEY has characters that a key cannot have") as refused:
        start(guarded)
    assert "lines" not in str(refused.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(status, ready, fakes, monkeypatch):
    engine = ready(fakes[0])
    fakes[0].trouble = lambda path, body: (status, f"{fakes[1].url}{path}".encode())
    before = len(fakes[1].asked)
    with pytest.raises(UserError, match=f"{fakes[0].url}/v1/completions leads to another address, and is not followed"):
        engine.generate(requests_for())
    assert len(fakes[1].asked) == before


# ---- refusals before a model is loaded -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["localhost:80", "ftp://host:1", "http://", "http://host:99999", "http://host:x", "http://host/v1", "http://host?a", "", "http://a b"],
)
def test_a_url_that_is_no_url(url):
    with pytest.raises(UserError, match=r"--vllm_server_base_url .*cannot work: give http://host:port"):
        Server(url, None, 1.0)


def test_urls_are_read():
    server = Server("https://box.example:8443/", None, 1.0)
    assert (server.scheme, server.host, server.port, server.url) == ("https", "box.example", 8443, "https://box.example:8443")
    assert (Server("http://10.0.0.7", None, 1.0).port, Server("http://[::1]:8000", None, 1.0).host) == (80, "::1")
    with pytest.raises(UserError, match="belongs in the environment variable VLLM_API_KEY") as refused:
        Server("http://me:s3cret@host:8000", None, 1.0)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"engine": "transformers"}, "give one of the two"),
        ({"vllm_server_timeout": 0.0}, "--vllm_server_timeout 0.0 cannot work"),
        ({"vllm_server_base_url": None}, "--vllm_server_timeout does nothing without --vllm_server_base_url"),
    ],
)
def test_flags_that_cannot_work(flags, message):
    config = CommonConfig(**{"model": "m", "dataset": "gsm8k", "vllm_server_base_url": ["http://a"], "vllm_server_timeout": 9.0, **flags})
    with pytest.raises(UserError, match=message):
        config.check()


def test_no_vllm_is_needed_here(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else real(name, *rest))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for engine in ("auto", "vllm"):
        config = CommonConfig(model="m", dataset="gsm8k", engine=engine, vllm_server_base_url=["http://a"])
        config.check()
        assert choose_engine(config) == ("servers", "--vllm_server_base_url")


@pytest.mark.parametrize(
    "fault, message",
    [
        ("gone", "no vLLM server answers at .*: start it, or leave it out"),
        ("other model", "serves other/thing and not .*start it with --served-model-name"),
        ("short", "takes 20 tokens of prompt and completion, and this run has up to 49: start it with --max-model-len 49"),
        ("silent", "has no vllm:generation_tokens_total.*without --disable-log-stats"),
        ("no route", "does not take adapters while it runs; start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL"),
        ("rank", "cannot load an adapter of rank 4: LoRA rank 4 is greater than max_lora_rank 2.*--max-lora-rank 4 or more"),
        ("twice", "names a server twice"),
        ("web page", "no vLLM server: its /v1/models has no list of models"),
    ],
)
def test_a_server_that_cannot_do_the_work_is_refused_at_the_start(fault, message, start, fakes, monkeypatch):
    fake = fakes[1]
    troubles = {
        "silent": {"/metrics": (200, b"# nothing")},
        "no route": {"/v1/load_lora_adapter": (404, {"detail": "Not Found"})},
        "rank": {"/v1/load_lora_adapter": (500, error("LoRA rank 4 is greater than max_lora_rank 2"))},
        "web page": {"/v1/models": (404, b"<html>")},
    }
    fake.trouble = lambda path, body: troubles.get(fault, {}).get(path)
    if fault == "other model":
        fake.base = fake.root = "other/thing"
    if fault == "short":
        fake.max_model_len = 20
    if fault == "gone":
        fake.stop()
    with pytest.raises(UserError, match=message):
        start(fakes[0], fakes[0] if fault == "twice" else fake)
    if fault == "gone":
        fake.start()


def test_a_model_in_another_folder_or_under_another_name_is_known_by_its_last_name(start, fake, model):
    for base, root in (("short", f"/elsewhere/{model.name}"), (model.name, "/x/y"), (f"org/{model.name}", "z")):
        fake.base, fake.root = base, root
        assert start(fake).members[0].server.model == base


def test_a_refused_start_leaves_no_folder(start, fake, tmp_path):
    fake.trouble = lambda path, body: (500, error("no")) if path == "/v1/load_lora_adapter" else None
    with pytest.raises(UserError, match="cannot load"):
        start(fake)
    assert vllm_servers.FOLDER == "adapters" and (tmp_path / "run-0" / "adapters").exists()  # until the run gives its folder free


# ---- whole runs ----------------------------------------------------------------------------------------------------


RANK = ["--lora_r", "4", "--lora_alpha", "8"]  # that of the fake servers


@pytest.fixture(scope="module")
def embedded(model_cache):
    """Two servers of the embedded model."""
    config = CommonConfig(dataset=QUICK[1])
    return [Fake(Path(model_folder(config)), load_tokenizer(config)[0]) for _ in range(2)]


def test_a_run_on_servers_resumes_and_names_no_machine(embedded, tmp_path, monkeypatch, capsys):
    flags = [*RANK, "--eval_steps", "0", "--lr_scheduler_type", "constant", "--vllm_server_timeout", "20"]
    servers = [*flags, "--vllm_server_base_url", *(fake.url for fake in embedded)]
    assert run("train_grpo", tmp_path / "both", *servers, "--max_steps", "2", monkeypatch=monkeypatch) == 0
    assert run("train_grpo", tmp_path / "one", *servers[:-1], "--max_steps", "1", monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    again = ["--resume_from_checkpoint", str(tmp_path / "one" / "checkpoint-1"), "--max_steps", "2"]
    shutil.copytree(tmp_path / "one", tmp_path / "without")
    asked = [len(fake.asked) for fake in embedded]
    elsewhere = ["--resume_from_checkpoint", str(tmp_path / "without" / "checkpoint-1"), "--max_steps", "2"]
    assert run("train_grpo", tmp_path / "without", *elsewhere, monkeypatch=monkeypatch) == 0  # nobody typed the servers
    assert f"they are not asked: only the command line can name servers. To ask them, add --vllm_server_base_url {embedded[0].url}" in \
        capsys.readouterr().out
    assert [len(fake.asked) for fake in embedded] == asked and len(completions(tmp_path / "without")) == 32
    assert run("train_grpo", tmp_path / "one", *again, *servers, monkeypatch=monkeypatch) == 0
    assert completions(tmp_path / "one") == completions(tmp_path / "both") and len(completions(tmp_path / "one")) == 32
    rows = metrics(tmp_path / "both")
    assert [row["step"] for row in rows] == [1, 2] and 0 < rows[1]["sampling/sampling_logp_difference/max"] < 1e-4
    for folder in (tmp_path / "one", tmp_path / "both"):
        assert not (folder / "adapters").exists()
        card = (folder / "checkpoint-2" / "README.md").read_text()
        assert "127.0.0.1" not in card and "vllm_server" not in card
    assert not any(fake.loaded for fake in embedded)
    assert any(fake.tokens for fake in embedded[1:])


def test_two_processes_on_servers_are_the_run_of_one(embedded, tmp_path, monkeypatch):
    flags = [*RANK, "--max_steps", "2", "--vllm_server_timeout", "60", "--vllm_server_base_url", *(fake.url for fake in embedded)]
    assert run("train_grpo", tmp_path / "one", *flags, monkeypatch=monkeypatch) == 0
    calls = len(embedded[0].asked)
    processes = several(2, "train_grpo", tmp_path / "two", *flags, monkeypatch=monkeypatch)
    assert [exit_code(process, 240) for process in processes] == [0, 0], output_of(tmp_path / "two").read_text()
    kept = "step", "problem", "completion", "reward", "tokens"
    ours, theirs = ([[row[name] for name in kept] for row in completions(tmp_path / name)] for name in ("two", "one"))
    assert ours == theirs and len(ours) == 32
    assert metrics(tmp_path / "two")[-1]["sampling/sampling_logp_difference/max"] < 1e-4
    loads = [body["lora_path"] for path, body in embedded[0].asked[calls:] if path == "/v1/load_lora_adapter"]
    assert len(loads) == len(set(loads)) > 3 and not (tmp_path / "two" / "adapters").exists()  # process 0 alone hands adapters out
    assert errors_of(tmp_path / "two", 1).read_text() == ""


def test_an_evaluation_on_servers_is_that_of_the_transformers_engine(embedded, finished, tmp_path, monkeypatch):
    adapter = str(finished("train_grpo", "--max_steps", "2", *RANK) / "checkpoint-2")
    servers = ["--vllm_server_timeout", "20", "--vllm_server_base_url", *(fake.url for fake in embedded)]
    before = [len(sampled(fake)) for fake in embedded]
    for name, flags in {"base": [], "adapter": ["--adapter", adapter]}.items():
        ours = evaluate(tmp_path / name, *servers, *flags, monkeypatch=monkeypatch)
        theirs = evaluate(tmp_path / f"{name}-2", *flags, monkeypatch=monkeypatch)
        assert ours["greedy"] == theirs["greedy"] and ours["problems"] == 30
        assert abs(ours["mean"]["value"] - theirs["mean"]["value"]) < 4 * (2 * 0.25 / 120) ** 0.5
        assert not (tmp_path / name / "adapters").exists()
    salts = {body["cache_salt"] for fake, count in zip(embedded, before, strict=True) for body in sampled(fake)[count:]}
    assert len(salts) == 2 and not any(fake.loaded for fake in embedded)


def test_servers_sample_a_step_ahead(embedded, tmp_path, monkeypatch):
    flags = [*RANK, "--eval_steps", "2", "--lr_scheduler_type", "constant", "--learning_rate", "0.01", "--vllm_server_timeout", "60"]
    flags += ["--vllm_server_base_url", embedded[0].url, "--sample_ahead", "1"]
    calls = len(embedded[0].asked)
    assert run("train_grpo", tmp_path / "whole", *flags, "--max_steps", "4", monkeypatch=monkeypatch) == 0
    asked = embedded[0].asked[calls:]
    versions = [body["lora_name"] for path, body in asked if path == "/v1/load_lora_adapter"]
    trained = [body["model"] for path, body in asked if path == "/v1/completions" and body["n"] == 4 and body["temperature"] > 0]
    # the trial adapter, three of the check, and one for each step; the first two steps are sampled before the first update
    assert len(versions) == 9 and [trained.count(name) for name in versions] == [0, 0, 0, 0, 8, 4, 4, 0, 0]
    rows = metrics(tmp_path / "whole")
    assert [row["sampling/staleness"] for row in rows[1:]] == [0, 1, 1, 1]
    differences = [row["sampling/sampling_logp_difference/max"] for row in rows[1:]]
    assert differences[0] < 1e-4 < 1e-3 < min(differences[2:])  # the importance weights have something to correct
    assert run("train_grpo", tmp_path / "parts", *flags, "--max_steps", "2", "--save_steps", "1", monkeypatch=monkeypatch) == 0
    again = ["--resume_from_checkpoint", str(tmp_path / "parts" / "checkpoint-1"), "--max_steps", "4"]
    assert run("train_grpo", tmp_path / "parts", *flags, *again, monkeypatch=monkeypatch) == 0
    assert completions(tmp_path / "parts") == completions(tmp_path / "whole")
    assert metrics(tmp_path / "parts") == rows


def test_the_only_server_starts_again_while_it_samples_ahead(ready, fake, capsys):
    engine = ready(fake, vllm_server_timeout=TIMEOUT)
    wanted = ids(engine.generate(requests_for()))
    fake.stop()
    engine.begin(requests_for())
    time.sleep(2 * TIMEOUT)  # a long update, in which nobody can take the server back
    fake.loaded.clear()
    fake.start()
    engine.sync()
    assert ids(engine.generate(requests_for())) == wanted
    assert capsys.readouterr().out.count(f"{fake.url} is back") == 1


@pytest.mark.parametrize("flags", [{"vllm_server_base_url": None}, {"importance_cap": 0.0}, {"sampling": "lilo"}])
def test_what_sampling_ahead_needs(flags):
    config = CommonConfig(**{"model": "m", "dataset": "gsm8k", "vllm_server_base_url": ["http://a"], "sample_ahead": 1, **flags})
    with pytest.raises(UserError, match="--sample_ahead 1 needs servers"):
        config.check()


def test_a_server_that_dies_and_comes_back_while_a_step_is_sampled_ahead(ready, fake, policy):
    engine = ready(fake, vllm_server_timeout=TIMEOUT)
    wanted = ids(engine.generate(requests_for()))
    hold = threading.Event()
    fake.trouble = lambda path, body: (hold.wait(20), None)[1] if path == "/v1/completions" else None
    engine.begin(requests_for())
    fake.stop()
    hold.set()
    change(policy)
    engine.sync()  # as at the end of the update
    time.sleep(2 * TIMEOUT)  # an update may be longer than the timeout
    fake.trouble = lambda path, body: None
    fake.start()
    assert ids(engine.generate(requests_for())) == wanted  # of the adapter of before
    assert ids(engine.generate(requests_for())) != wanted


def test_a_checkpoint_needs_no_servers():
    def fill(groups, ahead=False):
        if not ahead:
            raise UserError("no vLLM server has answered")

    config = CommonConfig(problems_per_step=2, sample_ahead=1, max_steps=3)
    problems = [Problem(str(i), "", (1,), "") for i in range(8)]
    sampler = ProblemSampler(problems, config, fill, None, None)
    sampler.choose(1)
    sampler._begin_next()
    state = sampler.state_dict()
    assert sampler.epochs.drawn == 4 and state["drawn"] == 2 and "ahead" not in state
