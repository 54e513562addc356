"""Text of continuations on six kinds of tokenizers: in one piece and streamed, for any tokens, it is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from services.gateway.http.openai.continuation import Decoding, TextStream, before_stop

CORPUS = [
    "the lamp was lit at dusk, and the sea was calm",
    "wind from the north west; two ships passed. all well!",
    "灯台守 écrit: naïve café — 🙂🙂",
    "def fib(n):\n    return n  # 1234",
]


def byte_level() -> Tokenizer:
    """As GPT-2's and Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def added_tokens() -> Tokenizer:
    """As Llama 3's: byte-level, with tokens of its own that are not special."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool 灯>", normalized=False), AddedToken("  ", normalized=False)])
    tokenizer.add_special_tokens(["<|eot|>"])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2's: a space before the first word is added and taken away; unknown characters are byte tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS[:2], trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    )
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(content))


def unigram() -> Tokenizer:
    """As T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def words() -> Tokenizer:
    """A word a token, with spaces between them."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=80, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    made.__name__: cache(made) for made in (byte_level, added_tokens, byte_fallback, unigram, word_piece, words)
}


def reference(tokenizer: Tokenizer, prompt: list[int], tokens: list[int]) -> str:
    """What all tokens together say after what the prompt says, as far as they have not changed that."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + tokens)
    while not whole.startswith(before):
        before = before[:-1]
    return whole[len(before) :]


def streamed(tokenizer: Tokenizer, prompt: list[int], pieces: list[list[int]], stops: list[str]) -> str:
    stream = TextStream(Decoding(tokenizer), prompt, stops)
    return "".join(stream.add(piece) for piece in pieces) + stream.end()


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_continuation_is_the_same_streamed_and_whole(kind: str, data: st.DataObject) -> None:
    tokenizer = KINDS[kind]()
    token = st.integers(0, tokenizer.get_vocab_size() - 1)
    prompt = data.draw(st.lists(token, max_size=14))
    pieces = data.draw(st.lists(st.lists(token, max_size=4), max_size=8))
    tokens = [token for piece in pieces for token in piece]
    expected = reference(tokenizer, prompt, tokens)
    assert Decoding(tokenizer).added(prompt, tokens) == expected
    assert streamed(tokenizer, prompt, pieces, []) == expected
    stop = data.draw(st.sampled_from(["e", " t", "la", "!", "\N{REPLACEMENT CHARACTER}"]))
    assert streamed(tokenizer, prompt, pieces, [stop]) == before_stop(expected, [stop])


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=50, deadline=None)
def test_real_text_is_continued_as_it_is_written(kind: str, data: st.DataObject) -> None:
    """A text cut anywhere between tokens: the beginning and what is added are the text."""
    tokenizer = KINDS[kind]()
    tokens = tokenizer.encode(data.draw(st.sampled_from(CORPUS))).ids
    cut = data.draw(st.integers(0, len(tokens)))
    prompt, rest = tokens[:cut], tokens[cut:]
    begun = tokenizer.decode(prompt).rstrip("\N{REPLACEMENT CHARACTER}")
    assert begun + streamed(tokenizer, prompt, [[token] for token in rest], []) == tokenizer.decode(tokens)


def test_the_space_before_the_first_word_stays() -> None:
    tokenizer = KINDS["byte_fallback"]()
    lamp, was = tokenizer.encode("the lamp").ids, tokenizer.encode("was lit").ids
    assert Decoding(tokenizer).added(lamp, was) == " was lit"
    assert Decoding(tokenizer).added([], was) == "was lit"


def test_text_comes_as_soon_as_it_is_certain() -> None:
    tokenizer = KINDS["byte_level"]()
    stream = TextStream(Decoding(tokenizer), [], [])
    pieces = [stream.add([token]) for token in tokenizer.encode("the lamp was lit").ids]
    assert all(pieces)
    assert "".join(pieces) == "the lamp was lit"


def test_endless_halves_of_characters_cost_little_each() -> None:
    tokenizer = KINDS["byte_level"]()
    half = tokenizer.encode("灯").ids[0]
    decoded: list[int] = []

    class Counting(Decoding):
        def decode(self, tokens: object) -> str:
            decoded.append(len(list(tokens)))  # type: ignore[call-overload]
            return super().decode(tokens)  # type: ignore[arg-type]

    stream = TextStream(Counting(tokenizer), [], [])
    text = "".join(stream.add([half]) for _ in range(1000))
    assert max(decoded) <= 80
    assert text + stream.end() == tokenizer.decode([half] * 1000)
