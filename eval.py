"""Evaluates a model on a data set, with or without an adapter. Reports greedy, mean@n, pass@k and maj@k with 95 % intervals.

greedy: share of problems that the greedy completion solves. mean@n: share of n sampled completions that are right. pass@k: chance that
one of k samples is right. maj@k: chance that the most frequent answer of k samples is right. As in training, a completion that was cut
off at the length limit is wrong, whatever it says. An interval says which values another set of such problems could give.
docs/evaluation.md has the flags of published protocols.

    python eval.py                                                                    # tiny model, CPU
    python eval.py --model Qwen/Qwen2.5-1.5B-Instruct --dataset math500 --adapter runs/.../checkpoint-200
"""
from __future__ import annotations

from common.interrupt import Stop, Stopped, end_quietly

end_quietly(__name__)  # a signal during the imports, which take seconds, is no stack trace

import hashlib
import importlib.util
import json
import math
import statistics
from collections.abc import Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from common import parallel
from common.config import CommonConfig, SamplingConfig, flag
from common.console import bar, say
from common.errors import UserError
from common.flags import alone, within
from common.launch import for_programs, parse_command_line, run_script


@dataclass
class Config(SamplingConfig):
    adapter: str | None = flag(None, "model", "Folder of a PEFT LoRA adapter for the model, as checkpoint-N of a run.")
    split: str = flag("test", "data", "Split of the data set; all: every row. Data without a test split: the rows that training holds out.")
    max_problems: int = flag(0, "data", "Number of problems, the same ones every time. 0: all.")
    num_samples: int = flag(16, "completions", "Sampled completions per problem, besides the greedy one. 0: greedy only.")
    k: list[int] | None = flag(None, "completions", "Values of k for pass@k and maj@k. Default: 1, 4, 16, ... and --num_samples.")
    reward: str | None = flag(None, "data", "FILE.py:function that judges, in place of the checker. Right: above 0.5. No maj@k.")
    second_opinion: str = flag("none", "data", "Another checker beside ours: math_verify, or a function like a reward, as FILE.py:NAME.")
    judge: str | None = flag(None, "run", "Result folder whose saved completions are judged anew, without sampling, into a new folder.")
    compare: list[str] | None = flag(None, "run", "Two result folders: prints the paired difference B - A, and ends.", metavar="A B")
    temperature: float = flag(1.0, "completions", "Sampling temperature. The greedy completion has none.")
    top_p: float = flag(1.0, "completions", "Nucleus sampling: share of probability kept. 1: all.")
    vllm_gpu_memory_utilization: float = flag(0.9, "completions", "Share of the GPU's memory that vLLM takes, weights included.")
    output_dir: str | None = flag(None, "run", "Result folder. What it lacks of this evaluation is done. Default: runs/eval-...")

    # flags that may change when an evaluation is continued
    resumable: ClassVar[Set[str]] = frozenset({"k", "max_problems", "num_samples", "second_opinion", "judge", "compare",
                                                   "vllm_gpu_memory_utilization", "vllm_server_base_url", "vllm_server_timeout"})

    def check(self) -> None:
        """Raises UserError for values that cannot work."""
        alone(self, compare=set(), judge={"k", "reward", "second_opinion", "output_dir"})
        if self.temperature == 0:
            raise UserError("--temperature 0: all samples would be the greedy completion; give --num_samples 0, which measures it alone")
        super().check()
        if self.compare is not None and len(self.compare) != 2:
            raise UserError("--compare: give two result folders of eval.py")
        if min(self.num_samples, self.max_problems) < 0:
            raise UserError("--num_samples, --max_problems: give 0 or more")
        if self.second_opinion not in ("none", "math_verify") and ".py:" not in self.second_opinion:
            raise UserError(f"--second_opinion {self.second_opinion}: give none, math_verify, or FILE.py:NAME of a function of your own")
        if self.second_opinion == "math_verify" and not importlib.util.find_spec("math_verify"):
            raise UserError("--second_opinion math_verify: it is not installed; pip install math-verify, or leave the flag out")
        if not self.judge:
            within("k", self.k, self.num_samples, "samples of a problem")


if __name__ == "__main__":  # the flags are read before torch is imported, so that --help and wrong flags are answered at once
    CONFIG = parse_command_line(Config, __file__)

