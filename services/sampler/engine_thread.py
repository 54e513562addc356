"""An engine behind the one thread that may call it: its verbs as awaitable calls, and its load after each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.core.errors import PlatformError
from services.core.process.device_thread import DeviceThread
from services.core.process.metrics import STEP_SECONDS, STEP_SEQUENCES
from services.sampler.engine.interface import SamplerEngine
from services.sampler.request import Finished, GenerationRequest, TokenDelta


@dataclass(frozen=True)
class EngineStep:
    """The results of one step of an engine."""

    finished: list[Finished]
    deltas: list[TokenDelta]
    idle: bool
    """Whether nothing is left to do."""


@dataclass(frozen=True)
class _Load:
    free: int
    running: int
    waiting_tenants: frozenset[str]


class EngineThread:
    """One engine on a thread of its own.

    Args:
        engine: the engine.
        on_turn: called when requests that were refused a place before may find one.
    """

    def __init__(self, engine: SamplerEngine, on_turn: Callable[[], None]) -> None:
        self._engine = engine
        self._on_turn = on_turn
        self._thread = DeviceThread()
        self.free_sequences = 0
        """Sequences that could start after the last call."""

        self.running_sequences = 0
        """Sequences that were running after the last call."""

        self.waiting_tenants: frozenset[str] = frozenset()
        """Tenants of requests that had not started after the last call."""

    async def start(self) -> None:
        """Asks the engine for its load for the first time."""
        self._note(await self._thread.run(self._load))

    async def submit(self, requests: Sequence[GenerationRequest]) -> list[Finished]:
        """Queues requests, all of them between the same two steps; returns those that the engine refuses."""
        refused, load = await self._thread.run(self._submit, requests)
        self._note(load)
        return refused

    async def cancel(self, name: str) -> None:
        """Frees what a request holds, between two steps; nothing happens if the engine does not have it."""
        self._note(await self._thread.run(self._cancel, name))

    async def step(self) -> EngineStep:
        """Runs one step."""
        step, load = await self._thread.run(self._step)
        self._note(load)
        return step

    def close(self) -> None:
        """Waits for the call under way and ends the thread."""
        self._thread.close()

    def _note(self, load: _Load) -> None:
        self.free_sequences = load.free
        self.running_sequences = load.running
        if load.free or not load.waiting_tenants >= self.waiting_tenants:
            self._on_turn()
        self.waiting_tenants = load.waiting_tenants

    # On the thread:

    def _load(self) -> _Load:
        engine = self._engine
        return _Load(engine.free_sequences, engine.running_sequences, engine.waiting_tenants)

    def _submit(self, requests: Sequence[GenerationRequest]) -> tuple[list[Finished], _Load]:
        refused = []
        for request in requests:
            try:
                self._engine.submit(request)
            except PlatformError as error:
                refused.append(Finished(request.name, error))
        return refused, self._load()

    def _cancel(self, name: str) -> _Load:
        self._engine.cancel(name)
        return self._load()

    def _step(self) -> tuple[EngineStep, _Load]:
        STEP_SEQUENCES.observe(self._engine.running_sequences)
        with STEP_SECONDS.time():
            finished = self._engine.step()
        return EngineStep(finished, self._engine.take_token_deltas(), self._engine.idle), self._load()
