"""The adapter's two products on a bfloat16 base, against PEFT's own path and against float32."""

import pytest
import torch
from helpers import ARCHITECTURES, make_policy, metrics, random_batch, run
from safetensors.torch import load_file
from torch.testing import assert_close

from common.policy.critic import Critic
from common.policy.lora import AddLora
from common.policy.micro_batches import microbatches
from common.policy.optim import make_optimizer, take_step


def numbers(policy, tokenizer):
    """Log-probs, and the gradient of their sum."""
    (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
    logps = policy.logps(micro)[0]
    logps.sum().backward()
    return logps.detach().float(), torch.cat([p.grad.flatten() for p in policy.parameters_of().values()])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_agrees_with_float32(architecture, checkpointing, random_models, tokenizer):
    flags = {"gradient_checkpointing": checkpointing}
    exact, ours = (numbers(make_policy(random_models[architecture], tokenizer, dtype=dtype, **flags), tokenizer)
                   for dtype in ("float32", "bfloat16"))
    for true, own in zip(exact, ours, strict=True):
        assert (own - true).norm() < 0.2 * true.norm()


def test_a_layer_is_no_further_from_the_truth_than_by_pefts_path(random_models, tokenizer):
    policy = make_policy(random_models["qwen2"], tokenizer, dtype="bfloat16")
    policy.copies["default"].renew()
    torch.manual_seed(0)
    errors = []
    for layer in policy._lora_layers():
        x = torch.randn(3, 40, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        base = layer.base_layer(x).float() + layer.scaling["default"] * (x.float() @ a.T) @ b.T
        with torch.autocast("cpu", torch.bfloat16):
            outputs = base, layer(x), type(layer).forward(layer, x)  # the truth, ours, PEFT's
        weights = torch.randn_like(base)
        gradients = [torch.autograd.grad((output.float() * weights).sum(), (x, a, b), retain_graph=True) for output in outputs]
        true, *others = ([number.detach().float() for number in (output, *grads)] for output, grads in zip(outputs, gradients, strict=True))
        errors.append([[((x - y).norm() / y.norm()).item() for x, y in zip(other, true, strict=True)] for other in others])
    ours, peft = torch.tensor(errors).mean(dim=0)  # (4,) each: of the output, and of the gradients of x, A and B
    assert (ours < 1.05 * peft).all() and (ours < 0.02).all()


def test_its_gradient_is_right():
    torch.manual_seed(0)
    output, x, a, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 5), (2, 3, 4), (2, 4), (5, 2)))
    scale = 0.7

    def sum_of(output, x, a, b):
        return AddLora.apply(output.clone(), x, a, b, a.detach(), b.detach(), scale)

    assert_close(sum_of(output, x, a, b), output + scale * (x @ a.T) @ b.T)
    expected = torch.autograd.grad((output + scale * (x @ a.T) @ b.T).square().sum(), (output, x, a, b))
    assert_close(torch.autograd.grad(sum_of(output, x, a, b).square().sum(), (output, x, a, b)), expected)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit"])
def test_the_copies_follow_the_weights(optim, random_models, tokenizer, tmp_path):
    if optim != "adamw_torch":
        pytest.importorskip("bitsandbytes")
    policy = make_policy(random_models["llama"], tokenizer, dtype="bfloat16")
    Critic(policy, 0)

    def same(adapter="default"):
        policy.hidden_states(torch.tensor([[5, 6, 7]]))
        copies = policy.copies[adapter]
        return all(torch.equal(part, p.to(torch.bfloat16)) for part, p in zip(copies.parts, copies.parameters, strict=True))

    optimizer = make_optimizer(policy.parameters_of(), 1e-2, optim)
    (micro,) = microbatches(random_batch(tokenizer), torch.arange(3), 10_000, policy)
    for _ in range(2):
        policy.logps(micro)[0].sum().backward()
        take_step(optimizer, 1e-2)
        assert same() and same("critic")
    policy.save(tmp_path / "low", torch.bfloat16)
    policy.save(tmp_path / "full")
    low, full = (load_file(tmp_path / kind / "adapter_model.safetensors") for kind in ("low", "full"))
    assert low.keys() == full.keys() and all(torch.equal(low[key], full[key].to(torch.bfloat16)) for key in low)
    with torch.no_grad():
        for parameter in policy.parameters_of().values():
            parameter.zero_()
    assert same() and not policy.copies["default"].whole.any()
    policy.load(tmp_path / "full")
    with torch.inference_mode():
        assert same()
    policy.logps(micro)[0].sum().backward()  # copies that were renewed in inference mode still serve a gradient


@pytest.mark.parametrize("script", ["train_grpo", "train_ppo"])
def test_a_run_in_bfloat16_resumes_to_the_bit(script, tmp_path, monkeypatch):
    flags = ["--dtype", "bfloat16", "--max_steps", "4", "--eval_steps", "0", "--save_steps", "2", "--save_total_limit", "0"]
    assert run(script, tmp_path / "whole", *flags, monkeypatch=monkeypatch) == 0
    whole = load_file(tmp_path / "whole" / "checkpoint-4" / "adapter_model.safetensors")
    rows = metrics(tmp_path / "whole")
    again = ["--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-2")]
    assert run(script, tmp_path / "whole", *again, monkeypatch=monkeypatch, quick=[]) == 0
    resumed = load_file(tmp_path / "whole" / "checkpoint-4" / "adapter_model.safetensors")
    assert all(torch.equal(resumed[key], whole[key]) for key in whole) and metrics(tmp_path / "whole") == rows
