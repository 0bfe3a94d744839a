import importlib
import json
import sys
from typing import get_args, get_type_hints

import pytest
from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare_examples as compare

from common.launch import parse_config

METHODS = compare.methods()


def finish(out, testbed, name, rate, seed, passes):
    folder = out / testbed / name / f"seed-{seed}" / f"{rate:g}"
    folder.mkdir(parents=True)
    rows = [{"step": 0, "eval/pass@1": passes[0]}]
    rows += [{"step": step, "num_tokens": 1000 * step} for step in range(1, compare.STEPS + 1)]
    rows[compare.EVERY]["eval/pass@1"], rows[-1]["eval/pass@1"] = passes[1:]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_example_is_compared_and_takes_the_flags():
    assert {path.stem for path in compare.examples()} == {name for name, base in METHODS.items() if name != base}
    jobs = compare.jobs_of(compare.ROOT / "runs", METHODS, [0, 1])
    assert len(jobs) == 2 * 2 * len(METHODS)
    assert [command[-1] for command in jobs.values()] == ["0"] * (len(jobs) // 2) + ["1"] * (len(jobs) // 2)
    for name, base in METHODS.items():
        module = importlib.import_module(name if name == base else f"examples.{name}")
        for testbed in compare.CRITIC:
            config = parse_config(module.Config, compare.flags_of(testbed, name, 1e-3), name)
            assert (config.max_steps, config.learning_rate, config.num_minibatches) == (compare.STEPS, 1e-3, 4)


def test_one_example_can_be_run_alone(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(compare, "run_all", lambda jobs, *_: started.append(jobs))
    for chosen, names in (
        ([], [*METHODS, *compare.VARIANTS]),
        (["--methods", "vespo", "pairs-ipo"], ["vespo", "pairs-ipo"]),
        (["--methods", "variants", "train_ppo"], ["train_ppo", *compare.VARIANTS]),
    ):
        monkeypatch.setattr(sys, "argv", ["compare_examples.py", "--only", "run", "--out", str(tmp_path), *chosen])
        compare.main()
        by_testbed = [name for name in names for _ in range(3)]
        assert sorted(command[3] for command in started[-1].values() if command[2] == "few") == sorted(by_testbed)
        for job, (_, _, testbed, name, _, seed) in started[-1].items():
            assert job == tmp_path / testbed / compare.folder_name(name) / f"seed-{seed}"
    monkeypatch.setattr(sys, "argv", ["compare_examples.py", "--methods", "vepso"])
    with pytest.raises(SystemExit):
        compare.main()


def test_a_variant_is_its_script_with_other_flags(tmp_path, monkeypatch):
    names = compare.compared()
    assert list(names) == [*METHODS, *compare.VARIANTS] and len({compare.folder_name(name) for name in names}) == len(names)
    for name in compare.VARIANTS:
        script = compare.script_of(name)
        assert names[name] == METHODS[script]
        module = importlib.import_module(script if names[name] == script else f"examples.{script}")
        plain, own = (parse_config(module.Config, compare.flags_of("few", one, 1e-3), script) for one in (script, name))
        own.check()
        assert plain != own
    losses = {name.removeprefix("pairs-") for name in names if name.startswith("pairs-")}
    offered = get_args(get_type_hints(importlib.import_module("examples.pairs").Config)["loss"])
    assert losses == set(offered) - {"dpo"}  # the default
    started = []
    monkeypatch.setattr(importlib.import_module("examples.pairs"), "train", started.append)
    compare.train_both("few", "pairs-ipo", 2, tmp_path)
    assert [(own.loss, own.seed, own.learning_rate) for own in started] == [("ipo", 2, rate) for rate in compare.RATES]


def test_the_page_keeps_runs_that_another_machine_made(tmp_path, monkeypatch):
    marks = [f"<!-- {testbed}: {what} -->\nold\n<!-- end -->" for testbed in compare.CRITIC for what in ("overview", "all seeds")]
    page = tmp_path / "page.md"
    page.write_text("first\n" + "\nwords\n".join(marks) + "\nlast\n")
    monkeypatch.setattr(compare, "PAGE", page)
    for seed, more in enumerate((0.0, 0.01, 0.02)):
        finish(tmp_path / "a", "few", "train_grpo", 1.2e-3, seed, (0.2, 0.3 + more, 0.4))
        finish(tmp_path / "a", "few", "gspo", 1.2e-3, seed, (0.2, 0.5 + more, 0.8))
        finish(tmp_path / "a", "few", "cispo", 1.2e-3, seed, (0.2, 0.31 + more, 0.4))
        finish(tmp_path / "a", "few", "pairs-ipo", 1.2e-3, seed, (0.2, 0.1 + more, 0.0))
    finish(tmp_path / "a", "few", "gspo", 6e-4, 0, (0.2, 0.2, 0.2))
    compare.write(tmp_path / "a")
    finish(tmp_path / "b", "few", "gspo", 6e-4, 0, (0.2, 0.3, 0.4))
    finish(tmp_path / "b", "few", "opo", 6e-4, 1, (0.2, 0.3, 0.4))
    (tmp_path / "b" / "few" / "opo" / "seed-0" / "0.0012").mkdir(parents=True)
    (tmp_path / "b" / "few" / "opo" / "seed-0" / "0.0012" / compare.FAILED).write_text("step 3: the loss is not finite\n")
    compare.write(tmp_path / "b")
    text = page.read_text()
    assert text.startswith("first\n<!-- few") and text.endswith("\nlast\n") and text.count("\nwords\n") == 3
    runs = compare.recorded(text, "few")
    assert [(run.name, run.rate, run.seed, run.passes) for run in runs] == [
        *(("train_grpo", "0.0012", i, (0.2, round(0.3 + i / 100, 3), 0.4)) for i in range(3)),
        *(("cispo", "0.0012", i, (0.2, round(0.31 + i / 100, 3), 0.4)) for i in range(3)),
        *(("gspo", "0.0012", i, (0.2, round(0.5 + i / 100, 3), 0.8)) for i in range(3)),
        ("gspo", "0.0006", 0, (0.2, 0.3, 0.4)),
        ("opo", "0.0012", 0, ()),
        ("opo", "0.0006", 1, (0.2, 0.3, 0.4)),
        *(("pairs-ipo", "0.0012", i, (0.2, round(0.1 + i / 100, 3), 0.0)) for i in range(3)),
    ]
    assert runs[0].area == pytest.approx(0.3) and runs[10].tokens == "step 3: the loss is not finite"
    rows = {line.split("|")[1].strip(): line for line in compare.section(text, "few", "overview")[1].splitlines()}
    assert set(rows) - {"script", "---"} == {"train_grpo", "cispo", "gspo", "opo", "pairs --loss ipo"}  # no rows for those without a run
    assert "**+0.200" in rows["gspo"] and rows["gspo"].endswith("| 3, 1 |") and "0.305 (" in rows["train_grpo"]
    assert rows["pairs --loss ipo"].split("|")[2].strip() == "train_grpo" and "**-0.200" in rows["pairs --loss ipo"]
    assert "+0.005" in rows["cispo"] and "**" not in rows["cispo"]  # the same on all seeds, but the intervals of the two meet
    compare.figures()
    assert "gspo" in (tmp_path / "examples_few.svg").read_text() and not (tmp_path / "examples_habits.svg").exists()
