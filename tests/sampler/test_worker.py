"""The sampler's asyncio side over a real queue, with an engine that is not ours: all that it needs is in the seam."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.message import Message
from prometheus_client import REGISTRY

from services.core.errors import DataLossError
from services.core.names import OperationName
from services.core.queue.connection import RedisConnection
from services.core.queue.events import EventHub
from services.core.queue.liveness import Liveness
from services.core.queue.token_stream import TokenStream
from services.core.storage.local import LocalStorage
from services.sampler.engine.interface import SamplerEngine
from services.sampler.publisher import Publisher
from services.sampler.request import TokenDelta
from services.sampler.stores import SamplerStores
from services.sampler.worker import SamplerWorker
from tests.core.queue_parts import BASE, LIMITS, SAMPLING
from tests.sampler.fixed_text_engine import ANSWER, BROKEN, ENDLESS, LOGPROB, UNPRINTABLE, FixedTextEngine
from tinker_proto.internal.v1 import job_pb2
from tinker_proto.v1 import data_pb2, operation_pb2, sampling_pb2


def prompt(*tokens: int) -> data_pb2.ModelInput:
    return data_pb2.ModelInput(chunks=[data_pb2.Chunk(encoded_text=data_pb2.EncodedTextChunk(tokens=tokens))])


class PublishedTokens(TokenStream):
    """Keeps what is published."""

    def __init__(self, connection: RedisConnection) -> None:
        super().__init__(connection)
        self.messages: asyncio.Queue[job_pb2.StreamedTokens] = asyncio.Queue()

    async def publish(self, tokens: job_pb2.StreamedTokens) -> None:
        await super().publish(tokens)
        self.messages.put_nowait(tokens)


@dataclass
class Site:
    """A sampler at work, and what its clients do."""

    stores: SamplerStores
    events: EventHub
    published: PublishedTokens
    engine: FixedTextEngine
    enqueued: int = 0

    async def enqueue(
        self, *, streamed: bool = False, tenant: str = "alice", checkpoint: str = "", **request: Message
    ) -> str:
        """Queues a job with a request of one kind; returns its operation's name."""
        name = f"{SAMPLING}:{self.enqueued}"
        self.enqueued += 1
        job = job_pb2.Job(operation=name, tenant=tenant, streamed=streamed, checkpoint_location=checkpoint, **request)
        accepted = await self.stores.queues.enqueue(
            job, digest=name, method="m", base_model=BASE, cost=10, limits=LIMITS
        )
        assert accepted is not None
        return name

    async def result(self, name: str) -> operation_pb2.Operation:
        """Waits for the end of an operation."""
        with self.events.expect(name) as news:
            async with asyncio.timeout(30):
                while not (operation := await self.stores.operations.get(name, "alice")).done:
                    await news.wait()
                    news.clear()
        return operation

    async def sample(
        self,
        *,
        num_samples: int = 1,
        streamed: bool = False,
        first: int = 5,
        tenant: str = "alice",
        checkpoint: str = "",
        **fields: int,
    ) -> str:
        request = sampling_pb2.SampleRequest(prompt=prompt(first, 6, 7), num_samples=num_samples, **fields)
        request.sampling_params.seed = 1
        return await self.enqueue(sample=request, streamed=streamed, tenant=tenant, checkpoint=checkpoint)


@pytest.fixture
async def site(connection: RedisConnection, data_dir: Path) -> AsyncIterator[Site]:
    engine = FixedTextEngine(base_model=BASE)
    tokens = PublishedTokens(connection)
    stores = dataclasses.replace(SamplerStores.open(connection, LocalStorage(data_dir)), tokens=tokens)
    seam: SamplerEngine = engine
    worker = SamplerWorker("w", seam, stores, Liveness(connection, 10.0), lease_s=10.0)
    events = EventHub(connection)
    tasks = [
        asyncio.create_task(events.run(await events.start())),
        asyncio.create_task(worker.run()),
    ]
    yield Site(stores, events, tokens, engine)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends


@contextmanager
def counted(kind: str, reason: str = "") -> Iterator[None]:
    """Exactly one operation of this kind is counted inside the block, and none of another."""

    def values() -> dict[tuple[str, str], float]:
        samples = [sample for family in REGISTRY.collect() for sample in family.samples]
        return {
            (sample.labels["method"], sample.labels["reason"]): sample.value
            for sample in samples
            if sample.name == "tinker_operations_total"
        }

    before = values()
    yield
    after = values()
    changed = {labels: after[labels] - before.get(labels, 0) for labels in after}
    assert {labels: count for labels, count in changed.items() if count} == {(kind, reason): 1}


async def test_a_sample_is_answered(site: Site) -> None:
    with counted("sample"):
        operation = await site.result(await site.sample(num_samples=2))
    response = sampling_pb2.SampleResponse()
    assert operation.response.Unpack(response)
    assert [tuple(sequence.tokens) for sequence in response.sequences] == [ANSWER] * 2
    assert response.sequences[0].stop_reason == sampling_pb2.STOP_REASON_STOP
    assert list(response.sequences[0].logprobs) == [LOGPROB] * len(ANSWER)


async def test_a_scoring_is_answered_and_counted_as_one(site: Site) -> None:
    request = sampling_pb2.ComputeLogprobsRequest(prompt=prompt(5, 6, 7))
    with counted("compute_logprobs"):
        operation = await site.result(await site.enqueue(compute_logprobs=request))
    response = sampling_pb2.ComputeLogprobsResponse()
    assert operation.response.Unpack(response)
    assert list(response.logprobs)[1:] == [LOGPROB] * 2


