"""Sessions, runs, operations and checkpoints are the same things over HTTP and over gRPC, whichever made them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.core.config import Settings
from services.gateway.main import SERVICES, grpc_server
from services.gateway.stores import Stores
from tests.gateway.caller import BASE, Caller, forward_backward, open_caller
from tests.gateway.saved import save
from tests.http.test_futures import create, logged, loss, sample, sampling_session, submit
from tinker_proto.v1 import checkpoint_pb2, operation_pb2, sampling_pb2, session_pb2, training_pb2


@pytest.fixture
async def grpc(stores: Stores, data_dir: Path) -> AsyncIterator[Caller]:
    """The other front over the same state, with another key of the same tenant."""
    server = grpc_server(Settings(data_dir=data_dir, drain_seconds=0), stores)
    port = await server.start(0, SERVICES)
    key, _ = await stores.api_keys.create("alice")
    async with open_caller(f"127.0.0.1:{port}", key) as caller:
        yield caller
    await server.drain()


async def operation(grpc: Caller, name: str) -> operation_pb2.Operation:
    found = await grpc.operations.GetOperation(operation_pb2.GetOperationRequest(name=name))
    assert isinstance(found, operation_pb2.Operation)
    return found


async def test_what_http_has_made_is_there_over_grpc(http: httpx.AsyncClient, grpc: Caller) -> None:
    run, sampling = await create(http), await sampling_session(http)
    await submit(http, loss(run, 1))
    await sample(http, sampling, 0)
    found = await grpc.training.GetTrainingRun(training_pb2.GetTrainingRunRequest(training_run_id=run))
    assert (found.base_model, found.lora_config.rank) == (BASE, 4)
    for made, contents in ((run, "training_run_ids"), (sampling, "sampling_session_ids")):
        wanted = session_pb2.GetSessionRequest(session_id=made.partition(":")[0])
        assert list(getattr(await grpc.sessions.GetSession(wanted), contents)) == [made]
    methods = [(await operation(grpc, name)).method for name in (f"{run}:0", f"{run}:1", f"{sampling}:0")]
    assert methods == ["CreateTrainingRun", "ForwardBackward", "Sample"]


async def test_one_run_has_one_order_whichever_way_its_operations_come(
    http: httpx.AsyncClient, grpc: Caller, stores: Stores
) -> None:
    run = await create(http)
    await grpc.training.ForwardBackward(forward_backward(run, 2))
    assert await logged(stores, run) == [0], "it waits for the one that is sent over HTTP"
    await submit(http, loss(run, 1))
    await grpc.training.ForwardBackward(forward_backward(run, 3))
    assert await logged(stores, run) == [0, 1, 2, 3]
    await grpc.operations.CancelOperation(operation_pb2.CancelOperationRequest(name=f"{run}:1"))
    told = await http.post("retrieve_future", json={"request_id": f"{run}:1"})
    assert told.json() == {"error": f"operation {run}:1 was cancelled", "category": "user"}
    await http.post("cancel_future", json={"request_id": f"{run}:3"})
    assert (await operation(grpc, f"{run}:3")).state == operation_pb2.OPERATION_STATE_CANCELLED


async def test_checkpoints_and_samplers_that_grpc_has_made_are_there_over_http(
    http: httpx.AsyncClient, grpc: Caller, stores: Stores
) -> None:
    run = await grpc.run()
    path = await save(grpc, stores, run, "a", user_metadata={"why": "both"})
    wanted = sampling_pb2.CreateSamplingSessionRequest(session_id=await grpc.session(), model_path=path)
    sampling = (await grpc.sampling.CreateSamplingSession(wanted)).sampling_session_id
    assert (await http.get(f"samplers/{sampling}")).json()["model_path"] == path
    url = f"training_runs/{run}/checkpoints"
    await grpc.checkpoints.PublishCheckpoint(checkpoint_pb2.PublishCheckpointRequest(tinker_path=path))
    (listed,) = (await http.get(url)).json()["checkpoints"]
    assert (listed["tinker_path"], listed["public"], listed["user_metadata"]) == (path, True, {"why": "both"})
    assert (await http.put(f"{url}/weights/a/ttl", json={"ttl_seconds": 7200})).status_code == 204
    changed = await grpc.checkpoints.GetCheckpoint(checkpoint_pb2.GetCheckpointRequest(tinker_path=path))
    assert changed.HasField("expires_at")
    assert (await http.delete(f"{url}/weights/a")).status_code == 204
    remaining = await grpc.checkpoints.ListCheckpoints(checkpoint_pb2.ListCheckpointsRequest())
    assert list(remaining.checkpoints) == []
