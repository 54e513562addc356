"""Responses of operations on their way to a client: in a message if they fit, else in parts."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.core.config import CommonSettings
from services.core.errors import InvalidArgumentError
from services.core.queue.operations import OperationStore
from services.gateway.validation.fields import check_range
from tinker_proto.v1 import operation_pb2

PART_BYTES = 1 << 19
_OTHER_FIELDS_BYTES = 64 << 10


def whole_bytes(settings: CommonSettings, asked: int = 0) -> int:
    """Bytes of the largest response that is sent within an operation.

    Args:
        settings: with the largest message.
        asked: `max_response_bytes` of the request.

    Raises:
        InvalidArgumentError: `max_response_bytes` is negative.
    """
    check_range("max_response_bytes", asked, 0, 2**63 - 1)
    most = settings.max_message_bytes - _OTHER_FIELDS_BYTES
    return min(asked or most, most)


async def parts(
    operations: OperationStore, request: operation_pb2.ReadResponseRequest, name: str, tenant: str
) -> AsyncIterator[operation_pb2.ReadResponseResponse]:
    """An operation's response from the request's offset on; nothing is kept but the part that is being sent.

    Raises:
        InvalidArgumentError: the offset is negative, or behind the end.
        NotFoundError, FailedPreconditionError, DataLossError: as OperationStore.response_part says.
    """
    check_range("offset", request.offset, 0, 2**63 - 1)
    position = request.offset
    while content := await operations.response_part(name, tenant, position, PART_BYTES):
        position += len(content)
        yield operation_pb2.ReadResponseResponse(content=content)
    if position == request.offset and position > 0:
        raise InvalidArgumentError.must_be("offset", "before the end of the response", position)
