import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from common.config import CommonConfig
from common.policy.attention import NAME, attention
from common.policy.load import load_policy


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_it_is_transformers_own_without_the_copies(groups, length, masked, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, heads, n, 8, generator=generator) for heads, n in ((6, length), (groups, 9), (groups, 9)))
    mask = torch.rand(4, 1, length, 9, generator=generator) < 0.6 if masked else None
    if masked:
        mask[..., 0] = True  # each token attends to something
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 6 // groups, True
    if not masked and length > 1:
        key, value = key[:, :, :length], value[:, :, :length]
    expected = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)[0]
    if length == 1 and groups < 6:
        monkeypatch.setattr("common.policy.attention.sdpa_attention_forward", None)  # not called
    assert_close(attention(module, query, key, value, mask, scaling=0.3)[0], expected)


def test_a_policy_uses_it_but_for_models_with_a_soft_cap_on_scores(random_models, tokenizer):
    for architecture, name in (("qwen3", NAME), ("gemma2", "eager")):
        folder = random_models[architecture]
        policy = load_policy(CommonConfig(model=str(folder), lora_r=4), tokenizer, AutoConfig.from_pretrained(folder))
        assert policy.base.config._attn_implementation == name
