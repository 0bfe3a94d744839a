"""How often rounding changes a sampled token: the two ways of common/rollout/draw.py, a race and inverting the CDF, on any vocabulary.

    python benchmarks/batch_invariance.py [--vocabularies 200 49152 152064] [--rounds 7]
    python benchmarks/batch_invariance.py --model FOLDER [--requests 50] [--n 8] [--tokens 20]

The first command draws from random logits. It prints CPU microseconds a draw, of the two ways in turns, and the probability that a draw
gives another token when every logit moves by about 1e-6: exact, over all uniform numbers. The second one samples from a model on the CPU in
float32, all requests together and then one by one. It prints how far this moves the logits of the first requests and how probable another
token is with these logits (exact again), and then counts the completions that differ.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from measure import parser, show, spread, table
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from common.config import CommonConfig
from common.console import say
from common.policy.load import load_policy
from common.records import Request, derive_seed
from common.rollout import draw
from common.rollout.transformers_engine import LOGITS_BYTES, TransformersEngine

MOVED = 1e-6  # standard deviation of the change of a logit: what another shape of the batch did to SmolLM2's logits in float32
RACE, CDF = "race", "inverted CDF"


def drawn_by(way: str) -> AbstractContextManager[int]:
    """Within this context draw.py draws in this way, whatever the vocabulary."""
    return mock.patch.object(draw, "RACE_VOCABULARY", 1 if way == RACE else sys.maxsize)


def cdf_flips(before: Tensor, after: Tensor) -> float:
    """The probability that one uniform number selects another token under weights `after` (V,) than under `before`."""
    ends = [torch.cat([w.new_zeros(1), w.cumsum(0) / w.sum()]) for w in (before, after)]
    shared = torch.minimum(ends[0][1:], ends[1][1:]) - torch.maximum(ends[0][:-1], ends[1][:-1])
    return 1 - shared.clamp(min=0).sum().item()


def race_keeps(before: Tensor, after: Tensor) -> Tensor:
    """(V,) the probability that i wins with the same times under both weights: 1 / sum_j max(before_j/before_i, after_j/after_i)."""
    order = (after / before).argsort()
    a, b = before[order], after[order]  # where a ratio is larger than that of i, the second argument is the maximum
    kept = 1 / (a.cumsum(0) / a + (b.sum() - b.cumsum(0)) / b)
    return torch.empty_like(kept).index_copy_(0, order, kept)


def race_flips(before: Tensor, after: Tensor) -> float:
    """The probability that the two races give another token: the winner of the first race, or of the one within, is another."""
    side = math.isqrt(len(before) - 1) + 1
    rows = zip(before.split(side), after.split(side), strict=True)
    within = torch.stack([race_keeps(a, b).sum() for a, b in rows])
    sums = [torch.stack([part.sum() for part in w.split(side)]) for w in (before, after)]
    return 1 - (race_keeps(*sums) * within).sum().item()


def microseconds(way: str, logits: Tensor) -> float:
    """CPU time of one draw, a bounded number of rows at a time as in the engine."""
    rows, vocabulary = logits.shape
    size, repeats = max(1, LOGITS_BYTES // (8 * vocabulary)), max(1, 2**21 // logits.numel())
    seeds, ones = np.arange(rows, dtype=np.uint64), torch.ones(rows)
    with drawn_by(way):
        began = time.process_time()
        for position in range(repeats):
            u = draw.uniforms(seeds, position, vocabulary)
            for i in range(0, rows, size):
                draw.draw_tokens(logits[i:i + size], u[i:i + size], ones[i:i + size], ones[i:i + size])
        return (time.process_time() - began) / rows / repeats * 1e6


def on_random_logits(vocabularies: list[int], rounds: int) -> None:
    """Prints the table of the first command."""
    rows = []
    for vocabulary in vocabularies:
        torch.manual_seed(0)
        logits = 3 * torch.randn(32 if vocabulary > 10_000 else 256, vocabulary)
        pairs = [(microseconds(CDF, logits), microseconds(RACE, logits)) for _ in range(rounds)]
        flips = []
        for row in logits[:8].double():
            before, after = row.exp(), (row + MOVED * torch.randn(vocabulary)).exp()
            flips.append((cdf_flips(before, after), 1 - race_keeps(before, after).sum().item(), race_flips(before, after)))
        once = [f"{1 / statistics.mean(way):,.0f}" for way in zip(*flips, strict=True)]
        cdf, race = zip(*pairs, strict=True)
        rows.append([f"{vocabulary:,}", spread(list(cdf), ".1f"), spread(list(race), ".1f"),
                     f"{statistics.median(a / b for a, b in pairs):.2f}", *once])
    show(table(["vocabulary", "inverted CDF, us a draw", "race, us a draw", "times faster", "CDF: one draw changes in",
                "one race over all tokens", "the two races"], rows))


def recorded(engine: TransformersEngine, requests: list[Request], logits: dict[tuple[int, int], Tensor]) -> list[list[int]]:
    """The completions of requests with n = 1. `logits` gets the float64 logits (V,) of each row's seed and position."""
    sample = engine._sample

    def recording(hidden: Tensor, seeds: np.ndarray, position: int, *others: Tensor) -> tuple[Tensor, Tensor]:
        logits.update({(int(seed), position): row for seed, row in zip(seeds, engine.policy.logits(hidden).double(), strict=True)})
        return sample(hidden, seeds, position, *others)

    with mock.patch.object(engine, "_sample", recording):
        return [group[0].ids for group in engine.generate(requests)]


