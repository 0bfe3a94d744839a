"""Every vLLM check on one GPU, with random weights, at the largest shape that fits: a table, and what failed.

    python benchmarks/gpu_smoke.py [--gb 24] [--shape 7b] [--only parity sleep ...] [--out runs/gpu_smoke]

Each check is a process of its own, so that one that dies takes nothing along; its log is in --out. The last column is the
most memory that the whole device had in use (NVML, every 50 ms), less what was in use before. --gb plans for a smaller card
than the one that is there: it chooses the shapes and vLLM's share, it caps nothing. Random weights are honest for speed
and memory, and say nothing of learning; the rewards of the training checks are coin flips.

Without a GPU the checks that can run do so at a toy shape: a rehearsal on vLLM's CPU build.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.config import CommonConfig
from common.errors import UserError
from common.launch import run_script
from common.policy.load import load_policy
from common.policy.micro_batches import microbatches
from common.policy.policy import Policy
from common.policy.pretrained import load_tokenizer
from common.records import Completion, Problem, Request, derive_seed, make_batch
from common.rollout.parity import ALLOWED
from common.rollout.vllm_engine import VLLMEngine
from common.run.files import write_atomically

ROOT = Path(__file__).parents[1]
# hidden, MLP, layers, heads, key-value heads, vocabulary, tied: Qwen2.5's sizes, and a toy for rehearsals
SHAPES = {
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "3b": (2048, 11008, 36, 16, 2, 151936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "toy": (128, 256, 2, 4, 2, 512, True),
}
ON_GPU = torch.cuda.is_available()
CACHE_GB = 4  # for vLLM's keys, values and graphs
TRAINER_GB = 6  # for the trainer's activations, log-probs and optimiser


def gigabytes(shape: str, kind: str) -> float:
    """Of the weights, as held: embeddings stay in bfloat16 beside 4-bit linear layers."""
    hidden, mlp, layers, heads, kv_heads, vocabulary, tied = SHAPES[shape]
    linear = layers * (2 * hidden * hidden + 2 * hidden * hidden * kv_heads // heads + 3 * hidden * mlp)
    embeddings = vocabulary * hidden * (1 if tied else 2)
    width = {"float32": 4.0, "bfloat16": 2.0, "4-bit": 0.55}[kind]
    return (linear * width + embeddings * max(width, 2.0)) / 1e9


def largest(kind: str, gb: float) -> str:
    """The largest shape of which two copies fit beside caches and activations."""
    fitting = (shape for shape in SHAPES if 2 * gigabytes(shape, kind) + CACHE_GB + TRAINER_GB <= gb)
    return next(fitting, "0.5b") if ON_GPU else "toy"


def random_model(shape: str, folder: Path) -> Path:
    """A Qwen2 of this shape, bfloat16, with the embedded model's tokenizer. Made once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    from common.tiny.model import tiny_model
    from common.tiny.task import Arithmetic

    if (folder / "done").exists():
        return folder
    hidden, mlp, layers, heads, kv_heads, vocabulary, tied = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(Arithmetic()))
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
        initializer_range=1.2 / hidden**0.5,  # 0.02 at 7B; the same gain per layer in all shapes
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if ON_GPU else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    if ON_GPU:
        torch.cuda.empty_cache()
    (folder / "done").touch()
    return folder


def problems_file(folder: Path) -> Path:
    """300 questions of about 100 tokens."""
    rng = random.Random(0)
    path = folder / "problems.jsonl"
    rows = [{"question": " + ".join(str(rng.randint(1, 20)) for _ in range(50)), "answer": "1"} for _ in range(300)]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- the checks: each returns what the table shows, and raises if it fails -------------------------------------------


class Failed(Exception):
    """A check that found what it looks for."""


def require(condition: bool, text: str) -> None:
    if not condition:
        raise Failed(text)


