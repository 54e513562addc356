"""A base model's tokenizer as files: its own, byte for byte, and a copy that needs no transformers to be read.

Clients and merged models get the model's own files, because a tokenizer that transformers has read and written again
is not always the same tokenizer. The gateway, which has no transformers, reads the copy: what transformers makes of the
files, such as another pre-tokenizer than tokenizer.json has, is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.core.storage.blobs import BlobStore
from tinker_proto.internal.v1 import job_pb2

PATTERNS = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*.json",
    "vocab*.txt",
    "merges*.txt",
    "*.model",
    "tokenizer.model.*",
    "*.tiktoken",
    "tekken.json",
    "chat_template*.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""What a tokenizer's files are called in a model directory. Tokenizer classes add names of their own."""

MODEL_CONFIG = "config.json"


@dataclass(frozen=True)
class TokenizerFiles:
    """Files of one tokenizer: content by name relative to a directory, with "/" between its parts."""

    own: Mapping[str, bytes]
    """The model directory's."""

    model_config: bytes
    """The model's config.json, by which AutoTokenizer chooses the tokenizer's class."""

    resaved: Mapping[str, bytes]
    """As transformers writes the tokenizer that it has loaded."""

    @property
    def for_clients(self) -> dict[str, bytes]:
        """All that AutoTokenizer.from_pretrained needs in a directory."""
        return {MODEL_CONFIG: self.model_config, **self.own}


@dataclass(frozen=True)
class TokenizerBlobs:
    """References of a tokenizer's files in the blob store, as a worker announces them."""

    for_clients: str
    for_texts: str


def read_files(directory: Path, patterns: Iterable[str]) -> dict[str, bytes]:
    """The files in a directory whose relative names match one of the patterns of a shell."""
    paths = sorted({path for pattern in patterns for path in directory.glob(pattern) if path.is_file()})
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def write_files(files: Mapping[str, bytes], directory: Path) -> None:
    """Writes files into a directory, with the subdirectories that their names have."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


async def store_tokenizer(files: TokenizerFiles, blobs: BlobStore) -> TokenizerBlobs:
    """Stores a tokenizer's files; returns the references that a worker announces."""
    return TokenizerBlobs(await _stored(files.for_clients, blobs), await _stored(files.resaved, blobs))


async def _stored(files: Mapping[str, bytes], blobs: BlobStore) -> str:
    message = job_pb2.TokenizerFiles(files=files)
    return await blobs.put_once("tokenizers", message.SerializeToString(deterministic=True))
