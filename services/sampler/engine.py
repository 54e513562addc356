"""The sampler's engine: one call of `step` schedules, runs, and commits one packed forward for many requests at once.

Called from one thread only. Requests start in order of arrival as slots become free; a request's first sequence
prefills its prompt and the others copy it. Sampling is a pure function of logits and seed, and a step changes no
sequence before it has succeeded. What is wrong with one request fails that request; an exception in a step fails the
requests that were in it; in both cases the engine goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

from services.core.errors import AlreadyExistsError, FailedPreconditionError, InternalError, PlatformError
from services.model.base import BaseModel
from services.sampler.kv import KVStore, Slot
from services.sampler.request import Finished, GenerationRequest, check_request
from services.sampler.residency import Residency
from services.sampler.runner import Outcome, Runner
from services.sampler.scheduler import Chunk, schedule
from services.sampler.sequence import Group, Sequence
from services.sampler.stop import StopWatch
from services.sampler.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


class SamplerEngine:
    """Generates and scores on one base model. Takes the base model over: installs its attention and adapters' linears.

    Args:
        base: the base model.
        max_sequences: most sequences that run at once.
        max_tokens_per_step: token budget of one forward, at least `max_sequences`.
        max_cached_tokens: rows of the KV store; bounds the context if it is shorter than the base model's.
        max_adapters: most adapters on the device.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        max_sequences: int,
        max_tokens_per_step: int,
        max_cached_tokens: int,
        max_adapters: int,
    ) -> None:
        if not 1 <= max_sequences <= max_tokens_per_step:
            raise ValueError(
                f"max_sequences is {max_sequences}; it must be 1 to max_tokens_per_step, {max_tokens_per_step}"
            )
        if max_cached_tokens < 1 or max_adapters < 1:
            raise ValueError("max_cached_tokens and max_adapters must be at least 1")
        self._base = base
        self._max_sequences = max_sequences
        self._max_tokens_per_step = max_tokens_per_step
        self._store = KVStore(base, max_cached_tokens)
        self._runner = Runner(base, self._store)
        self._residency = Residency(base, max_adapters)
        self._vocabulary = Vocabulary(base.tokenizer)
        self._groups: dict[str, Group] = {}
        """Unfinished requests by name, in order of arrival."""

    @property
    def max_context_length(self) -> int:
        """Most tokens of prompt and completion together."""
        return min(self._base.max_context_length, self._store.rows)

    @property
    def kv_size_bytes(self) -> int:
        """Memory of the KV store; all that a running sequence can ever need is in it."""
        return self._store.size_bytes

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._groups

    @property
    def running_sequences(self) -> int:
        """Sequences that have a slot."""
        return sum(len(group.live) for group in self._groups.values())

    @property
    def free_sequences(self) -> int:
        """How many more sequences could start, once those that were submitted have."""
        waiting = sum(group.waiting for group in self._groups.values())
        return max(self._max_sequences - self.running_sequences - waiting, 0)

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request; `step` returns its end.

        Raises:
            InvalidArgumentError: the request is not what the gateway should let through.
            AlreadyExistsError: a request of this name is unfinished.
        """
        check_request(request, vocab_size=self._base.vocab_size, max_context_length=self.max_context_length)
        if request.name in self._groups:
            raise AlreadyExistsError(f"{request.name} is being worked on already")
        if request.params.stop.strings:
            self._vocabulary.check_readable()
        self._groups[request.name] = Group(request)

    def cancel(self, name: str) -> bool:
        """Forgets a request and frees its slots at once; nothing more is returned for it. False if it is unknown."""
        group = self._groups.get(name)
        if group is None:
            return False
        self._drop(group)
        return True

    def step(self) -> list[Finished]:
        """One forward for all that is due; returns the requests that ended with it."""
        finished = self._admit()
        chunks = schedule(self._sequences(), self._max_tokens_per_step)
        if chunks:
            finished += self._advance(chunks)
        return finished + self._retire()

    def _admit(self) -> list[Finished]:
        """Starts sequences in order of arrival while there are slots; returns the requests that cannot start."""
        failed = []
        for group in list(self._groups.values()):
            try:
                if not self._start(group):
                    break
            except Exception as error:
                failed.append(self._fail(group, error))
        return failed

    def _start(self, group: Group) -> bool:
        """Starts what can start of a group; False if it has to wait for another to end, and so those behind it."""
        if not group.resident and group.request.adapter is not None:
            group.adapter = self._residency.acquire(group.request.adapter)
            if group.adapter is None:
                return False
            group.resident = True
        while group.can_start:
            slot = None
            if self.running_sequences < self._max_sequences:
                slot = self._store.reserve(max(group.request.longest, 1))
            if slot is None:
                return False
            if (source := group.source) is not None:
                self._store.copy(source.slot, slot, group.prefix)
            self._place(group, slot, computed=group.prefix if source is not None else 0)
        return True

    def _place(self, group: Group, slot: Slot, *, computed: int) -> None:
        """Starts the group's next sequence in a slot that holds `computed` tokens of the prompt."""
        request = group.request
        watch = StopWatch(request.params.stop, self._vocabulary.bytes_of)
        group.live.append(Sequence(group, group.started, slot, watch, list(request.prompt), computed))
        group.started += 1

    def _advance(self, chunks: list[Chunk]) -> list[Finished]:
        """Runs the chunks and commits what came out; returns the requests that failed."""
        try:
            outcomes = self._runner.run(chunks)
        except Exception as error:
            return [self._fail(group, error) for group in _groups_of(chunks)]
        broken = [outcome.chunk for outcome in outcomes if not all(map(math.isfinite, outcome.logprobs))]
        for outcome in outcomes:
            _commit(outcome)
        return [self._fail(group, _not_finite(group)) for group in _groups_of(broken)]

    def _retire(self) -> list[Finished]:
        """Takes ended sequences out, gives their slots on, and returns the requests that are complete."""
        finished = []
        for group in list(self._groups.values()):
            for sequence in [sequence for sequence in group.live if sequence.has_ended]:
                group.live.remove(sequence)
                if sequence.generates:
                    group.sampled[sequence.index] = sequence.sampled()
                if group.waiting:
                    # The slot holds the prompt already: the group's next sequence carries on right there.
                    self._place(group, sequence.slot, computed=group.prefix)
                else:
                    self._store.release(sequence.slot)
            if group.is_complete:
                self._drop(group)
                finished.append(Finished(group.request.name, group.result()))
        return finished

    def _fail(self, group: Group, error: Exception) -> Finished:
        """Ends a request with an error; what is no refusal is logged and reported as a fault of the platform."""
        self._drop(group)
        name = group.request.name
        if isinstance(error, PlatformError):
            return Finished(name, error)
        _log.error("a step failed with %s in it", name, exc_info=error)
        return Finished(name, InternalError(f"sampling failed: {type(error).__name__}", reason="STEP_FAILED"))

    def _drop(self, group: Group) -> None:
        """Frees all that a group holds and forgets it."""
        for sequence in group.live:
            self._store.release(sequence.slot)
        if group.resident and group.request.adapter is not None:
            self._residency.release(group.request.adapter)
        del self._groups[group.request.name]

    def _sequences(self) -> list[Sequence]:
        return [sequence for group in self._groups.values() for sequence in group.live]


def _commit(outcome: Outcome) -> None:
    sequence = outcome.chunk.sequence
    sequence.computed = outcome.chunk.end
    sequence.group.prompt_logprobs += outcome.prompt_logprobs
    sequence.group.topk_rows += outcome.topk_rows
    if outcome.token is not None and outcome.logprob is not None:
        sequence.append(outcome.token, outcome.logprob)


def _groups_of(chunks: Iterable[Chunk]) -> list[Group]:
    return list(dict.fromkeys(chunk.sequence.group for chunk in chunks))


def _not_finite(group: Group) -> FailedPreconditionError:
    weights = group.request.adapter.name if group.request.adapter is not None else "the base model"
    return FailedPreconditionError(f"{weights} gives logits that are not finite", reason="NON_FINITE_LOGITS")
