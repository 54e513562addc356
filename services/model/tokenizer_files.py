"""A base model's tokenizer files, where the gateway finds them."""

from __future__ import annotations

from services.core.storage.blobs import BlobStore
from services.model.base import BaseModel
from tinker_proto.internal.v1 import job_pb2


async def store_tokenizer(base: BaseModel, blobs: BlobStore) -> str:
    """Puts the tokenizer's files where the gateway finds them; returns the reference."""
    files = job_pb2.TokenizerFiles(files=base.tokenizer_files)
    return await blobs.put_once("tokenizers", files.SerializeToString(deterministic=True))
