"""Forward and backward passes: data is split into batches, and their outputs are joined.

A custom loss is two passes around a function of the user's, and takes the seq_ids of both at the call. If the function
fails, or the call is cancelled in between, those of the second pass are spent on passes without effect, so that the
run goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinker_client._batches import Batch, join, name_data_from, split
from tinker_client._convert import datum_to_proto, forward_output, naming
from tinker_client._operation_order import FORWARD, FORWARD_BACKWARD, OperationKind, OperationOrder
from tinker_client.errors import RequestFailedError, TinkerError
from tinker_client.future import APIFuture
from tinker_client.types import Datum, ForwardBackwardOutput, ModelInput
from tinker_proto.tensor import from_array
from tinker_proto.v1 import data_pb2, training_pb2

if TYPE_CHECKING:
    from tinker_client._torch import CustomLoss


def compute_loss(
    order: OperationOrder,
    kind: OperationKind[Any],
    request: type[training_pb2.ForwardRequest] | type[training_pb2.ForwardBackwardRequest],
    data: Sequence[Datum],
    loss_fn: str,
    loss_fn_config: Mapping[str, float] | None,
) -> APIFuture[ForwardBackwardOutput]:
    """One pass over `data`, in as many operations as it takes."""
    batches = split([datum_to_proto(datum, index) for index, datum in enumerate(_nonempty(data))])
    with naming("loss_fn or loss_fn_config"):
        requests = [request(data=batch, loss_fn=loss_fn, loss_fn_config=loss_fn_config) for batch in batches]

    async def carry_out(seq_ids: Sequence[int], cancelled: asyncio.Event) -> ForwardBackwardOutput:
        calls = zip(seq_ids, requests, strict=True)
        return await _joined(batches, [order.operation(seq_id, kind, item, cancelled) for seq_id, item in calls])

    return order.begin(len(batches), carry_out)


def compute_custom_loss(
    order: OperationOrder, data: Sequence[Datum], loss_fn: CustomLoss[Datum]
) -> APIFuture[ForwardBackwardOutput]:
    """The user's loss of all logprobs: a forward pass, its derivative here, a backward pass with that as weights."""
    from tinker_client import _torch

    batches = split([_scored(datum, index) for index, datum in enumerate(_nonempty(data))])

    async def carry_out(seq_ids: Sequence[int], cancelled: asyncio.Event) -> ForwardBackwardOutput:
        forward_ids, backward_ids = seq_ids[: len(batches)], seq_ids[len(batches) :]
        try:
            scored = await _forward(order, batches, forward_ids, cancelled)
            logprobs = [output["logprobs"].to_numpy() for output in scored.loss_fn_outputs]
            weights, metrics = await asyncio.to_thread(_torch.differentiate, data, logprobs, loss_fn)
            if cancelled.is_set():
                raise _cancelled(order, backward_ids[0])
        except BaseException:
            _spend(order, backward_ids)
            raise
        output = await _backward(order, batches, weights, backward_ids, cancelled)
        return ForwardBackwardOutput(output.loss_fn_outputs, {**output.metrics, **metrics})

    return order.begin(2 * len(batches), carry_out)


def _nonempty(data: Sequence[Datum]) -> Sequence[Datum]:
    if not data:
        raise ValueError("data: must be at least one Datum (got none)")
    return data


def _scored(datum: Datum, index: int) -> data_pb2.Datum:
    """A datum whose targets are scored without weight: room for the weights is in it, and counts for its size."""
    targets = datum.loss_fn_inputs.get("target_tokens")
    if targets is None:
        raise ValueError(f'data[{index}].loss_fn_inputs["target_tokens"]: must be given for a custom loss (got none)')
    no_weight = np.zeros(targets.shape, dtype=np.float32)
    return datum_to_proto(Datum(datum.model_input, {"target_tokens": targets, "weights": no_weight}), index)


async def _forward(
    order: OperationOrder, batches: Sequence[Batch], seq_ids: Sequence[int], cancelled: asyncio.Event
) -> ForwardBackwardOutput:
    return await _joined(
        batches,
        [
            order.operation(
                seq_id, FORWARD, training_pb2.ForwardRequest(data=batch, loss_fn="cross_entropy"), cancelled
            )
            for seq_id, batch in zip(seq_ids, batches, strict=True)
        ],
    )


async def _backward(
    order: OperationOrder,
    batches: Sequence[Batch],
    weights: Sequence[np.ndarray[Any, np.dtype[np.float32]]],
    seq_ids: Sequence[int],
    cancelled: asyncio.Event,
) -> ForwardBackwardOutput:
    for datum, values in zip((datum for batch in batches for datum in batch), weights, strict=True):
        datum.loss_fn_inputs["weights"].CopyFrom(from_array(values))
    return await _joined(
        batches,
        [
            order.operation(
                seq_id,
                FORWARD_BACKWARD,
                training_pb2.ForwardBackwardRequest(data=batch, loss_fn="cross_entropy"),
                cancelled,
            )
            for seq_id, batch in zip(seq_ids, batches, strict=True)
        ],
    )


async def _joined(batches: Sequence[Batch], operations: Sequence[Coroutine[Any, Any, Any]]) -> ForwardBackwardOutput:
    results = await asyncio.gather(*operations, return_exceptions=True)
    first, outputs = 0, []
    for batch, result in zip(batches, results, strict=True):
        if isinstance(result, BaseException):
            if isinstance(result, TinkerError):
                name_data_from(result, first)
            raise result
        outputs.append(forward_output(result.loss_fn_outputs, result.metrics))
        first += len(batch)
    return join(outputs)


def _spend(order: OperationOrder, seq_ids: Sequence[int]) -> None:
    """Uses up seq_ids that are reserved but not needed, each with a forward pass over one token: no effect."""
    token = Datum(ModelInput.from_ints([0]), {"target_tokens": [0], "weights": [0.0]})
    for seq_id in seq_ids:
        request = training_pb2.ForwardRequest(data=[datum_to_proto(token, 0)], loss_fn="cross_entropy")
        order.loop.start(order.operation(seq_id, FORWARD, request, asyncio.Event()))


def _cancelled(order: OperationOrder, seq_id: int) -> RequestFailedError:
    return RequestFailedError(
        "the custom loss was cancelled before its backward pass",
        request_id=f"{order.training_run_id}:{seq_id}",
        category="user",
        code="CANCELLED",
        reason="CANCELLED",
    )
