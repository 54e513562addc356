"""A running request: the group of its sequences, and what each has computed so far. No tensors.

- `computed` counts the tokens of a sequence whose keys and values are stored. Tokens that are `due` go through the
  model next: of a sequence that generates the whole prompt at first (prefill), then one token at a time (decode).
- A group's first sequence prefills, and the prompt's last row draws the first token of every sample. The others start
  from a copy of the prompt with that token due.
- A preempted sequence has lost its slot to an older one, or to another tenant whose turn it was. It starts again with
  all its tokens due that are not cached, and goes on drawing where it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.model.adapters import AdapterWeights
from services.sampler.engine.kv import Slot
from services.sampler.engine.prefix_cache import CachedPrefix
from services.sampler.engine.stop import StopMatcher
from services.sampler.request import (
    AltTokens,
    GenerationRequest,
    GenerationResult,
    SampledTokens,
    StopReason,
    TokenDelta,
    TopkRow,
)

_NAN = float("nan")


@dataclass
class PromptScores:
    """Log-probabilities at temperature 1 where prompt tokens are predicted: one entry a row in each list, or none."""

    logprobs: list[float] = field(default_factory=list)
    """Of the prompt's own tokens."""

    topk_rows: list[TopkRow] = field(default_factory=list)
    target_rows: list[tuple[float, ...]] = field(default_factory=list)
    alt_rows: list[AltTokens] = field(default_factory=list)

    def add(self, other: PromptScores) -> None:
        """Takes the rows that follow."""
        self.logprobs += other.logprobs
        self.topk_rows += other.topk_rows
        self.target_rows += other.target_rows
        self.alt_rows += other.alt_rows


@dataclass(frozen=True)
class DrawnToken:
    """The next token of a sequence, and what is reported about it."""

    token: int
    logprob: float
    raw_logprob: float | None = None
    topk: TopkRow | None = None


@dataclass(eq=False)
class SequenceGroup:
    """All sequences of one request."""

    request: GenerationRequest
    resident: bool = False
    """Whether the group is a user of its adapter."""

    adapter: AdapterWeights | None = None
    digests: tuple[bytes, ...] = ()
    """Of the prompt's blocks, once the group has started."""

    running: list[RunningSequence] = field(default_factory=list)
    """Sequences with a slot, oldest first."""

    preempted: list[RunningSequence] = field(default_factory=list)
    """Sequences that have lost their slot."""

    started: int = 0
    """Number of sequences that have a slot or had one."""

    first_tokens: tuple[DrawnToken, ...] = ()
    """The first token of every sample, once the prompt is computed."""

    sampled: dict[int, SampledTokens] = field(default_factory=dict)
    """By sample index."""

    scores: PromptScores = field(default_factory=PromptScores)
    cache_hit_tokens: int = 0

    @property
    def next_scored_row(self) -> int:
        """The first row of the prompt that is to be scored and is not yet."""
        return self.request.first_scored_row + len(self.scores.logprobs)

    @property
    def num_sequences(self) -> int:
        """Sequences in all; a request that only scores has one."""
        return max(self.request.num_samples, 1)

    @property
    def scorable_rows(self) -> int:
        """Rows that predict tokens of the prompt: all but its last."""
        return len(self.request.prompt) - 1

    @property
    def prompt_source(self) -> RunningSequence | None:
        """A running sequence whose slot holds the whole prompt, to copy it from; None if there is none."""
        return next((sequence for sequence in self.running if sequence.computed >= len(self.request.prompt)), None)

    @property
    def can_start(self) -> bool:
        """Whether another sequence may take a slot now: the first one, or one that can copy the prompt or must not."""
        if self.started == 0:
            return True
        may_compute = bool(self.first_tokens) and not self.running
        return self.started < self.num_sequences and (may_compute or self.prompt_source is not None)

    @property
    def can_run_more(self) -> bool:
        """Whether a sequence of it could start or go on now."""
        return bool(self.preempted) or self.can_start

    @property
    def waiting_sequences(self) -> int:
        """Sequences that have no slot yet."""
        return self.num_sequences - self.started + len(self.preempted)

    @property
    def is_complete(self) -> bool:
        """Whether every sequence has ended."""
        return self.started == self.num_sequences and not self.running and not self.preempted

    def take_token_deltas(self) -> list[TokenDelta]:
        """Tokens that its running sequences have generated since the last call; none unless the request is streamed."""
        if not self.request.streamed:
            return []
        return [delta for sequence in self.running if (delta := sequence.take_token_delta()) is not None]

    def result(self) -> GenerationResult:
        """The answer, once complete."""
        request, scores = self.request, self.scores
        skipped = len(request.prompt) - len(scores.logprobs)
        targets = request.target_prompt_tokens
        return GenerationResult(
            tuple(self.sampled[index] for index in sorted(self.sampled)),
            (*[_NAN] * skipped, *scores.logprobs) if request.include_prompt_logprobs else None,
            (*[TopkRow()] * skipped, *scores.topk_rows) if request.topk_prompt_logprobs else None,
            (*[(_NAN,) * len(targets[0])] * skipped, *scores.target_rows) if targets is not None else None,
            self.cache_hit_tokens,
            tuple(scores.alt_rows) if request.prompt_alt_tokens else None,
        )


