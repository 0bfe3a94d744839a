"""The CPU time of `token_offsets`, beside that of decoding the beginnings of each text, which it does where bytes cannot be counted.

    python benchmarks/token_offsets.py [TOKENIZER ...] [--texts FILE ...] [--tokens 500] [--rounds 5]

A TOKENIZER is a folder or a hub id. The completions are pieces of the texts: any files of text, or else this project's own documents. The
embedded tokenizer comes first, with solutions of its own task. The two ways take turns, and the offsets must be the same.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

from measure import ROOT, parser, show, spread, table
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.rollout.text import _bytes_of_tokens, _decoded_offsets, decode, token_offsets
from common.tiny.model import build_tokenizer
from common.tiny.task import Arithmetic, Generator

COMPLETIONS = 200


def cut(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> list[list[int]]:
    """At most COMPLETIONS lists of `length` tokens, from the texts one after another."""
    stream = list(chain.from_iterable(tokenizer(texts, add_special_tokens=False)["input_ids"]))
    return [stream[i:i + length] for i in range(0, min(len(stream) - length, length * COMPLETIONS), length)]


def seconds_each(work: Callable[[list[int]], object], completions: list[list[int]]) -> float:
    """CPU seconds for 1,000 completions."""
    began = time.process_time()
    for ids in completions:
        work(ids)
    return (time.process_time() - began) * 1000 / len(completions)


def compare(name: str, tokenizer: PreTrainedTokenizerBase, completions: list[list[int]], rounds: int) -> list[str]:
    """A row of the table. The table of bytes is empty at first, so that the slowest round includes filling it."""
    def decoding(ids: list[int]) -> list[int]:
        return _decoded_offsets(tokenizer, ids, decode(tokenizer, ids))

    counting = partial(token_offsets, tokenizer)
    _bytes_of_tokens.cache_clear()
    pairs = [(seconds_each(decoding, completions), seconds_each(counting, completions)) for _ in range(rounds)]
    assert all(decoding(ids) == counting(ids) for ids in completions), f"{name}: the two ways differ"
    before, after = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    whole = seconds_each(partial(decode, tokenizer), completions)
    return [name, f"{len(tokenizer):,}", spread(list(before)), spread(list(after)), f"{ratio:.1f}", f"{whole:.2f}"]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("tokenizers", nargs="*", metavar="TOKENIZER")
    options.add_argument("--texts", nargs="+", type=Path, default=sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]))
    options.add_argument("--tokens", type=int, default=500)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    texts = [file.read_text(encoding="utf-8") for file in arguments.texts]
    generator, rng = Generator(Arithmetic()), random.Random(0)
    tasks = [generator.chain(rng, generator.train_tiers) for _ in range(5 * COMPLETIONS)]
    embedded = build_tokenizer(Arithmetic())
    cases = [("embedded", embedded, [generator.solution(task, rng) for task in tasks])]
    cases += [(Path(name).name, AutoTokenizer.from_pretrained(name, trust_remote_code=False), texts) for name in arguments.tokenizers]
    rows = [compare(name, tokenizer, cut(tokenizer, own, arguments.tokens), arguments.rounds) for name, tokenizer, own in cases]
    show(f"CPU seconds for 1,000 completions of {arguments.tokens} tokens, {arguments.rounds} rounds\n\n" + table(
        ["tokenizer", "tokens known", "decoding beginnings", "token_offsets", "times faster", "decoding the whole text once"], rows))


if __name__ == "__main__":
    main()
