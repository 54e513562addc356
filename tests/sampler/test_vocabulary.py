"""Token bytes are what the tokenizer's own decoder makes of them."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from services.core.errors import InvalidArgumentError
from services.sampler.engine.vocabulary import Vocabulary

TEXT = "Stop here. \u4f60\u597d, \U0001f642 caf\u00e9!\n  next line\ttab"


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 5, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<|a space|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def byte_fallback() -> PreTrainedTokenizerFast:
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["\u2581", "\u2581Stop", "here", "\u4f60", ".", "</s>"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_joined_bytes_are_the_decoded_text(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    encoded = tokenizer.encode(TEXT)
    joined = b"".join(map(Vocabulary(tokenizer).bytes_of, encoded)).decode()
    assert joined == tokenizer.decode(encoded, clean_up_tokenization_spaces=False)
    assert "\u4f60\u597d, \U0001f642" in joined


def test_any_byte_level_tokens_are_the_decoded_text(byte_level: PreTrainedTokenizerFast) -> None:
    token_bytes = Vocabulary(byte_level).bytes_of
    choose = random.Random(0)
    for _ in range(200):
        tokens = choose.choices(range(len(byte_level)), k=6)
        joined = b"".join(map(token_bytes, tokens)).decode("utf-8", "replace")
        assert joined == byte_level.decode(tokens, clean_up_tokenization_spaces=False)


def test_added_tokens_are_their_text(byte_level: PreTrainedTokenizerFast) -> None:
    token_bytes = Vocabulary(byte_level).bytes_of
    for text in ("<|im_end|>", "<|a space|>"):
        assert token_bytes(byte_level.convert_tokens_to_ids(text)) == text.encode()


def test_ids_beyond_the_tokenizer_have_no_text(byte_level: PreTrainedTokenizerFast) -> None:
    assert Vocabulary(byte_level).bytes_of(len(byte_level) + 5) == b""


def test_other_tokenizers_are_refused_by_name() -> None:
    plain = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(InvalidArgumentError, match="absent"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=plain)).check_readable()
    plain.decoder = decoders.WordPiece()
    with pytest.raises(InvalidArgumentError, match="WordPiece"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=plain)).check_readable()
