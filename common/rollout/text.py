"""Between token ids and text: decoding, stop strings, and the place of each token in a text."""
from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate

import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

from common.records import Completion

UNKNOWN = "\ufffd"  # stands for bytes that are no character, or not yet
# How byte-level tokenizers spell the bytes of a token: half of them as the character of this number, the others by later characters
_ALPHABET = set(ByteLevel.alphabet())
_BYTE_OF = dict(zip(sorted(_ALPHABET), sorted(range(256), key=lambda byte: chr(byte) not in _ALPHABET), strict=True))
_FALLBACK = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece spells a token that is one byte


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of sampled tokens, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stop_at(text: str, stop: tuple[str, ...]) -> int | None:
    """The index of the character at which the first stop string begins, or None."""
    return min((text.find(end) for end in stop if end in text), default=None)


def tokens_named(tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...]) -> set[int]:
    """Ids of the tokens whose name is a stop string. Special tokens such as <|im_end|> do not appear in the text."""
    vocabulary = tokenizer.get_vocab() if stop else {}
    return {vocabulary[end] for end in stop if end in vocabulary}


def join(tokenizer: PreTrainedTokenizerBase, prefix: tuple[int, ...], rest: Completion, stop: list[str] | None) -> Completion:
    """The completion made of `prefix` and its continuation `rest`, for scoring: it has no log-probs.

    The result is as if it had been sampled whole. A stop string may begin in the prefix; the engine, which saw only the continuation,
    did not stop there, but the joined text ends at it.
    """
    ids = [*prefix, *rest.ids]
    text = decode(tokenizer, ids)
    end = stop_at(text, tuple(stop or ()))
    return Completion(ids, [], "stop" if end is not None else rest.finish_reason, text[:end])


def token_offsets(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """For each token the index, in `decode(tokenizer, ids)`, of its first character; never decreasing.

    The tokens "Hi", " you" and the end token give [0, 2, 6]. Tokens that hold bytes of one character all get the index of that
    character. A special token has no text and gets the index at which the text before it ends.

    Most decoders put the bytes of the tokens one after another, and some drop spaces at the beginning of a text. Where this gives the
    text that the decoder gave, bytes are counted. Elsewhere, and where bytes are no character, beginnings of the text are decoded.
    """
    table = _bytes_of_tokens(tokenizer)
    pieces = [table[token] for token in ids]
    joined, text = b"".join(pieces), decode(tokenizer, ids)
    whole = text.encode(errors="surrogatepass")
    if not table.in_order or UNKNOWN in text or not joined.endswith(whole):
        return _decoded_offsets(tokenizer, ids, text)
    first = np.frombuffer(whole + b"\0", dtype=np.uint8) & 0xC0 != 0x80  # (bytes + 1,) whether a character begins with this byte
    starts = np.fromiter(accumulate(map(len, pieces), initial=len(whole) - len(joined)), dtype=np.int64, count=len(ids) + 1)[:-1]
    return (first.cumsum() - 1)[starts.clip(min=0)].tolist()


class _TokenBytes(dict[int, bytes]):
    """Token id -> the bytes that the token adds to a text, except at its beginning. An entry is made when it is first read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)  # a tokenizer written in Python has none, and may do anything
        # two kinds of decoders write a token differently at the end of a text, or after the same token
        self.in_order = backend is not None and re.search("BPEDecoder|CTC", repr(backend.decoder)) is None

    def __missing__(self, token: int) -> bytes:
        fewer, more = (decode(self.tokenizer, [token] * n) for n in (8, 9))  # more spaces than any decoder drops
        added = more[len(fewer):].encode(errors="surrogatepass")
        if UNKNOWN in more:  # a part of a character: its bytes are in the token's name
            name = self.tokenizer.convert_ids_to_tokens(token)
            fallback = _FALLBACK.fullmatch(name)
            added = bytes.fromhex(fallback[1]) if fallback else bytes(_BYTE_OF[c] for c in name if c in _BYTE_OF)
        self[token] = added
        return added


# Decoding every token anew takes ten times as long. An entry that has become wrong, because the tokenizer was changed, costs speed alone:
# the bytes are compared with the text.
_bytes_of_tokens = lru_cache(maxsize=4)(_TokenBytes)


def _decoded_offsets(tokenizer: PreTrainedTokenizerBase, ids: list[int], whole: str) -> list[int]:
    """The offsets for any decoder, by decoding beginnings of the text `whole`.

    The function decodes a sliding window: the tokens since the last complete character (`fresh`), and before them the tokens that
    completed the last characters (`context`), because some tokenizers drop a space at the beginning of a text.
    """
    offsets: list[int] = []
    total = 0  # characters before `fresh`
    context: list[int] = []
    fresh: list[int] = []
    seen = ""  # the text of `context`
    texts = [""]  # the window's text before each fresh token, and at the end the text of the whole window
    for i, token in enumerate(ids):
        fresh.append(token)
        texts.append(decode(tokenizer, context + fresh))
        # a character has at most four bytes, so after eight tokens at least the first one is known and the window stays small
        complete = len(texts[-1]) > len(seen) and not texts[-1].endswith(UNKNOWN)
        if not complete and len(fresh) < 8 and i + 1 < len(ids):
            continue
        # an unfinished character is decoded differently later, so it is not part of the common beginning of the two texts
        offsets += [total + _in_common(text, texts[-1]) - len(seen) for text in texts[:-1]]
        total += len(texts[-1]) - len(seen)
        if texts[-1] != seen:  # tokens without text do not push tokens with text out of the window
            context = fresh
        fresh, seen = [], decode(tokenizer, context)
        texts = [seen]
    if total != len(whole):  # the decoder looks further back than the window: this way is exact, but quadratic
        offsets = [_in_common(decode(tokenizer, ids[:i]), whole) for i in range(len(ids))]
    # Some decoders decode a run of bytes at once, and an unfinished byte then changes the characters before it. A token therefore
    # keeps at least the offset of the token before it.
    return list(accumulate(offsets, max))


def _in_common(text: str, later: str) -> int:
    """The number of characters at the beginning that the two texts share."""
    if later.startswith(text):  # nearly always
        return len(text)
    return next((i for i, (a, b) in enumerate(zip(text, later, strict=False)) if a != b), len(later))
