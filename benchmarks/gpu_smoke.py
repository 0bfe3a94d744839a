"""Every check of the vLLM path on one GPU, with random weights in the largest shape that fits: a table, and the checks that failed.

    python benchmarks/gpu_smoke.py [--gb 24] [--only parity release ...]

Each check is a process of its own with a log in --out, so a check that dies stops no other one. The last column is the largest memory in
use on the whole device (read every 50 ms), less the memory in use before. --gb plans for a smaller card than the one in the machine: it
chooses the shapes and vLLM's share, and it limits nothing. The training checks run what the README says fits such a card. Their weights
are written to --out first, up to 66 GB. Random weights tell speed and memory, and nothing about learning; the rewards of the training
checks are coin flips.

Without a GPU the script rehearses at a toy shape, on vLLM's CPU build, the checks that can run there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import random
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measure import ROOT, parser, read_rows, run_logged, show
from shapes import FITS, OTHERS, QWEN2, SHAPES, shape
from transformers import AutoConfig, AutoModelForCausalLM

from common.config import CommonConfig
from common.console import fail, say
from common.errors import UserError
from common.files import write_file
from common.launch import parse_command_line, run_script
from common.policy.load import load_policy
from common.policy.micro_batches import microbatches
from common.policy.policy import Policy
from common.policy.pretrained import load_tokenizer
from common.records import Completion, Problem, Request, derive_seed, make_batch
from common.rollout.choose_engine import connect
from common.rollout.parity import ALLOWED, allowed, prompts_and_completions
from common.rollout.vllm_engine import VLLMEngine
from common.tiny.model import build_tokenizer
from common.tiny.task import Arithmetic
from common.verify.rewards import VerifierReward

SIZES = ("Qwen2.5-7B", "Qwen2.5-3B", "Qwen2.5-1.5B", "Qwen2.5-0.5B")  # of the checks that do not train
TOY = shape(QWEN2, 512, 128, 256, 2, 4, 4096, num_key_value_heads=2, tie_word_embeddings=True)  # for rehearsals
GB = 1e9
ON_GPU = torch.cuda.is_available()
CACHE_GB = 6  # for vLLM's buffers and graphs, keys and values
TRAINER_GB = 6  # for the trainer's activations, log-probs and optimiser


def gigabytes(name: str, kind: str) -> float:
    """GB of the weights in memory. With 4-bit linear layers the embeddings stay in bfloat16."""
    config = config_of(name)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    attention = 2 * hidden * config.get("head_dim", hidden // heads) * (heads + config["num_key_value_heads"])
    linear = config["num_hidden_layers"] * (attention + 3 * hidden * config["intermediate_size"])
    embeddings = config["vocab_size"] * hidden * (1 if config["tie_word_embeddings"] else 2)
    width = {"float32": 4.0, "bfloat16": 2.0, "4-bit": 0.55}[kind]
    return (linear * width + embeddings * max(width, 2.0)) / GB


def config_of(name: str) -> dict[str, Any]:
    """The config.json of a model in shapes.py, or of the toy."""
    return TOY if name == "toy" else (SHAPES | OTHERS)[name]


def largest(kind: str, gb: float) -> str:
    """The largest of SIZES that fits twice beside caches and activations: one check has two engines."""
    fitting = (name for name in SIZES if 2 * gigabytes(name, kind) + CACHE_GB + TRAINER_GB <= gb)
    return next(fitting, SIZES[-1]) if ON_GPU else "toy"


def readme_run(kind: str, gb: float) -> tuple[float, str, str] | None:
    """The card, model and flags of the run that the README names for the largest card of at most `gb` GB; None if there is none."""
    rows = [row for row in FITS if row[0] <= gb and ("4bit" in row[2]) == (kind == "4-bit")] if ON_GPU else [(0, "toy", "")]
    return max(rows, key=lambda row: row[0], default=None)  # the first of several


def random_model(name: str, folder: Path) -> Path:
    """A folder with a random model of this shape in bfloat16 and the tokenizer of the embedded task. Made on first use."""
    if (folder / "done").exists():
        return folder
    tokenizer = build_tokenizer(Arithmetic())
    config = config_of(name)
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    spread = {"initializer_range": 1.2 / config["hidden_size"]**0.5}  # 0.02 at 7B, and the same gain per layer in all shapes
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "config.json", json.dumps(config | tokens | spread))
    torch.manual_seed(0)
    with torch.device("cuda" if ON_GPU else "cpu"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False,
                                         dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    torch.cuda.empty_cache()
    (folder / "done").touch()
    return folder


def random_task(model: Path, folder: Path) -> list[str]:
    """The flags for a run of this model on 300 questions of about 100 tokens."""
    rng = random.Random(0)
    rows = [{"question": " + ".join(str(rng.randint(1, 20)) for _ in range(50)), "answer": "1"} for _ in range(300)]
    path = folder / "problems.jsonl"
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows))
    return ["--model", str(model), "--dataset", str(path), "--prompt_template", "question"]


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """Within this context: every 50 ms, the GB in use on the whole device beyond the GB in use before. 0 without a GPU."""

    def used() -> float:
        free, whole = torch.cuda.mem_get_info() if ON_GPU else (0, 0)
        return (whole - free) / 1e9

    before, ended, found = used(), threading.Event(), [0.0]

    def watch() -> None:
        while not ended.wait(0.05):
            found.append(used() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


# ---- the checks: each returns the text for the table, and ends its process if it fails -------------------------------


def require(condition: bool, text: str) -> None:
    """Ends the process with this message unless the condition holds."""
    if not condition:
        fail(f"FAILED: {text}")


def pair(arguments: argparse.Namespace, **flags: Any) -> tuple[VLLMEngine, Policy, list[Request]]:
    """vLLM and the trainer's policy on one model with an adapter that is not zero, and requests to compare them on."""
    rank = 32 if ON_GPU else 4
    config = CommonConfig(model=str(arguments.model), engine="vllm", lora_r=rank, lora_alpha=2 * rank, max_completion_length=128,
                          vllm_gpu_memory_utilization=arguments.share, **flags)
    tokenizer, model_config = load_tokenizer(config)
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(3, len(tokenizer)) for _ in range(200 + i)) for i in range(8)]
    engine = VLLMEngine(config, tokenizer, model_config, prompts)
    policy = load_policy(config, tokenizer, model_config, engine)
    move(policy)
    return engine, policy, [Request(prompt, derive_seed(0, "smoke", i), 4, 64) for i, prompt in enumerate(prompts)]


