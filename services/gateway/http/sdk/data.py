"""Tokens and arrays of the SDK as messages of tinker.v1, from protobuf and from JSON.

What has no counterpart here is refused by its path: audio, images by reference, text options of a loss. Spans that say
where tokens came from are accepted; no loss reads them: `stable_reinforce` has the log-probabilities in its inputs.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal, assert_never

import numpy as np
from pydantic import Field

from services.core.errors import InvalidArgumentError
from services.gateway.http.body import Fields
from services.gateway.http.sdk.fields import Int32, Int64
from tinker_proto.sdk.v1 import sdk_pb2
from tinker_proto.v1 import data_pb2, training_pb2

_TOKEN = np.dtype("<i4")
_TOKENS_AT_ONCE = 1 << 16
_ITEM_BYTES = {
    sdk_pb2.DATA_TYPE_FLOAT32: 4,
    sdk_pb2.DATA_TYPE_INT64: 8,
    sdk_pb2.DATA_TYPE_INT32: 4,
    sdk_pb2.DATA_TYPE_BFLOAT16: 2,
}
_CUSTOM = "losses are not carried out on the server; forward_backward_custom with a function works"

LossRequest = training_pb2.ForwardBackwardRequest | training_pb2.ForwardRequest


def fill_loss(request: LossRequest, sdk_request: sdk_pb2.ForwardBackwardRequest) -> None:
    """Fills a request with what the SDK has sent.

    Raises:
        InvalidArgumentError: something of it has no counterpart here.
    """
    if sdk_request.loss_fn == "custom":
        raise InvalidArgumentError.at("loss_fn", f"'custom' is not supported: {_CUSTOM}", reason="UNKNOWN_LOSS")
    request.loss_fn = sdk_request.loss_fn
    for name, value in sdk_request.loss_fn_config_v2.items():
        if value.WhichOneof("value") != "number":
            raise InvalidArgumentError.must_be(f'loss_fn_config["{name[:100]}"]', "a number", "a text")
        request.loss_fn_config[name] = value.number
    if not sdk_request.loss_fn_config_v2:
        request.loss_fn_config.update(sdk_request.loss_fn_config)
    for i, sdk_datum in enumerate(sdk_request.data):
        datum = request.data.add()
        for j, sdk_chunk in enumerate(sdk_datum.model_input):
            _fill_chunk(datum.model_input.chunks.add(), sdk_chunk, f"data[{i}].model_input.chunks[{j}]")
        for name, sdk_tensor in sdk_datum.loss_fn_inputs.items():
            _fill_tensor(datum.loss_fn_inputs[name], sdk_tensor)


def _fill_chunk(chunk: data_pb2.Chunk, sdk_chunk: sdk_pb2.Chunk, field: str) -> None:
    match sdk_chunk.WhichOneof("content"):
        case "encoded_text":
            content = sdk_chunk.encoded_text.tokens
            if len(content) % _TOKEN.itemsize:
                rule = f"{_TOKEN.itemsize} bytes for each token"
                got = f"{len(content)} bytes"
                raise InvalidArgumentError.must_be(f"{field}.tokens", rule, got, reason="BAD_TENSOR")
            tokens = np.frombuffer(content, _TOKEN)
            for at in range(0, len(tokens), _TOKENS_AT_ONCE):  # between which other threads run
                chunk.encoded_text.tokens.extend(tokens[at : at + _TOKENS_AT_ONCE].tolist())
        case "image":
            chunk.image.data, chunk.image.format = sdk_chunk.image.data, sdk_chunk.image.format
            if sdk_chunk.image.HasField("expected_tokens"):
                chunk.image.expected_tokens = sdk_chunk.image.expected_tokens
        case other:
            raise InvalidArgumentError.must_be(field, "encoded_text or image", other or "an empty chunk")


def _fill_tensor(tensor: data_pb2.Tensor, sdk_tensor: sdk_pb2.Tensor) -> None:
    """Copies a tensor; one without a shape has one dimension. What is wrong with it is found where all tensors are."""
    tensor.dtype = data_pb2.DataType.ValueType(sdk_tensor.dtype)
    tensor.shape.extend(sdk_tensor.shape)
    if sdk_tensor.WhichOneof("layout") == "csr":
        tensor.csr.values = sdk_tensor.csr.values
        tensor.csr.crow_indices = sdk_tensor.csr.crow_indices
        tensor.csr.col_indices = sdk_tensor.csr.col_indices
    elif sdk_tensor.WhichOneof("layout") == "dense":
        tensor.dense = sdk_tensor.dense
        if not sdk_tensor.shape and sdk_tensor.dtype in _ITEM_BYTES:
            tensor.shape.append(len(sdk_tensor.dense) // _ITEM_BYTES[sdk_tensor.dtype])


class TextChunk(Fields):
    """Tokens."""

    type: Literal["encoded_text"] = "encoded_text"
    tokens: list[Int32]


class ImageChunk(Fields):
    """An image, its file in base64."""

    type: Literal["image"]
    data: str
    format: str
    expected_tokens: Int32 | None = None


class AssetChunk(Fields):
    """An image by reference."""

    type: Literal["image_asset_pointer"]
    format: str
    location: str
    expected_tokens: Int32 | None = None


class ModelInput(Fields):
    """A sequence of chunks."""

    chunks: list[TextChunk | Annotated[ImageChunk | AssetChunk, Field(discriminator="type")]]

    def message(self, field: str) -> data_pb2.ModelInput:
        """The message; raises InvalidArgumentError for what has no counterpart here."""
        model_input = data_pb2.ModelInput()
        for i, chunk in enumerate(self.chunks):
            match chunk:
                case TextChunk():
                    model_input.chunks.add().encoded_text.tokens.extend(chunk.tokens)
                case ImageChunk():
                    model_input.chunks.add().image.CopyFrom(_image(chunk, f"{field}.chunks[{i}].data"))
                case AssetChunk():
                    rule = "encoded_text or image"
                    raise InvalidArgumentError.must_be(f"{field}.chunks[{i}]", rule, "an image by reference")
                case _:
                    assert_never(chunk)
        return model_input


class TensorFields(Fields):
    """An array."""

    data: list[Int64] | list[float]
    dtype: Literal["int64", "float32"]
    shape: list[Int64] | None = None
    sparse_crow_indices: list[Int64] | None = None
    sparse_col_indices: list[Int64] | None = None


def _image(chunk: ImageChunk, field: str) -> data_pb2.ImageChunk:
    try:
        content = base64.b64decode(chunk.data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgumentError.must_be(field, "base64") from None
    return data_pb2.ImageChunk(data=content, format=chunk.format, expected_tokens=chunk.expected_tokens)
