"""The answer checker on a labelled corpus, on plain numbers, on votes, and on the gold answers of GSM8K and MATH, beside math-verify.

    python benchmarks/verify.py [--corpus ../shared/data/verify/open.jsonl] [--data ../shared/data]

A row of the corpus is {"kind", "form": "bare" or "completion", "prediction", "reference", "label"}. A row with "contested": true is one on
which graders disagree: the script runs it for crashes and time, and does not score it. Needs `pip install math-verify`, which runs in a
process that is killed when a row takes more than 10 s. Its times in the table of kinds are those of the clock. All other times are those of
the processor.
"""

from __future__ import annotations

import gc
import inspect
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from measure import ROOT, parser, read_rows, show, table

from common.console import fail
from common.verify import answers_equal, is_correct
from common.verify.extract import reference_answer
from common.verify.rewards import Worker
from common.verify.second_opinion import math_verify
from common.verify.voting import groups_of_equal_answers

Judge = Callable[[str, str], bool | None]
Results = list[tuple[bool | None, float]]  # verdict (None: a crash, or no answer in time) and seconds of each row
HOSTILE = {"hack", "bomb", "code", "unicode", "number_form", "precision", "long"}  # kinds; rows of the other kinds are usual answers


def completion_of(row: dict[str, Any]) -> str:
    """The completion that gives a row's answer."""
    return row["prediction"] if row["form"] == "completion" else f"The final answer is $\\boxed{{{row['prediction']}}}$."


def run_rows(rows: list[dict[str, Any]], judge: Judge, clock: Callable[[], float]) -> Results:
    """The verdict on each row, and its seconds."""
    results = []
    for row in rows:
        completion = completion_of(row)
        began = clock()
        verdict = judge(completion, row["reference"])
        results.append((verdict, clock() - began))
    return results


class MathVerify:
    """math-verify in a process of its own, which is killed when a call takes more than 10 s."""

    def __init__(self) -> None:
        self.worker = Worker(inspect.getfile(math_verify), "math_verify", 10.0)
        self.worker.loaded()
        if self(r"\boxed{1}", "1") is not True:
            fail("math-verify does not work: pip install math-verify")

    def __call__(self, completion: str, reference: str) -> bool | None:
        problem = {"id": "", "prompt": "", "answer": reference_answer(reference)}
        answer = self.worker.run([[{"completion": completion, "problem": problem, "tokens": 0, "finish_reason": "stop"}]])[0][0]
        return answer["score"] > 0 if "score" in answer else None


def math_verify_here(completion: str, reference: str) -> bool:
    """math-verify in this process, without a limit: for usual answers only."""
    return math_verify(completion, SimpleNamespace(answer=reference_answer(reference))) > 0


def corpus_table(rows: list[dict[str, Any]], verdicts: dict[str, Results]) -> str:
    """The scored rows of each kind, and the false positives and negatives, crashes and slowest row of each checker."""
    lines = []
    for kind in [*dict.fromkeys(row["kind"] for row in rows), "all"]:
        chosen = [i for i, row in enumerate(rows) if kind in ("all", row["kind"])]
        scored = [i for i in chosen if not rows[i].get("contested")]
        wrong, right = ([i for i in scored if rows[i]["label"] is label] for label in (False, True))
        cells = [kind, str(len(wrong)), str(len(right)), str(len(chosen) - len(scored))]
        for results in verdicts.values():
            accepted = sum(results[i][0] is True for i in wrong)
            refused = sum(results[i][0] is not True for i in right)
            errors = [str(accepted), str(refused)]
            if kind == "all":
                errors = [f"{accepted} ({accepted / len(wrong):.2%})", f"{refused} ({refused / len(right):.2%})"]
            crashes, slowest = sum(results[i][0] is None for i in chosen), max(results[i][1] for i in chosen)
            cells += [*errors, str(crashes), f"{1000 * slowest:.1f}"]
        lines.append(cells)
    heads = [head for name in verdicts for head in (f"{name}: FP", "FN", "crash or > 10 s", "slowest, ms")]
    return table(["kind", "wrong", "right", "contested", *heads], lines)


def speed(judge: Judge, pairs: list[tuple[str, str]], seconds: float) -> float:
    """Checks in a second of the processor, over all pairs again and again until `seconds` have passed, at least once."""
    began, done = time.process_time(), 0
    while done == 0 or time.process_time() - began < seconds:
        for completion, reference in pairs:
            judge(completion, reference)
        done += len(pairs)
    return done / (time.process_time() - began)


