"""Whether a family of models works here, and with which attention: tried on a miniature, before the weights of the model are read.

Plain transformers with PEFT says what the log-probs are: each text alone, with eager attention, without a cache. The policy must give the
same log-probs and the same gradient, with padded rows, after its adapter was saved and read, and with merged weights.
"""
from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from common.config import CommonConfig, SamplingConfig
from common.errors import UserError
from common.policy.adapters import check_adapter, linear_layers, with_saved_adapter
from common.policy.attention import NAME, register
from common.policy.micro_batches import microbatches
from common.policy.miniature import VOCABULARY, expert_blocks, miniature, random_model
from common.policy.model_files import words
from common.policy.new_adapter import with_adapter
from common.policy.policy import Policy
from common.policy.self_checks import WORKING, fit_head, packs_alike
from common.records import Completion, Problem, make_batch

ALLOWED = 1e-4  # nats, and relative for the gradient: what float32 rounding explains many times over
SHAPE = {"lora_r": 4, "lora_alpha": 8}  # of the adapter on a miniature
TEXTS = ((5, 7), (3, 1), (9, 15))  # tokens of prompt and completion; the last is longer than the windows of a miniature
PLAIN = SimpleNamespace(eos_token_id=0, chat_template=None)  # a tokenizer of a miniature, whose texts nobody reads


@dataclass(frozen=True)
class Fit:
    """How a family of models runs here."""

    attention: str  # for `attn_implementation`
    packs: bool  # whether rows may be packed
    adapted: tuple[str, ...] = ()  # if the model has experts: the kinds of layers that get an adapter


class Misfit(Exception):
    """Why a family does not work."""


def check_family(config: SamplingConfig, model_config: PretrainedConfig) -> Fit:
    """How the model of a run works. Raises UserError for a family that does not work; no weights are read."""
    try:
        return fit_of(config, model_config)
    except Misfit as misfit:
        raise UserError(f"--model {config.model} is a {model_config.model_type} model, which does not work here: {misfit}. "
                        f"{WORKING}") from misfit


def fit_of(config: SamplingConfig, model_config: PretrainedConfig) -> Fit:
    """How the model of a run works. Raises Misfit."""
    if config.model == "tiny":  # known
        return Fit(register(), True)
    return _fit(json.dumps(model_config.to_dict(), default=str), tuple(getattr(config, "lora_target_modules", None) or ()))


@functools.lru_cache(maxsize=8)  # it is asked for twice, before the sampler starts and before the weights are read
def _fit(settings: str, targets: tuple[str, ...]) -> Fit:
    small = _miniature(json.loads(settings))
    if small is None:
        return Fit("eager" if '"attn_logit_softcapping"' in settings else register(), True)
    with one_thread():
        return trial(small, targets)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread: to share such small products takes longer than to compute them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def miniature_of(config: SamplingConfig, model_config: PretrainedConfig) -> PretrainedConfig | None:
    """The config of the miniature of the run's model. None for the embedded model, and where no miniature can be made."""
    return None if config.model == "tiny" else _miniature(json.loads(json.dumps(model_config.to_dict(), default=str)))


def _miniature(settings: dict[str, Any]) -> PretrainedConfig | None:
    try:
        small = miniature(CONFIG_MAPPING[settings["model_type"]].from_dict(settings))
        random_model(small, "eager")
    except Exception:  # sizes that do not go together in this family: only the model itself can tell, after it is loaded
        return None
    return small


def trial(small: PretrainedConfig, targets: tuple[str, ...] = ()) -> Fit:
    """How the family of a miniature works. Raises Misfit."""
    try:
        plain = adapted(random_model(small, "eager"), targets)
        expected = plain_logps(plain)
    except Exception as error:  # a model that cannot be run raises whatever it likes
        raise Misfit(f"a miniature of it cannot be run on tokens alone ({short(error)})") from error
    _check_causal(plain)
    reasons = {}
    for attention in (register(), "sdpa", "eager"):
        try:
            policy = small_policy(small, Fit(attention, True), targets)
            _check(policy, plain, expected)
            policy.packs = policy.packs and packs_alike(policy) is None
            _check_saved(policy, small, attention)
        except Misfit as misfit:
            reasons[attention] = misfit
        except Exception as error:
            reasons[attention] = Misfit(short(error))
        else:
            blocks = expert_blocks(policy.base)
            names = {name.rpartition(".lora_A")[0].rpartition(".")[2] for name in policy.parameters_of() if ".lora_A." in name}
            return Fit(attention, policy.packs, tuple(sorted(names)) if blocks else ())
    raise next((reason for name, reason in reasons.items() if name != NAME and "does not support" not in str(reason)), reasons[NAME])


