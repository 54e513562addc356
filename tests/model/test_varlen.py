"""The calls of torch's variable-length attention, on the meta device: shapes and signature, no numbers."""

from __future__ import annotations

import pytest
import torch

from services.model.varlen import Slots, Stretches, varlen_causal, varlen_slots


def _empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


QUERIES = Stretches(_empty(3, dtype=torch.int32), 6)


@pytest.mark.parametrize("key_heads", [2, 8])
def test_fewer_key_heads_and_more_keys_than_queries_are_taken(key_heads: int) -> None:
    query, key, value = _empty(10, 8, 64), _empty(25, key_heads, 64), _empty(25, key_heads, 64)
    attended = varlen_causal(query, key, value, QUERIES, Stretches(QUERIES.boundaries, 13), scale=0.1)
    assert attended.shape == query.shape
    assert attended.dtype == torch.bfloat16


@pytest.mark.parametrize("longest", [1, 6])
def test_slots_are_taken(longest: int) -> None:
    query, keys, values = _empty(10, 8, 64), _empty(100, 2, 64), _empty(100, 2, 64)
    slots = Slots(_empty(3, dtype=torch.int32), _empty(2, dtype=torch.int32), 50)
    attended = varlen_slots(query, keys, values, Stretches(QUERIES.boundaries, longest), slots, scale=0.1)
    assert attended.shape == query.shape
    assert attended.dtype == torch.bfloat16
