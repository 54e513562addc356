"""Splitting keeps order and limits; joining gives what one request would have given."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_client import _batches
from tinker_client.errors import BadRequestError, FieldViolation, TinkerError
from tinker_client.types import ForwardBackwardOutput
from tinker_proto.v1 import data_pb2


def datum(size: int) -> data_pb2.Datum:
    return data_pb2.Datum(loss_fn_inputs={"w": data_pb2.Tensor(dense=b"x" * size)})


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(0, 2_500_000) | st.just(5_000_000), min_size=1, max_size=12))
def test_batches_keep_order_and_the_limit_unless_one_datum_is_larger(sizes: list[int]) -> None:
    data = [datum(size) for size in sizes]
    batches = _batches.split(data)
    assert [item for batch in batches for item in batch] == data
    for batch in batches:
        assert len(batch) == 1 or sum(item.ByteSize() for item in batch) <= _batches.MAX_BYTES
    for batch, following in itertools.pairwise(batches):  # greedy: the next datum would not have fitted
        assert sum(item.ByteSize() for item in batch) + following[0].ByteSize() > _batches.MAX_BYTES


def test_a_batch_has_at_most_1024_data() -> None:
    assert [len(batch) for batch in _batches.split([datum(1)] * 2500)] == [1024, 1024, 452]


def output(count: int, **metrics: float) -> ForwardBackwardOutput:
    return ForwardBackwardOutput([{}] * count, {name.replace("_", ":"): value for name, value in metrics.items()})


def test_each_metric_is_joined_by_its_reduction_means_by_data_count() -> None:
    joined = _batches.join(
        [
            output(3, a_sum=1.0, b_mean=1.0, c_min=5.0, d_max=5.0),
            output(1, a_sum=2.0, b_mean=5.0, c_min=4.0, d_max=6.0, e_sum=7.0),
        ]
    )
    assert joined.metrics == {"a:sum": 3.0, "b:mean": 2.0, "c:min": 4.0, "d:max": 6.0, "e:sum": 7.0}
    assert len(joined.loss_fn_outputs) == 4


def test_one_output_stays_as_it_is_and_an_unknown_reduction_is_not_guessed() -> None:
    single = output(1, a_median=1.0)
    assert _batches.join([single]) is single
    with pytest.raises(TinkerError, match="'a:median' of several requests cannot be joined"):
        _batches.join([single, single])


def test_an_error_names_the_datum_as_the_user_counts() -> None:
    error = BadRequestError(
        'data[3].loss_fn_inputs["w"]: bad',
        code="INVALID_ARGUMENT",
        field_violations=(FieldViolation('data[3].loss_fn_inputs["w"]', "bad"),),
    )
    _batches.name_data_from(error, 1024)
    assert str(error) == error.message == 'data[1027].loss_fn_inputs["w"]: bad'
    assert error.field_violations[0].field == 'data[1027].loss_fn_inputs["w"]'
