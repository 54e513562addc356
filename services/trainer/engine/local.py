"""The engine of one process and one device: training runs on one base model, and passes over them.

A pass takes jobs of one or several runs, lays their examples end to end in packed rows, and sends each row through the
model once. A job's gradient grows in a scratch buffer of its own and is added to its run's when the whole pass has
succeeded, so neither a job nor a pass that fails leaves a trace. In float32 on a CPU a job's results have the same
bits whatever else is in the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.core.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PlatformError
from services.core.losses import LOSSES
from services.model.adapter_config import AdapterConfig
from services.model.adapter_import import check_adapter, import_adapter
from services.model.adapters import init_adapter
from services.model.base import BaseModel
from services.model.device import free_bytes, is_out_of_memory, memory_pressure
from services.model.manifest import Manifest
from services.trainer.engine.checkpoint_files import read_training_checkpoint
from services.trainer.engine.export import LocalRunExport
from services.trainer.engine.interface import EngineInfo, RunExport
from services.trainer.engine.isolation import run_isolated
from services.trainer.engine.job_under_way import JobUnderWay
from services.trainer.engine.optimizer import adamw_step
from services.trainer.engine.packed_rows import PackedRows
from services.trainer.engine.pass_memory import PassMemory, RowPlan, longest_part
from services.trainer.engine.rows import divide, fill_rows
from services.trainer.engine.run_state import RunState
from services.trainer.engine.snapshot_files import read_snapshot
from services.trainer.values import AdamParams, PassJob, PassResult

ROW_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Most tokens of a packed row; fewer on a GPU whose memory asks for it.

On a CPU longer rows gain nothing: their activations no longer fit its caches. There the length is fixed, because it
decides in which order a job adds up, and a CPU's results are promised to the bit.
"""


