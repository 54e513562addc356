"""The bytes that a token stands for in generated text.

A token may hold part of a character, so its text alone is not enough. The two ways in which tokenizers write such
tokens are undone here as the tokenizer's own decoder does it: byte-level (each byte has a printable stand-in) and
byte fallback (a lone byte is written <0xE4>, a space is U+2581). Tokenizers of another kind are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from services.core.errors import InvalidArgumentError

_SPACE = "\u2581"
_LONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

# Enough for every token that a run of requests is likely to produce, few megabytes.
_CACHED_TOKENS = 1 << 16


def token_bytes_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], bytes]:
    """A function from token id to bytes; ids that the tokenizer does not know (padding rows) have none.

    Raises:
        InvalidArgumentError: the tokenizer writes its tokens in a way that is not known here.
    """
    decode = _piece_decoder(tokenizer)

    @lru_cache(maxsize=_CACHED_TOKENS)
    def token_bytes(token: int) -> bytes:
        piece = tokenizer.convert_ids_to_tokens(token)
        return decode(piece) if isinstance(piece, str) else b""

    return token_bytes


def _piece_decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.decoder.__getstate__()) if backend is not None and backend.decoder else None
    kinds = _kinds(decoder)
    if "ByteLevel" in kinds:
        return _byte_level
    if "ByteFallback" in kinds or "Metaspace" in kinds:
        return _byte_fallback
    raise InvalidArgumentError.at(
        "sampling_params.stop.strings",
        f"cannot be matched with a tokenizer whose decoder is {sorted(kinds) or 'absent'}; use token_ids",
    )


def _kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_kinds(part) for part in decoder.get("decoders", ())))


def _byte_level(piece: str) -> bytes:
    """A piece with any character that stands for no byte (an added token) is literal text."""
    try:
        return bytes(_BYTE_OF[character] for character in piece)
    except KeyError:
        return piece.encode()


def _byte_fallback(piece: str) -> bytes:
    if lone := _LONE_BYTE.fullmatch(piece):
        return bytes([int(lone[1], 16)])
    return piece.replace(_SPACE, " ").encode()


def _stand_ins() -> dict[str, int]:
    """GPT-2's table: a printable byte is its own character, the others follow each other from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


_BYTE_OF = _stand_ins()
