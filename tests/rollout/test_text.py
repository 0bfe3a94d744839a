"""Where the tokens of a completion stand in its text, with three kinds of tokenizers; texts that are joined."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from common.records import Completion
from common.rollout import text as rollout_text
from common.rollout.text import decode, join, token_offsets
from common.tiny.model import build_tokenizer
from common.tiny.task import Arithmetic

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


# ---- counting the bytes of the tokens, and decoding beginnings of the text, give the same offsets -------------------------


def words(decoder, vocabulary="<unk> <eos> the is . n't do , é 漢 ##ing ##s ## a</w> b </w> x</w>y a"):
    pieces = {piece: i for i, piece in enumerate(vocabulary.split())}
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if decoder is not None:
        tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", clean_up_tokenization_spaces=True)


def with_added(tokenizer):
    """Tokens that are no special ones but are not of the model either: some look like a byte or a space of the model's own."""
    added = ["<think>", " <tool> ", "漢é", "▁", "<0xF0>x", "\U0001f600 ", "Ġ", "ð", "\ufffd"]
    tokenizer.add_tokens([AddedToken(text, special=False) for text in added])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    return tokenizer


def fused(*others):
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *others])


MANY = TOKENIZERS | {
    "embedded": build_tokenizer(Arithmetic()),
    "bytes, added": with_added(byte_level()),
    "llama, added": with_added(sentencepiece(LLAMA)),
    "metaspace, added": with_added(sentencepiece(decoders.Metaspace())),
    "gemma": sentencepiece(fused()),
    "three spaces dropped": sentencepiece(fused(decoders.Strip(" ", 3, 0))),
    "a space of each token dropped": sentencepiece(decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])),
    "wordpiece": words(decoders.WordPiece()),
    "wordpiece, uncleaned": words(decoders.WordPiece(cleanup=False)),
    "no decoder": words(None),
    "suffixes": words(decoders.BPEDecoder(suffix="</w>")),
    "without repetitions": words(decoders.CTC(pad_token="<eos>", word_delimiter_token=",")),
    "replaced": words(decoders.Sequence([decoders.Fuse(), decoders.Replace("isis", "Z")])),
}
SCRIPTS = [*CHARACTERS, "  ", "e\u0301", "नमस्ते", "क्षि", "\u0e01\u0e33", "\u200b", "\u00a0", "\ufeff", "\U0001f1e9\U0001f1ea", "\ufffd"]


def both_ways(tokenizer, ids):
    return token_offsets(tokenizer, ids), rollout_text._decoded_offsets(tokenizer, ids, decode(tokenizer, ids))


@settings(max_examples=600, deadline=None, derandomize=True)
@given(data=st.data(), name=st.sampled_from(list(MANY)))
def test_both_ways_agree_on_any_tokens(data, name):
    tokenizer = MANY[name]
    few = st.sampled_from(data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=5)))  # so that tokens repeat
    counted, decoded = both_ways(tokenizer, data.draw(st.lists(few | st.integers(0, len(tokenizer) - 1), max_size=40)))
    assert counted == decoded


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data(), name=st.sampled_from(list(MANY)))
def test_both_ways_agree_on_pieces_of_texts(data, name):
    """With special and added tokens in their middle, and cut anywhere: within a character as well."""
    tokenizer = MANY[name]
    ids = tokenizer("".join(data.draw(st.lists(st.sampled_from(SCRIPTS), max_size=30))), add_special_tokens=False)["input_ids"]
    for place in data.draw(st.lists(st.integers(0, len(ids)), max_size=3)):
        ids.insert(place, data.draw(st.sampled_from([*tokenizer.all_special_ids, len(tokenizer) - 1, len(tokenizer) - 2])))
    ids = ids[data.draw(st.integers(0, 2)):data.draw(st.integers(1, 40))]
    counted, decoded = both_ways(tokenizer, ids)
    assert counted == decoded


@pytest.mark.parametrize("name", [name for name in MANY if name not in ("suffixes", "without repetitions")])
def test_whole_characters_are_counted(name, monkeypatch):
    """The fast way is taken: no text of these is decoded piece by piece, however many tokens a character has."""
    tokenizer = MANY[name]
    texts = [*TRAINED_ON, "नमस्ते \U0001f937\U0001f3fd\u200d\u2642", "the is do . the", "3 + 4 = 7\n#### 7", ""]
    ids = [[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    expected = [both_ways(tokenizer, own)[1] for own in ids]
    monkeypatch.setattr(rollout_text, "_decoded_offsets", None)
    assert [token_offsets(tokenizer, own) for own in ids] == expected


def test_a_character_that_looks_like_a_missing_one():
    """A text may hold the replacement character itself. Its first byte alone is decoded to the same character."""
    ids = MANY["bytes"].convert_tokens_to_ids(["a", "ï", "¿", "½", "b"])
    assert decode(MANY["bytes"], ids) == "a\ufffdb" and both_ways(MANY["bytes"], ids) == ([0, 1, 2, 2, 2], [0, 1, 2, 2, 2])


def test_a_decoder_that_writes_the_last_token_differently():
    """Its text is that of the bytes one after another, but a text that ends with the first token has no space."""
    ids = MANY["suffixes"].convert_tokens_to_ids(["</w>", "b"])
    assert decode(MANY["suffixes"], ids) == " b" and both_ways(MANY["suffixes"], ids) == ([0, 0], [0, 0])


def test_a_token_that_gets_another_text_later():
    """The table of bytes is then wrong, and the offsets are not."""
    tokenizer = byte_level()
    new = len(tokenizer)
    ids = [*tokenizer("the mean")["input_ids"], new, *tokenizer(" is")["input_ids"]]
    before = both_ways(tokenizer, ids)
    tokenizer.add_tokens(["<later>"])
    counted, decoded = both_ways(tokenizer, ids)
    assert before[0] == before[1] and counted == decoded and counted[-1] == before[0][-1] + len("<later>")


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
