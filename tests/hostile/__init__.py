"""Hostile and damaged inputs, written by functions `make_<case>(folder: Path) -> Path`: one module for each kind of input.

`folder` is there and empty. The result is what a user would name on the command line. `python -m tests.hostile OUT` writes all of them.
"""