class LocalTrainerEngine:
    """Implements TrainerEngine; its docstrings are there. `run` hands out a run's tensors to whoever inspects them."""

    def __init__(self, base: BaseModel, *, row_tokens: int | None = None, most_bytes: int | None = None) -> None:
        """
        Args:
            base: the base model; the engine takes it over.
            row_tokens: most tokens of a packed row, the device's if None; a longer example gets a row of its own.
            most_bytes: most memory of a pass, even where more is free; None: what is free decides.
        """
        self.base = base
        self.share_prefixes = True
        self.rows = PackedRows(base)
        self.memory = PassMemory(self.rows.measure, lambda: free_bytes(base.device), most_bytes)
        self.row_tokens = row_tokens or ROW_TOKENS[base.device.type]
        if row_tokens is None and base.device.type != "cpu":
            self.row_tokens = self.memory.row_tokens(self.row_tokens)
        self.share_rows = self.rows.keeps_bits or base.device.type != "cpu"  # a GPU's bits are not promised
        self._runs: dict[str, RunState] = {}
        self.info = EngineInfo(
            base_model=base.name,
            max_context_length=base.max_context_length,
            vocab_size=base.vocab_size,
            fingerprint=base.fingerprint,
            aliases=base.aliases,
            tokenizer_files=base.tokenizer_files,
            loss_fns=frozenset(LOSSES),
            target_modules=base.family.last_names(),
            pass_tokens=self.row_tokens,
        )

    def run(self, training_run_id: str) -> RunState:
        """See TrainerEngine."""
        if training_run_id not in self._runs:
            raise NotFoundError(f"this trainer does not hold training run {training_run_id}")
        return self._runs[training_run_id]

    def create_run(self, training_run_id: str, config: AdapterConfig) -> RunState:
        """See TrainerEngine."""
        return self.add_run(training_run_id, RunState(init_adapter(self.base, config)))

    def open_run(self, training_run_id: str, export: RunExport, *, restore_optimizer: bool) -> RunState:
        """See TrainerEngine."""
        state = _exported(export).copied_to(self.base.device)
        if not restore_optimizer:
            state.reset_optimizer()
        return self.add_run(training_run_id, state)

    def add_run(self, training_run_id: str, state: RunState) -> RunState:
        """Adds a run with a state of its own.

        Raises:
            AlreadyExistsError: the run is here already.
        """
        if training_run_id in self._runs:
            raise AlreadyExistsError(f"this trainer already holds training run {training_run_id}")
        self._runs[training_run_id] = state
        return state

    def load(self, training_run_id: str, export: RunExport, *, restore_optimizer: bool) -> None:
        """See TrainerEngine."""
        run, source = self.run(training_run_id), _exported(export)
        theirs = source.config.shape(self.base.family)
        for name, ours in run.config.shape(self.base.family).items():
            if theirs[name] != ours:
                rule = f"a checkpoint with the run's {name}, {ours}"
                raise InvalidArgumentError.must_be("path", rule, str(theirs[name]))
        run.load(source, restore_optimizer=restore_optimizer)

    def drop_run(self, training_run_id: str) -> None:
        """See TrainerEngine."""
        self._runs.pop(training_run_id, None)

    def run_jobs(self, jobs: Sequence[PassJob]) -> list[PassResult | Exception]:
        """See TrainerEngine."""
        return run_isolated(self, jobs)

    def plan(self, jobs: Sequence[PassJob]) -> RowPlan:
        """How the rows of a pass of these jobs are laid out in the memory that is free now.

        Raises:
            NotFoundError: a job's run is not here.
        """
        return self.memory.plan(self._weights(jobs), longest_part(jobs, self.row_tokens), self.row_tokens)

    def ran_out(self, jobs: Sequence[PassJob], plan: RowPlan) -> None:
        """Learns that a pass of these jobs, laid out by `plan`, ran out of memory."""
        self.memory.ran_out(self._weights(jobs), plan)

    def _weights(self, jobs: Sequence[PassJob]) -> int:
        """Numbers in the jobs' gradient buffers."""
        return sum(self.run(job.training_run_id).weights.flat.numel() for job in jobs if job.backward)

    def run_pass(self, jobs: Sequence[PassJob], *, row_tokens: int | None = None) -> list[PassResult | PlatformError]:
        """Carries out jobs in one pass; a job whose numbers are not finite has its error in its place.

        Rows of jobs without a gradient are apart from the others and build no graph.

        Args:
            jobs: the jobs.
            row_tokens: in place of the engine's. It decides where a job is divided and so the order of its sums.

        Raises:
            Exception: anything that goes wrong with the pass as a whole; no job has changed anything.
        """
        limit = row_tokens or self.row_tokens
        plan = self.plan(jobs)
        under_way = [JobUnderWay(job, self.run(job.training_run_id)) for job in jobs]
        shared = min(limit, plan.most_tokens) if self.share_rows else 0
        for backward in (True, False):
            alike = [job for job in under_way if job.job.backward == backward]
            parts = [part for job in alike for part in divide(job, limit, may_share=self.share_prefixes)]
            for row in fill_rows(parts, shared):
                self.rows.run(row, share_prefixes=self.share_prefixes, recompute_above=plan.keep_tokens)
        results = [job.result() for job in under_way]
        for job, result in zip(under_way, results, strict=True):
            if isinstance(result, PassResult):
                job.commit()
        return results

    def optim_step(self, training_run_id: str, params: AdamParams) -> float:
        """See TrainerEngine and `adamw_step`."""
        return adamw_step(self.run(training_run_id), params)

    def export_run(self, training_run_id: str) -> LocalRunExport:
        """See TrainerEngine."""
        return LocalRunExport(training_run_id, self.run(training_run_id).copied_to("cpu"), self.base)

    def check_import(self, config: Path, weights: Path, *, rename_base_model: bool) -> None:
        """See TrainerEngine."""
        check_adapter(config, weights, self.base, rename_base_model=rename_base_model)

    def read_import(
        self, training_run_id: str, config: Path, weights: Path, *, rename_base_model: bool
    ) -> LocalRunExport:
        """See TrainerEngine."""
        adapter = import_adapter(config, weights, self.base, rename_base_model=rename_base_model)
        return LocalRunExport(training_run_id, RunState(adapter), self.base)

    def read_checkpoint(self, directory: Path) -> LocalRunExport:
        """See TrainerEngine."""
        state = read_training_checkpoint(directory, self.base)
        return LocalRunExport(Manifest.read(directory).training_run_id, state, self.base)

    def read_snapshot(self, directory: Path) -> LocalRunExport:
        """See TrainerEngine."""
        state = read_snapshot(directory, self.base)
        return LocalRunExport(Manifest.read(directory).training_run_id, state, self.base)

    def restore_run(self, training_run_id: str, export: RunExport) -> RunState:
        """See TrainerEngine."""
        state = _exported(export).copied_to(self.base.device)
        self.drop_run(training_run_id)
        return self.add_run(training_run_id, state)

    def memory_pressure(self) -> float:
        """See TrainerEngine."""
        return memory_pressure(self.base.device)

    def is_out_of_memory(self, error: Exception) -> bool:
        """See TrainerEngine."""
        return is_out_of_memory(error)


def _exported(export: RunExport) -> RunState:
    if not isinstance(export, LocalRunExport):
        raise TypeError(f"export: must be one of this engine's (got {type(export).__name__})")
    return export.state
