"""The warm start of the embedded task: its seconds, and how good the model is after it. For the tables of docs/data.md.

    python benchmarks/tiny_model.py [--settings "words=2,tiers=half:1:4-6"]

The script makes the model anew. It then samples each test problem 8 times, and 1,000 training problems 16 times.
"""

from __future__ import annotations

import os
import tempfile
import time

import torch
from measure import device_name, parser

from common.config import CommonConfig
from common.console import say
from common.policy.load import load_policy
from common.policy.pretrained import context_length, load_tokenizer
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import Problem
from common.rollout.rounds import make_requests
from common.rollout.transformers_engine import TransformersEngine
from common.tiny.model import tiny_model
from common.tiny.task import Arithmetic, Generator
from common.verify.rewards import score


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--settings", default="", help="as after `--dataset arithmetic:`")
    text = options.parse_args().settings
    settings = Arithmetic.parse(text)
    config = CommonConfig(dataset=f"arithmetic:{text}", prompt_template="question", eval_problems=settings.test,
                          max_completion_length=Generator(settings).longest_solution())
    with tempfile.TemporaryDirectory() as cache:
        os.environ["VINERY_CACHE"] = cache
        began = time.perf_counter()
        tiny_model(settings)
        say(f"warm start {time.perf_counter() - began:.0f} s on {device_name()}")
        tokenizer, model_config = load_tokenizer(config)
        template = load_template(config, tokenizer)
        train, test = make_problems(load_rows(config), config, template, tokenizer, context_length(model_config))
        engine = TransformersEngine()
        engine.connect(load_policy(config, tokenizer, model_config))

    def success_rates(problems: list[Problem], n: int, temperature: float) -> torch.Tensor:
        groups = engine.generate(make_requests(problems, config, "benchmark", 0, n, temperature))
        repeated = [problem for problem in problems for _ in range(n)]
        return score(repeated, [completion for group in groups for completion in group]).reshape(-1, n).mean(1)

    sampled, greedy, shares = success_rates(test, 8, 1.0), success_rates(test, 1, 0.0), success_rates(train[:1000], 16, 1.0)
    say(f"sampled pass@1 {sampled.mean():.3f}, greedy {greedy.mean():.3f} ({len(test)} test problems)")
    say(f"training problems solved in 16 of 16: {(shares == 1).float().mean():.2f}, in none: {(shares == 0).float().mean():.2f}")


if __name__ == "__main__":
    main()
