"""Order of one training run's operations: the order of the calls.

A seq_id is taken at the call, so the order of calls is the order of execution, whatever arrives first: requests are
sent without waiting for each other, and the platform holds back those that arrive early. A seq_id that the platform
never receives would hold back every later operation for ever, so its loss fails all of them with an error.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from tinker_client._loop import BackgroundLoop
from tinker_client._session import OpenSession, SubmitMethod
from tinker_client._transport import Transport
from tinker_client._window import Window
from tinker_client.errors import APIConnectionError, APIStatusError, RequestFailedError
from tinker_client.future import APIFuture
from tinker_proto.v1 import training_pb2

R = TypeVar("R", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True)
class OperationKind(Generic[R]):
    """A method that makes operations of a run, and the type of their response."""

    method: Callable[[Transport], SubmitMethod]
    response: type[R]


class OperationOrder:
    """Numbers and carries out the operations of one training run."""

    def __init__(self, loop: BackgroundLoop, session: OpenSession, training_run_id: str) -> None:
        self.loop = loop
        self.training_run_id = training_run_id
        self._session = session
        self._window = Window(oldest=1)
        self._lock = threading.Lock()
        self._next_seq_id = 1
        self._lost_seq_id: int | None = None
        self._lost_because = ""

    def begin(
        self, count: int, carry_out: Callable[[Sequence[int], asyncio.Event], Coroutine[Any, Any, T]]
    ) -> APIFuture[T]:
        """Takes the next `count` seq_ids and starts `carry_out(seq_ids, cancelled)`; callable from any thread.

        `carry_out` must give each of the seq_ids to `operation`, whatever happens.
        """
        cancelled = asyncio.Event()
        self.loop.refuse_fork()
        with self._lock:
            seq_ids = range(self._next_seq_id, self._next_seq_id + count)
            self._next_seq_id += count
            name = f"{self.training_run_id}:{seq_ids[-1]}"
            state = partial(self._session.state, name)
            return APIFuture(self.loop, carry_out(seq_ids, cancelled), cancelled.set, name=name, state=state)

    async def operation(
        self,
        seq_id: int,
        kind: OperationKind[R],
        request: Any,
        cancelled: asyncio.Event,
    ) -> R:
        """Carries out one operation under its seq_id; raises as `OpenSession.carry_out`."""
        name = self._name(seq_id)
        if self._lost_seq_id is not None and seq_id > self._lost_seq_id:
            raise self._unreachable(seq_id)
        request.training_run_id, request.seq_id = self.training_run_id, seq_id
        try:
            return await self._session.carry_out(
                name,
                kind.method(self._session.transport),
                request,
                kind.response,
                slot=self._window.slot(seq_id, request.ByteSize()),
                cancelled=cancelled,
            )
        except (APIStatusError, APIConnectionError) as error:
            # A request that is refused for its content uses its seq_id up, as a failed operation does; others do not.
            if not await self._session.knows(name):
                self._lose(seq_id, error.message)
            raise

    def _lose(self, seq_id: int, because: str) -> None:
        if self._lost_seq_id is not None and self._lost_seq_id < seq_id:
            return
        self._lost_seq_id, self._lost_because = seq_id, because
        for later in range(seq_id + 1, self._next_seq_id):
            self._session.fail(self._name(later), self._unreachable(later))

    def _unreachable(self, seq_id: int) -> RequestFailedError:
        return RequestFailedError(
            f"operation {self._lost_seq_id} of training run {self.training_run_id} never reached the platform "
            f"({self._lost_because}), so no later one can be carried out: continue from a checkpoint with a new "
            "training client",
            request_id=self._name(seq_id),
            category="unknown",
            code="ABORTED",
            reason="EARLIER_OPERATION_LOST",
        )

    def _name(self, seq_id: int) -> str:
        return f"{self.training_run_id}:{seq_id}"


FORWARD = OperationKind(lambda transport: transport.training.Forward, training_pb2.ForwardResponse)
FORWARD_BACKWARD = OperationKind(
    lambda transport: transport.training.ForwardBackward, training_pb2.ForwardBackwardResponse
)
OPTIM_STEP = OperationKind(lambda transport: transport.training.OptimStep, training_pb2.OptimStepResponse)
SAVE_STATE = OperationKind(lambda transport: transport.training.SaveState, training_pb2.SaveStateResponse)
LOAD_STATE = OperationKind(lambda transport: transport.training.LoadState, training_pb2.LoadStateResponse)
SAVE_WEIGHTS_FOR_SAMPLER = OperationKind(
    lambda transport: transport.training.SaveWeightsForSampler, training_pb2.SaveWeightsForSamplerResponse
)
