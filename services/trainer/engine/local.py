"""The engine: training runs on one base model, on one device. Torch only; called from one thread.

A pass takes jobs of one or several runs, lays their examples end to end in packed rows, and sends each row through the
model once. A job's gradient grows in a scratch buffer of its own and is added to its run's when the whole pass has
succeeded, so neither a job nor a pass that fails leaves a trace. In float32 on a CPU a job's results have the same
bits whatever else is in the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from services.core.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PlatformError
from services.model.adapter_config import AdapterConfig
from services.model.adapters import init_adapter
from services.model.attention import PACKED_ATTENTION, PackedSequences
from services.model.base import BaseModel
from services.model.linear_attention import keep_sequences_apart
from services.model.logprobs import logprobs_and_gradient
from services.model.lora import Segment, install_lora
from services.model.recompute import Recompute
from services.trainer.engine.batch import Batch
from services.trainer.engine.optimizer import AdamParams, adamw_step
from services.trainer.engine.pass_job import JobUnderWay, Outcome, Work
from services.trainer.engine.rows import Part, divide, fill_rows
from services.trainer.engine.run_state import RunState

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
        self.share_prefixes = True
        self._lora = install_lora(base)
        # Models with linear attention gate their other layers by a sigmoid, whose bits depend on an element's place.
        keeps_bits = self._lora.rowwise and not base.has_linear_attention
        self.share_rows = keeps_bits or base.device.type != "cpu"  # a GPU's bits are not promised
        self._recompute = Recompute(base)
        self._runs: dict[str, RunState] = {}
        base.module.set_attn_implementation(PACKED_ATTENTION)
        keep_sequences_apart(base)

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
        shapes = run.config.shape(self.base.family), source.config.shape(self.base.family)
        for (name, ours), theirs in zip(shapes[0].items(), shapes[1].values(), strict=True):
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
            row_tokens: in place of the engine's. It decides where a job is divided and so the order of its sums.

        Raises:
            Exception: anything that goes wrong with the pass as a whole; no job has changed anything.
        """
        jobs = [JobUnderWay(item, self.run(item.training_run_id)) for item in work]
        limit = row_tokens or self.row_tokens
        for backward in (True, False):
            alike = [job for job in jobs if job.work.backward == backward]
            parts = [part for job in alike for part in divide(job, limit, may_share=self.share_prefixes)]
            for row in fill_rows(parts, limit if self.share_rows else 0):
                self._run_row(row)
        outcomes = [job.outcome() for job in jobs]
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Outcome):
                job.commit()
        return outcomes

    def _run_row(self, row: Sequence[Part]) -> None:
        """One packed row through the model: trunk, head, and back where a job wants a gradient."""
        batches = [Batch.of(part.examples, self.base.device, may_share=self.share_prefixes) for part in row]
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
            Segment(end - len(batch.tokens), end, part.job.run.weights, part.job.scratch)
            for part, batch, end in zip(row, batches, ends, strict=True)
        ]
        with self._lora.segments(segments), torch.set_grad_enabled(any(part.job.scratch for part in row)):
            tokens_T = torch.cat([batch.tokens for batch in batches])
            hidden_TD = self.base.hidden_states(tokens_T, packed.position_ids[0], sequences=packed)
            d_hidden_TD = self._run_head(hidden_TD.detach(), row, batches)
            if hidden_TD.requires_grad:
                hidden_TD.backward(d_hidden_TD)  # type: ignore[no-untyped-call]

    def _run_head(self, hidden_TD: Tensor, row: Sequence[Part], batches: Sequence[Batch]) -> Tensor:
        """Gives each job the log-probabilities of its part; returns dL/dhidden, zero for a job without a gradient."""
        by_part = torch.split_with_sizes(hidden_TD, [len(batch.tokens) for batch in batches])
        hidden = [
            hidden_PD[batch.shared.hidden_rows] if batch.shared else hidden_PD
            for hidden_PD, batch in zip(by_part, batches, strict=True)
        ]
        heads = [
            part.job.head(self.base, hidden_UD, batch)
            for part, hidden_UD, batch in zip(row, hidden, batches, strict=True)
        ]
        logprobs, d_hidden_SD = logprobs_and_gradient(self.base, torch.cat(hidden), heads)
        for part, batch, logprobs_UK in zip(row, batches, logprobs, strict=True):
            part.job.take(part.examples, batch, logprobs_UK)
        d_hidden = torch.split_with_sizes(d_hidden_SD, [len(hidden_UD) for hidden_UD in hidden])
        return torch.cat(
            [
                torch.zeros_like(hidden_PD).index_add_(0, batch.shared.hidden_rows, d_hidden_UD)
                if batch.shared
                else d_hidden_UD
                for hidden_PD, batch, d_hidden_UD in zip(by_part, batches, d_hidden, strict=True)
            ]
        )
