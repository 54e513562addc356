"""Packed attention: sequences in one row do not see each other, and each sees its own past alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.model.attention import PackedSequences
from services.model.base import BaseModel
from testing.rows import hidden_states, random_tokens


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_packed_sequences_equal_each_alone_in_plain_transformers(
    load: Callable[..., BaseModel], source: Callable[..., Path], family: str
) -> None:
    base = load(family)
    plain = AutoModelForCausalLM.from_pretrained(source(family), attn_implementation="eager").get_decoder()
    sequences = random_tokens(base, (5, 1, 17, 8))
    packed = hidden_states(base, sequences).split([5, 1, 17, 8])
    for sequence, hidden in zip(sequences, packed, strict=True):
        expected = plain(input_ids=torch.tensor([sequence]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)


def test_changing_one_sequence_changes_no_bit_of_another(load: Callable[..., BaseModel]) -> None:
    base = load()
    first, second, other = random_tokens(base, (6, 9, 6))
    before = hidden_states(base, [first, second])
    after = hidden_states(base, [other, second])
    assert torch.equal(before[6:], after[6:])
    assert not torch.equal(before[:6], after[:6])


def test_boundaries_and_positions() -> None:
    packed = PackedSequences.of([2, 1, 3], torch.device("cpu"))
    assert packed.queries.boundaries.tolist() == [0, 2, 3, 6]
    assert packed.queries.boundaries.dtype == torch.int32
    assert packed.queries.longest == 3
    assert packed.keys is packed.queries
    assert packed.key_rows is None
    assert packed.position_ids.tolist() == [[0, 1, 0, 0, 1, 2]]


def test_keys_of_what_continues_a_stretch_before_it() -> None:
    packed = PackedSequences.of([3, 2, 1], torch.device("cpu"), [(0, 0), (0, 3), (1, 2)])
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 2]]
    assert packed.key_rows is not None
    assert packed.key_rows.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 1, 2, 5]
    assert packed.keys.boundaries.tolist() == [0, 3, 8, 11]
    assert packed.keys.longest == 5