def pair(arguments: argparse.Namespace, **flags: Any) -> tuple[VLLMEngine, Policy, list[Request]]:
    """vLLM and the trainer's policy on one model, an adapter that matters, and requests to compare them on."""
    rank = 32 if ON_GPU else 4
    config = CommonConfig(
        model=arguments.model,
        engine="vllm",
        lora_r=rank,
        lora_alpha=2 * rank,
        max_completion_length=128,
        vllm_gpu_memory_utilization=arguments.share,
        **flags,
    )
    tokenizer, model_config = load_tokenizer(config)
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(3, len(tokenizer)) for _ in range(200 + i)) for i in range(8)]
    engine = VLLMEngine(config, tokenizer, model_config, prompts)
    policy = load_policy(config, tokenizer, model_config)
    move(policy)
    return engine, policy, [Request(prompt, derive_seed(0, "smoke", i), 4, 64) for i, prompt in enumerate(prompts)]


def move(policy: Policy, scale: float = 0.02) -> None:
    """Another adapter, as an update would leave it."""
    with torch.no_grad():
        for name, parameter in policy.parameters_of().items():
            if "lora_B" in name:
                parameter.add_(scale * torch.randn_like(parameter))


def difference(policy: Policy, requests: list[Request], groups: list[list[Completion]]) -> torch.Tensor:
    """|sampler's log-prob - trainer's| of every sampled token, nats."""
    batch = make_batch([Problem(str(i), "", r.prompt_ids, "") for i, r in enumerate(requests)], groups)
    parts = []
    with torch.no_grad():
        for micro in microbatches(batch, torch.arange(len(batch)), 4096, policy):
            parts.append((policy.logps(micro)[0] - micro.sampling_logps).abs()[micro.completion_mask].cpu())
    return torch.cat(parts)


def parity(arguments: argparse.Namespace, kind: str) -> str:
    """The check of every start, and three updates after it."""
    flags = {"load_in_4bit": True} if kind == "4-bit" else {"dtype": kind}
    engine, policy, requests = pair(arguments, **flags)
    engine.connect(policy)
    found = []
    for _ in range(3):
        move(policy)
        engine.sync()
        apart = difference(policy, requests, engine.generate(requests))
        found.append((apart.max() if kind == "float32" else apart.mean()).item())
    require(max(found) <= ALLOWED[kind], f"after an update {max(found):.2g} nats, allowed {ALLOWED[kind]}")
    return f"{'largest' if kind == 'float32' else 'mean'} difference after three updates {max(found):.2g} nats (allowed {ALLOWED[kind]:g})"


def lost_adapter(arguments: argparse.Namespace) -> str:
    """vLLM is not handed the adapter: the check has to stop the run."""
    engine, policy, _ = pair(arguments)
    engine.connect(policy)
    real = engine.llm.generate
    if ON_GPU:
        engine.llm.generate = lambda *inputs, lora_request, **options: real(*inputs, **options)
    else:
        engine.llm.collective_rpc = lambda *_, **__: None
    return stopped(engine, policy)


def stale(arguments: argparse.Namespace) -> str:
    """vLLM is left with what it computed for an older adapter: the check has to stop the run."""
    engine, policy, requests = pair(arguments)
    engine.connect(policy)
    engine.generate(requests)
    if ON_GPU:  # every version by the same name, id and path; the reset alone would not help
        lora = engine.lora
        engine._lora_request = lambda folder: lora
        engine._drop = lambda lora: None
    else:
        engine.llm.reset_prefix_cache = lambda: True
    return stopped(engine, policy)


def stopped(engine: VLLMEngine, policy: Policy) -> str:
    move(policy)
    try:
        engine.connect(policy)
    except UserError as error:
        require("does not sample from the policy" in str(error), f"stopped for another reason: {error}")
        return "noticed: " + str(error).partition("differ by ")[2].partition(" nats")[0] + " nats"
    raise Failed("not noticed")


