"""The check of base models before anything starts: their config.json, without the weights and without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from services.core.base_model_names import ServedModel
from services.core.errors import FailedPreconditionError, InvalidArgumentError, broken_rule
from services.model.families import check_layout

CONFIG = "config.json"


def check_models(models: Iterable[ServedModel]) -> None:
    """Reads the configuration of every base model whose files are on this machine; workers download the others.

    Raises:
        FailedPreconditionError: names the first that is not there, cannot be read, or is of no family that is served.
    """
    for model in models:
        try:
            if (path := _config_path(model)) is not None:
                check_layout(_read(path, model), model.name)
        except InvalidArgumentError as error:
            raise FailedPreconditionError(
                f"{model.name} cannot be served: {error.message}", reason=error.reason
            ) from None


def _config_path(model: ServedModel) -> Path | None:
    directory = Path(model.source)
    if directory.is_dir() or _is_path(model):
        path = directory / CONFIG
        if not path.is_file():
            raise _unreadable(
                model, f"{path} is missing" if directory.is_dir() else f"there is no directory {directory}"
            )
        return path
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model.source, CONFIG)
    except ValueError as error:  # huggingface_hub's rules for names
        raise _unreadable(model, str(error)) from None
    return Path(cached) if isinstance(cached, str) else None


def _is_path(model: ServedModel) -> bool:
    """Whether a source that is no directory was meant as one; Hugging Face's names are NAME or OWNER/NAME."""
    return model.source.startswith((".", "/", "~")) or model.source.count("/") > 1 or not model.source


def _read(path: Path, model: ServedModel) -> dict[str, object]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(model, f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise _unreadable(model, f"{path} is not a JSON object")
    return config


def _unreadable(model: ServedModel, fault: str) -> InvalidArgumentError:
    got = model.source if model.source == model.name else f"{model.name}={model.source}"
    rule = broken_rule(f"a directory with a {CONFIG}, or a Hugging Face name", got)
    return InvalidArgumentError.at("base_model", f"{rule}: {fault}", reason="UNREADABLE_BASE_MODEL")
