"""The memory plan of each script for published 7B and 8B models on 24 to 80 GB: the table of docs/memory.md.

    python benchmarks/memory_plans.py

From the models' shapes alone: no weights, no GPU, no network. Every figure is calculated, none measured.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from seeds import table
from shapes import SHAPES, write_config

import train_grpo
import train_ppo
from common.run.memory_plan import GB, make_plan, shape_of

CARDS = (24, 40, 48, 80)
# GRPO, NFT and VinePPO train one adapter and have the same plan
SCRIPTS = {"GRPO, NFT, VinePPO": train_grpo.Config, "PPO": train_ppo.Config}


def main() -> None:
    rows = []
    for name in SHAPES:
        for card in CARDS:
            for script, config_class in SCRIPTS.items():
                for four_bit in (False, True) if card == 24 else (False,):
                    with tempfile.TemporaryDirectory() as folder:
                        config = config_class(model=str(write_config(name, Path(folder))), dataset="gsm8k", load_in_4bit=four_bit)
                        plan = make_plan(config, shape_of(AutoConfig.from_pretrained(folder), config), card * GB, set())
                    always, sampling, update = (sum(part.values()) / GB for part in dataclasses.astuple(plan.parts))
                    cells = [f"{x:.1f}" for x in (always, sampling, update, plan.peak / GB)]
                    settings = plan.settings
                    told = (
                        "does not fit"
                        if settings is None
                        else (
                            f"{settings.max_tokens_per_microbatch} tokens{', checkpointing' if settings.gradient_checkpointing else ''}"
                            f"{', sleep' if settings.vllm_enable_sleep_mode else ''}, share {settings.vllm_gpu_memory_utilization}, "
                            f"{plan.rows} at a time"
                        )
                    )
                    rows.append([name, str(card), script, "NF4" if four_bit else "bf16", *cells, told])
    print(table(["model", "card, GB", "script", "base", "always", "sampling", "update", "at once", "plan"], rows))


if __name__ == "__main__":
    main()
