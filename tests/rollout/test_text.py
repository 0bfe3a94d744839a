"""Where the tokens of a completion stand in its text, with three kinds of tokenizers; texts that are joined."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from common.records import Completion
from common.rollout import text as rollout_text
from common.rollout.text import decode, join, token_offsets

TRAINED_ON = [
    "So $x=3$. Then we get\n\nnaïve café “quoted”, 漢字。\n",
    "The answer is 5.\n#### 5",
    "the mean and the sum \U0001f600 \U0001f600",
]
CHARACTERS = "ab c.\n$=é漢“\U0001f600\U0001f937\U0001f3fd\u200d\u2642"


def byte_level():
    """As of Qwen or Llama 3: rare characters are several tokens."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(TRAINED_ON, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>")


BYTES = [f"<0x{i:02X}>" for i in range(256)]
WORDS = ["▁", "▁the", "▁sum", "s", "is", "▁is", ".", "\n", "=", "▁▁", "é"]


def sentencepiece(decoder):
    model = models.BPE({piece: i for i, piece in enumerate(["<unk>", "<eos>", *BYTES, *WORDS])}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


LLAMA = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
TOKENIZERS = {"bytes": byte_level(), "llama": sentencepiece(LLAMA), "metaspace": sentencepiece(decoders.Metaspace())}


def check_offsets(tokenizer, ids):
    """As long as the ids, never decreasing, within the text, and where all is whole the length of what comes before."""
    offsets, whole = token_offsets(tokenizer, ids), decode(tokenizer, ids)
    assert len(offsets) == len(ids) and all(a <= b for a, b in pairwise([0, *offsets, len(whole)]))
    before = [decode(tokenizer, ids[:i]) for i in range(len(ids))]
    assert all(offset == len(text) for offset, text in zip(offsets, before, strict=True) if whole.startswith(text) and "\ufffd" not in text)
    return offsets


def test_offsets_of_the_example():
    tokenizer = TOKENIZERS["llama"]
    ids = tokenizer.convert_tokens_to_ids(["▁the", "▁sum", "<eos>"])
    assert decode(tokenizer, ids) == "the sum" and token_offsets(tokenizer, ids) == [0, 3, 7]
    assert token_offsets(tokenizer, []) == []


def test_offsets_of_whole_words(tokenizer):
    text = "3+4=7\n#### 7"
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert decode(tokenizer, ids) == text
    assert check_offsets(tokenizer, ids) == [len(decode(tokenizer, ids[:i])) for i in range(len(ids))]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from(CHARACTERS), max_size=30))
def test_offsets_of_bytes_are_those_of_their_characters(text):
    tokenizer = TOKENIZERS["bytes"]
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert decode(tokenizer, ids) == text
    lengths = [len(token) for token in tokenizer.convert_ids_to_tokens(ids[:-1])]  # a byte is a character of the token's name
    starts = accumulate(lengths, initial=0)
    assert check_offsets(tokenizer, ids) == [len(text.encode()[:start].decode(errors="ignore")) for start in starts]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), name=st.sampled_from(["llama", "metaspace"]))
def test_offsets_where_texts_lose_their_first_space(data, name):
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(st.lists(st.sampled_from([*WORDS, "<eos>"]), max_size=30))
    check_offsets(tokenizer, tokenizer.convert_tokens_to_ids(tokens))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(words=st.lists(st.sampled_from(["▁the", "is", "▁", "\U0001f600", "漢", "é", "<eos>"]), max_size=20))
def test_offsets_of_bytes_among_words(words):
    tokenizer = TOKENIZERS["llama"]
    tokens, owner = [], []  # the first token of the character or word that a token is of
    for word in words:
        known = word in WORDS or word == "<eos>"
        pieces = [word] if known else [f"<0x{byte:02X}>" for byte in word.encode()]
        owner += [len(tokens)] * len(pieces)
        tokens += pieces
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert check_offsets(tokenizer, ids) == [len(decode(tokenizer, ids[:first])) for first in owner]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data(), name=st.sampled_from(list(TOKENIZERS)))
def test_offsets_of_any_tokens(data, name):
    tokenizer = TOKENIZERS[name]
    check_offsets(tokenizer, data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40)))


def test_a_byte_that_undoes_all_before_it():
    """This decoder takes a run of bytes for characters only if it is whole: no window can know."""
    tokenizer = TOKENIZERS["llama"]
    tokens = [f"<0x{byte:02X}>" for byte in "\U0001f600".encode()] * 10
    assert check_offsets(tokenizer, tokenizer.convert_tokens_to_ids(tokens)) == [i // 4 for i in range(40)]
    assert check_offsets(tokenizer, tokenizer.convert_tokens_to_ids([*tokens, "<0xF0>", "s"]))[-1] == 41


@pytest.mark.parametrize("token", ["a", "Ġthe", "<eos>", "ÿ", "ð"])
def test_offsets_take_time_in_proportion_to_the_tokens(token, monkeypatch):
    """Whatever is repeated: words, tokens without text, bytes that are no character."""
    tokenizer, decoded = TOKENIZERS["bytes"], []

    def counting(tokenizer, ids):
        decoded.append(len(ids))
        return decode(tokenizer, ids)

    monkeypatch.setattr(rollout_text, "decode", counting)
    ids = tokenizer.convert_tokens_to_ids(["a", *[token] * 2000])
    assert len(token_offsets(tokenizer, ids)) == 2001
    assert sum(decoded) < 20 * 2001


def test_a_stop_string_across_the_seam_ends_the_completion(tokenizer):
    ids = [tokenizer(text)["input_ids"] for text in ("#### 7\n", "\n#### 8")]
    joined = join(tokenizer, tuple(ids[0]), Completion(ids[1], [], "length", ""), ["\n\n"])
    assert joined.text == "#### 7" and joined.finish_reason == "stop" and joined.ids == [*ids[0], *ids[1]]
    assert join(tokenizer, tuple(ids[0]), Completion(ids[1], [], "length", ""), None).finish_reason == "length"
