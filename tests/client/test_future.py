"""What an APIFuture promises: readable from anywhere, more than once, and waiting never cancels."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import pytest

import tinker_client as tinker
from tests.client.loopback import LoopbackPlatform
from tests.client.toy_operations import MODEL
from tinker_client import types

PROMPT = types.ModelInput.from_ints([1, 2])
ADAM = types.AdamParams()


@pytest.fixture
def sampler(service: tinker.ServiceClient) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model=MODEL)


def test_a_timeout_does_not_cancel(platform: LoopbackPlatform, training: tinker.TrainingClient) -> None:
    platform.operations.hold_all = True
    future = training.optim_step(ADAM)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0.01)
    assert not future.done()
    platform.release()
    assert future.result(timeout=10).metrics
    assert future.done()
    assert future.exception() is None
    assert platform.calls["CancelOperation"] == 0


async def test_neither_does_an_async_timeout_or_a_cancelled_waiter(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.operations.hold_all = True
    future = training.optim_step(ADAM)
    with pytest.raises(TimeoutError):
        await future.result_async(timeout=0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(future, 0.01)
    waiter = asyncio.ensure_future(future)
    waiter.cancel()
    await asyncio.wait([waiter])
    platform.release()
    assert (await future).metrics
    assert platform.calls["CancelOperation"] == 0


async def test_it_can_be_awaited_more_than_once_and_by_many(training: tinker.TrainingClient) -> None:
    future = training.optim_step(ADAM)
    first = await future
    assert await future is first
    assert await asyncio.gather(future, future.result_async(), future) == [first] * 3
    assert future.result() is first  # also the blocking way, inside a running loop


def test_it_can_be_awaited_in_any_event_loop(training: tinker.TrainingClient) -> None:
    future = training.optim_step(ADAM)
    results = []

    async def wait() -> None:
        results.append(await future)

    threads = [threading.Thread(target=asyncio.run, args=(wait(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [future.result()] * 3


async def test_blocking_methods_work_inside_a_running_loop_as_in_a_notebook(
    service: tinker.ServiceClient, platform: LoopbackPlatform
) -> None:
    training = service.create_lora_training_client(MODEL)
    sampler = training.save_weights_and_get_sampling_client("a")
    assert sampler.sample(PROMPT, 1, types.SamplingParams()).result().sequences


def test_a_standard_future_is_available_and_cannot_be_cancelled(
    training: tinker.TrainingClient,
) -> None:
    future = training.optim_step(ADAM)
    standard = future.future()
    assert isinstance(standard, Future)
    assert not standard.cancel()
    assert standard.result(10) is future.result()


def test_waiting_in_a_callback_is_refused_instead_of_hanging(
    training: tinker.TrainingClient, platform: LoopbackPlatform
) -> None:
    platform.operations.hold_all = True
    caught: Future[BaseException] = Future()

    def callback(_: object) -> None:
        try:
            training.optim_step(ADAM).result()
        except RuntimeError as error:
            caught.set_result(error)

    training.optim_step(ADAM).future().add_done_callback(callback)
    platform.release()
    assert "must not wait" in str(caught.result(10))


def test_cancelling_ends_what_has_not_begun_and_what_follows_goes_on(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.operations.hold_all = True
    first, second, third = (training.optim_step(ADAM) for _ in range(3))
    assert second.cancel()
    with pytest.raises(tinker.RequestFailedError) as caught:
        second.result(10)
    assert (caught.value.code, caught.value.category) == ("CANCELLED", "user")
    assert caught.value.request_id == f"{training.model_id}:2"
    platform.release()
    assert first.result(10)
    assert third.result(10)
    assert not third.cancel()  # done already
    assert platform.calls["CancelOperation"] == 1


def test_cancelling_reaches_an_operation_that_is_still_being_submitted(
    platform: LoopbackPlatform, sampler: tinker.SamplingClient
) -> None:
    platform.operations.hold_all = True
    futures = [sampler.sample(PROMPT, 1, types.SamplingParams()) for _ in range(200)]
    for future in futures:
        assert future.cancel()
    for future in futures:
        assert isinstance(future.exception(10), tinker.RequestFailedError)


def test_an_operation_that_runs_is_not_cancelled(platform: LoopbackPlatform, sampler: tinker.SamplingClient) -> None:
    platform.operations.hold_all = True
    platform.operations.cancel = lambda name: platform.operations.records[name]  # type: ignore[method-assign]
    future = sampler.sample(PROMPT, 1, types.SamplingParams())
    future.cancel()
    with pytest.raises(TimeoutError):
        future.result(0.05)
    platform.release()
    assert future.result(10).sequences


def test_a_call_without_an_operation_cannot_be_cancelled(service: tinker.ServiceClient) -> None:
    runs = service.create_rest_client().list_training_runs()
    assert not runs.cancel()
    assert runs.result().training_runs == []
