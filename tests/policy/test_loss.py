import pytest
import torch
from torch.testing import assert_close

from common.policy.loss import aggregate, importance_weights, kl_estimate, loss_divisor, selected_logps, whiten

MODES = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]


@pytest.mark.parametrize("mode, expected", list(zip(MODES, [0.083333, -0.125, 0.25, 0.03125], strict=True)))
def test_aggregate_docstring_numbers(mode, expected):
    loss = torch.tensor([[-1, -0.5, 9, 9], [0.2, 0.4, 0.6, 0.8]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert aggregate(loss, mask, mode, loss_divisor(mask, mode, 8)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_fully_masked_row_counts_as_nothing(mode):
    loss = torch.tensor([[1.0, 2.0], [float("nan"), 5.0]])
    mask = torch.tensor([[True, True], [False, False]])
    assert loss_divisor(mask, mode, 4) == loss_divisor(mask[:1], mode, 4)
    assert aggregate(loss, mask, mode, loss_divisor(mask, mode, 4)) == aggregate(loss[:1], mask[:1], mode, loss_divisor(mask[:1], mode, 4))


def test_unknown_names_are_refused():
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="unknown aggregation"):
        loss_divisor(mask, "mean")
    with pytest.raises(ValueError, match="max_completion_length"):
        loss_divisor(mask, "constant")
    with pytest.raises(ValueError, match="unknown KL"):
        kl_estimate(mask.float(), mask.float(), kind="k4")


def test_kl_k3_is_never_negative_and_has_the_forward_gradient():
    logps = torch.tensor([[-1.0, -0.2, -3.0]], requires_grad=True)
    ref = torch.tensor([[-1.3, -0.1, -3.0]])
    kl = kl_estimate(logps, ref, "k3")
    assert (kl >= 0).all()
    kl.sum().backward()
    assert_close(logps.grad, 1 - torch.exp(ref - logps).detach())


def test_importance_weights_stay_finite_where_the_sampler_was_sure_of_the_impossible():
    one = torch.ones(1, 1, dtype=torch.bool)
    for mode in ("token", "sequence"):
        assert_close(importance_weights(torch.tensor([[0.0]]), torch.tensor([[-1e9]]), one, cap=2.0, mode=mode), torch.tensor([[2.0]]))


@pytest.mark.parametrize(
    "how, wanted",
    [
        ({"cap": 2.0}, [[1.221403, 0.904837, 2], [1, 0.223130, 0.904837]]),
        ({"cap": 2.0, "floor": 0.5, "bound": "mask"}, [[1.221403, 0.904837, 0], [1, 0, 0.904837]]),
        ({"cap": 2.0, "floor": 0.5}, [[1.221403, 0.904837, 2], [1, 0.5, 0.904837]]),
        ({"cap": 2.0, "mode": "sequence"}, [[2] * 3, [0.201897] * 3]),
        ({"cap": 2.0, "mode": "sequence", "bound": "mask"}, [[0] * 3, [0.201897] * 3]),
        ({"cap": 4.0, "mode": "sequence", "bound": "mask", "floor": 0.5}, [[3.320117] * 3, [0] * 3]),
    ],
)
def test_importance_weights_of_tokens_and_completions_truncated_and_masked(how, wanted):
    old = torch.tensor([[-1, -0.5, -2, 7], [-0.1, -3, -0.7, 7]], requires_grad=True)  # the last column is not in the loss
    sampler, mask = torch.tensor([[-1.2, -0.4, -3.1, 0], [-0.1, -1.5, -0.6, 0]]), torch.tensor([[True, True, True, False]] * 2)
    weights = importance_weights(old, sampler, mask, **how)
    assert weights.shape == old.shape and not weights.requires_grad
    assert_close(weights[:, :3], torch.tensor(wanted, dtype=torch.float32), atol=1e-6, rtol=0)
    assert_close(importance_weights(sampler, sampler, mask, **how), torch.ones(2, 4))


def _full(hidden, weight, tokens, temperature, softcap, bias=0.0, scale=1.0):
    logits = scale * (hidden @ weight.T + bias)
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    logps = torch.log_softmax(logits / temperature, -1)
    return logps.gather(-1, tokens[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunked_logps_match_the_full_computation(softcap, rows):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 16, generator=generator, requires_grad=True)
    weight, tokens = torch.randn(50, 16, generator=generator), torch.randint(50, (10,), generator=generator)
    upstream = torch.randn(10, generator=generator)
    logps, entropy = selected_logps(hidden, weight, tokens, temperature=0.7, softcap=softcap, entropy=True, chunk_elements=50 * rows)
    (grad,) = torch.autograd.grad(logps, hidden, upstream)
    expected, expected_entropy = _full(hidden, weight, tokens, 0.7, softcap)
    (expected_grad,) = torch.autograd.grad(expected, hidden, upstream)
    assert_close(logps, expected, atol=1e-5, rtol=0)
    assert_close(entropy, expected_entropy, atol=1e-5, rtol=1e-5)
    assert_close(grad, expected_grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("alone", [True, False])
def test_the_entropy_has_the_gradient_of_the_full_computation(softcap, rows, alone):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(10, 16, generator=generator, requires_grad=True)
    weight, tokens = torch.randn(50, 16, generator=generator), torch.randint(50, (10,), generator=generator)
    weights = torch.randn(2, 10, generator=generator)
    ours = selected_logps(hidden, weight, tokens, temperature=0.7, softcap=softcap, entropy=True, chunk_elements=50 * rows)
    gradients = []
    for logps, entropy in (ours, _full(hidden, weight, tokens, 0.7, softcap)):
        loss = (entropy * weights[0]).sum() + (0.0 if alone else (logps * weights[1]).sum())
        gradients += torch.autograd.grad(loss, hidden)
    assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.0625, 6.5])
@pytest.mark.parametrize("biased", [True, False])
def test_a_bias_and_a_factor_of_the_head(softcap, scale, biased):
    generator = torch.Generator().manual_seed(2)
    hidden = (torch.randn(10, 16, generator=generator) / 4).requires_grad_()
    weight, tokens = torch.randn(50, 16, generator=generator), torch.randint(50, (10,), generator=generator)
    bias = torch.randn(50, generator=generator) if biased else None
    weights = torch.randn(2, 10, generator=generator)
    ours = selected_logps(hidden, weight, tokens, temperature=0.7, softcap=softcap, bias=bias, scale=scale, entropy=True,
                          chunk_elements=150)
    expected = _full(hidden, weight, tokens, 0.7, softcap, 0.0 if bias is None else bias, scale)
    assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad((weights[0] * logps + weights[1] * entropy).sum(), hidden)[0] for logps, entropy in (ours, expected)]
    # of the largest entry: with the factor 6.5 the gradient is a hundred times that with .0625
    assert_close(*gradients, atol=2e-6 * gradients[1].abs().max().item(), rtol=0)
    with pytest.raises(ValueError, match="frozen"):
        selected_logps(hidden, weight, tokens, temperature=1.0, bias=torch.zeros(50, requires_grad=True))


def test_no_tensor_of_all_rows_by_the_vocabulary_is_made():
    """The largest tensor that forward and backward allocate is one chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    hidden, weight = torch.randn(64, 8, requires_grad=True), torch.randn(5000, 8)
    with Watch():
        logps, _ = selected_logps(hidden, weight, torch.zeros(64, dtype=torch.long), temperature=1.0, entropy=True, chunk_elements=4 * 5000)
        logps.sum().backward()
    assert 5000 < largest <= weight.numel()  # the chunks of 4 rows, and views of the head itself


def test_a_head_that_wants_a_gradient_is_refused():
    with pytest.raises(ValueError, match="frozen"):
        selected_logps(torch.randn(2, 4), torch.randn(5, 4, requires_grad=True), torch.zeros(2, dtype=torch.long), temperature=1.0)


def test_k3_far_outside_has_no_gradient_in_the_wrong_direction():
    logps = torch.tensor([[-30.0, -1.0]], requires_grad=True)
    kl_estimate(logps, torch.tensor([[-1.0, -30.0]]), "k3").sum().backward()
    assert logps.grad[0, 0] <= 0 and logps.grad[0, 1].item() == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0.3, 0.1, 1.0, 0.0])
def test_equal_advantages_whiten_to_nothing(value):
    mask = torch.arange(40)[None] < torch.tensor([[40], [13]])
    assert (whiten(torch.full((2, 40), value), mask) == 0).all()
    assert (whiten(torch.tensor([[3.0, 1.0]]), torch.tensor([[True, False]])) == 0).all()


def test_whitening_has_mean_0_and_variance_1_and_ignores_padding():
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 3 + 5
    mask = torch.arange(9)[None] < torch.tensor([9, 2, 5, 1])[:, None]
    whitened = whiten(torch.where(mask, x, torch.nan), mask)
    assert whitened[mask].mean().abs() < 1e-6 and whitened[mask].var().item() == pytest.approx(1, abs=1e-5)
    assert (whitened[~mask] == 0).all()
