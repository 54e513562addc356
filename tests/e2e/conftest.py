from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tinker_client as tinker
from testing.platform import API_KEY, BASE_MODEL, Platform
from testing.tiny_models import save_tiny_model


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"), "qwen3")


@pytest.fixture(scope="session")
def platform(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One platform for all tests that leave it as they found it."""
    running = Platform(model_dir, tmp_path_factory.mktemp("platform") / "data")
    running.start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def service(platform: Platform) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=platform.url, api_key=API_KEY) as client:
        yield client


@pytest.fixture
def training(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
