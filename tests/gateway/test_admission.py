"""Floods and slow senders: a gateway's memory stays small, and nobody waits for somebody else's requests."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message

from services.core.config import Settings
from services.gateway.main import serve
from services.gateway.stores import Stores
from testing.platform import free_port
from testing.waiting import until, until_true
from tests.gateway.caller import Caller, forward_backward, open_caller
from tinker_proto.v1 import checkpoint_pb2, sampling_pb2, training_pb2

MESSAGE_BYTES = 4 << 20
ARRIVING_BYTES = 4 * MESSAGE_BYTES
FLOOD = 100
TRAINING = "/tinker.v1.TrainingService/ForwardBackward"
SAMPLING = "/tinker.v1.SamplingService/SampleStream"
UPLOAD = "/tinker.v1.CheckpointService/UploadFile"
KNOWN, UNKNOWN = "tml-flooding-alice", "tml-nobody-at-all"


@dataclass(frozen=True)
class Gateway:
    """A gateway in a process of its own."""

    process: BaseProcess
    settings: Settings

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.settings.grpc_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.http_port}"

    def memory_bytes(self, field: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(field))

    async def growth_bytes(self, flood: Awaitable[Any]) -> int:
        """How far the memory rises above what it is now, while it is flooded."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # forgets the peak
        before = self.memory_bytes("VmRSS")
        await flood
        return self.memory_bytes("VmHWM") - before


def _serve(values: dict[str, Any]) -> None:
    asyncio.run(serve(Settings(**values)))


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        await client.get("/healthz")
    except httpx.ConnectError:
        return False
    return True


@asynccontextmanager
async def served(redis_url: str, data_dir: Path, arrival_s: float) -> AsyncIterator[Gateway]:
    """A gateway that gives every request `arrival_s` seconds to arrive."""
    values = {
        "redis_url": redis_url,
        "data_dir": data_dir,
        "grpc_port": free_port(),
        "http_port": free_port(),
        "max_message_bytes": MESSAGE_BYTES,
        "max_arriving_bytes": ARRIVING_BYTES,
        "arrival_seconds": arrival_s,
        "drain_seconds": 0,
    }
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(values,))
    process.start()
    running = Gateway(process, Settings(**values))
    async with grpc.aio.insecure_channel(running.address) as channel:
        await channel.channel_ready()
    async with httpx.AsyncClient(base_url=running.http_url) as client:
        await until_true(lambda: answers(client), what="an answer over HTTP")
    yield running
    process.kill()
    process.join()


@pytest.fixture
async def gateway(stores: Stores, redis_url: str, data_dir: Path) -> AsyncIterator[Gateway]:
    """One in which no request is late, however busy the machine is."""
    async with served(redis_url, data_dir, 3600) as running:
        yield running


@pytest.fixture
async def impatient(stores: Stores, redis_url: str, data_dir: Path) -> AsyncIterator[Gateway]:
    """One in which what has not arrived after a second is late."""
    async with served(redis_url, data_dir, 1) as running:
        yield running


def training() -> bytes:
    request = forward_backward("1234567890abcdef:train:0", 1)
    request.data[0].model_input.chunks[0].encoded_text.tokens.extend([1] * (MESSAGE_BYTES - 1000))
    return request.SerializeToString()


def upload() -> bytes:
    return checkpoint_pb2.UploadFileRequest(content=bytes(MESSAGE_BYTES - 1000)).SerializeToString()


async def ending(call: Awaitable[Any]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


linux = pytest.mark.skipif(sys.platform != "linux", reason="a process's peak of memory is read from /proc")


@linux
@pytest.mark.parametrize(
    ("method", "request_of", "key", "code"),
    [
        (TRAINING, training, KNOWN, grpc.StatusCode.NOT_FOUND),
        (TRAINING, training, UNKNOWN, grpc.StatusCode.UNAUTHENTICATED),
        (UPLOAD, upload, KNOWN, grpc.StatusCode.INVALID_ARGUMENT),
        (UPLOAD, upload, UNKNOWN, grpc.StatusCode.UNAUTHENTICATED),
    ],
)
async def test_a_flood_of_calls_takes_little_memory(
    gateway: Gateway, stores: Stores, method: str, request_of: Callable[[], bytes], key: str, code: grpc.StatusCode
) -> None:
    await stores.api_keys.create("alice", key=KNOWN)
    request = request_of()
    async with open_caller(gateway.address, key) as caller:
        flood = asyncio.gather(*(ending(caller.channel.unary_unary(method)(request)) for _ in range(FLOOD)))
        grown_bytes = await gateway.growth_bytes(flood)
    assert set(flood.result()) == {code}
    assert grown_bytes < 6 * ARRIVING_BYTES < FLOOD * MESSAGE_BYTES / 4


@linux
async def test_a_flood_of_posts_takes_little_memory(gateway: Gateway, stores: Stores) -> None:
    await stores.api_keys.create("alice", key=KNOWN)
    url = f"{gateway.http_url}/api/v1/forward_backward"
    headers = {"x-api-key": KNOWN, "content-type": "application/x-protobuf"}
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=FLOOD), headers=headers) as client:
        flood = asyncio.gather(*(client.post(url, content=bytes(MESSAGE_BYTES)) for _ in range(FLOOD)))
        grown_bytes = await gateway.growth_bytes(flood)
    assert {answer.status_code for answer in flood.result()} == {400}
    assert grown_bytes < 6 * ARRIVING_BYTES < FLOOD * MESSAGE_BYTES / 4


