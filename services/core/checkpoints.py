"""Where checkpoints live: one directory each, visible whole or not at all, never changed once it is visible.

A location is a relative path, `<training_run_id>/<kind>/<name>/<seq_id>`. It holds the seq_id of the save that wrote
it, so overwriting a name writes beside the old directory, and whoever has pinned the old one keeps reading it. Which
location a name stands for is the catalog's to say.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.core.errors import AlreadyExistsError, NotFoundError
from services.core.files import partial_beside, sync_directory, sync_tree


class CheckpointStore:
    """Checkpoint directories below one root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def write(self, location: str) -> Iterator[Path]:
        """Yields an empty directory to fill; on a clean exit it becomes `location`, on an exception it is gone.

        Raises:
            AlreadyExistsError: there is a checkpoint at `location`.
        """
        target = self._root / location
        if target.exists():
            raise AlreadyExistsError(f"there is a checkpoint at {location} already", reason="CHECKPOINT_EXISTS")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_beside(target)
        partial.mkdir()
        try:
            yield partial
            sync_tree(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync_directory(target.parent)

    def exists(self, location: str) -> bool:
        """Whether there is a checkpoint at `location`."""
        return (self._root / location).is_dir()

    def open(self, location: str) -> Path:
        """The directory of a checkpoint.

        Raises:
            NotFoundError: there is none at `location`.
        """
        directory = self._root / location
        if not directory.is_dir():
            raise NotFoundError(f"the files of checkpoint {location} are gone", reason="CHECKPOINT_NOT_FOUND")
        return directory

    def delete(self, location: str) -> None:
        """Removes a checkpoint; nothing happens if there is none."""
        directory = self._root / location
        if directory.is_dir():
            doomed = partial_beside(directory)
            directory.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def size_bytes(self, location: str) -> int:
        """Bytes of all files of a checkpoint."""
        return sum(path.stat().st_size for path in self.open(location).rglob("*") if path.is_file())
