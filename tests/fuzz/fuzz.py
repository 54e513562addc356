"""The whole trial: one tenant sends hostile bytes to every method, another trains, and neither the platform nor the
other may come to harm.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import psutil
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import code_pb2

from services.cli.state_file import running_redis_url
from services.core.catalog.api_keys import ApiKeys
from services.core.queue import keyspace
from services.core.queue.connection import RedisConnection
from testing.platform import API_KEY, Platform
from tests.fuzz.bystander import Bystander
from tests.fuzz.mutation import Mutator
from tests.fuzz.requests import Belongings, acquire, methods, valid_requests
from tests.gateway.caller import open_caller
from tinker_client._outage import CUT_OFF
from tinker_proto.v1 import operation_pb2

ATTACKER = "mallory"
BATCH = 500
"""Requests after which the attacker, who may have deleted what there was, gets new things."""

AT_ONCE = 16
CALL_S = 30.0
STREAM_S = 0.2
"""How long a stream is listened to."""

OUR_FAULT = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.ABORTED,
    }
)
OPERATIONS_AT_FAULT = (code_pb2.INTERNAL, code_pb2.UNKNOWN, code_pb2.DATA_LOSS)

Request = tuple[str, MethodDescriptor, list[bytes]]
"""Path, method, and the messages that are sent."""


@dataclass
class Trial:
    """What came out."""

    requests: int
    seed: int
    codes: Counter[str] = field(default_factory=Counter)
    by_method: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: list[str] = field(default_factory=list)
    rounds: int = 0

    def note(
        self, path: str, method: MethodDescriptor, messages: Sequence[bytes], code: grpc.StatusCode, details: str
    ) -> None:
        """Counts an answer. A call that nobody answers is our fault too, unless it is a stream, which has no end."""
        self.codes[code.name] += 1
        self.by_method[path][code.name] += 1
        is_late = code is grpc.StatusCode.DEADLINE_EXCEEDED and not method.server_streaming
        if code in OUR_FAULT or is_late:
            sent = " ".join(message.hex()[:400] for message in messages)
            self.faults.append(f"{code.name} {path}: {details}; sent {sent}")

    def summary(self) -> str:
        """For a person."""
        codes = ", ".join(f"{count} {code}" for code, count in self.codes.most_common())
        lines = [
            f"seed {self.seed}: {self.codes.total()} requests to {len(self.by_method)} methods, "
            f"{self.rounds} rounds of a bystander",
            codes,
        ]
        return "\n".join([*lines, *(f"FAULT: {fault}" for fault in self.faults), f"{len(self.faults)} faults"])


async def run_trial(platform: Platform, *, requests: int, seed: int, report: Callable[[str], None]) -> Trial:
    """Sends so many requests while a bystander works, and compares its numbers with those of an undisturbed run."""
    trial, bystander = Trial(requests, seed), Bystander(platform.url, API_KEY)
    connection = RedisConnection.open(running_redis_url(platform.data_dir))
    thread = threading.Thread(target=bystander.run, name="bystander", daemon=True)
    processes = _processes(platform)
    try:
        key, made = await ApiKeys(connection).create(ATTACKER)
        thread.start()
        await asyncio.to_thread(bystander.begun.wait)
        await _attack(trial, platform.address, key, bystander.names, report)
        bystander.ended.set()
        await asyncio.to_thread(thread.join)
        trial.faults += await _operations_at_fault(connection.commands)
        await ApiKeys(connection).revoke(made.key_id)
    finally:
        bystander.ended.set()
        await connection.close()
    trial.rounds = len(bystander.numbers)
    undisturbed = Bystander(platform.url, API_KEY, rounds=trial.rounds)
    await asyncio.to_thread(undisturbed.run)
    trial.faults += [f"bystander: {error!r}" for error in (bystander.failure, undisturbed.failure) if error is not None]
    if bystander.numbers != undisturbed.numbers:
        trial.faults.append("the bystander's numbers are others than in an undisturbed run")
    if _processes(platform) != processes:
        trial.faults.append("a process has died")
    return trial


def _processes(platform: Platform) -> set[int]:
    assert platform.process is not None
    return {child.pid for child in psutil.Process(platform.process.pid).children()}


async def _attack(trial: Trial, address: str, key: str, victims: Sequence[str], report: Callable[[str], None]) -> None:
    drawn = random.Random(trial.seed)
    metadata = (("x-api-key", key),)
    async with open_caller(address, key) as caller, grpc.aio.insecure_channel(address) as channel:
        for begin in range(0, trial.requests, BATCH):
            own = await acquire(caller)
            count = min(BATCH, trial.requests - begin)
            hostile = iter(list(_hostile(drawn, own, victims, count)))

            async def send_all(hostile: Iterator[Request] = hostile) -> None:
                for path, method, messages in hostile:
                    code, details = await _send(channel, path, method, messages, metadata)
                    trial.note(path, method, messages, code, details)

            await asyncio.gather(*(send_all() for _ in range(AT_ONCE)))
            report(f"{trial.codes.total()} of {trial.requests} requests, {len(trial.faults)} faults")


def _hostile(drawn: random.Random, own: Belongings, victims: Sequence[str], count: int) -> Iterator[Request]:
    mutator = Mutator(drawn.getrandbits(32), (*own.names, *victims, *victims))
    choices = list(methods().items())
    for number in range(count):
        path, method = drawn.choice(choices)
        valid = [request.SerializeToString() for request in valid_requests(own, number)[method.name]]
        yield path, method, [mutator.mutated(content, drawn.choice(valid)) for content in valid]


async def _send(
    channel: grpc.aio.Channel, path: str, method: MethodDescriptor, messages: Sequence[bytes], metadata: Any
) -> tuple[grpc.StatusCode, str]:
    """What comes back of raw bytes."""
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    stub, timeout = getattr(channel, kind)(path), STREAM_S if method.server_streaming else CALL_S
    while True:
        try:
            call = stub(iter(messages) if method.client_streaming else messages[0], timeout=timeout, metadata=metadata)
            if method.server_streaming:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            if error.details() == CUT_OFF:
                continue
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""


async def _operations_at_fault(commands: Any) -> list[str]:
    """Accepted operations of the attacker that have failed for a reason of ours."""
    found = []
    async for key in commands.scan_iter(match=keyspace.operation("*"), count=1000):
        tenant, packed = await commands.hmget(key, "tenant", "error")
        if tenant == ATTACKER.encode() and packed is not None:
            error = operation_pb2.OperationError.FromString(packed)
            if error.code in OPERATIONS_AT_FAULT:
                found.append(f"{key.decode()}: {error.reason}: {error.message}")
    return found
