"""Phase 8: a run's folder and everything that is written or shown about it.

run.py: `Run` (folder, progress, signals, the step's line). lines.py: the lines that a run shows.
metrics.py: `TokenMeans`, `batch_metrics`. evaluation.py: the result folder of eval.py.
claim.py, lock.py: who writes to a folder. checkpoint.py, resume.py, identity.py, go_on.py, rescue.py: what survives an interruption.
folder.py, completion_rows.py: metrics.jsonl, completions.jsonl. record.py, saved_config.py: writing and reading config.json.
report.py: report.html, also `python -m common.run report RUN ...`.
model_card.py: README.md of a checkpoint. trackers.py: `--report_to`.
gpu.py: `check_gpu`. memory_plan.py: `plan_run` (will it fit?). preflight.py: `preflight` (a trial at full length).
"""
