"""The answer checker on the labelled corpus, on plain numbers, and on every gold answer of GSM8K and MATH; beside math-verify.

    python benchmarks/verify.py [--corpus ../shared/data/verify/open.jsonl] [--data ../shared/data] [--without_math_verify]

A row is {"kind", "form": "bare" or "completion", "prediction", "reference", "label"} and "contested": true where graders
disagree; contested rows are run for crashes and time, and not scored. Needs `pip install math-verify` for the comparison,
which runs in a process that is killed when a row takes over 10 s. Times are of one process on a machine that may be busy:
the ratio is what counts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common.verify.answers import answers_equal, is_correct, reference_answer
from common.verify.rewards import Worker

ROOT = Path(__file__).parents[1]
Judge = Callable[[str, str], bool | None]
HOSTILE = {"hack", "bomb", "code", "unicode", "number_form", "precision", "long"}  # kinds; the others are usual answers


def completion_of(row: dict[str, Any]) -> str:
    return row["prediction"] if row["form"] == "completion" else f"The final answer is $\\boxed{{{row['prediction']}}}$."


def run_rows(rows: list[dict[str, Any]], judge: Judge) -> list[tuple[bool | None, float]]:
    """(verdict, seconds) of each row; None for a crash, or where it had to be killed."""
    results = []
    for row in rows:
        completion = completion_of(row)
        began = time.perf_counter()
        verdict = judge(completion, row["reference"])
        results.append((verdict, time.perf_counter() - began))
    return results


class MathVerify:
    """math-verify in a process of its own; `times` are what it took inside of that process and the pipe."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.worker = Worker(ROOT / "common" / "second_opinion.py", "math_verify", seconds)
        answer = self.worker.answer()
        if answer is None or "error" in answer:
            sys.exit(f"math-verify does not load: {answer}")
        self(r"\boxed{1}", "1")  # imports it

    def __call__(self, completion: str, reference: str) -> bool | None:
        problem = {"id": "", "prompt": "", "answer": reference_answer(reference)}
        answer = self.worker.call({"completion": completion, "problem": problem})
        return None if answer is None or "error" in answer else answer["score"] > 0


def table(rows: list[dict[str, Any]], verdicts: dict[str, list[tuple[bool | None, float]]]) -> None:
    """Per kind: scored rows, false positives and negatives, the slowest row, of each checker."""
    heads = " | ".join(f"{name}: FP | FN | crash or > 10 s | slowest, ms" for name in verdicts)
    print(f"| kind | wrong | right | contested | {heads} |\n|---|---|---|---" + "|---|---|---|---" * len(verdicts) + "|")
    kinds = dict.fromkeys(row["kind"] for row in rows)
    for kind in [*kinds, "all"]:
        chosen = [i for i, row in enumerate(rows) if kind in ("all", row["kind"])]
        scored = [i for i in chosen if not rows[i].get("contested")]
        wrong, right = ([i for i in scored if rows[i]["label"] is label] for label in (False, True))
        cells = []
        for results in verdicts.values():
            false_positives = sum(results[i][0] is True for i in wrong)
            false_negatives = sum(results[i][0] is not True for i in right)
            crashes, slowest = sum(results[i][0] is None for i in chosen), max(results[i][1] for i in chosen)
            shares = (f" ({false_positives / len(wrong):.2%})", f" ({false_negatives / len(right):.2%})") if kind == "all" else ("", "")
            cells += [f"{false_positives}{shares[0]}", f"{false_negatives}{shares[1]}", str(crashes), f"{1000 * slowest:.1f}"]
        print(f"| {kind} | {len(wrong)} | {len(right)} | {len(chosen) - len(scored)} | {' | '.join(cells)} |")


def speed(judge: Judge, pairs: list[tuple[str, str]], seconds: float) -> float:
    """Checks a second, over all pairs once and then until the time is up."""
    began, done = time.perf_counter(), 0
    while done == 0 or time.perf_counter() - began < seconds:
        for completion, reference in pairs:
            judge(completion, reference)
        done += len(pairs)
    return done / (time.perf_counter() - began)


def numbers(count: int) -> list[tuple[str, str]]:
    """Plain numeric answers, each different, half of them wrong."""
    rng = random.Random(0)
    answers = [rng.choice([f"{n}", f"{n:,}", f"-{n}", f"{n}.5", f"{n}.00"]) for n in rng.sample(range(10**6), count)]
    return [(f"\\boxed{{{a}}}", a.replace(",", "") if i % 2 else str(i)) for i, a in enumerate(answers)]


def gold(folder: Path) -> None:
    """Every gold solution against itself, and against another problem's answer."""
    for name in ("gsm8k/train", "gsm8k/test", "math/train", "math/test"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        solutions = [row.get("solution") or row["answer"] for row in rows]
        has_answer = [solution for solution in solutions if reference_answer(solution) != solution.strip()]
        itself = sum(is_correct(solution, solution) for solution in has_answer)
        others = has_answer[1:] + has_answer[:1]
        answers = ((reference_answer(a), reference_answer(b)) for a, b in zip(has_answer, others, strict=True))
        equal = [pair for pair in answers if answers_equal(*pair)]
        differently = Counter(pair for pair in equal if pair[0] != pair[1])
        told = ", ".join(f"{a} = {b}" for a, b in differently) or "none"
        print(f"| {name} | {len(solutions)} | {len(solutions) - len(has_answer)} | {itself} | {len(equal)} | {told} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=ROOT.parent / "shared" / "data" / "verify" / "open.jsonl")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--without_math_verify", action="store_true")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.corpus.read_text(encoding="utf-8").splitlines()]
    judges: dict[str, Judge] = {"vinery": is_correct}
    if not arguments.without_math_verify:
        judges["math-verify"] = MathVerify()
    verdicts = {name: run_rows(rows, judge) for name, judge in judges.items()}
    table(rows, verdicts)
    canary = [path for path in (Path("pwned_canary"), ROOT / "pwned_canary", ROOT / "common" / "pwned_canary") if path.exists()]
    print(f"\nfiles that executed answers left behind: {', '.join(map(str, canary)) or 'none'}")

    usual = [i for i, row in enumerate(rows) if row["kind"] not in HOSTILE]
    pairs = [(completion_of(rows[i]), rows[i]["reference"]) for i in usual]
    print("\n| checks a second, one process | plain numbers | usual rows |\n|---|---|---|")
    plain = speed(is_correct, numbers(200_000), 0)
    print(f"| vinery, first time each text is seen | {plain:,.0f} | {len(usual) / sum(verdicts['vinery'][i][1] for i in usual):,.0f} |")
    print(f"| vinery, again and again | | {speed(is_correct, pairs, 2):,.0f} |")
    if "math-verify" in judges:
        theirs = speed(judges["math-verify"], numbers(2000), 0)
        print(f"| math-verify, first time | {theirs:,.0f} | {len(usual) / sum(verdicts['math-verify'][i][1] for i in usual):,.0f} |")
        print(f"\nplain numbers: {plain / theirs:,.0f} times math-verify")

    print("\n| gold solutions | rows | without an answer | right against themselves | same as the next | of these written differently |")
    print("|---|---|---|---|---|---|")
    gold(arguments.data)
    assert answers_equal("1/2", "0.5")


if __name__ == "__main__":
    main()
