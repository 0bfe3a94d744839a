"""What several test files call."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from common.config import CommonConfig
from common.launch import parse_command_line, run_script
from common.policy.load import load_policy
from common.policy.micro_batches import microbatches
from common.policy.policy import Policy
from common.records import Completion, Problem, make_batch

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
# every training script that exists runs through the same tests
SCRIPTS = [name for name in ("train_ppo", "train_vineppo", "train_grpo", "train_nft") if (ROOT / f"{name}.py").exists()]
ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"]
# an easier task, on which seconds of warm start leave a model that is sometimes right: without mixed groups nothing is trained
QUICK = [
    "--dataset",
    "arithmetic:warm_steps=80,values=18,tiers=plus:1:1-2,habits=0.3:0.3:0.3,train=60,test=30",
    "--problems_per_step",
    "4",
    "--num_generations",
    "4",
    "--eval_problems",
    "8",
    "--eval_steps",
    "2",
    "--save_steps",
    "1",
]


def reference(examples, numbers):
    """The numbers. Another program computed them in float64 from the formulas of papers and public code, before the scripts were there.

    tools/list_examples.py counts them in the text of the tests, for each of these examples (names with spaces between them).
    """
    return numbers


def own(examples, numbers):
    """The numbers. They were worked out by hand for the test. Counted as those of `reference`, and apart from them."""
    return numbers


TIMES = ("step_time", "time/", "memory/")  # of metrics.jsonl: what no two runs share


def run(script, folder, *flags, monkeypatch, quick=QUICK):
    """The script as from the command line, in this process. Returns its exit code or message."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *quick, "--output_dir", str(folder), *flags])
    module = importlib.import_module(script)
    try:
        run_script(module.evaluate_model if script == "eval" else module.train, parse_command_line(module.Config, module.__file__))
    except SystemExit as end:
        return end.code
    return 0


def evaluate(folder, *flags, monkeypatch):
    """eval.py as from the command line, on QUICK's task. Returns its summary (0: there is none), or its exit code or message."""
    module = importlib.import_module("eval")
    sampled = [] if {"--judge", "--compare"} & set(flags) else [*QUICK[:2], "--num_samples", "4"]
    place = [] if "--compare" in flags else ["--output_dir", str(folder)]
    monkeypatch.setattr(sys, "argv", ["eval.py", *sampled, *place, *flags])
    try:
        run_script(module.evaluate_model, parse_command_line(module.Config, module.__file__))
    except SystemExit as end:
        return end.code
    return json.loads((folder / "summary.json").read_text()) if place else 0


