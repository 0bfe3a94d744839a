"""How far PPO's critic and Monte-Carlo estimates are from the true values of states, over the steps of PPO runs.

    python benchmarks/value_error.py --states 120 --choices 30 --plot docs/value_error.svg

States stand before the steps of fresh completions of held-out problems. V* of a state is the mean reward of 256 continuations, sampled as
train_vineppo.py samples them; Monte-Carlo estimates are made from further ones. `constant` is the mean V* of the step's states. Prints
tables, means over the seeds and from the lowest to the highest: mean absolute error against V*, correlation with V*, and how often the
candidate with the highest estimate, of those among five sampled next steps, has the highest V*. A next step that ends the completion is
worth its reward, for every estimator. Flags after -- are train_ppo.py's.

All numbers go to value_error.json in --out, those of single states beside the runs. The same command goes on after an interruption.
"""
from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from curves import AXES, Chart, listed, picture, save
from measure import show
from sweep import ROOT, Parser, sweep
from transformers import PreTrainedTokenizerBase

sys.path.insert(0, str(ROOT))
import train_ppo
from common.console import fail, say
from common.errors import UserError
from common.files import read_file, write_file
from common.launch import parse_config
from common.policy.critic import Critic
from common.policy.load import load_policy
from common.policy.policy import Policy
from common.policy.pretrained import context_length, load_tokenizer
from common.problems.choose import Epochs
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.records import Completion, Problem, Request, derive_seed, make_batch
from common.rollout.choose_engine import make_engine
from common.rollout.engine import Engine
from common.rollout.rounds import make_requests
from common.rollout.text import join, token_offsets
from common.run.checkpoint import load_checkpoint
from common.verify.rewards import Reward, make_reward
from train_vineppo import State, step_starts

# which of a state's continuations go into what: no estimate shares one with V*, or with another estimate
PARTS = {"V*": slice(0, 256), "MC 1": slice(256, 257), "MC 3": slice(257, 260), "MC 9": slice(260, 269)}
CONTINUATIONS = 269
ESTIMATORS = ("critic", "MC 1", "MC 3", "MC 9")
CANDIDATES = 5  # next steps sampled from a state
APART = 0.1  # a choice counts if V* of its best and its worst candidate differ by more


class Rebuilt(NamedTuple):
    """What `train_ppo.train` builds, as far as it is needed to sample and to value."""

    config: train_ppo.Config
    reward: Reward
    tokenizer: PreTrainedTokenizerBase
    held_out: list[Problem]
    engine: Engine
    policy: Policy
    critic: Critic


class Place(NamedTuple):
    """A state, as the place before token `start` of a whole completion."""

    problem: Problem
    completion: Completion
    start: int

    @property
    def state(self) -> State:
        """The problem and the tokens before the place."""
        return State(self.problem, tuple(self.completion.ids[: self.start]))

    @property
    def ends(self) -> bool:
        """Whether nothing is left to choose."""
        return self.start == len(self.completion.ids)


def rebuild(folder: Path) -> Rebuilt:
    """Policy, critic and engine of a run, with the weights that it began with."""
    config = parse_config(train_ppo.Config, ["--config", str(folder / "config.json")], "train_ppo")
    reward = make_reward(config)
    tokenizer, model_config = load_tokenizer(config)
    template = load_template(config, tokenizer)
    config.derive(stop=config.stop or list(template.stop))
    problems, held_out = make_problems(load_rows(config), config, template, tokenizer, context_length(model_config))
    engine = make_engine(config, tokenizer, model_config, [problem.prompt_ids for problem in problems + held_out])
    policy = load_policy(config, tokenizer, model_config)
    critic = Critic(policy, config.seed)
    engine.connect(policy)
    return Rebuilt(config, reward, tokenizer, held_out, engine, policy, critic)


def places_in(run: Rebuilt, problem: Problem, completion: Completion) -> list[Place]:
    """Before each step of a completion, and at last after it."""
    starts = step_starts(completion.text, token_offsets(run.tokenizer, completion.ids), "lines")
    return [Place(problem, completion, start) for start in [*starts, len(completion.ids)]]


def continued(run: Rebuilt, places: list[Place], n: int, purpose: str, step: int) -> list[list[Completion]]:
    """`n` whole completions through each place's state: its tokens and then fresh ones, as many at most as are left."""
    config, states = run.config, [place.state for place in places]
    requests = [Request((*problem.prompt_ids, *prefix), derive_seed(config.seed, purpose, step, problem.id, *prefix), n,
                        config.max_completion_length - len(prefix), config.temperature, config.top_p, tuple(config.stop or ()))
                for problem, prefix in states]
    groups = run.engine.generate(requests)
    return [[join(run.tokenizer, s.prefix, c, config.stop) for c in group] for s, group in zip(states, groups, strict=True)]


