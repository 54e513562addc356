"""Writes to a directory tree that a crash leaves whole or absent.

Writers put files beside the target, flush them to the disk, and rename: a reader sees the old state or the new one,
never a part.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

PARTIAL_PREFIX = ".partial-"
MOST_TRIES = 100
"""After so many, it is no race: a link to nowhere, or a file, stands in the way."""


def partial_beside(target: Path) -> Path:
    """A fresh name in the target's directory that no reader looks at."""
    return target.parent / f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"


def make_partial(target: Path, make: Callable[[Path], object]) -> Path:
    """Makes an empty partial file or directory beside `target`; its parents may be removed while they are empty.

    Raises:
        OSError: it cannot be made, however often it is tried.
    """
    tries = 0
    while True:
        partial = partial_beside(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            make(partial)
        except (FileNotFoundError, FileExistsError):  # a parent has gone; the latter, while mkdir looked at it
            tries += 1
            if tries == MOST_TRIES:
                raise
        else:
            return partial


def remove_empty_parents(path: Path, root: Path) -> None:
    """Removes the directories between `root` and a path that is gone, as far as they are empty now."""
    for parent in path.parents:
        if parent == root or not parent.is_relative_to(root):
            return
        try:
            parent.rmdir()
        except OSError:  # not empty, or removed concurrently
            return


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Flushes a file's content."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Flushes a directory's entries, so that a rename in it survives a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Flushes every file and directory below `directory`, itself included."""
    for parent, _, names in os.walk(directory):
        for name in names:
            sync_file(Path(parent) / name)
        sync_directory(Path(parent))


def write_whole(target: Path, content: bytes) -> None:
    """Writes one file, visible whole or not at all; replaces what was there."""
    partial = make_partial(target, Path.touch)
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(target.parent)
