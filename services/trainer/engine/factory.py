"""The choice of a trainer's engine. No torch until one is opened."""

from __future__ import annotations

from services.core.base_model_names import ServedModel
from services.core.config import TrainerSettings, fingerprints_of
from services.trainer.engine.interface import TrainerEngine


def open_engine(settings: TrainerSettings, model: ServedModel) -> TrainerEngine:
    """Loads a base model and opens an engine on it.

    Args:
        settings: the trainer's settings.
        model: which one, and its names.

    Raises:
        InvalidArgumentError: the model's family or architecture is not supported.
    """
    from services.model.base import load_base_model
    from services.model.device import choose_device
    from services.trainer.engine.local import LocalTrainerEngine

    base = load_base_model(
        model.source,
        name=model.name,
        aliases=model.aliases,
        device=choose_device(settings.device),
        accepted_fingerprints=fingerprints_of(settings),
    )
    return LocalTrainerEngine(base)