def valued(run: Rebuilt, places: list[Place], step: int) -> list[dict[str, float]]:
    """Of each place's state: V*, the Monte-Carlo estimates and the critic's value. Where nothing is left, all are the reward."""
    going, ended = ([place for place in places if place.ends is ends] for ends in (False, True))
    values: dict[State, dict[str, float]] = {}
    if ended:
        rewards = run.reward([place.problem for place in ended], [place.completion for place in ended]).tolist()
        values |= {place.state: dict.fromkeys((*PARTS, "critic"), reward) for place, reward in zip(ended, rewards, strict=True)}
    if going:
        wholes = [whole for group in continued(run, going, CONTINUATIONS, "V*", step) for whole in group]
        rewards = run.reward([place.problem for place in going for _ in range(CONTINUATIONS)], wholes).reshape(-1, CONTINUATIONS)
        # the value before a token depends on what comes before it alone: the completion may go on as it likes
        rows = [[replace(place.completion, logps=[0.0] * len(place.completion.ids))] for place in going]
        batch = make_batch([place.problem for place in going], rows)
        critic = run.critic.all_values(batch, torch.arange(len(batch)), run.config.max_tokens_per_microbatch)  # (B, T)
        for i, place in enumerate(going):
            values[place.state] = {name: rewards[i, part].mean().item() for name, part in PARTS.items()}
            values[place.state]["critic"] = critic[i, place.start].item()
    return [values[place.state] for place in places]


