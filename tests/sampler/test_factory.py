"""The factory gives an engine every option that the settings have for it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from services.core.base_model_names import ServedModel
from services.core.config import SamplerSettings
from services.sampler.engine import factory
from services.sampler.engine.native import NativeSamplerEngine

CHANGED = {
    "max_sequences": 3,
    "max_tokens_per_step": 65,
    "max_cached_tokens": 66,
    "max_adapters": 4,
    "deterministic": True,
    "share_prefixes": True,
}


def test_every_option_of_the_engine_comes_from_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    received: dict[str, Any] = {}
    parameters = inspect.signature(NativeSamplerEngine.__init__).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    monkeypatch.setattr("services.model.base.load_base_model", lambda *_, **__: "base")
    monkeypatch.setattr(
        "services.sampler.engine.native.NativeSamplerEngine", lambda base, **given: received.update(given)
    )
    factory.open_engine(SamplerSettings(**CHANGED), ServedModel("m", "source"))
    assert received == CHANGED
    assert options == CHANGED.keys()
