"""The call of torch's variable-length attention, on the meta device: shapes and signature, no numbers."""

from __future__ import annotations

import pytest
import torch

from services.model import varlen


@pytest.mark.parametrize("takes_grouped_heads", [True, False])
@pytest.mark.parametrize("key_heads", [2, 8])
def test_grouped_heads_are_passed_or_repeated(
    monkeypatch: pytest.MonkeyPatch, takes_grouped_heads: bool, key_heads: int
) -> None:
    monkeypatch.setattr(varlen, "_TAKES_GROUPED_HEADS", takes_grouped_heads)
    query = torch.empty(10, 8, 64, dtype=torch.bfloat16, device="meta")
    key, value = (torch.empty(10, key_heads, 64, dtype=torch.bfloat16, device="meta") for _ in range(2))
    boundaries = torch.empty(3, dtype=torch.int32, device="meta")
    attended = varlen.varlen_causal(query, key, value, boundaries, 6, scale=0.1)
    assert attended.shape == query.shape
    assert attended.dtype == torch.bfloat16
