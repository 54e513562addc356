"""The engine: training runs on one base model, on one device. Torch only; called from one thread.

A pass takes jobs of one or several runs, lays their examples end to end in packed rows, and sends each row through the
model once. A job's gradient grows in a scratch buffer of its own and is added to its run's when the whole pass has
succeeded, so neither a job nor a pass that fails leaves a trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from services.core.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PlatformError
from services.model.adapters import AdapterConfig, init_adapter
from services.model.attention import PACKED_ATTENTION, PackedSequences
from services.model.base import BaseModel
from services.model.lora import Segment, install_lora
from services.model.recompute import Recompute
from services.trainer.batch import Batch
from services.trainer.optimizer import AdamParams, adamw_step
from services.trainer.run_state import RunState
from services.trainer.work import JobUnderWay, Outcome, Row, Work, fill_rows

ROW_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Most tokens of a packed row. On a CPU longer rows gain nothing: their activations no longer fit its caches."""

RECOMPUTE_ABOVE = 8192


class TrainerEngine:
    """The runs of one process and the passes over them."""

    def __init__(
        self, base: BaseModel, *, row_tokens: int | None = None, recompute_above: int = RECOMPUTE_ABOVE
    ) -> None:
        """
        Args:
            base: the base model; the engine takes it over.
            row_tokens: most tokens of a packed row, the device's if None; a longer example gets a row of its own.
            recompute_above: rows with more tokens keep no activations but recompute them.
        """
        self.base = base
        self.row_tokens = row_tokens or ROW_TOKENS[base.device.type]
        self.recompute_above = recompute_above
        self.share_prefixes = base.device.type == "cpu"  # flash attention has no kernel for it yet
        self._lora = install_lora(base)
        self._recompute = Recompute(base)
        self._runs: dict[str, RunState] = {}
        base.module.set_attn_implementation(PACKED_ATTENTION)

    def run(self, training_run_id: str) -> RunState:
        """The state of a run.

        Raises:
            NotFoundError: the run is not here.
        """
        if training_run_id not in self._runs:
            raise NotFoundError(f"this trainer does not hold training run {training_run_id}")
        return self._runs[training_run_id]

    def create_run(self, training_run_id: str, config: AdapterConfig) -> RunState:
        """Adds a run with a fresh adapter."""
        return self.add_run(training_run_id, RunState(init_adapter(self.base, config)))

    def add_run(self, training_run_id: str, state: RunState) -> RunState:
        """Adds a run with a state of its own.

        Raises:
            AlreadyExistsError: the run is here already.
        """
        if training_run_id in self._runs:
            raise AlreadyExistsError(f"this trainer already holds training run {training_run_id}")
        self._runs[training_run_id] = state
        return state

    def drop_run(self, training_run_id: str) -> None:
        """Forgets a run and frees its memory; nothing happens if it is not here."""
        self._runs.pop(training_run_id, None)

    def load(self, training_run_id: str, source: RunState, *, restore_optimizer: bool) -> None:
        """Puts another state into a run.

        Raises:
            InvalidArgumentError: its adapter has another rank, alpha, scaling or target modules than the run's.
        """
        run = self.run(training_run_id)
        for name, ours in run.config.shape.items():
            theirs = source.config.shape[name]
            if theirs != ours:
                raise InvalidArgumentError.at("path", f"the checkpoint's {name} is {theirs}; the run's is {ours}")
        run.load(source, restore_optimizer=restore_optimizer)

    def optim_step(self, training_run_id: str, params: AdamParams) -> float:
        """One AdamW step of a run; see `adamw_step`."""
        return adamw_step(self.run(training_run_id), params)

    def run_alone(self, work: Work) -> Outcome:
        """A pass of one job; raises what the job fails with."""
        (outcome,) = self.run_pass([work])
        if isinstance(outcome, PlatformError):
            raise outcome
        return outcome

    def run_pass(self, work: Sequence[Work], *, row_tokens: int | None = None) -> list[Outcome | PlatformError]:
        """Carries out jobs of any runs together; a job that fails has its error in its place and changes nothing.

        Rows of jobs without a gradient are apart from the others and build no graph.

        Args:
            work: the jobs.
            row_tokens: in place of the engine's.

        Raises:
            Exception: anything that goes wrong with the pass as a whole; no job has changed anything.
        """
        jobs = [JobUnderWay(item, self.run(item.training_run_id)) for item in work]
        for backward in (True, False):
            for row in fill_rows([job for job in jobs if job.work.backward == backward], row_tokens or self.row_tokens):
                self._run_row(row)
        outcomes = [job.outcome() for job in jobs]
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Outcome):
                job.commit()
        return outcomes

    def _run_row(self, row: Row) -> None:
        """One packed row through the model: trunk, head, and back where a job wants a gradient."""
        batches = [Batch.of(examples, self.base.device, may_share=self.share_prefixes) for _, examples in row]
        ends = list(accumulate(len(batch.tokens) for batch in batches))
        packed = PackedSequences.of(
            [length for batch in batches for length in batch.stretches],
            self.base.device,
            [
                (start + end - len(batch.tokens), length)
                for batch, end in zip(batches, ends, strict=True)
                for start, length in batch.prefixes
            ],
        )
        self._recompute.on = ends[-1] > self.recompute_above
        segments = [
            Segment(end - len(batch.tokens), end, job.run.weights, job.scratch)
            for (job, _), batch, end in zip(row, batches, ends, strict=True)
        ]
        with self._lora.segments(segments), torch.set_grad_enabled(any(job.scratch for job, _ in row)):
            hidden_TD = self.base.trunk(
                input_ids=torch.cat([batch.tokens for batch in batches])[None],
                position_ids=packed.position_ids,
                use_cache=False,
                sequences=packed,
            ).last_hidden_state[0]
            d_hidden_TD = torch.cat(
                [
                    job.head(self.base, hidden_TD.detach()[segment.start : segment.end], examples, batch)
                    for (job, examples), batch, segment in zip(row, batches, segments, strict=True)
                ]
            )
            if hidden_TD.requires_grad:
                hidden_TD.backward(d_hidden_TD)
