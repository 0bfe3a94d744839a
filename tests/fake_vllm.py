"""A program that answers as `vllm serve` does, from a TransformersEngine. For tests of the client, which can make it fail in many ways."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from helpers import make_policy

from common.records import Completion, Request
from common.rollout.transformers_engine import TransformersEngine


class Fake:
    """One server on a port of its own. `trouble(path, body)` may return what is answered instead: (status, bytes or JSON), or raise."""

    def __init__(self, model: Path, tokenizer: Any, name: str | None = None, key: str | None = None) -> None:
        self.model, self.name = model, name
        self.policy = make_policy(model, tokenizer, noise=0.0)
        self.engine = TransformersEngine()
        self.engine.connect(self.policy)
        self.key, self.port, self.lock = key, 0, threading.Lock()
        self.reset()
        self.start()

    def reset(self) -> None:
        """Makes it a server that has just started, and has no troubles."""
        self.base, self.root, self.max_model_len = self.name or str(self.model), str(self.model), 512
        self.loaded: dict[str, str] = {}  # name -> folder, as the server has it
        self.weights: dict[str, Any] = {}  # by name, merged; of the base none
        self.asked: list[tuple[str, Any]] = []  # every call: its path and body
        self.tokens = 0  # as it counts them
        self.trouble: Callable[[str, Any], Any] = lambda path, body: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begins to answer; after `stop`, on the port of before."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                fake.answer(self, None)

            def do_POST(self) -> None:
                fake.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        class Quiet(ThreadingHTTPServer):
            daemon_threads, block_on_close, request_queue_size = True, False, 256

            def handle_error(self, *_: Any) -> None:
                pass

        self.http = Quiet(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        """Takes no more connections, as a program that has ended. It has then forgotten all adapters."""
        self.http.shutdown()
        self.http.server_close()
        self.loaded.clear()

    def answer(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        self.asked.append((handler.path, body))
        try:
            status, content = self.trouble(handler.path, body) or self.content(handler, body)
        except ConnectionError:  # the test wants the connection cut
            with contextlib.suppress(OSError):
                handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"choices\"")
            handler.close_connection = True
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        if 300 <= status < 400:
            handler.send_header("Location", content.decode())
        handler.end_headers()
        handler.wfile.write(data)

    def content(self, handler: BaseHTTPRequestHandler, body: Any) -> tuple[int, Any]:
        path = handler.path
        if path.startswith("/v1") and self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        if path == "/health":
            return 200, b""
        if path == "/metrics":
            counts = {"prompt": 0, "generation": self.tokens}
            return 200, "".join(f'vllm:{name}_tokens_total{{engine="0"}} {count}.0\n' for name, count in counts.items()).encode()
        if path == "/v1/models":
            base = {"id": self.base, "root": self.root, "parent": None, "max_model_len": self.max_model_len}
            return 200, {"data": [base, *({"id": name, "root": root, "parent": self.base} for name, root in self.loaded.items())]}
        if path == "/v1/unload_lora_adapter":
            return (200, b"Success") if self.loaded.pop(body["lora_name"], None) else (404, error(f"{body['lora_name']} cannot be found."))
        if path == "/v1/load_lora_adapter":
            return self.load(**body)
        return self.complete(body)

    def load(self, lora_name: str, lora_path: str) -> tuple[int, Any]:
        if lora_name in self.loaded:
            return 400, error(f"The lora adapter '{lora_name}' has already been loaded.")
        if not Path(lora_path, "adapter_config.json").exists():
            return 404, error(f"Loading lora {lora_name} failed: No adapter found for {lora_path}")
        with self.lock:
            self.weights[lora_name] = self.weights_of(Path(lora_path))
        self.loaded[lora_name] = lora_path
        return 200, b"Success: LoRA adapter added"

    def weights_of(self, folder: Path) -> Any:
        with contextlib.suppress(KeyError):  # the adapter with which a run tries a server has one layer
            self.policy.load(folder)
            return self.policy.merged_weights()
        return {}

    def complete(self, body: Any) -> tuple[int, Any]:
        if body["model"] not in (*self.loaded, self.base):
            return 404, error(f"The model `{body['model']}` does not exist.")
        with self.lock:
            self.engine.weights = self.weights.get(body["model"], {})
            self.policy.temperature = body["temperature"] or 1.0
            same = {name: body[name] for name in ("max_tokens", "temperature", "top_p")} | {"stop": tuple(body["stop"])}
            requests = [Request(tuple(body["prompt"]), body["seed"] + i, **same) for i in range(body["n"])]
            if self.engine.weights:
                found = self.engine.generate(requests)
            else:
                with self.policy.adapters_off():
                    found = self.engine.generate(requests)
            self.tokens += sum(len(group[0].ids) for group in found)
        return 200, {"choices": [choice(i, body["prompt"], group[0]) for i, group in enumerate(found)]}


def choice(index: int, prompt: list[int], completion: Completion) -> dict[str, Any]:
    return {"index": index, "token_ids": completion.ids, "logprobs": {"token_logprobs": completion.logps}, "prompt_token_ids": prompt,
            "finish_reason": completion.finish_reason, "stop_reason": None}


def error(text: str) -> dict[str, Any]:
    return {"error": {"message": text, "code": 404}}


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Returns when the condition holds, and fails if it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
