"""Tensor message ↔ numpy array, with the checks that both sides rely on.

A `Tensor` comes from outside: nothing in it is believed before dtype, shape, byte length and sparse structure agree.
Every refusal is a ValueError with the rule and the value; the caller adds the field.
Values are not judged here: NaN and Inf pass through unchanged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tinker_proto.v1 import data_pb2

MAX_SPARSE_ELEMENTS = 1 << 26
"""Most elements a sparse tensor may have once dense: its shape costs nothing on the wire, so it needs a bound."""

_WIRE_DTYPES: dict[int, np.dtype[Any]] = {
    data_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    data_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    data_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    data_pb2.DATA_TYPE_BFLOAT16: np.dtype("<u2"),
}
_DATA_TYPES: dict[np.dtype[Any], data_pb2.DataType.ValueType] = {
    np.dtype(np.float32): data_pb2.DATA_TYPE_FLOAT32,
    np.dtype(np.int64): data_pb2.DATA_TYPE_INT64,
    np.dtype(np.int32): data_pb2.DATA_TYPE_INT32,
}


def to_array(tensor: data_pb2.Tensor, *, unlisted: int = 0) -> npt.NDArray[Any]:
    """Returns the tensor as a fresh, writable, dense array: float32, int64 or int32 (bfloat16 becomes float32).

    Elements that a sparse tensor does not list are `unlisted`. Raises ValueError when dtype, shape, byte length or
    sparse structure do not fit together.
    """
    dtype = _WIRE_DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ValueError(f"dtype must be FLOAT32, INT64, INT32 or BFLOAT16 (got {tensor.dtype})")
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape must have no negative dimension (got {list(shape)})")
    layout = tensor.WhichOneof("layout")
    if layout == "dense":
        return _decoded(_dense(tensor.dense, dtype, shape), tensor.dtype)
    if layout == "csr":
        return _decoded(_csr_to_dense(tensor.csr, dtype, shape, unlisted), tensor.dtype)
    raise ValueError("must have exactly one of `dense` and `csr` (got neither)")


def from_array(array: npt.NDArray[Any]) -> data_pb2.Tensor:
    """Returns the dense tensor of a float32, int64 or int32 array of any shape and memory order; else ValueError."""
    native = array.dtype.newbyteorder("=")
    data_type = _DATA_TYPES.get(native)
    if data_type is None:
        raise ValueError(f"dtype must be float32, int64 or int32 (got {array.dtype})")
    little_endian = array.astype(native.newbyteorder("<"), copy=False)
    return data_pb2.Tensor(dtype=data_type, shape=array.shape, dense=little_endian.tobytes(order="C"))


def _dense(content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"`dense` must have {expected} bytes for shape {list(shape)} of {dtype.itemsize}-byte elements "
            f"(got {len(content)})"
        )
    return np.frombuffer(content, dtype=dtype).reshape(shape)


def _csr_to_dense(
    csr: data_pb2.SparseCsr, dtype: np.dtype[Any], shape: tuple[int, ...], unlisted: int
) -> npt.NDArray[Any]:
    if len(shape) != 2:
        raise ValueError(f"`csr` must have a 2-D shape (got {list(shape)})")
    if math.prod(shape) > MAX_SPARSE_ELEMENTS:
        raise ValueError(f"`csr` must have a shape of at most {MAX_SPARSE_ELEMENTS} elements (got {list(shape)})")
    values = _vector("values", csr.values, dtype)
    offsets = _vector("crow_indices", csr.crow_indices, np.dtype("<i8"))
    columns = _vector("col_indices", csr.col_indices, np.dtype("<i8"))
    row_count, column_count = shape
    if len(offsets) != row_count + 1:
        raise ValueError(f"`crow_indices` must have {row_count + 1} entries for {row_count} rows (got {len(offsets)})")
    if len(columns) != len(values):
        raise ValueError(f"`col_indices` must have as many entries as `values`, {len(values)} (got {len(columns)})")
    if offsets[0] != 0 or offsets[-1] != len(values) or np.any(offsets[1:] < offsets[:-1]):
        raise ValueError(f"`crow_indices` must rise from 0 to the number of values, {len(values)}")
    if np.any((columns < 0) | (columns >= column_count)):
        raise ValueError(f"`col_indices` must be columns from 0 to {column_count - 1}")
    rows = np.repeat(np.arange(row_count), np.diff(offsets))
    if np.any((np.diff(columns) <= 0) & (np.diff(rows) == 0)):
        raise ValueError("`col_indices` must ascend, without repetition, within each row")
    dense = np.full(shape, unlisted, dtype=dtype)
    dense[rows, columns] = values
    return dense


def _vector(field: str, content: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if len(content) % dtype.itemsize:
        raise ValueError(f"`{field}` must have a multiple of {dtype.itemsize} bytes (got {len(content)})")
    return np.frombuffer(content, dtype=dtype)


def _decoded(array: npt.NDArray[Any], data_type: int) -> npt.NDArray[Any]:
    if data_type == data_pb2.DATA_TYPE_BFLOAT16:  # bfloat16 is the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=True)
