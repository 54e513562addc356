"""A request that needs what a base model's trainers do not announce is refused by name, before a trainer sees it."""

from __future__ import annotations

import grpc
import pytest

from tests.gateway.caller import Caller, fields_at_fault
from tests.gateway.test_refusals import forward_backward
from tinker_proto.internal.v1 import job_pb2


@pytest.fixture
def workers(workers: list[job_pb2.WorkerStatus]) -> list[job_pb2.WorkerStatus]:
    """A trainer that computes one loss and adapts two linears."""
    workers[0].loss_fns[:] = ["cross_entropy"]
    workers[0].target_modules[:] = ["q_proj", "lm_head"]
    return workers


async def test_a_loss_that_is_not_announced_is_refused(alice: Caller) -> None:
    run = await alice.run(target_modules=["q_proj"])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.training.ForwardBackward(forward_backward(run, 1, loss_fn="ppo"))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields_at_fault(refused.value) == ["loss_fn"]
    assert refused.value.details() == "loss_fn: must be one of cross_entropy (got 'ppo')"


async def test_a_linear_that_is_not_announced_is_refused(alice: Caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await alice.run(target_modules=["q_proj", "v_proj"])
    assert fields_at_fault(refused.value) == ["lora_config.target_modules[1]"]
    assert "must be one of q_proj, lm_head (got 'v_proj')" in str(refused.value.details())