@pytest.mark.parametrize("method", [TRAINING, UPLOAD])
async def test_who_calls_and_sends_nothing_holds_up_nobody_else(gateway: Gateway, stores: Stores, method: str) -> None:
    await stores.api_keys.create("alice", key=KNOWN)
    key, _ = await stores.api_keys.create("bob")
    async with open_caller(gateway.address, KNOWN) as alice, open_caller(gateway.address, key) as bob:
        silent = [asyncio.create_task(ending(alice.channel.stream_unary(method)())) for _ in range(3)]
        run = await bob.run()
        await bob.training.ForwardBackward(forward_backward(run, 1))
        await alice.session()
        assert not any(call.done() for call in silent), "others did not wait for them"
        for call in silent:
            call.cancel()
        await asyncio.wait(silent)


@pytest.mark.parametrize("method", [TRAINING, UPLOAD])
async def test_who_calls_and_sends_nothing_is_told(impatient: Gateway, stores: Stores, method: str) -> None:
    await stores.api_keys.create("alice", key=KNOWN)
    async with open_caller(impatient.address, KNOWN) as alice:
        assert await ending(alice.channel.stream_unary(method)()) is grpc.StatusCode.DEADLINE_EXCEEDED


async def post_nothing(gateway: Gateway) -> tuple[asyncio.Task[bytes], asyncio.StreamWriter]:
    """Sends the head of a request and none of its body; the first line of the answer, and the connection."""
    lines = ["POST /api/v1/create_session HTTP/1.1", "Host: gateway", f"X-API-Key: {KNOWN}"]
    lines += ["Content-Type: application/json", f"Content-Length: {MESSAGE_BYTES}", "", ""]
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.http_port)
    writer.write("\r\n".join(lines).encode())
    return asyncio.create_task(reader.readline()), writer


async def test_who_posts_and_sends_nothing_holds_up_nobody_else(gateway: Gateway, stores: Stores) -> None:
    await stores.api_keys.create("alice", key=KNOWN)
    key, _ = await stores.api_keys.create("bob")
    silent = [await post_nothing(gateway) for _ in range(3)]
    async with httpx.AsyncClient(base_url=f"{gateway.http_url}/api/v1") as client:
        session = {"tags": [], "user_metadata": {}, "sdk_version": "0.0.0"}
        answer = await client.post("create_session", json=session, headers={"x-api-key": key})
        assert answer.status_code == 200, answer.text
        assert (await client.post("client/config", headers={"x-api-key": KNOWN})).status_code == 200
    assert not any(line.done() for line, _ in silent), "others did not wait for them"
    for line, writer in silent:
        line.cancel()
        writer.close()


async def test_who_posts_and_sends_nothing_is_told(impatient: Gateway, stores: Stores) -> None:
    await stores.api_keys.create("alice", key=KNOWN)
    line, writer = await post_nothing(impatient)
    assert b" 408 " in await line
    writer.close()


async def test_a_call_without_a_request_is_refused(gateway: Gateway, stores: Stores) -> None:
    await stores.api_keys.create("alice", key=KNOWN)
    async with open_caller(gateway.address, KNOWN) as alice:
        assert await ending(alice.channel.stream_unary(TRAINING)(iter([]))) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("method", "nobodys"),
    [
        (TRAINING, training_pb2.ForwardBackwardRequest(training_run_id="1234567890abcdef:train:0")),
        (SAMPLING, sampling_pb2.SampleRequest(sampling_session_id="1234567890abcdef:sample:0")),
    ],
)
async def test_a_refused_call_lets_go_of_its_request_at_once(alice: Caller, method: str, nobodys: Message) -> None:
    raw = nobodys.SerializeToString()

    def requests() -> int:
        return sum(type(thing) is type(nobodys) for thing in gc.get_objects())

    await ending(alice.channel.stream_unary(method)(iter([raw])))
    gc.collect()
    gc.disable()
    before = requests()
    try:
        for _ in range(10):
            assert await ending(alice.channel.stream_unary(method)(iter([raw]))) is not grpc.StatusCode.OK
        await until(lambda: requests() <= before, what="the end of all requests")
    finally:
        gc.enable()
