"""The embedded task and model: `--model tiny --dataset arithmetic` needs no network and no GPU.

task.py: `Arithmetic` (settings), `Generator` (problems and the teacher's solutions). It imports no torch.
model.py: `tiny_model` (the model's folder: shipped, or made on first use), `build_tokenizer`, `build_model`.
`python -m common.tiny` makes the shipped model in tiny-*/ again.
"""
