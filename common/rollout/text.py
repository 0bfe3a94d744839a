"""Between token ids and text: decoding, stop strings, and where in a text its tokens stand."""
from __future__ import annotations

from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from common.records import Completion


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of sampled tokens, special ones left out."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)



def stop_at(text: str, stop: tuple[str, ...]) -> int | None:
    """Character at which the first stop string begins, or None."""
    return min((text.find(end) for end in stop if end in text), default=None)



def join(tokenizer: PreTrainedTokenizerBase, prefix: tuple[int, ...], rest: Completion, stop: list[str] | None) -> Completion:
    """The completion that `prefix` and its continuation `rest` make, as if it had been sampled whole: for scoring, without log-probs.

    A stop string that began in the prefix ends it here, though the engine, which saw its end alone, went on.
    """
    ids = [*prefix, *rest.ids]
    text = decode(tokenizer, ids)
    end = stop_at(text, tuple(stop or ()))
    return Completion(ids, [], "stop" if end is not None else rest.finish_reason, text[:end])



def token_offsets(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """For each token the character of `decode(tokenizer, ids)` at which its first one stands; never decreasing.

    Tokens that are "Hi", " you", the end: [0, 2, 6]. Tokens that share a character (bytes of it) all stand where it begins, and a
    special token, which has no text, where the text before it ends.

    Decodes a window that slides: the tokens behind the last character that was complete, and before them those of the
    characters then completed, as some tokenizers drop a space that a text begins with.
    """
    offsets: list[int] = []
    total = 0  # characters before `fresh`
    context: list[int] = []
    fresh: list[int] = []
    seen = ""  # the text of `context`
    texts = [""]  # of the window before each token that has no offset yet, and at last of the whole window
    for i, token in enumerate(ids):
        fresh.append(token)
        texts.append(decode(tokenizer, context + fresh))
        # A character has at most four bytes, so after eight tokens at least the first is known: windows remain small
        complete = len(texts[-1]) > len(seen) and not texts[-1].endswith("\ufffd")
        if not complete and len(fresh) < 8 and i + 1 < len(ids):
            continue
        # What the text at a token and the text later have in common does not hold the token's unfinished character
        offsets += [total + _in_common(text, texts[-1]) - len(seen) for text in texts[:-1]]
        total += len(texts[-1]) - len(seen)
        if texts[-1] != seen:  # tokens without text do not push those that have some out of the window
            context = fresh
        fresh, seen = [], decode(tokenizer, context)
        texts = [seen]
    whole = decode(tokenizer, ids)
    if total != len(whole):  # a decoder that looks further back than the window: exact, but quadratic
        offsets = [_in_common(decode(tokenizer, ids[:i]), whole) for i in range(len(ids))]
    # Where bytes are decoded as one run, an unfinished one undoes the characters before it: what a token before it had, stays
    return list(accumulate(offsets, max))



def _in_common(text: str, later: str) -> int:
    """How many characters both begin with."""
    if later.startswith(text):  # nearly always
        return len(text)
    return next((i for i, (a, b) in enumerate(zip(text, later, strict=False)) if a != b), len(later))
