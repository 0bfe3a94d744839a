"""The memory plan beside what a simulated GPU counts: each script for published models on cards of 24, 48 and 80 GB.

    make .venv-nullgpu/installed
    .venv-nullgpu/bin/python benchmarks/simulated_gpu.py [--models Qwen2.5-7B ...] [--cards 24 48 80] [--scripts train_ppo ...]

The simulated card (tests/nullgpu) counts memory and computes nothing; torch, transformers, peft and bitsandbytes are the real ones, with
the CUDA build of torch. Weights are holes in a file. Each run is one micro-batch at full length (the trial of every start), with the
plan's settings, beside the optimiser's state and the gradients of an earlier micro-batch. Columns: the plan's memory of the trainer and
of its update alone, and the same counted by torch's allocator, in GB. What a simulation cannot see: the driver's own memory, other
processes, the numbers.
"""
from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import ROOT, parser, table
from shapes import OTHERS, SHAPES

sys.path.insert(0, str(ROOT / "tests" / "nullgpu"))
from card import PACKAGES, environment

from common.console import say

SCRIPTS = ["train_ppo", "train_vineppo", "train_grpo", "train_nft"]
GB = 1e9


def inside(script: str, folder: str, card: float, four_bits: bool, layers: int | None) -> dict[str, Any]:
    """In a process on the simulated card: the plan's figures and the measured ones, bytes. layers: checkpointed ones, else the plan's."""
    import torch

    from common.policy.critic import Critic
    from common.policy.load import load_policy
    from common.policy.optim import make_optimizer, take_step
    from common.policy.pretrained import load_tokenizer
    from common.run.memory_plan import make_plan, parts_of
    from common.run.model_shape import shape_of
    from common.run.preflight import add_gradients, largest_microbatch

    config = importlib.import_module(script).Config(model=folder, dataset="gsm8k", load_in_4bit=four_bits)
    tokenizer, model_config = load_tokenizer(config)
    shape = shape_of(model_config, config)
    plan = make_plan(config, shape, card * GB, set())
    if plan.settings is None and layers is None:
        return {"fits": False}
    option = plan.option if layers is None else plan.option._replace(checkpointed=layers, max_tokens=4096)
    parts = parts_of(shape, dataclasses.replace(config, engine="transformers"), option)  # the trainer alone, with a base of its own
    config.max_tokens_per_microbatch = option.max_tokens
    policy = load_policy(config, tokenizer, model_config)
    policy.checkpoint(option.checkpointed)
    critic = Critic(policy, 0) if script == "train_ppo" else None
    optimizers = [make_optimizer(policy.parameters_of(), 1e-5)] + ([make_optimizer(critic.parameters(), 1e-5)] if critic else [])
    add_gradients(policy, critic)
    for optimizer in optimizers:
        take_step(optimizer, 1e-5)  # makes the optimiser's state
    add_gradients(policy, critic)  # as before the second micro-batch of a step
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    largest_microbatch(policy, config, 256, critic)
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    update = sum(part.update for part in parts if not part.sampling and part.name != "gradients")
    always = sum(part.update for part in parts if part.name != "CUDA") - update
    return {"fits": True, "option": list(option), "layers": shape.layers, "plan": always + update, "counted": peak, "reserved": reserved,
            "plan_update": update, "update": peak - held, "plan_always": always, "always": held}


def simulate(lib: Path, script: str, model: Path, card: float, four_bits: bool, layers: int | None = None,
             gib: float = 0) -> dict[str, Any]:
    """The figures of one run on a simulated card of `card` GB (its memory is `gib` GiB, if given)."""
    words = [script, str(model), str(card), str(int(four_bits)), "" if layers is None else str(layers)]
    done = subprocess.run([sys.executable, __file__, "--inside", *words], env=environment(lib, gib or card * GB / 2**30),
                          capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def cells(row: dict[str, Any]) -> list[str]:
    """The row of the table after its name."""
    if not row["fits"]:
        return ["does not fit", *"-----"]
    tokens, checkpointed = row["option"][:2]
    figures = [row["plan"], row["counted"], row["plan_update"], row["update"]]
    return [f"{tokens} tokens, {checkpointed} of {row['layers']} layers checkpointed", *(f"{x / GB:.2f}" for x in figures),
            f"{row['plan'] / row['counted'] - 1:+.1%}"]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=list(SHAPES), choices=[*SHAPES, *OTHERS])
    options.add_argument("--cards", type=float, nargs="+", default=[24, 48, 80])
    options.add_argument("--scripts", nargs="+", default=SCRIPTS, choices=SCRIPTS)
    options.add_argument("--lib", type=Path, default=PACKAGES / "nullgpu", help="the folder of the stand-ins")
    arguments = options.parse_args()
    from sparse import sparse_model

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            model = sparse_model(name, Path(folder) / name)
            for card in arguments.cards:
                for script in arguments.scripts:
                    four_bits = card <= 24
                    found = simulate(arguments.lib, script, model, card, four_bits)
                    rows.append([name, f"{card:g}", script, "NF4" if four_bits else "bf16", *cells(found)])
                    say(" | ".join(rows[-1]))
    header = ["model", "card, GB", "script", "base", "plan", "trainer: plan", "counted", "update: plan", "counted", "plan to counted"]
    say(*table(header, rows).splitlines())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        script, model, card, four_bits, layers = sys.argv[2:]
        os.environ["HF_HUB_OFFLINE"] = "1"
        say(json.dumps(inside(script, model, float(card), four_bits == "1", int(layers) if layers else None)))
    else:
        main()
