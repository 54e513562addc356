"""Chat templates: a conversation as the text that the base model was trained to continue, as transformers renders it.

The environment has what templates of published models use: the filters, functions and tags of transformers' own, loop
controls, and every special token by its name. It is sandboxed. transformers is not part of a gateway, hence our own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.core.errors import InvalidArgumentError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

SET_HERE: Mapping[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}
"""What every conversation is rendered with, beside its messages and the special tokens."""

_REFUSALS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What a template may raise about messages that it was not written for."""


class ChatTemplate:
    """One model's template."""

    def __init__(self, source: str, config: Mapping[str, Any]) -> None:
        """
        Args:
            source: the template.
            config: content of tokenizer_config.json.

        Raises:
            TemplateError: it is no template.
        """
        self._template: Template = _environment().from_string(source)
        self._special = {name: _content(config[name]) for name in SPECIAL_TOKENS if config.get(name) is not None}

    def render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """The text of a conversation whose next turn is the model's.

        Args:
            messages: the turns.
            options: further variables: chat_template_kwargs of the request.

        Raises:
            InvalidArgumentError: an option has a name that is set here, or the template refuses the messages.
        """
        self._check(options)
        variables = {**options, **self._special, **SET_HERE, "messages": messages}
        try:
            return self._template.render(variables)
        except _REFUSALS as error:
            raise InvalidArgumentError.at("messages", f"refused by the chat template: {str(error)[:500]}") from None

    def _check(self, options: Mapping[str, Any]) -> None:
        taken = {"messages", *SPECIAL_TOKENS, *SET_HERE, *_environment().globals}
        for name in sorted(options.keys() & taken):
            if name in SET_HERE and (options[name] or None) == SET_HERE[name]:
                continue
            raise InvalidArgumentError.at(
                f"chat_template_kwargs.{name}", "not supported: the name is set by the server"
            )


class _Generation(Extension):
    """`{% generation %}` marks what the model has said, for masks in training; its content is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own way)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_rendered"), [], [], body).set_lineno(line)

    def _rendered(self, caller: Macro) -> str:
        return str(caller())


def _content(token: Any) -> str:
    """A special token, which configurations hold as a string or as an object."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    def refuse(message: str) -> None:
        raise TemplateError(message)

    def as_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment
