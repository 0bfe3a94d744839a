import json
import random
import re
import shutil
import sys
from itertools import product

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import claims
import learnability

VINE = {"VinePPO, K=9": 0.2, "VinePPO, K=3": 0.0}  # how much higher than PPO
BEST = claims.Setting(claims.RATES[1])


def finish(folder, command):
    folder.mkdir(parents=True)
    (folder / "command.json").write_text(json.dumps({"command": command, "finished": True, "revision": "made up"}))


def make_runs(out, noise=0.01):
    """What a finished command leaves, with curves that rise the faster the better the method; every run has its own noise."""
    rng = random.Random(0)
    for name, bed in claims.TESTBEDS.items():
        settings = [claims.Setting(rate, critic) for rate, critic in product(claims.RATES, claims.CRITICS)]
        seeds = [*claims.TUNED_ON, *claims.SEEDS, *claims.FURTHER.get(name, ([], []))[1]]
        for (method, way), setting, seed in product(bed.cells, settings, seeds):
            if method != "PPO" and setting.critic != claims.CRITICS[0]:
                continue
            gain = 0.3 + VINE.get(method, 0.0) + (0.1 if way == "lilo" else 0.0) - (0.0 if setting == BEST else 0.05)
            rows = [{"step": 0, "eval/pass@1": 0.3, "eval/greedy": 0.5}]
            for step in range(1, 41):
                tokens = 1000 * step * (4 if way == "lilo" and "Vine" not in method else 1)
                row = {"step": step, "num_tokens": tokens, "step_time": 1.0, "neg_logp": (0.5 if method == "RFT" else 0.99) ** (step / 40)}
                if step % 5 == 0:
                    row |= {"eval/pass@1": 0.3 + gain * step / 40 + rng.gauss(0, noise), "eval/greedy": 0.5}
                rows.append(row)
            folder = claims.folder_of(out, name, method, way, setting, seed)
            finish(folder, [*claims.command_of(name, method, way, setting), "--seed", str(seed)])
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    jobs = [job for name in claims.VALUED_ON for job in claims.value_jobs(out, name, BEST).items()]
    for folder, command in jobs:
        finish(folder, command)
        errors = {"constant": 0.12, "critic": 0.10 + rng.gauss(0, noise), "MC 3": 0.10 + rng.gauss(0, noise), "MC 9": 0.02}
        summaries = {str(step): [{"mean absolute error": errors}] for step in claims.VALUED_AT}
        (folder / "value_error.json").write_text(json.dumps({"steps": summaries}))


def test_a_verdict_needs_intervals_that_do_not_overlap():
    a, b = [0.80, 0.82, 0.84, 0.86, 0.88], [0.70, 0.72, 0.74, 0.76, 0.78]
    assert claims.verdict(claims.difference(a, b)) == "reproduced"
    assert claims.verdict(claims.difference(b, a)) == "not reproduced: the other way round"
    assert claims.verdict(claims.difference(b, a), -1) == "reproduced"
    close = [value - 0.01 for value in a]  # lower on every seed, but the seeds differ by more
    found = claims.difference(a, close)
    assert found.low > 0 and found.overlap and claims.verdict(found).startswith("not reproduced by our rule: so in the paired interval")
    assert "the other way round" in claims.verdict(claims.difference(close, a))
    mixed = [0.90, 0.60, 0.95, 0.65, 0.70]
    assert claims.verdict(claims.difference(a, mixed)) == "not reproduced: no difference shown"


def test_how_much_sooner():
    base = [{"steps": {0: 0.2, 10: 0.4 + noise, 20: 0.6 + noise}} for noise in (-0.01, 0.0, 0.01)]
    fast = [{"steps": {0: 0.2, 10: 0.6 + noise, 20: 0.8 + noise}} for noise in (-0.01, 0.01, 0.0)]
    found = claims.sooner(fast, base, "steps")
    assert found.times == pytest.approx(2) and 1.5 < found.low <= 2 <= found.high < 2.5
    never = claims.sooner(base, fast, "steps")
    assert never == (0, 0, 0) and str(never).startswith("never")


