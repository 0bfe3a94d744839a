"""Phase 8: a run's folder and everything that is written or shown about it.

run.py: `Run` (folder, progress, signals, the step's line). lines.py: the lines that a run shows.
metrics.py: `TokenMeans`, `batch_metrics`. checkpoint.py, resume.py, claim.py, lock.py: what survives an interruption.
completion_rows.py: completions.jsonl. report.py: report.html, also `python -m common.run report RUN ...`.
record.py: config.json. model_card.py: README.md of a checkpoint. trackers.py: `--report_to`.
memory_plan.py: `plan_run` (will it fit?). preflight.py: `preflight` (a trial at full length).
"""
