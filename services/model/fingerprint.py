"""Fingerprint of a base model: tells two models apart that have one name.

Three parts of 16 hexadecimal digits each, of SHA-256:

    configuration    config.json without the version that wrote it
    tokenizer        the tokenizer's files
    weights          name, dtype and shape of every tensor, and samples of its bytes: all of a tensor up to 1 MiB, of a
                     larger one 64 blocks of 16 KiB at equal distances

Where the files are and how tensors are spread over safetensors files does not matter. Weights in another format are
read in whole. Not noticed is a change that spares all sampled blocks, such as of a few rows of a large embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.core.errors import FailedPreconditionError
from services.core.storage.files import sha256_of

BLOCKS = 64
BLOCK_BYTES = 16 << 10

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file, in the order in which transformers prefers them; <file>.index.json lists several."""

_PARTS = ("configuration", "tokenizer", "weights")
_WRITERS = ("transformers_version", "_name_or_path")
"""Keys of config.json that say who wrote it and where."""


class BaseModelChangedError(FailedPreconditionError):
    """Something was made with another base model of the same name."""


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of a base model that is served, and of those whose checkpoints and runs it takes for its own."""

    value: str

    accepted: frozenset[str] = frozenset()
    """Fingerprints that the operator declares to be of the same model."""

    def check(self, other: str, what: str) -> None:
        """Checks that something was made with this base model, as far as it says.

        Args:
            other: fingerprint of the base model that it was made with; "" if it has none.
            what: the thing, for the message.

        Raises:
            BaseModelChangedError: it was made with another one.
        """
        if not other or not self.value or other == self.value or other in self.accepted:
            return
        raise BaseModelChangedError(
            f"{what} is of another base model of the same name: its fingerprint is {other}, and that of the model "
            f"served is {self.value} ({_difference(other, self.value)}); serve the model that it is of, or start "
            f"trainers and samplers with --accepted-fingerprints {other}",
            reason="BASE_MODEL_CHANGED",
        )


def fingerprint_of(directory: Path, config: bytes, tokenizer: Mapping[str, bytes]) -> str:
    """The fingerprint of a base model.

    Args:
        directory: the model directory, for its weights.
        config: content of its config.json.
        tokenizer: content of its tokenizer's files by name.
    """
    content = {key: value for key, value in json.loads(config).items() if key not in _WRITERS}
    parts = (
        [json.dumps(content, sort_keys=True).encode()],
        (f"{name} {hashlib.sha256(data).hexdigest()}\n".encode() for name, data in sorted(tokenizer.items())),
        (f"{name} {digest}\n".encode() for name, digest in sorted(_weights(directory).items())),
    )
    return "-".join(_digest(part) for part in parts)


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()[:16]


def _weights(directory: Path) -> dict[str, str]:
    """Digests by tensor; of a file that is not in safetensors' format, one by its name."""
    digests: dict[str, str] = {}
    for path in _weight_files(directory):
        digests |= _tensors(path) if path.suffix == ".safetensors" else {path.name: sha256_of(path)}
    return digests


def _weight_files(directory: Path) -> list[Path]:
    """The files that transformers reads the weights from."""
    for name in WEIGHT_FILES:
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            files = set(json.loads(index.read_bytes())["weight_map"].values())
            return [directory / file for file in sorted(files)]
    return sorted(path for path in directory.iterdir() if path.suffix in (".safetensors", ".bin"))


def _tensors(path: Path) -> dict[str, str]:
    """Digests of the tensors of a safetensors file: eight bytes of length, a header in JSON, and the bytes of all."""
    digests = {}
    with open(path, "rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            begin, end = tensor["data_offsets"]
            digest = hashlib.sha256(f"{tensor['dtype']} {tensor['shape']} ".encode())
            for offset, size in _blocks(end - begin):
                file.seek(8 + length + begin + offset)
                digest.update(file.read(size))
            digests[name] = digest.hexdigest()
    return digests


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of what is read of so many bytes: all, or blocks from the first byte to the last."""
    if size <= BLOCKS * BLOCK_BYTES:
        yield 0, size
        return
    for index in range(BLOCKS):
        yield index * (size - BLOCK_BYTES) // (BLOCKS - 1), BLOCK_BYTES


def _difference(one: str, other: str) -> str:
    parts = zip(_PARTS, one.split("-"), other.split("-"), strict=False)
    return f"other {' and '.join(name for name, a, b in parts if a != b)}"
