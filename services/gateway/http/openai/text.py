"""Text and tokens of one base model, from the tokenizer files that its workers have announced."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from services.core.errors import FailedPreconditionError, InvalidArgumentError
from services.gateway.http.openai.chat_template import ChatTemplate
from services.gateway.http.openai.continuation import UNFINISHED, Decoding, TextStream


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
        self._decoding = Decoding(self._tokenizer)
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
        return self._decoding.decode(tokens)

    def added(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text that tokens add to their prompt's."""
        return self._decoding.added(prompt, tokens)

    def token_text(self, token: int) -> str:
        """What one token stands for, special ones by their names."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def stream(self, prompt: Sequence[int], stops: Sequence[str]) -> TextStream:
        """Decodes one generation piece by piece."""
        return TextStream(self._decoding, prompt, stops)


def utf8_bytes(text: str) -> list[int] | None:
    """The bytes of a token's text; None for a token that is a part of a character."""
    return None if UNFINISHED in text else list(text.encode())
