"""The process of a custom reward: reads calls as lines of JSON, answers each with a line. Started by `common/rewards.py`.

Imports nothing of the project, so that it starts in milliseconds and can be killed at any time.
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
    """Calls function `name` of the file `path` until the input ends. What the function prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        spec = importlib.util.spec_from_file_location("reward_file", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        function = getattr(module, name)
        answer = {"ready": callable(function)} if callable(function) else {"error": f"{name} is not a function"}
    except BaseException as error:  # whatever the file does on import
        answer = {"error": _told(error)}
    print(json.dumps(answer), file=answers, flush=True)
    nowhere = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    for line in sys.stdin if "ready" in answer else ():
        call = json.loads(line)
        # the caller kills a slow call; if the caller itself is gone, the process ends by this
        faulthandler.dump_traceback_later(2 * seconds, exit=True, file=nowhere)
        try:
            score = float(function(call["completion"], SimpleNamespace(**call["problem"])))
            answer = {"score": score} if math.isfinite(score) else {"error": f"it returned {score}"}
        except BaseException as error:
            answer = {"error": _told(error)}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), file=answers, flush=True)


def _told(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}, line {place.lineno})"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