def move(policy: Policy, scale: float = 0.02) -> None:
    """Changes the adapter, as an update would."""
    with torch.no_grad():
        for name, parameter in policy.parameters_of().items():
            if "lora_B" in name:
                parameter.add_(scale * torch.randn_like(parameter))


def difference(policy: Policy, requests: list[Request], groups: list[list[Completion]]) -> torch.Tensor:
    """|sampler's log-prob - trainer's| of every sampled token, nats."""
    batch = make_batch([Problem(str(i), "", r.prompt_ids, "") for i, r in enumerate(requests)], groups)
    with torch.no_grad():
        return torch.cat([(policy.logps(micro)[0] - micro.sampling_logps).abs().cpu()[micro.completion_mask.cpu()]
                          for micro in microbatches(batch, torch.arange(len(batch)), 4096, policy)])


def parity(arguments: argparse.Namespace, kind: str) -> str:
    """The parity check of every start, and the differences after three updates."""
    flags = {"load_in_4bit": True} if kind == "4-bit" else {"dtype": kind}
    engine, policy, requests = pair(arguments, **flags)
    connect(engine, policy)
    found, most = [], 0.0
    for _ in range(3):
        move(policy)
        engine.sync()
        groups = engine.generate(requests)
        apart = difference(policy, requests, groups)
        found.append((apart.max() if kind == "float32" else apart.mean()).item())
        most = max(most, allowed(policy, prompts_and_completions(requests, groups)))
    require(max(found) <= most, f"after an update {max(found):.2g} nats, allowed {most:.2g}")
    return f"{'largest' if kind == 'float32' else 'mean'} difference after three updates {max(found):.2g} nats (allowed {most:.2g})"


