"""The embedded model: its tokenizer, its warm start, and its folder.

The warm start is the supervised training that makes the model before any reinforcement learning. The model of the default settings
ships with the project, in a folder beside this file. A model of other settings is made on first use and kept in the user's cache.
"""
from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from common.cache import cached_folder
from common.console import bar, say
from common.files import MANIFEST, damage, new_folder, write_file, write_manifest
from common.tiny.task import ITEMS, NAMES, VERBS, WORDS, Arithmetic, Generator

RECIPE = 2  # raise this number whenever a change of the code changes the model; it is part of the name of the folder
RECIPE_FILE = "recipe.json"
SIZE = 4_000_000  # bytes that the folder of a model takes at most
EOS, PAD = "<eos>", "<pad>"
MAX_LENGTH = 1024  # longest text of the model, in tokens
SHIPPED = Path(__file__).parent  # the folder with the shipped model


def build_tokenizer(settings: Arithmetic) -> PreTrainedTokenizerFast:
    """A word-level tokenizer. A whole number is one token, and decoding gives back every text of the task unchanged.

    Words have a token for each way to stand beside a blank: "figs", "figs " and " figs".
    """
    words = [*NAMES, *ITEMS, *VERBS, *NAMES.values(), *WORDS, "has", "doubles", "it", "How", "many"]
    pieces = [EOS, PAD, "<unk>", "\n", "#### ", *"+-*=", ". ", "?", *map(str, range(settings.values + 1)),
              *dict.fromkeys(form for word in words for form in (word, word + " ", " " + word))]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+ ?|\d+|#### |\. |[^A-Za-z0-9]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, unk_token="<unk>")


def build_model(vocabulary: int, seed: int) -> Qwen3ForCausalLM:
    """The untrained model: 3 layers of width 128, 0.5 million parameters. The head size is 32, because vLLM does not accept 16."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=MAX_LENGTH, tie_word_embeddings=True,
        initializer_range=0.05, bos_token_id=None, eos_token_id=0, pad_token_id=1))


def _batches(generator: Generator, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(token ids (32, L), labels (32, L)) of each optimiser step. A label is -100 on the question and on padding.

    A batch has 32 problems of similar length, so that there is little padding. No test problem is among them.
    """
    settings = generator.settings
    rng = random.Random(f"warm start {settings.seed}")
    test = {row["question"] for row in generator.problems()[1]}
    tiers = list(dict.fromkeys(generator.train_tiers + generator.test_tiers))
    pairs = []
    while len(pairs) < 32 * settings.warm_steps:
        chain = generator.chain(rng, tiers)
        if chain.question not in test:
            pairs.append((chain.question + "\n", generator.solution(chain, rng) + EOS))
    prompts, solutions = (tokenizer([pair[i] for pair in pairs])["input_ids"] for i in (0, 1))
    rows = [(p + s, [-100] * len(p) + s) for p, s in zip(prompts, solutions, strict=True)]
    rows.sort(key=lambda row: len(row[0]))
    batches = [rows[i:i + 32] for i in range(0, len(rows), 32)]
    rng.shuffle(batches)
    for batch in batches:
        length = max(len(ids) for ids, _ in batch)
        yield (torch.tensor([ids + [1] * (length - len(ids)) for ids, _ in batch]),
               torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in batch]))


class Muon(torch.optim.Optimizer):
    """The optimiser Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) for weight matrices, in float32.

    `torch.optim.Muon` makes its Newton-Schulz steps in bfloat16. This takes 10 times as long on a CPU without bfloat16 instructions.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Moves each matrix along its orthogonalised momentum. The momentum has Nesterov's look-ahead."""
        for group in self.param_groups:
            for matrix in group["params"]:
                average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - group["momentum"])
                direction = orthogonalised(matrix.grad.lerp(average, group["momentum"]))
                rows, columns = matrix.shape
                matrix.sub_(direction, alpha=group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix after five Newton-Schulz steps, which bring its singular values near 1: to 0.7 - 1.2, unless they are nearly 0."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)  # now no singular value is above 1; the steps need this
    for _ in range(5):
        square = x @ x.T
        # each singular value s becomes 3.4445 s - 4.7750 s^3 + 2.0315 s^5; the coefficients are Jordan's
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def warm_start(settings: Arithmetic, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The model after supervised training on the solutions of a teacher with bad habits (see task.py)."""
    generator, model = Generator(settings), build_model(len(tokenizer), settings.seed)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    # Of the learning rates tried, these are the highest at which the loss does not jump. Muon halves the number of steps needed.
    optimizers = [Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0)]
    # The rate rises for 20 steps and then falls to 5 %. Most of the gain comes while it falls.
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda i: min((i + 1) / 20, 1 - 0.95 * i / settings.warm_steps)) for o in optimizers]
    batches = bar(_batches(generator, tokenizer), total=settings.warm_steps, desc="warm start (first use of these settings)", disable=False)
    for ids, labels in batches:
        # no attention mask is needed: padding stands on the right, and no label depends on it
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
        wanted = labels[:, 1:] != -100
        loss = F.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model


def recipe_of(settings: Arithmetic) -> str:
    """All settings that the model depends on, as JSON text. The number of RL training problems is not one of them."""
    shaping = {key: value for key, value in asdict(settings).items() if key != "train"}
    return json.dumps({"recipe": RECIPE, **shaping}, sort_keys=True)


def folder_name(settings: Arithmetic) -> str:
    """The name of the model's folder: "tiny-" and a hash of the recipe. Different recipes have different names."""
    return f"tiny-{hashlib.sha256(recipe_of(settings).encode()).hexdigest()[:16]}"


def tiny_model(settings: Arithmetic) -> Path:
    """The folder of the model and its tokenizer: the shipped folder if it has these settings, else a folder in the cache.

    A model that is not in the cache yet is made first. A folder in the cache is always complete: it is written under a temporary name,
    by one process at a time, and then renamed. Raises UserError if the cache cannot be written.
    """
    name = folder_name(settings)
    if (SHIPPED / name).exists():
        return SHIPPED / name
    return cached_folder(name, SIZE, _is_whole, lambda folder: make_model(settings, folder))


def _is_whole(folder: Path) -> bool:
    """Whether the cache has the model, undamaged. Folders of older versions have no manifest, and are taken as they are."""
    if not folder.exists() or not (folder / MANIFEST).exists():
        return folder.exists()
    problem = damage(folder, RECIPE_FILE)
    if problem:
        say(f"note: the model in {folder} is damaged ({problem}), and is made again")
    return problem is None


def make_model(settings: Arithmetic, folder: Path) -> None:
    """Does the warm start, and writes model, tokenizer and recipe to the new `folder`. An interruption leaves no folder behind."""
    tokenizer = build_tokenizer(settings)
    model = warm_start(settings, tokenizer)
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_file(temporary / RECIPE_FILE, recipe_of(settings) + "\n")
        write_manifest(temporary)


def ship() -> Path:
    """Makes the shipped model again, in place of the old one. Returns its folder."""
    folder = SHIPPED / folder_name(Arithmetic())
    for old in SHIPPED.glob("tiny-*"):
        shutil.rmtree(old)
    make_model(Arithmetic(), folder)
    return folder
