"""Between token ids and text: decoding, stop strings, and the place of each token in a text."""
from __future__ import annotations

from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from common.records import Completion


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of sampled tokens, without special tokens."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def stop_at(text: str, stop: tuple[str, ...]) -> int | None:
    """The index of the character at which the first stop string begins, or None."""
    return min((text.find(end) for end in stop if end in text), default=None)


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
        complete = len(texts[-1]) > len(seen) and not texts[-1].endswith("\ufffd")
        if not complete and len(fresh) < 8 and i + 1 < len(ids):
            continue
        # an unfinished character is decoded differently later, so it is not part of the common beginning of the two texts
        offsets += [total + _in_common(text, texts[-1]) - len(seen) for text in texts[:-1]]
        total += len(texts[-1]) - len(seen)
        if texts[-1] != seen:  # tokens without text do not push tokens with text out of the window
            context = fresh
        fresh, seen = [], decode(tokenizer, context)
        texts = [seen]
    whole = decode(tokenizer, ids)
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
