"""A base model's tokenizer files in the blob store, from which the gateway reads them."""

from __future__ import annotations

from collections.abc import Mapping

from services.core.storage.blobs import BlobStore
from tinker_proto.internal.v1 import job_pb2


async def store_tokenizer(files: Mapping[str, bytes], blobs: BlobStore) -> str:
    """Stores a tokenizer's files, content by file name; returns the reference that a worker announces."""
    message = job_pb2.TokenizerFiles(files=files)
    return await blobs.put_once("tokenizers", message.SerializeToString(deterministic=True))
