"""The process of a custom reward, started by rewards.py. It reads calls as lines of JSON and answers each with one line.

It imports nothing of the project. So it starts in milliseconds and can be killed at any time.
"""
from __future__ import annotations

import faulthandler
import importlib.util
import json
import math
import os
import sys
import traceback
from types import SimpleNamespace


def main(path: str, name: str, seconds: float) -> None:
    """Loads the function `name` from the file `path`, then runs calls until the input ends. The function's prints go to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        spec = importlib.util.spec_from_file_location("reward_file", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name)
        answer = {"ready": True} if callable(function) else {"error": f"{name} is not a function"}
    except BaseException as error:  # the file is the user's and may raise anything, SystemExit included
        answer = {"error": _describe(error)}
    print(json.dumps(answer), file=answers, flush=True)
    null_file = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    for line in sys.stdin if "ready" in answer else ():
        call = json.loads(line)
        # the caller kills a slow call; if the caller has gone, this timer ends the process
        faulthandler.dump_traceback_later(2 * seconds, exit=True, file=null_file)
        try:
            score = float(function(call["completion"], SimpleNamespace(**call["problem"])))
            answer = {"score": score} if math.isfinite(score) else {"error": f"it returned {score}"}
        except BaseException as error:  # as above
            answer = {"error": _describe(error)}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), file=answers, flush=True)


def _describe(error: BaseException) -> str:
    """The type, the message and the place of an error, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}, line {place.lineno})"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
