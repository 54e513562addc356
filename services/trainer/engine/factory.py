"""The choice of a trainer's engine. No torch until one is opened."""

from __future__ import annotations

from services.core.config import TrainerSettings, fingerprints_of
from services.trainer.engine.interface import TrainerEngine


def open_engine(settings: TrainerSettings, name: str, source: str) -> TrainerEngine:
    """Loads a base model and opens an engine on it.

    Args:
        settings: the trainer's settings.
        name: the name that clients use.
        source: a directory or a Hugging Face name.

    Raises:
        InvalidArgumentError: the model's family or architecture is not supported.
    """
    from services.model.base import load_base_model
    from services.model.device import choose_device
    from services.trainer.engine.local import LocalTrainerEngine

    device, accepted = choose_device(settings.device), fingerprints_of(settings)
    return LocalTrainerEngine(load_base_model(source, name=name, device=device, accepted_fingerprints=accepted))
