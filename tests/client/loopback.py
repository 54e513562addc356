# ruff: noqa: N802
"""A platform for the client's tests: the contract's services on a real grpc.aio server, in a thread of its own.

It lets a test break what may break: single calls, replies on their way back, streams, the whole server.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
from grpc_status import rpc_status

from services.core.errors import (
    InvalidArgumentError,
    NotFoundError,
    PlatformError,
    UnauthenticatedError,
)
from tests.client.toy_catalog import ToyCatalog
from tests.client.toy_operations import MODEL, Operations
from tinker_proto.tensor import to_array
from tinker_proto.v1 import (
    capability_pb2,
    capability_pb2_grpc,
    checkpoint_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    sampling_pb2,
    sampling_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)

KEY = "tml-loopback"
Fault = PlatformError | grpc.StatusCode


class LoopbackPlatform(
    ToyCatalog,
    training_pb2_grpc.TrainingServiceServicer,
    sampling_pb2_grpc.SamplingServiceServicer,
    operation_pb2_grpc.OperationServiceServicer,
    capability_pb2_grpc.CapabilityServiceServicer,
):
    """All services."""

    def __init__(self, tokenizer_directory: Path | None = None) -> None:
        self.operations = Operations()
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.call_order: list[str] = []
        self.watched: list[list[str]] = []
        self.ended: list[str] = []
        self.session_metadata: dict[str, dict[str, str]] = {}
        self.deleted: list[str] = []
        self.public: set[str] = set()
        self.lifetimes: dict[str, int | None] = {}
        self.refuse_before: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.lose_reply: defaultdict[str, int] = defaultdict(int)
        self.refuse_late_s = 0.0
        self.stored: set[str] = set()
        """Operations whose responses are read apart."""

        self.damaged: set[str] = set()
        self.run_ids: list[str] = []
        self.tokenizer_directory = tokenizer_directory
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loopback-platform")
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def call(self, function: Callable[[], Any]) -> Any:
        """Calls a function on the platform's thread, where its state lives."""

        async def on_loop() -> Any:
            return function()

        return self.run(on_loop())

    def start(self) -> None:
        """Starts the server, on the same port as before."""
        self.run(self._start())

    def stop(self) -> None:
        """Stops the server at once; its state stays."""
        self.run(self._server.stop(0))

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def drop_watches(self) -> None:
        """Ends every stream of results."""
        self.call(lambda: [watcher.put_nowait(None) for watcher in self.operations.watchers])

    def release(self) -> None:
        self.call(self.operations.release)

    async def _start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        training_pb2_grpc.add_TrainingServiceServicer_to_server(self, self._server)
        sampling_pb2_grpc.add_SamplingServiceServicer_to_server(self, self._server)
        operation_pb2_grpc.add_OperationServiceServicer_to_server(self, self._server)
        session_pb2_grpc.add_SessionServiceServicer_to_server(self, self._server)
        checkpoint_pb2_grpc.add_CheckpointServiceServicer_to_server(self, self._server)
        capability_pb2_grpc.add_CapabilityServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def _enter(self, method: str, context: Any) -> None:
        self.calls[method] += 1
        self.call_order.append(method)
        if dict(context.invocation_metadata()).get("x-api-key") != KEY:
            await abort(context, UnauthenticatedError("this API key is unknown", reason="UNKNOWN_API_KEY"))
        if self.refuse_before[method]:
            await abort(context, self.refuse_before[method].popleft())

    async def _submit(self, scope: str, seq_id: int, method: str, request: Any, context: Any) -> Any:
        await self._enter(method, context)
        known = f"{scope}:{seq_id}" in self.operations.records
        try:
            check_content(request)
            operation = self.operations.accept(scope, seq_id, method, request)
        except InvalidArgumentError as error:
            self.operations.refuse(scope, seq_id, method, request, error)
            await asyncio.sleep(self.refuse_late_s)  # the record is on its way already
            await abort(context, error)
        except PlatformError as error:
            await abort(context, error)
        if self.lose_reply[method]:
            self.lose_reply[method] -= 1
            await abort(context, grpc.StatusCode.UNAVAILABLE)
        return operation if known else operation_pb2.Operation(name=operation.name, method=method)

    async def CreateSession(self, request: Any, context: Any) -> Any:
        await self._enter("CreateSession", context)
        session_id = f"s{self.calls['CreateSession']}"
        self.session_metadata[session_id] = dict(request.user_metadata)
        return session_pb2.Session(session_id=session_id, user_metadata=request.user_metadata)

    async def EndSession(self, request: Any, context: Any) -> Any:
        await self._enter("EndSession", context)
        self.ended.append(request.session_id)
        return session_pb2.Session(session_id=request.session_id)

    async def WatchOperations(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter("WatchOperations", context)
        self.watched.append(list(request.pending))
        watcher: asyncio.Queue[operation_pb2.Operation | None] = asyncio.Queue()
        self.operations.watchers.add(watcher)
        try:
            known = [self.operations.records[name] for name in request.pending if name in self.operations.records]
            done = [self._as_sent(item) for item in known if item.done]
            yield operation_pb2.WatchOperationsResponse(operations=done)
            while (operation := await watcher.get()) is not None:
                if operation.name.startswith(f"{request.session_id}:"):
                    yield operation_pb2.WatchOperationsResponse(operations=[self._as_sent(operation)])
        finally:
            self.operations.watchers.discard(watcher)
        await abort(context, grpc.StatusCode.UNAVAILABLE)

    def _as_sent(self, operation: operation_pb2.Operation) -> operation_pb2.Operation:
        if operation.name not in self.stored:
            return operation
        sent, content = operation_pb2.Operation(), operation.response.SerializeToString()
        sent.CopyFrom(operation)
        sent.stored_response.size_bytes = len(content)
        sent.stored_response.sha256 = hashlib.sha256(content).hexdigest()
        return sent

    async def ReadResponse(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Half of what is left a call, then the connection breaks."""
        await self._enter("ReadResponse", context)
        content = self.operations.records[request.name].response.SerializeToString()
        if request.name in self.damaged:
            content = bytes(len(content))
        rest = content[request.offset :]
        yield operation_pb2.ReadResponseResponse(content=rest[: len(rest) // 2 + 1])
        if len(rest) > 1:
            await abort(context, grpc.StatusCode.UNAVAILABLE)

    async def GetOperation(self, request: Any, context: Any) -> Any:
        await self._enter("GetOperation", context)
        if request.name not in self.operations.records:
            await abort(context, NotFoundError(f"there is no operation {request.name}"))
        return self.operations.records[request.name]

    async def CancelOperation(self, request: Any, context: Any) -> Any:
        await self._enter("CancelOperation", context)
        return self.operations.cancel(request.name)

    async def CreateTrainingRun(self, request: Any, context: Any) -> Any:
        return await self._create_run("CreateTrainingRun", request, context)

    async def CreateTrainingRunFromCheckpoint(self, request: Any, context: Any) -> Any:
        return await self._create_run("CreateTrainingRunFromCheckpoint", request, context)

    async def _create_run(self, method: str, request: Any, context: Any) -> Any:
        run = f"{request.session_id}:train:{request.training_run_seq_id}"
        if run not in self.run_ids:
            self.run_ids.append(run)
        return await self._submit(run, 0, method, request, context)

    async def ForwardBackward(self, request: Any, context: Any) -> Any:
        return await self._submit(request.training_run_id, request.seq_id, "ForwardBackward", request, context)

    async def Forward(self, request: Any, context: Any) -> Any:
        return await self._submit(request.training_run_id, request.seq_id, "Forward", request, context)

    async def OptimStep(self, request: Any, context: Any) -> Any:
        return await self._submit(request.training_run_id, request.seq_id, "OptimStep", request, context)

    async def SaveState(self, request: Any, context: Any) -> Any:
        return await self._submit(request.training_run_id, request.seq_id, "SaveState", request, context)

    async def LoadState(self, request: Any, context: Any) -> Any:
        return await self._submit(request.training_run_id, request.seq_id, "LoadState", request, context)

    async def SaveWeightsForSampler(self, request: Any, context: Any) -> Any:
        return await self._submit(request.training_run_id, request.seq_id, "SaveWeightsForSampler", request, context)

    async def GetTrainingRun(self, request: Any, context: Any) -> Any:
        await self._enter("GetTrainingRun", context)
        if request.training_run_id not in self.run_ids:
            await abort(context, NotFoundError(f"there is no training run {request.training_run_id}"))
        return training_pb2.TrainingRun(training_run_id=request.training_run_id, base_model=MODEL)

    async def ListTrainingRuns(self, request: Any, context: Any) -> Any:
        await self._enter("ListTrainingRuns", context)
        first, size = int(request.page_token or 0), request.page_size or 20
        runs = [training_pb2.TrainingRun(training_run_id=run) for run in self.run_ids[::-1]]
        token = str(first + size) if first + size < len(runs) else ""
        return training_pb2.ListTrainingRunsResponse(
            training_runs=runs[first : first + size], next_page_token=token, total_size=len(runs)
        )

    async def CreateSamplingSession(self, request: Any, context: Any) -> Any:
        await self._enter("CreateSamplingSession", context)
        return sampling_pb2.SamplingSession(
            sampling_session_id=f"{request.session_id}:sample:{request.sampling_session_seq_id}",
            base_model=request.base_model or MODEL,
            model_path=request.model_path,
        )

    async def Sample(self, request: Any, context: Any) -> Any:
        return await self._submit(request.sampling_session_id, request.seq_id, "Sample", request, context)

    async def ComputeLogprobs(self, request: Any, context: Any) -> Any:
        return await self._submit(request.sampling_session_id, request.seq_id, "ComputeLogprobs", request, context)

    async def GetServerCapabilities(self, request: Any, context: Any) -> Any:
        await self._enter("GetServerCapabilities", context)
        model = capability_pb2.SupportedModel(
            model_name=MODEL, max_context_length=64, vocab_size=100, trainable=True, sampleable=True, max_lora_rank=8
        )
        model.loss_fns.append("cross_entropy")
        return capability_pb2.GetServerCapabilitiesResponse(supported_models=[model])

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._enter("GetTokenizer", context)
        assert self.tokenizer_directory is not None
        for path in sorted(self.tokenizer_directory.iterdir()):
            yield capability_pb2.GetTokenizerResponse(file_name=path.name, content=path.read_bytes())


def check_content(request: Any) -> None:
    """The one content error that the toy knows: a target token over 99."""
    for index, datum in enumerate(getattr(request, "data", ())):
        if (to_array(datum.loss_fn_inputs["target_tokens"]) > 99).any():
            raise InvalidArgumentError.at(f'data[{index}].loss_fn_inputs["target_tokens"]', "allowed are 0 to 99")


async def abort(context: Any, fault: Fault) -> None:
    if isinstance(fault, grpc.StatusCode):
        await context.abort(fault, "broken by the test")
    status: Any = rpc_status.to_status(fault.to_status())
    await context.abort(status.code, status.details, status.trailing_metadata)
