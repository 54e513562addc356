"""The header of a safetensors file: the dtypes and shapes of its tensors by name, read without any of their content.

A header is as long as whoever wrote the file wants. Its length is compared with a bound before it is parsed, so a file
with a million tensors costs no more than one with none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from services.core.errors import DataLossError, InvalidArgumentError

_LENGTH_BYTES = 8


class TensorInfo(NamedTuple):
    """What a header says about a tensor."""

    dtype: str
    """As safetensors calls it: F32, BF16, I8."""

    shape: tuple[int, ...]


def read_header(path: Path, max_bytes: int, label: str) -> Mapping[str, TensorInfo]:
    """The tensors of a file, whose size is that of its header and all their content.

    Args:
        path: the file.
        max_bytes: longest header that is parsed.
        label: what errors call the file.

    Raises:
        DataLossError: the file is missing, truncated, or is no safetensors file.
        InvalidArgumentError: the header is longer.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > max_bytes:
            message = f"{label}: its header must be at most {max_bytes} bytes for this base model (got {length})"
            raise InvalidArgumentError(message, reason="BAD_ADAPTER")
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {name: TensorInfo(of.get_dtype(), tuple(of.get_shape())) for name, of in slices.items()}
    except (OSError, SafetensorError) as error:
        raise DataLossError(f"{label} is missing or corrupted: {error}") from error