from common.files import write_file
from common.policy.load import load_policy
from common.policy.pretrained import context_length, load_tokenizer
from common.problems.data import load_split
from common.problems.prompts import load_template, make_eval_problems
from common.records import Problem, derive_seed, prompts_of
from common.rollout.choose_engine import choose_engine, connect, make_engine
from common.rollout.rounds import make_requests
from common.run.compare import compare, table
from common.run.evaluation import begin, claim_results, keep
from common.run.folder import CONFIG as CONFIG_FILE
from common.run.folder import append_rows, lines_of
from common.run.judging import PROBLEMS, SUMMARY, about, add_verdicts, checker_version, judge, judge_again, judges_of, read_rows
from common.run.lock import Lock
from common.run.saved_config import read_config, resolve
from common.verify.answers import answer_matches
from common.verify.rewards import CustomReward
from common.verify.voting import groups_of_equal_answers

# ---- the numbers ----------------------------------------------------------------------------------------------------

def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k samples hold a correct one, if they are drawn from n samples of which c are correct.

    It is 1 - C(n - c, k) / C(n, k), an unbiased estimate of pass@k (arXiv 2107.03374, section 2.1). Raises ValueError if k > n.
    Example: n 10, c 3, k 5 -> 0.916667.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} correct among {n} samples does not exist")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def majority_vote(answers: list[str | None]) -> str | None:
    """The most frequent answer. It is None only if all answers are None. Answers that `answers_equal` finds equal vote together.

    In a tie the answer that comes first wins. Example: ["3", "0.5", None, "1/2"] -> "0.5".
    """
    groups = groups_of_equal_answers(answers)
    return max(groups, key=len)[0] if groups else None  # of equal groups, max takes the first


def interval(scores: list[float], draws: int = 1) -> dict[str, float]:
    """{"value", "low", "high"}: the mean of the scores, and its 95 % interval over problems.

    scores: one per problem, in [0, 1]. draws: number of samples from which a score was computed.
    This is Wilson's score interval, with an effective number of problems n p (1 - p) / s^2 in place of n. Here p is the mean and s^2 the
    variance of the scores. The effective number is about n if every score is 0 or 1. It is larger if scores are fractions that vary
    less, and at most n x draws. Few scores can miss the true spread by chance. So s^2 is computed as if there were two more problems
    with the variance p (1 - p). If no problem is solved, the interval is still wider than 0; mean +- 2 standard errors is not.
    Example: 100 scores of 0 -> value 0, low 0, high 0.037.
    """
    n, p = len(scores), statistics.fmean(scores)
    binary = p * (1 - p)
    variance = (sum((score - p) ** 2 for score in scores) + 2 * binary) / (n + 1)
    effective = min(n * draws, n * binary / variance) if variance > 1e-12 else n
    z2 = statistics.NormalDist().inv_cdf(0.975) ** 2
    middle, width = p + z2 / (2 * effective), math.sqrt(z2 * (binary / effective + z2 / (4 * effective**2)))
    shrink = 1 + z2 / effective
    return {"value": p, "low": max(0.0, min(p, (middle - width) / shrink)), "high": min(1.0, max(p, (middle + width) / shrink))}


def majority_at_k(row: dict[str, Any], k: int) -> float:
    """The share of correct majority votes, where the n samples of a row are cut into n // k groups of k.

    A sample that was cut off at the length limit has no vote. row: a line of problems.jsonl.
    """
    answers = [sample["answer"] if sample["finish_reason"] == "stop" else None for sample in row["samples"]]
    votes = [majority_vote(answers[i:i + k]) for i in range(0, len(answers) - k + 1, k)]
    return statistics.fmean(vote is not None and answer_matches(vote, row["reference"]) for vote in votes)


def summarise(rows: list[dict[str, Any]], k: list[int], left_out: int) -> dict[str, Any]:
    """The content of summary.json. rows: the lines of problems.jsonl. left_out: number of rows that could not be used."""
    summary: dict[str, Any] = {"greedy": interval([float(row["greedy"]["correct"]) for row in rows])}
    if rows[0]["samples"]:
        summary |= sample_scores(rows, k)
    if "second_opinion" in rows[0]["greedy"]:
        summary |= second_opinion_scores(rows)
    completions = [completion for row in rows for completion in counted(row)]
    if "reward" in completions[0]:
        summary["reward"] = statistics.fmean(completion["reward"] for completion in completions)
    return summary | {"truncated": statistics.fmean(c["finish_reason"] == "length" for c in completions),
                      "no_answer": statistics.fmean(c["answer"] is None for c in completions),
                      "mean_length": statistics.fmean(c["tokens"] for c in completions),
                      "problems": len(rows), "samples": len(rows[0]["samples"]), "left_out": left_out}


