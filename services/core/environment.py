"""Settings read from flags and the environment: a flag wins over a `TINKER_*` variable, and that over the default.

Every service accepts the variables of all services, because one environment often serves them all; each value is
checked. An unknown `TINKER_*` variable is an error, so that a misspelt one is not ignored; those that belong to clients
are left alone.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

import annotated_types
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from services.core.config import ENV_PREFIX, Rule, Settings
from services.core.errors import InvalidArgumentError, broken_rule

CLIENT_VARIABLES = frozenset(
    {
        "TINKER_API_KEY",
        "TINKER_BASE_URL",
        "TINKER_CREDENTIAL_CMD",
        "TINKER_GRPC_URL",
        "TINKER_LOG",
        "TINKER_PROJECT_ID",
        "TINKER_TAGS",
        "TINKER_TELEMETRY",
    }
)

_LIST_ALL = "`tinker-platform settings` lists all"

S = TypeVar("S", bound=Settings)


def load_settings(model: type[S], **flags: Any) -> S:
    """Settings from flags and the environment.

    Args:
        model: the class to make; it has the fields of all services.
        flags: values by field name; None means not given.

    Raises:
        InvalidArgumentError: a value is not allowed, or a TINKER_* variable is unknown.
    """
    refuse_unknown_variables(os.environ)
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return model(**given)
    except ValidationError as error:
        problems = [_problem(model, str(problem["loc"][0]), problem["input"], given) for problem in error.errors()]
        raise InvalidArgumentError("; ".join(problems), reason="BAD_SETTING") from None


def refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    """Refuses TINKER_* variables that are neither a setting nor a client's.

    Raises:
        InvalidArgumentError: names them, and for each the known one that it resembles.
    """
    known = CLIENT_VARIABLES | {variable_of(name) for name in Settings.model_fields}
    unknown = sorted(name for name in environment if name.startswith(ENV_PREFIX) and name not in known)
    if unknown:
        sentences = "; ".join(f"unknown setting {name}{_suggestion(name, known)}" for name in unknown)
        raise InvalidArgumentError(f"{sentences} ({_LIST_ALL})", reason="UNKNOWN_SETTING")


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def flag_of(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def rule_of(field: FieldInfo) -> str:
    """The rule of a setting's values: "an integer from 0 to 65535"."""
    for rule in (item for item in field.metadata if isinstance(item, Rule)):
        return rule.name
    if choices := get_args(field.annotation):
        return f"one of {', '.join(map(str, choices))}"
    if field.annotation is bool:
        return "true or false"
    if field.annotation not in (int, float):
        return "text"
    return ("an integer" if field.annotation is int else "a number") + _range(field)


def _range(field: FieldInfo) -> str:
    match {type(bound): bound for bound in field.metadata}:
        case {annotated_types.Ge: low, annotated_types.Le: high}:
            return f" from {low.ge} to {high.le}"
        case {annotated_types.Gt: low, annotated_types.Le: high}:
            return f" above {low.gt}, at most {high.le}"
        case {annotated_types.Ge: low}:
            return f", at least {low.ge}"
        case {annotated_types.Gt: low}:
            return f" above {low.gt}"
    return ""


def _suggestion(variable: str, known: Iterable[str]) -> str:
    names = [name.removeprefix(ENV_PREFIX) for name in known]
    similar = difflib.get_close_matches(variable.removeprefix(ENV_PREFIX), names, n=1, cutoff=0.7)
    return f"; did you mean {ENV_PREFIX}{similar[0]}?" if similar else ""


def _problem(model: type[Settings], name: str, value: object, flags: Mapping[str, Any]) -> str:
    source = flag_of(name) if name in flags else variable_of(name)
    return f"{source}: {broken_rule(rule_of(model.model_fields[name]), repr(value))}"
