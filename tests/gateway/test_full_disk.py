"""A disk that is nearly full: new work is refused by name, and what frees space is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.core.config import Settings
from services.core.errors import ResourceExhaustedError
from services.gateway.stores import Stores
from services.gateway.submission import Submission
from tests.gateway.caller import Caller, forward_backward, tokens
from tinker_proto.v1 import sampling_pb2


async def test_new_work_is_refused_until_there_is_space(stores: Stores, data_dir: Path, alice: Caller) -> None:
    run, sampling = await alice.run(), await alice.sampling_session()
    submission = Submission(stores, Settings(data_dir=data_dir, reserve_bytes=1 << 60))
    full = pytest.raises(
        ResourceExhaustedError, match=r"the platform's disk is full .*: new work is accepted again when"
    )
    with full as caught:
        await submission.train("alice", forward_backward(run, 1))
    assert caught.value.reason == "STORAGE_FULL"
    with full:
        await submission.sample(
            "alice", sampling_pb2.SampleRequest(sampling_session_id=sampling, seq_id=1, prompt=tokens(1), num_samples=1)
        )
    accepted = await Submission(stores, Settings(data_dir=data_dir, reserve_bytes=1)).train(
        "alice", forward_backward(run, 1)
    )
    assert not accepted.done
