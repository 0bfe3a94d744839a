import pytest
import torch
from helpers import make_policy

import common.policy.self_checks as self_checks
from common.errors import UserError
from common.policy.policy import Policy
from common.policy.self_checks import keeps_packed_rows_apart


def test_rows_that_cannot_be_packed_are_told(random_models, tokenizer, monkeypatch, capsys):
    policy = make_policy(random_models["llama"], tokenizer)
    assert policy.packs and keeps_packed_rows_apart(policy)
    assert not capsys.readouterr().out
    with monkeypatch.context() as rough:
        rough.setattr(Policy, "hidden_states", shaken)
        assert not keeps_packed_rows_apart(policy)
    assert "note: rows are padded and prompts not shared in the update: packed rows differ" in capsys.readouterr().out
    monkeypatch.setattr(Policy, "hidden_states", lambda *_, **__: 1 / 0)
    assert not keeps_packed_rows_apart(policy)
    assert "not shared in the update: ZeroDivisionError" in capsys.readouterr().out


def shaken(self, input_ids, real=Policy.hidden_states, **inputs):
    output = real(self, input_ids, **inputs)
    output.last_hidden_state = output.last_hidden_state * (1.1 if "packing" in inputs else 1.0)
    return output


@pytest.mark.parametrize("rows", ["packed", "alone"])
def test_no_room_for_the_check_is_an_error_in_one_line(rows, random_models, tokenizer, monkeypatch):
    policy = make_policy(random_models["llama"], tokenizer)
    real = self_checks._states_and_gradient

    def full(policy, ids, places, **inputs):
        if ("packing" in inputs) == (rows == "packed"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(policy, ids, places, **inputs)

    monkeypatch.setattr(self_checks, "_states_and_gradient", full)
    with pytest.raises(UserError, match="out of memory after the model was loaded"):
        keeps_packed_rows_apart(policy)


def test_the_check_takes_the_gradient_of_two_layers_alone(random_models, tokenizer, monkeypatch):
    """A copy of the whole adapter's gradient for each row took more memory than the update at rank 256."""
    policy = make_policy(random_models["llama"], tokenizer)
    asked, real = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, parameters, **more: asked.append(parameters) or real(loss, parameters, **more))
    monkeypatch.setattr(policy.base.config, "num_hidden_layers", 7)  # its two layers have 28 parameters
    assert keeps_packed_rows_apart(policy)
    assert {len(parameters) for parameters in asked} == {8}
