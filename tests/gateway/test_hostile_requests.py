"""Whatever is sent, to whatever method, gets an answer that is the sender's fault or none: never the platform's."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from tests.gateway.caller import BASE, Caller, forward_backward
from tests.gateway.hostile import Fuzzer
from tinker_proto.v1 import (
    capability_pb2,
    checkpoint_pb2,
    operation_pb2,
    sampling_pb2,
    session_pb2,
    training_pb2,
)

REQUESTS = 3000
OUR_FAULT = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED}


def methods(caller: Caller) -> list[tuple[Any, Any, MethodDescriptor]]:
    """(stub, request type, what it is) of every method of the contract."""
    stubs = {
        "Capability": (caller.capabilities, capability_pb2),
        "Checkpoint": (caller.checkpoints, checkpoint_pb2),
        "Operation": (caller.operations, operation_pb2),
        "Sampling": (caller.sampling, sampling_pb2),
        "Session": (caller.sessions, session_pb2),
        "Training": (caller.training, training_pb2),
    }
    return [
        (getattr(stub, method.name), getattr(module, method.input_type.name), method)
        for name, (stub, module) in stubs.items()
        for method in module.DESCRIPTOR.services_by_name[f"{name}Service"].methods
    ]


async def send(stub: Any, requests: list[Any], method: MethodDescriptor) -> grpc.StatusCode:
    (request, *_) = requests
    try:
        if method.client_streaming:
            await stub(requests, timeout=60)
        elif method.server_streaming:
            async for _ in stub(request, timeout=0.2):
                pass
        else:
            await stub(request, timeout=60)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_random_requests_never_fail_inside_and_leave_others_alone(alice: Caller, mallory: Caller) -> None:
    bystander = await alice.run()
    run, sampling = await mallory.run(), await mallory.sampling_session()
    session = run.partition(":")[0]
    paths = [f"tinker://{run}/{tail}" for tail in ("weights/a", "sampler_weights/a", "a", "weights/..", "weights/%2e")]
    known = (run, sampling, session, f"{run}:0", f"{run}:1", BASE, *paths)
    fuzzer = Fuzzer(1, known)
    choices, seen = methods(mallory), set()
    for number in range(REQUESTS):
        stub, request_type, method = fuzzer.choose(choices)
        requests = [request_type() for _ in range(3 if method.client_streaming else 1)]
        for request in requests:
            fuzzer.fill(request)
        code = await send(stub, requests, method)
        assert code not in OUR_FAULT, f"request {number}, {request_type.__name__}: {code}"
        seen.add(code)
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND} <= seen
    operation = await alice.training.ForwardBackward(forward_backward(bystander, 1))
    assert operation.name == f"{bystander}:1"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/tinker.v1.TrainingService/ForwardBackward", "unary_unary"),
        ("/tinker.v1.OperationService/WatchOperations", "unary_stream"),
        ("/tinker.v1.CheckpointService/UploadFile", "stream_unary"),
    ],
)
async def test_what_is_no_message_is_the_senders_fault(alice: Caller, path: str, kind: str) -> None:
    request = iter([b"\xff"]) if kind.startswith("stream") else b"\xff"
    call = getattr(alice.channel, kind)(path)(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (anext(aiter(call)) if kind.endswith("stream") else call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "malformed protobuf request" in (caught.value.details() or "")
