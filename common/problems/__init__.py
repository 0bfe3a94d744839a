"""Phase 1: load the problems and choose those of a step.

data.py: `load_rows` and `load_split` read questions and answers as text, from a registered name, a file, a folder or a hub id.
tables.py: `read_tables` reads local files and folders.
rows.py: `Row`, and the rows of a large data set, which are made when they are asked for.
prompts.py: `load_template`, `make_problems` and `make_eval_problems` turn these rows into problems with token ids.
usable.py: which rows are left out, and the prompts of the others. large.py: problems that are made when a step wants them.
choose.py: `ProblemSampler` chooses the problems of a step, as `--sampling` says. `learnability` scores a problem.
"""
