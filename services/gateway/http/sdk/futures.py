"""Futures: their results, fetched one by one, and the finished ones of a sampling session.

A request for a result is held until there is one, at most `HOLD_S`; the SDK asks again at once when it is told to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.core.catalog.reserved_samplers import ReservedSampler
from services.core.errors import InvalidArgumentError, NotFoundError, PlatformError, UnavailableError
from services.core.names import OperationName, sampling_session_id, session_of
from services.core.queue.operations import LARGE_BYTES
from services.core.unnamed_weights import weights_name
from services.gateway.http.backend import Backend
from services.gateway.http.body import Fields, read_json, takes
from services.gateway.http.errors import PAUSE_S
from services.gateway.http.held_response import LargeAnswers
from services.gateway.http.sdk import results
from services.gateway.http.sdk.fields import SdkFields, SeqId
from services.gateway.waiting import until_done
from tinker_proto.v1 import operation_pb2, sampling_pb2

HOLD_S = 30.0


class Retrieve(SdkFields):
    """POST retrieve_future."""

    request_id: str
    allow_metadata_only: bool = False


class Target(Fields):
    """One client of a sampling session."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str
    cloned_sampler_id: SeqId = 0


class RetrieveMany(SdkFields):
    """POST retrieve_futures."""

    target: Target
    prev_cursor: int = Field(default=0, ge=0, lt=2**63)
    timeout: float | None = Field(default=None, ge=0)
    retrieved_request_ids: tuple[str, ...] = Field(default=(), max_length=100_000)


class Cancel(SdkFields):
    """POST cancel_future."""

    request_id: str


def routes(backend: Backend) -> Sequence[BaseRoute]:
    """The routes of this group."""
    futures = Futures(backend)
    return [
        Route("/retrieve_future", futures.retrieve, methods=["POST"]),
        Route("/retrieve_futures", futures.retrieve_many, methods=["POST"]),
        Route("/cancel_future", futures.cancel, methods=["POST"]),
    ]


