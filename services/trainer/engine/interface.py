"""The seam between the trainer and its engine: verbs over the values of services.trainer.values. No torch, no protos.

Another engine is a class with these verbs and a line in the factory. It may spread a run over several devices or
processes, so nothing here hands out a model or a tensor: whoever saves a run or takes a snapshot asks for an export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from services.model.adapter_config import AdapterConfig
from services.model.fingerprint import Fingerprint
from services.model.tokenizer_files import TokenizerFiles
from services.trainer.values import AdamParams, PassJob, PassResult


@dataclass(frozen=True)
class EngineInfo:
    """Facts about an engine that never change once it is open, its abilities among them."""

    base_model: str
    """The name that checkpoints record, and that clients use."""

    max_context_length: int
    """Most tokens of an example."""

    vocab_size: int
    """Token ids are below it."""

    fingerprint: Fingerprint
    """Of the base model. Checkpoints and snapshots have it, and those of another one are refused."""

    tokenizer_files: TokenizerFiles

    loss_fns: frozenset[str]
    """Loss functions that it computes; requests for another one are refused before they are queued."""

    target_modules: tuple[str, ...]
    """Last names of the linears that it can adapt; adapters with another one are refused before they are queued."""

    pass_tokens: int
    """Tokens that one pass takes at about full speed: the size of a cycle follows from it."""

    aliases: tuple[str, ...] = ()
    """Further names that clients use for the base model."""


class Run(Protocol):
    """A run as it is now."""

    @property
    def config(self) -> AdapterConfig:
        """The adapter's shape."""

    @property
    def step(self) -> int:
        """Optimizer steps taken."""


CheckpointContent = Literal["training", "sampler", "external"]


class RunExport(Protocol):
    """A run's whole state at one moment, in memory of its own. Its verbs may be called from any thread."""

    def write_checkpoint(
        self, directory: Path, operation: str, content: CheckpointContent, age_recipients: Sequence[str] = ()
    ) -> None:
        """Fills an empty directory with a checkpoint.

        Args:
            directory: where to write.
            operation: name of the operation that saves; checkpoint.json has it.
            content: "training": with optimizer state and accumulated gradient, so that training can go on from it;
                "sampler": the adapter alone; "external": the adapter alone, with the names of the official SDK's
                service.
            age_recipients: public keys of age to which every file is encrypted; none: as it is.

        Raises:
            InvalidArgumentError, FailedPreconditionError: it cannot be encrypted to them, or not here.
        """

    def write_snapshot(self, directory: Path, operation: str) -> None:
        """Fills an empty directory with a snapshot; `operation` is the last one whose effect the state has."""


class TrainerEngine(Protocol):
    """Training runs on one base model.

    `info`, `check_import`, the verbs that read files, `memory_pressure` and `is_out_of_memory` may be called from any
    thread. Everything else is called from one thread, one call at a time. A verb that fails leaves every run as it was.
    """

    @property
    def info(self) -> EngineInfo:
        """Facts that never change."""

    def run(self, training_run_id: str) -> Run:
        """A run.

        Raises:
            NotFoundError: the run is not here.
        """

    def create_run(self, training_run_id: str, config: AdapterConfig) -> Run:
        """Adds a run with a fresh adapter; two engines make the same one from one configuration.

        Raises:
            AlreadyExistsError: the run is here already.
            InvalidArgumentError: the adapter does not fit the base model; names the field.
        """

    def open_run(self, training_run_id: str, export: RunExport, *, restore_optimizer: bool) -> Run:
        """Adds a run with a state that this engine has read, of a checkpoint or of an import.

        Raises:
            AlreadyExistsError: the run is here already.
        """

    def load(self, training_run_id: str, export: RunExport, *, restore_optimizer: bool) -> None:
        """Puts a state that this engine has read from a checkpoint into a run.

        Raises:
            NotFoundError: the run is not here.
            InvalidArgumentError: the adapters differ in shape.
        """

    def drop_run(self, training_run_id: str) -> None:
        """Forgets a run and frees its memory; nothing happens if it is not here."""

    def run_jobs(self, jobs: Sequence[PassJob]) -> list[PassResult | Exception]:
        """Carries out jobs of any runs together; in the place of one that fails stands its error.

        A job's gradient is added to its run's when the job has succeeded. What is wrong with one job, its numbers and
        its need of memory included, is that job's error alone.
        """

    def optim_step(self, training_run_id: str, params: AdamParams) -> float:
        """Applies a run's accumulated gradient and clears it; returns the gradient's global norm before clipping.

        Raises:
            NotFoundError: the run is not here.
            FailedPreconditionError: the norm, or a number that the step would make, is not finite.
        """

    def export_run(self, training_run_id: str) -> RunExport:
        """A copy of a run's state.

        Raises:
            NotFoundError: the run is not here.
        """

    def check_import(self, config: Path, weights: Path, *, rename_base_model: bool) -> None:
        """Checks an adapter that was trained elsewhere, in PEFT's format, without its content.

        Args:
            config: adapter_config.json.
            weights: adapter_model.safetensors.
            rename_base_model: accept an adapter whose configuration names another base model.

        Raises:
            InvalidArgumentError: it is damaged or does not fit this base model; names the option or the tensor.
        """

    def read_import(self, training_run_id: str, config: Path, weights: Path, *, rename_base_model: bool) -> RunExport:
        """The state of a run that begins with such an adapter and a fresh optimizer.

        Raises:
            InvalidArgumentError: as `check_import`, or a number is not finite.
        """

    def read_checkpoint(self, directory: Path) -> RunExport:
        """The state that a training checkpoint holds.

        Raises:
            DataLossError: a file is missing, truncated or corrupted; names it.
            InvalidArgumentError: it is a sampler checkpoint, or one of another base model.
            BaseModelChangedError: it was made with another base model of the same name.
        """

    def read_snapshot(self, directory: Path) -> RunExport:
        """The state that a snapshot holds.

        Raises:
            DataLossError: a file is missing or altered, or is not of this base model; names it.
            BaseModelChangedError: it was made with another base model of the same name.
        """

    def restore_run(self, training_run_id: str, export: RunExport) -> Run:
        """Adds a run with an exported state of this engine, in place of the run's if it is here."""

    def memory_pressure(self) -> float:
        """How short the device's memory is, from 0 to 1."""

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether a verb has raised this because there is no memory left."""