def launch(script, folder, *flags, quick=QUICK):
    """The script as a user starts it. Starting costs seconds, of imports: `forked` is for what needs a process, but not a fresh one."""
    command = [sys.executable, f"{script}.py", *quick, "--output_dir", str(folder), *flags]
    with open(output_of(folder), "w") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def forked(script, folder, *flags, monkeypatch, quick=QUICK, first: Callable[[], object] = lambda: None):
    """The script in a process of its own, which has imported everything already. It calls `first` before it starts."""

    def work():
        output = os.open(output_of(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        first()
        sys.exit(run(script, folder, *flags, monkeypatch=monkeypatch, quick=quick))

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    return process


def several(count, script, folder, *flags, monkeypatch, quick=QUICK, first: Callable[[int], object] = lambda rank: None):
    """`forked`, as `count` processes of one run. Each calls `first` with its number. Process 0 has `output_of`; see also `errors_of`."""
    port = free_port()

    def join(rank):
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in launched.items()})
        if rank:
            output = os.open(errors_of(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
        first(rank)

    return [
        forked(script, folder, *flags, monkeypatch=monkeypatch, quick=quick, first=lambda rank=rank: join(rank)) for rank in range(count)
    ]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def errors_of(folder, rank) -> Path:
    """Where the process `rank` > 0 of `several` prints. It should print nothing, unless it alone knows why all end."""
    return folder.with_name(f"{folder.name}-{rank}.txt")


def output_of(folder) -> Path:
    """Where `launch` and `forked` put what the process of a run folder prints."""
    return folder.with_name(f"{folder.name}.txt")


def wait_for(condition, process, folder, seconds=120):
    """Returns when the condition holds; fails if the process ends before that, or takes so long that it must hang."""
    end = time.monotonic() + seconds
    while not condition():
        over = process.poll() is not None if isinstance(process, subprocess.Popen) else not process.is_alive()
        assert not over and time.monotonic() < end, output_of(folder).read_text()
        time.sleep(0.02)


def exit_code(process, seconds=120) -> int:
    """Of a process that is about to end by itself."""
    if isinstance(process, subprocess.Popen):
        return process.wait(timeout=seconds)
    process.join(seconds)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def completions(folder):
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def metrics(folder, times=False):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows if times else [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def assert_same_checkpoint(a, b):
    """Equal to the last bit, and something was learned."""
    files = sorted(path.relative_to(a) for path in a.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(b) for path in b.rglob("*.safetensors"))
    for file in files:
        left, right = (load_file(folder / file) for folder in (a, b))
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
        assert any(value.abs().max() > 1e-4 for key, value in left.items() if "lora_A" not in key)
    left, right = (torch.load(folder / "trainer_state.pt", weights_only=True) for folder in (a, b))
    assert left["step"] == right["step"] and left["sampler"] == right["sampler"] and left["run"] == right["run"]
    for optimizer in (name for name in left if "optimizer" in name):
        for i, state in left[optimizer]["state"].items():
            assert state and all(torch.equal(value, right[optimizer]["state"][i][key]) for key, value in state.items())


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "bos_token_id": None,
}


def save_random_model(folder: Path, architecture: str, tokenizer, **overrides) -> Path:
    """A random model in `folder`: two layers, wide logits, and for Gemma 2 a soft-cap that bites."""
    sizes = {**SIZES, "vocab_size": len(tokenizer), "initializer_range": 0.3, "tie_word_embeddings": False, **overrides}
    if architecture == "gemma2":
        sizes |= {"final_logit_softcapping": 5.0, "sliding_window": 16}
    if architecture == "gemma3_text":
        sizes |= {"sliding_window": 16}
    if architecture in ("llama", "mistral", "qwen2"):
        sizes.pop("head_dim")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_policy(folder: Path, tokenizer, noise: float = 0.1, **flags) -> Policy:
    """A policy on a saved model whose adapter is not zero, so that adapter on, off and lost all differ."""
    config = CommonConfig(model=str(folder), lora_r=4, lora_alpha=8, **flags)
    policy = load_policy(config, tokenizer, AutoConfig.from_pretrained(folder))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.parameters_of("default").items():
            if "lora_B" in name and not flags.get("adapter"):
                parameter.copy_(noise * torch.randn(parameter.shape, generator=generator))
    return policy


def random_batch(tokenizer, sizes=((5, 7), (3, 1), (9, 4))):
    generator = torch.Generator().manual_seed(0)
    problems, groups = [], []
    for i, (prompt, completion) in enumerate(sizes):
        ids = torch.randint(3, len(tokenizer), (prompt + completion,), generator=generator).tolist()
        problems.append(Problem(str(i), "", tuple(ids[:prompt]), ""))
        groups.append([Completion(ids[prompt:], [0.0] * completion, "stop", "")])
    return make_batch(problems, groups)


def largest_difference(policy, requests, groups):
    """Between the sampler's log-probs and the trainer's own, over all sampled tokens."""
    batch = make_batch([Problem(str(i), "", r.prompt_ids, "") for i, r in enumerate(requests)], groups)
    with torch.no_grad():
        return max(
            (policy.logps(micro)[0] - micro.sampling_logps).abs().max().item()
            for micro in microbatches(batch, torch.arange(len(batch)), 300, policy)
        )


def documented_flag_sets(page: str) -> dict[str, list[str]]:
    """The first code span of each row of the table of flag sets in docs/`page`.md, by method; B stands for a buffer."""
    table = (ROOT / "docs" / f"{page}.md").read_text().partition("## Flag sets")[2].partition("## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ") and "`--" in line]
    return {name.strip(): re.search("`(--[^`]*)`", flags)[1].replace(" B ", " 4 ").split() for name, flags in rows}