def measure(run: Rebuilt, checkpoint: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Values of states, and of the different next steps at some of them, with the policy and the critic of a checkpoint."""
    step = load_checkpoint(checkpoint, [run.policy, run.critic], {})
    run.engine.sync()
    config = run.config
    problems = Epochs(run.held_out, config.seed).take(asked.problems)  # the same ones at every step of the run
    groups = run.engine.generate(make_requests(problems, config, "value error", step, 1, config.temperature))
    found: dict[State, Place] = {}
    for problem, group in zip(problems, groups, strict=True):
        for place in places_in(run, problem, group[0])[:-1]:
            found.setdefault(place.state, place)
    places = list(found.values())
    random.Random(derive_seed(config.seed, "states", step)).shuffle(places)
    places = places[: asked.states]
    choices: list[list[Place]] = []
    for before, group in zip(places, continued(run, places, CANDIDATES, "candidates", step), strict=True):
        after = [next(p for p in places_in(run, before.problem, whole) if p.start > before.start) for whole in group]
        choices.append(list({place.state: place for place in after}.values()))
    choices = [candidates for candidates in choices if len(candidates) > 1]
    taken = choices[: asked.choices]
    values = iter(valued(run, [place for candidates in taken for place in candidates], step))
    states = [{"problem": place.problem.id, "start": place.start, **value}
              for place, value in zip(places, valued(run, places, step), strict=True)]
    return {"states": states, "with a choice": len(choices),
            "choices": [[{"ends": place.ends, **next(values)} for place in candidates] for candidates in taken]}


def earlier(file: Path) -> dict[str, Any]:
    """The result of an earlier call. Nothing if the file is missing or damaged: then it is measured again."""
    try:
        return dict(json.loads(read_file(file)))
    except (OSError, ValueError, TypeError):
        return {}


def measured(folder: Path, asked: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """What `measure` gives for each checkpoint of a run, from the file of an earlier call where that is there."""
    settings = {name: getattr(asked, name) for name in ("problems", "states", "choices")}
    files = {step: folder / f"values-{step}.json" for step in asked.steps}
    results = {step: earlier(file) for step, file in files.items()}
    missing = [step for step, result in results.items() if result.get("settings") != settings]
    run = rebuild(folder) if missing else None
    for step in missing:
        began = time.perf_counter()
        results[step] = {"settings": settings, **measure(run, folder / f"checkpoint-{step}", asked)}
        write_file(files[step], json.dumps(results[step]) + "\n")
        say(f"{folder.name}, step {step}: measured in {time.perf_counter() - began:.0f} s")
    return results


def correlation(xs: list[float], ys: list[float]) -> float | None:
    """Pearson's; None where one of them does not vary."""
    return statistics.correlation(xs, ys) if len(set(xs)) > 1 and len(set(ys)) > 1 else None


def best_of(choices: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """How many choices count; and over those the share in which the highest estimate is at a best candidate, and chance."""
    counted = [c for c in choices if max(x["V*"] for x in c) - min(x["V*"] for x in c) > APART]
    rng, right = random.Random(0), {name: [] for name in ("chance", *ESTIMATORS)}
    for candidates in counted:
        most = max(x["V*"] for x in candidates)
        best = [x["V*"] == most for x in candidates]
        right["chance"].append(statistics.mean(best))
        for name in ESTIMATORS:
            highest = max(x[name] for x in candidates)
            right[name].append(best[rng.choice([i for i, x in enumerate(candidates) if x[name] == highest])])
    return {"counted": len(counted), **{name: statistics.mean(of) if of else None for name, of in right.items()}}


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """The metrics of one run at one step."""
    states, choices = result["states"], result["choices"]
    truth = [state["V*"] for state in states]
    estimates = {"constant": [statistics.mean(truth)] * len(truth), **{name: [state[name] for state in states] for name in ESTIMATORS}}
    return {"states": len(states), "mean V*": statistics.mean(truth),
            "standard error of V*": statistics.mean((v * (1 - v) / PARTS["V*"].stop) ** 0.5 for v in truth),
            "mean absolute error": {k: statistics.mean(abs(a - b) for a, b in zip(e, truth, strict=True)) for k, e in estimates.items()},
            "correlation": {k: correlation(e, truth) for k, e in estimates.items()},
            "with a choice": result["with a choice"], "choices": len(choices), "best of 5": best_of(choices),
            "best of 5, none ends": best_of([c for c in choices if not any(x["ends"] for x in c)])}


def spread(values: list[float | None], form: str = ".3f") -> str:
    """The mean over seeds, and the lowest and the highest where they differ; "-" where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = f"{min(known):{form}}", f"{max(known):{form}}"
    return f"{statistics.mean(known):{form}}" + (f" ({low} to {high})" if low != high else "")


def report(summaries: dict[int, list[dict[str, Any]]]) -> str:
    """The tables; summaries: of each step, one for each seed."""
    names = {"states": ".0f", "mean V*": ".3f", "standard error of V*": ".3f"}
    blocks = [listed([{"step": str(step), **{name: spread([s[name] for s in seeds], form) for name, form in names.items()}}
                      for step, seeds in summaries.items()])]
    for metric, columns in (("mean absolute error", ("constant", *ESTIMATORS)), ("correlation", ESTIMATORS)):
        rows = [{"step": str(step), **{name: spread([s[metric][name] for s in seeds]) for name in columns}}
                for step, seeds in summaries.items()]
        blocks.append(f"{metric}\n\n{listed(rows)}")
    for metric, title in (("best of 5", "best of 5"), ("best of 5, none ends", "best of 5, where no candidate ends the completion")):
        rows = []
        for step, seeds in summaries.items():
            total = {name: sum(s[name] for s in seeds) for name in ("choices", "with a choice", "states")}
            rows.append({"step": str(step), "states with a choice": f"{total['with a choice']} of {total['states']}",
                         "counted": f"{sum(s[metric]['counted'] for s in seeds)} of {total['choices']}",
                         **{name: spread([s[metric][name] for s in seeds], ".2f") for name in ("chance", *ESTIMATORS)}})
        blocks.append(f"{title}: share right\n\n{listed(rows)}")
    return "\n\n".join(blocks)


def main() -> None:
    """The command line."""
    parser = Parser(__doc__, "runs/value_error", "3")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 60], help="training steps that have a checkpoint")
    parser.add_argument("--problems", type=int, default=32, help="held-out problems, one completion each")
    parser.add_argument("--states", type=int, default=150, help="states valued at most, for each seed and step")
    parser.add_argument("--choices", type=int, default=40, help="of those with different next steps, how many have these valued")
    asked, flags = parser.parse()
    command = ["train_ppo.py", "--save_steps", "10", "--save_total_limit", "0", *flags]
    folders = sweep({"ppo": command}, asked.seeds, asked.out, asked.jobs)["ppo"]
    try:
        results = [measured(folder, asked) for folder in folders]
    except UserError as error:
        fail(f"error: {error}")
    summaries = {step: [summarise(result[step]) for result in results] for step in asked.steps}
    record = {"command": command, "seeds": asked.seeds, "steps": summaries}
    write_file(asked.out / "value_error.json", json.dumps(record, indent=1) + "\n")
    show("\n" + report(summaries))
    if asked.plot:
        errors = {name: [{step: seeds[i]["mean absolute error"][name] for step, seeds in summaries.items()} for i in range(len(results))]
                  for name in ("constant", *ESTIMATORS)}
        title = "How far PPO's critic and Monte-Carlo (MC) estimates are from the true values of states"
        save(picture([Chart(errors, AXES["steps"], "mean absolute error against V*")], title), asked.plot)


if __name__ == "__main__":
    main()
