"""What a worker tells about the base model that it has loaded."""

from __future__ import annotations

import os
import secrets
import socket

import torch

from services.core.blobs import BlobStore
from services.model.base import BaseModel
from tinker_proto.internal.v1 import job_pb2


def worker_name(kind: str) -> str:
    """A name for this process that no other has or will have."""
    return f"{kind}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def choose_device(setting: str) -> str:
    """The torch device of a `device` setting: auto is the GPU if there is one."""
    if setting != "auto":
        return setting
    return "cuda" if torch.cuda.is_available() else "cpu"


async def store_tokenizer(base: BaseModel, blobs: BlobStore) -> str:
    """Puts the tokenizer's files where the gateway finds them; returns the reference."""
    files = job_pb2.TokenizerFiles(files=base.tokenizer_files)
    return await blobs.put_once("tokenizers", files.SerializeToString(deterministic=True))
