"""What sets the kinds of operations apart: which leave a run as it was, which are passes over data, and their cost."""

from __future__ import annotations

from collections.abc import Sequence

from services.core import chunks
from tinker_proto.v1 import data_pb2

BACKWARD_COST = 3
"""A forward_backward costs about three times the forward pass over the same tokens."""

WITHOUT_EFFECT = frozenset({"forward", "save_state", "save_weights_for_sampler"})
"""Requests that leave a run as it was: a replay passes over them."""

PASSES = {"forward": 1, "forward_backward": BACKWARD_COST}


def token_count(data: Sequence[data_pb2.Datum]) -> int:
    """Tokens that examples ask to compute."""
    return sum(chunks.length(datum.model_input) for datum in data)
