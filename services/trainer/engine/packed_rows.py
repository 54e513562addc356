"""Packed rows through the model: trunk, unembedding, and back where a job wants a gradient.

A row holds parts of one or several jobs end to end; each part goes through its own run's adapter.

T tokens of the row, P of a part, D hidden size; rows of the unembedding are U of a part and S of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from services.core.process.metrics import RECOMPUTED_TOKENS
from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterLayout, AdapterWeights
from services.model.attention import PACKED_ATTENTION, PackedSequences
from services.model.base import BaseModel
from services.model.linear_attention import keep_sequences_apart
from services.model.logprobs import logprobs_and_gradient
from services.model.lora import Segment, install_lora
from services.model.recompute import Recompute
from services.trainer.engine.batch import Batch
from services.trainer.engine.pass_memory import Activations
from services.trainer.engine.rows import Part

_PROBE_TOKENS = 64
_PROBE_RANK = 8


class PackedRows:
    """Runs rows on one base model. Takes the base model over: installs its attention and adapters' linears."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self.lora = install_lora(base)
        self._recompute = Recompute(base)
        base.module.set_attn_implementation(PACKED_ATTENTION)
        keep_sequences_apart(base)

    @property
    def keeps_bits(self) -> bool:
        """Whether a part's results have the same bits whatever else is in its row."""
        # Models with linear attention gate their other layers by a sigmoid, whose bits depend on an element's place.
        return self.lora.rowwise and not self._base.has_linear_attention

    @property
    def recomputing(self) -> bool:
        """Whether the row under way recomputes its activations."""
        return self._recompute.on

    def measure(self) -> Activations:
        """What a token's activations take on this model: two short rows of a small adapter, weighed."""
        config = AdapterConfig(_PROBE_RANK, train_unembed=False)
        layout = AdapterLayout.of(self._base, config)
        adapter = AdapterWeights(config, layout, torch.zeros(layout.numel, device=self._base.device))
        short, long = (self._saved_bytes(adapter, tokens) for tokens in (_PROBE_TOKENS, 2 * _PROBE_TOKENS))
        kept = -(-(long - short) // _PROBE_TOKENS)
        layers = len(self._base.decoder_layers)
        inputs = layers * self._base.unembedding_weight.shape[1] * self._base.dtype.itemsize
        return Activations(kept=kept, recomputed=inputs + -(-kept // layers))

    def _saved_bytes(self, adapter: AdapterWeights, tokens: int) -> int:
        """Bytes that autograd keeps of the trunk's forward pass over a row."""
        frozen = {parameter.untyped_storage().data_ptr() for parameter in self._base.module.parameters()}
        saved: dict[int, int] = {}

        def weigh(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in frozen:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        packed = PackedSequences.of([tokens], self._base.device, [(0, 0)])
        self._recompute.on = False
        with (
            torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor),
            self.lora.segments([Segment(0, tokens, adapter, adapter.zeros())]),
            torch.enable_grad(),
        ):
            output = self._base.trunk(
                input_ids=torch.zeros(1, tokens, dtype=torch.int64, device=self._base.device),
                position_ids=packed.position_ids,
                use_cache=False,
                sequences=packed,
            )
        del output
        return sum(saved.values())

    def run(self, row: Sequence[Part], *, share_prefixes: bool, recompute_above: int) -> None:
        """Runs one row and gives each job what its part has computed.

        Args:
            row: the parts in order.
            share_prefixes: whether examples of a part with a common beginning go through the trunk with it once.
            recompute_above: a row with more tokens keeps no activations but recomputes them.
        """
        batches = [Batch.of(part.examples, self._base.device, may_share=share_prefixes) for part in row]
        ends = list(accumulate(len(batch.tokens) for batch in batches))
        packed = PackedSequences.of(
            [length for batch in batches for length in batch.stretches],
            self._base.device,
            [
                (start + end - len(batch.tokens), length)
                for batch, end in zip(batches, ends, strict=True)
                for start, length in batch.prefixes
            ],
        )
        self._recompute.on = ends[-1] > recompute_above and any(part.job.scratch for part in row)
        if self._recompute.on:
            RECOMPUTED_TOKENS.inc(ends[-1])
        segments = [
            Segment(end - len(batch.tokens), end, part.job.run.weights, part.job.scratch)
            for part, batch, end in zip(row, batches, ends, strict=True)
        ]
        with self.lora.segments(segments), torch.set_grad_enabled(any(part.job.scratch for part in row)):
            hidden_TD = self._base.trunk(
                input_ids=torch.cat([batch.tokens for batch in batches])[None],
                position_ids=packed.position_ids,
                use_cache=False,
                sequences=packed,
            ).last_hidden_state[0]
            d_hidden_TD = self._run_head(hidden_TD.detach(), row, batches)
            if hidden_TD.requires_grad:
                hidden_TD.backward(d_hidden_TD)

    def _run_head(self, hidden_TD: Tensor, row: Sequence[Part], batches: Sequence[Batch]) -> Tensor:
        """Gives each job the log-probabilities of its part; returns dL/dhidden, zero for a job without a gradient."""
        by_part = torch.split_with_sizes(hidden_TD, [len(batch.tokens) for batch in batches])
        hidden = [
            hidden_PD[batch.shared.hidden_rows] if batch.shared else hidden_PD
            for hidden_PD, batch in zip(by_part, batches, strict=True)
        ]
        heads = [
            part.job.head(self._base, hidden_UD, batch)
            for part, hidden_UD, batch in zip(row, hidden, batches, strict=True)
        ]
        logprobs, d_hidden_SD = logprobs_and_gradient(self._base, torch.cat(hidden), heads)
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
