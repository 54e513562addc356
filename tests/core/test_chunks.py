"""A model input as positions and content ids: what is counted, what is told apart, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from services.core.chunks import check_text, content_ids, length, positions, text_ids
from services.core.errors import InvalidArgumentError
from tinker_proto.v1 import data_pb2


def text(*tokens: int) -> data_pb2.Chunk:
    return data_pb2.Chunk(encoded_text=data_pb2.EncodedTextChunk(tokens=tokens))


def image(data: bytes, expected_tokens: int | None = 4, kind: str = "png") -> data_pb2.Chunk:
    return data_pb2.Chunk(image=data_pb2.ImageChunk(data=data, format=kind, expected_tokens=expected_tokens))


def test_a_text_chunk_takes_a_position_a_token_and_its_ids_are_its_tokens() -> None:
    model_input = data_pb2.ModelInput(chunks=[text(7, 0, 2**31 - 1), text(), text(7)])
    assert [positions(chunk) for chunk in model_input.chunks] == [3, 0, 1]
    assert length(model_input) == 4
    ids = text_ids("prompt", model_input)
    assert ids.dtype == np.int64
    assert ids.tolist() == [7, 0, 2**31 - 1, 7]


def test_an_input_without_chunks_has_no_positions() -> None:
    assert length(data_pb2.ModelInput()) == 0
    assert text_ids("prompt", data_pb2.ModelInput()).shape == (0,)


def test_an_image_takes_as_many_positions_as_the_client_expects() -> None:
    assert [positions(image(b"a", count)) for count in (5, 1, None, -3)] == [5, 1, 0, 0]
    assert positions(data_pb2.Chunk()) == 0


def test_two_images_differ_at_every_position_and_one_equals_itself() -> None:
    one = content_ids(image(b"a", 300))
    assert one.dtype == np.int64
    assert one.shape == (300,)
    assert (one < 0).all(), "no position of an image is a token"
    assert len(set(one.tolist())) == 300
    assert one.tolist() == content_ids(image(b"a", 300)).tolist()
    for other in (
        image(b"b", 300),
        image(b"a\0", 300),
        image(b"", 300),
        image(b"a", 300, kind="jpeg"),
        image(b"", 300, kind="pnga"),
    ):
        assert not (content_ids(other) == one).any()


@pytest.mark.parametrize("count", [None, 0, -1])
def test_an_image_of_unknown_size_has_no_content_ids(count: int | None) -> None:
    with pytest.raises(ValueError, match="expected_tokens"):
        content_ids(image(b"a", count))


@pytest.mark.parametrize(
    ("chunk", "field", "reason"),
    [
        (image(b"a"), "prompt.chunks[1].image", "IMAGE_NOT_SUPPORTED"),
        (data_pb2.Chunk(), "prompt.chunks[1]", "INVALID_ARGUMENT"),
    ],
    ids=["image", "no content"],
)
def test_what_is_no_text_is_refused_by_its_path(chunk: data_pb2.Chunk, field: str, reason: str) -> None:
    check_text("prompt.chunks[0]", text(1))
    with pytest.raises(InvalidArgumentError, match="must be encoded_text") as caught:
        text_ids("prompt", data_pb2.ModelInput(chunks=[text(1), chunk]))
    assert (caught.value.violations[0].field, caught.value.reason) == (field, reason)
