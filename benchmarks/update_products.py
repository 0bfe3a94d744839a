"""The matrix products of one update, counted on a simulated GPU, beside the least that its tokens need.

    make .venv-nullgpu/installed
    .venv-nullgpu/bin/python benchmarks/update_products.py [--model Qwen2.5-7B] [--cards 24 25.38]

The simulated card (tests/nullgpu) runs nothing. It counts what each call of cuBLAS would have multiplied and added. The update is that of
GRPO over 2 prompts of 256 tokens with 8 completions of 300 tokens each. Rows: no layer checkpointed, the layers and the token budget that
the plan chooses for a card of so many GB, and all layers. The least is 2 operations a weight and token forward and 2 backward (a frozen
weight has no gradient), 6 for a weight of the adapter, and the head on the tokens of completions alone: once for the tokens that went
through the model, and once for an update in which each prompt goes through it a single time. Attention's own products are in no figure.
"""
from __future__ import annotations

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

PROMPT, NEW, PROMPTS, COMPLETIONS = 256, 300, 2, 8
TOKENS = PROMPTS * (PROMPT + COMPLETIONS * NEW)  # of the update, if each prompt goes through the model once
BUDGET = 4096  # tokens of a micro-batch, where no plan chooses them


def inside(folder: str, cards: list[float]) -> list[list[str]]:
    """In a process on the simulated card: the rows of the table."""
    from drive import counts

    import train_grpo
    from common.policy.load import load_policy
    from common.policy.pretrained import load_tokenizer
    from common.run.memory_plan import make_plan
    from common.run.model_shape import shape_of

    config = train_grpo.Config(model=folder, dataset="gsm8k", engine="transformers")
    tokenizer, model_config = load_tokenizer(config)
    policy = load_policy(config, tokenizer, model_config)
    shape = shape_of(model_config, config)
    head = policy.vocabulary * shape.hidden
    cases = [("prompts shared", BUDGET, 0, True), ("nothing shared", BUDGET, 0, False)]
    for card in cards:
        config.engine = "vllm"
        plan = make_plan(config, shape, card * 1e9, set())
        if plan.settings is None:
            config.load_in_4bit = True  # of the plan alone: a base in NF4 has the same products
            plan = make_plan(config, shape, card * 1e9, set())
        cases.append((f"as planned for {card:g} GB" + ", NF4" * config.load_in_4bit, *plan.option[:2], True))
        config.load_in_4bit = False
    rows = []
    for name, budget, layers, shared in [*cases, ("every layer checkpointed", BUDGET, shape.layers, True)]:
        policy.checkpoint(layers)
        before = counts()["operations"]
        tokens, completed = update(policy, budget, shared)
        counted = counts()["operations"] - before
        least, once = (number * (4 * shape.linear + 6 * shape.lora) + completed * 4 * head for number in (tokens, TOKENS))
        rows.append([name, f"{budget:,}", f"{layers} of {shape.layers}", f"{tokens:,}", f"{counted / 1e12:.1f}", f"{counted / least:.2f}",
                     f"{counted / once:.2f}"])
    return rows


def update(policy: Any, budget: int, shared: bool) -> tuple[int, int]:
    """Forward and backward of all micro-batches. (tokens that went through the model, tokens of completions)

    shared: the completions of a group have one prompt; else each has its own.
    """
    import torch

    from common.policy.micro_batches import microbatches
    from common.records import Completion, Problem, make_batch

    completion = Completion([5] * NEW, [0.0] * NEW, "stop", "")
    groups, each = (PROMPTS, COMPLETIONS) if shared else (PROMPTS * COMPLETIONS, 1)
    problems = [Problem(str(i), "", (i + 2, *[5] * (PROMPT - 1)), "") for i in range(groups)]
    batch = make_batch(problems, [[completion] * each] * groups)
    tokens = 0
    for micro in microbatches(batch, torch.arange(len(batch)), budget, policy):
        logps, _ = policy.logps(micro, entropy=True)
        logps.sum().backward()
        tokens += micro.input_ids.numel()
    return tokens, PROMPTS * COMPLETIONS * NEW


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="Qwen2.5-7B", choices=[*SHAPES, *OTHERS])
    options.add_argument("--cards", type=float, nargs="+", default=[24, 25.38], help="GB; a 24 GB card has 25.38 of them free")
    options.add_argument("--lib", type=Path, default=PACKAGES / "nullgpu", help="the folder of the stand-ins")
    arguments = options.parse_args()
    from sparse import sparse_model

    with tempfile.TemporaryDirectory() as folder:
        words = [str(sparse_model(arguments.model, Path(folder) / arguments.model)), *map(str, arguments.cards)]
        done = subprocess.run([sys.executable, __file__, "--inside", *words], env=environment(arguments.lib, 79.1), capture_output=True,
                              text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    header = ["update", "tokens a micro-batch", "checkpointed", "tokens through the model", "TFLOP", "of their least", "of the least"]
    say(*table(header, json.loads(done.stdout.splitlines()[-1])).splitlines())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        os.environ["HF_HUB_OFFLINE"] = "1"
        say(json.dumps(inside(sys.argv[2], [float(card) for card in sys.argv[3:]])))
    else:
        main()
