"""The process of a custom reward, started by rewards.py. It reads calls as lines of JSON and answers each with one line.

It imports nothing of the project. So it starts in milliseconds and can be killed at any time. The reward file may import what it likes:
files of its own folder come first, then installed packages, then the project (`from common.verify import is_correct`).

There are two processes. The worker runs the function. The guard started the worker and only waits: when the worker or the run ends, it
ends every process that the function started.
"""
from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import inspect
import itertools
import json
import os
import queue
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

AT_ONCE = 16  # calls of an `async def` function that run at the same time in one process
LARGEST = 3e38  # rewards become float32
LONGEST_ERROR = 300  # characters of an error's message that are passed on
CALLS, ANSWERS = 100, 101  # descriptors of the channel to the run. High, as programs that guess a number guess low ones
SWEEP_SECONDS = 3.0  # the guard ends processes for at most so long: a program may start new ones as fast
SET_PARENT_DEATH_SIGNAL, SET_CHILD_SUBREAPER = 1, 36  # numbers of Linux's prctl


class Completion(str):
    """The text of a completion. `tokens`: its length in tokens. `finish_reason`: "stop", or "length" if it was cut off."""

    tokens: int
    finish_reason: str


def main(path: str, name: str, seconds: float) -> None:
    """Starts the worker. It loads the function `name` from the file `path`, then runs calls until the input ends.

    A call is {"id": text, "calls": [{"completion", "tokens", "finish_reason", "problem"}, ...]}. Its answer is {"id": text, "answers":
    [...]} with {"score": x}, {"error": text} or {"timeout": true} for each. `seconds`: the time limit of a call. The first line of the
    input is {"id": text}. Its answer comes after loading: {"id": text, "batch", "at_once"}, or {"id": text, "error": text}.
    """
    run = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if the run ignores it, so would the guard, and it could not wait
    take_signals(lambda *_: None)  # a scheduler may send the run's signals to all its processes
    prctl(SET_CHILD_SUBREAPER, 1)  # what the function leaves behind becomes a child of the guard
    # Programs that the function starts get neither the channel nor our input. Its prints go to stderr.
    os.dup2(0, CALLS, inheritable=False)
    os.dup2(1, ANSWERS, inheritable=False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    if worker := os.fork():
        os.close(ANSWERS)
        guard(worker, run)
    prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    os.setsid()  # a process group of its own, which the guard can kill at once
    os.register_at_fork(after_in_child=lambda: take_signals(signal.SIG_DFL))  # but what the function starts gets its signals
    os.register_at_fork(after_in_child=lambda: os.closerange(CALLS, ANSWERS + 1))
    limit_memory()
    sys.stdout.reconfigure(line_buffering=True)  # what is printed before a crash is shown too
    folder = os.path.dirname(os.path.abspath(path))  # in place of this file's folder, which has a numbers.py that would hide Python's own
    sys.path[:1] = [] if folder == os.path.dirname(os.path.abspath(__file__)) else [folder]
    sys.path.append(str(Path(__file__).parents[2]))
    me, calls = os.getpid(), os.fdopen(CALLS, closefd=False)

    def reply(answer: dict[str, Any]) -> None:
        if os.getpid() != me:  # a process that the function forked and that came back here: only the worker may answer
            os._exit(1)
        with contextlib.suppress(Exception):  # the function may have replaced it
            sys.stdout.flush()
        line = json.dumps(answer).encode() + b"\n"
        try:
            while line:
                line = line[os.write(ANSWERS, line):]
        except OSError:
            os.write(2, b"the function has closed the channel to the run\n")
            os._exit(1)

    first = json.loads(next(calls))["id"]
    try:
        module = load(path)
        function = getattr(module, name, None)
        ready = kind_of(function) if callable(function) else {"error": f"it has no function {name}, but {functions_of(module)}"}
    except BaseException as error:  # the file is the user's and may raise anything, SystemExit included
        ready = {"error": describe(error)}
    reply({"id": first, **ready})
    if "error" not in ready and ready["at_once"] > 1:
        asyncio.run(serve_concurrently(function, calls, reply, seconds))
    elif "error" not in ready:
        serve(function, ready["batch"], calls, reply)


def load(path: str) -> ModuleType:
    """The module of a reward file. It is registered before it runs: dataclasses, pickle and pools of processes look it up by its name."""
    name = Path(path).stem  # by this name a process that was started afresh can import it
    if not name.isidentifier() or name in sys.stdlib_module_names or name in sys.modules:
        name = "reward_file"
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kind_of(function: Callable[..., Any]) -> dict[str, Any]:
    """{"batch": the function takes all completions of a call as lists, "at_once": number of calls that may run at the same time}.

    {"error": text, "form": True} if it cannot be called with two arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions of C have no signature
        signature = inspect.Signature()
    else:
        try:
            signature.bind(None, None)
        except TypeError as error:
            return {"error": f"it takes {signature}, and is called with (completion, problem): {error}", "form": True}
    batch = list(signature.parameters)[:2] == ["completions", "problems"]
    return {"batch": batch, "at_once": AT_ONCE if inspect.iscoroutinefunction(function) and not batch else 1}


def functions_of(module: ModuleType) -> str:
    """The names of the functions that a reward file has itself, in words."""
    names = [name for name, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]
    return f"{', '.join(names[:20])}{', ...' * (len(names) > 20)}" if names else "none at all"


# ---- processes and limits ---------------------------------------------------------------------------------------------

def take_signals(handler: Any) -> None:
    """Sets the handler of the signals that ask a run to stop. Programs that are started have the default handlers again."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        signal.signal(getattr(signal, name), handler)


def guard(worker: int, run: int) -> None:
    """Waits until the worker ends, or the run ends or closes the channel. Then ends the worker, all that it started, and this process."""
    def watch_run() -> None:
        hung_up = select.poll()
        hung_up.register(CALLS, 0)  # no event but the end of the input: the run wants the end, or has ended
        while os.getppid() == run and not hung_up.poll(1000):
            pass
        sweep(worker, 0)

    threading.Thread(target=watch_run, daemon=True).start()
    while True:
        process, status = os.wait()
        if process == worker:
            code = os.waitstatus_to_exitcode(status)
            sweep(worker, code if code >= 0 else 128 - code)  # as a shell tells signals


def sweep(worker: int, code: int) -> None:
    """Kills the worker's process group and, on Linux, all other processes below this one. Then ends this one with `code`."""
    last = time.monotonic() + SWEEP_SECONDS
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended; macOS says "permission" for that
        os.killpg(worker, signal.SIGKILL)
    while (found := descendants()) and time.monotonic() < last:
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(code)


def descendants() -> set[int]:
    """The processes below this one, at any depth. Empty where there is no /proc."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc") if sys.platform == "linux" else []):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    found: set[int] = set()
    new = {os.getpid()}
    while new:
        new = {process for process, parent in parents.items() if parent in new} - found
        found |= new
    return found


def prctl(option: int, value: int) -> None:
    """Sets an attribute of this process. Does nothing on other systems than Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def limit_memory() -> None:
    """Limits the memory of the worker, and of each process that it starts, to half of the machine's.

    So an endless list is a MemoryError of its call, and the run keeps the other half. If several processes together fill the machine,
    Linux ends these first. The limit is on memory that can be written. Libraries reserve far more addresses than they ever use.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        with contextlib.suppress(OSError, ValueError):  # there is none, or it says "max"
            machine = min(machine, int(Path(path).read_text()))
    with contextlib.suppress(OSError, ValueError):  # the limit is lower already
        resource.setrlimit(resource.RLIMIT_DATA, (machine // 2, machine // 2))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash at each call would fill the disk
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


# ---- calls ----------------------------------------------------------------------------------------------------------

def serve(function: Callable[..., Any], batch: bool, calls: TextIO, reply: Callable[[dict[str, Any]], None]) -> None:
    """Runs the calls one after the other, for ever. The process ends when the caller has gone."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=read_calls, args=(calls, waiting.put), daemon=True).start()
    while True:
        job = waiting.get()
        try:
            completions, problems = map(list, zip(*map(arguments, job["calls"]), strict=True))
            value = function(completions, problems) if batch else function(completions[0], problems[0])
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
            found = scores_of(value, len(completions)) if batch else [score_of(value)]
        except BaseException as error:  # the function is the user's and may raise anything
            found = [{"error": describe(error)}] * len(job["calls"])
        reply({"id": job["id"], "answers": found})


async def serve_concurrently(function: Callable[..., Any], calls: TextIO, reply: Callable[[dict[str, Any]], None], seconds: float) -> None:
    """As `serve`, for an `async def` function: a call begins as soon as it is read. The caller limits how many there are at once."""
    loop, waiting, running = asyncio.get_running_loop(), asyncio.Queue(), set()
    loop.time = resting_clock()
    running.add(asyncio.create_task(tick()))
    loop.set_default_executor(ThreadPoolExecutor(AT_ONCE))  # for asyncio.to_thread; by default it has a few threads only
    threading.Thread(target=read_calls, args=(calls, lambda job: loop.call_soon_threadsafe(waiting.put_nowait, job)), daemon=True).start()

    async def run(job: dict[str, Any]) -> None:
        limit = None
        try:
            async with asyncio.timeout(seconds) as limit:
                answer = score_of(await function(*arguments(job["calls"][0])))
        except BaseException as error:  # as above
            answer = {"timeout": True} if limit is not None and limit.expired() else {"error": describe(error)}
        reply({"id": job["id"], "answers": [answer]})

    while True:
        task = asyncio.create_task(run(await waiting.get()))
        running.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(running.discard)


def resting_clock() -> Callable[[], float]:
    """Seconds by a clock that rests while this process is stopped with the whole job. It must be looked at every second."""
    last, stopped = time.monotonic(), 0.0

    def clock() -> float:
        nonlocal last, stopped
        now = time.monotonic()
        stopped += now - last if now - last > 2 else 0.0
        last = now
        return now - stopped

    return clock


async def tick() -> None:
    """Makes the loop look at its clock every second."""
    while True:
        await asyncio.sleep(1)


def read_calls(calls: TextIO, put: Callable[[dict[str, Any]], Any]) -> None:
    """Hands on each call. Ends the process at the end of the input, and if the function read a part of the input itself."""
    with contextlib.suppress(ValueError):
        for line in calls:
            put(json.loads(line))
    os._exit(1)


def arguments(call: dict[str, Any]) -> tuple[Completion, SimpleNamespace]:
    """(completion, problem), as the function gets them."""
    completion = Completion(call["completion"])
    completion.tokens, completion.finish_reason = call["tokens"], call["finish_reason"]
    return completion, SimpleNamespace(**call["problem"])


def score_of(value: Any) -> dict[str, Any]:
    """The answer to a call that returned `value`."""
    try:
        score = float(value.item() if hasattr(value, "item") else value)  # an array or a tensor of one number
    except Exception:  # whatever the value's own conversion raises
        return {"error": f"it returned a value of the type {type(value).__name__[:80]}; a reward is a finite number"}
    return {"score": score} if abs(score) <= LARGEST else {"error": f"it returned {score}; a reward is a finite number"}  # NaN is not <=


def scores_of(values: Iterable[Any], count: int) -> list[dict[str, Any]]:
    """The answers to a call that returned `values` for `count` completions. Raises what reading `values` raises."""
    if isinstance(values, (str, bytes, dict, set)) or not hasattr(values, "__iter__"):
        return [{"error": f"it returned a value of the type {type(values).__name__[:80]}, not a list of {count} rewards"}] * count
    values = list(itertools.islice(values, count + 1))  # one more shows that there are too many
    if len(values) != count:
        found = len(values) if len(values) < count else "more"
        return [{"error": f"it returned {found} rewards for {count} completions"}] * count
    return [score_of(value) for value in values]  # one bad value costs one completion


def describe(error: BaseException) -> str:
    """The type, the message and the place of an error, in one line. A long message is cut."""
    try:
        text = str(error)
    except Exception:
        text = "its message cannot be read"
    message = " ".join(text[:LONGEST_ERROR + 1].split())
    place = traceback.extract_tb(error.__traceback__, limit=-1)[0]
    return (f"{type(error).__name__[:80]}: {message[:LONGEST_ERROR]}{'...' * (len(text) > LONGEST_ERROR)} "
            f"({os.path.basename(place.filename)}, line {place.lineno})")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
