"""checkpoint.json: what a checkpoint directory is, and the SHA-256 of every other file in it.

Written last. A file is verified against it before it is parsed, so a truncated or altered checkpoint is refused by the
file's name instead of being loaded in part.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.core.errors import DataLossError
from services.core.storage.checkpoint_store import MANIFEST_FILE
from services.core.storage.files import sha256_of
from services.model.adapter_config import AdapterConfig

FORMAT_VERSION = 1

DirectoryKind = Literal["training", "sampler", "external", "snapshot"]
"""Content of a directory: a training, sampler or external checkpoint, or a snapshot of a run."""


@dataclass(frozen=True)
class Manifest:
    """Content of checkpoint.json."""

    kind: DirectoryKind
    training_run_id: str
    base_model: str
    adapter: AdapterConfig
    operation: str
    """Name of the operation that wrote the checkpoint; of a snapshot, the last one whose effect it has."""

    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SHA-256 in hexadecimal by file name."""

    base_fingerprint: str = ""
    """Fingerprint of the base model; "" in manifests that were written without one."""

    @property
    def title(self) -> str:
        """What the directory is, for messages."""
        noun = "snapshot" if self.kind == "snapshot" else f"{self.kind} checkpoint"
        return f"the {noun} of operation {self.operation}"

    def write(self, directory: Path) -> None:
        """Describes the files that are in the directory now."""
        files = {path.name: sha256_of(path) for path in sorted(directory.iterdir())}
        content = {"format": FORMAT_VERSION, **dataclasses.asdict(dataclasses.replace(self, files=files))}
        (directory / MANIFEST_FILE).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads a directory's manifest.

        Raises:
            DataLossError: it is missing, cannot be parsed, or is of another format version.
        """
        path = directory / MANIFEST_FILE
        try:
            content = json.loads(path.read_bytes())
            version = content.pop("format")
            if version != FORMAT_VERSION:
                raise DataLossError(f"{path} has format {version}; this version reads format {FORMAT_VERSION}")
            return cls(**{**content, "adapter": AdapterConfig(**content["adapter"])})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataLossError(f"{path} is missing or not a checkpoint's manifest: {error}") from error

    def verified(self, directory: Path, file: str) -> Path:
        """The path of a file whose content is what was written.

        Raises:
            DataLossError: the file is missing, truncated or altered.
        """
        path = directory / file
        if not path.is_file():
            raise DataLossError(f"{path} is missing")
        if sha256_of(path) != self.files.get(file):
            raise DataLossError(f"{path} is corrupted: its SHA-256 is not the one in {MANIFEST_FILE}")
        return path
