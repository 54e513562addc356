"""Labels of a session under which what the SDK says beside its user_metadata is kept."""

from __future__ import annotations

from collections.abc import Mapping

TAGS, PROJECT, DISPLAY_NAME = "tinker.tags", "tinker.project_id", "tinker.display_name"


def own_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that the user has given."""
    return {name: value for name, value in labels.items() if name not in (TAGS, PROJECT, DISPLAY_NAME)}
