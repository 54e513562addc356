"""From a storage's URL to the storage."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from services.core.config import CommonSettings
from services.core.errors import InvalidArgumentError, quoted
from services.core.installation import install_command
from services.core.storage.interface import Storage
from services.core.storage.local import LocalStorage
from services.core.storage.reserve import Reserve, RoomForWork


def open_storage(settings: CommonSettings) -> Storage:
    """The storage of `settings.storage_url`; the data directory if that is empty.

    Raises:
        InvalidArgumentError: it is neither file:///directory nor s3://bucket/prefix.
    """
    parts = urlsplit(settings.storage_url)
    if not settings.storage_url:
        return LocalStorage(settings.data_dir, Reserve(settings.data_dir, settings.reserve_bytes))
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return LocalStorage(Path(parts.path), Reserve(Path(parts.path), settings.reserve_bytes))
    if parts.scheme == "s3" and parts.netloc and not parts.query and not parts.fragment:
        try:
            from services.core.storage.s3 import S3Storage
        except ModuleNotFoundError as error:
            message = f"s3:// needs the package {error.name}: {install_command('s3')}"
            raise InvalidArgumentError.at("storage_url", message, reason="BAD_SETTING") from error
        return S3Storage(settings.storage_url, settings.data_dir / "cache")
    rule = "file:///directory or s3://bucket/prefix"
    raise InvalidArgumentError.must_be("storage_url", rule, quoted(settings.storage_url), reason="BAD_SETTING")


def room_for_work(settings: CommonSettings) -> RoomForWork:
    """The check of the disks that new work grows: of the data directory, and of a storage that is a directory."""
    parts = urlsplit(settings.storage_url)
    directories = [settings.data_dir, *([Path(parts.path)] if parts.scheme == "file" else [])]
    return RoomForWork([Reserve(directory, settings.reserve_bytes) for directory in directories])
