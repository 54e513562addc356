"""A request under way: the group of its sequences, and what each has computed so far. No tensors.

`computed` counts the tokens of a sequence whose keys and values are stored; what is `due` is fed through the model
next. A sequence that generates has its whole prompt due at first and then one token at a time. A group's first
sequence prefills; the others start from a copy of its prompt with one token due, the prompt's last.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.model.adapters import AdapterWeights
from services.sampler.kv import Slot
from services.sampler.request import (
    GenerationRequest,
    GenerationResult,
    SampledTokens,
    StopReason,
    TopkRow,
)
from services.sampler.stop import StopWatch


@dataclass(eq=False)
class Group:
    """All sequences of one request."""

    request: GenerationRequest
    resident: bool = False
    """Whether the group holds its adapter."""

    adapter: AdapterWeights | None = None
    live: list[Sequence] = field(default_factory=list)
    started: int = 0
    """How many sequences have a slot or had one."""

    sampled: dict[int, SampledTokens] = field(default_factory=dict)
    """By sample index."""

    prompt_logprobs: list[float] = field(default_factory=list)
    topk_rows: list[TopkRow] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        """Sequences in all; a request that only scores needs one to do it."""
        return max(self.request.num_samples, 1)

    @property
    def prefix(self) -> int:
        """Prompt tokens that every sequence shares in the KV store: all but the last, whose row predicts."""
        return len(self.request.prompt) - 1

    @property
    def source(self) -> Sequence | None:
        """A sequence whose slot holds the whole shared prompt, to copy it from."""
        return next((sequence for sequence in self.live if sequence.computed >= self.prefix), None)

    @property
    def can_start(self) -> bool:
        """Whether another sequence may take a slot now: the first one, or one that finds the prompt computed."""
        return self.started == 0 or (self.started < self.wanted and self.source is not None)

    @property
    def waiting(self) -> int:
        """Sequences that have no slot yet."""
        return self.wanted - self.started

    @property
    def is_complete(self) -> bool:
        """Whether every sequence has ended."""
        return self.started == self.wanted and not self.live

    def result(self) -> GenerationResult:
        """The answer, once complete."""
        request = self.request
        return GenerationResult(
            tuple(self.sampled[index] for index in sorted(self.sampled)),
            (float("nan"), *self.prompt_logprobs) if request.include_prompt_logprobs else None,
            ((), *self.topk_rows) if request.topk_prompt_logprobs else None,
        )


@dataclass(eq=False)
class Sequence:
    """One prompt and its continuation, in one slot of the KV store."""

    group: Group
    index: int
    slot: Slot
    watch: StopWatch
    tokens: list[int]
    """The prompt, then what was generated."""

    computed: int = 0
    logprobs: list[float] = field(default_factory=list)
    stop_reason: StopReason | None = None

    @property
    def generates(self) -> bool:
        """False for a sequence that only scores the prompt."""
        return self.group.request.num_samples > 0

    @property
    def due(self) -> int:
        """Tokens to feed before the next draw. Without a draw the prompt's last token has nothing to predict."""
        return (len(self.tokens) if self.generates else self.group.prefix) - self.computed

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.stop_reason is not None if self.generates else self.due == 0

    def append(self, token: int, logprob: float) -> None:
        """Takes a drawn token; the stop rule goes before the length."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.watch.ends_at(token):
            self.stop_reason = "stop"
        elif len(self.logprobs) == self.group.request.params.max_tokens:
            self.stop_reason = "length"

    def sampled(self) -> SampledTokens:
        """The completion, once ended."""
        assert self.stop_reason is not None
        generated = self.tokens[len(self.tokens) - len(self.logprobs) :]
        return SampledTokens(tuple(generated), tuple(self.logprobs), self.stop_reason)
