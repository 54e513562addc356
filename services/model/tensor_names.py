"""Names of tensors in PEFT's files.

A family that also sees images has two classes of models, whose names for the same weights differ. An adapter has the
names of the class that it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.core.errors import InvalidArgumentError
from services.model.families import Family

PREFIX = "base_model.model."
"""Before the name of a module."""


def matrix_names(linear: str) -> tuple[str, str]:
    """The names of a linear's A and B."""
    return f"{PREFIX}{linear}.lora_A.weight", f"{PREFIX}{linear}.lora_B.weight"


def linear_of(matrix: str) -> str:
    """The linear of an A or B."""
    return matrix.removeprefix(PREFIX).rpartition(".lora_")[0]


def names_here(in_file: Iterable[str], family: Family) -> dict[str, str]:
    """The names that the tensors of a file have for the class of model that is served, by their names in the file.

    Raises:
        InvalidArgumentError: two have the same.
    """
    here: dict[str, str] = {}
    for name in in_file:
        here[name] = name
        for trunk in family.other_trunks:
            if name.startswith(f"{PREFIX}{trunk}."):
                here[name] = f"{PREFIX}{family.trunk}.{name.removeprefix(f'{PREFIX}{trunk}.')}"
    if len(set(here.values())) < len(here):
        message = f"the tensors have names of two classes of models, {family.trunk} and {family.other_trunks[0]}"
        raise InvalidArgumentError(message, reason="BAD_ADAPTER")
    return here
