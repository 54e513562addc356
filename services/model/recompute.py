"""Activation checkpointing that is switched per row: layers keep their input only and run again in the backward pass.

Gradients are bitwise the same. It costs one more forward pass and saves all memory but one layer's, so the trainer uses
it for rows whose activations do not fit its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from services.model.base import BaseModel


class Recompute:
    """Switch for the recomputation of a base model's decoder layers; off at first. Make it once for a base model."""

    def __init__(self, base: BaseModel) -> None:
        self.on = False
        for layer in base.decoder_layers:
            layer.forward = self._switched(layer.forward)

    def _switched(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def layer(hidden: Tensor, **options: Any) -> Tensor:
            if not (self.on and torch.is_grad_enabled()):
                return forward(hidden, **options)
            output: Tensor = checkpoint(forward, hidden, use_reentrant=False, **options)
            return output

        return layer
