"""Unnamed weights: what a run has saved for a sampling session, without a name. Their names, location and loss.

They belong to the sampling sessions that are opened on them, and are no checkpoint: no list has them, and only a
sampling session can be opened at their path. services.core.catalog.unnamed_weights says how long they are kept.
"""

from __future__ import annotations

from services.core.errors import NotFoundError
from services.core.retention import KEEP_NEWEST_WEIGHTS, KEEP_UNUSED_WEIGHTS

_PART = "/unnamed/"
"""In their locations; a location of a checkpoint has its kind there."""


def weights_name(seq_id: int) -> str:
    """The last part of the path of sampler weights that were saved without a name."""
    return f"seq-{seq_id}"


def weights_location(run_id: str, seq_id: int) -> str:
    """Where the files of unnamed weights are in the checkpoint store."""
    return f"{run_id}{_PART}{weights_name(seq_id)}/{seq_id}"


def location_of_name(run_id: str, name: str) -> str:
    """The location of the unnamed weights that have this last part in their path; "" if they have another form."""
    digits = name.removeprefix("seq-")
    known = digits.isascii() and digits.isdecimal() and name == weights_name(int(digits))
    return weights_location(run_id, int(digits)) if known else ""


def is_unnamed(location: str) -> bool:
    """Whether a location is one of unnamed weights."""
    return _PART in location


def weights_gone_error(location: str) -> NotFoundError:
    """The error of who needs unnamed weights that have been removed."""
    minutes = KEEP_UNUSED_WEIGHTS.total_seconds() / 60
    return NotFoundError(
        f"the unnamed weights {location} are gone: they are kept for {minutes:.0f} minutes after their last use, and "
        f"the newest {KEEP_NEWEST_WEIGHTS} of a training run while its session lives; open a sampling client on new "
        "ones (save_weights_and_get_sampling_client), and save weights that are needed for longer under a name "
        "(save_weights_for_sampler)",
        reason="UNNAMED_WEIGHTS_GONE",
    )
