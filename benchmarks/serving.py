"""Starts vLLM servers on this machine, for benchmarks and tests, and always stops them again."""
from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch

# Without a GPU: small blocks that short prompts can share, and no chunks, which vLLM's CPU build cannot sample from with a seed
ON_CPU = ["--no-enable-chunked-prefill", "--enforce-eager", "--block-size", "32", "--dtype", "float32"]


class Served:
    """One `vllm serve` on a port of this machine, in a process group of its own."""

    def __init__(self, model: str, number: int, rank: int, length: int) -> None:
        """number: of its card. rank: the largest of an adapter. length: of prompt and completion, in tokens."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.number = f"http://127.0.0.1:{self.port}", number
        self.command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(self.port),
                        "--model", model, "--enable-lora", "--max-loras", "2", "--max-lora-rank", str(rank), "--max-model-len", str(length),
                        "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
                        *(["--dtype", "bfloat16"] if torch.cuda.is_available() else ON_CPU)]
        self.start()

    def start(self) -> None:
        """Starts the server, also once more after `send(SIGKILL)`. It answers later: see `wait`."""
        # Without a GPU, vLLM binds every server to the same core: one that waits can keep another from computing for minutes there
        more = {"CUDA_VISIBLE_DEVICES": str(self.number)} if torch.cuda.is_available() else {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": str(self.number % (os.cpu_count() or 1))}
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env={
            **os.environ, **more, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_LOGGING_LEVEL": "ERROR"})

    def wait(self, seconds: float = 600.0) -> None:
        """Returns when the server answers. Raises RuntimeError if it ends before, or takes longer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.5)
        raise RuntimeError(f"did not start: {' '.join(self.command)}")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the server and its engine."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


@contextlib.contextmanager
def serving(model: Path | str, servers: int, rank: int = 8, length: int = 256) -> Iterator[list[Served]]:
    """In a `with` block: so many servers of the model answer, one a card."""
    started: list[Served] = []
    try:
        for number in range(servers):
            started.append(Served(str(model), number, rank, length))
        for server in started:
            server.wait()
        yield started
    finally:
        for server in started:
            server.send(signal.SIGKILL)
