"""Fixtures of every test that needs a base model; imported by the conftest.py files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from services.model.base import BaseModel, load_base_model
from testing.tiny_models import save_tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Directory of a tiny model by family and tying."""
    saved: dict[tuple[str, bool], Path] = {}

    def directory(family: str = "qwen3", *, tied: bool = True) -> Path:
        if (family, tied) not in saved:
            saved[family, tied] = save_tiny_model(tmp_path_factory.mktemp(family), family, tied=tied)
        return saved[family, tied]

    return directory


@pytest.fixture(scope="session")
def load(source: Callable[..., Path]) -> Callable[..., BaseModel]:
    """A tiny base model of its own, freshly loaded."""

    def loaded(family: str = "qwen3", *, tied: bool = True) -> BaseModel:
        return load_base_model(str(source(family, tied=tied)), name=f"tiny-{family}", device="cpu")

    return loaded