def moved_logits(engine: TransformersEngine, requests: list[Request]) -> str:
    """What sampling all of them together or one by one does to the logits, and to the tokens that a draw gives."""
    together: dict[tuple[int, int], Tensor] = {}
    alone: dict[tuple[int, int], Tensor] = {}
    whole = recorded(engine, requests, together)
    single = [recorded(engine, [request], alone)[0] for request in requests]
    assert whole == single, "a completion changed: its later logits are not those of the same text"
    pairs = [(together[key], alone[key]) for key in together]
    moved = statistics.mean((a - b).std().item() for a, b in pairs)
    cdf, race = (statistics.mean(flips(a.softmax(-1), b.softmax(-1)) for a, b in pairs) for flips in (cdf_flips, race_flips))
    return (f"{len(pairs)} draws: logits move by {moved:.1e} (standard deviation); another token in one of {1 / cdf:,.0f} draws ({CDF}), "
            f"of {1 / race:,.0f} ({RACE})")


def on_a_model(folder: str, count: int, n: int, tokens: int) -> None:
    """Prints for both ways how many completions differ when each request is sampled by itself."""
    config = CommonConfig(model=folder, lora_r=1, lora_alpha=1, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    engine = TransformersEngine()
    engine.connect(load_policy(config, tokenizer, AutoConfig.from_pretrained(folder, trust_remote_code=False)))
    requests = []
    for i in range(count):
        question = [{"role": "user", "content": f"What is {17 + i} - {(7 * i) % 16}? Think step by step."}]
        prompt = tokenizer(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True), add_special_tokens=False)
        requests.append(Request(tuple(prompt["input_ids"]), derive_seed(0, "batch invariance", i), n, tokens))
    say(moved_logits(engine, [replace(request, n=1) for request in requests[:8]]))
    for way in (CDF, RACE):
        with drawn_by(way):
            together = [c.ids for group in engine.generate(requests) for c in group]
            alone = [c.ids for request in requests for c in engine.generate([request])[0]]
        differ = sum(a != b for a, b in zip(together, alone, strict=True))
        say(f"{way}: {differ} of {len(together)} completions differ; {sum(map(len, together)):,} tokens")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model")
    options.add_argument("--vocabularies", type=int, nargs="+", default=[200, 1024, 4096, 16_384, 49_152, 152_064])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--requests", type=int, default=50)
    options.add_argument("--n", type=int, default=8)
    options.add_argument("--tokens", type=int, default=20)
    arguments = options.parse_args()
    if arguments.model:
        on_a_model(arguments.model, arguments.requests, arguments.n, arguments.tokens)
    else:
        on_random_logits(arguments.vocabularies, arguments.rounds)


if __name__ == "__main__":
    main()
