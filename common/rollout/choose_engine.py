"""Which engine samples, and how it is started and connected to the policy."""
from __future__ import annotations

import importlib.util

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from common import parallel
from common.config import SamplingConfig
from common.console import say
from common.errors import UserError
from common.policy.families import check_family
from common.policy.policy import Policy
from common.rollout.engine import Engine
from common.rollout.parity import check_parity, probes
from common.rollout.shared_engine import SharedEngine
from common.rollout.transformers_engine import TransformersEngine
from common.rollout.trial import check_sampling
from common.rollout.vllm_engine import VLLMEngine
from common.rollout.vllm_servers import VLLMServers


def make_engine(config: SamplingConfig, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig,
                prompts: list[tuple[int, ...]]) -> Engine:
    """Starts the engine of `--engine` and returns it. A trainer then calls `connect`. `prompts`: all prompts of the run.

    Called before the trainer's model is loaded, as vLLM measures the free memory of the GPU and takes its share. Raises UserError for a
    family of models that does not work here.
    """
    name, why = choose_engine(config)
    fit = check_family(config, model_config)
    if name == "transformers":
        check_sampling(config, tokenizer, model_config, fit)
    where = "other cards" if name == "servers" else "cuda" if torch.cuda.is_available() else "cpu"
    say(f"engine: {name} on {where} ({why})")
    if config.top_p < 1:
        say("note: with --top_p below 1 the tokens come from a truncated distribution that the trainer does not reproduce: "
            "the importance weights are biased")
    parallel.agree({"engine": name})
    if getattr(config, "sample_ahead", 0) and parallel.count() > 1:  # eval.py has no such flag
        raise UserError("--sample_ahead 1 works with one process: leave it out, or start the script without torchrun")
    engine: Engine
    if name == "transformers":
        engine = TransformersEngine(prompts)
    else:
        engine = (VLLMServers if name == "servers" else VLLMEngine)(config, tokenizer, model_config, prompts)
    return SharedEngine(engine) if parallel.count() > 1 else engine


def choose_engine(config: SamplingConfig) -> tuple[str, str]:
    """The name of the engine that `--engine` stands for on this machine, and the reason."""
    if config.vllm_server_base_url:
        return "servers", "--vllm_server_base_url"
    if config.engine != "auto":
        return config.engine, f"--engine {config.engine}"
    missing = ("there is no CUDA device" if not torch.cuda.is_available() else
               "vllm is not installed" if not importlib.util.find_spec("vllm") else
               "vLLM's adapters need --dtype bfloat16 on a GPU" if config.dtype == "float32" else
               "the embedded model is done before vLLM has started" if config.model == "tiny" else None)
    return ("transformers", f"auto: {missing}") if missing else ("vllm", "auto: there are a CUDA device and vllm")


def connect(engine: Engine, policy: Policy) -> None:
    """Makes the engine sample from this policy, and checks that it does. Raises UserError if it does not."""
    engine.connect(policy)
    own = engine.engine if isinstance(engine, SharedEngine) else engine  # each process checks its own
    if isinstance(own, VLLMServers):
        own.check()
    elif own.probe_prompts:
        say(check_parity(own, policy, probes(own.probe_prompts, policy.temperature)))
    if own is not engine:
        engine.compare()
