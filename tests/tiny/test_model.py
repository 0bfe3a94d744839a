import errno
import hashlib
import json
import os
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import common.files as files
import common.tiny.model as tiny
from common.config import CommonConfig
from common.errors import UserError
from common.policy.load import load_policy
from common.policy.pretrained import context_length, load_tokenizer
from common.problems.data import load_rows
from common.problems.prompts import load_template, make_problems
from common.rollout.rounds import make_requests
from common.rollout.transformers_engine import TransformersEngine
from common.tiny.model import EOS, Muon, build_tokenizer, orthogonalised, tiny_model
from common.tiny.task import Arithmetic, Generator
from common.verify.rewards import score

QUICK = "warm_steps=3,train=40,test=20"


def test_tokenizer_gives_back_every_text_and_numbers_are_single_tokens(tmp_path):
    settings = Arithmetic(words=2, values=40)
    tokenizer, generator, rng = build_tokenizer(settings), Generator(settings), random.Random(0)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for _ in range(300):
        chain = generator.chain(rng, generator.train_tiers)
        text = f"{chain.question}\n{generator.solution(chain, rng)}"
        for either in (tokenizer, loaded):
            ids = either(text)["input_ids"]
            assert either.decode(ids) == text and either.unk_token_id not in ids
        assert max(len(tokenizer(number)["input_ids"]) for number in text.split() if number.isdigit()) == 1
        solution = tokenizer(generator.solution(chain, rng) + EOS)["input_ids"]
        assert len(solution) <= generator.longest_solution()


def test_processes_that_start_at_once_make_one_model_and_another_setting_another(tmp_path, monkeypatch):
    monkeypatch.setenv("VINERY_CACHE", str(tmp_path))
    settings = [Arithmetic.parse(text) for text in (QUICK, QUICK, QUICK + ",words=1")]
    with ProcessPoolExecutor(len(settings), get_context("fork")) as pool:
        folders = list(pool.map(tiny_model, settings))
    assert folders[0] == folders[1] != folders[2]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == sorted(folder.name for folder in set(folders))  # nothing half-made
    before = os.stat(folders[0]).st_mtime_ns
    assert tiny_model(settings[0]) == folders[0] and os.stat(folders[0]).st_mtime_ns == before


def test_a_warm_start_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("VINERY_CACHE", str(tmp_path))

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny.Qwen3ForCausalLM, "save_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        tiny_model(Arithmetic.parse(QUICK))
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


# ---- the model that ships -------------------------------------------------------------------------------------------

TOKENS = "6d0edbef445f95c1675ceafe67a8a72f2b24bdf44ce6ebd8b83219d5a363cd58"  # sha256 of the token ids and labels of all batches
MOVED = 3.2294303e-4  # how far three steps move a weight, on average
CHANGED = (
    "the warm start makes another model than the one that ships: raise RECIPE in common/tiny/model.py, run `python -m common.tiny`, "
    "and write the new numbers here"
)


def test_the_shipped_model_is_the_one_of_the_default_settings(tmp_path):
    folder = Path(tiny.__file__).parent / tiny.folder_name(Arithmetic())
    assert [path.name for path in folder.parent.glob("tiny-*")] == [folder.name]
    assert json.loads((folder / "recipe.json").read_text()) == json.loads(tiny.recipe_of(Arithmetic()))
    shipped, ours = AutoTokenizer.from_pretrained(folder), build_tokenizer(Arithmetic())
    assert shipped.get_vocab() == ours.get_vocab() and len(ours) == json.loads((folder / "config.json").read_text())["vocab_size"]


def test_the_warm_start_reads_the_tokens_that_the_shipped_model_was_made_from():
    tokens = hashlib.sha256()
    for ids, labels in tiny._batches(Generator(Arithmetic()), build_tokenizer(Arithmetic())):
        tokens.update(ids.numpy().astype("<i8").tobytes() + labels.numpy().astype("<i8").tobytes())
    assert tokens.hexdigest() == TOKENS, CHANGED