def prefix(arguments: argparse.Namespace) -> str:
    """Tokens prefilled for 16 samples of each prompt, with the prefix cache and without."""
    engine, policy, requests = pair(arguments)
    engine.connect(policy)
    outputs: list[Any] = []
    real = engine.llm.generate
    engine.llm.generate = lambda *inputs, **options: outputs.extend(made := real(*inputs, **options)) or made
    engine.llm.reset_prefix_cache()
    engine.generate([Request(r.prompt_ids, r.seed, 16, 16) for r in requests])
    whole = sum(len(output.prompt_token_ids) for output in outputs)
    cached = sum(output.num_cached_tokens for output in outputs)
    require(cached > 0.5 * whole, f"only {cached} of {whole} tokens came from the cache")
    return f"{whole - cached} tokens prefilled, {whole} without the cache ({whole / (whole - cached):.1f} times)"


def sleep(arguments: argparse.Namespace) -> str:
    """Sleep gives memory back; after waking up, vLLM samples from the adapter of now."""
    engine, policy, requests = pair(arguments, vllm_enable_sleep_mode=True)
    engine.connect(policy)
    before = torch.cuda.mem_get_info()[0]
    began = time.perf_counter()
    engine.sleep()
    slept, freed = time.perf_counter() - began, (torch.cuda.mem_get_info()[0] - before) / 1e9
    move(policy)
    began = time.perf_counter()
    groups = engine.generate(requests)
    woke = time.perf_counter() - began
    apart = difference(policy, requests, groups).mean().item()
    require(freed > 0.5 * gigabytes(arguments.shape, "bfloat16"), f"sleeping freed only {freed:.1f} GB")
    require(apart <= ALLOWED["bfloat16"], f"after waking up {apart:.2g} nats apart")
    return f"freed {freed:.1f} GB in {slept:.1f} s; awake, checked and sampling in {woke:.1f} s; {apart:.2g} nats"


def coin_flips(problems: list[Problem], completions: list[Completion]) -> torch.Tensor:
    """Rewards that give every group something to train on."""
    return torch.tensor([float(random.Random(str(c.ids)).random() < 0.5) for c in completions])


def training(arguments: argparse.Namespace, *flags: str) -> str:
    """Three steps of train_grpo.py on coin flips."""
    import common.rewards as rewards

    import train_grpo

    rewards.score = coin_flips
    sizes = ["--max_completion_length", "512"] if ON_GPU else ["--max_completion_length", "32", "--problems_per_step", "4", "--lora_r", "4"]
    folder = arguments.out / f"train-{arguments.check}"
    command = ["--model", arguments.model, "--dataset", str(problems_file(arguments.out)), "--prompt_template", "question", *sizes]
    command += [
        "--gradient_checkpointing",
        "--engine",
        "vllm",
        "--vllm_gpu_memory_utilization",
        str(arguments.share),
        "--max_steps",
        "3",
        "--eval_steps",
        "0",
    ]
    sys.argv = ["train_grpo.py", *command, "--output_dir", str(folder), *flags]
    run_script(train_grpo.Config, train_grpo.train, train_grpo.__file__)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]  # the first step warms kernels up
    apart = max(row["sampling/sampling_logp_difference/mean"] for row in rows)
    kind = "4-bit" if "--load_in_4bit" in flags else "bfloat16" if ON_GPU else "float32"
    require(apart <= ALLOWED[kind], f"log-probs {apart:.2g} nats apart")
    means = {name: statistics.mean(row[name] for row in rows) for name in ("step_time", "time/sample", "time/update", "time/sync")}
    tokens = rows[-1]["num_tokens"] / 3
    return (
        f"step {means['step_time']:.1f} s: sample {means['time/sample']:.1f} ({tokens / means['time/sample']:.0f} tokens/s), "
        f"update {means['time/update']:.1f}, sync {means['time/sync']:.2f}; {tokens:.0f} tokens a step; {apart:.2g} nats"
    )


