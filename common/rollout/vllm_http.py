"""One `vllm serve` over HTTP: the calls that sampling needs, and the checks of what comes back.

A server is a program in the network. So every answer has a limit of size and time, redirects are not followed, and every number is checked
before anybody computes with it. An answer that cannot be right is a UserError that names the server.
"""
from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from common.errors import UserError
from common.records import Request

LARGEST_ANSWER = 2**22  # bytes of an answer about the server itself
TOKEN_BYTES = 1024  # bytes of an answer for each token asked for, at most. Usual are 68, but some tokens are long runs of spaces
SHORT_S = 10.0  # seconds in which a server says that it is alive, if --vllm_server_timeout allows as many
COUNTERS = re.compile(rb"^vllm:(?:generation|prompt)_tokens_total(?:\{[^}]*\})? ([0-9.e+]+)\s*$", re.M)
START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank"

Sampled = tuple[list[int], list[float], str]  # token ids, their log-probs in nats, and the finish reason


class Lost(Exception):
    """The server did not answer, or not as one that works. Another server, or the same one later, may do better."""


class NotThere(Exception):
    """The server does not see the folder of an adapter."""


class Server:
    """A server at `url`, as in http://host:8000. Raises UserError for a URL that cannot be one."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        """key: what the server wants in `Authorization`. timeout: the longest silence of a call that computes nothing, in seconds."""
        self.scheme, self.host, self.port = server_address(url)
        self.url, self.key, self.timeout = url.rstrip("/"), key, timeout
        self.short = min(SHORT_S, timeout)
        self.tls = {"context": ssl.create_default_context()} if self.scheme == "https" else {}  # once: it reads all certificates
        self.model = ""  # the name of the base there
        self.open: set[socket.socket] = set()  # of calls that compute, and may take long

    # ---- what it is asked -----------------------------------------------------------------------------------------

    def healthy(self) -> bool:
        """Whether the server answers and its engine lives. A hung engine looks alive."""
        with contextlib.suppress(Lost):
            return self._call("GET", "/health", seconds=self.short)[0] == 200
        return False

    def models(self) -> list[dict[str, Any]]:
        """The base and the adapters of the server: `id`, `root`, `parent`, and of the base `max_model_len`. Raises Lost, UserError."""
        status, answer = self._call("GET", "/v1/models", seconds=self.short)
        found = answer.get("data") if status == 200 and isinstance(answer, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise UserError(f"{self.url} is no vLLM server: its /v1/models has no list of models (status {status})")
        return found

    def tokens(self) -> float:
        """All tokens that the server has ever read or written, which grows as long as it works. Raises Lost, UserError."""
        status, answer = self._call("GET", "/metrics", seconds=self.short, plain=True)
        counts = [float(count) for count in COUNTERS.findall(answer)] if status == 200 else []
        if not counts:
            raise UserError(f"{self.url}/metrics has no vllm:generation_tokens_total, by which a hung server is known: start it without "
                            "--disable-log-stats")
        return sum(counts)

    def load(self, name: str, folder: str, rank: int) -> None:
        """Loads the adapter in `folder` under a name that is new to the server. Raises NotThere, Lost, UserError."""
        status, answer = self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, seconds=self.timeout)
        said = message(answer)
        if status == 200 or (status == 400 and "already been loaded" in said and self._has(name, folder)):  # by another process of the run
            return
        if status == 404 and "adapter" in said:
            raise NotThere(said)
        if status >= 500 and not self.healthy():
            raise Lost(f"status {status}, {said}")
        why = "it does not take adapters while it runs" if status in (404, 405) else f"it cannot load an adapter of rank {rank}: {said}"
        raise UserError(f"{self.url}: {why}; start it with {START} {rank} or more")

    def unload(self, name: str) -> None:
        """Makes the server forget an adapter. A server that does not answer forgets it when it starts again."""
        with contextlib.suppress(Lost, UserError):
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, seconds=self.short)

    def sample(self, request: Request, model: str, salt: str, seed: int, stop_ids: list[int], vocabulary: int,
               seconds: float | None = None) -> list[Sampled]:
        """The `n` samples of a request, checked. vLLM adds the number of a sample to the seed. Raises Lost, UserError.

        salt: prompts of another salt share no keys and values with this one. seconds: the longest time of the call; None: as long as the
        server needs, and `cut` ends it.
        """
        body = {"model": model, "prompt": list(request.prompt_ids), "n": request.n, "seed": seed, "max_tokens": request.max_tokens,
                "temperature": request.temperature, "top_p": request.top_p, "stop": list(request.stop), "stop_token_ids": stop_ids,
                "logprobs": 0, "return_token_ids": True, "cache_salt": salt,
                # what is not said may come from the model's generation_config
                "top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
        limit = LARGEST_ANSWER + request.n * (TOKEN_BYTES * request.max_tokens + 16 * len(request.prompt_ids))
        status, answer = self._call("POST", "/v1/completions", body, seconds=seconds, limit=limit)
        if status == 404:
            raise Lost(f"it has forgotten the adapter ({message(answer)})")
        if status in (408, 425, 429) or status >= 500:
            raise Lost(f"status {status}, {message(answer)}")
        if status != 200:
            raise UserError(f"{self.url} refuses a request (status {status}): {message(answer)}")
        try:
            return checked(answer, request, vocabulary)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self.url} gave an answer that cannot be right: {str(error)[:200]}; look at that server") from error

    def cut(self) -> None:
        """Ends all calls of `sample` that are under way. They raise Lost."""
        for line in list(self.open):
            self.open.discard(line)
            shut(line)

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _has(self, name: str, folder: str) -> bool:
        return any(one.get("id") == name and one.get("root") == folder for one in self.models())

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float | None = None, plain: bool = False,
              limit: int = LARGEST_ANSWER) -> tuple[int, Any]:
        """Status and answer of one call, on a connection of its own: as JSON, or with `plain` as bytes. Raises Lost, UserError.

        seconds: the longest time of the whole call; None: the answer may begin whenever it likes, and then has `timeout` seconds.
        """
        kind = http.client.HTTPSConnection if self.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=self.short, **self.tls)
        try:
            connection.connect()
            line = connection.sock  # the connection forgets it when the answer begins
            keep_alive(line)
            line.settimeout(seconds)
            with self._ended(line, seconds):
                connection.request(method, path, None if body is None else json.dumps(body), self._headers())
                response = connection.getresponse()
                with self._ended(line, self.timeout) if seconds is None else contextlib.nullcontext():
                    content = self._content(response, limit)
        except (OSError, http.client.HTTPException) as error:
            raise Lost(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        self._refuse(response.status, path)
        if self.key and response.status != 200:  # what a server says of an error is shown, and it may say the key
            content = content.replace(self.key.encode(), b"(key)")
        return response.status, content if plain else self._parsed(response.status, content, path)

    @contextlib.contextmanager
    def _ended(self, line: socket.socket, seconds: float | None) -> Iterator[None]:
        """Inside, a call ends after `seconds`, or with None when `cut` is called. Raises Lost if it ended so."""
        going = self.open if seconds is None else {line}
        going.add(line)
        watch = threading.Timer(seconds or 0, lambda: (going.discard(line), shut(line)))
        watch.daemon = True
        if seconds is not None:
            watch.start()
        try:
            yield
            if line not in going:  # an answer that does not say how long it is looks complete then
                raise Lost("its answer did not end" if seconds is not None else "it was given up")
        finally:
            watch.cancel()
            going.discard(line)

    def _headers(self) -> dict[str, str]:
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Content-Type": "application/json", "Connection": "close", **key}

    def _content(self, response: http.client.HTTPResponse, limit: int) -> bytes:
        """The bytes of an answer. Raises Lost for one that was cut off, and UserError for one that has no end."""
        told, content = response.length, bytearray()  # told: None if the answer does not say how long it is
        while told is None or len(content) < told:
            part = response.read1(2**16)
            if not part:
                break
            content += part
            if len(content) > limit:
                raise UserError(f"{self.url}: an answer of more than {limit} bytes, which nobody asked for; look at that server")
        if told is not None and len(content) < told:
            raise Lost(f"the answer was cut off after {len(content)} of {told} bytes")
        return bytes(content)

    def _refuse(self, status: int, path: str) -> None:
        """Raises UserError for an answer that sends the key elsewhere, or that wants another key."""
        if 300 <= status < 400:
            raise UserError(f"{self.url}{path} leads to another address, and is not followed: name the server's own address")
        if status in (401, 403):
            why = "does not take the key in VLLM_API_KEY" if self.key else "wants a key: set the environment variable VLLM_API_KEY"
            raise UserError(f"{self.url} {why} (status {status})")

    def _parsed(self, status: int, content: bytes, path: str) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            if status != 200:
                return content[:200].decode(errors="replace")
            if path in ("/health", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):  # these answer with a text, or with nothing
                return None
            raise UserError(f"{self.url} is no vLLM server: {path} gave no JSON") from None


def server_address(url: str) -> tuple[str, str, int]:
    """(scheme, host, port) of a URL of --vllm_server_base_url. Raises UserError for one that cannot be a server's."""
    try:
        parts = urlsplit(url)
        usual = {"http": 80, "https": 443}[parts.scheme]
        host, port = parts.hostname, parts.port or usual
        known = host and re.fullmatch(r"[\w.:%-]+", host) and not (parts.path.strip("/") or parts.query or parts.fragment)
    except (ValueError, KeyError):
        known = None
    if known and (parts.username or parts.password):
        raise UserError("--vllm_server_base_url: a URL with a user or a key would be written into config.json; the key of the servers "
                        "belongs in the environment variable VLLM_API_KEY")
    if not known:
        raise UserError(f"--vllm_server_base_url {url[:200]} cannot work: give http://host:port")
    return parts.scheme, host, port


