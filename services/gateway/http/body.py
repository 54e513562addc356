"""Request bodies: bounded before they are read and after they are decompressed, then parsed into what is expected.

Every fault is a typed error with one sentence; nothing of a body is kept beyond its bound.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect, Request

from services.core.errors import InvalidArgumentError, broken_rule, quoted
from services.core.process.metrics import IGNORED_FIELDS
from services.gateway.http.body_budget import BodyBudget
from services.gateway.http.body_start import START_BYTES, start_of
from services.gateway.http.empty_fields import EMPTY_VALUES
from services.gateway.http.json_parsing import parse, parse_large

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_JSON_BYTES = 16 << 20
PARSED_HERE_BYTES = 64 << 10
"""JSON up to this size is parsed in the gateway's loop: within some hundredths of a second, whatever it says."""

PROTOBUF_TYPES = ("application/x-protobuf", "application/protobuf", "application/octet-stream")

JsonT = TypeVar("JsonT", bound=BaseModel)
EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])
MessageT = TypeVar("MessageT", bound=Message)


class BodyError(InvalidArgumentError):
    """The body was not read to its end, or cannot be decompressed."""

    start: bytes | None = None
    """Its first bytes, decompressed; None if nothing was read."""

    def beginning(self, start: bytes) -> BodyError:
        """The error of a body that begins with `start`."""
        self.start = start
        return self


class BodyTooLargeError(BodyError):
    """The body is over its bound; answered with 413."""

    default_reason = "BODY_TOO_LARGE"


class BodyCutOffError(InvalidArgumentError):
    """The connection was closed before all of the body had come."""

    default_reason = "BODY_CUT_OFF"


class WrongContentTypeError(InvalidArgumentError):
    """The body is of a kind that is not expected here; answered with 415."""

    default_reason = "WRONG_CONTENT_TYPE"


def _with_empty_fields(schema: dict[str, Any], fields: type[BaseModel]) -> None:
    """Describes which further fields an object may have."""
    if fields.model_config.get("extra") == "forbid":
        schema["additionalProperties"] = {"enum": list(EMPTY_VALUES)}


class Fields(BaseModel):
    """A JSON object: unknown fields are refused unless they are empty, and no value is converted from another type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, protected_namespaces=(), json_schema_extra=_with_empty_fields
    )


def takes(body: type[BaseModel] | type[Message]) -> Callable[[EndpointT], EndpointT]:
    """Says what the body of an endpoint is, for its description."""

    def noted(endpoint: EndpointT) -> EndpointT:
        endpoint.takes = body  # type: ignore[attr-defined]
        return endpoint

    return noted


async def read_json(request: Request, fields: type[JsonT]) -> JsonT:
    """The JSON body of a request.

    Raises:
        InvalidArgumentError: it is too large, of another type, no JSON, or has other fields; names them.
    """
    return await parse_json(request, await json_body(request), fields)


async def json_body(request: Request) -> bytes:
    """The body of a request that is to be JSON; raises as `read_json`."""
    kind = _content_type(request)
    if kind and kind != "application/json":
        raise WrongContentTypeError(f"content-type: {broken_rule('application/json', quoted(kind))}")
    return await read_body(request, MAX_JSON_BYTES) or b"{}"


async def parse_json(request: Request, content: bytes, fields: type[JsonT]) -> JsonT:
    """Reads the JSON body of a request whose caller is known; raises as `read_json`."""
    if len(content) <= PARSED_HERE_BYTES:
        parsed, ignored = parse(content, fields)
    else:
        body: BodyBudget = request.state.body
        parsed, ignored = await body.work.in_process(body.tenant, parse_large, content, fields)
    if ignored:
        IGNORED_FIELDS.labels("openai" if request.url.path.startswith("/v1/") else "sdk").inc(ignored)
    return parsed


async def read_protobuf(request: Request, message: MessageT, limit: int) -> MessageT:
    """The protobuf body of a request.

    Raises:
        InvalidArgumentError: it is too large, of another type, truncated, or has unknown fields.
    """
    return parse_protobuf(await protobuf_body(request, limit), message)


async def protobuf_body(request: Request, limit: int) -> bytes:
    """The body of a request that is to be protobuf; raises as `read_protobuf`."""
    kind = _content_type(request)
    if kind not in PROTOBUF_TYPES:
        raise WrongContentTypeError(f"content-type: {broken_rule(PROTOBUF_TYPES[0], quoted(kind))}")
    return await read_body(request, limit)


def parse_protobuf(content: bytes, message: MessageT) -> MessageT:
    """Reads a protobuf message; raises as `read_protobuf`."""
    try:
        message.ParseFromString(content)
    except DecodeError:
        sentence = f"malformed protobuf request: the body is truncated or not a {message.DESCRIPTOR.name}"
        raise InvalidArgumentError(sentence, reason="BAD_PROTOBUF") from None
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        sentence = f"malformed protobuf request: the body has fields that {message.DESCRIPTOR.name} does not have"
        raise InvalidArgumentError(sentence, reason="UNKNOWN_FIELD")
    return message


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request whose caller is known, decompressed, of at most `limit` bytes.

    Raises:
        InvalidArgumentError: it is longer, or cannot be decompressed.
        DeadlineExceededError: it took too long to come.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "zstd"):
        raise WrongContentTypeError(f"content-encoding: {broken_rule('identity or zstd', quoted(encoding))}")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large("body", limit, f"content-length {length[:20]}")
    budget: BodyBudget = request.state.body
    async with budget.reserve(int(length) if length.isdecimal() and encoding == "identity" else limit) as reservation:
        content = await _arrived(request, limit, encoding)
        if encoding == "zstd":
            content = await asyncio.to_thread(_decompressed, content, limit)
        reservation.shrink(len(content))
        return content


async def _arrived(request: Request, limit: int, encoding: str) -> bytes:
    content = bytearray()
    try:
        async for piece in request.stream():
            content += piece
            if len(content) > limit:
                raise _too_large("body", limit, "more").beginning(start_of(content, encoding))
    except ClientDisconnect:
        raise BodyCutOffError("the body ended early") from None
    return bytes(content)


def _decompressed(content: bytes, limit: int) -> bytes:
    decompressor = zstd.ZstdDecompressor()
    try:
        plain = decompressor.decompress(content, max_length=limit + 1)
    except zstd.ZstdError:
        raise _bad_zstd("another format", start_of(content, "zstd")) from None
    if len(plain) > limit:
        raise _too_large("decompressed body", limit, "more").beginning(plain[:START_BYTES])
    if not decompressor.eof or decompressor.unused_data:
        raise _bad_zstd("bytes after it" if decompressor.eof else "a truncated one", plain[:START_BYTES])
    return plain


def _bad_zstd(got: str, start: bytes) -> BodyError:
    return BodyError(f"body: {broken_rule('one zstd frame', got)}", reason="BAD_ZSTD").beginning(start)


def _too_large(what: str, limit: int, got: str) -> BodyTooLargeError:
    return BodyTooLargeError(f"{what}: {broken_rule(f'at most {limit} bytes', got)}")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
