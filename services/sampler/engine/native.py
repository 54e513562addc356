"""The platform's own engine: continuous batching on one device. See SamplerEngine for what its verbs promise.

- One `step` schedules, runs and commits one packed forward for many requests at once.
- Sequences start in turns of tenants, and in order of arrival in each (see `turns`). A request's first sequence
  prefills the prompt; the others copy it. A running sequence is paused where another tenant has its turn.
- When the KV store is full, the youngest sequence of the tenant that has the most rows is preempted: it loses its slot
  and keeps its tokens. In every step some sequence advances, and none is paused before it has got anywhere.
- Sampling is a pure function of logits and seed. A step changes no sequence before it has succeeded.
- An error of one request fails that request; an exception in a step fails the requests in it; the engine goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from services.core.abilities import Ability
from services.core.errors import AlreadyExistsError
from services.model.base import BaseModel
from services.sampler.engine.failures import failure, not_finite
from services.sampler.engine.inspection import Inspection
from services.sampler.engine.interface import EngineInfo
from services.sampler.engine.kv import KVStore
from services.sampler.engine.merged_model import BaseModelMerger
from services.sampler.engine.residency import Residency
from services.sampler.engine.runner import Runner
from services.sampler.engine.scheduler import Chunk, schedule
from services.sampler.engine.sequence import RunningSequence, SequenceGroup
from services.sampler.engine.slot_allocator import Allocation, SlotAllocator
from services.sampler.engine.starts import Starts
from services.sampler.engine.stop import StopMatcher
from services.sampler.engine.turns import rows_of
from services.sampler.engine.vocabulary import Vocabulary
from services.sampler.request import Finished, GenerationRequest, TokenDelta, check_request


class NativeSamplerEngine:
    """Generates and scores on one base model, whose attention and adaptable linears it replaces.

    Args:
        base: the base model.
        max_sequences: most sequences that run at once.
        max_tokens_per_step: token budget of one forward, at least `max_sequences`.
        max_cached_tokens: rows of the KV store; bounds the context if it is shorter than the base model's.
        max_adapters: most adapters on the device, at least 1.
        deterministic: on a CPU in float32, a request's log-probabilities are bitwise the same whatever else is in the
            batch. Costs speed: prompts are cut at fixed positions, prefixes are not shared between requests, and the
            slot of a sequence has space for its longest possible answer from the start.
        share_prefixes: tenants find each other's cached prefixes.
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
        share_prefixes: bool = False,
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
        self._slots = SlotAllocator(self._store, deterministic=deterministic, share_prefixes=share_prefixes)
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
            fingerprint=base.fingerprint,
            aliases=base.aliases,
            tokenizer_files=base.tokenizer_files,
            abilities=_abilities(self._vocabulary),
        )
        self.merger = BaseModelMerger(base)
        self._groups: dict[str, SequenceGroup] = {}
        """Unfinished requests by name, in order of arrival."""

        self._starts = Starts(
            self._groups,
            self._slots,
            self._residency,
            max_sequences=max_sequences,
            admit=self._runner.admit,
            stop_of=lambda request: StopMatcher(request.params.stop, self._vocabulary.bytes_of),
        )
        self._token_deltas: list[TokenDelta] = []

    @property
    def inspection(self) -> Inspection:
        """The engine's inside at this moment, for tests and benchmarks."""
        return Inspection(self._store, self._store.free_ranges, self._residency.users, self._starts.preemptions)

    @property
    def idle(self) -> bool:
        """See SamplerEngine."""
        return not self._groups

    @property
    def running_sequences(self) -> int:
        """See SamplerEngine."""
        return sum(len(group.running) for group in self._groups.values())

    @property
    def free_sequences(self) -> int:
        """See SamplerEngine."""
        waiting = sum(group.waiting_sequences for group in self._groups.values())
        return max(self._max_sequences - self.running_sequences - waiting, 0)

    @property
    def waiting_tenants(self) -> frozenset[str]:
        """See SamplerEngine."""
        return frozenset(group.request.tenant for group in self._groups.values() if group.started == 0)

    def read_ahead(self, adapter: Path) -> None:
        """See SamplerEngine."""
        self._residency.read_ahead(adapter)

    def submit(self, request: GenerationRequest) -> None:
        """See SamplerEngine."""
        check_request(request, vocab_size=self.info.vocab_size, max_context_length=self.info.max_context_length)
        if request.name in self._groups:
            raise AlreadyExistsError(f"operation {request.name} is running in this sampler already")
        if request.params.stop.strings:
            self._vocabulary.check_readable()
        self._groups[request.name] = SequenceGroup(request)

    def cancel(self, name: str) -> bool:
        """See SamplerEngine."""
        group = self._groups.get(name)
        if group is None:
            return False
        self._drop(group)
        return True

    def step(self) -> list[Finished]:
        """See SamplerEngine. One forward for all tokens that are due."""
        finished = [self._fail(group, error) for group, error in self._starts.start_requests()]
        self._grow_slots()
        chunks = schedule(self._sequences(), self._max_tokens_per_step, aligned=self._deterministic)
        if chunks:
            finished += self._run(chunks)
        for group in self._groups.values():
            self._token_deltas += group.take_token_deltas()
        return finished + self._finish()

    def take_token_deltas(self) -> list[TokenDelta]:
        """See SamplerEngine."""
        deltas, self._token_deltas = self._token_deltas, []
        return deltas

    def forget_cached_prefixes(self) -> None:
        """Frees the rows of all cached prefixes that no running sequence uses."""
        self._slots.forget_cached_prefixes()

    def _grow_slots(self) -> None:
        """Grows the slots that are full, oldest sequence first; preempts while there is no space.

        The youngest sequence of the tenant with the most rows goes: who needs little is not driven out.
        """
        for sequence in self._sequences():
            while sequence in sequence.group.running and not self._slots.grow(sequence):
                rows = rows_of(self._groups.values())
                most = max(rows, key=rows.__getitem__)
                self._starts.preempt([other for other in self._sequences() if other.group.request.tenant == most][-1])

    def _run(self, chunks: list[Chunk]) -> list[Finished]:
        """Runs the chunks and commits their results; returns the requests that failed."""
        try:
            results = self._runner.run(chunks)
        except Exception as error:
            return [self._fail(group, error) for group in _groups_of(chunks)]
        broken = _groups_of(result.chunk for result in results if not result.is_finite)
        for result in results:
            sequence = result.chunk.sequence
            sequence.advance(result.chunk.end, result.scores, result.drawn)
            if result.drawn and sequence.group not in broken:
                self._slots.share_prompt(sequence)
        return [self._fail(group, not_finite(group.request)) for group in broken]

    def _finish(self) -> list[Finished]:
        """Ends the sequences that have no more tokens to compute; returns the requests that are complete."""
        finished = []
        for group in list(self._groups.values()):
            while ended := [sequence for sequence in group.running if sequence.has_ended]:
                for sequence in ended:
                    self._end_sequence(sequence)
            if group.is_complete:
                self._drop(group)
                finished.append(Finished(group.request.name, group.result()))
        return finished

    def _end_sequence(self, sequence: RunningSequence) -> None:
        """Keeps the completion of an ended sequence, and gives its slot to the group's next one or back."""
        group = sequence.group
        group.running.remove(sequence)
        self._starts.note_end()
        if sequence.generates:
            group.sampled[sequence.index] = sequence.sampled()
        if group.started < group.num_sequences and not self._starts.are_due_elsewhere(group):
            # The slot holds the prompt already: the group's next sequence carries on right there.
            self._starts.start_sequence(group, Allocation(sequence.slot, computed=len(group.request.prompt)))
            group.running[-1].cached_prefix = sequence.cached_prefix
        else:
            self._slots.end(sequence)

    def _fail(self, group: SequenceGroup, error: Exception) -> Finished:
        """Ends a request with an error and frees what it holds."""
        self._drop(group)
        return failure(group.request.name, error)

    def _drop(self, group: SequenceGroup) -> None:
        """Frees all that a group holds and forgets it."""
        for sequence in group.running:
            self._slots.release(sequence)
        if group.resident and group.request.adapter is not None:
            self._residency.release(group.request.adapter)
        del self._groups[group.request.name]
        self._starts.forget(group)

    def _sequences(self) -> list[RunningSequence]:
        """Running sequences, oldest first."""
        return [sequence for group in self._groups.values() for sequence in group.running]


def _abilities(vocabulary: Vocabulary) -> frozenset[Ability]:
    """All abilities, except stop strings with a tokenizer whose tokens cannot be read as bytes."""
    return frozenset(Ability) if vocabulary.is_readable else frozenset(Ability) - {Ability.STOP_STRINGS}


def _groups_of(chunks: Iterable[Chunk]) -> list[SequenceGroup]:
    return list(dict.fromkeys(chunk.sequence.group for chunk in chunks))
