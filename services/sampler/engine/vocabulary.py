"""The bytes that a token stands for in generated text.

A token may hold part of a character, so its text alone is not enough. The two ways in which tokenizers write such
tokens are undone here as the tokenizer's own decoder does it: byte-level (each byte has a printable stand-in) and
byte fallback (a lone byte is written <0xE4>, a space is U+2581). Tokenizers of another kind are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from services.core.errors import InvalidArgumentError

_SPACE = "\u2581"
_LONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """The bytes of each token of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._kinds = _kinds(_decoder_of(tokenizer))
        self._bytes: dict[int, bytes] = {}
        """The bytes of tokens that were looked up so far."""

    @property
    def is_readable(self) -> bool:
        """Whether `bytes_of` has an answer: the tokenizer writes its tokens in a way that is known here."""
        return bool(self._kinds & _PIECE_DECODERS.keys())

    def check_readable(self) -> None:
        """Refuses stop strings with a tokenizer that is not readable.

        Raises:
            InvalidArgumentError: it is not.
        """
        if not self.is_readable:
            rule = "empty with this base model, whose tokenizer cannot be read token by token; use token_ids"
            got = f"strings, with a decoder that is {', '.join(sorted(self._kinds)) or 'absent'}"
            raise InvalidArgumentError.must_be("sampling_params.stop.strings", rule, got)

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token of a readable tokenizer; empty for an id that the tokenizer lacks (a padding row)."""
        if token not in self._bytes:
            piece = self._tokenizer.convert_ids_to_tokens(token)
            kind = next(kind for kind in _PIECE_DECODERS if kind in self._kinds)
            self._bytes[token] = _PIECE_DECODERS[kind](piece) if isinstance(piece, str) else b""
        return self._bytes[token]


def _decoder_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """The tokenizer's own description of its decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return None
    description: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return description


def _kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_kinds(part) for part in decoder.get("decoders", ())))


def _byte_level(piece: str) -> bytes:
    """The bytes of a byte-level piece; one with a character that stands for no byte (an added token) is literal."""
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

_PIECE_DECODERS: Mapping[str, Callable[[str], bytes]] = {
    "ByteLevel": _byte_level,
    "ByteFallback": _byte_fallback,
    "Metaspace": _byte_fallback,
}
