"""The seam between the sampler and its engine: verbs over the values of services.sampler.request. No torch, no protos.

Another engine is a class with these verbs and a line in the factory. It may keep its model in this process or in
another one, so nothing here hands out a model, a tensor or a tokenizer, and every call may block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.core.abilities import Ability
from services.model.fingerprint import Fingerprint
from services.model.tokenizer_files import TokenizerFiles
from services.sampler.request import Finished, GenerationRequest, TokenDelta


@dataclass(frozen=True)
class EngineInfo:
    """Facts about an engine that never change once it is open."""

    base_model: str
    """The name that checkpoints record, and that clients use."""

    max_context_length: int
    """Most tokens of prompt and completion together."""

    vocab_size: int
    """Token ids are below it."""

    eos_token_ids: frozenset[int]
    max_sequences: int
    """Most sequences that run at once."""

    fingerprint: Fingerprint
    """Of the base model. Checkpoints and snapshots have it, and those of another one are refused."""

    tokenizer_files: TokenizerFiles

    abilities: frozenset[Ability]
    """Everything that requests may need of it; the gateway refuses requests that need something else."""

    aliases: tuple[str, ...] = ()
    """Further names that clients use for the base model."""


class SamplerEngine(Protocol):
    """Generates and scores on one base model.

    `info` and `merger` are fixed when the engine is opened and may be read from any thread, and `read_ahead` may be
    called from any. Everything else is called from one thread, one call at a time.
    """

    @property
    def info(self) -> EngineInfo:
        """Facts that never change."""

    @property
    def merger(self) -> WeightMerger | None:
        """The merger of adapters into the base model; None without the ability MERGE_WEIGHTS."""

    @property
    def idle(self) -> bool:
        """Whether no request is unfinished."""

    @property
    def running_sequences(self) -> int:
        """Sequences that are computed now."""

    @property
    def free_sequences(self) -> int:
        """Number of sequences that could still start, once those that were submitted have."""

    @property
    def waiting_tenants(self) -> frozenset[str]:
        """Tenants of requests that have not started, which further ones of theirs could only join.

        An engine without free sequences starts the request of a tenant that waits for nothing yet within a few steps,
        whatever the others run: sequences of theirs go on later.
        """

    def read_ahead(self, adapter: Path) -> None:
        """Reads the adapter of a checkpoint into memory, so that the step which first needs it need not.

        Raises:
            PlatformError: it cannot be read, or is not for this base model.
        """

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request; a later `step` returns its end.

        With the ability SEEDS the same request gives the same tokens wherever it is submitted again: when a sampler
        dies, another one starts its requests anew.

        Raises:
            InvalidArgumentError: the request is not valid, or needs what the engine cannot do; names the field.
            AlreadyExistsError: a request of this name is unfinished.
        """

    def cancel(self, name: str) -> bool:
        """Forgets a request and frees what it holds at once; returns nothing more for it. False if it is unknown."""

    def step(self) -> list[Finished]:
        """Computes the next tokens of some requests; returns the requests that ended.

        Raises nothing that is one request's fault: such a request ends with a PlatformError and the others go on.
        """

    def take_token_deltas(self) -> list[TokenDelta]:
        """New tokens of streamed requests since the last call, at most one delta a sequence and step."""


class WeightMerger(Protocol):
    """Writes full models from the base model and an adapter."""

    def merge(self, adapter: Path, directory: Path, *, check_wanted: Callable[[], None]) -> None:
        """Fills an empty directory with the merged model, its configuration and its tokenizer.

        Called from a thread of its own, while the engine goes on stepping.

        Args:
            adapter: directory of a checkpoint.
            directory: where to write.
            check_wanted: called again and again while it works; raises to end the merge.

        Raises:
            PlatformError: the adapter cannot be read, or is not for this base model.
            OSError: the disk does not take the files.
        """