def evaluation(arguments: argparse.Namespace) -> str:
    """eval.py with an adapter folder on both engines: the share of greedy completions that are the same."""
    import eval as script

    save_adapter(arguments)
    texts = []
    for engine in ("vllm", "transformers"):
        folder = arguments.out / f"eval-{engine}"
        command = ["--model", arguments.model, "--dataset", str(problems_file(arguments.out)), "--prompt_template", "question"]
        command += ["--adapter", str(arguments.out / "adapter"), "--engine", engine, "--max_problems", "24", "--num_samples", "2"]
        command += ["--max_completion_length", "32", "--vllm_gpu_memory_utilization", str(arguments.share)]
        sys.argv = ["eval.py", *command, "--output_dir", str(folder)]
        run_script(script.Config, script.evaluate, script.__file__)
        rows = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
        texts.append([row["greedy"]["completion"] for row in rows])
    same = statistics.mean(a == b for a, b in zip(*texts, strict=True))
    return f"{same:.0%} of 24 greedy completions of 32 tokens are the same (in bfloat16 ties break either way)"


def save_adapter(arguments: argparse.Namespace) -> None:
    """An adapter folder beside the model."""
    config = CommonConfig(model=arguments.model, lora_r=8, lora_alpha=16)
    policy = load_policy(config, *load_tokenizer(config))
    move(policy)
    policy.save(arguments.out / "adapter")
    del policy  # vLLM comes next, and wants the memory
    if ON_GPU:
        torch.cuda.empty_cache()


