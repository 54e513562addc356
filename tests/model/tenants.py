"""Several tenants' sequences in one packed row, each through its own adapter, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor

from services.model.adapters import AdapterWeights
from services.model.base import BaseModel
from services.model.logprobs import HeadPart, logprobs_and_gradient
from services.model.lora import LoraContext, Segment
from testing.rows import hidden_states


def shifted(sequence: list[int]) -> Tensor:
    return torch.tensor(sequence).roll(-1)


def run_tenants(
    base: BaseModel,
    context: LoraContext,
    tenants: list[tuple[AdapterWeights, list[list[int]]]],
) -> list[tuple[Tensor, AdapterWeights]]:
    """Logprobs and gradient of -sum(logprobs) of every tenant, all in one packed row."""
    segments, start = [], 0
    for weights, sequences in tenants:
        end = start + sum(map(len, sequences))
        segments.append(Segment(start, end, weights, weights.zeros()))
        start = end
    with context.segments(segments):
        hidden = hidden_states(base, [sequence for _, sequences in tenants for sequence in sequences])
        parts = [
            HeadPart(
                torch.cat([shifted(sequence) for sequence in sequences])[:, None],
                weights,
                segment.gradient,
                lambda _, logprobs: torch.full_like(logprobs, -1.0),
            )
            for segment, (weights, sequences) in zip(segments, tenants, strict=True)
        ]
        logprobs, d_hidden = logprobs_and_gradient(base, hidden.detach(), parts)
        hidden.backward(d_hidden)
    results = []
    for values, segment in zip(logprobs, segments, strict=True):
        assert segment.gradient is not None
        results.append((values[:, 0], segment.gradient))
    return results
