"""Checks of training data: lengths, shapes, dtypes, vocabulary and finiteness, against the loss's own table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.core.chunks import check_text, content_ids, positions
from services.core.errors import InvalidArgumentError, quoted
from services.core.losses import CLIP_HIGH, CLIP_LOW, LOSSES, LossSpec
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.tensor import to_array
from tinker_proto.v1 import data_pb2

_EXACT_IN_FLOAT32 = 1 << 24
_INTEGER_INPUTS = frozenset({"target_tokens"})


def check_loss(
    loss_fn: str, config: Mapping[str, float], limits: job_pb2.WorkerStatus
) -> tuple[LossSpec, dict[str, float]]:
    """Refuses a loss function that no trainer announces, and unknown or non-finite options; its row and all options."""
    spec = LOSSES.get(loss_fn) if loss_fn in limits.loss_fns else None
    if spec is None:
        rule = f"one of {', '.join(sorted(LOSSES.keys() & set(limits.loss_fns)))}"
        raise InvalidArgumentError.must_be("loss_fn", rule, quoted(loss_fn), reason="UNKNOWN_LOSS")
    return spec, spec.options(config)


def check_data(
    data: Sequence[data_pb2.Datum], spec: LossSpec, options: Mapping[str, float], limits: job_pb2.WorkerStatus
) -> None:
    """Refuses data that the loss or the base model cannot take."""
    if not data:
        raise InvalidArgumentError.must_be("data", "at least one datum", "none")
    for i, datum in enumerate(data):
        length = check_model_input(f"data[{i}].model_input", datum.model_input, limits)
        field = f"data[{i}].loss_fn_inputs"
        arrays = _check_loss_inputs(field, datum.loss_fn_inputs, length, spec, limits.vocab_size)
        _check_thresholds(field, {name: arrays[name] for name in spec.by_token if name in arrays}, options)


def check_model_input(field: str, model_input: data_pb2.ModelInput, limits: job_pb2.WorkerStatus) -> int:
    """Refuses images, tokens outside the vocabulary and over-long input; returns the length in tokens."""
    if len(model_input.chunks) > limits.max_context_length:
        rule = f"at most {limits.max_context_length} chunks, the context of {limits.base_model!r} in tokens"
        raise InvalidArgumentError.must_be(f"{field}.chunks", rule, len(model_input.chunks), reason="BAD_LENGTH")
    length = 0
    for i, chunk in enumerate(model_input.chunks):
        check_text(f"{field}.chunks[{i}]", chunk)
        check_vocabulary(f"{field}.chunks[{i}].encoded_text.tokens", content_ids(chunk), limits.vocab_size)
        length += positions(chunk)
    if not 1 <= length <= limits.max_context_length:
        rule = f"from 1 to {limits.max_context_length} tokens, the context of {limits.base_model!r}"
        raise InvalidArgumentError.must_be(field, rule, length, reason="BAD_LENGTH")
    return length


def _check_loss_inputs(
    field: str, inputs: Mapping[str, data_pb2.Tensor], length: int, spec: LossSpec, vocab_size: int
) -> dict[str, npt.NDArray[Any]]:
    for name in spec.required:
        if name not in inputs:
            raise InvalidArgumentError.at(f'{field}["{name}"]', f"required by {spec.name}")
    known = (*spec.required, *spec.optional, *spec.by_token)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in inputs:
        path = f'{field}["{name[:100]}"]'
        if name not in known:
            raise InvalidArgumentError.must_be(path, f"one of {', '.join(known)} for {spec.name}", quoted(name))
        arrays[name] = _array(path, inputs[name], integers=name in _INTEGER_INPUTS)
    targets = arrays["target_tokens"]
    path = f'{field}["target_tokens"]'
    if targets.ndim not in (1, 2) or targets.shape[0] != length or 0 in targets.shape:
        rule = f"of shape [{length}] or [{length}, K], one row per input position"
        raise InvalidArgumentError.must_be(path, rule, str(list(targets.shape)), reason="BAD_SHAPE")
    check_vocabulary(path, targets, vocab_size)
    for name, array in arrays.items():
        if array.shape != targets.shape:
            rule, got = f"of the shape of target_tokens, {list(targets.shape)}", str(list(array.shape))
            raise InvalidArgumentError.must_be(f'{field}["{name}"]', rule, got, reason="BAD_SHAPE")
    return arrays


def _check_thresholds(
    field: str, thresholds: Mapping[str, npt.NDArray[np.float32]], options: Mapping[str, float]
) -> None:
    """Refuses negative thresholds of single tokens, and a lower one above its upper one."""
    for name, array in thresholds.items():
        if (array < 0).any():
            raise InvalidArgumentError.must_be(f'{field}["{name}"]', "at least 0", array.min())
    if thresholds:
        low, high = (thresholds.get(name, np.float32(options[name])) for name in (CLIP_LOW, CLIP_HIGH))
        if np.any(low > high):
            name = next(iter(thresholds))
            rule = f"such that {CLIP_LOW} is at most {CLIP_HIGH} at every token"
            raise InvalidArgumentError.must_be(f'{field}["{name}"]', rule)


def check_tensor(field: str, tensor: data_pb2.Tensor, dtype: npt.DTypeLike, *, unlisted: int = 0) -> npt.NDArray[Any]:
    """Refuses a broken tensor and one of another dtype; returns its array, with `unlisted` where it is sparse."""
    try:
        array = to_array(tensor, unlisted=unlisted)
    except ValueError as error:
        raise InvalidArgumentError.at(field, str(error), reason="BAD_TENSOR") from None
    if array.dtype != dtype:
        raise InvalidArgumentError.must_be(field, f"of dtype {np.dtype(dtype)}", str(array.dtype), reason="BAD_DTYPE")
    return array


def _array(field: str, tensor: data_pb2.Tensor, *, integers: bool) -> npt.NDArray[Any]:
    if not integers and tensor.dtype == data_pb2.DATA_TYPE_INT64:
        array = check_tensor(field, tensor, np.int64)
        beyond = array[(array < -_EXACT_IN_FLOAT32) | (array > _EXACT_IN_FLOAT32)]
        if beyond.size:
            rule = f"float32, or int64 from {-_EXACT_IN_FLOAT32} to {_EXACT_IN_FLOAT32}, which float32 holds exactly"
            raise InvalidArgumentError.must_be(field, rule, int(beyond[0]), reason="BAD_DTYPE")
        return array
    array = check_tensor(field, tensor, np.int64 if integers else np.float32)
    if not integers and not np.isfinite(array).all():
        raise InvalidArgumentError.must_be(field, "finite numbers", "NaN or infinity", reason="NOT_FINITE")
    return array


def check_vocabulary(field: str, tokens: npt.NDArray[np.int64], vocab_size: int) -> None:
    """Refuses token ids outside the vocabulary."""
    outside = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if outside.size:
        at, token = outside[0], tokens.reshape(-1)[outside[0]]
        rule, got = f"token ids from 0 to {vocab_size - 1}", f"{token} at position {at}"
        raise InvalidArgumentError.must_be(field, rule, got, reason="TOKEN_OUT_OF_RANGE")