def numbers(count: int) -> list[tuple[str, str]]:
    """Plain numeric answers, each different, half of them wrong."""
    rng = random.Random(0)
    answers = [rng.choice([f"{n}", f"{n:,}", f"-{n}", f"{n}.5", f"{n}.00"]) for n in rng.sample(range(10**6), count)]
    return [(f"\\boxed{{{a}}}", a.replace(",", "") if i % 2 else str(i)) for i, a in enumerate(answers)]


def scattered_samples(problems: int, samples: int) -> list[list[str]]:
    """For each problem, sampled answers that seldom agree: numbers, fractions, roots and expressions, each written in several ways."""
    rng = random.Random(0)

    def answer() -> str:
        a, b, c = rng.randrange(1, 40), rng.randrange(2, 40), rng.randrange(1, 10)
        return rng.choice([f"{a * b}", f"{a}/{b}",
                           rf"\frac{{{a}}}{{{b}}}", rf"{c}+\sqrt{{{b}}}", rf"\sqrt{{{b}}} + {c}", f"{a}x+{c}", f"({a}, {b})",
                           rf"\frac{{{a}\pi}}{{{b}}}", f"x = {a}", rf"{a}\text{{ cm}}", f"2^{{{b}}}-{c}", rf"{c}, {a}"])

    return [[answer() for _ in range(samples)] for _ in range(problems)]


def votes(problems: int = 500, samples: int = 64) -> str:
    """Seconds of the majority votes over scattered answers, and how many different answers there are."""
    rows = scattered_samples(problems, samples)
    began = time.process_time()
    groups = [len(groups_of_equal_answers(row)) for row in rows]
    seconds = time.process_time() - began
    return f"maj@{samples} over {problems} problems, {statistics.fmean(groups):.0f} different answers each: {seconds:.1f} s"


def gold_table(folder: Path) -> str:
    """Every gold solution compared with itself, and with the answer of the next problem."""
    lines = []
    for name in ("gsm8k/train", "gsm8k/test", "math/train", "math/test"):
        solutions = [row.get("solution") or row["answer"] for row in read_rows(folder / f"{name}.jsonl")]
        answered = [solution for solution in solutions if reference_answer(solution) != solution.strip()]
        itself = sum(is_correct(solution, solution) for solution in answered)
        answers = [reference_answer(solution) for solution in answered]
        equal = [pair for pair in zip(answers, answers[1:] + answers[:1], strict=True) if answers_equal(*pair)]
        differently = ", ".join(f"`{a}` = `{b}`" for a, b in Counter(equal) if a != b) or "none"
        lines.append([name, str(len(solutions)), str(len(solutions) - len(answered)), str(itself), str(len(equal)), differently])
    header = ["gold solutions", "rows", "without an answer", "right against themselves", "same as the next", "of these written differently"]
    return table(header, lines)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--corpus", type=Path, default=ROOT.parent / "shared" / "data" / "verify" / "open.jsonl")
    options.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = options.parse_args()
    rows = read_rows(arguments.corpus)
    theirs = MathVerify()
    gc.freeze()  # else a row that makes Python collect garbage pays for going through all objects of PyTorch: 0.1 s
    verdicts = {"vinery": run_rows(rows, is_correct, time.process_time), "math-verify": run_rows(rows, theirs, time.perf_counter)}
    show(corpus_table(rows, verdicts))
    canaries = [path for path in (Path("pwned_canary"), *ROOT.rglob("pwned_canary")) if path.exists()]
    show(f"\nfiles that executed answers left behind: {', '.join(map(str, canaries)) or 'none'}\n")

    usual = [i for i, row in enumerate(rows) if row["kind"] not in HOSTILE]
    pairs = [(completion_of(rows[i]), rows[i]["reference"]) for i in usual]
    first = {"vinery": len(usual) / sum(verdicts["vinery"][i][1] for i in usual), "math-verify": speed(math_verify_here, pairs[::8], 0)}
    plain = {"vinery": speed(is_correct, numbers(200_000), 0), "math-verify": speed(math_verify_here, numbers(2000), 0)}
    lines = [
        ["vinery, first time each text is seen", f"{plain['vinery']:,.0f}", f"{first['vinery']:,.0f}"],
        ["vinery, again and again", "", f"{speed(is_correct, pairs, 2):,.0f}"],
        ["math-verify, first time", f"{plain['math-verify']:,.0f}", f"{first['math-verify']:,.0f}"],
    ]
    show(table(["checks a second, one process", "plain numbers", "usual rows"], lines))
    show(f"\nplain numbers: {plain['vinery'] / plain['math-verify']:,.0f} times math-verify\n")
    show(votes() + "\n")
    show(gold_table(arguments.data))


if __name__ == "__main__":
    main()