class Futures:
    """The endpoints of this group."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stores = backend.stores
        self._large = LargeAnswers(backend.settings)

    @takes(Retrieve)
    async def retrieve(self, request: Request) -> Response:
        """A result as soon as there is one."""
        tenant = await self._backend.tenant(request)
        name = OperationName.parse((await read_json(request, Retrieve)).request_id)
        deadline = asyncio.get_running_loop().time() + HOLD_S
        operation = await until_done(self._stores, name, tenant, deadline, whole_bytes=LARGE_BYTES)
        if not operation.done:
            if self._stores.events.is_shut:  # the SDK asks again after the pause and meets a closed port
                await asyncio.sleep(PAUSE_S)
            operation = await self._stores.operations.get_with_position(str(name), tenant)
            return JSONResponse(_pending(operation), status_code=408)
        if operation.HasField("stored_response"):
            size = operation.stored_response.size_bytes
            return await self._large.of(tenant, size, lambda: self._stored(request, name, tenant))
        return await self._answer(request, operation, tenant)

    async def _stored(self, request: Request, name: OperationName, tenant: str) -> Response:
        return await self._answer(request, await self._stores.operations.get(str(name), tenant), tenant)

    async def _answer(self, request: Request, operation: operation_pb2.Operation, tenant: str) -> Response:
        """The answer about a finished operation; a large result is converted in a thread."""
        if operation.HasField("error"):
            return results.error_result(operation.error)
        if operation.ByteSize() < LARGE_BYTES:
            message = results.protobuf_result(operation)
        else:
            message = await asyncio.to_thread(results.protobuf_result, operation)
        if message is not None:
            return Response(message, media_type=results.PROTOBUF)
        try:
            content = await self._json(OperationName.parse(operation.name), operation, tenant)
        except UnavailableError:
            await asyncio.sleep(PAUSE_S)  # the SDK would ask again at once
            return JSONResponse(_pending(operation), status_code=408)
        except PlatformError as error:
            return results.error_result(error.to_operation_error())
        return JSONResponse(content)

    @takes(RetrieveMany)
    async def retrieve_many(self, request: Request) -> Response:
        """What a client of a sampling session has had finished since its cursor."""
        tenant = await self._backend.tenant(request)
        fields = await read_json(request, RetrieveMany)
        target = fields.target
        sampling, _ = await self._stores.catalog.sampling_session(target.sampling_session_id, tenant)
        deadline = asyncio.get_running_loop().time() + min(HOLD_S, HOLD_S if fields.timeout is None else fields.timeout)
        cursor, opened = fields.prev_cursor, sampling.create_time.ToDatetime(UTC)
        with self._stores.events.watch(session_of(target.sampling_session_id)) as watcher:
            while True:
                finished, cursor = await self._stores.finished.after(
                    cursor, target.sampling_session_id, target.cloned_sampler_id, opened
                )
                if finished:
                    break
                try:
                    async with asyncio.timeout_at(deadline):
                        if await watcher.next_names() is None:
                            await asyncio.sleep(PAUSE_S)
                            break
                except TimeoutError:
                    break
        states = await self._stores.operations.states([str(name) for name in finished], tenant)
        completions = [_completion(name, state) for name, state in states.items()]
        return JSONResponse({"completions": completions, "cursor": cursor})

    @takes(Cancel)
    async def cancel(self, request: Request) -> Response:
        """Ends an operation that has not begun, or that samples; another is left as it is."""
        tenant = await self._backend.tenant(request)
        name = OperationName.parse((await read_json(request, Cancel)).request_id)
        await self._stores.operations.get(str(name), tenant)
        await self._stores.operations.cancel(name)
        return JSONResponse({"request_id": str(name)})

    async def _json(self, name: OperationName, operation: operation_pb2.Operation, tenant: str) -> dict[str, Any]:
        try:
            content = results.json_result(operation)
        except KeyError:
            rule = "an operation that the SDK has a result for"
            raise InvalidArgumentError.must_be("request_id", rule, f"a {operation.method}") from None
        reserved = await self._stores.reserved_samplers.of(str(name))
        if reserved is None or not content.get("path", "").endswith(f"/{weights_name(name.seq_id)}"):
            return content
        sampling = await self._sampling_session(name, reserved, content["path"], tenant)
        return {"sampling_session_id": sampling}

    async def _sampling_session(self, name: OperationName, reserved: ReservedSampler, path: str, tenant: str) -> str:
        """The sampling session that a save was for; opened when it is asked for first."""
        session_id, seq_id = name.session_id, reserved.sampling_session_seq_id
        try:
            opened, _ = await self._stores.catalog.sampling_session(sampling_session_id(session_id, seq_id), tenant)
        except NotFoundError:
            request = sampling_pb2.CreateSamplingSessionRequest(
                session_id=session_id, sampling_session_seq_id=seq_id, model_path=path
            )
            follows = name if reserved.inflight else None
            opened = await self._backend.creation.sampling_session(tenant, request, follows)
        if opened.model_path != path and not reserved.inflight:
            rule = "unused by other sampling sessions of the session"
            raise InvalidArgumentError.must_be("sampling_session_seq_id", rule, seq_id)
        return opened.sampling_session_id


def _pending(operation: operation_pb2.Operation) -> dict[str, Any]:
    content = {"type": "try_again", "request_id": operation.name, "queue_state": "active"}
    if operation.HasField("queue_place"):
        place = operation.queue_place
        reason = f"operations before it: {place.operations_ahead}"
        if place.HasField("estimated_wait"):
            reason += f", about {place.estimated_wait.ToTimedelta().total_seconds():.0f} s"
        content["queue_state_reason"] = reason
    return content


def _completion(name: str, state: operation_pb2.OperationState.ValueType) -> dict[str, Any]:
    succeeded = state == operation_pb2.OPERATION_STATE_SUCCEEDED
    return {"state": "finished" if succeeded else "failed", "request_id": name}
