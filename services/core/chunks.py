"""Chunks of a model input: how many positions one takes, and what stands at each position.

Both engines carry a sequence as int64 content ids, one per position: a token id for text, a negative number for a
position of an image. Prefix caching and prefix sharing compare content ids and nothing else, so equal ids must mean
equal content: those of an image come from a digest of its bytes, never from a placeholder token.

Only text is served today: `check_text` refuses everything else, and `text_ids` is what the engines read.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from services.core.errors import InvalidArgumentError
from tinker_proto.v1 import data_pb2

ContentIds = npt.NDArray[np.int64]


def positions(chunk: data_pb2.Chunk) -> int:
    """Positions that a chunk takes: its tokens, or what the client expects of an image (0 where it does not say)."""
    if chunk.WhichOneof("content") == "image":
        return max(chunk.image.expected_tokens, 0)
    return len(chunk.encoded_text.tokens)


def length(model_input: data_pb2.ModelInput) -> int:
    """Positions of all chunks of a model input."""
    return sum(positions(chunk) for chunk in model_input.chunks)


def content_ids(chunk: data_pb2.Chunk) -> ContentIds:
    """Content ids of a chunk, int64 [positions]: two chunks have equal ids only where they have equal content.

    Raises:
        ValueError: an image that does not say how many positions it takes: it would have no ids.
    """
    if chunk.WhichOneof("content") != "image":
        return np.array(chunk.encoded_text.tokens, dtype=np.int64)
    if positions(chunk) == 0:
        raise ValueError("the content ids of an image are known only with expected_tokens")
    # One stream of digest bytes for the whole image: every position has 63 bits of its own.
    kind = chunk.image.format.encode()
    digest = hashlib.shake_256(b"%d:%b%b" % (len(kind), kind, chunk.image.data)).digest(8 * positions(chunk))
    return np.frombuffer(digest, dtype="<i8").astype(np.int64) | np.iinfo(np.int64).min


def check_text(field: str, chunk: data_pb2.Chunk) -> None:
    """Refuses a chunk that is not text.

    Args:
        field: path of the chunk in the request, e.g. "prompt.chunks[0]".
        chunk: the chunk.

    Raises:
        InvalidArgumentError: it is an image (IMAGE_NOT_SUPPORTED), or has no content.
    """
    content = chunk.WhichOneof("content")
    if content == "image":
        rule = "encoded_text, because the base model is text-only"
        raise InvalidArgumentError.must_be(f"{field}.image", rule, "an image", reason="IMAGE_NOT_SUPPORTED")
    if content is None:
        raise InvalidArgumentError.must_be(field, "encoded_text", "no content")


def text_ids(field: str, model_input: data_pb2.ModelInput) -> ContentIds:
    """Content ids of a model input whose chunks are all text, int64 [length].

    Args:
        field: path of the model input in the request, for errors.
        model_input: the model input.

    Raises:
        InvalidArgumentError: a chunk is not text.
    """
    for index, chunk in enumerate(model_input.chunks):
        check_text(f"{field}.chunks[{index}]", chunk)
    return np.concatenate([np.empty(0, np.int64), *map(content_ids, model_input.chunks)])
