"""The engine that samples with `vllm serve` on other cards or machines (docs/scale.md). It needs no vllm here.

Requests wait in one queue, from which every server takes what it can. A server that dies, hangs or starts again loses nothing: its requests
go back into the queue, and it gets new ones when it has the adapter again.
"""
from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from common import parallel
from common.config import SamplingConfig
from common.console import say
from common.errors import UserError
from common.files import new_folder, remove
from common.policy.adapters import copy_adapter, one_rank, write_zero_adapter
from common.policy.policy import Policy
from common.policy.pretrained import first_adapter, load_generation_config, public_name, stop_token_ids
from common.records import Completion, Request, hash_seeds, longest_of
from common.rollout.engine import Ended
from common.rollout.parity import check_parity, probes, why_apart
from common.rollout.text import decode, stop_at, tokens_named
from common.rollout.vllm_http import Lost, NotThere, Server
from common.rollout.vllm_queue import BUSY, Member, Work

FOLDER = "adapters"  # in the run folder: those that servers read
SHARED_S = 60.0  # seconds until a folder that was just written must be seen on every machine
PAUSE_S = 5.0  # seconds between two looks at the servers, while nothing happens


class Begun:
    """Requests that are sampled in a thread of their own."""

    def __init__(self, requests: list[Request], work: Callable[[Begun], list[list[Completion]]]) -> None:
        self.requests, self.work, self.awaited = requests, work, False
        self.found: list[list[Completion]] | BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.found = self.work(self)
        except BaseException as error:
            self.found = error

    def result(self, pause: float, meanwhile: Callable[[], None]) -> list[list[Completion]]:
        """Waits for the completions, and calls `meanwhile` every `pause` seconds. Raises what went wrong."""
        self.awaited = True
        while self.thread.is_alive():
            self.thread.join(pause)
            meanwhile()
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found or []


