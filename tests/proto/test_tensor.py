"""What tinker_proto.tensor promises: exact round trips, and a sentence for everything that does not fit together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tinker_proto import tensor as tensors
from tinker_proto.v1 import data_pb2

SENDABLE = st.sampled_from([np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.int32)])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@given(array=SENDABLE.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)))
def test_every_sendable_array_survives_the_wire_bit_for_bit(array: np.ndarray) -> None:
    wire = data_pb2.Tensor.FromString(tensors.from_array(array).SerializeToString())
    back = tensors.to_array(wire)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()  # also NaN payloads and -0.0
    assert back.flags.writeable


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">i4"])
def test_big_endian_and_transposed_arrays_are_sent_little_endian_row_major(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype).T
    np.testing.assert_array_equal(tensors.to_array(tensors.from_array(array)), [[0, 3], [1, 4], [2, 5]])


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.bool_, np.uint8, np.uint64, np.int16, np.complex64, object]
)
def test_other_dtypes_are_refused_by_name(dtype: type) -> None:
    with pytest.raises(ValueError, match=r"dtype must be float32, int64 or int32 \(got "):
        tensors.from_array(np.zeros(3, dtype=dtype))


def test_bfloat16_is_decoded_to_float32() -> None:
    # 1.0 is 0x3F80, -2.5 is 0xC020, +inf is 0x7F80
    wire = data_pb2.Tensor(
        dtype=data_pb2.DATA_TYPE_BFLOAT16, shape=[3], dense=np.array([0x3F80, 0xC020, 0x7F80], "<u2").tobytes()
    )
    array = tensors.to_array(wire)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1.0, -2.5, np.inf])


def csr_of(rows: list[list[float]]) -> data_pb2.Tensor:
    """The textbook construction: walk the rows, store what is not zero."""
    values, columns, offsets = [], [], [0]
    for row in rows:
        for column, value in enumerate(row):
            if value != 0:
                values.append(value)
                columns.append(column)
        offsets.append(len(values))
    return csr([len(rows), len(rows[0])], np.array(values, "<f4").tobytes(), i64(*offsets), i64(*columns))


@given(
    dense=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
        elements=st.sampled_from([0.0, 1.5, -2.0]),
    )
)
def test_csr_becomes_the_array_it_was_made_from(dense: np.ndarray) -> None:
    np.testing.assert_array_equal(tensors.to_array(csr_of(dense.tolist())), dense)


def i64(*values: int) -> bytes:
    return np.array(values, "<i8").tobytes()


F32 = data_pb2.DATA_TYPE_FLOAT32
TWO = np.array([1, 2], "<f4").tobytes()


def csr(shape: list[int], values: bytes, crow: bytes, col: bytes) -> data_pb2.Tensor:
    return data_pb2.Tensor(
        dtype=F32, shape=shape, csr=data_pb2.SparseCsr(values=values, crow_indices=crow, col_indices=col)
    )


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (data_pb2.Tensor(shape=[1], dense=b"1234"), r"dtype must be FLOAT32, INT64, INT32 or BFLOAT16 \(got 0\)"),
        (data_pb2.Tensor(dtype=99, shape=[1], dense=b"1234"), r"BFLOAT16 \(got 99\)"),  # type: ignore[arg-type]
        (data_pb2.Tensor(dtype=F32, shape=[2], dense=b"1234"), r"must have 8 bytes .* \(got 4\)"),
        (data_pb2.Tensor(dtype=F32, shape=[], dense=b""), r"must have 4 bytes .* \(got 0\)"),
        (data_pb2.Tensor(dtype=F32, shape=[-1], dense=b""), r"no negative dimension \(got \[-1\]\)"),
        (data_pb2.Tensor(dtype=F32, shape=[1]), r"exactly one of `dense` and `csr` \(got neither\)"),
        (csr([2], TWO, i64(0, 1, 2), i64(0, 1)), r"must have a 2-D shape \(got \[2\]\)"),
        (csr([1 << 40, 1 << 40], b"", b"", b""), "of at most"),
        (csr([2, 2], TWO + b"1", i64(0, 1, 2), i64(0, 1)), r"`values` must have a multiple of 4 bytes \(got 9\)"),
        (csr([2, 2], TWO, i64(0, 2), i64(0, 1)), r"must have 3 entries for 2 rows \(got 2\)"),
        (csr([2, 2], TWO, b"", i64(0, 1)), r"must have 3 entries for 2 rows \(got 0\)"),
        (csr([2, 2], TWO, i64(0, 1, 2), i64(0)), r"as many entries as `values`, 2 \(got 1\)"),
        (csr([2, 2], TWO, i64(1, 1, 2), i64(0, 1)), "must rise from 0"),
        (csr([2, 2], TWO, i64(0, 1, 3), i64(0, 1)), "must rise from 0"),
        (csr([3, 2], TWO, i64(0, 2, 1, 2), i64(0, 1)), "must rise from 0"),
        (csr([2, 2], TWO, i64(0, 1, 2), i64(0, 2)), "columns from 0 to 1"),
        (csr([2, 2], TWO, i64(0, 1, 2), i64(0, -1)), "columns from 0 to 1"),
        (csr([2, 2], TWO, i64(0, 2, 2), i64(1, 0)), "must ascend"),
        (csr([2, 2], TWO, i64(0, 2, 2), i64(1, 1)), "must ascend"),
    ],
)
def test_every_disagreement_inside_a_tensor_is_refused_with_a_sentence(message: data_pb2.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tensors.to_array(message)


@given(
    dtype=st.integers(0, 5),
    shape=st.lists(st.integers(-1, 4), max_size=3),
    parts=st.tuples(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40)),
    layout=st.sampled_from(["dense", "csr"]),
)
def test_any_bytes_give_an_array_of_the_stated_shape_or_a_value_error(
    dtype: int, shape: list[int], parts: tuple[bytes, bytes, bytes], layout: str
) -> None:
    message = data_pb2.Tensor(shape=shape)
    message.dtype = dtype  # type: ignore[assignment]
    if layout == "dense":
        message.dense = parts[0]
    else:
        message.csr.CopyFrom(data_pb2.SparseCsr(values=parts[0], crow_indices=parts[1], col_indices=parts[2]))
    try:
        array = tensors.to_array(message)
    except ValueError:
        return
    assert array.shape == tuple(shape)
