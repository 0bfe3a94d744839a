"""Forks as docs/forks.md describes them: copies of a script with a few lines changed, run on the embedded model."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from helpers import QUICK, ROOT, metrics
from helpers import run as run_base

from common.launch import parse_command_line, run_script

FLAGS = [*QUICK, "--max_steps", "2"]


def fork(folder, *changes, base="train_grpo"):
    """A copy of a script with (old, new) replaced, imported. Every old text must be there once."""
    text = (ROOT / f"{base}.py").read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "train_fork.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("train_fork", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_fork"] = module
    spec.loader.exec_module(module)
    return module


def run(module, folder, monkeypatch, *flags):
    """Exit code or message, as helpers.run."""
    monkeypatch.setattr(sys, "argv", ["train_fork.py", *FLAGS, "--output_dir", str(folder), *flags])
    try:
        run_script(module.train, parse_command_line(module.Config, module.__file__))
    except SystemExit as end:
        return end.code
    return 0


LOSS = '            return loss, {"entropy": entropy,'
BONUS = "            loss = loss - 1.0 * aggregate(entropy, micro.mask, config.loss_aggregation, divisor)\n" + LOSS
NEEDS = "        needs_pass = mask.any(dim=1) & ((advantages != 0) | (config.beta > 0))  # (B,)\n"


def test_an_entropy_bonus_changes_the_run_and_is_not_lost_where_the_advantage_is_zero(tmp_path, monkeypatch):
    assert run_base("train_grpo", tmp_path / "base", "--max_steps", "2", monkeypatch=monkeypatch) == 0
    narrow = fork(tmp_path, (LOSS, BONUS))
    assert "needs_pass" in run(narrow, tmp_path / "narrow", monkeypatch)
    wide = fork(tmp_path, (LOSS, BONUS), (NEEDS, "        needs_pass = mask.any(dim=1)  # (B,)\n"))
    assert run(wide, tmp_path / "wide", monkeypatch) == 0
    first, second = metrics(tmp_path / "base")[1], metrics(tmp_path / "wide")[1]
    assert first["reward"] == second["reward"] and first["grad_norm"] != second["grad_norm"]


MASK = "        mask = batch.loss_mask(batch.truncated if config.mask_truncated_completions else None)  # (B, T): tokens in the loss\n"
TOP = """        rows = mask.any(dim=1).nonzero()[:, 0]
        entropies = per_token(lambda micro: policy.logps(micro, entropy=True)[1], batch, rows, config.max_tokens_per_microbatch, policy)
        mask = mask & (entropies >= entropies[mask].quantile(0.8))
        kept.append((entropies, mask))
