"""A saved config.json: what was typed, what was worked out, and values that cannot be."""

import importlib
import json
from dataclasses import dataclass

import pytest
import torch
from helpers import run
from hostile import runs

from common.config import CommonConfig, flag
from common.errors import UserError
from common.flags import PLANNED
from common.launch import parse_config
from common.run.record import config_record
from common.run.saved_config import read_config


@dataclass
class Config(CommonConfig):
    epsilon: float = flag(0.2, "algorithm", "Clip, 100% of it.")


def parse(*argv):
    return parse_config(Config, list(argv), "train_x")


def write(folder, config):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config_record(config, "train_x")))
    return str(path)


def test_what_a_run_worked_out_is_saved_apart_and_a_rerun_works_it_out_anew(tmp_path):
    config = parse("--prompt_template", "plain", "--lora_r", "4", "--max_tokens_per_microbatch", "512")
    config.derive(stop=["\nProblem:"], lora_r=8, max_tokens_per_microbatch=512, gradient_checkpointing=True, date="26 Jul 2026")
    path = write(tmp_path / "run", config)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["flags"]["stop"] is None and record["flags"]["lora_r"] == 4 and record["flags"]["gradient_checkpointing"] is False
    assert record["derived"] == {"stop": ["\nProblem:"], "lora_r": 8, "gradient_checkpointing": True, "date": "26 Jul 2026"}
    assert record["given"] == ["lora_r", "max_tokens_per_microbatch", "prompt_template"]
    again = parse("--config", path, "--prompt_template", "chat")
    assert again.stop is None and again.lora_r == 4 and again.derived == {} and not again.gradient_checkpointing
    assert set(PLANNED) & again.given == {"max_tokens_per_microbatch"}  # the plan may set the others
    assert parse("--config", write(tmp_path / "third", again)).given == again.given


def test_a_resumed_run_keeps_what_was_worked_out_except_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr("common.run.resume.what_is_missing", lambda folder: None)
    config = parse("--lora_r", "4", "--max_steps", "9")
    config.derive(stop=["\nProblem:"], lora_r=8, max_tokens_per_microbatch=8192, date="26 Jul 2026")
    write(tmp_path / "run", config)
    (tmp_path / "run" / "checkpoint-5").mkdir()
    where = ["--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-5")]
    resumed = parse(*where)
    assert (resumed.stop, resumed.lora_r, resumed.date) == (["\nProblem:"], 8, "26 Jul 2026")
    assert resumed.max_tokens_per_microbatch == 2048 and not set(PLANNED) & resumed.given
    assert resumed.flags()["stop"] is None and resumed.flags()["lora_r"] == 4  # so that the next config.json says the same
    assert parse(*where, "--stop", r"\nProblem:").stop == ["\nProblem:"]
    with pytest.raises(UserError, match=r"--stop \['x'\] differs from the resumed run's \['\\nProblem:'\]"):
        parse(*where, "--stop", "x")


def test_a_plan_for_a_large_card_does_not_bind_a_small_one(tmp_path, monkeypatch):
    from common.run import memory_plan

    def planned(*argv, card):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (card * 1e9, card * 1e9))
        monkeypatch.setattr(memory_plan, "choose_engine", lambda config: ("transformers", "a test"))
        monkeypatch.setattr(memory_plan, "load_model_config", lambda config: None)
        monkeypatch.setattr(memory_plan, "shape_of", lambda *_: memory_plan.Shape(10**9, 9 * 10**8, 10**7, 10**7, 24, 2048, 10**5, 3e5))
        config = parse(*argv)
        memory_plan.plan_run(config)
        return config

    large = planned("--model", "some/model", "--dataset", "gsm8k", card=80)
    small = planned("--config", write(tmp_path / "run", large), card=8)
    assert small.planned["checkpointed_layers"] > large.planned["checkpointed_layers"] == 0
    assert {**small.flags(), "config": None} == large.flags()
    assert set(PLANNED) - {"vllm_enable_sleep_mode"} <= set(small.derived)
    typed = planned("--model", "some/model", "--dataset", "gsm8k", "--gradient_checkpointing", "false", card=80)
    with pytest.raises(UserError, match="would fit with the plan's own --gradient_checkpointing"):
        planned("--config", write(tmp_path / "typed", typed), card=8)


def test_a_config_of_an_older_version_has_its_command_line_asked(tmp_path):
    flags = {"max_tokens_per_microbatch": 8192, "gradient_checkpointing": True, "stop": ["\nProblem:"], "max_steps": 7}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"flags": flags, "command": ["train_x.py", "--gradient-checkpointing", "--max_steps=7"]}))
    old = read_config(path, Config)
    assert old.flags == {"gradient_checkpointing": True, "max_steps": 7} and old.given == {"gradient_checkpointing", "max_steps"}
    assert old.derived == {"max_tokens_per_microbatch": 8192, "stop": ["\nProblem:"]}
    path.write_text(json.dumps({"flags": flags, "command": ["train_x.py", "--config", "x"]}))
    assert read_config(path, Config).flags == {"stop": ["\nProblem:"], "max_steps": 7}  # may have been typed for the run x
    path.write_text(json.dumps({"flags": flags}))
    assert read_config(path, Config).flags == flags