def embedded(arguments: argparse.Namespace) -> str:
    """Five steps of the embedded task on both engines: real learning, and rewards that agree."""
    import train_grpo

    rewards = {}
    for engine in ("vllm", "transformers"):
        folder = arguments.out / f"embedded-{engine}"
        command = ["--engine", engine, "--max_steps", "5", "--eval_problems", "100", "--output_dir", str(folder)]
        sys.argv = ["train_grpo.py", *command]
        run_script(train_grpo.Config, train_grpo.train, train_grpo.__file__)
        rewards[engine] = [json.loads(line).get("reward") for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    ours, theirs = (statistics.mean(values) for values in rewards.values())
    spread = (2 * 0.25 / (5 * 128)) ** 0.5  # of a difference of two means of 640 rewards
    require(abs(ours - theirs) < 4 * spread, f"mean reward {ours:.3f} and {theirs:.3f}")
    return f"mean reward over 5 steps {ours:.3f} (vllm) and {theirs:.3f} (transformers), standard error {spread:.3f}"


# name -> what it does, the weights it needs, and whether it needs a GPU (True), must not have one (None: vLLM's adapters are in
# bfloat16 there), or does not care (False)
CHECKS: dict[str, tuple[Callable[[argparse.Namespace], str], str, bool | None]] = {
    "parity": (lambda arguments: parity(arguments, "bfloat16"), "bfloat16", False),
    "parity-float32": (lambda arguments: parity(arguments, "float32"), "float32", None),
    "parity-4bit": (lambda arguments: parity(arguments, "4-bit"), "4-bit", True),
    "lost-adapter": (lost_adapter, "bfloat16", False),
    "stale-adapter": (stale, "bfloat16", False),
    "prefix-reuse": (prefix, "bfloat16", False),
    "sleep": (sleep, "bfloat16", True),
    "train": (training, "bfloat16", False),
    "train-sleep": (lambda arguments: training(arguments, "--vllm_enable_sleep_mode"), "bfloat16", True),
    "train-4bit": (lambda arguments: training(arguments, "--load_in_4bit"), "4-bit", True),
    "eval": (evaluation, "bfloat16", False),
    "embedded": (embedded, "bfloat16", False),
}


# ---- running them ---------------------------------------------------------------------------------------------------


def device_gb() -> float:
    """In use on the whole device, by every process: NVML's figure, or the driver's where torch finds no pynvml."""
    if not ON_GPU:
        return 0.0
    try:
        return torch.cuda.device_memory_used() / 1e9
    except ModuleNotFoundError:
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 1e9


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """Every 50 ms, the GB in use on the device beyond those before."""
    before, ended = device_gb(), threading.Event()
    peaks = [0.0]

    def watch() -> None:
        while not ended.wait(0.05):
            peaks.append(device_gb() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def run_check(name: str, arguments: argparse.Namespace, gb: float) -> dict[str, Any]:
    """One check in a process of its own, the device's memory watched meanwhile."""
    kind, needs_gpu = CHECKS[name][1:]
    row: dict[str, Any] = {"check": name, "shape": arguments.shape or largest(kind, gb), "seconds": 0.0, "peak": 0.0}
    if needs_gpu is not False and bool(needs_gpu) != ON_GPU:
        return row | {"result": "not run", "told": "needs a GPU" if needs_gpu else "for CPU only"}
    share = min(0.9, (gigabytes(row["shape"], kind) + CACHE_GB) / (torch.cuda.mem_get_info()[1] / 1e9)) if ON_GPU else 0.3
    model, result = random_model(row["shape"], arguments.out / f"model-{row['shape']}"), arguments.out / f"{name}.json"
    result.unlink(missing_ok=True)
    began = time.perf_counter()
    command = [sys.executable, __file__, "--check", name, "--model", str(model), "--share", f"{share:.3f}", "--out", str(arguments.out)]
    with open(arguments.out / f"{name}.log", "w") as log, watched() as peaks:
        code = subprocess.run([*command, "--shape", row["shape"]], stdout=log, stderr=subprocess.STDOUT).returncode
    peak = max(peaks)
    row |= {"seconds": time.perf_counter() - began, "peak": peak}
    if result.exists():
        row |= json.loads(result.read_text())
        if row["result"] == "ok" and peak > gb > 0:
            row |= {"result": "FAILED", "told": f"planned for {gb:.0f} GB; {row['told']}"}
        return row
    return row | {"result": "FAILED", "told": f"ended with code {code}; see {arguments.out / f'{name}.log'}"}


def one_check(arguments: argparse.Namespace) -> None:
    """Inside the process of a check: leaves its result in a file."""
    try:
        told = {"result": "ok", "told": CHECKS[arguments.check][0](arguments)}
    except (Exception, SystemExit) as error:  # whatever it is, the table says it and the log has the rest
        traceback.print_exc()
        told = {"result": "FAILED", "told": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    write_atomically(arguments.out / f"{arguments.check}.json", json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, help="plan for a card of this size; default: the one that is there")
    parser.add_argument("--shape", choices=SHAPES, help="default: for each check the largest that fits")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / f"gpu_smoke-{time.strftime('%Y%m%d-%H%M%S')}")
    for name in ("--check", "--model"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        one_check(arguments)
        return
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if ON_GPU:
        where, gb = torch.cuda.get_device_name(), arguments.gb or torch.cuda.mem_get_info()[1] / 1e9
    else:
        where, gb = "CPU (a rehearsal: toy shape, and the checks that need a GPU are left out)", 0.0
    import vllm  # its version; only the checks start it

    print(
        f"{where}; planned for {gb:.0f} GB; torch {torch.__version__}, vllm {vllm.__version__}; {time.strftime('%Y-%m-%d')}\n", flush=True
    )
    print("| check | shape | result | told | seconds | peak, GB |\n|---|---|---|---|---|---|", flush=True)
    rows = []
    for name in arguments.only:
        row = run_check(name, arguments, gb)
        rows.append(row)
        peak = f"{row['peak']:.1f}" if ON_GPU else "-"
        print(f"| {name} | {row['shape']} | {row['result']} | {row['told']} | {row['seconds']:.0f} | {peak} |", flush=True)
    failed = [row["check"] for row in rows if row["result"] == "FAILED"]
    missing = [row["check"] for row in rows if row["result"] == "not run"]
    print(f"\n{len(rows) - len(failed) - len(missing)} ok, {len(failed)} failed, {len(missing)} not run; logs in {arguments.out}")
    if failed:
        sys.exit(f"FAILED: {', '.join(failed)}")


if __name__ == "__main__":
    main()
