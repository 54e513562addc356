"""Bodies of calls on training runs. A call that is refused before it is a message takes its place in the run's log.

The SDK has spent its seq_id and goes on with the next one, which would otherwise be waited for in vain. The answer is
the refusal.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from services.core.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.gateway.http.body import (
    BodyCutOffError,
    BodyError,
    json_body,
    parse_json,
    parse_protobuf,
    protobuf_body,
)
from services.gateway.http.body_start import start_of_body
from services.gateway.http.sdk.positions import position_in
from services.gateway.submission import Submission
from services.gateway.validation.training import RunRequest
from tinker_proto.sdk.v1 import sdk_pb2
from tinker_proto.v1 import training_pb2

_NO_SUCH_PLACE = (AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError)

FieldsT = TypeVar("FieldsT", bound=BaseModel)


class RunCalls:
    """Reads calls, and enters those that are refused."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission

    async def read_json(
        self, request: Request, fields: type[FieldsT], tenant: str, operation: type[RunRequest]
    ) -> FieldsT:
        """The JSON body of a call; raises as `body.read_json`, with the call in its log as a failed `operation`."""
        content = None
        try:
            content = await json_body(request)
            return await parse_json(request, content, fields)
        except InvalidArgumentError as refusal:
            await self._enter(request, content, tenant, operation, refusal)
            raise

    async def read_loss(self, request: Request, tenant: str, limit: int) -> sdk_pb2.ForwardBackwardRequest:
        """The body of a loss; raises as `body.read_protobuf`, with the call in its run's log."""
        content = None
        try:
            content = await protobuf_body(request, limit)
            return parse_protobuf(content, sdk_pb2.ForwardBackwardRequest())
        except InvalidArgumentError as refusal:
            await self._enter(request, content, tenant, training_pb2.ForwardBackwardRequest, refusal)
            raise

    async def _enter(
        self,
        request: Request,
        content: bytes | None,
        tenant: str,
        operation: type[RunRequest],
        refusal: InvalidArgumentError,
    ) -> None:
        if isinstance(refusal, BodyCutOffError):
            return  # its sender sends it again
        if isinstance(refusal, BodyError):
            content = refusal.start
        if content is None:
            content = await start_of_body(request, lambda start: position_in(start) is not None)
        if (position := position_in(content)) is None:
            return
        run, seq_id = position
        message = operation(training_run_id=run, seq_id=seq_id)
        with suppress(*_NO_SUCH_PLACE):
            await self._submission.enter(tenant, message, refusal)
