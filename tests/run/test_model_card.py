"""The model card: read back as the hub does."""

import importlib
import json
import shlex

import pytest
from helpers import ROOT, SCRIPTS, metrics, save_random_model
from huggingface_hub import ModelCard

from common.launch import parse_config
from common.run.model_card import command, model_card
from common.run.record import config_record

pytestmark = pytest.mark.parametrize("script", SCRIPTS)


def card_of(script, *argv, evaluations=()):
    config = parse_config(importlib.import_module(script).Config, list(argv), script)
    return model_card(config, ROOT / f"{script}.py", config_record(config, script), list(evaluations), 7), config


def test_a_run_leaves_a_card_with_its_numbers(script, finished):
    folder = finished(script, "--max_steps", "3")
    text = (folder / "README.md").read_text()
    assert text == (folder / "checkpoint-3" / "README.md").read_text()
    rows = [row for row in metrics(folder) if "eval/greedy" in row]
    for row in (rows[0], rows[-1]):
        assert f"| {row['step']} | {row['eval/pass@1']:.3f} | {row['eval/greedy']:.3f} |" in text
    assert "after 3 steps" in text and str(folder.parent) not in text
    assert "README.md" in json.loads((folder / "checkpoint-3" / "manifest.json").read_text())


def test_the_front_matter_names_what_is_on_the_hub_and_nothing_else(script, tmp_path, tokenizer, monkeypatch):
    data = ModelCard(card_of(script, "--model", "Qwen/Qwen2.5-1.5B-Instruct", "--dataset", "gsm8k")[0]).data
    assert (data.base_model, data.datasets, data.library_name) == ("Qwen/Qwen2.5-1.5B-Instruct", "openai/gsm8k", "peft")
    assert ModelCard(card_of(script, "--model", "a/b", "--dataset", "c/d")[0]).data.datasets == "c/d"
    for dataset in ("arithmetic", "arithmetic:tiers=plus:1:1-2/half:1:5-8,test_tiers=half:1:5-8"):
        data = ModelCard(card_of(script, "--dataset", dataset)[0]).data
        assert data.base_model is None and data.datasets is None
    (tmp_path / "math").mkdir()
    assert ModelCard(card_of(script, "--model", "a/b", "--dataset", str(tmp_path / "math"))[0]).data.datasets is None
    model = save_random_model(tmp_path / "mine", "llama", tokenizer)
    (tmp_path / "own.jsonl").write_text("{}")
    text, _ = card_of(script, "--model", str(model), "--dataset", str(tmp_path / "own.jsonl"))
    assert str(tmp_path) not in text and "own.jsonl" in text and ModelCard(text).data.base_model is None
    assert "Not evaluated during training." in text


def test_the_command_gives_the_config_again(script, monkeypatch):
    argv = ["--stop", "a\nb", "c", "--learning_rate", "2e-5", "--load_in_4bit", "--seed", "3", "--output_dir", "elsewhere"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    _, config = card_of(script, *argv)
    words = command(config, ROOT / f"{script}.py")
    again = parse_config(type(config), shlex.split(words.replace("\\\n", ""))[2:], script)
    config.output_dir = None
    assert again == config
