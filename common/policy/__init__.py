"""Phases 5 and 6: the model that is trained, its log-probs, and the update.

load.py: `load_policy`. policy.py: `Policy` (base and adapters), `all_logps`. pretrained.py: tokenizer and config of a model.
micro_batches.py: `microbatches`, `minibatches`. packing.py, attention.py: rows without padding. self_checks.py: run at the start.
loss.py: pure functions between log-probs and a scalar loss. skipped.py: the guard of completions without a pass.
critic.py: `SecondAdapter`, and `Critic`, which is one. optim.py: the optimiser's side of an update.
`python -m common.policy merge` writes base and adapter as one model.
"""
