"""Large batches travel as several requests, and their outputs come back as one.

Data stay in order: a request is filled until it has MAX_DATA examples or MAX_BYTES, and an example larger than that
goes alone. Metrics are named `name:reduction`, which says how those of several requests become one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinker_client.errors import CodedError, FieldViolation, TinkerError
from tinker_client.types import ForwardBackwardOutput
from tinker_proto.v1 import data_pb2

MAX_DATA = 1024
MAX_BYTES = 4_000_000
"""Below the 4 MiB that a gRPC server accepts unless told otherwise."""

Batch = list[data_pb2.Datum]

_DATUM_INDEX = re.compile(r"\bdata\[(\d+)\]")


def split(data: Sequence[data_pb2.Datum]) -> list[Batch]:
    """Cuts data into batches, each small enough for a request."""
    batches: list[Batch] = []
    size = 0
    for datum in data:
        datum_size = datum.ByteSize()
        if not batches or len(batches[-1]) == MAX_DATA or size + datum_size > MAX_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(datum)
        size += datum_size
    return batches


def join(outputs: Sequence[ForwardBackwardOutput]) -> ForwardBackwardOutput:
    """One output for the data of all batches, in their order."""
    if len(outputs) == 1:
        return outputs[0]
    loss_fn_outputs = [output for part in outputs for output in part.loss_fn_outputs]
    names = dict.fromkeys(name for part in outputs for name in part.metrics)
    return ForwardBackwardOutput(loss_fn_outputs, {name: _reduce(name, outputs) for name in names})


def name_data_from(error: TinkerError, first: int) -> None:
    """Makes an error about the batch that starts at datum `first` name its data by their index in the user's list."""
    if isinstance(error, CodedError):
        error.message = _shifted(error.message, first)
        error.args = (error.message,)
        error.field_violations = tuple(
            FieldViolation(_shifted(item.field, first), item.description) for item in error.field_violations
        )


def _shifted(text: str, first: int) -> str:
    return _DATUM_INDEX.sub(lambda match: f"data[{int(match[1]) + first}]", text)


def _reduce(name: str, outputs: Sequence[ForwardBackwardOutput]) -> float:
    parts = [(part.metrics[name], len(part.loss_fn_outputs)) for part in outputs if name in part.metrics]
    values = [value for value, _ in parts]
    match name.rpartition(":")[2]:
        case "sum":
            return sum(values)
        case "mean":
            return sum(value * count for value, count in parts) / sum(count for _, count in parts)
        case "min":
            return min(values)
        case "max":
            return max(values)
    raise TinkerError(f"metric {name!r} of several requests cannot be joined: its reduction is unknown")
