"""Results of operations as the SDK expects them: its own protobuf for losses and samples, JSON for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from starlette.responses import JSONResponse, Response

from tinker_proto.fault import fault_of
from tinker_proto.sdk.v1 import sdk_pb2
from tinker_proto.tensor import to_array
from tinker_proto.v1 import data_pb2, operation_pb2, sampling_pb2, training_pb2

PROTOBUF = "application/x-protobuf"
NO_LOGPROB = -99999.0
_OUTPUT_TYPE = "ArrayRecord"
_STOP_REASONS = {
    sampling_pb2.STOP_REASON_STOP: sdk_pb2.STOP_REASON_STOP,
    sampling_pb2.STOP_REASON_LENGTH: sdk_pb2.STOP_REASON_LENGTH,
}

LossResponse = training_pb2.ForwardBackwardResponse | training_pb2.ForwardResponse


def error_result(error: operation_pb2.OperationError) -> Response:
    """The result of an operation that failed: whose fault it was decides what the SDK says about it."""
    return JSONResponse({"error": error.message, "category": fault_of(error.code)})


def json_result(operation: operation_pb2.Operation) -> dict[str, Any]:
    """The result of an operation on a run, other than a loss.

    Raises:
        KeyError: the operation was not made by a method that the SDK has.
    """
    return _JSON_RESULTS[operation.method](operation)


def protobuf_result(operation: operation_pb2.Operation) -> bytes | None:
    """The result of a loss or a sample; None if it is of another kind."""
    for kind in (training_pb2.ForwardBackwardResponse, training_pb2.ForwardResponse):
        response = kind()
        if operation.response.Unpack(response):
            return loss_output(response).SerializeToString()
    sampled = sampling_pb2.SampleResponse()
    return sample_output(sampled).SerializeToString() if operation.response.Unpack(sampled) else None


def loss_output(response: LossResponse) -> sdk_pb2.ForwardBackwardOutput:
    """A loss: consecutive data with arrays of one kind share a record."""
    output = sdk_pb2.ForwardBackwardOutput(loss_fn_output_type=_OUTPUT_TYPE, metrics=response.metrics)
    for _, group in groupby(response.loss_fn_outputs, key=_kind):
        output.loss_fn_outputs.append(_record([entry.tensors for entry in group]))
    return output


def sample_output(response: sampling_pb2.SampleResponse) -> sdk_pb2.SampleResponse:
    """Completions and scores of the prompt."""
    output = sdk_pb2.SampleResponse(prompt_cache_hit_tokens=response.prompt_cache_hit_tokens)
    for sequence in response.sequences:
        added = output.sequences.add(
            stop_reason=_STOP_REASONS[sequence.stop_reason],
            tokens=np.array(sequence.tokens, dtype="<i4").tobytes(),
            logprobs=np.array(sequence.logprobs, dtype="<f4").tobytes(),
        )
        if sequence.topk_logprobs:
            added.topk_logprobs.CopyFrom(_topk(sequence.topk_logprobs))
    output.prompt_logprobs = np.array(response.prompt_logprobs, dtype="<f4").tobytes()
    if response.topk_prompt_logprobs:
        output.topk_prompt_logprobs.CopyFrom(_topk(response.topk_prompt_logprobs))
    if response.HasField("target_prompt_logprobs"):
        _fill_targets(output.target_prompt_logprobs, response.target_prompt_logprobs)
    if response.HasField("prompt_alt_tokens"):
        for name in ("tokens", "logprobs"):
            drawn, target = getattr(response.prompt_alt_tokens, name), getattr(output.prompt_alt_tokens, name)
            target.dtype, target.dense = sdk_pb2.DataType.ValueType(drawn.dtype), drawn.dense
            target.shape.extend(drawn.shape)
    return output


def _fill_targets(target: sdk_pb2.Tensor, scores: data_pb2.Tensor) -> None:
    """In the layout of `scores`, without their first row: the SDK has none for what nothing predicts, and 0 for -1."""
    target.dtype = sdk_pb2.DATA_TYPE_FLOAT32
    target.shape.extend((scores.shape[0] - 1, scores.shape[1]))
    if scores.WhichOneof("layout") == "dense":
        target.dense = np.nan_to_num(to_array(scores)[1:]).astype("<f4").tobytes()
        return
    offsets = np.frombuffer(scores.csr.crow_indices, "<i8")
    target.csr.values = scores.csr.values[4 * offsets[1] :]
    target.csr.crow_indices = (offsets[1:] - offsets[1]).tobytes()
    target.csr.col_indices = scores.csr.col_indices[8 * offsets[1] :]


def _kind(entry: training_pb2.LossFnOutput) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(name, tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in sorted(entry.tensors.items())]


def _record(data: Sequence[Any]) -> sdk_pb2.ArrayRecord:
    record = sdk_pb2.ArrayRecord(type_tag=_OUTPUT_TYPE, num_datums=len(data))
    for name in data[0]:
        tensors: list[data_pb2.Tensor] = [tensors[name] for tensors in data]
        sizes = [len(tensor.dense) for tensor in tensors]
        field = record.fields[name]
        field.data = b"".join(tensor.dense for tensor in tensors)
        field.offsets = np.cumsum([0, *sizes], dtype="<i8").tobytes()
        field.dtype = sdk_pb2.DataType.ValueType(tensors[0].dtype)
        field.trailing_shape.extend(tensors[0].shape[1:])
    return record


def _topk(rows: Sequence[sampling_pb2.TopkLogprobs]) -> sdk_pb2.TopkLogprobs:
    k = max(len(row.token_ids) for row in rows)
    token_ids = np.zeros((len(rows), k), dtype="<i4")
    logprobs = np.full((len(rows), k), NO_LOGPROB, dtype="<f4")
    for i, row in enumerate(rows):
        token_ids[i, : len(row.token_ids)] = row.token_ids
        logprobs[i, : len(row.logprobs)] = row.logprobs
    return sdk_pb2.TopkLogprobs(token_ids=token_ids.tobytes(), logprobs=logprobs.tobytes(), k=k, length=len(rows))


def _created(operation: operation_pb2.Operation) -> dict[str, Any]:
    return {"model_id": operation.name.rpartition(":")[0]}


def _metrics(operation: operation_pb2.Operation) -> dict[str, Any]:
    response = training_pb2.OptimStepResponse()
    operation.response.Unpack(response)
    return {"metrics": dict(response.metrics)}


def _path(operation: operation_pb2.Operation) -> dict[str, Any]:
    for response in (
        training_pb2.SaveStateResponse(),
        training_pb2.SaveWeightsForSamplerResponse(),
        training_pb2.LoadStateResponse(),
    ):
        if operation.response.Unpack(response):
            return {"path": response.path}
    raise KeyError(operation.method)


_JSON_RESULTS: Mapping[str, Callable[[operation_pb2.Operation], dict[str, Any]]] = {
    "CreateTrainingRun": _created,
    "CreateTrainingRunFromCheckpoint": _created,
    "OptimStep": _metrics,
    "SaveState": _path,
    "SaveWeightsForSampler": _path,
    "LoadState": _path,
}
