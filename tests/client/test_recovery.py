"""What happens when replies, streams, servers and connections are lost: nothing the user has to know about."""

from __future__ import annotations

import time
from datetime import timedelta

import grpc
import pytest

import tinker_client as tinker
from services.core.errors import ResourceExhaustedError, UnavailableError
from testing.waiting import wait_until
from tests.client.loopback import KEY, LoopbackPlatform
from tests.client.toy_operations import MODEL
from tinker_client import types
from tinker_client._address import Address
from tinker_client._outage import Outage

ADAM = types.AdamParams()
PROMPT = types.ModelInput.from_ints([1, 2])
GREEDY = types.SamplingParams(max_tokens=1, temperature=0.0)


@pytest.mark.parametrize(
    "status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED]
)
@pytest.mark.parametrize("method", ["CreateSession", "CreateTrainingRun", "OptimStep", "WatchOperations"])
def test_a_call_that_gets_no_answer_is_sent_again(
    platform: LoopbackPlatform, service: tinker.ServiceClient, method: str, status: grpc.StatusCode
) -> None:
    platform.refuse_before[method].extend([status] * 2)
    training = service.create_lora_training_client(MODEL)
    assert training.optim_step(ADAM).result(20)
    assert platform.calls[method] == 3


def test_a_resend_after_a_lost_reply_is_never_applied_twice(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.operations.hold_all = True
    platform.lose_reply["OptimStep"] = 2
    futures = [training.optim_step(ADAM) for _ in range(2)]
    wait_until(lambda: platform.calls["OptimStep"] == 4)
    platform.release()
    for future in futures:
        assert future.result(20)
    names = [name for name in platform.operations.carried_out if name.startswith(training.model_id)]
    assert names == [f"{training.model_id}:{seq_id}" for seq_id in (0, 1, 2)]


def test_a_platform_that_asks_for_a_pause_is_called_again_after_it(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    full = ResourceExhaustedError("the queue is full", reason="QUEUE_FULL", retry_after_s=0.3)
    platform.refuse_before["OptimStep"].extend([full, full])
    began = time.monotonic()
    assert training.optim_step(ADAM).result(20)
    assert time.monotonic() - began >= 0.6
    assert platform.calls["OptimStep"] == 3


def test_the_pause_that_a_platform_asks_for_is_kept_and_spread() -> None:
    status = ResourceExhaustedError("the queue is full", reason="QUEUE_FULL", retry_after_s=20.0).to_status()
    details = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), details, "the queue is full")
    outage = Outage(Address.parse("grpc://127.0.0.1:1"), timedelta(seconds=1), first_contact=False)
    pauses = [outage.pause_after(error) for _ in range(100)]
    assert 20 <= min(pauses) < 22
    assert 28 < max(pauses) <= 30


