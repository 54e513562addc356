"""Checks of single fields; each raises InvalidArgumentError with the field's path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta

from services.core.errors import InvalidArgumentError
from services.core.names import MAX_SEQ_ID
from tinker_proto import path as tinker_path
from tinker_proto.path import TinkerPath
from tinker_proto.v1 import checkpoint_pb2, training_pb2

MIN_TTL = timedelta(hours=1)
MAX_TTL = timedelta(days=3650)
MAX_METADATA_ENTRIES = 64
MAX_METADATA_NAME = 1024
MAX_METADATA_VALUE = 32_768
"""Programs keep their configuration as JSON in one value."""

MAX_METADATA_CHARACTERS = 131_072
"""Of all names and values together."""

RequestWithTtl = (
    training_pb2.SaveStateRequest
    | training_pb2.SaveWeightsForSamplerRequest
    | checkpoint_pb2.SetCheckpointTtlRequest
    | checkpoint_pb2.ImportCheckpointRequest
)


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Refuses a number outside [low, high], NaN included."""
    if not low <= value <= high:
        raise InvalidArgumentError.must_be(field, f"from {low:.12g} to {high:.12g}", value)


def check_finite(field: str, value: float) -> None:
    """Refuses NaN and infinities."""
    if not math.isfinite(value):
        raise InvalidArgumentError.must_be(field, "finite", value)


def check_seq_id(field: str, seq_id: int, low: int, high: int = MAX_SEQ_ID) -> None:
    """Refuses a seq_id outside [low, high]."""
    if not low <= seq_id <= high:
        raise InvalidArgumentError.must_be(field, f"from {low} to {high}", seq_id)


def check_ttl(field: str, request: RequestWithTtl) -> None:
    """Refuses a time to live out of range; absent means for ever."""
    if request.HasField("ttl_seconds"):
        check_range(field, request.ttl_seconds, MIN_TTL.total_seconds(), MAX_TTL.total_seconds())


def check_metadata(field: str, metadata: Mapping[str, str]) -> None:
    """Refuses too many or too long labels."""
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise InvalidArgumentError.must_be(field, f"at most {MAX_METADATA_ENTRIES} entries", len(metadata))
    for name, value in metadata.items():
        if len(name) > MAX_METADATA_NAME or len(value) > MAX_METADATA_VALUE:
            rule = f"at most {MAX_METADATA_NAME} characters in its name and {MAX_METADATA_VALUE} in its value"
            got = f"{len(name)} and {len(value)}"
            raise InvalidArgumentError.must_be(f'{field}["{name[:50]}"]', rule, got)
    total = sum(len(name) + len(value) for name, value in metadata.items())
    if total > MAX_METADATA_CHARACTERS:
        raise InvalidArgumentError.must_be(field, f"at most {MAX_METADATA_CHARACTERS} characters in all", total)


def check_checkpoint_name(field: str, name: str) -> None:
    """Refuses what cannot be the last segment of a tinker path."""
    try:
        tinker_path.check_checkpoint_name(name)
    except ValueError as error:
        raise InvalidArgumentError.at(field, str(error), reason="BAD_CHECKPOINT_NAME") from None


def parse_path(field: str, path: str) -> TinkerPath:
    """Reads a tinker path.

    Raises:
        InvalidArgumentError: it is not one.
    """
    try:
        return TinkerPath.parse(path)
    except ValueError as error:
        raise InvalidArgumentError.at(field, str(error), reason="BAD_TINKER_PATH") from None
