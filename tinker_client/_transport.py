"""The channel to the platform: authentication, deadlines, and sending again what got no answer.

Every call may be repeated, because the platform recognises a seq_id that it has seen. The first contact is given up
soon, so that a wrong address is reported; after it, an outage may last `patience`. Lives on the background loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from tinker_client._address import Address
from tinker_client._outage import ATTEMPT_S, Outage
from tinker_client.errors import TinkerError
from tinker_proto.channel import open_channel
from tinker_proto.v1 import (
    capability_pb2_grpc,
    checkpoint_pb2_grpc,
    operation_pb2_grpc,
    sampling_pb2_grpc,
    session_pb2_grpc,
    training_pb2_grpc,
)

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)

PATIENCE = timedelta(minutes=10)
FIRST_CONTACT = timedelta(seconds=10)
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A connection that has died is silent: pings find out, also while nothing but the watch is open.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
]


class Transport:
    """One channel with the stubs of all services; made on the background loop."""

    def __init__(self, address: Address, api_key: str, patience: timedelta = PATIENCE) -> None:
        self.address = address
        self._metadata = (("x-api-key", api_key),)
        self._patience = patience
        self._reached = self._closed = False
        self._channel = open_channel(address.target, secure=address.secure, options=_CHANNEL_OPTIONS)
        self.training = training_pb2_grpc.TrainingServiceStub(self._channel)
        self.sampling = sampling_pb2_grpc.SamplingServiceStub(self._channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self._channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(self._channel)
        self.checkpoints = checkpoint_pb2_grpc.CheckpointServiceStub(self._channel)
        self.capabilities = capability_pb2_grpc.CapabilityServiceStub(self._channel)

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """Sends a request until it has an answer, and returns that.

        Raises:
            APIStatusError: the platform refused it.
            APIConnectionError: nobody answered for as long as this client is patient.
        """
        outage = self.outage()
        while True:
            self._check_open()
            try:
                timeout = min(ATTEMPT_S, outage.seconds_left)
                response = await method(request, metadata=self._metadata, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(outage.pause_after(error))
            else:
                self._reached = True
                return response

    async def call_once(self, method: grpc.aio.UnaryUnaryMultiCallable[Q, R], request: Q, timeout_s: float) -> bool:
        """Sends a request once, and returns whether it was answered with OK."""
        try:
            await method(request, metadata=self._metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def stream(self, method: grpc.aio.UnaryStreamMultiCallable[Q, R], request: Q) -> AsyncIterator[R]:
        """Yields the server's messages until it ends the stream; a broken stream raises AioRpcError as it is."""
        self._check_open()
        call = method(request, metadata=self._metadata)
        try:
            async for message in call:
                self._reached = True
                yield message
        finally:
            call.cancel()  # one that is not read to its end stays open, and in memory, until the channel closes

    async def send(
        self, method: grpc.aio.StreamUnaryMultiCallable[Q, R], requests: Callable[[], AsyncIterator[Q]]
    ) -> R:
        """Sends messages, from the first one on until they have an answer, and returns that; raises as `call`."""
        outage = self.outage()
        while True:
            self._check_open()
            try:
                response = await method(requests(), metadata=self._metadata)
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(outage.pause_after(error))
            else:
                self._reached = True
                return response

    def outage(self) -> Outage:
        """A new count of the time without an answer."""
        if self._reached:
            return Outage(self.address, self._patience, first_contact=False)
        return Outage(self.address, min(FIRST_CONTACT, self._patience), first_contact=True)

    def refuse_new_calls(self) -> None:
        """Lets no new call begin, because the client is closing."""
        self._closed = True

    async def close(self) -> None:
        """Closes the channel; calls under way end."""
        self.refuse_new_calls()
        await self._channel.close(None)

    def _check_open(self) -> None:
        if self._closed:
            raise TinkerError("this client is closed; make a new ServiceClient")