def test_time_in_which_the_process_stood_still_does_not_count_as_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop is closed for two hours with a call under way; then the platform is away until patience is over."""
    now = 1000.0
    monkeypatch.setattr("tinker_client._outage.time.monotonic", lambda: now)
    outage = Outage(Address.parse("grpc://127.0.0.1:1"), timedelta(seconds=600), first_contact=False)
    gone = grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata())
    now += 7200
    outage.pause_after(gone)
    for _ in range(8):
        now += 65
        outage.pause_after(gone)
    now += 65
    with pytest.raises(tinker.APITimeoutError, match="has not answered for 600 s"):
        outage.pause_after(gone)


def test_waiting_for_a_full_queue_does_not_count_as_an_outage(platform: LoopbackPlatform) -> None:
    with tinker.ServiceClient(base_url=platform.url, api_key=KEY, patience=timedelta(seconds=0.3)) as service:
        training = service.create_lora_training_client(MODEL)
        full = ResourceExhaustedError("the queue is full", reason="QUEUE_FULL", retry_after_s=0.2)
        platform.refuse_before["OptimStep"].extend([*[full] * 3, grpc.StatusCode.UNAVAILABLE, full])
        assert training.optim_step(ADAM).result(20)


def test_a_limit_that_waiting_does_not_lift_is_an_error(
    platform: LoopbackPlatform, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL)
    platform.refuse_before["Sample"].append(grpc.StatusCode.RESOURCE_EXHAUSTED)
    with pytest.raises(tinker.RateLimitError, match="broken by the test"):
        sampler.sample(PROMPT, 1, GREEDY).result(20)
    assert sampler.sample(PROMPT, 1, GREEDY).result(20)  # sampling has gaps, and goes on


def test_a_broken_stream_is_opened_again_naming_what_is_pending(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.operations.hold_all = True
    futures = [training.optim_step(ADAM) for _ in range(5)]
    wait_until(lambda: platform.calls["OptimStep"] == 5)
    platform.refuse_before["WatchOperations"].extend([grpc.StatusCode.UNAVAILABLE] * 3)
    platform.drop_watches()
    platform.release()  # they finish while nobody watches
    for future in futures:
        assert future.result(20)
    names = [f"{training.model_id}:{seq_id}" for seq_id in range(1, 6)]
    assert sorted(platform.watched[-1]) == names


def test_an_outage_counts_from_the_broken_stream_not_its_last_message(platform: LoopbackPlatform) -> None:
    with tinker.ServiceClient(base_url=platform.url, api_key=KEY, patience=timedelta(seconds=0.5)) as service:
        training = service.create_lora_training_client(MODEL)
        platform.operations.hold_all = True
        future = training.optim_step(ADAM)
        with pytest.raises(TimeoutError):
            future.result(1.0)  # longer than the client is patient, and nothing is wrong
        platform.drop_watches()
        platform.release()
        assert future.result(20)


def test_nothing_is_submitted_while_no_stream_is_there_to_bring_its_result(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.refuse_before["WatchOperations"].extend([grpc.StatusCode.UNAVAILABLE] * 3)
    platform.drop_watches()
    wait_until(lambda: platform.calls["WatchOperations"] >= 2)  # the client has noticed
    assert training.optim_step(ADAM).result(20)
    assert platform.call_order[-5:] == [*["WatchOperations"] * 4, "OptimStep"]


def test_only_what_may_have_reached_the_platform_is_named(
    platform: LoopbackPlatform, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL)
    full = ResourceExhaustedError("the queue is full", reason="QUEUE_FULL", retry_after_s=60.0)
    platform.refuse_before["Sample"].extend([full] * 1000)
    futures = [sampler.sample(PROMPT, 1, GREEDY) for _ in range(200)]
    wait_until(lambda: platform.calls["Sample"] == 64)
    platform.drop_watches()
    wait_until(lambda: len(platform.watched) == 2)
    assert sorted(platform.watched[-1]) == sorted(f"s1:sample:0:{seq_id}" for seq_id in range(64))
    assert not any(future.done() for future in futures)


def test_a_server_that_comes_back_finds_its_clients_waiting(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.operations.hold_all = True
    before = [training.optim_step(ADAM) for _ in range(5)]
    wait_until(lambda: platform.calls["OptimStep"] == 5)
    platform.stop()
    during = [training.optim_step(ADAM) for _ in range(5)]
    platform.start()
    platform.release()
    for future in [*before, *during]:
        assert future.result(30)
    assert [name.rpartition(":")[2] for name in platform.operations.carried_out] == [str(n) for n in range(11)]


def test_results_that_come_in_any_order_find_their_futures(
    platform: LoopbackPlatform, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL)
    platform.operations.held = {f"s1:sample:0:{seq_id}" for seq_id in range(0, 50, 2)}
    futures = [sampler.sample(types.ModelInput.from_ints([token]), 1, GREEDY) for token in range(50)]
    for future in futures[1::2]:
        future.result(20)
    assert not any(future.done() for future in futures[::2])
    platform.release()
    assert [future.result(20).sequences[0].tokens[0] for future in futures] == list(range(50))


def test_a_thousand_outstanding_operations_cost_one_stream_and_no_polling(
    platform: LoopbackPlatform, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL)
    platform.operations.hold_all = True
    futures = [sampler.sample(PROMPT, 1, GREEDY) for _ in range(1000)]
    wait_until(lambda: platform.calls["Sample"] == 1000)
    calls = dict(platform.calls)
    platform.release()
    for future in futures:
        future.result(20)
    assert calls == dict(platform.calls)
    assert (platform.calls["WatchOperations"], platform.calls["GetOperation"]) == (1, 0)


def test_only_so_much_is_on_the_wire_at_once(platform: LoopbackPlatform, service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model=MODEL)
    full = ResourceExhaustedError("the queue is full", reason="QUEUE_FULL", retry_after_s=60.0)
    platform.refuse_before["Sample"].extend([full] * 1000)
    futures = [sampler.sample(PROMPT, 1, GREEDY) for _ in range(500)]
    wait_until(lambda: platform.calls["Sample"] >= 64)
    other = service.create_sampling_client(base_model=MODEL)  # has a window of its own
    assert other.compute_logprobs(PROMPT).result(20)
    assert platform.calls["Sample"] == 64
    assert not any(future.done() for future in futures)


def test_a_lost_session_fails_what_is_pending_instead_of_waiting_for_ever(
    platform: LoopbackPlatform, service: tinker.ServiceClient
) -> None:
    sampler = service.create_sampling_client(base_model=MODEL)
    platform.operations.hold_all = True
    futures = [sampler.sample(PROMPT, 1, GREEDY) for _ in range(3)]
    wait_until(lambda: platform.calls["Sample"] == 3)
    platform.refuse_before["WatchOperations"].append(grpc.StatusCode.NOT_FOUND)
    platform.drop_watches()
    for future in futures:
        with pytest.raises(tinker.NotFoundError):
            future.result(20)


@pytest.mark.timeout(60)  # of the ten minutes that a client waits for a platform which has answered before
def test_nobody_at_the_address_is_reported_soon_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinker_client._transport.FIRST_CONTACT", timedelta(seconds=0.5))
    service = tinker.ServiceClient(base_url="grpc://127.0.0.1:1", api_key=KEY)
    with pytest.raises(tinker.APIConnectionError) as caught:
        service.get_server_capabilities()
    for part in ("grpc://127.0.0.1:1", "tinker-platform up", "TINKER_GRPC_URL", "grpcs://"):
        assert part in str(caught.value)
    service.close()


def test_a_platform_that_says_why_it_cannot_is_quoted(
    platform: LoopbackPlatform, service: tinker.ServiceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinker_client._transport.FIRST_CONTACT", timedelta(seconds=0.3))
    platform.refuse_before["GetServerCapabilities"].extend([UnavailableError("the queue cannot be reached")] * 20)
    with pytest.raises(tinker.APIConnectionError, match="cannot do this now: the queue cannot be reached"):
        service.get_server_capabilities()
    platform.refuse_before.clear()


def test_a_platform_that_starts_a_little_later_is_waited_for(platform: LoopbackPlatform) -> None:
    platform.stop()
    with tinker.ServiceClient(base_url=platform.url, api_key=KEY) as service:
        capabilities = service.create_rest_client().list_training_runs()
        platform.start()
        assert capabilities.result(20).training_runs == []
