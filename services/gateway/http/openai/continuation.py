"""The text that a generation adds to its prompt's: at once, and piece by piece.

It is what decoding prompt and generation together has after what decoding the prompt has. Alone, a generation would
lose the space before its first word with tokenizers of SentencePiece's kind, and a character that the prompt has begun.
Special tokens are left out, as people expect of an answer. Pieces hold back whatever further tokens could change: a
character whose bytes are not all there, a run of byte tokens, and what could become a stop string, which is no part of
an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")

_CONTEXT_TOKENS = 8
"""Of a prompt: more than a character's bytes, and than any decoder looks back."""

_WINDOW_TOKENS = 64
"""Most tokens that are decoded again with every new one."""


class Decoding:
    """How one tokenizer decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.skipped = frozenset(id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special)
        """Special tokens, which have no text."""

        self.bytes = frozenset(id for piece, id in tokenizer.get_vocab().items() if _BYTE.fullmatch(piece))
        """Tokens that stand for a byte: what a run of them says is certain at its end."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self._tokenizer.decode(list(tokens)))

    def context(self, prompt: Sequence[int]) -> list[int]:
        """The end of a prompt, as much as the text of what follows can depend on."""
        found = 0
        for index in range(len(prompt) - 1, -1, -1):
            found += prompt[index] not in self.skipped
            if found >= _CONTEXT_TOKENS and prompt[index] not in self.skipped | self.bytes:
                return list(prompt[index:])
        return list(prompt)

    def added(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text that `tokens` add to that of `prompt`."""
        context = self.context(prompt)
        return difference(self.decode(context), self.decode([*context, *tokens]))


def difference(before: str, whole: str) -> str:
    """What `whole` has after `before`; all from where they differ, if `before` ended in the middle of a character."""
    if whole.startswith(before):
        return whole[len(before) :]
    return whole[
        next((at for at, pair in enumerate(zip(before, whole, strict=False)) if len({*pair}) > 1), len(whole)) :
    ]


class TextStream:
    """The text of a generation that grows."""

    def __init__(self, decoding: Decoding, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._decoding = decoding
        self._prompt = prompt
        self._stops = stops
        self._tokens: list[int] = []
        self._certain = ""
        self._sent = 0
        self._window = decoding.context(prompt)
        """Tokens whose text may still change, after one or more whose text is known."""
        self._known = decoding.decode(self._window)
        """Text of the window that is in `_certain` already, or is the prompt's."""

    def add(self, tokens: Sequence[int]) -> str:
        """The text that further tokens make certain."""
        for token in tokens:
            self._tokens.append(token)
            self._window.append(token)
            if token not in self._decoding.skipped and token not in self._decoding.bytes:
                self._decode_window(token)
        return self._up_to(len(self._certain) - _held_back(self._certain, self._stops))

    def end(self) -> str:
        """The rest of the text, up to the stop string if one ended it."""
        self._certain = self._decoding.added(self._prompt, self._tokens)
        return self._up_to(len(self._certain))

    def _decode_window(self, token: int) -> None:
        text = self._decoding.decode(self._window)
        certain = text.removesuffix(UNFINISHED)
        if self._known.startswith(certain):
            return  # nothing new, or the prompt's last character is still unfinished
        self._certain += difference(self._known, certain)
        self._known = certain
        if certain == text:
            self._window, self._known = [token], self._decoding.decode([token])
        elif len(self._window) > _WINDOW_TOKENS:
            self._window = self._window[-_CONTEXT_TOKENS:]
            self._known = self._decoding.decode(self._window).removesuffix(UNFINISHED)

    def _up_to(self, end: int) -> str:
        end = min(end, len(before_stop(self._certain, self._stops)))
        new = self._certain[self._sent : end]
        self._sent = max(self._sent, end)
        return new


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
