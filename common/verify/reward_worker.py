"""The process of a custom reward, started by rewards.py. It reads calls as lines of JSON and answers each with one line.

It imports nothing of the project. So it starts in milliseconds and can be killed at any time. The reward file may import what it likes:
files of its own folder come first, then installed packages, then the project (`from common.verify import is_correct`).
"""
from __future__ import annotations

import asyncio
import faulthandler
import importlib.util
import inspect
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

AT_ONCE = 16  # calls of an `async def` function that run at the same time in one process
LARGEST = 3e38  # rewards become float32
NOWHERE = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)


class Completion(str):
    """The text of a completion. `tokens`: its length in tokens. `finish_reason`: "stop", or "length" if it was cut off."""

    tokens: int
    finish_reason: str


def main(path: str, name: str, seconds: float) -> None:
    """Loads the function `name` from the file `path`, then runs calls until the input ends. The function's prints go to stderr.

    A call is {"id": n, "calls": [{"completion", "tokens", "finish_reason", "problem"}, ...]}. Its answer is {"id": n, "answers": [...]}
    with {"score": x}, {"error": text} or {"timeout": true} for each. `seconds`: the time limit of a call.
    """
    calls, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a child process of the function must not read our calls
    os.dup2(2, 1)
    sys.path[0] = os.path.dirname(os.path.abspath(path))  # in place of this file's folder
    sys.path.append(str(Path(__file__).parents[2]))

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        spec = importlib.util.spec_from_file_location("reward_file", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["reward_file"] = module  # dataclasses and pickle look a module up by its name
        spec.loader.exec_module(module)
        function = getattr(module, name)
        ready = {"ready": True, **kind_of(function)} if callable(function) else {"error": f"{name} is not a function"}
    except BaseException as error:  # the file is the user's and may raise anything, SystemExit included
        ready = {"error": describe(error)}
    reply(ready)
    if ready.get("ready") and ready["at_once"] > 1:
        asyncio.run(serve_concurrently(function, calls, reply, seconds))
    elif ready.get("ready"):
        serve(function, ready["batch"], calls, reply, seconds)


def kind_of(function: Callable[..., Any]) -> dict[str, Any]:
    """{"batch": the function takes all completions of a call as lists, "at_once": number of calls that may run at the same time}."""
    try:
        batch = list(inspect.signature(function).parameters)[:2] == ["completions", "problems"]
    except (TypeError, ValueError):  # some functions of C have no signature
        batch = False
    return {"batch": batch, "at_once": AT_ONCE if inspect.iscoroutinefunction(function) and not batch else 1}


# ---- calls ----------------------------------------------------------------------------------------------------------

def serve(function: Callable[..., Any], batch: bool, calls: TextIO, reply: Callable[[dict[str, Any]], None], seconds: float) -> None:
    """Runs the calls one after the other, for ever. The process ends when the caller has gone."""
    me, waiting = os.getpid(), queue.SimpleQueue()
    threading.Thread(target=read_calls, args=(calls, waiting.put), daemon=True).start()
    while True:
        job = waiting.get()
        start_timer(seconds)
        try:
            completions, problems = map(list, zip(*map(arguments, job["calls"]), strict=True))
            value = function(completions, problems) if batch else function(completions[0], problems[0])
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
            found = scores_of(value, len(completions)) if batch else [score_of(value)]
        except BaseException as error:  # the function is the user's and may raise anything
            end_child(me)
            found = [{"error": describe(error)}] * len(job["calls"])
        faulthandler.cancel_dump_traceback_later()
        reply({"id": job["id"], "answers": found})


async def serve_concurrently(function: Callable[..., Any], calls: TextIO, reply: Callable[[dict[str, Any]], None], seconds: float) -> None:
    """As `serve`, for an `async def` function: a call begins as soon as it is read. The caller limits how many there are at once."""
    me, loop, waiting, running = os.getpid(), asyncio.get_running_loop(), asyncio.Queue(), set()
    loop.set_default_executor(ThreadPoolExecutor(AT_ONCE))  # for asyncio.to_thread; by default it has a few threads only
    threading.Thread(target=read_calls, args=(calls, lambda job: loop.call_soon_threadsafe(waiting.put_nowait, job)), daemon=True).start()

    async def run(job: dict[str, Any]) -> None:
        limit = None
        try:
            async with asyncio.timeout(seconds) as limit:
                answer = score_of(await function(*arguments(job["calls"][0])))
        except BaseException as error:  # as above
            end_child(me)
            answer = {"timeout": True} if limit is not None and limit.expired() else {"error": describe(error)}
        reply({"id": job["id"], "answers": [answer]})

    while True:
        job = await waiting.get()
        start_timer(seconds)
        task = asyncio.create_task(run(job))
        running.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(running.discard)
        task.add_done_callback(lambda _: None if running else faulthandler.cancel_dump_traceback_later())


def end_child(process: int) -> None:
    """Ends a process that the function forked and that came back here with an error: only `process` may answer calls."""
    if os.getpid() != process:
        os._exit(1)


def read_calls(calls: TextIO, put: Callable[[dict[str, Any]], Any]) -> None:
    """Hands on each call. At the end of the input the caller has gone: kills this process and the processes that it started."""
    for line in calls:
        put(json.loads(line))
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def start_timer(seconds: float) -> None:
    """Ends the process after twice the time limit, if the caller has gone and the function never lets the other thread run."""
    faulthandler.dump_traceback_later(2 * seconds + 10, exit=True, file=NOWHERE)


def arguments(call: dict[str, Any]) -> tuple[Completion, SimpleNamespace]:
    """(completion, problem), as the function gets them."""
    completion = Completion(call["completion"])
    completion.tokens, completion.finish_reason = call["tokens"], call["finish_reason"]
    return completion, SimpleNamespace(**call["problem"])


def score_of(value: Any) -> dict[str, Any]:
    """The answer to a call that returned `value`. Raises what float() raises."""
    score = float(value)
    return {"score": score} if abs(score) <= LARGEST else {"error": f"it returned {score}"}  # NaN is not <= anything


def scores_of(values: Iterable[Any], count: int) -> list[dict[str, Any]]:
    """The answers to a call that returned the list `values` for `count` completions. Raises ValueError if the length is another."""
    values = [] if isinstance(values, (str, bytes)) else list(values)
    if len(values) != count:
        raise ValueError(f"it returned {len(values)} rewards for {count} completions")
    answers = []
    for value in values:
        try:
            answers.append(score_of(value))
        except (TypeError, ValueError, OverflowError) as error:  # None, for example, of one completion; the others count
            answers.append({"error": describe(error)})
    return answers


def describe(error: BaseException) -> str:
    """The type, the message and the place of an error, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({os.path.basename(place.filename)}, line {place.lineno})"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
