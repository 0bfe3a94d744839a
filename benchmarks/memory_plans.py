"""The memory plan of each script for published 7B and 8B models on cards of 24 to 80 GB: the table of docs/memory.md.

    python benchmarks/memory_plans.py

Every figure is calculated from the models' shapes. The script needs no weights, no GPU and no network.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from measure import show, table
from shapes import SHAPES, write_config
from transformers import AutoConfig

import train_grpo
import train_ppo
from common.config import CommonConfig
from common.run.memory_plan import GB, Plan, make_plan
from common.run.model_shape import shape_of

# GRPO, NFT and VinePPO train one adapter and have the same plan
SCRIPTS = {"GRPO, NFT, VinePPO": train_grpo.Config, "PPO": train_ppo.Config}


def plan(name: str, card: int, config_class: type[CommonConfig], four_bit: bool) -> Plan:
    """The plan of a run with the script's defaults."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(model=str(write_config(name, Path(folder))), dataset="gsm8k", load_in_4bit=four_bit)
        return make_plan(config, shape_of(AutoConfig.from_pretrained(folder, trust_remote_code=False), config), card * GB, set())


def told(made: Plan) -> str:
    """The settings of a plan in one line."""
    if made.settings is None:
        return "does not fit"
    tokens, checkpointed, sleep, rows = made.option
    chosen = (f", {checkpointed} layers checkpointed" if checkpointed else "") + (", sleep" if sleep else "")
    return f"{tokens} tokens{chosen}, share {made.settings.vllm_gpu_memory_utilization}, {rows} at a time"


def main() -> None:
    rows = []
    for name in SHAPES:
        for card in (24, 40, 48, 80):
            for script, config_class in SCRIPTS.items():
                for four_bit in (False, True) if card == 24 else (False,):
                    made = plan(name, card, config_class, four_bit)
                    parts = [sum(part.values()) / GB for part in dataclasses.astuple(made.parts)]
                    cells = [f"{x:.1f}" for x in (*parts, made.peak / GB)]
                    rows.append([name, str(card), script, "NF4" if four_bit else "bf16", *cells, told(made)])
    show(table(["model", "card, GB", "script", "base", "always", "sampling", "update", "at once", "plan"], rows))


if __name__ == "__main__":
    main()
