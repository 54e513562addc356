"""Unknown fields of a JSON body whose value is empty: they say nothing, so they are left out and counted.

Clients gain fields from release to release, and send most of them as null, false or an empty list until somebody uses
them. A field with a value that says something is refused by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

MOST_FAULTS = 10_000
"""Of a body whose unknown fields are looked at one by one."""

MOST_ROUNDS = 8
"""More than objects of several kinds lie in each other in any body."""

EMPTY_VALUES: tuple[Any, ...] = (None, False, 0, "", [], {})

Location = tuple[int | str, ...]
JsonT = TypeVar("JsonT", bound=BaseModel)


def is_ignored(fault: ErrorDetails) -> bool:
    """Whether a fault is an unknown field with an empty value."""
    return fault["type"] == "extra_forbidden" and not fault["input"]


def parse_without_empty_fields(content: bytes, fields: type[JsonT]) -> tuple[JsonT, int]:
    """Reads a JSON object; unknown fields with an empty value are left out and counted.

    An object with another fault keeps its fields. Where a value may be one of several kinds of objects, each kind has
    its faults, and those of the wrong kinds name fields that the right kind has.

    Raises:
        ValidationError: what is wrong beside them.
    """
    removed, body = 0, None
    for _ in range(MOST_ROUNDS):
        try:
            return fields.model_validate_json(content), removed
        except ValidationError as error:
            locations = _removable(error.errors(include_url=False)) if error.error_count() <= MOST_FAULTS else []
            if not locations:
                raise
            body = body if removed else from_json(content)
            here = sum(_remove(body, location) for location in locations)
            if not here:
                raise
            removed += here
            content = to_json(body, inf_nan_mode="constants")
    return fields.model_validate_json(content), removed


def _removable(faults: Iterable[ErrorDetails]) -> list[Location]:
    """Locations of the fields that may be left out: in objects without another fault, and in the body itself."""
    empty: defaultdict[Location, list[Location]] = defaultdict(list)
    faulty: set[Location] = set()
    for fault in faults:
        location = fault["loc"]
        if is_ignored(fault):
            empty[location[:-1]].append(location)
        else:
            faulty.update(location[:length] for length in range(1, len(location)))
    return [location for parent, locations in empty.items() if parent not in faulty for location in locations]


def _remove(body: Any, location: Location) -> bool:
    """Removes a field if it is there; names of kinds, which stand between the steps of a location, are skipped."""
    *steps, name = location
    for step in steps:
        if isinstance(body, dict):
            body = body.get(step, body)
        elif isinstance(body, list) and isinstance(step, int):
            body = body[step]
    if not isinstance(body, dict) or body.get(name, True):
        return False
    del body[name]
    return True