def short(error: Exception) -> str:
    """What an error says, without the families that work."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return (kind + words(error).replace(f"; {WORKING}", ""))[:160]


def small_policy(small: PretrainedConfig, fit: Fit, targets: tuple[str, ...] = (), tokenizer: Any = PLAIN) -> Policy:
    """A policy on the miniature, with an adapter that is not zero."""
    policy = Policy(adapted(random_model(small, fit.attention), targets), tokenizer, 0.7)
    policy.packs = policy.packs and fit.packs
    policy.activate("default")
    fit_head(policy)
    return policy


@torch.no_grad()
def adapted(base: PreTrainedModel, targets: tuple[str, ...]) -> PeftModel:
    """The base with an adapter that matters, always with the same random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = with_adapter(base, CommonConfig(**SHAPE, lora_target_modules=list(targets) or None))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def texts() -> list[tuple[list[int], list[int]]]:
    """Tokens of prompts and completions."""
    rows = [[3 + (i * i * 7 + 11 * i + row) % (VOCABULARY - 3) for i in range(sum(sizes))] for row, sizes in enumerate(TEXTS)]
    return [(row[:prompt], row[prompt:]) for row, (prompt, _) in zip(rows, TEXTS, strict=True)]


def plain_logps(model: PeftModel, temperature: float = 0.7) -> list[Tensor]:
    """Log-probs of each completion (T,), nats, with gradient: each text alone, without a cache."""
    found = []
    for prompt, completion in texts():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, len(prompt) - 1:-1].float()
        found.append((logits / temperature).log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0])
    return found


@torch.no_grad()
def _check_causal(model: PeftModel) -> None:
    """Raises Misfit if the logits of a token depend on later tokens."""
    prompt, completion = texts()[-1]
    ids = torch.tensor([[*prompt, *completion]])
    whole, part = (model(input_ids=x, use_cache=False).logits[0, :len(prompt)].float().log_softmax(-1) for x in (ids, ids[:, :len(prompt)]))
    if not (whole - part).abs().max() < 10 * ALLOWED:
        raise Misfit(f"its log-probs of a token depend on the tokens after it (by {(whole - part).abs().max():.2g} nats)")


def _check(policy: Policy, plain: PeftModel, expected: list[Tensor]) -> None:
    """Raises Misfit if the policy's log-probs of padded rows, or their gradient, are not the expected ones."""
    packs, policy.packs = policy.packs, False
    batch = make_batch([Problem(str(i), "", tuple(prompt), "") for i, (prompt, _) in enumerate(texts())],
                       [[Completion(ids, [0.0] * len(ids), "stop", "")] for _, ids in texts()])
    (micro,) = microbatches(batch, torch.arange(len(TEXTS)), 10_000, policy, shared=False)  # all rows, in each process
    logps = policy.logps(micro)[0]
    ours = torch.cat([logps[micro.rows.tolist().index(row), :new] for row, (_, new) in enumerate(TEXTS)])
    theirs = torch.cat(expected)
    policy.packs = packs
    apart = (ours - theirs).abs().max().item()
    if not apart < ALLOWED:
        raise Misfit(f"its log-probs in a batch are off by {apart:.2g} nats")
    upstream = torch.linspace(-1, 1, len(theirs))
    parameters = {name: p for name, p in plain.named_parameters() if ".default." in name and "lora_" in name}
    wanted = torch.autograd.grad(theirs, list(parameters.values()), upstream, retain_graph=True, allow_unused=True)
    own = policy.parameters_of()
    found = torch.autograd.grad(ours, [own[name] for name in parameters], upstream, allow_unused=True)
    for name, ours_, theirs_ in zip(parameters, found, wanted, strict=True):
        if ours_ is None or theirs_ is None:
            raise Misfit(f"the adapter of {name.removeprefix('base_model.model.').partition('.lora_')[0]} gets no gradient; leave the "
                         "layer out with --lora_target_modules")
        if not (ours_ - theirs_).norm() <= 10 * ALLOWED * theirs_.norm() + 1e-6:
            raise Misfit(f"the gradient of {name} is wrong")


@torch.no_grad()
def _check_saved(policy: Policy, small: PretrainedConfig, attention: str) -> None:
    """Raises Misfit or UserError if a checkpoint's adapter cannot be read, or gives other logits, merged or not."""
    ids = torch.tensor([texts()[-1][0]])
    expected = policy.model(input_ids=ids, use_cache=False).logits
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder))
        check_adapter(folder, linear_layers(random_model(small, attention)), "the model")
        again = with_saved_adapter(random_model(small, attention), folder).eval()
    with policy.merged(policy.merged_weights()):
        ways = {"sampled with": policy.base(input_ids=ids, use_cache=False).logits}
    ways["saved and read"] = again(input_ids=ids, use_cache=False).logits
    ways["merged"] = again.merge_and_unload()(input_ids=ids, use_cache=False).logits
    for how, logits in ways.items():
        if not (logits - expected).abs().max() < 10 * ALLOWED:
            raise Misfit(f"its logits are others when its adapter is {how}")
