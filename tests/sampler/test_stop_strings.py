"""Stop strings in text whose characters have several bytes: in the middle of it, and on the last allowed token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from services.model.base import BaseModel
from services.sampler.engine.native import NativeSamplerEngine
from services.sampler.request import SampledTokens, StopRule
from testing.tiny_models import VOCAB_SIZE
from tests.sampler.fixtures import ask, make_engine, run

Load = Callable[..., BaseModel]
Sample = Callable[..., SampledTokens]

TEXT = "\u4f60\U0001f642\u5b57\u8a9e\u6d77"
"""Three, four, three, three and three bytes, of which no two are equal."""

BYTES = TEXT.encode()


def sampled(engine: NativeSamplerEngine, seed: int, max_tokens: int, string: bytes = b"") -> SampledTokens:
    stop = StopRule(strings=(string,) if string else ())
    (result,) = run(engine, ask("one", [5, 9, 11], seed=seed, max_tokens=max_tokens, stop=stop))
    return result.sequences[0]


def speaking(base: BaseModel, tokens: tuple[int, ...]) -> BaseModel:
    """With a tokenizer for which these tokens are TEXT, a byte each."""
    bytes_of = dict(zip(tokens, BYTES, strict=True))
    pieces = [f"<0x{bytes_of[token]:02X}>" if token in bytes_of else f"x{token}" for token in range(VOCAB_SIZE)]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return dataclasses.replace(base, tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@pytest.fixture
def sample(load: Load) -> Sample:
    """Samples TEXT, as far as `max_tokens` and the stop string let it: what the model says is given TEXT's bytes."""
    base = load()
    silent = make_engine(base)
    attempts = ((seed, sampled(silent, seed, len(BYTES)).tokens) for seed in range(100))
    seed, tokens = next((seed, tokens) for seed, tokens in attempts if len(set(tokens)) == len(BYTES))
    engine = make_engine(speaking(base, tokens))
    return lambda max_tokens, string="": sampled(engine, seed, max_tokens, string.encode())


@pytest.mark.parametrize("string", ["\u4f60", "\U0001f642", "\U0001f642\u5b57\u8a9e", "\u6d77"], ids=ascii)
def test_it_ends_with_the_strings_last_byte_even_at_the_last_token(sample: Sample, string: str) -> None:
    free = sample(len(BYTES))
    assert free.stop_reason == "length"
    count = BYTES.index(string.encode()) + len(string.encode())
    ended = SampledTokens(free.tokens[:count], free.logprobs[:count], "stop")
    assert sample(len(BYTES), string) == ended
    assert sample(count, string) == ended
    cut = sample(count - 1, string)
    assert (cut.tokens, cut.stop_reason) == (free.tokens[: count - 1], "length"), "a part of a character is no match"


@pytest.mark.parametrize("string", ["\U0001f643", "\u5b58", "\u4f60\u5b57"], ids=ascii)
def test_characters_that_share_bytes_do_not_match(sample: Sample, string: str) -> None:
    assert sample(len(BYTES), string) == sample(len(BYTES))