def lost_adapter(arguments: argparse.Namespace) -> str:
    """vLLM does not get the adapter: the parity check has to stop the run."""
    engine, policy, _ = pair(arguments)
    connect(engine, policy)
    real = engine.llm.generate
    if ON_GPU:
        engine.llm.generate = lambda *inputs, lora_request, **options: real(*inputs, **options)
    else:
        engine.llm.collective_rpc = lambda *_, **__: None
    return stopped(engine, policy)


def stale_adapter(arguments: argparse.Namespace) -> str:
    """vLLM keeps what it computed for an older adapter: the parity check has to stop the run."""
    engine, policy, requests = pair(arguments)
    connect(engine, policy)
    engine.generate(requests)
    if ON_GPU:  # every version gets the same name, id and path; without the reset alone nothing would be stale
        lora = engine.lora
        engine._lora_request = lambda folder: lora
        engine._drop = lambda lora: None
    else:
        engine.llm.reset_prefix_cache = lambda: True
    return stopped(engine, policy)


def stopped(engine: VLLMEngine, policy: Policy) -> str:
    """What the parity check notices after an update."""
    move(policy)
    try:
        connect(engine, policy)
    except UserError as error:
        require("does not sample from the policy" in str(error), f"the check stopped for another reason: {error}")
        return "noticed: " + str(error).partition("differ by ")[2].partition(" nats")[0] + " nats"
    return fail("FAILED: the check did not notice it")


def prefix_reuse(arguments: argparse.Namespace) -> str:
    """Tokens prefilled for 16 samples of each prompt, with the prefix cache and without."""
    engine, policy, requests = pair(arguments)
    connect(engine, policy)
    outputs: list[Any] = []
    real = engine.llm.generate
    engine.llm.generate = lambda *inputs, **options: outputs.extend(made := real(*inputs, **options)) or made
    engine.llm.reset_prefix_cache()
    engine.generate([Request(r.prompt_ids, r.seed, 16, 16) for r in requests])
    whole = sum(len(output.prompt_token_ids) for output in outputs)
    cached = sum(output.num_cached_tokens for output in outputs)
    require(cached > 0.5 * whole, f"only {cached} of {whole} tokens came from the cache")
    return f"{whole - cached} tokens prefilled, {whole} without the cache ({whole / (whole - cached):.1f} times)"


def release(arguments: argparse.Namespace) -> str:
    """vLLM gives up its keys and values, takes them back, and then samples from the adapter of now."""
    engine, policy, requests = pair(arguments)
    connect(engine, policy)
    engine.generate(requests)
    before = torch.cuda.mem_get_info()[0]
    began = time.perf_counter()
    engine.sleep()
    released, freed = time.perf_counter() - began, (torch.cuda.mem_get_info()[0] - before) / GB
    move(policy)
    engine.sync()
    began = time.perf_counter()
    groups = engine.generate(requests)
    back = time.perf_counter() - began
    apart = difference(policy, requests, groups).mean().item()
    require(freed > CACHE_GB / 3, f"only {freed:.1f} GB were freed")
    require(apart <= allowed(policy, prompts_and_completions(requests, groups)), f"after the release {apart:.2g} nats apart")
    return f"freed {freed:.1f} GB in {released:.2f} s; took it back and sampled in {back:.1f} s; {apart:.2g} nats"


def run_here(script: str, folder: Path, *flags: str) -> Path:
    """The folder of a run of this script in this process."""
    module = importlib.import_module(script)
    sys.argv = [f"{script}.py", *flags, "--output_dir", str(folder)]
    run_script(module.evaluate_model if script == "eval" else module.train, parse_command_line(module.Config, module.__file__))
    return folder


def run_on_coin_flips(script: str, folder: Path, *flags: str) -> Path:
    """As run_here, with rewards by which every group has something to train on."""

    def flips(reward: VerifierReward, problems: list[Problem], completions: list[Completion]) -> torch.Tensor:
        return torch.tensor([float(random.Random(f"{i} {c.ids}").random() < 0.5) for i, c in enumerate(completions)])

    with mock.patch.object(VerifierReward, "__call__", flips):
        return run_here(script, folder, *flags)


