"""Snapshots in the cache of huggingface_hub: directories of links into the blobs of the same repository.

models--NAME/snapshots/REVISION/FILE  ->  models--NAME/blobs/HASH
"""

from __future__ import annotations

from pathlib import Path


def blob_of(link: Path) -> Path | None:
    """The blob that a link in a snapshot, or below one, ends at; None if it ends anywhere but in its own repository."""
    directory, target = link.parent.resolve(), link.resolve()
    snapshots = (place for place in (directory, *directory.parents) if place.parent.name == "snapshots")
    repositories = [snapshot.parent.parent for snapshot in snapshots]
    return target if any(target.parent == repository / "blobs" for repository in repositories) else None