def test_defaults_of_the_embedded_model_do_not_pass_to_another(tmp_path):
    path = write(tmp_path / "run", parse("--seed", "5", "--dataset", "arithmetic:words=2"))
    harder = parse("--config", path, "--dataset", "arithmetic:words=2,tiers=half:1:2-10")
    assert harder.max_completion_length == 83 and harder.seed == 5
    real = parse("--config", path, "--model", "some/model", "--dataset", "gsm8k")
    assert (real.learning_rate, real.max_steps, real.prompt_template, real.seed) == (2e-5, 200, "auto", 5)


WRONG = {
    "engine": (["vlm", None, True, "VLLM"], 'one of "auto", "vllm", "transformers"'),
    "dtype": (["float16", 32], 'one of "auto", "float32", "bfloat16"'),
    "max_steps": ([None, "3", 3.0, True, [3]], "a whole number"),
    "learning_rate": ([None, "0.1", True, 10**400, {}], "a number"),
    "load_in_4bit": ([1, "false", None], "true or false"),
    "dataset": ([None, 3, "a\0b", "\ud800"], "a text"),
    "stop": (["END", [1], [None], {"a": 1}], "a list, each a text or null"),
    "epsilon": ([[0.2], None], "a number"),
    "candidate_factor": (["2", 2.5], "a whole number or null"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_cannot_be_typed_is_refused_with_the_file(name, tmp_path):
    values, wanted = WRONG[name]
    for value in values:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"flags": {name: value}}))
        with pytest.raises(UserError, match=f"config.json: {name} is .*, and must be {wanted}") as error:
            parse("--config", str(path))
        assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_values_that_could_be_typed_are_taken(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("\ufeff" + json.dumps({"flags": {"learning_rate": 1, "stop": ["é"], "candidate_factor": None, "config": 3}}))
    config = parse("--config", str(path))
    assert config.learning_rate == 1.0 and type(config.learning_rate) is float and config.stop == ["é"]
    path.write_text(json.dumps({"flags": {"temperature": -1}}))
    with pytest.raises(UserError, match=r"--temperature -1.0 cannot work.* those of .*config.json"):
        parse("--config", str(path))


CAUSES = {
    "unknown_choice": 'must be one of "auto", "float32", "bfloat16"',
    "null": "max_steps is null, and must be a whole number",
    "text_for_a_list": "must be a list, each a text or null",
    "text_for_a_bool": "must be true or false",
    "zero_byte_in_a_path": "dataset is",
    "derived_of_a_wrong_type": "stop is",
    "no_object": "it has no flags",
    "flags_no_object": "it has no flags",
    "a_flag_twice": "it has the key 'seed' twice",
    "not_a_number": "the value NaN",
    "infinite": "a finite number",
    "number_of_5000_digits": "is not the config.json",
    "utf16": "utf-8",
    "deep": "nested too deeply",
    "huge": "bytes",
    "cut_off": "is not the config.json",
    "pipe": "there is no such file",
    "that_names_code": "names code: the function score of the file",
}


OF_TRAINING = {"null", "not_a_number", "infinite", "that_names_code"}  # flags that eval.py does not have


@pytest.mark.parametrize("script, case", [("train_grpo", case) for case in CAUSES] + [("eval", c) for c in CAUSES if c not in OF_TRAINING])
def test_a_hostile_or_damaged_config_is_one_line_that_names_the_file(case, script, tmp_path):
    path = getattr(runs, f"make_config_{case}")(tmp_path)
    config_class = importlib.import_module(script).Config
    with pytest.raises(UserError, match=CAUSES[case]) as error:
        parse_config(config_class, ["--config", str(path)], script)
    assert str(path) in str(error.value) and len(str(error.value)) < 600 and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text, cause",
    [
        (b"", "Expecting value"),
        (b'{"flags": null}', "it has no flags"),
        (b'{"flags": {}, "flags": {"seed": 2}}', "it has the key 'flags' twice"),
        (b'{"flags": {"learning_rate": -Infinity}}', "the value -Infinity"),
        (b'{"flags": {"stop": ["\xff"]}}', "utf-8"),
        (b'{"flags": {"stop": 1e999}}', "stop is"),
        (b'{"flags": {}, "given": "all"}', "given is"),
        (b'{"flags": {}, "given": [], "derived": [1]}', "derived is"),
        (b'{"flags": {}, "given": [], "derived": {"date": 5}}', "date is"),
        (b'{"script": 5, "flags": {}}', "script is"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(text, cause, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=cause) as error:
        parse("--config", str(path))
    assert str(path) in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("case, cause", [("that_names_code", "names code: the function score"), ("deep_identity", "cannot be read")])
def test_a_hostile_checkpoint_is_refused_before_its_code_runs(case, cause, tmp_path, monkeypatch):
    made = getattr(runs, f"make_checkpoint_{case}")(tmp_path)
    found = run("train_grpo", tmp_path, "--resume_from_checkpoint", str(made), monkeypatch=monkeypatch, quick=[])
    assert cause in found and "\n" not in found and len(found.replace(str(tmp_path), "")) < 400
    assert not (tmp_path / "ran").exists()


def test_a_folder_or_a_device_is_no_config(tmp_path):
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(UserError, match="there is no such file"):
            parse("--config", str(path))
