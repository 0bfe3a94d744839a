"""One run of a script on the null GPU: what each phase of each step launched, waited for and held. See card.py.

    .venv-nullgpu/bin/python tests/nullgpu/card.py --gib 24 python tests/nullgpu/drive.py train_grpo --model FOLDER ...

Rewards are coin flips, as every sampled token is the same. A line of JSON for each phase goes to the file in $COUNTS.
"""
from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])]

import torch  # noqa: E402

# in the order of nullgpu.h
NAMES = ("launches", "waits", "pinned", "pageable", "bytes_up", "down", "bytes_down", "copies", "products", "mallocs", "frees",
         "host_mallocs", "captures", "graphs", "managed", "peak", "used")
stub = ctypes.CDLL("libnullgpu.so")
stub.nullgpu_count.restype = ctypes.c_longlong


def counts() -> dict[str, int]:
    """What the stand-in has counted so far, by name; peak and used are bytes."""
    return {name: stub.nullgpu_count(i) for i, name in enumerate(NAMES)}


@contextlib.contextmanager
def counted(phase: str, step: int = 0, **more: Any) -> Iterator[dict[str, Any]]:
    """Writes what happens inside: counts, and the most that torch had allocated and reserved, in bytes."""
    before = counts()
    stub.nullgpu_reset_peak()
    torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {"step": step, "phase": phase, "held": torch.cuda.memory_allocated(), **more}
    try:
        yield row
    finally:
        after = counts()
        row |= {name: after[name] - before[name] for name in NAMES[:-2]} | {
            "device": after["used"], "device_peak": after["peak"], "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(), "retries": torch.cuda.memory_stats()["num_alloc_retries"]}
        write(row)


def watch() -> None:
    """Counts the phases of a run, its micro-batches, the parity check, the trial, the start of the engine and each sync."""
    import common.rollout.choose_engine as choose
    from common.errors import UserError
    from common.policy.policy import Policy
    from common.run import memory_plan
    from common.run.run import Run
    from common.verify.rewards import VerifierReward

    rng = random.Random(0)
    VerifierReward.__call__ = lambda self, problems, completions: torch.tensor([float(rng.random() < 0.5) for _ in completions])
    if card := os.environ.get("CARD_GB"):  # plan for a card of another size than this one
        memory_plan.card_memory = lambda: (float(card) * 1e9,) * 2
    timer, states, tokens = Run.timer, Policy.states_before, []

    def states_before(self: Policy, batch: Any) -> Any:
        tokens.append(batch.input_ids.numel())
        return states(self, batch)

    @contextlib.contextmanager
    def counting_timer(self: Run, phase: str) -> Iterator[None]:
        tokens.clear()
        with counted(phase, self.step) as row, timer(self, phase):
            yield
            row["microbatches"], row["tokens"] = len(tokens), sum(tokens)

    Run.timer, Policy.states_before = counting_timer, states_before
    for name in ("check_parity", "check_awake", "TransformersEngine", "VLLMEngine"):
        real = getattr(choose, name, None)

        def call(*inputs: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            with counted(name):
                try:
                    made = real(*inputs, **options)
                except UserError as error:
                    if "does not sample from the policy" not in str(error):
                        raise
                    made = f"parity: not on a card that computes nothing ({error})"
            if name == "VLLMEngine":
                one_token_a_row()
            if "Engine" in name:
                made.generate = shortened(made.generate)
            return made

        setattr(choose, name, call)


def shortened(generate: Any) -> Any:
    """`generate` that samples $SAMPLED tokens of each completion and repeats them up to its limit: a host takes 0.5 s a token at 7B."""

    def generate_less(requests: list[Any]) -> list[list[Any]]:
        sampled = int(os.environ.get("SAMPLED", "1000000"))
        groups = generate([dataclasses.replace(request, max_tokens=min(sampled, request.max_tokens)) for request in requests])
        return [[dataclasses.replace(c, ids=(c.ids * request.max_tokens)[:request.max_tokens], logps=[0.0] * request.max_tokens)
                 if request.max_tokens > sampled else c for c in group] for request, group in zip(requests, groups, strict=True)]

    return generate_less


def counting_loop(real: Any) -> Any:
    """`microbatches` of a script, with a row "micro-batches" for each loop over it: what its body launched and waited for."""

    def microbatches(*inputs: Any, **options: Any) -> Iterator[Any]:
        before, number = counts(), 0
        for micro in real(*inputs, **options):
            number += 1
            yield micro
        after = counts()
        write({"phase": "micro-batches", "microbatches": number, **{name: after[name] - before[name] for name in NAMES[:-2]}})

    return microbatches


def write(row: dict[str, Any]) -> None:
    with open(os.environ.get("COUNTS", os.devnull), "a") as file:
        file.write(json.dumps(row) + "\n")


def one_token_a_row() -> None:
    """Makes vLLM believe that every row of a step got a token: the number comes from the GPU, where nothing is computed."""
    from vllm.v1.worker.gpu.async_utils import AsyncOutput
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    call, get_output, start, last = Sampler.__call__, AsyncOutput.get_output, AsyncOutput.__init__, {}

    def sample(self: Any, logits: Any, rows: Any) -> Any:
        last["sampled"] = (rows.num_computed_tokens_np + rows.num_scheduled_tokens >= rows.prefill_len_np).astype(int)
        return call(self, logits, rows)

    def begin(self: Any, *inputs: Any, **options: Any) -> None:
        start(self, *inputs, **options)
        self.sampled_here = last.get("sampled")

    def output(self: Any) -> Any:
        if self.sampled_here is not None and len(self.sampled_here) == len(self.num_sampled_tokens_np):
            self.num_sampled_tokens_np = self.sampled_here
        return get_output(self)

    Sampler.__call__, AsyncOutput.__init__, AsyncOutput.get_output = sample, begin, output


def main() -> None:
    from common.launch import parse_command_line, run_script

    script, *flags = sys.argv[1:]
    module = importlib.import_module(script)
    watch()
    if hasattr(module, "microbatches"):
        module.microbatches = counting_loop(module.microbatches)
        module.check_skipped = lambda *_: None  # it asks the card for a bool, and that is always True
    if "vllm" in flags:
        import vllm
        from vllm.distributed.device_communicators import cuda_wrapper

        cuda_wrapper.find_loaded_library = lambda name: next(
            path for path in os.environ["LD_PRELOAD"].split(":") if path.rpartition("/")[2].startswith(name))
        real = vllm.LLM  # without torch.compile and CUDA graphs it starts in seconds
        vllm.LLM = lambda *inputs, **options: real(*inputs, **{**options, "enforce_eager": bool(os.environ.get("EAGER"))})
    sys.argv = [f"{script}.py", *flags]
    run_script(getattr(module, "train", None) or module.evaluate_model, parse_command_line(module.Config, module.__file__))


if __name__ == "__main__":
    main()