def run_as_on(card: float, script: str, folder: Path, *flags: str) -> Path:
    """As run_on_coin_flips, with a plan for a card of `card` GB that is empty."""
    whole = torch.cuda.mem_get_info()[1] if ON_GPU else 0
    with mock.patch("common.run.memory_plan.card_memory", lambda: (card * GB, whole)):
        return run_on_coin_flips(script, folder, *flags)


def training(arguments: argparse.Namespace, kind: str) -> str:
    """Three steps of train_grpo.py on coin flips, with the flags that the README names for the card."""
    card, _, flags = readme_run(kind, arguments.gb)
    command = [*random_task(arguments.model, arguments.out), "--engine", "vllm", "--max_steps", "3", "--eval_steps", "0", *flags.split()]
    command += [] if ON_GPU else ["--max_completion_length", "32", "--problems_per_step", "4", "--lora_r", "4"]
    folder = run_as_on(card, "train_grpo", arguments.out / f"run-{arguments.check}", *command)
    rows = read_rows(folder / "metrics.jsonl")[1:]  # the first step warms up
    apart = max(row["sampling/sampling_logp_difference/mean"] for row in rows)
    told = re.search(r"usual here: up to ([\d.e+-]+)", (arguments.out / f"{arguments.check}.log").read_text())  # by the check at the start
    most = float(told[1]) if told else ALLOWED["float32"]
    require(apart <= most, f"log-probs {apart:.2g} nats apart, allowed {most:.2g}")
    names = ("step_time", "time/sample", "time/update", "time/sync")
    step, sample, update, sync = (statistics.mean(row[name] for row in rows) for name in names)
    tokens = rows[-1]["num_tokens"] / 3
    parts = f"sample {sample:.1f} ({tokens / sample:.0f} tokens/s), update {update:.1f}, sync {sync:.2f}"
    return f"step {step:.1f} s: {parts}; {tokens:.0f} tokens a step; {apart:.2g} nats"


def evaluation(arguments: argparse.Namespace) -> str:
    """eval.py with an adapter on both engines: the share of equal greedy completions."""
    config = CommonConfig(model=str(arguments.model), lora_r=8, lora_alpha=16)
    policy = load_policy(config, *load_tokenizer(config))
    move(policy)
    policy.save(arguments.out / "adapter")
    del policy  # vLLM needs the memory
    torch.cuda.empty_cache()
    flags = [*random_task(arguments.model, arguments.out), "--adapter", str(arguments.out / "adapter"), "--max_problems", "24"]
    flags += ["--num_samples", "2", "--max_completion_length", "32", "--vllm_gpu_memory_utilization", str(arguments.share)]
    texts = []
    for engine in ("vllm", "transformers"):
        folder = run_here("eval", arguments.out / f"run-eval-{engine}", *flags, "--engine", engine)
        texts.append([row["greedy"]["completion"] for row in read_rows(folder / "problems.jsonl")])
    same = statistics.mean(a == b for a, b in zip(*texts, strict=True))
    return f"{same:.0%} of 24 greedy completions of 32 tokens are the same (in bfloat16 ties break either way)"


def embedded(arguments: argparse.Namespace) -> str:
    """Five steps of the embedded task on both engines: the rewards have to agree."""
    means = []
    for engine in ("vllm", "transformers"):
        flags = ["--engine", engine, "--max_steps", "5", "--eval_problems", "100"]
        folder = run_here("train_grpo", arguments.out / f"run-embedded-{engine}", *flags)
        means.append(statistics.mean(row["reward"] for row in read_rows(folder / "metrics.jsonl")[1:]))
    error = (2 * 0.25 / (5 * 128)) ** 0.5  # standard error of the difference of two means of 640 rewards
    require(abs(means[0] - means[1]) < 4 * error, f"mean reward {means[0]:.3f} and {means[1]:.3f}")
    return f"mean reward over 5 steps {means[0]:.3f} (vllm) and {means[1]:.3f} (transformers), standard error {error:.3f}"


