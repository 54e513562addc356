"""Adapter files that only mean harm."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from services.core.storage.uploads import WEIGHTS_FILE


def many_tensors(directory: Path, count: int) -> None:
    """Puts a file of empty tensors in place of an adapter's weights."""
    write_header(directory, {f"a{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)})


def write_header(directory: Path, header: dict[str, object], content: bytes = b"") -> None:
    """Writes a safetensors file with any header."""
    encoded = json.dumps(header).encode()
    (directory / WEIGHTS_FILE).write_bytes(struct.pack("<Q", len(encoded)) + encoded + content)