def test_three_steps_of_the_warm_start_move_the_weights_as_they_did_when_the_shipped_model_was_made():
    """Measured with AVX-512, AVX2 and SSE 4.2, and on one thread or two: equal to 3e-8 of the value."""
    settings, tokenizer = Arithmetic(warm_steps=3), build_tokenizer(Arithmetic())
    start, end = (
        torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])
        for model in (tiny.build_model(len(tokenizer), settings.seed), tiny.warm_start(settings, tokenizer))
    )
    assert (end - start).abs().mean().item() == pytest.approx(MOVED, rel=1e-5), CHANGED


def test_the_default_settings_need_neither_a_warm_start_nor_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VINERY_CACHE", str(tmp_path / "file" / "below"))  # no folder can be made there
    monkeypatch.setattr(tiny, "make_model", lambda *_: pytest.fail("a warm start"))
    folder = tiny_model(Arithmetic())
    assert (folder / "model.safetensors").exists()
    assert tiny_model(Arithmetic(train=50)) == folder  # the model does not depend on the number of training problems
    with pytest.raises(UserError, match="cannot be written"):
        tiny_model(Arithmetic.parse(QUICK))


def test_the_embedded_model_is_able_but_unreliable():
    """Sampled pass@1 .25 to .45, greedy above .80, and solved, frontier and hopeless problems in the training set."""
    config = CommonConfig(prompt_template="question", max_completion_length=Generator(Arithmetic()).longest_solution(), eval_problems=1000)
    tokenizer, model_config = load_tokenizer(config)
    train, test = make_problems(load_rows(config), config, load_template(config, tokenizer), tokenizer, context_length(model_config))
    engine = TransformersEngine()
    engine.connect(load_policy(config, tokenizer, model_config))

    def accuracy(problems, n, temperature):
        groups = engine.generate(make_requests(problems, config, "test", 0, n, temperature))
        return score([p for p in problems for _ in range(n)], [c for group in groups for c in group]).reshape(-1, n).mean(1)

    assert 0.25 < accuracy(test[:400], 4, 1.0).mean() < 0.45
    assert accuracy(test, 1, 0.0).mean() > 0.80
    rates = accuracy(train[:200], 16, 1.0)
    shares = {
        "solved": (rates == 1).float().mean(),
        "hopeless": (rates == 0).float().mean(),
        "frontier": ((rates > 0.1) & (rates < 0.9)).float().mean(),
    }
    assert all(share > 0.05 for share in shares.values()), shares
    assert torch.isfinite(rates).all()


# ---- its optimiser --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(128, 128), (256, 128), (64, 128)])
def test_orthogonalised_matrices_have_singular_values_near_1(shape):
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    matrix = left @ torch.linspace(1, 10, min(shape)).diag() @ right  # random but for its singular values
    found = orthogonalised(matrix)
    values = torch.linalg.svdvals(found)
    assert found.dtype == torch.float32 and found.shape == shape
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(128, 128), (256, 128), (64, 128)])
def test_steps_are_those_of_torchs_muon_to_the_precision_of_bfloat16(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [Muon([ours], lr=0.02), torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.0)]
    for _ in range(3):  # from the second on, the momentum matters
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


def test_a_cached_model_that_is_damaged_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VINERY_CACHE", str(tmp_path))
    settings = Arithmetic.parse("warm_steps=1,train=9,test=9")
    folder = tiny_model(settings)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert tiny_model(settings) == folder and "damaged" not in capsys.readouterr().out
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        (folder / name).write_bytes(whole[name][:100])
        assert tiny_model(settings) == folder and f"damaged ({name} has changed or was cut off)" in capsys.readouterr().out
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_room_for_the_model_is_there_before_the_work(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("VINERY_CACHE", str(tmp_path))
    monkeypatch.setattr(tiny, "warm_start", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match=r"the cache .* cannot be written \(No space left on device\): free some space") as error:
        tiny_model(Arithmetic.parse("warm_steps=1,train=9,test=9"))
    assert "\n" not in str(error.value) and [path.suffix for path in tmp_path.iterdir()] == [".lock"]
