"""The `tinker://` URI of a checkpoint, and the only parser of it.

Full form `tinker://<training_run_id>/weights/<name>`, `.../sampler_weights/<name>` or `.../external_weights/<name>`;
the two-part form `tinker://<training_run_id>/<name>` is accepted too and leaves open which of the first two kinds is
meant, for the caller's context to decide.
A `TinkerPath` that exists is valid: no segment can leave its directory or be empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class CheckpointKind(StrEnum):
    """Kind of a checkpoint, as the middle part of its path has it."""

    WEIGHTS = "weights"
    """A training checkpoint: it can be trained further and sampled."""

    SAMPLER_WEIGHTS = "sampler_weights"
    """A checkpoint for sampling only."""

    EXTERNAL_WEIGHTS = "external_weights"
    """An adapter to be downloaded and used elsewhere."""


_SCHEME = "tinker://"
_RUN_ID = re.compile(r"[A-Za-z0-9._:-]{1,200}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_FORMS = "tinker://<training_run_id>/weights/<name> or tinker://<training_run_id>/sampler_weights/<name>"
_SHORT_KINDS = (CheckpointKind.WEIGHTS, CheckpointKind.SAMPLER_WEIGHTS)
"""What the two-part form can mean."""


@dataclass(frozen=True)
class TinkerPath:
    """One checkpoint of one training run; `kind` is None in the two-part form. Invalid parts raise ValueError."""

    training_run_id: str
    kind: CheckpointKind | None
    name: str

    def __post_init__(self) -> None:
        check_run_id(self.training_run_id)
        check_checkpoint_name(self.name)
        if self.kind is None and self.name in _SHORT_KINDS:
            raise _not_a_path(f"{_SCHEME}{self.training_run_id}/{self.name}")
        if self.kind is not None and self.kind not in tuple(CheckpointKind):
            raise ValueError(f"checkpoint kind: must be one of {', '.join(CheckpointKind)} (got {self.kind!r})")

    @classmethod
    def parse(cls, text: str) -> TinkerPath:
        """Reads a URI; raises ValueError with a sentence for anything but the forms above."""
        if not text.startswith(_SCHEME):
            raise _not_a_path(text)
        match text.removeprefix(_SCHEME).split("/"):
            case [run_id, name]:
                return cls(run_id, None, name)
            case [run_id, ("weights" | "sampler_weights" | "external_weights") as kind, name]:
                return cls(run_id, CheckpointKind(kind), name)
        raise _not_a_path(text)

    @property
    def checkpoint_id(self) -> str:
        """`<kind>/<name>`; the bare name in the two-part form."""
        return self.name if self.kind is None else f"{self.kind}/{self.name}"

    def __str__(self) -> str:
        return f"{_SCHEME}{self.training_run_id}/{self.checkpoint_id}"


def check_checkpoint_name(name: str) -> None:
    """Raises ValueError unless `name` is 1 to 200 characters of [A-Za-z0-9._-] and neither "." nor ".."."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        rule = "must be a checkpoint name: 1 to 200 characters of [A-Za-z0-9._-], not '.' or '..'"
        raise ValueError(f"{rule} (got {_shown(name)})")


def check_run_id(training_run_id: str) -> None:
    """Raises ValueError unless `training_run_id` is 1 to 200 characters of [A-Za-z0-9._:-] and neither "." nor ".."."""
    if not _RUN_ID.fullmatch(training_run_id) or training_run_id in (".", ".."):
        rule = "must be a training run id: 1 to 200 characters of [A-Za-z0-9._:-], not '.' or '..'"
        raise ValueError(f"{rule} (got {_shown(training_run_id)})")


def _not_a_path(text: str) -> ValueError:
    return ValueError(f"must be a tinker path, {_FORMS} (got {_shown(text)})")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:120]}…")
