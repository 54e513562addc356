from __future__ import annotations

from pathlib import Path

import pytest

from services.core.queue.connection import RedisConnection
from tests.core.queue_parts import Queues, open_queues


@pytest.fixture
def queues(connection: RedisConnection, data_dir: Path) -> Queues:
    return open_queues(connection, data_dir)
