"""The sampler's engine: one call of `step` schedules, runs, and commits one packed forward for many requests at once.

Called from one thread only. Requests start in order of arrival as slots become free; a request's first sequence
prefills its prompt and the others copy it. When the KV store is full, the youngest sequence waits for the older ones:
it loses its slot, not what it has drawn, so the oldest always gets on and everything ends. Sampling is a pure function
of logits and seed, and a step changes no sequence before it has succeeded. What is wrong with one request fails that
request; an exception in a step fails the requests that were in it; in both cases the engine goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from services.core.abilities import Ability
from services.core.errors import AlreadyExistsError
from services.model.base import BaseModel
from services.sampler.engine.failures import failure, not_finite
from services.sampler.engine.inspection import Inspection
from services.sampler.engine.interface import EngineInfo
from services.sampler.engine.kv import KVStore, Slot
from services.sampler.engine.merged_model import BaseModelMerger
from services.sampler.engine.placement import Placement
from services.sampler.engine.residency import Residency
from services.sampler.engine.runner import Runner
from services.sampler.engine.scheduler import Chunk, schedule
from services.sampler.engine.sequence import Group, Sequence
from services.sampler.engine.stop import StopWatch
from services.sampler.engine.vocabulary import Vocabulary
from services.sampler.request import Finished, GenerationRequest, TokenDelta, check_request


class NativeSamplerEngine:
    """Generates and scores on one base model. Takes the base model over: installs its attention and adapters' linears.

    Args:
        base: the base model.
        max_sequences: most sequences that run at once.
        max_tokens_per_step: token budget of one forward, at least `max_sequences`.
        max_cached_tokens: rows of the KV store; bounds the context if it is shorter than the base model's.
        max_adapters: most adapters on the device.
        deterministic: on a CPU in float32, a request's log-probabilities are bitwise the same whatever else is in the
            batch. Costs speed: prompts are cut at fixed places, prefixes are not shared between requests, and room for
            the longest possible answer is reserved from the start.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        max_sequences: int,
        max_tokens_per_step: int,
        max_cached_tokens: int,
        max_adapters: int,
        deterministic: bool = False,
    ) -> None:
        if not 1 <= max_sequences <= max_tokens_per_step:
            rule = f"from 1 to max_tokens_per_step, which is {max_tokens_per_step}"
            raise ValueError(f"max_sequences: must be {rule} (got {max_sequences})")
        for name, limit in (("max_cached_tokens", max_cached_tokens), ("max_adapters", max_adapters)):
            if limit < 1:
                raise ValueError(f"{name}: must be at least 1 (got {limit})")
        self._max_sequences = max_sequences
        self._max_tokens_per_step = max_tokens_per_step
        self._store = KVStore(base, max_cached_tokens)
        self._placement = Placement(self._store, deterministic=deterministic)
        self._deterministic = deterministic
        self._runner = Runner(base, self._store, deterministic=deterministic)
        self._residency = Residency(base, max_adapters)
        self._vocabulary = Vocabulary(base.tokenizer)
        self.info = EngineInfo(
            base_model=base.name,
            max_context_length=min(base.max_context_length, self._store.rows),
            vocab_size=base.vocab_size,
            eos_token_ids=base.eos_token_ids,
            max_sequences=max_sequences,
            tokenizer_files=base.tokenizer_files,
            abilities=_abilities(self._vocabulary),
        )
        self.merger = BaseModelMerger(base)
        self._groups: dict[str, Group] = {}
        """Unfinished requests by name, in order of arrival."""

        self._token_deltas: list[TokenDelta] = []
        self._preemptions = 0

    @property
    def inspection(self) -> Inspection:
        """The engine's inside at this moment, for tests and benchmarks."""
        return Inspection(self._store, self._store.free_ranges, self._residency.users, self._preemptions)

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
        check_request(request, vocab_size=self.info.vocab_size, max_context_length=self.info.max_context_length)
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
        self._make_room()
        chunks = schedule(self._sequences(), self._max_tokens_per_step, aligned=self._deterministic)
        if chunks:
            finished += self._advance(chunks)
        self._token_deltas += self._new_token_deltas()
        return finished + self._retire()

    def take_token_deltas(self) -> list[TokenDelta]:
        """Tokens of streamed requests since the last call."""
        deltas, self._token_deltas = self._token_deltas, []
        return deltas

    def forget_cached_prefixes(self) -> None:
        """Frees the rows of all cached prefixes that no running sequence uses."""
        self._placement.clear()

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
            self._runner.admit(group.adapter)
        while group.paused:
            sequence = group.paused[0]
            placed = self._placement.resume(sequence) if self._has_free_sequence else None
            if placed is None:
                return False
            sequence.slot, sequence.computed = placed
            group.live.append(group.paused.pop(0))
        while group.can_start:
            placed = self._placement.start(group) if self._has_free_sequence else None
            if placed is None:
                return False
            slot, computed = placed
            self._place(group, slot, computed=computed)
        return True

    def _make_room(self) -> None:
        """Grows the slots that are full, oldest sequence first; who is younger waits if there is not enough."""
        for sequence in self._sequences():
            while sequence in sequence.group.live and not self._placement.grow(sequence):
                self._pause(self._sequences()[-1])

    def _pause(self, sequence: Sequence) -> None:
        self._preemptions += 1
        self._placement.release(sequence)
        sequence.group.live.remove(sequence)
        sequence.group.paused.append(sequence)

    def _place(self, group: Group, slot: Slot, *, computed: int) -> None:
        """Starts the group's next sequence in a slot that holds `computed` tokens of the prompt."""
        request = group.request
        watch = StopWatch(request.params.stop, self._vocabulary.bytes_of)
        sequence = Sequence(group, group.started, slot, watch, list(request.prompt), computed)
        if group.firsts:
            sequence.append(group.firsts[sequence.index])
        group.live.append(sequence)
        group.started += 1

    def _advance(self, chunks: list[Chunk]) -> list[Finished]:
        """Runs the chunks and commits what came out; returns the requests that failed."""
        try:
            outcomes = self._runner.run(chunks)
        except Exception as error:
            return [self._fail(group, error) for group in _groups_of(chunks)]
        broken = _groups_of(outcome.chunk for outcome in outcomes if not outcome.is_finite)
        for outcome in outcomes:
            outcome.chunk.sequence.advance(outcome.chunk.end, outcome.scores, outcome.drawn)
            if outcome.drawn and outcome.chunk.sequence.group not in broken:
                self._placement.announce(outcome.chunk.sequence)
        return [self._fail(group, not_finite(group.request)) for group in broken]

    def _retire(self) -> list[Finished]:
        """Takes ended sequences out, and returns the requests that are complete."""
        finished = []
        for group in list(self._groups.values()):
            while ended := [sequence for sequence in group.live if sequence.has_ended]:
                for sequence in ended:
                    self._end(sequence)
            if group.is_complete:
                self._drop(group)
                finished.append(Finished(group.request.name, group.result()))
        return finished

    def _end(self, sequence: Sequence) -> None:
        """Takes what an ended sequence has drawn, and gives its slot on."""
        group = sequence.group
        group.live.remove(sequence)
        if sequence.generates:
            group.sampled[sequence.index] = sequence.sampled()
        if group.started < group.wanted:
            # The slot holds the prompt already: the group's next sequence carries on right there.
            self._place(group, sequence.slot, computed=len(group.request.prompt))
            group.live[-1].holding = sequence.holding
        else:
            self._placement.end(sequence)

    def _fail(self, group: Group, error: Exception) -> Finished:
        """Ends a request with an error and frees what it holds."""
        self._drop(group)
        return failure(group.request.name, error)

    def _drop(self, group: Group) -> None:
        """Frees all that a group holds and forgets it."""
        for sequence in group.live:
            self._placement.release(sequence)
        if group.resident and group.request.adapter is not None:
            self._residency.release(group.request.adapter)
        del self._groups[group.request.name]

    @property
    def _has_free_sequence(self) -> bool:
        return self.running_sequences < self._max_sequences

    def _new_token_deltas(self) -> Iterator[TokenDelta]:
        for group in self._groups.values():
            if group.request.streamed:
                for sequence in group.live:
                    if (delta := sequence.take_token_delta()) is not None:
                        yield delta

    def _sequences(self) -> list[Sequence]:
        """Running sequences, oldest first."""
        return [sequence for group in self._groups.values() for sequence in group.live]


def _abilities(vocabulary: Vocabulary) -> frozenset[Ability]:
    """All abilities, but for stop strings with a tokenizer whose text cannot be followed token by token."""
    return frozenset(Ability) if vocabulary.is_readable else frozenset(Ability) - {Ability.STOP_STRINGS}


def _groups_of(chunks: Iterable[Chunk]) -> list[Group]:
    return list(dict.fromkeys(chunk.sequence.group for chunk in chunks))
