"""One run of a script on the null GPU: what each phase of each step launched, waited for and held. See card.py.

    .venv-nullgpu/bin/python tests/nullgpu/card.py --gib 24 python tests/nullgpu/drive.py train_grpo --model FOLDER ...
    .venv-nullgpu/bin/python tests/nullgpu/card.py --gib 80 python tests/nullgpu/drive.py benchmarks/gpu_7b.py --cards 80 ...

A line of JSON for each phase goes to the file in $COUNTS. $SAMPLED, $MICROBATCHES and $PARITY=0 leave most of the work out: what they
leave has the same memory.
"""
from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import importlib
import itertools
import json
import os
import random
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402

# in the order of nullgpu.h
NAMES = ("launches", "waits", "pinned", "pageable", "bytes_up", "down", "bytes_down", "copies", "products", "mallocs", "frees",
         "host_mallocs", "captures", "graphs", "managed", "peak", "used", "operations")
LEVELS = ("peak", "used")  # bytes; all others only grow
stub = ctypes.CDLL("libnullgpu.so")
stub.nullgpu_count.restype = ctypes.c_longlong


def counts() -> dict[str, int]:
    """What the stand-in has counted so far, by name; peak and used are bytes."""
    return {name: stub.nullgpu_count(i) for i, name in enumerate(NAMES)}


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in NAMES if name not in LEVELS}


@contextlib.contextmanager
def counted(phase: str, step: int = 0, **more: Any) -> Iterator[dict[str, Any]]:
    """Writes what happens inside: counts, seconds, and what torch had allocated before (held), at most and afterwards (left), in bytes."""
    before, began = counts(), time.perf_counter()
    stub.nullgpu_reset_peak()
    torch.cuda.reset_peak_memory_stats()
    row: dict[str, Any] = {"step": step, "phase": phase, "held": torch.cuda.memory_allocated(), **more}
    try:
        yield row
    finally:
        after = counts()
        row |= grown(before, after) | {"seconds": time.perf_counter() - began,
            "device": after["used"], "device_peak": after["peak"], "left": torch.cuda.memory_allocated(),
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(), "retries": torch.cuda.memory_stats()["num_alloc_retries"]}
        write(row)


