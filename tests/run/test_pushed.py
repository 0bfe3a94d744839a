"""What people give away is the checkpoint-N folder: it names no machine, and everybody may read all of it who may read one file."""

import json
import socket
import stat

import pytest
from helpers import QUICK, run, save_random_model

NAMES = ("training-host-17", "someone-4711", "S3CRET-in-the-environment")


def strings(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("script, flags", [
    ("train_ppo", []), ("train_grpo", ["--beta", "0.1", "--sampling", "lilo"])])
def test_a_checkpoint_names_no_folder_user_or_host(script, flags, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: NAMES[0])
    for name, value in zip(("HOSTNAME", "USER", "HF_TOKEN"), NAMES, strict=True):
        monkeypatch.setenv(name, value)
    place = tmp_path / "a-place-of-mine"
    place.mkdir()
    save_random_model(place / "the-base", "llama", tokenizer)
    rows = [{"question": f"Tom has {n} pens. How many?", "answer": str(n)} for n in range(2, 14)]
    (place / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "reward.py").write_text("def even(completion, problem):\n    return float(len(completion) % 2)\n")
    (place / "template.txt").write_text(f"{NAMES[2]} {{question}}\n")  # a config of others may name a file with secrets as a template
    quick = ["--model", str(place / "the-base"), "--dataset", str(place / "problems.jsonl"), *QUICK[2:]]
    quick += ["--reward", f"{place / 'reward.py'}:even", "--prompt_template", str(place / "template.txt")]
    quick += ["--max_completion_length", "32", "--max_steps", "1", *flags]
    assert run(script, place / "first", monkeypatch=monkeypatch, quick=quick) == 0
    again = [*quick, "--adapter", str(place / "first" / "checkpoint-1")]  # its base is named too
    assert run(script, place / "second", monkeypatch=monkeypatch, quick=again) == 0
    for folder in (place / "first" / "checkpoint-1", place / "second" / "checkpoint-1"):
        for path, content in strings(folder).items():
            for name in (str(tmp_path), place.name, *NAMES, socket.gethostname()):
                assert name.encode() not in content, (path, name)
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert settings["target_modules"] == sorted(settings["target_modules"])  # two processes write the same bytes
        assert settings["base_model_name_or_path"] == "the-base"
        assert len({stat.S_IMODE(path.stat().st_mode) for path in strings(folder)}) == 1


def test_the_name_of_a_base_from_the_hub_stays_and_that_of_a_folder_is_its_last(tmp_path):
    from common.config import CommonConfig
    from common.policy.pretrained import public_name

    assert public_name(CommonConfig(model="Qwen/Qwen2.5-1.5B")) == "Qwen/Qwen2.5-1.5B"
    (tmp_path / "base").mkdir()
    for name in (tmp_path / "base", f"{tmp_path}/base/", f"{tmp_path}/base/../base"):
        assert public_name(CommonConfig(model=str(name))) == "base"
    assert public_name(CommonConfig()).startswith("tiny-")


def test_the_command_in_a_model_card_keeps_texts_and_shortens_paths(tmp_path):
    from common.run.model_card import folderless

    (tmp_path / "gone").mkdir()
    for path in (f"{tmp_path}/gone", f"{tmp_path}/gone/", "~/elsewhere/gone", "../x/gone", f"{tmp_path}/deleted/gone"):
        assert folderless(path) == "gone"
    assert folderless(f"{tmp_path}/rewards/mine.py:score") == "mine.py:score"
    for kept in ("Qwen/Qwen2.5-1.5B", "openai/gsm8k", "arithmetic:values=18,tiers=plus:1:1-2"):
        assert folderless(kept) == kept
    for kept in ("/no_think", "/", "~~~", "./", "a" * 5000):
        assert folderless(kept, text=True) == kept
