"""Checkpoints as text: lines of a list, or all properties of one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from services.cli.output import adapter, age, labels, moment, print_properties, print_table, size

if TYPE_CHECKING:
    from tinker_client.types import Checkpoint


def print_checkpoints(checkpoints: list[Checkpoint], *, to_stderr: bool = False) -> None:
    """Prints a line for each."""
    now = datetime.now(UTC)
    print_table(
        ("TYPE", "SIZE", "PUBLIC", "CREATED", "EXPIRES", "PATH"),
        [
            (
                item.checkpoint_type,
                size(item.size_bytes),
                "yes" if item.public else "no",
                age(item.time, now),
                "never" if item.expires_at is None else age(item.expires_at, now),
                item.tinker_path,
            )
            for item in checkpoints
        ],
        to_stderr=to_stderr,
    )


def print_checkpoint(checkpoint: Checkpoint) -> None:
    """Prints all properties of one."""
    print_properties(
        f"Checkpoint {checkpoint.tinker_path}",
        {
            "Type": f"{checkpoint.checkpoint_type}, {_uses(checkpoint)}",
            "Base model": checkpoint.base_model,
            "Adapter": adapter(checkpoint.lora_config),
            "Size": size(checkpoint.size_bytes),
            "Created": moment(checkpoint.time, datetime.now(UTC)),
            "Expires": expiry(checkpoint),
            "Public": "yes: every user of the platform can read it" if checkpoint.public else "no",
            "Labels": labels(checkpoint.user_metadata),
        },
    )


def expiry(checkpoint: Checkpoint) -> str:
    """The time at which it is deleted, or "never"."""
    return "never" if checkpoint.expires_at is None else moment(checkpoint.expires_at, datetime.now(UTC))


def _uses(checkpoint: Checkpoint) -> str:
    if checkpoint.checkpoint_type == "training":
        return "can be loaded for training and sampled"
    return "can be sampled"
