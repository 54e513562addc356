"""Fixtures of the trainer tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.core.config import Settings
from services.core.process.telemetry import configure_logging
from services.model.base import BaseModel
from services.trainer.engine.local import LocalTrainerEngine
from tests.model.fixtures import load, source

__all__ = ["engine", "load", "source"]


@pytest.fixture(scope="session", autouse=True)
def logging() -> None:
    """As in a service; structlog by itself prints every local variable of a traceback, and takes its time."""
    configure_logging(Settings(), "trainer")


@pytest.fixture
def engine(load: Callable[..., BaseModel]) -> LocalTrainerEngine:
    """An engine on a tiny Qwen3, without runs."""
    return LocalTrainerEngine(load())
