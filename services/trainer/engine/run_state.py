"""All that a training run is: adapter weights, accumulated gradient, AdamW's moments and step count.

The four vectors are rows of one float32 buffer on the device, each in the adapter's layout, so creating, saving or
dropping a run costs the same however many others there are.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterWeights


class RunState:
    """The state of one run, starting from given weights with everything else zero."""

    def __init__(self, weights: AdapterWeights) -> None:
        self._lay_out(weights, torch.zeros(4, weights.flat.numel(), device=weights.flat.device))
        self.weights.flat.copy_(weights.flat)
        self.step = 0
        """Number of optimizer steps taken."""

    def _lay_out(self, weights: AdapterWeights, buffer: Tensor) -> None:
        self.buffer = buffer
        """float32 [4, numel]: weights, gradient and both moments."""

        self.weights = AdapterWeights(weights.config, weights.layout, buffer[0])
        self.gradient: Tensor = buffer[1]
        self.exp_avg: Tensor = buffer[2]
        self.exp_avg_sq: Tensor = buffer[3]

    @property
    def config(self) -> AdapterConfig:
        """The adapter's shape."""
        return self.weights.config

    def optimizer_vectors(self) -> dict[str, Tensor]:
        """By name, all that a run has beside weights and step."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "gradient": self.gradient}

    def copied_to(self, device: torch.device | str) -> RunState:
        """The same state in memory of its own, on a device."""
        copied = copy(self)
        copied._lay_out(self.weights, self.buffer.to(device, copy=True))
        return copied

    def reset_optimizer(self) -> None:
        """Forgets all but the weights."""
        for vector in self.optimizer_vectors().values():
            vector.zero_()
        self.step = 0

    def load(self, source: RunState, *, restore_optimizer: bool) -> None:
        """Takes over another state of the same layout; without `restore_optimizer` all but the weights becomes zero."""
        self.weights.flat.copy_(source.weights.flat)
        if restore_optimizer:
            for name, vector in source.optimizer_vectors().items():
                self.optimizer_vectors()[name].copy_(vector)
            self.step = source.step
        else:
            self.reset_optimizer()