def counted(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The completions of a row over which shares and lengths are taken: its samples, or without samples the greedy completion."""
    return row["samples"] or [row["greedy"]]


def sample_scores(rows: list[dict[str, Any]], k: list[int]) -> dict[str, Any]:
    """The intervals of "mean", "pass@k" and "maj@k", over the samples of each row."""
    samples = len(rows[0]["samples"])
    correct = [sum(sample["correct"] for sample in row["samples"]) for row in rows]
    return {"mean": interval([c / samples for c in correct], samples),
            **{f"pass@{i}": interval([pass_at_k(samples, c, i) for c in correct], samples) for i in k},
            **{f"maj@{i}": interval([majority_at_k(row, i) for row in rows], samples // i) for i in k if "reward" not in rows[0]["greedy"]}}


def second_opinion_scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """"second_opinion": the interval of the share that the other checker calls right. "disagree": share with different verdicts."""
    shares = [statistics.fmean(completion["second_opinion"] for completion in counted(row)) for row in rows]
    completions = [completion for row in rows for completion in counted(row)]
    return {"second_opinion": interval(shares, len(counted(rows[0]))),
            "disagree": statistics.fmean(c["second_opinion"] != c["correct"] for c in completions)}


# ---------------------------------------------------------------------------------------------------------------------


def evaluate_model(config: Config) -> dict[str, Any]:
    """The content of summary.json. Samples and verifies all problems, except those that the result folder already has.

    With `--judge` and `--compare` nothing is sampled.
    """
    config.complete()
    if config.compare:
        return compare([Path(folder) for folder in config.compare], Config)
    if config.judge:
        return judge_saved(config, Path(config.judge))
    lock = claim_results(config)  # the result folder, which nothing else writes to (config.output_dir). None: process 0 has it
    rows = load_split(config, config.split)  # everything that can fail without a model comes before the model
    tokenizer, model_config = load_tokenizer(config)
    template = load_template(config, tokenizer)
    config.derive(stop=config.stop or list(template.stop))
    longest = context_length(model_config)
    problems = make_eval_problems(rows, config, template, tokenizer, longest, config.max_problems)
    done = parallel.first(lambda: begin(lock.folder, config, problems), "rows")  # those of problems.jsonl that are already there
    judges = judges_of(config.second_opinion, config.reward)
    if judges:
        add_verdicts(judges, problems[:len(done)], done)
        keep(lock, config, problems, done, lambda: write_file(lock.folder / PROBLEMS, lines_of(done)))
    sample_missing(config, lock, problems, done, judges, (tokenizer, model_config))
    summary = summarise(done, values_of_k(config, done), 0 if config.max_problems else len(rows) - len(problems)) | {
        "checker": checker_version(), "prompt_template": template.name, "prompt_date": config.derived.get("prompt_date"),
        "context": longest, "prompt_sha256": hashlib.sha256(template.render("?").encode("utf-8", "backslashreplace")).hexdigest()[:16]}
    keep(lock, config, problems, done, lambda: write_file(lock.folder / SUMMARY, json.dumps(summary, indent=2) + "\n"))
    say(*table(summary, config), *([f"written to {lock.folder / SUMMARY}"] if lock else []))
    return summary


def sample_missing(config: Config, lock: Lock | None, problems: list[Problem], done: list[dict[str, Any]], judges: dict[str, CustomReward],
                   model: tuple[Any, Any]) -> None:
    """Samples what `done`, the rows of the first problems, lacks: samples of them, and all further problems. model: (tokenizer, config)."""
    # the seed of a problem depends on its place among all problems, so an interrupted evaluation continues with the same samples
    greedy = make_requests(problems, config, "greedy", 0, 1, 0.0)
    sampled = make_requests(problems, config, "samples", 0, config.num_samples, config.temperature)
    for i, row in enumerate(done):
        if have := len(row["samples"]):  # more samples of it have a seed of their own, as in a group that grows
            sampled[i] = replace(sampled[i], n=config.num_samples - have, seed=derive_seed(sampled[i].seed, "more", have))
    begun = len(done)
    waiting = [*(i for i, row in enumerate(done) if len(row["samples"]) < config.num_samples), *range(begun, len(problems))]
    if not waiting:
        return
    say(f"writing {config.output_dir}; after an interruption, the same command with --output_dir {config.output_dir} continues")
    engine = make_engine(config, *model, prompts_of(problems))
    if choose_engine(config)[0] == "transformers":  # vLLM loads the model and the adapter itself
        connect(engine, load_policy(CommonConfig(**{name: getattr(config, name) for name in asdict(SamplingConfig())}), *model))
    each = config.num_samples + 1  # completions of a problem
    size = max(1, engine.chunk // each)  # problems in a part; a part is sampled in one call and then written
    there = sum(1 + len(row["samples"]) for row in done)
    progress = bar(total=len(problems) * each, initial=there, desc="completions", unit="completion", disable=parallel.rank() > 0)
    with Stop("these problems") as stop, progress:
        for start in range(0, len(waiting), size):
            part = waiting[start:start + size]
            new = [i for i in part if i >= begun]
            groups = engine.generate([greedy[i] for i in new] + [sampled[i] for i in part], progress.update)
            firsts = dict(zip(new, groups, strict=False))
            items = [(problems[i], firsts.get(i, group[:1]), group) for i, group in zip(part, groups[len(new):], strict=True)]
            found = parallel.gather([judge(*item) for item in items[parallel.part([1] * len(part))]], "verdicts")
            try:
                add_verdicts(judges, [problems[i] for i in part], found)
            finally:  # also if a judge fails: the completions are kept, and the same command has them judged
                for i, row in zip(part, found, strict=True):
                    done[i:i + 1] = [row if i >= begun else done[i] | {"samples": done[i]["samples"] + row["samples"]}]
                whole = part[0] < begun  # rows that were there have changed
                keep(lock, config, problems, done, lambda whole=whole, rows=found: write_file(lock.folder / PROBLEMS, lines_of(done))
                     if whole else append_rows(lock.folder / PROBLEMS, rows))
            progress.update(sum(1 + len(row["samples"]) for row in done) - progress.n)  # other processes have sampled, too
            progress.set_postfix(problems=len(done), greedy=f"{statistics.fmean(row['greedy']['correct'] for row in done):.3f}")
            number = next(filter(None, parallel.gather([stop.number], "signals")), None)
            if number is not None and start + size < len(waiting):
                raise Stopped(number)  # `run_script` says how to go on


def judge_saved(config: Config, folder: Path) -> dict[str, Any]:
    """The content of summary.json of a saved evaluation, whose completions are judged anew in a new folder."""
    rows = read_rows(folder)
    within("k", config.k, len(rows[0]["samples"]), "samples of a problem")
    saved = resolve(Config, read_config(folder / CONFIG_FILE, Config).flags, {})
    problems: dict[str, Problem] = {}
    if config.reward or ":" in config.second_opinion:  # the function may read the row of the data
        found = load_split(saved, saved.split)
        problems = {row.id: Problem(row.id, "", (), row.answer or "", row.question or "", row.raw) for row in found}
    place = judge_again(folder, rows, config.output_dir, {"second_opinion": config.second_opinion, "reward": config.reward}, problems)
    summary = summarise(rows, values_of_k(config, rows), 0) | {"checker": checker_version()} | about(folder)
    write_file(place / SUMMARY, json.dumps(summary, indent=2) + "\n")
    say(*table(summary, saved), f"written to {place / SUMMARY}")
    return summary


def values_of_k(config: Config, rows: list[dict[str, Any]]) -> list[int]:
    """The values of k of pass@k and maj@k: those of `--k`, or 1, 4, 16, ... and the number of samples n."""
    n = len(rows[0]["samples"])
    return sorted(k for k in set(config.k or [*(4**i for i in range(20) if 4**i <= n), n]) if 1 <= k <= n)


evaluate_model = for_programs(evaluate_model)  # also after an error its folder is given free


if __name__ == "__main__":
    run_script(evaluate_model, CONFIG)
