"""Typed stubs of one tenant, and short ways to open a session, a run and a sampling session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from tinker_proto.tensor import from_array
from tinker_proto.v1 import (
    capability_pb2_grpc,
    checkpoint_pb2_grpc,
    data_pb2,
    operation_pb2_grpc,
    sampling_pb2,
    sampling_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)

BASE = "tiny/lm"


@dataclass(frozen=True)
class Caller:
    """All services, called with one key."""

    channel: grpc.aio.Channel
    capabilities: Any
    checkpoints: Any
    operations: Any
    sampling: Any
    sessions: Any
    training: Any

    async def session(self) -> str:
        return str((await self.sessions.CreateSession(session_pb2.CreateSessionRequest())).session_id)

    async def run(self, **config: Any) -> str:
        session = await self.session()
        request = training_pb2.CreateTrainingRunRequest(
            session_id=session, base_model=BASE, lora_config=training_pb2.LoraConfig(**{"rank": 4, **config})
        )
        await self.training.CreateTrainingRun(request)
        return f"{session}:train:0"

    async def sampling_session(self) -> str:
        session = await self.session()
        request = sampling_pb2.CreateSamplingSessionRequest(session_id=session, base_model=BASE)
        return str((await self.sampling.CreateSamplingSession(request)).sampling_session_id)


class _CallKey(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, key: str) -> None:
        self._key = key

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with_key(details, self._key), request)


class _StreamKey(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, key: str) -> None:
        self._key = key

    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(_with_key(details, self._key), request)


class _UploadKey(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, key: str) -> None:
        self._key = key

    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(_with_key(details, self._key), requests)


def _with_key(details: Any, key: str) -> Any:
    return details._replace(metadata=grpc.aio.Metadata(*(details.metadata or ()), ("x-api-key", key)))


@asynccontextmanager
async def open_caller(address: str, key: str | None) -> AsyncIterator[Caller]:
    interceptors = [_CallKey(key), _StreamKey(key), _UploadKey(key)] if key is not None else []
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, interceptors=interceptors, options=options) as channel:
        yield Caller(
            channel,
            capability_pb2_grpc.CapabilityServiceStub(channel),
            checkpoint_pb2_grpc.CheckpointServiceStub(channel),
            operation_pb2_grpc.OperationServiceStub(channel),
            sampling_pb2_grpc.SamplingServiceStub(channel),
            session_pb2_grpc.SessionServiceStub(channel),
            training_pb2_grpc.TrainingServiceStub(channel),
        )


def tokens(*ids: int) -> data_pb2.ModelInput:
    return data_pb2.ModelInput(chunks=[data_pb2.Chunk(encoded_text=data_pb2.EncodedTextChunk(tokens=ids))])


def datum(length: int = 4, **inputs: np.ndarray) -> data_pb2.Datum:
    arrays = {"target_tokens": np.arange(length, dtype=np.int64), **inputs}
    return data_pb2.Datum(
        model_input=tokens(*range(length)), loss_fn_inputs={name: from_array(a) for name, a in arrays.items()}
    )


def forward_backward(run: str, seq_id: int | None = None, **changes: Any) -> training_pb2.ForwardBackwardRequest:
    fields = {"data": [datum()], "loss_fn": "cross_entropy", **changes}
    return training_pb2.ForwardBackwardRequest(training_run_id=run, seq_id=seq_id, **fields)


def fields_at_fault(error: grpc.aio.AioRpcError) -> list[str]:
    """The field paths of a BadRequest detail."""
    status = status_pb2.Status()
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            status.ParseFromString(value)
    violations = error_details_pb2.BadRequest()
    return [
        violation.field
        for detail in status.details
        if detail.Unpack(violations)
        for violation in violations.field_violations
    ]
