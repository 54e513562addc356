"""The choice of a sampler's engine. No torch until one is opened."""

from __future__ import annotations

from services.core.base_model_names import ServedModel
from services.core.config import SamplerSettings, fingerprints_of
from services.sampler.engine.interface import SamplerEngine


def open_engine(settings: SamplerSettings, model: ServedModel) -> SamplerEngine:
    """Loads a base model and opens an engine on it.

    Args:
        settings: the sampler's settings.
        model: which one, and its names.

    Raises:
        InvalidArgumentError: the model's family or architecture is not supported.
    """
    from services.model.base import load_base_model
    from services.model.device import choose_device
    from services.sampler.engine.native import NativeSamplerEngine

    return NativeSamplerEngine(
        load_base_model(
            model.source,
            name=model.name,
            aliases=model.aliases,
            device=choose_device(settings.device),
            accepted_fingerprints=fingerprints_of(settings),
        ),
        max_sequences=settings.max_sequences,
        max_tokens_per_step=settings.max_tokens_per_step,
        max_cached_tokens=settings.max_cached_tokens,
        max_adapters=settings.max_adapters,
        deterministic=settings.deterministic,
        share_prefixes=settings.share_prefixes,
    )