class VLLMServers:
    """Samples with vLLM servers, which read the adapters of the run from a folder that all machines share.

    Each version of the adapter has a name, path and cache salt that no other has, of this run or of another. The folders of the current
    version and of the one before are kept. A folder that servers have read is never written to again.
    """

    def __init__(self, config: SamplingConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig,
                 prompts: list[tuple[int, ...]]) -> None:
        """Looks at every server, and loads an adapter of the run's rank on it. Raises UserError for a server that cannot do the work."""
        key = os.environ.get("VLLM_API_KEY")
        if key and not re.fullmatch("[!-~]+", key):
            raise UserError("VLLM_API_KEY has characters that a key cannot have, such as a space or a line break")
        self.timeout = config.vllm_server_timeout
        self.members = [Member(Server(url, key or None, self.timeout)) for url in config.vllm_server_base_url or ()]
        if len({(member.server.host, member.server.port) for member in self.members}) < len(self.members):
            raise UserError("--vllm_server_base_url names a server twice: name each server once")
        self.tokenizer, self.closed = tokenizer, False
        self.policy: Policy | None = None
        self.begun: Begun | None = None
        self.only: Member | None = None  # the one server that samples, while it is compared with the trainer
        self.stop_ids = stop_token_ids(tokenizer, load_generation_config(config, model_config))
        self.vocabulary = model_config.get_text_config().vocab_size
        self.probe_prompts = sorted(prompts, key=len)[-4:]  # the longest prompts, which fill whole cache blocks
        self.chunk = 4 * BUSY * len(self.members)
        self.model, self.longest = public_name(config), longest_of(prompts) + config.max_completion_length
        self.rank = one_rank(config)
        self.run, self.version, self.pause = secrets.token_hex(8), 0, min(PAUSE_S, self.timeout / 20)
        self.folder = Path(config.output_dir or ".").absolute() / FOLDER
        self.adapter: tuple[str, Path] | None = None  # name and folder of the current one; None: the base alone
        self.before: tuple[str, Path] | None = None
        self._start(config, model_config)

    def held_base(self) -> None:
        """The servers hold their bases elsewhere."""

    def connect(self, policy: Policy) -> None:
        """Samples from this policy from the next `sync` on."""
        self.policy = policy

    def check(self) -> None:
        """Compares each server alone with the trainer, as each may have other flags. Raises UserError for one that samples otherwise."""
        say(*parallel.first(lambda: [self._compared(member) for member in self.members], "how servers and trainer agree"))
        self.sync()

    def sync(self) -> None:
        """Samples from the current adapter from now on. Process 0 hands the adapter over: those of all processes are equal."""
        policy = self.policy
        self._use(lambda folder: policy.save(folder, policy.dtype))

    def sleep(self) -> None:
        """Nothing to free. It is the last moment of a step at which the policy is that of the servers: lost ones are taken back now."""
        for member in self.members:
            self._take_back(member)

    def begin(self, requests: list[Request]) -> None:
        """Samples these requests in the background, from the adapter of now: `generate` of the same requests gives what came."""
        self.begun = Begun(requests, lambda begun, adapter=self.adapter: self._sample(requests, adapter, begun))

    def generate(self, requests: list[Request], ended: Ended | None = None) -> list[list[Completion]]:
        """completions[i] are the `n` samples of requests[i]. ended: is told, during the call, how many more have ended.

        Raises UserError if no server answers for `--vllm_server_timeout` seconds.
        """
        if self.begun and self.begun.requests == requests:
            found = self.begun.result(self.pause, self.sleep)  # the policy is that of the servers now, and stands still
            self.begun = None
            return found
        return self._sample(requests, self.adapter, ended=ended)

    def _sample(self, requests: list[Request], adapter: tuple[str, Path] | None, begun: Begun | None = None,
                ended: Ended | None = None) -> list[list[Completion]]:
        """As `generate`, from an adapter that the servers have. begun: in the background, where nobody can take lost servers back."""
        work = Work(requests, lambda server, request: self._ask(server, request, adapter), self._lose)
        seen, count = time.monotonic(), 0  # count: completions that have come
        try:
            while not work.finished:
                self._look_after(work, begun is None)
                if work.shifts or (begun and not begun.awaited):
                    seen = time.monotonic()
                elif time.monotonic() - seen > self.timeout:
                    raise UserError(f"no vLLM server has answered for {self.timeout:g} s ({self._complaints()}): start them again, and go "
                                    "on from the last checkpoint")
                with work.change:
                    work.change.wait_for(lambda: work.finished, self.pause)
                    before, count = count, sum(map(len, work.done.values()))
                if ended:
                    ended(count - before)
        finally:
            work.end()
        if work.error is not None:
            raise work.error
        return [work.done[i] for i in range(len(requests))]

    def close(self) -> None:
        """Makes the servers forget the adapters of this run, and removes their folders."""
        self.closed = True
        for name, folder in filter(None, (self.adapter, self.before)):
            self._everywhere(lambda member, name=name: member.server.unload(name))
            remove(folder)
        self.adapter = self.before = None
        with contextlib.suppress(OSError):  # the run goes on in another process already, or the folder has gone
            self.folder.rmdir()

    # ---- adapters -------------------------------------------------------------------------------------------------

    def _start(self, config: SamplingConfig, model_config: PretrainedConfig) -> None:
        """Checks every server, and loads the first adapter. From here on the end of the run removes the adapters."""
        for member in self.members:
            try:
                self._check(member.server)
            except Lost as error:
                raise UserError(f"no vLLM server answers at {member.server.url} ({error}): start it, or leave it out") from None
        say(f"{len(self.members)} vLLM servers: {', '.join(member.server.url for member in self.members)}")
        if parallel.rank() == 0:
            remove(self.folder)  # of a run that was killed
            self.folder.mkdir()
            release = config.release

            def close_and_release() -> None:
                self.close()
                release()

            config.release = close_and_release
        first = first_adapter(config)
        if first:
            self._use(lambda folder: copy_adapter(Path(first), folder))
        elif rank := self.rank:  # shows now, before a model is loaded, whether the servers can take what the run will give them
            targets = getattr(config, "lora_target_modules", None) or ()
            self._use(lambda folder: write_zero_adapter(folder, model_config, rank, targets))

    def _compared(self, member: Member) -> str:
        """A line on how well a server and the trainer agree. Process 0 alone calls this."""
        self.only = member
        try:
            return f"{member.server.url} {check_parity(self, self.policy, self._probes())}"
        except UserError as error:
            raise error if member.server.url in str(error) else UserError(f"{member.server.url}: {error}") from error
        finally:
            self.only = None

    def _use(self, write: Callable[[Path], None]) -> None:
        """Makes what `write(folder)` writes the current adapter. All processes call this, except while process 0 compares a server."""
        def publish() -> tuple[str, Path]:
            return self._publish(write)

        new = publish() if self.only else parallel.first(publish, "the adapter")
        self.before, self.adapter = self.adapter, new

    def _publish(self, write: Callable[[Path], None]) -> tuple[str, Path]:
        """Writes a new version with `write(folder)`, and loads it on the servers. Returns its name and folder."""
        self.version += 1
        name = f"vinery-{self.run}-{self.version}"
        with new_folder(self.folder / name) as folder:
            write(folder)
        self._everywhere(lambda member: self._load(member, name, self.folder / name))
        if self.before:
            old, folder = self.before
            self._everywhere(lambda member: member.server.unload(old))
            remove(folder)
        return name, self.folder / name

    def _load(self, member: Member, name: str, folder: Path) -> None:
        """Loads an adapter on a server, or notes that the server is lost. Raises UserError if it cannot take the adapter."""
        end = time.monotonic() + min(SHARED_S, self.timeout)
        while True:
            try:
                return member.server.load(name, str(folder), self.rank or 1)
            except Lost as error:
                return self._lose(member, str(error))
            except NotThere as error:
                if time.monotonic() > end:
                    raise UserError(f"{member.server.url} does not find {folder} ({error}): put --output_dir into a folder that the "
                                    "servers see under the same path, and may read") from None
            time.sleep(min(1.0, self.pause))

    def _everywhere(self, work: Callable[[Member], Any]) -> None:
        """Does `work` with every server that is up, with all at once. Raises what it raises."""
        members = [member for member in self.members if member.up]
        with ThreadPoolExecutor(max(1, len(members))) as pool:
            list(pool.map(work, members))

    # ---- servers come and go --------------------------------------------------------------------------------------

    def _check(self, server: Server) -> None:
        """Raises Lost, and UserError for a server that has another model or too short a context."""
        server.tokens()
        base = next((one for one in server.models() if not one.get("parent")), {})
        server.model, root, length = str(base.get("id")), str(base.get("root")), base.get("max_model_len")
        wanted, folder = self.model.rpartition("/")[2], f"models--{self.model.replace('/', '--')}"
        if wanted not in (server.model.rpartition("/")[2], root.rstrip("/").rpartition("/")[2]) and folder not in root.split("/"):
            raise UserError(f"{server.url} serves {server.model[:200]} and not {self.model}: name a server of this model. If it is this "
                            f"model, start it with --served-model-name {wanted}")
        if type(length) is not int or length < self.longest:
            raise UserError(f"{server.url} takes {length} tokens of prompt and completion, and this run has up to {self.longest}: start it "
                            f"with --max-model-len {self.longest} or more, or give a smaller --max_completion_length")

    def _used(self) -> list[Member]:
        return [self.only] if self.only else self.members

    def _lose(self, member: Member, why: str) -> None:
        """Notes that a server is lost, and begins to look for it."""
        if not member.up:  # another call has lost it already
            return
        say(f"note: lost {member.server.url} ({why[:200]}); its requests go to the others, and it gets new ones when it is back")
        member.up, member.said = False, why
        threading.Thread(target=self._seek, args=[member], daemon=True).start()

    def _seek(self, member: Member) -> None:
        """Waits, in a thread of its own, until a lost server works again with the current adapter, and has sampled something to look at."""
        while not self.closed:
            time.sleep(self.pause)
            adapter = self.adapter
            try:
                if member.server.healthy():
                    self._check(member.server)
                    # what samples ahead has the adapter of before
                    for name, folder in filter(None, (self.before if self.begun else None, adapter)):
                        member.server.load(name, str(folder), self.rank or 1)
                    member.found = adapter, [self._ask(member.server, request, adapter, self.timeout) for request in self._probes()]
                    return
            except (Lost, NotThere, UserError) as error:
                self._keep_out(member, error)

    def _take_back(self, member: Member) -> None:
        """Takes back a server that was found, if what it sampled is of the policy as it is."""
        if not member.found:
            return
        (adapter, groups), member.found = member.found, None
        why = why_apart(self.policy, self._probes(), groups) if self.policy is not None and adapter is self.adapter else ""
        if why:
            self._keep_out(member, UserError(f"it does not sample from the policy that is trained: {why}"))
        elif adapter is self.adapter:  # no `sync` came in between
            member.up = True
            say(f"note: {member.server.url} is back")
            return
        threading.Thread(target=self._seek, args=[member], daemon=True).start()

    def _probes(self) -> list[Request]:
        return probes(self.probe_prompts, self.policy.temperature) if self.policy is not None else []

    def _keep_out(self, member: Member, error: Exception) -> None:
        """Notes why a server that answers again gets no requests."""
        if isinstance(error, UserError) and str(error) != member.said:
            say(f"note: {member.server.url} is back but cannot be used: {error}")
        member.said = str(error)

    def _complaints(self) -> str:
        return "; ".join(f"{member.server.url}: {member.said[:200]}" for member in self._used())

    def _look_after(self, work: Work, here: bool) -> None:
        """Gives up servers that hang, takes back those that work again, and puts those that are up to work."""
        for member in self._used():
            work.listen(member, self.pause, self.timeout)
            if here:
                self._take_back(member)
        work.start(self._used())

    def _ask(self, server: Server, request: Request, adapter: tuple[str, Path] | None, seconds: float | None = None) -> list[Completion]:
        """The completions of one request by one server, in at most `seconds`. Raises Lost, UserError."""
        name, salt = (adapter[0],) * 2 if adapter else (server.model, f"vinery-{self.run}")
        seed = int(hash_seeds(np.uint64(request.seed), 0)) % 2**62  # vLLM adds the number of the sample to it
        stop_ids = sorted(self.stop_ids | tokens_named(self.tokenizer, request.stop))
        found = server.sample(request, name, salt, seed, stop_ids, self.vocabulary, seconds)
        return [Completion(ids, logps, reason, (text := decode(self.tokenizer, ids))[:stop_at(text, request.stop)])
                for ids, logps, reason in found]
