"""The grade of an LLM judge behind an endpoint that speaks the chat protocol of OpenAI, such as a vLLM server.

JUDGE_URL=http://127.0.0.1:8000/v1/chat/completions JUDGE_MODEL=my-judge \
    python train_grpo.py --reward examples/rewards/judge.py:judge --reward_timeout 60

The function is an `async def`, so up to 16 requests in each process are under way at the same time. JUDGE_KEY is the key of the server, if
it wants one. Variables with other names that look like keys reach a reward only if VINERY_REWARD_ENV names them.
"""

import asyncio
import json
import os
import re
import time
import urllib.error
import urllib.request

URL = os.environ.get("JUDGE_URL", "http://127.0.0.1:8000/v1/chat/completions")
MODEL = os.environ.get("JUDGE_MODEL", "judge")
TRIES = 3  # of one request, with a second or more between them
SECONDS = 15  # for one try. All tries together must fit into --reward_timeout
PROMPT = """Question:
{question}

Reference answer: {answer}

Answer of a student:
{completion}

How good is the answer of the student? Reply with one whole number from 0 to 10, and nothing else."""


async def judge(completion: str, problem) -> float:
    """The judge's grade, from 0 to 1. Raises if there is no grade: the run then counts a failure and uses --reward_failed."""
    prompt = PROMPT.format(question=problem.question, answer=problem.answer, completion=completion)
    return await asyncio.to_thread(grade, prompt)


def grade(prompt: str) -> float:
    """The number in the judge's reply, divided by 10. Raises ValueError if there is none."""
    reply = ask({"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 8})
    found = re.search(r"\d+", reply)
    if found is None:
        raise ValueError(f"no grade in the reply {reply[:80]!r}")
    return min(int(found[0]), 10) / 10


def ask(body: dict) -> str:
    """The text of the judge's reply. Tries again if the server is busy or cannot be reached."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('JUDGE_KEY', 'none')}"}
    request = urllib.request.Request(URL, json.dumps(body).encode(), headers)
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                return json.load(reply)["choices"][0]["message"]["content"]
        except (urllib.error.URLError, TimeoutError) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if refused or not left:  # a wrong key or a wrong model does not change by asking again
                raise
            time.sleep(2.0 ** (TRIES - left - 1))
    raise AssertionError("not reached")