def message(answer: Any) -> str:
    """The error message in an answer, in one short line."""
    error = answer.get("error", answer.get("detail", answer)) if isinstance(answer, dict) else answer
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:300]


def checked(answer: Any, request: Request, vocabulary: int) -> list[Sampled]:
    """The samples in an answer of /v1/completions. Raises ValueError, LookupError or TypeError for one that is wrong in any way."""
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(request.n)):
        raise ValueError(f"{len(choices)} samples where {request.n} were asked for")
    return [_sample(choice, request, vocabulary) for choice in choices]


def _sample(choice: dict[str, Any], request: Request, vocabulary: int) -> Sampled:
    ids, logps, reason = choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise Lost(f"it ended a completion with finish reason {reason!r}")
    if choice["prompt_token_ids"] != list(request.prompt_ids):
        raise ValueError("a completion of another prompt")
    if not ids or len(ids) != len(logps) or len(ids) > request.max_tokens:
        raise ValueError(f"{len(ids)} tokens and {len(logps)} log-probs, where at most {request.max_tokens} were asked for")
    if not all(type(token) is int and 0 <= token < vocabulary for token in ids):
        raise ValueError(f"a token that is none of the model's {vocabulary}")
    if not all(type(logp) in (int, float) and math.isfinite(logp) and logp < 1e-3 for logp in logps):
        raise ValueError("a log-prob that is no number below 0")
    if reason == "length" and len(ids) < request.max_tokens:
        raise ValueError(f"a completion cut off after {len(ids)} of {request.max_tokens} tokens (start it with --generation-config vllm)")
    return ids, [float(logp) for logp in logps], reason


def keep_alive(connected: socket.socket) -> None:
    """Makes the system notice within two minutes that the machine at the other end has gone, while a call waits for hours."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):  # not on every system
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def shut(line: socket.socket) -> None:
    """Ends a connection on which another thread waits: its read returns at once."""
    with contextlib.suppress(OSError):  # it has ended
        socket.socket.shutdown(line, socket.SHUT_RDWR)  # of the connection below, where there is TLS