def test_better_per_step_may_be_worse_per_second():
    def runs(slope, pace):
        return [
            {"steps": {x: slope * x + noise for x in range(0, 41, 5)}, "seconds": {x * pace: slope * x + noise for x in range(0, 41, 5)}}
            for noise in (0.0, 0.001, 0.002, 0.003, 0.004)
        ]

    (step, *_, by_step), (second, *_, by_second) = claims.vineppo_claims({"PPO": runs(0.01, 1.0), "VinePPO, K=9": runs(0.015, 3.0)})
    assert "per step" in step and by_step == "reproduced"
    assert "per second" in second and by_second == "not reproduced: the other way round"


def test_a_share_of_the_start():
    assert claims.change([0.90, 0.91, 0.92, 0.93, 0.94], -1) == claims.change([1.10, 1.11, 1.12, 1.13, 1.14], 1) == "reproduced"
    assert claims.change([0.90, 0.91, 0.92, 0.93, 0.94], 1).endswith("the other way round")
    assert claims.change([0.8, 0.9, 1.0, 1.1, 1.2], 1).endswith("no difference shown")
    narrow = [0.97, 0.98, 0.99, 0.99, 1.004]  # the bootstrap's interval leaves out 1, Student's does not
    assert claims.interval(narrow)[1] < 1 and claims.change(narrow, -1).endswith("no difference shown")


def cells_of(table):
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]


def test_the_page_has_every_seed_and_every_claim(tmp_path, capsys):
    make_runs(tmp_path / "runs")
    assert set(claims.chosen(tmp_path / "runs", "credit").values()) == {BEST}
    page = tmp_path / "results.md"
    before = (ROOT / "docs" / "results.md").read_text()
    page.write_text(before)
    claims.write(tmp_path / "runs", page)
    text = page.read_text()
    words = lambda page: [line for line in page.splitlines() if not line.startswith("|")]  # noqa: E731
    assert words(text) == words(before) and text != before  # tables alone are replaced
    rows = cells_of(claims.tables_in(text, "claims", 1)[0])
    verdicts = {(row[0], row[4]): row[3] for row in rows if row[4] in claims.TESTBEDS}
    assert f"{len(verdicts)} verdicts; revision of the code: made up" in capsys.readouterr().out
    assert verdicts["VinePPO (K=9) beats PPO per step", "credit"] == "reproduced"
    assert verdicts["VinePPO (K=3) beats PPO per step", "credit"].startswith("not reproduced")
    assert verdicts["Monte-Carlo values (K = 9) are more accurate than a critic's", "credit"] == "reproduced"
    assert verdicts["Monte-Carlo values (K = 3) are more accurate than a critic's", "credit"].startswith("not reproduced")
    assert verdicts["NFT is above RFT", "credit"].startswith("not reproduced")
    assert verdicts["RFT's entropy falls", "credit"] == verdicts["RFT's entropy falls more than NFT's", "credit"] == "reproduced"
    assert verdicts["NFT's entropy rises", "credit"] == verdicts["DAPO's entropy rises", "credit"] == "not reproduced: the other way round"
    assert verdicts["learnability sampling needs fewer steps: GRPO", "few"] == "reproduced"
    assert verdicts["it costs many more tokens a step for PPO and GRPO", "few"].startswith("reproduced")
    assert verdicts["and few for VinePPO, K=3", "few"] == verdicts["and few for VinePPO, K=9", "few"] == "reproduced"
    assert verdicts["VinePPO (K=9) beats PPO per step, on 10 further seeds", "habits"] == "reproduced"
    assert verdicts["GRPO divided by the standard deviation gains less from it than centred (Dr. GRPO)", "few"].startswith("not reproduced")
    for (name, bed), methods, seeds in zip(
        claims.TESTBEDS.items(), claims.tables_in(text, "methods"), claims.tables_in(text, "seeds"), strict=True
    ):
        cells, further = claims.FURTHER.get(name, ([], []))
        assert len(cells_of(seeds)) == len(bed.cells) * len(claims.SEEDS) + len(cells) * len(further)
        assert [row[0] for row in cells_of(methods)] == [bed.label(*cell) for cell in bed.cells]
        assert all(row[1].startswith("0.0006") and row[4] in ("40", "160") and row[5] == "40" for row in cells_of(methods))
        assert (tmp_path / f"results_{name}.svg").stat().st_size > 10_000
    best = [row for table in claims.tables_in(text, "tuning") for row in cells_of(table)]
    assert len(best) == 3 * (len(claims.METHODS) + 1) and all(row[2].startswith("**") for row in best if row[0] != "PPO, critic 10x")