async def test_an_adapter_is_read_beside_the_steps(site: Site) -> None:
    with site.stores.checkpoints.write("run/adapter") as directory:
        (directory / "adapter_config.json").write_text("{}")
    names = [await site.sample(checkpoint="run/adapter") for _ in range(3)]
    for name in names:
        assert (await site.result(name)).state == operation_pb2.OPERATION_STATE_SUCCEEDED
    read = {adapter for adapter, _ in site.engine.read}
    assert read == {site.stores.checkpoints.open("run/adapter")}
    assert not {thread for _, thread in site.engine.read} & {site.engine.stepping, threading.main_thread()}


async def test_what_is_wrong_with_an_adapter_is_the_error_of_its_operations(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(adapter: Path) -> None:
        raise DataLossError("it is damaged")

    monkeypatch.setattr(site.engine, "read_ahead", damaged)
    with site.stores.checkpoints.write("run/adapter") as directory:
        (directory / "adapter_config.json").write_text("{}")
    assert (await site.result(await site.sample(checkpoint="run/adapter"))).error.message == "it is damaged"
    missing = await site.result(await site.sample(checkpoint="run/absent"))
    assert missing.error.reason == "CHECKPOINT_NOT_FOUND"
    assert (await site.result(await site.sample())).state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_more_jobs_than_slots_are_all_answered(site: Site) -> None:
    names = [await site.sample(num_samples=1 + index % 3) for index in range(9)]
    for name in names:
        assert (await site.result(name)).state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_tokens_are_streamed_as_they_come(site: Site) -> None:
    received: list[int] = []
    name = await site.sample(streamed=True)
    async with asyncio.timeout(30):
        while len(received) < len(ANSWER):
            for operation in (await site.published.messages.get()).operations:
                assert operation.operation == name
                for piece in operation.pieces:
                    assert piece.start == len(received)
                    received += piece.tokens
    assert tuple(received) == ANSWER


async def test_all_tokens_so_far_are_published_again_when_they_are_asked_for(connection: RedisConnection) -> None:
    tokens = PublishedTokens(connection)
    publisher = Publisher(tokens)
    publishing = asyncio.create_task(publisher.run())

    async def published() -> list[tuple[str, int, int, list[int]]]:
        message = await asyncio.wait_for(tokens.messages.get(), 30)
        return [
            (operation.operation, piece.sequence_index, piece.start, list(piece.tokens))
            for operation in message.operations
            for piece in operation.pieces
        ]

    for delta in (TokenDelta("a", 0, 0, (1, 2), (-1.0, -2.0), None), TokenDelta("a", 1, 0, (7,), (-7.0,), None)):
        publisher.add([delta])
        await published()
    publisher.publish_again("a")
    publisher.add([TokenDelta("a", 0, 2, (3,), (-3.0,), "stop")])
    assert await published() == [("a", 0, 2, [3])]
    assert await published() == [("a", 0, 0, [1, 2, 3]), ("a", 1, 0, [7])]
    publisher.forget("a")
    publisher.publish_again("a")
    publisher.add([TokenDelta("b", 0, 0, (4,), (-4.0,), None)])
    assert await published() == [("b", 0, 0, [4])]
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    assert tokens.messages.empty(), "nothing is kept of what has ended"


async def test_a_failure_of_the_engine_is_the_operations_error(site: Site) -> None:
    with counted("sample", "BROKEN"):
        operation = await site.result(await site.sample(first=BROKEN))
    assert (operation.error.message, operation.error.reason) == ("broken", "BROKEN")


async def test_a_result_that_cannot_be_sent_is_its_operations_error_alone(site: Site) -> None:
    names = [await site.sample(first=UNPRINTABLE), await site.sample()]
    bad, good = [await site.result(name) for name in names]
    assert bad.error.reason == "RESULT_TOO_LARGE"
    assert good.state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_what_the_engine_refuses_fails_by_field_and_the_next_succeeds(site: Site) -> None:
    with counted("sample", "MISSING_ABILITY"):
        operation = await site.result(await site.sample(topk_prompt_logprobs=3))
    assert [violation.field for violation in operation.error.field_violations] == ["topk_prompt_logprobs"]
    assert (await site.result(await site.sample())).state == operation_pb2.OPERATION_STATE_SUCCEEDED


async def test_a_merge_that_the_engine_refuses_fails_by_field_and_is_counted(site: Site) -> None:
    with counted("merge_weights", "MISSING_ABILITY"):
        operation = await site.result(await site.enqueue(merge_weights=sampling_pb2.MergeWeightsRequest()))
    assert [violation.field for violation in operation.error.field_violations] == ["sampling_session_id"]
    assert BASE in operation.error.message


async def test_a_cancelled_job_gives_its_slots_to_the_next(site: Site) -> None:
    endless = await site.sample(num_samples=2, first=ENDLESS)
    waiting = await site.sample()
    assert await site.stores.operations.cancel(OperationName.parse(endless))
    assert (await site.result(waiting)).state == operation_pb2.OPERATION_STATE_SUCCEEDED
    assert (await site.result(endless)).state == operation_pb2.OPERATION_STATE_CANCELLED


async def test_another_tenants_job_reaches_the_engine_though_no_slot_is_free(site: Site) -> None:
    await site.sample(num_samples=2, first=ENDLESS, tenant="mallory")
    await site.sample(num_samples=2, first=ENDLESS, tenant="mallory")
    assert (await site.result(await site.sample())).state == operation_pb2.OPERATION_STATE_SUCCEEDED


def test_the_sampler_outside_its_engine_imports_no_torch() -> None:
    program = "import sys, services.sampler.main; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
