"""A response that is too large for a message is read apart, and is the business of its own future alone."""

from __future__ import annotations

import pytest

import tinker_client as tinker
from tests.client.loopback import LoopbackPlatform
from tinker_client import types

ADAM = types.AdamParams(learning_rate=0.5)


def test_a_stored_response_arrives_whole_over_a_line_that_breaks(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.stored.add(f"{training.model_id}:1")
    assert training.optim_step(ADAM).result(60).metrics == {"grad_norm:mean": 0.5}
    assert platform.calls["ReadResponse"] > 1, "what was received is not asked for again"


def test_what_goes_wrong_with_one_result_is_that_futures_error_alone(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.operations.hold_all = True
    damaged = f"{training.model_id}:2"
    platform.stored.add(damaged)
    platform.damaged.add(damaged)
    futures = [training.optim_step(ADAM) for _ in range(3)]
    platform.release()
    with pytest.raises(tinker.RequestFailedError, match="damaged") as caught:
        futures[1].result(60)
    assert (caught.value.request_id, caught.value.code) == (damaged, "DATA_LOSS")
    assert [future.result(60).metrics for future in (futures[0], futures[2])] == [{"grad_norm:mean": 0.5}] * 2