@dataclass(eq=False)
class RunningSequence:
    """One prompt and its continuation, in one slot of the KV store."""

    group: SequenceGroup
    index: int
    slot: Slot
    stop: StopMatcher
    tokens: list[int]
    """The prompt, then what was generated."""

    computed: int = 0
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)
    topk_rows: list[TopkRow] = field(default_factory=list)
    reported: int = 0
    """Number of generated tokens that were in a token delta."""

    stop_reason: StopReason | None = None
    cached_prefix: CachedPrefix | None = None
    """The prefix in its slot that other requests may copy; None if there is none."""

    digests: tuple[bytes, ...] = ()
    """Of the blocks that were cached when it lost its slot."""

    drawn_at_start: int = 0
    """Tokens that it had when it got its slot."""

    @property
    def drawn_since_start(self) -> int:
        """Tokens that it has drawn since it got its slot."""
        return len(self.logprobs) - self.drawn_at_start

    @property
    def generates(self) -> bool:
        """False for a sequence that only scores the prompt."""
        return self.group.request.num_samples > 0

    @property
    def due(self) -> int:
        """Tokens to feed before the next draw. A request that only scores leaves the prompt's last token out."""
        if self.stop_reason is not None:
            return 0
        return (len(self.tokens) if self.generates else self.group.scorable_rows) - self.computed

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.stop_reason is not None if self.generates else self.due == 0

    @property
    def draws_for(self) -> range:
        """Indices of the samples that its next draw is for: its own; at the end of the prompt all of the group."""
        return range(self.group.num_sequences) if not self.logprobs else range(self.index, self.index + 1)

    def advance(self, computed: int, scores: PromptScores, drawn: tuple[DrawnToken, ...]) -> None:
        """Takes the result of a step.

        Args:
            computed: tokens whose keys and values are stored now.
            scores: of prompt tokens.
            drawn: a token for each of `draws_for`, or none.
        """
        self.computed = computed
        self.group.scores.add(scores)
        if drawn and not self.logprobs:
            self.group.first_tokens = drawn
        if drawn:
            self.append(drawn[0])

    def append(self, drawn: DrawnToken) -> None:
        """Takes a drawn token. Where the stop rule and the length both end the sequence, the reason is "stop"."""
        self.tokens.append(drawn.token)
        self.logprobs.append(drawn.logprob)
        if drawn.raw_logprob is not None:
            self.raw_logprobs.append(drawn.raw_logprob)
        if drawn.topk is not None:
            self.topk_rows.append(drawn.topk)
        if self.stop.ends_at(drawn.token):
            self.stop_reason = "stop"
        elif len(self.logprobs) == self.group.request.params.max_tokens:
            self.stop_reason = "length"

    def sampled(self) -> SampledTokens:
        """The completion, once ended."""
        assert self.stop_reason is not None
        request = self.group.request
        return SampledTokens(
            tuple(self.tokens[len(request.prompt) :]),
            tuple(self.logprobs),
            self.stop_reason,
            tuple(self.topk_rows) if request.topk_sample_logprobs else None,
            tuple(self.raw_logprobs) if request.include_raw_logprobs else None,
        )

    def take_token_delta(self) -> TokenDelta | None:
        """Tokens that it has generated since the last call; None if there are none."""
        start, self.reported = self.reported, len(self.logprobs)
        if start == self.reported:
            return None
        request = self.group.request
        tokens = tuple(self.tokens[len(request.prompt) + start :])
        return TokenDelta(request.name, self.index, start, tokens, tuple(self.logprobs[start:]), self.stop_reason)