def watch() -> None:
    """Counts the phases of a run, its micro-batches, the parity check, the trial, the start of the engine and each sync."""
    import common.policy.optim as optim
    import common.policy.skipped as skipped
    import common.rollout.choose_engine as choose
    from common.errors import UserError
    from common.policy import load
    from common.policy.policy import Policy
    from common.run import memory_plan
    from common.run.metrics import TokenMeans
    from common.run.run import Run

    skipped.check_skipped, optim.clip_gradients = skip_nothing, keep_gradients
    TokenMeans.mean = lambda self, name: float(self.sums[name]) if name in self.sums else None  # the number of tokens is read as 0
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

    def counting_base(*inputs: Any, real: Any = load.base_of) -> Any:
        with counted("base") as row:
            base, row["shared"] = real(*inputs)
        return base, row["shared"]

    Run.timer, Policy.states_before, load.base_of = counting_timer, states_before, counting_base
    for name in ("check_parity", "TransformersEngine", "VLLMEngine"):
        real = getattr(choose, name, None)

        def call(*inputs: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            if name == "check_parity" and os.environ.get("PARITY") == "0":
                inputs[0].sync()
                return "parity: left out"
            with counted(name):
                try:
                    made = real(*inputs, **options)
                except UserError as error:
                    if "does not sample from the policy" not in str(error):
                        raise
                    made = f"parity: not on a card that computes nothing ({error})"
            if "Engine" in name:
                made.generate = shortened(made.generate)
            return made

        setattr(choose, name, call)


def skip_nothing(*_: Any) -> None:
    """In the place of `check_skipped`, which asks the card for a bool, and that is always True."""


def keep_gradients(optimizer: torch.optim.Optimizer, max_norm: float, passes: int) -> torch.Tensor:
    """In the place of `clip_gradients`, which asks the card whether the norm is 0: no optimiser would ever make its state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert passes == 0 or all(p.grad is not None for p in parameters)
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm).to(parameters[0].device)


def shortened(generate: Any) -> Any:
    """`generate` that samples $SAMPLED tokens of each completion and repeats them up to its limit: a host takes 0.5 s a token at 7B."""

    def generate_less(requests: list[Any]) -> list[list[Any]]:
        sampled = int(os.environ.get("SAMPLED", "1000000"))
        groups = generate([dataclasses.replace(request, max_tokens=min(sampled, request.max_tokens)) for request in requests])
        return [[dataclasses.replace(c, ids=(c.ids * request.max_tokens)[:request.max_tokens], logps=[0.0] * request.max_tokens)
                 if request.max_tokens > sampled else c for c in group] for request, group in zip(requests, groups, strict=True)]

    return generate_less


def counting_loop(real: Any) -> Any:
    """`microbatches` of a script, with a row "micro-batches" for each loop over it: what its body launched and waited for.

    The loop has at most $MICROBATCHES, of which the first is the largest.
    """

    def microbatches(*inputs: Any, **options: Any) -> Iterator[Any]:
        before, number = counts(), 0
        for micro in itertools.islice(real(*inputs, **options), int(os.environ.get("MICROBATCHES", "1000000"))):
            number += 1
            yield micro
        after = counts()
        write({"phase": "micro-batches", "microbatches": number, **grown(before, after)})

    return microbatches


def write(row: dict[str, Any]) -> None:
    with open(os.environ.get("COUNTS", os.devnull), "a") as file:
        file.write(json.dumps(row) + "\n")


def start_vllm_in_seconds() -> None:
    """Makes vLLM start without torch.compile and CUDA graphs if $EAGER is set, and sample here."""
    from common.rollout.vllm_engine import VLLMEngine

    real = VLLMEngine.__init__

    def start(self: VLLMEngine, *inputs: Any, **options: Any) -> None:
        prepare_vllm()
        real(self, *inputs, **options)

    VLLMEngine.__init__ = start


@functools.cache
def prepare_vllm() -> None:
    import vllm
    from vllm.distributed.device_communicators import cuda_wrapper

    cuda_wrapper.find_loaded_library = lambda name: next(
        path for path in os.environ["LD_PRELOAD"].split(":") if path.rpartition("/")[2].startswith(name))
    real = vllm.LLM
    for name in ("sleep", "release_kv_cache_memory", "wake_up"):
        setattr(real, name, counting(name, getattr(real, name)))
    vllm.LLM = lambda *inputs, **options: real(*inputs, **{**options, "enforce_eager": bool(os.environ.get("EAGER"))})
    one_token_a_row()


def counting(name: str, real: Any) -> Any:
    def call(*inputs: Any, **options: Any) -> Any:
        with counted(name):
            return real(*inputs, **options)

    return call


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


def run_training(script: str, flags: list[str]) -> None:
    """Runs a script of the project in this process. Rewards are coin flips, as every sampled token is the same."""
    from common.launch import parse_command_line, run_script
    from common.verify.rewards import VerifierReward

    rng = random.Random(0)
    VerifierReward.__call__ = lambda self, problems, completions: torch.tensor([float(rng.random() < 0.5) for _ in completions])
    module = importlib.import_module(script)
    if hasattr(module, "microbatches"):
        module.microbatches = counting_loop(module.microbatches)
        module.check_skipped, module.clip_gradients = skip_nothing, keep_gradients
        module.preflight = counting("trial", module.preflight)
    sys.argv = [f"{script}.py", *flags]
    run_script(getattr(module, "train", None) or module.evaluate_model, parse_command_line(module.Config, module.__file__))


def run_benchmark(file: str, words: list[str]) -> None:
    """Runs a script of benchmarks/ in this process. The processes that it starts are driven as well, and share the card."""
    import measure

    real = measure.run_logged
    measure.run_logged = lambda command, log: real([command[0], __file__, *command[1:]], log)
    sys.argv = [file, *words]
    with tempfile.NamedTemporaryFile() as card:
        card.truncate(4096)
        os.environ.setdefault("NULLGPU_SHARED", card.name)
        runpy.run_path(file, run_name="__main__")


def run(target: str, words: list[str]) -> None:
    watch()
    start_vllm_in_seconds()
    (run_benchmark if target.endswith(".py") else run_training)(target, words)


def serve() -> None:
    """Runs what each line of JSON on stdin asks for, in a fork of this process, and answers with its exit code.

    A line: {"words": [...], "environment": {...}, "output": FILE}. Torch and the like are imported once, which saves most of the time of a
    short run. What is imported must leave CUDA alone, as it does not survive a fork: bitsandbytes would ask for the card's capability.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    with mock.patch("torch.cuda.get_device_capability", lambda *_: (8, 0)):
        for name in ("bitsandbytes", "vllm.entrypoints.llm", "train_ppo", "train_vineppo", "train_grpo", "train_nft", "eval"):
            importlib.import_module(name)
    del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.environ.update(asked["environment"])
            with open(os.devnull) as nothing, open(asked["output"], "w") as output:
                for number, file in enumerate((nothing, output, output)):
                    os.dup2(file.fileno(), number)
            code = 1
            try:
                run(asked["words"][0], asked["words"][1:])
                code = 0
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code)
                code = end.code if isinstance(end.code, int) else int(bool(end.code))
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def main() -> None:
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        run(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    main()
