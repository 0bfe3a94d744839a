"""Phase 1: the problems.

data.py: `load_rows`, `load_split` (rows of text from a registered name, a file, a folder or a hub id).
prompts.py: `load_template`, `make_problems`, `make_eval_problems` (prompt templates; rows become problems in token ids).
choose.py: `ProblemSampler`, `learnability` (which problems a step trains on: `--sampling`).
"""
