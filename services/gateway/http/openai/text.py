"""Text and tokens of one base model, from the tokenizer files that its workers have announced.

Decoding leaves special tokens out, as people expect of an answer. Piece by piece it never splits a character, and holds
back what could become a stop string, which is not part of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from services.core.errors import FailedPreconditionError, InvalidArgumentError
from services.gateway.http.openai.chat_template import ChatTemplate

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class ModelText:
    """One tokenizer."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Args: files: content by name, as `PreTrainedTokenizerFast.save_pretrained` writes them.

        Raises:
            FailedPreconditionError: there is no tokenizer.json among them.
        """
        if "tokenizer.json" not in files:
            message = "the base model's tokenizer has no tokenizer.json, so texts cannot be read here; send token ids"
            raise FailedPreconditionError(message, reason="NO_FAST_TOKENIZER")
        self._tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.longest_token = max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)
        self._config: dict[str, Any] = json.loads(files.get("tokenizer_config.json", b"{}"))
        template = files.get("chat_template.jinja", b"").decode() or self._config.get("chat_template")
        if isinstance(template, list):
            template = next((item["template"] for item in template if item["name"] == "default"), None)
        self._template = ChatTemplate(template, self._config) if template else None

    def tokens(self, text: str) -> list[int]:
        """A text's tokens, with what the tokenizer puts around every text."""
        return self._encoded(text, add_special_tokens=True)

    def chat_tokens(self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> list[int]:
        """The tokens of a conversation whose next turn is the model's.

        Raises:
            InvalidArgumentError: the base model has no chat template, or its template refuses the messages.
        """
        if self._template is None:
            message = "not supported: the base model has no chat template; use /v1/completions"
            raise InvalidArgumentError.at("messages", message, reason="NO_CHAT_TEMPLATE")
        rendered = self._template.render(messages, options)
        return self._encoded(rendered, add_special_tokens=False)

    def _encoded(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """A text's tokens; other threads run meanwhile, as they do not during `Tokenizer.encode`."""
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self._tokenizer.decode(list(tokens)))

    def token_text(self, token: int) -> str:
        """What one token stands for, special ones by their names."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def stream(self, stops: Sequence[str]) -> TextStream:
        """Decodes one generation piece by piece."""
        return TextStream(self._tokenizer, stops)


class TextStream:
    """The text of a generation that grows."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._decoded = ""
        self._sent = 0

    def add(self, tokens: Sequence[int]) -> str:
        """The text that further tokens make certain."""
        self._tokens += tokens
        for token in tokens:
            self._decoded += self._decoder.step(self._tokenizer, token) or ""
        return self._up_to(len(self._decoded) - _held_back(self._decoded, self._stops))

    def end(self) -> str:
        """The rest of the text, up to the stop string if one ended it."""
        self._decoded = str(self._tokenizer.decode(self._tokens))
        return self._up_to(len(before_stop(self._decoded, self._stops)))

    def _up_to(self, end: int) -> str:
        end = min(end, len(before_stop(self._decoded, self._stops)))
        new = self._decoded[self._sent : end]
        self._sent = max(self._sent, end)
        return new


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def utf8_bytes(text: str) -> list[int] | None:
    """The bytes of a token's text; None for a token that is a part of a character."""
    return None if _UNFINISHED in text else list(text.encode())


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string."""
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
