"""The choice of a sampler's engine. No torch until one is opened."""

from __future__ import annotations

from services.core.config import SamplerSettings, fingerprints_of
from services.sampler.engine.interface import SamplerEngine


def open_engine(settings: SamplerSettings, name: str, source: str) -> SamplerEngine:
    """Loads a base model and opens an engine on it.

    Args:
        settings: the sampler's settings.
        name: the name that clients use.
        source: a directory or a Hugging Face name.

    Raises:
        InvalidArgumentError: the model's family or architecture is not supported.
    """
    from services.model.base import load_base_model
    from services.model.device import choose_device
    from services.sampler.engine.native import NativeSamplerEngine

    return NativeSamplerEngine(
        load_base_model(
            source,
            name=name,
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