"""


def test_a_mask_of_top_entropy_tokens_is_the_mask_of_the_loss(tmp_path, monkeypatch):
    module = fork(
        tmp_path,
        (MASK, MASK + TOP),
        ("from common.policy.policy import all_logps", "from common.policy.policy import all_logps, per_token"),
        ('if __name__ == "__main__":\n    run_script', 'kept = []\n\nif __name__ == "__main__":\n    run_script'),
    )
    assert run(module, tmp_path / "run", monkeypatch, "--max_steps", "1", "--eval_steps", "0") == 0
    (entropies, mask), row = module.kept[0], metrics(tmp_path / "run")[-1]
    assert 0.15 < mask.float().sum() / (entropies != 0).float().sum() < 0.35
    trained = mask[(mask.any(dim=1)) & torch.ones(len(mask), dtype=torch.bool)]
    assert trained.any() and row["entropy"] > entropies[entropies != 0].mean()  # the logged mean is over the masked tokens alone


FILL = "    fill = partial(sample, engine=engine, config=config)  # samples the completions that groups still lack\n"
TWO_TURNS = """    fill = partial(two_turns, engine=engine, config=config)
"""
FUNCTION = '''
def two_turns(groups, engine, config):
    """A first answer, then the question again (not sampled), then a second answer, which is the one that is scored."""
    new = sample(groups, engine, config)
    fresh = set(map(id, new))
    places = [(group, i) for group in groups for i, c in enumerate(group.completions) if id(c) in fresh]
    again = [Request((*g.problem.prompt_ids, *g.completions[i].ids, *g.problem.prompt_ids), derive_seed(g.seed, "second", i), 1,
                     config.max_completion_length, config.temperature if g.temperature is None else g.temperature) for g, i in places]
    for (group, i), (second,) in zip(places, engine.generate(again), strict=True):
        first, given = group.completions[i], group.problem.prompt_ids
        group.completions[i] = Completion([*first.ids, *given, *second.ids], [*first.logps, *[0.0] * len(given), *second.logps],
                                          second.finish_reason, second.text,
                                          (*[True] * len(first.ids), *[False] * len(given), *[True] * len(second.ids)))
    return [group.completions[i] for group, i in places]


def train(config: Config) -> None:
'''


@pytest.mark.parametrize("base", ["train_grpo", "train_ppo"])
def test_two_turns_reach_every_way_of_sampling_and_given_tokens_are_in_no_loss_or_count(base, tmp_path, monkeypatch):
    imports = "from common.records import make_batch" if base == "train_grpo" else "from common.records import Batch, make_batch"
    module = fork(
        tmp_path,
        (FILL, TWO_TURNS),
        ("\ndef train(config: Config) -> None:\n", FUNCTION),
        (imports, "from common.records import Batch, Completion, Request, derive_seed, make_batch"),
        base=base,
    )
    batches = []
    real = module.microbatches
    monkeypatch.setattr(module, "microbatches", lambda batch, *rest: batches.append((batch, rest[-1])) or real(batch, *rest))
    assert run(module, tmp_path / "run", monkeypatch, "--sampling", "lilo", "--candidate_factor", "2", "--eval_steps", "1") == 0
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3 and all("eval/pass@1" in row for row in rows)
    batch, mask = batches[0]
    for row, (problem, completion) in enumerate(zip(batch.problems, batch.completions, strict=True)):
        first = completion.sampled.index(False)
        given = slice(first, first + len(problem.prompt_ids))
        assert tuple(completion.ids[given]) == problem.prompt_ids and not mask[row, given].any()
        assert mask[row].sum() == completion.num_sampled == len(completion.ids) - len(problem.prompt_ids)
    assert rows[2]["num_tokens"] > 0 and rows[1]["completions/mean_length"] < max(len(c.ids) for c in batch.completions)


def test_an_adapter_that_is_not_plain_lora_is_refused_by_name(tmp_path, monkeypatch):
    from common.policy import new_adapter

    real = new_adapter.LoraConfig
    monkeypatch.setattr(new_adapter, "LoraConfig", lambda **settings: real(**settings, use_dora=True))
    message = run_base("train_grpo", tmp_path / "run", "--max_steps", "1", monkeypatch=monkeypatch)
    assert "use_dora" in message and "plain LoRA" in message


def test_a_sampler_that_samples_from_other_weights_stops_the_run(tmp_path, monkeypatch):
    """The check at the start runs for the transformers engine too."""
    from common.policy.policy import Policy

    real = Policy.merged_weights
    monkeypatch.setattr(Policy, "merged_weights", lambda self: {layer: 1.001 * weight for layer, weight in real(self).items()})
    message = run_base("train_grpo", tmp_path / "run", "--max_steps", "1", monkeypatch=monkeypatch)
    assert "does not sample from the policy that is trained" in message


def test_the_reference_is_never_the_trained_weights(random_models, tokenizer, tmp_path):
    from helpers import make_policy

    policy = make_policy(random_models["llama"], tokenizer)
    policy.save(tmp_path)
    later = make_policy(random_models["llama"], tokenizer, adapter=str(tmp_path))  # without --beta the frozen copy is not loaded
    with pytest.raises(RuntimeError, match="needs_reference = True"), later.reference():
        pass
    with policy.reference():
        pass
    next(p for name, p in policy.model.named_parameters() if "lora_" not in name).requires_grad_(True)
    with pytest.raises(RuntimeError, match="not the reference policy"), policy.reference():
        pass


def test_a_copy_in_another_folder_runs_as_documented(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train_mine.py").write_text((ROOT / "train_grpo.py").read_text())
    command = [sys.executable, "mine/train_mine.py", *FLAGS, "--max_steps", "1", "--eval_steps", "0"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("train_mine-") and len(metrics(folder)) == 1


def test_a_fix_travels_to_the_other_scripts_and_to_a_private_copy(tmp_path):
    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True)

    for name in ("train_grpo.py", "train_nft.py", "tools/carry.py", "common/__init__.py", "common/console.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    git("init", "-q")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "x")
    script, mine = tmp_path / "train_grpo.py", tmp_path / "mine.py"
    mine.write_text(script.read_text().replace(LOSS, BONUS))
    shared, own = "            sampler.record()  # remembers", "    advantages = torch.where((low == high)[group]"
    changed = script.read_text().replace(shared, "            sampler.record()  # CHANGED remembers")
    script.write_text(changed)
    carry = [sys.executable, "tools/carry.py", "train_grpo.py"]
    done = subprocess.run(carry, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "train_nft.py: merged" in done.stdout
    assert "# CHANGED remembers" in (tmp_path / "train_nft.py").read_text()
    done = subprocess.run([*carry, "--to", "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "# CHANGED remembers" in mine.read_text() and BONUS in mine.read_text()
    script.write_text(changed.replace(LOSS, "            # theirs\n" + LOSS))
    done = subprocess.run([*carry, "--to", "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "1 conflicts" in done.stdout and "<<<<<<<" in mine.read_text()
    assert own in script.read_text()


def test_numbers_of_tokens_that_were_not_sampled_reach_no_gradient_and_no_mean(random_models, tokenizer):
    from helpers import make_policy

    from common.policy.loss import aggregate, importance_weights
    from common.policy.micro_batches import microbatches
    from common.records import Completion, Problem, make_batch
    from common.run.metrics import batch_metrics

    policy = make_policy(random_models["llama"], tokenizer)
    problem, nan = Problem("p", "", (4, 5), ""), float("nan")
    batch = make_batch([problem], [[Completion([6, 7, 8], [-1.0, nan, -1.0], "stop", "x", (True, False, True))]])
    (micro,) = microbatches(batch, torch.arange(1), 100, policy)
    logps, _ = policy.logps(micro)
    weights = importance_weights(logps.detach(), micro.sampling_logps, micro.mask, cap=2.0)
    aggregate(-(logps - logps.detach()).exp() * weights, micro.mask, "token-mean", 2.0).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters_of().values())
    assert batch_metrics(batch, torch.zeros(1))["neg_logp"] == 1.0
    none = make_batch([problem], [[Completion([6, 7], [-1.0, -1.0], "stop", "x", (False, False))]])
    assert batch_metrics(none, torch.zeros(1))["completions/mean_length"] == 0


@pytest.mark.parametrize("setting", [{"init_lora_weights": "pissa"}, {"trainable_token_indices": [3, 4]}])
def test_adapters_that_change_more_than_a_and_b_are_refused(setting, random_models, tokenizer):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig

    from common.config import CommonConfig
    from common.errors import UserError
    from common.policy.load import load_policy

    def adapt(base, config):
        return get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear", **setting))

    folder = random_models["llama"]
    with pytest.raises(UserError, match=next(iter(setting))):
        load_policy(CommonConfig(model=str(folder)), tokenizer, AutoConfig.from_pretrained(folder), adapt=adapt)
