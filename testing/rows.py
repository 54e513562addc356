"""Packed rows through a base model's trunk, for tests of the layers below the trainer's engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.model.adapter_config import AdapterConfig
from services.model.adapters import AdapterWeights, init_adapter
from services.model.attention import PACKED_ATTENTION, PackedSequences
from services.model.base import BaseModel


def perturbed_adapter(base: BaseModel, config: AdapterConfig) -> AdapterWeights:
    """An adapter with B away from zero, as after some training."""
    weights = init_adapter(base, config)
    noise = torch.randn(weights.flat.shape, generator=torch.Generator().manual_seed(config.seed or 0))
    weights.flat.add_(noise.to(weights.flat.device), alpha=0.05)
    return weights


def random_tokens(base: BaseModel, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Sequences of the given lengths, without the special tokens 0 to 2."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, base.vocab_size, (length,), generator=generator).tolist() for length in lengths]


def hidden_states(base: BaseModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Hidden states [T, D] of sequences packed into one row; segments are the caller's."""
    base.module.set_attn_implementation(PACKED_ATTENTION)
    packed = PackedSequences.of([len(sequence) for sequence in sequences], base.device)
    tokens = torch.tensor([token for sequence in sequences for token in sequence], device=base.device)
    output = base.trunk(input_ids=tokens[None], position_ids=packed.position_ids, use_cache=False, sequences=packed)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden
