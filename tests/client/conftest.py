"""A platform per test, and a ServiceClient connected to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tinker_client as tinker
from tests.client.loopback import KEY, LoopbackPlatform
from tests.client.toy_operations import MODEL


@pytest.fixture
def platform() -> Iterator[LoopbackPlatform]:
    running = LoopbackPlatform()
    yield running
    running.close()


@pytest.fixture
def service(platform: LoopbackPlatform) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient(base_url=platform.url, api_key=KEY) as client:
        yield client


@pytest.fixture
def training(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client(MODEL, rank=4)
