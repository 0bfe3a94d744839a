"""Phases 2 and 7: sampling completions, and keeping the sampler on the current policy.

engine.py: `Engine`, the interface. choose_engine.py: `make_engine`, `connect`, `choose_engine`.
shared_engine.py: `SharedEngine`, around the engines of several processes.
transformers_engine.py (with prefill.py and draw.py) and vllm_engine.py: the two engines.
parity.py: `check_parity` (does the sampler sample from what the trainer trains?).
rounds.py: `sample`, `verify`, `evaluate` (what a step does with its groups and with held-out problems).
text.py: `decode`, `join`, `token_offsets` (between token ids and text). reasoning_steps.py: `split_steps`.
"""
