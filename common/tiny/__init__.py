"""The embedded task and model: `--model tiny --dataset arithmetic` needs no network and no GPU.

task.py: `Arithmetic` holds the settings. `Generator` makes problems and solutions. This file does not import torch.
model.py: `tiny_model` gives the folder of the model, which ships with the project or is made on first use.
`python -m common.tiny` makes the shipped model again, in the folder tiny-*/ beside this file.
"""