# name: the check, the weights it needs, and the device it runs on ("CPU" alone for float32, since vLLM's adapters are in bfloat16 on a GPU)
CHECKS: dict[str, tuple[Callable[[argparse.Namespace], str], str, str]] = {
    "parity": (partial(parity, kind="bfloat16"), "bfloat16", "any"),
    "parity-float32": (partial(parity, kind="float32"), "float32", "CPU"),
    "parity-4bit": (partial(parity, kind="4-bit"), "4-bit", "GPU"),
    "lost-adapter": (lost_adapter, "bfloat16", "any"),
    "stale-adapter": (stale_adapter, "bfloat16", "any"),
    "prefix-reuse": (prefix_reuse, "bfloat16", "any"),
    "release": (release, "bfloat16", "GPU"),
    "train": (partial(training, kind="bfloat16"), "bfloat16", "any"),
    "train-4bit": (partial(training, kind="4-bit"), "4-bit", "GPU"),
    "eval": (evaluation, "bfloat16", "any"),
    "embedded": (embedded, "bfloat16", "any"),
}


def run_check(name: str, out: Path, gb: float) -> tuple[str, ...]:
    """The row of one check, which runs in a process of its own: shape, result, text, seconds, peak memory."""
    _, kind, device = CHECKS[name]
    row = readme_run(kind, gb) if name.startswith("train") else (gb, largest(kind, gb), "")
    shape = row[1] if row else "-"
    if row is None or device not in ("any", "GPU" if ON_GPU else "CPU"):
        why = "for CPU only" if device == "CPU" else "needs a GPU" if row else "the README names no run for this card"
        return shape, "not run", why, "0", "-"
    share = min(0.9, (gigabytes(shape, kind) + CACHE_GB) / (torch.cuda.mem_get_info()[1] / 1e9)) if ON_GPU else 0.3
    model, log, told = random_model(shape, out / f"model-{shape}"), out / f"{name}.log", out / f"{name}.txt"
    command = [sys.executable, __file__, "--check", name, "--model", str(model), "--share", f"{share:.3f}", "--gb", str(gb)]
    began = time.perf_counter()
    with watched() as memory:
        code = run_logged([*command, "--out", str(out)], log)
    seconds, peak = f"{time.perf_counter() - began:.0f}", f"{max(memory):.1f}" if ON_GPU else "-"
    if code:
        return shape, "FAILED", f"ended with code {code}; see {log}", seconds, peak
    if max(memory) > gb > 0:
        return shape, "FAILED", f"more than the {gb:.0f} GB it was planned for; {told.read_text()}", seconds, peak
    return shape, "ok", told.read_text(), seconds, peak


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--gb", type=float, help="plan for a card of this size; default: the card in the machine")
    options.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    options.add_argument("--out", type=Path, default=ROOT / "runs" / f"gpu_smoke-{time.strftime('%Y%m%d-%H%M%S')}")
    for name, kind in (("--check", str), ("--model", Path), ("--share", float)):  # of the process of a check
        options.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    out = arguments.out = arguments.out.resolve()
    if arguments.check:
        write_file(out / f"{arguments.check}.txt", CHECKS[arguments.check][0](arguments))
        return
    out.mkdir(parents=True, exist_ok=True)
    where, gb = "CPU (a rehearsal at a toy shape, without the checks that need a GPU)", 0.0
    if ON_GPU:
        where, gb = torch.cuda.get_device_name(), arguments.gb or torch.cuda.mem_get_info()[1] / 1e9
    show(f"{where}; planned for {gb:.0f} GB; torch {torch.__version__}; {time.strftime('%Y-%m-%d')}\n")
    show("| check | shape | result | told | seconds | peak, GB |\n|---|---|---|---|---|---|")
    results = {}
    for name in arguments.only:
        row = run_check(name, out, gb)
        results[name] = row[1]
        say(f"| {name} | {' | '.join(row)} |")
    counts = ", ".join(f"{list(results.values()).count(result)} {result}" for result in ("ok", "FAILED", "not run"))
    show(f"\n{counts}; logs in {out}")
    failed = [name for name, result in results.items() if result == "FAILED"]
    if failed:
        fail(f"FAILED: {', '.join(failed)}")


if __name__ == "__main__":
    main()