def test_the_figures_of_the_page_are_made_from_its_tables(tmp_path):
    page = tmp_path / "results.md"
    shutil.copy(ROOT / "docs" / "results.md", page)
    claims.figures(page)
    for name in claims.TESTBEDS:  # those in the repository are of this page; another version of matplotlib may write them otherwise
        here, there = ((folder / f"results_{name}.svg").read_text() for folder in (tmp_path, ROOT / "docs"))
        marks = [[float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"', text)] for text in (here, there)]
        assert marks[0] == pytest.approx(marks[1], abs=1) and all(f">{method}</text>" in there for method in claims.METHODS)
    text = page.read_text()
    for methods, seeds in zip(claims.tables_in(text, "methods"), claims.tables_in(text, "seeds"), strict=True):
        recorded = {row[0]: [float(own[-1]) for own in cells_of(seeds) if own[0] == row[0] and int(own[1]) in claims.SEEDS]
                    for row in cells_of(methods)}
        for label, *_, area, _, _ in cells_of(methods):
            written = [float(number) for number in re.findall(r"[\d.]+", area)]
            low, high = claims.interval(recorded[label])
            assert (sum(recorded[label]) / len(claims.SEEDS), low, high) == pytest.approx(written, abs=0.0015), label
    page.write_text(text.replace("| method | seed |", "| seed | method |", 1))
    with pytest.raises(SystemExit, match="the page has 2 tables"):
        claims.figures(page)


def test_speed_ups_of_ways_of_sampling():
    runs = lambda curve: [dict.fromkeys(("steps", "tokens", "seconds"), curve)] * 3  # noqa: E731
    cells = learnability.compared(runs({0: 0.2, 10: 0.4, 20: 0.6}), runs({0: 0.2, 5: 0.6, 10: 0.7}))
    assert cells["mean of all evaluations"] == "+0.100 (+0.100 to +0.100)" and cells["speed-up, steps"] == "4.00 (4.00 to 4.00)"
    never = learnability.compared(runs({0: 0.2, 10: 0.6}), runs({0: 0.2, 10: 0.5}))
    assert never["speed-up, tokens"] == "not reached (0.00 to 0.00)"


def test_every_command_is_one_of_the_scripts(tmp_path):
    from common.launch import parse_config

    for name, bed in claims.TESTBEDS.items():
        for method, way in bed.cells:
            script, *flags = *claims.command_of(name, method, way, BEST), "--seed", "7"
            module = __import__(script.removesuffix(".py"))
            config = parse_config(module.Config, flags, script)
            assert (config.seed, config.sampling, config.learning_rate) == (7, way, BEST.rate)


def test_dapo_does_not_punish_right_solutions():
    from common.tiny.task import Arithmetic, Generator

    for name, bed in claims.TESTBEDS.items():
        flags = claims.command_of(name, "DAPO", "uniform", BEST)
        value = {flag: flags[flags.index(flag) + 1] for flag in ("--dataset", "--max_completion_length", "--overlong_buffer")}
        longest = Generator(Arithmetic.parse(value["--dataset"].partition(":")[2])).longest_solution()
        assert int(value["--max_completion_length"]) - int(value["--overlong_buffer"]) == longest == bed.longest


def test_values_are_measured_on_the_ppo_of_the_comparison(tmp_path):
    import train_ppo
    from common.launch import parse_config

    for folder, (_, _, seed, *words) in claims.value_jobs(tmp_path, "habits", claims.Setting(6e-4, 10.0)).items():
        cut = words.index("--")
        flags = ["--save_steps", "5", "--save_total_limit", "0", *words[cut + 1:]]  # value_error.py puts flags of its own first
        config = parse_config(train_ppo.Config, flags, "train_ppo.py")
        assert (config.learning_rate, config.critic_learning_rate) == (6e-4, pytest.approx(6e-3))
        assert folder.name == f"seed-{seed.removesuffix(',')}" and config.save_steps == 10 and config.save_total_limit == 0
        assert words[:cut] == ["--steps", *map(str, claims.VALUED_AT), "--states", str(claims.VALUED), "--choices", "0"]
        assert config.max_steps == claims.VALUED_AT[-1] and all(step % 10 == 0 for step in claims.VALUED_AT)


def test_the_grid_goes_on_where_its_edge_is_best(tmp_path):
    def add(rate, height):
        for seed in claims.TUNED_ON:
            folder = claims.folder_of(tmp_path, "credit", "GRPO", "uniform", claims.Setting(rate), seed)
            finish(folder, [*claims.command_of("credit", "GRPO", "uniform", claims.Setting(rate)), "--seed", str(seed)])
            rows = [
                {"step": 0, "eval/pass@1": 0.3},
                {"step": 40, "num_tokens": 1, "step_time": 1.0, "eval/pass@1": height, "neg_logp": 0.1},
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    rates = lambda: [setting.rate for setting in claims.tuning(tmp_path, "credit", "GRPO")]  # noqa: E731
    for rate, height in zip(claims.RATES, (0.5, 0.6, 0.7), strict=True):
        assert rates() == claims.RATES  # not all of them have run
        add(rate, height)
    assert rates() == [*claims.RATES, 2 * claims.RATES[-1]]
    add(2 * claims.RATES[-1], 0.65)
    assert rates() == [*claims.RATES, 2 * claims.RATES[-1]]
    assert claims.best_of(claims.tuning(tmp_path, "credit", "GRPO")) == claims.Setting(claims.RATES[-1])


def test_runs_of_other_commands_are_not_used(tmp_path):
    make_runs(tmp_path)
    settings = dict.fromkeys(claims.METHODS, BEST)
    uses = {  # what reads the folder
        claims.folder_of(tmp_path, "credit", "GRPO", "uniform", BEST, claims.TUNED_ON[0]): lambda: claims.chosen(tmp_path, "credit"),
        claims.folder_of(tmp_path, "few", "NFT", "lilo", BEST, 3): lambda: claims.finished(
            tmp_path, "few", settings, [("NFT", "lilo")], claims.SEEDS),
        claims.folder_of(tmp_path, "habits", "PPO", "uniform", BEST, 9): lambda: claims.finished(
            tmp_path, "habits", settings, *claims.FURTHER["habits"]),
        tmp_path / "values" / "habits" / "seed-2": lambda: claims.runs_of(claims.value_jobs(tmp_path, "habits", BEST)),
    }
    for folder, use in uses.items():
        before = (folder / "command.json").read_text()
        assert use()
        (folder / "command.json").write_text(json.dumps({"command": ["another"], "finished": True}))
        with pytest.raises(SystemExit, match=f"{folder} holds a run of another command"):
            use()
        (folder / "command.json").write_text(before.replace("true", "false"))  # not finished
        with pytest.raises(SystemExit, match="do without --only first"):
            use()
