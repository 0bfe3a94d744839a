"""The memory plan of each script for published models of 7B to 32B on cards of 12 to 80 GB: the table of docs/memory.md.

    python benchmarks/memory_plans.py

Every figure is calculated from the models' shapes. The script needs no weights, no GPU and no network. NF4 stands where bf16 does not fit.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from measure import show, table
from shapes import SHAPES, write_config
from transformers import AutoConfig

import train_grpo
import train_ppo
from common.config import CommonConfig
from common.run.memory_plan import GB, WASTE, Plan, make_plan, totals
from common.run.model_shape import shape_of

# GRPO, NFT and VinePPO train one adapter and have the same plan
CARDS = (12, 16, 24, 32, 40, 48, 80)
SCRIPTS = {"GRPO, NFT, VinePPO": train_grpo.Config, "PPO": train_ppo.Config}


def plan(name: str, card: int, config_class: type[CommonConfig], four_bit: bool) -> Plan:
    """The plan of a run with the script's defaults."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(model=str(write_config(name, Path(folder))), dataset="gsm8k", load_in_4bit=four_bit)
        return make_plan(config, shape_of(AutoConfig.from_pretrained(folder, trust_remote_code=False), config), card * GB, set())


def told(made: Plan) -> str:
    """The settings of a plan in one line."""
    if made.settings is None:
        return f"does not fit; {' or '.join(made.remedies) or 'nothing helps'}"
    tokens, checkpointed, rows = made.option
    chosen = f", {checkpointed} layers checkpointed" if checkpointed else ""
    return f"{tokens} tokens{chosen}, {rows} at a time"


def main() -> None:
    rows = []
    for name, card, (script, config_class) in itertools.product(SHAPES, CARDS, SCRIPTS.items()):
        made, base = plan(name, card, config_class, False), "bf16"
        if made.settings is None:
            made, base = plan(name, card, config_class, True), "NF4"
        phases = [f"{total / GB + card * WASTE:.1f}" for total in totals(made.parts)]
        rows.append([name, str(card), script, base, *phases, told(made)])
    show(table(["model", "card, GB", "script", "base", "sampling", "update", "plan"], rows))


if __name__ == "__main__":
    main()
