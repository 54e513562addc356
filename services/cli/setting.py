"""Settings as people read about them, made from the classes of `services.core.config`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from services.core.config import GROUPS, SERVICES, CommonSettings, Secret, Unit
from services.core.environment import flag_of, rule_of, variable_of

MASK = "***"
_BINARY_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"))


@dataclass(frozen=True)
class Setting:
    """One setting."""

    name: str
    default: Any
    """As JSON has it."""

    unit: str
    """Empty: it has none."""

    description: str
    value_name: str
    """Placeholder of the value in a help text: its choices, its unit, or its type."""

    rule: str
    """The rule of its values: "an integer from 0 to 65535"."""

    services: tuple[str, ...]
    """Services that read it."""

    group: str
    """Its readers, for a heading: "the gateway"."""

    is_switch: bool
    is_secret: bool

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return variable_of(self.name)

    @property
    def flag(self) -> str:
        """Its command-line flag."""
        return flag_of(self.name)


def settings_of(model: type[CommonSettings]) -> Iterator[Setting]:
    """The settings of a class, group by group."""
    for group in GROUPS:
        for name in group.__annotations__:
            if name in model.model_fields:
                yield _setting(name, model.model_fields[name], group)


def shown(value: object, unit: str = "") -> str:
    """A value as it can be given; a number of bytes also in a larger unit: "67108864 (64 MiB)"."""
    if isinstance(value, bool):
        return str(value).lower()
    if unit == "bytes" and isinstance(value, int):
        for factor, name in _BINARY_UNITS:
            if value and value % factor == 0:
                return f"{value} ({value // factor} {name})"
    return f"{value:g}" if isinstance(value, float) else str(value)


def without_credentials(url: str) -> str:
    """A URL whose user, password and query are masked: "redis://***@host:6379/0"."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    location, *query = re.split(r"[?#]", rest, maxsplit=1)
    if query and "@" in query[0]:  # a password with ? or #, or a query with @: no telling where the host begins
        return f"{scheme}{separator}{MASK}"
    _, credentials, host = location.rpartition("@")
    return f"{scheme}{separator}{MASK + '@' if credentials else ''}{host}{'?' + MASK if query else ''}"


def _setting(name: str, field: FieldInfo, group: type[CommonSettings]) -> Setting:
    unit = next((mark.name for mark in field.metadata if isinstance(mark, Unit)), "")
    return Setting(
        name=name,
        default=str(field.default) if isinstance(field.default, Path) else field.default,
        unit=unit,
        description=field.description or "",
        value_name=_value_name(field, unit),
        rule=rule_of(field),
        services=tuple(service for service, model in SERVICES.items() if name in model.model_fields),
        group=group.readers,
        is_switch=field.annotation is bool,
        is_secret=any(isinstance(mark, Secret) for mark in field.metadata),
    )


def _value_name(field: FieldInfo, unit: str) -> str:
    if choices := get_args(field.annotation):
        return "|".join(map(str, choices))
    if unit:
        return unit.upper().replace(" ", "_")
    if any(isinstance(mark, Secret) for mark in field.metadata):
        return "URL"
    type_names: dict[Any, str] = {int: "N", float: "N", Path: "DIR"}
    return type_names.get(field.annotation, "TEXT")
