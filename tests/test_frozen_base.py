"""Nothing writes to the frozen base: the sampler samples from the same memory."""

import hashlib
from pathlib import Path

import pytest
from helpers import QUICK, SCRIPTS, metrics, run

from common.config import CommonConfig
from common.files import sha256
from common.policy import load
from common.policy.merge import merge
from common.policy.pretrained import load_model_config, model_folder

FLAGS = {"train_grpo": ["--beta", "0.05", "--sampling", "lilo"], "train_nft": ["--beta", "0.05"],
         "train_ppo": ["--beta", "0.05", "--kl_in_reward"], "train_vineppo": ["--beta", "0.05"]}


def checksum(base):
    """Of everything that was there before adapters were put on."""
    tensors = {name.replace(".base_layer", ""): tensor for name, tensor in (*base.named_parameters(), *base.named_buffers())
               if ".lora_" not in name}
    return {name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_twenty_steps_a_resume_and_a_merge_leave_every_bit_of_the_base(script, tmp_path, monkeypatch):
    """With a reference policy, evaluations, lilo's own sampling, merged weights for every sample, and PPO's critic."""
    bases, load_base = [], load.load_base

    def watched(*inputs, **options):
        base = load_base(*inputs, **options)
        bases.append((base, checksum(base)))
        return base

    monkeypatch.setattr(load, "load_base", watched)
    config = CommonConfig(model="tiny", dataset=QUICK[1])
    (file,) = Path(model_folder(config)).glob("*.safetensors")
    stored, run_folder = sha256(file), tmp_path / "run"
    flags = [*FLAGS[script], "--eval_steps", "5", "--save_steps", "20"]
    assert run(script, run_folder, *flags, "--max_steps", "20", monkeypatch=monkeypatch) == 0
    resumed = ["--resume_from_checkpoint", str(run_folder / "checkpoint-20"), "--max_steps", "22"]
    assert run(script, run_folder, *resumed, monkeypatch=monkeypatch) == 0
    assert len(bases) == 2 and metrics(run_folder)[-1]["step"] == 22
    assert any(row.get("grad_norm") for row in metrics(run_folder))  # something was trained
    assert all(checksum(base) == before and len(before) > 20 for base, before in bases)
    config.adapter = str(run_folder / "checkpoint-22")
    merge(config, load_model_config(config), tmp_path / "out")
    assert sha256(file) == stored != sha256(tmp_path / "out" / "model.safetensors")
