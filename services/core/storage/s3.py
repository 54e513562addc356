"""Storage in an S3-compatible bucket.

A file is one object, which S3 shows whole or not at all. A directory's files are uploaded below a name that only this
attempt has, and the object `contents.json`, which lists them with size and SHA-256, is created last and only if there
is none: a directory exists exactly when its contents.json does, also when two workers write it at once. What is opened
is downloaded, verified, and kept in a local cache; credentials, region and endpoint come from the AWS_* variables.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError as ObjectExistsError
from obstore.exceptions import BaseError
from obstore.store import S3Store

from services.core.errors import AlreadyExistsError, DataLossError, UnavailableError
from services.core.storage.cache import StorageCache
from services.core.storage.files import sha256_of
from services.core.storage.interface import Stored, full_disk_named

CONTENTS = "contents.json"
DOWNLOAD_BYTES = 8 << 20

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Entry:
    """A file of a directory."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class _Contents:
    """Content of contents.json."""

    attempt: str
    files: Mapping[str, _Entry]


class S3Storage:
    """Files and directories below one prefix of one bucket; see services.core.storage.interface.Storage."""

    def __init__(self, url: str, cache: Path) -> None:
        """
        Args:
            url: s3://bucket/prefix.
            cache: a directory of this machine for what is opened and what is being written.
        """
        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        allow_http = endpoint.startswith("http://")
        self._store: Any = S3Store.from_url(
            url, checksum_algorithm="SHA256", client_options={"allow_http": allow_http, "timeout": "10 minutes"}
        )
        self._staging = cache / "staging"
        self._cache = StorageCache(cache / "opened")

    def put(self, key: str, content: bytes) -> None:
        """See Storage."""
        with _named(key):
            obstore.put(self._store, key, content)

    @contextmanager
    def write_file(self, key: str) -> Iterator[Path]:
        """See Storage."""
        with self._staged(key) as staging:
            yield staging / "file"
            with _named(key):
                obstore.put(self._store, key, staging / "file")

    def get(self, key: str) -> bytes:
        """See Storage."""
        with _named(key):
            return bytes(obstore.get(self._store, key).bytes())

    def get_part(self, key: str, start: int, length: int) -> bytes:
        """See Storage."""
        with _named(key):
            size = obstore.head(self._store, key)["size"]
            length = min(length, size - start)
            return bytes(obstore.get_range(self._store, key, start=start, length=length)) if length > 0 else b""

    def open_file(self, key: str) -> Path:
        """See Storage."""
        return self._cache.opened(key, lambda target: self._download(key, target))

    def has_file(self, key: str) -> bool:
        """See Storage."""
        try:
            with _named(key):
                obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def delete_file(self, key: str) -> None:
        """See Storage."""
        with _named(key):
            obstore.delete(self._store, key)

    def files(self, prefix: str) -> Iterator[Stored]:
        """See Storage."""
        with _named(prefix):
            for page in obstore.list(self._store, prefix):
                for found in page:
                    yield Stored(found["path"], found["size"], found["last_modified"])

    @contextmanager
    def write_directory(self, key: str) -> Iterator[Path]:
        """See Storage."""
        if self.has_directory(key):
            raise _taken(key)
        with self._staged(key) as staging:
            yield staging
            attempt = uuid.uuid4().hex
            sources = sorted(staging.iterdir())
            files = {path.name: _Entry(path.stat().st_size, sha256_of(path)) for path in sources}
            with _named(key):
                for path in sources:
                    obstore.put(self._store, f"{key}/{attempt}/{path.name}", path)
                listed = json.dumps(asdict(_Contents(attempt, files))).encode()
                try:
                    obstore.put(self._store, f"{key}/{CONTENTS}", listed, mode="create")
                except ObjectExistsError:
                    obstore.delete(self._store, [f"{key}/{attempt}/{name}" for name in files])
                    raise _taken(key) from None

    def open_directory(self, key: str) -> Path:
        """See Storage."""
        contents = self._contents(key)
        return self._cache.opened(f"{key}/{contents.attempt}", lambda target: self._fetch(key, contents, target))

    def has_directory(self, key: str) -> bool:
        """See Storage."""
        return self.has_file(f"{key}/{CONTENTS}")

    def directory_sizes(self, key: str) -> Mapping[str, int]:
        """See Storage."""
        return {name: entry.size_bytes for name, entry in self._contents(key).files.items()}

    def read(self, key: str, name: str, start: int, length: int) -> bytes:
        """See Storage."""
        contents = self._contents(key)
        if name not in contents.files:
            raise FileNotFoundError(f"{key}/{name}")
        length = min(length, contents.files[name].size_bytes - start)
        if length <= 0:
            return b""
        with _named(key):
            return bytes(obstore.get_range(self._store, f"{key}/{contents.attempt}/{name}", start=start, length=length))

    def delete_directory(self, key: str) -> None:
        """See Storage."""
        self.delete_file(f"{key}/{CONTENTS}")
        with _named(key):
            for file in list(self.files(key)):
                obstore.delete(self._store, file.key)

    def directories(self, prefix: str) -> Iterator[Stored]:
        """See Storage."""
        for file in self.files(prefix):
            if file.key.endswith(f"/{CONTENTS}"):
                key = file.key.removesuffix(f"/{CONTENTS}")
                yield Stored(key, sum(self.directory_sizes(key).values()), file.modified)

    def leftovers(self, older_than: timedelta) -> Iterator[Stored]:
        """See Storage: uploads of directories that have no contents.json, or one of another attempt."""
        newest = datetime.now(UTC) - older_than
        attempts: dict[str, str] = {}
        for prefix in ("checkpoints", "snapshots", "exports"):
            for file in self.files(prefix):
                key, _, rest = file.key.rpartition("/")
                directory, _, attempt = key.rpartition("/")
                if rest == CONTENTS or file.modified >= newest:
                    continue
                if directory not in attempts:
                    attempts[directory] = self._attempt(directory)
                if attempts[directory] != attempt:
                    yield file

    def delete_leftover(self, key: str) -> None:
        """See Storage."""
        self.delete_file(key)

    def _attempt(self, key: str) -> str:
        try:
            return self._contents(key).attempt
        except FileNotFoundError:
            return ""

    def _contents(self, key: str) -> _Contents:
        listed = self.get(f"{key}/{CONTENTS}")
        try:
            content = json.loads(listed)
            files = {name: _Entry(**entry) for name, entry in content["files"].items()}
            return _Contents(content["attempt"], files)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataLossError(f"{key}/{CONTENTS} is not a list of contents: {error}") from error

    def _fetch(self, key: str, contents: _Contents, target: Path) -> None:
        target.mkdir()
        for name, entry in contents.files.items():
            try:
                self._download(f"{key}/{contents.attempt}/{name}", target / name)
            except FileNotFoundError:
                raise DataLossError(f"{key}/{name} is missing") from None
            if sha256_of(target / name) != entry.sha256:
                raise DataLossError(f"{key}/{name} is corrupted: its SHA-256 is not the one in {CONTENTS}")

    def _download(self, key: str, target: Path) -> None:
        with _named(key), full_disk_named(key), open(target, "wb") as file:
            for block in obstore.get(self._store, key).stream(min_chunk_size=DOWNLOAD_BYTES):
                file.write(block)

    @contextmanager
    def _staged(self, key: str) -> Iterator[Path]:
        """A local directory in which something is written before it is uploaded."""
        self._staging.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=self._staging))
        try:
            with full_disk_named(key):
                yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Turns errors of the S3 client into platform errors; a missing object stays FileNotFoundError.

    Raises:
        UnavailableError: the storage cannot be reached, or refuses.
    """
    try:
        yield
    except ObjectExistsError:
        raise
    except (BaseError, PermissionError) as error:
        _log.error("storage failed", key=key, error=str(error).partition("\n\nDebug source")[0])
        message = f"the platform's storage cannot be reached or refuses ({type(error).__name__} at {key}); try again"
        raise UnavailableError(message, reason="STORAGE_UNAVAILABLE") from error


def _taken(key: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"there is a directory at {key} already", reason="CHECKPOINT_EXISTS")
