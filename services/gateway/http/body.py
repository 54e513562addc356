"""Request bodies: bounded before they are read and after they are decompressed, then parsed into what is expected.

Every fault is a typed error with one sentence; nothing of a body is kept beyond its bound.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from services.core.errors import InvalidArgumentError, PlatformError, Violation
from services.gateway.http.arrival import Arrival

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_JSON_BYTES = 16 << 20
PROTOBUF_TYPES = ("application/x-protobuf", "application/protobuf", "application/octet-stream")

JsonT = TypeVar("JsonT", bound=BaseModel)
EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])
MessageT = TypeVar("MessageT", bound=Message)


class BodyTooLargeError(InvalidArgumentError):
    """The body is over its bound; answered with 413."""

    default_reason = "BODY_TOO_LARGE"


class WrongContentTypeError(InvalidArgumentError):
    """The body is of a kind that is not expected here; answered with 415."""

    default_reason = "WRONG_CONTENT_TYPE"


class Fields(BaseModel):
    """A JSON object: unknown fields are refused, and no value is converted from another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


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
    kind = _content_type(request)
    if kind and kind != "application/json":
        raise WrongContentTypeError(f"the body is {kind[:100]!r}; allowed is application/json")
    return parse_json(await read_body(request, MAX_JSON_BYTES) or b"{}", fields)


def parse_json(content: bytes, fields: type[JsonT]) -> JsonT:
    """Reads a JSON object; raises as `read_json`."""
    try:
        return fields.model_validate_json(content)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        violations = tuple(Violation(".".join(map(str, fault["loc"]))[:200], fault["msg"]) for fault in faults[:10])
        message = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
        raise InvalidArgumentError(message, reason="BAD_JSON", violations=violations) from None


async def read_protobuf(request: Request, message: MessageT, limit: int) -> MessageT:
    """The protobuf body of a request.

    Raises:
        InvalidArgumentError: it is too large, of another type, truncated, or has unknown fields.
    """
    kind = _content_type(request)
    if kind not in PROTOBUF_TYPES:
        raise WrongContentTypeError(f"the body is {kind[:100]!r}; allowed is {PROTOBUF_TYPES[0]}")
    content = await read_body(request, limit)
    try:
        message.ParseFromString(content)
    except DecodeError:
        sentence = f"the body is no {message.DESCRIPTOR.name}: it is truncated or of another format"
        raise InvalidArgumentError(sentence, reason="BAD_PROTOBUF") from None
    size = message.ByteSize()
    message.DiscardUnknownFields()
    if message.ByteSize() != size:
        sentence = f"the body has fields that are unknown to {message.DESCRIPTOR.name}"
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
        raise WrongContentTypeError(f"content-encoding is {encoding[:100]!r}; allowed are identity and zstd")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(f"the body is announced with {length[:20]} bytes", limit)
    arrival: Arrival = request.state.arrival
    async with arrival.room(int(length) if length.isdecimal() and encoding == "identity" else limit) as room:
        content = await _arrived(request, limit)
        if encoding == "zstd":
            content = _decompressed(content, limit)
        room.keep(len(content))
        return content


async def _arrived(request: Request, limit: int) -> bytes:
    content = bytearray()
    try:
        async for piece in request.stream():
            content += piece
            if len(content) > limit:
                raise _too_large("the body goes on", limit)
    except ClientDisconnect:
        raise InvalidArgumentError("the body ended early", reason="BODY_CUT_OFF") from None
    return bytes(content)


def _decompressed(content: bytes, limit: int) -> bytes:
    decompressor = zstd.ZstdDecompressor()
    try:
        plain = decompressor.decompress(content, max_length=limit + 1)
    except zstd.ZstdError:
        raise InvalidArgumentError("the body is no zstd frame", reason="BAD_ZSTD") from None
    if len(plain) > limit:
        raise _too_large("the decompressed body goes on", limit)
    if not decompressor.eof or decompressor.unused_data:
        message = "the body is not one whole zstd frame: it is truncated, or something follows"
        raise InvalidArgumentError(message, reason="BAD_ZSTD")
    return plain


def _too_large(what: str, limit: int) -> PlatformError:
    return BodyTooLargeError(f"{what}; allowed are {limit} bytes")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
