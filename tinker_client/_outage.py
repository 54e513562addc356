"""An outage of the platform: how long it has lasted, and when to retry.

Pauses grow and are jittered, so that a thousand clients do not come back in step. A platform that asks to come back
later has answered: the count starts anew and its own delay is kept.
"""

from __future__ import annotations

import logging
import random
import time
from datetime import timedelta

import grpc
from google.rpc import error_details_pb2

from tinker_client._address import URL_VARIABLE, Address
from tinker_client.errors import APIConnectionError, APITimeoutError, from_rpc_error, retry_delay, unpack_detail

_log = logging.getLogger("tinker_client")

ATTEMPT_S = 60.0
"""Longest that one attempt of a call may take; what takes long is an operation, not a call."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_LONGEST_ROUND_S = ATTEMPT_S + _LONGEST_PAUSE_S + 5.0
"""An attempt and the pause before it; whoever looks again later has stood still, as on a laptop that was closed."""

# A server that is overloaded or going away answers CANCELLED as well as UNAVAILABLE.
_NO_ANSWER = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})

# What grpc.aio says itself, instead of what the server said or that it is gone, if a stream of requests ends while one
# of them is being sent. The next attempt is told.
CUT_OFF = "Internal error from Core"


class Outage:
    """Counts the time without an answer; gives up after `patience`."""

    def __init__(self, address: Address, patience: timedelta, *, first_contact: bool) -> None:
        self._address = address
        self._patience_s = patience.total_seconds()
        self._first_contact = first_contact
        self._told = False
        self.end()

    def end(self, after_s: float = 0.0) -> None:
        """There was an answer: a new count begins, after a wait of `after_s`."""
        self._began = self._looked = time.monotonic() + after_s
        self._attempts = 0

    @property
    def seconds_left(self) -> float:
        """How much longer to try, at least a moment."""
        return max(self._began + self._patience_s - time.monotonic(), 0.1)

    def pause_after(self, error: grpc.aio.AioRpcError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            APIConnectionError: nobody has answered for too long.
            APIStatusError: the platform has answered, and trying again does not help.
        """
        asked = retry_delay(error)
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and asked is not None:
            pause = max(asked.total_seconds(), _FIRST_PAUSE_S) * random.uniform(1.0, 1.5)
            if not self._told:
                _log.warning("the platform at %s asks to wait: %s", self._address, error.details())
                self._told = True
            self.end(after_s=pause)
            return pause
        if error.code() not in _NO_ANSWER and error.details() != CUT_OFF:
            raise from_rpc_error(error)
        self._leave_out_standstill()
        self._attempts += 1
        longest = min(_FIRST_PAUSE_S * 2.0 ** min(self._attempts, 10), _LONGEST_PAUSE_S)
        pause = longest * random.uniform(0.5, 1.0)
        if time.monotonic() + pause > self._began + self._patience_s:
            raise self._given_up(error) from error
        return pause

    def _leave_out_standstill(self) -> None:
        """Time in which this process did not run is no time without an answer."""
        now = time.monotonic()
        self._began += max(now - self._looked - _LONGEST_ROUND_S, 0.0)
        self._looked = now

    def _given_up(self, error: grpc.aio.AioRpcError) -> APIConnectionError:
        kind = APITimeoutError if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else APIConnectionError
        detail = error.details() or error.code().name
        if unpack_detail(error, error_details_pb2.ErrorInfo()):  # somebody is there, and says why it does not work
            return kind(f"the platform at {self._address} cannot do this now: {detail}")
        if not self._first_contact:
            return kind(f"the platform at {self._address} has not answered for {self._patience_s:.0f} s ({detail})")
        scheme = "" if self._address.secure else ", and grpcs:// if the server uses TLS"
        return kind(
            f"no platform answers at {self._address} ({detail}). Start one with `tinker-platform up`, or say where it "
            f"is with {URL_VARIABLE} or ServiceClient(base_url=...), for example grpc://127.0.0.1:50051{scheme}."
        )
