"""The description of an adapter in PEFT's files: adapter_config.json, and the names and shapes of its tensors.

The tensors say which linears are adapted, the configuration says how: rank and scale of each, and whether PEFT would
take it for one of the adapter's. Where the two contradict each other, the adapter is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

from services.core.errors import DataLossError, InvalidArgumentError, quoted
from services.model.adapter_config import AdapterConfig
from services.model.base import BaseModel
from services.model.module_patterns import PatternError, Targets, by_pattern, targeted
from services.model.peft_options import check_options, refusal
from services.model.tensor_names import linear_of, matrix_names

MAX_ALPHA = 2.0**31
_BARE_NAME = re.compile(r"\w+", re.ASCII)


def describe(
    path: Path, tensors: Mapping[str, str], base: BaseModel, *, label: str, any_base_model: bool = False
) -> AdapterConfig:
    """The adapter that an adapter_config.json and a file of tensors describe.

    Args:
        path: adapter_config.json.
        tensors: the names that the tensors have here, by their names in the file (services.model.tensor_names).
        base: the base model.
        label: what errors call the configuration.
        any_base_model: take it also where it names another base model.

    Raises:
        DataLossError: the configuration is missing or not PEFT's.
        InvalidArgumentError: it is for another base model, of a kind that is not supported, or not of these tensors.
    """
    content = _content(path, label)
    trained_on = content["base_model_name_or_path"]
    if not any_base_model and not base.is_called(str(trained_on)):
        raise refusal(label, "base_model_name_or_path", quoted(base.name), trained_on)
    check_options(content, label)
    in_file = {here: name for name, here in tensors.items()}
    linears = base.adaptable_linears()
    adapted = {
        name: linear_of(in_file[matrix])
        for name in linears
        for matrix in reversed(matrix_names(name))
        if matrix in in_file
    }
    if not adapted:
        first = f", whose first tensor is {quoted(min(tensors))}" if tensors else ""
        message = f"{label} is of a file without a matrix of a linear of this base model{first}"
        raise InvalidArgumentError(message, reason="BAD_ADAPTER")
    reader = _Reader(content, base, label)
    try:
        reader.check_targets(list(adapted.values()))
        return reader.config(adapted, linears)
    except PatternError as error:
        raise refusal(label, error.option, error.rule, error.expression) from error


class _Reader:
    """One configuration, read for one base model."""

    def __init__(self, content: Mapping[str, Any], base: BaseModel, label: str) -> None:
        self._content = content
        self._base = base
        self._label = label
        # A module of the base model has one rank; more patterns than modules only cost time.
        self._max_patterns = sum(1 for _ in base.module.modules())

    def check_targets(self, adapted: Sequence[str]) -> None:
        """Refuses tensors of linears that PEFT would not adapt, and whose tensors it would leave out."""
        targets = Targets(
            self._target_modules(),
            self._modules("exclude_modules"),
            self._layers(),
            self._strings("layers_pattern"),
        )
        found = targeted(targets, adapted, self._base.family.unembedding)
        if others := [name for name in adapted if name not in found]:
            rule = f"such that {others[0]} is adapted, of which there are tensors ({len(others)} such linears in all)"
            raise refusal(self._label, self._target_option(others[0]), rule, self._content.get("target_modules"))

    def config(self, adapted: Mapping[str, str], linears: Collection[str]) -> AdapterConfig:
        """The adapter, with only what differs from rank and alpha in its patterns.

        Args:
            adapted: what the configuration calls each adapted linear, by its name here.
            linears: all that can be adapted, by their names here.
        """
        names = list(adapted.values())
        rank, alpha = _rank(self._content["r"]), _alpha(self._content["lora_alpha"])
        if rank is None:
            raise refusal(self._label, "r", "a whole number of at least 1", self._content["r"])
        if alpha is None:
            raise refusal(self._label, "lora_alpha", _ALPHA_RULE, self._content["lora_alpha"])
        ranks = by_pattern("rank_pattern", self._pattern("rank_pattern", _rank, "whole numbers of at least 1"), names)
        alphas = by_pattern("alpha_pattern", self._pattern("alpha_pattern", _alpha, f"each {_ALPHA_RULE}"), names)
        return AdapterConfig(
            rank,
            alpha,
            use_rslora=bool(self._content.get("use_rslora")),
            target_modules=_shortened(adapted, linears),
            rank_pattern={
                name: int(ranks[called]) for name, called in adapted.items() if ranks.get(called, rank) != rank
            },
            alpha_pattern={
                name: alphas[called] for name, called in adapted.items() if alphas.get(called, alpha) != alpha
            },
        )

    def _target_option(self, linear: str) -> str:
        """The option to blame for a linear that is not adapted."""
        excluded = Targets("all-linear", self._modules("exclude_modules"), (), ())
        return "target_modules" if targeted(excluded, [linear], "") else "exclude_modules"

    def _default_targets(self) -> Sequence[str]:
        """PEFT's own choice for the family, where a configuration makes none."""
        targets = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(self._base.config.model_type)
        return tuple(targets or ()) if self._content.get("target_modules") is None else ()

    def _modules(self, option: str) -> str | Sequence[str]:
        value = self._content.get(option)
        return value if isinstance(value, str) else self._strings(option)

    def _target_modules(self) -> str | Sequence[str]:
        modules = self._modules("target_modules") or self._default_targets()
        # As an expression, a name without a dot would match no linear in a layer; it means a list of one.
        return [modules] if isinstance(modules, str) and _BARE_NAME.fullmatch(modules) else modules

    def _strings(self, option: str) -> Sequence[str]:
        value = self._content.get(option) or []
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise refusal(self._label, option, "a name or a list of names", value)
        if option == "layers_pattern":
            self._check_length(option, value)
        return value

    def _layers(self) -> Collection[int]:
        value = self._content.get("layers_to_transform")
        value = [] if value is None else value
        layers = value if isinstance(value, list) else [value]
        if not all(_is_whole(item) for item in layers):
            raise refusal(self._label, "layers_to_transform", "a number of a layer or a list of such numbers", value)
        return frozenset(layers)

    def _pattern(self, option: str, read: Any, rule: str) -> Mapping[str, float]:
        value = self._content.get(option) or {}
        if not isinstance(value, dict) or None in (values := {key: read(own) for key, own in value.items()}).values():
            raise refusal(self._label, option, f"numbers by name, {rule}", value)
        self._check_length(option, values)
        return values

    def _check_length(self, option: str, value: Collection[str]) -> None:
        if len(value) > self._max_patterns:
            rule = f"of at most {self._max_patterns} entries, as many as the base model has modules"
            raise refusal(self._label, option, rule, len(value))


_ALPHA_RULE = f"a number from {-MAX_ALPHA:.0f} to {MAX_ALPHA:.0f}"


def _content(path: Path, label: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if missing := {"r", "lora_alpha", "base_model_name_or_path"} - content.keys():
            raise ValueError(f"it has no {min(missing)}")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        complaint = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise DataLossError(f"{label} is missing or not a PEFT configuration: {complaint}") from error
    return dict(content)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rank(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and _is_whole(value) and value >= 1 else None


def _alpha(value: object) -> float | None:
    """A numerator; whole ones as integers, as most configurations have them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_ALPHA:
        return None
    return int(value) if math.isfinite(value) and value == int(value) else value


def _shortened(adapted: Collection[str], linears: Collection[str]) -> tuple[str, ...]:
    """Last names where they mean the adapted linears and no other, else full names."""
    last_names = {name.rpartition(".")[2] for name in adapted}
    meant = {name for name in linears if name.rpartition(".")[2] in last_names}
    return tuple(sorted(last_names if meant == set(adapted) else adapted))
