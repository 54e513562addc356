"""Operations of one run are carried out in the order of the calls, and one that fails stops no other."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest

import tinker_client as tinker
from services.core.errors import NotFoundError
from testing.waiting import wait_until
from tests.client.loopback import KEY, LoopbackPlatform
from tests.client.toy_operations import MODEL
from tinker_client import types

ADAM = types.AdamParams()


def datum(token: int = 1, extra_bytes: int = 0) -> types.Datum:
    model_input = types.ModelInput([types.EncodedTextChunk([1])])
    if extra_bytes:
        model_input = model_input.append(types.ImageChunk(b"x" * extra_bytes, "png"))
    return types.Datum(model_input, {"target_tokens": [token], "weights": [1.0]})


def carried_out(platform: LoopbackPlatform, training: tinker.TrainingClient) -> list[str]:
    prefix = f"{training.model_id}:"
    names = [name for name in platform.operations.carried_out if name.startswith(prefix)]
    return [platform.operations.records[name].method for name in names]


def test_operations_run_in_the_order_of_the_calls_however_they_arrive(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.refuse_before["ForwardBackward"].extend([grpc.StatusCode.UNAVAILABLE] * 3)  # these arrive late
    futures = []
    for step in range(20):
        futures.append(training.forward_backward([datum(step)], "cross_entropy"))
        futures.append(training.optim_step(types.AdamParams(learning_rate=step)))
    saved = training.save_state("end")
    for future in reversed(futures):  # results can be read in any order
        future.result(20)
    saved.result(20)
    assert carried_out(platform, training) == [
        "CreateTrainingRun",
        *["ForwardBackward", "OptimStep"] * 20,
        "SaveState",
    ]
    assert [future.result().metrics["grad_norm:mean"] for future in futures[1::2]] == list(range(20))


def test_nothing_waits_for_the_answer_of_what_was_called_before(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    platform.operations.hold_all = True
    futures = [training.optim_step(ADAM) for _ in range(300)]
    wait_until(lambda: platform.calls["OptimStep"] == 300)
    assert not any(future.done() for future in futures)
    platform.release()
    assert all(future.result(60).metrics for future in futures)


@pytest.fixture
def eager_thread_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("eager_thread_switches")
def test_calls_from_many_threads_each_get_a_place(platform: LoopbackPlatform, training: tinker.TrainingClient) -> None:
    futures: list[tinker.APIFuture] = []
    threads = [
        threading.Thread(target=lambda: futures.extend(training.optim_step(ADAM) for _ in range(25))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for future in futures:
        future.result(20)
    names = [f"{training.model_id}:{seq_id}" for seq_id in range(101)]
    assert [name for name in platform.operations.carried_out if name in names] == names


def test_a_large_batch_is_split_and_its_output_joined(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    data = [datum(index % 90) for index in range(2500)]
    output = training.forward_backward(data, "cross_entropy").result(30)
    training.optim_step(ADAM).result(10)
    requests = [platform.operations.requests[f"{training.model_id}:{seq_id}"] for seq_id in (1, 2, 3)]
    assert [len(request.data) for request in requests] == [1024, 1024, 452]  # type: ignore[attr-defined]
    assert carried_out(platform, training)[1:] == ["ForwardBackward"] * 3 + ["OptimStep"]
    expected = np.array([-(index % 90 + 1) / 10 for index in range(2500)], np.float32)
    logprobs = np.concatenate([item["logprobs"].to_numpy() for item in output.loss_fn_outputs])
    np.testing.assert_allclose(logprobs, expected, rtol=1e-6)
    assert output.metrics["loss:sum"] == pytest.approx(-expected.sum(), rel=1e-5)
    assert output.metrics["data:mean"] == pytest.approx((1024**2 * 2 + 452**2) / 2500)


def test_a_datum_over_the_limit_goes_alone(platform: LoopbackPlatform, service: tinker.ServiceClient) -> None:
    training = service.create_lora_training_client(MODEL)
    small, large = datum(), datum(extra_bytes=4_100_000)
    training.forward([small, large, small, small], "cross_entropy").result(30)
    requests = [platform.operations.requests[f"{training.model_id}:{seq_id}"] for seq_id in (1, 2, 3)]
    assert [len(request.data) for request in requests] == [1, 1, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("refuse_late_s", [0.0, 0.1])
def test_a_refused_operation_takes_its_place_and_the_next_goes_on(
    platform: LoopbackPlatform, training: tinker.TrainingClient, refuse_late_s: float
) -> None:
    platform.refuse_late_s = refuse_late_s  # late: its record comes before the refusal itself
    bad = training.forward_backward([datum(), datum(100)], "cross_entropy")
    good = training.optim_step(ADAM)
    with pytest.raises(tinker.BadRequestError, match="allowed are 0 to 99") as caught:
        bad.result(10)
    assert caught.value.code == "INVALID_ARGUMENT"
    [violation] = caught.value.field_violations
    assert violation.field == 'data[1].loss_fn_inputs["target_tokens"]'
    assert good.result(10)


def test_a_refusal_in_a_later_part_of_a_batch_names_the_datum_of_the_whole(training: tinker.TrainingClient) -> None:
    data = [datum() for _ in range(1030)]
    data[1026] = datum(100)
    with pytest.raises(tinker.BadRequestError) as caught:
        training.forward(data, "cross_entropy").result(10)
    assert caught.value.field_violations[0].field.startswith("data[1026].")
    assert caught.value.message.startswith("data[1026].")


def test_an_operation_that_fails_later_carries_why_and_the_next_goes_on(training: tinker.TrainingClient) -> None:
    failed = training.load_state("tinker://r/weights/missing")
    good = training.optim_step(ADAM)
    with pytest.raises(tinker.RequestFailedError, match="there is no checkpoint") as caught:
        failed.result(10)
    assert (caught.value.category, caught.value.code, caught.value.reason) == (
        "user",
        "NOT_FOUND",
        "CHECKPOINT_NOT_FOUND",
    )
    assert caught.value.request_id == f"{training.model_id}:1"
    assert good.result(10)


def test_a_refusal_that_the_platform_has_recorded_does_not_stop_the_run(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    error = NotFoundError("there is no checkpoint x", reason="CHECKPOINT_NOT_FOUND")
    platform.call(lambda: platform.operations.refuse(training.model_id, 1, "LoadState", None, error))  # type: ignore[arg-type]
    platform.refuse_before["LoadState"].append(error)
    with pytest.raises(tinker.NotFoundError, match="there is no checkpoint x"):
        training.load_state("tinker://r/weights/x").result(10)
    assert training.optim_step(ADAM).result(10)


def test_operations_after_one_that_never_arrives_fail_and_say_why(
    platform: LoopbackPlatform,
) -> None:
    with tinker.ServiceClient(base_url=platform.url, api_key=KEY, patience=timedelta(seconds=0.5)) as service:
        training = service.create_lora_training_client(MODEL)
        before = training.optim_step(ADAM)
        before.result(10)
        platform.refuse_before["ForwardBackward"].extend([grpc.StatusCode.UNAVAILABLE] * 50)
        lost = training.forward_backward([datum()], "cross_entropy")
        after = [training.optim_step(ADAM) for _ in range(3)]
        with pytest.raises(tinker.APIConnectionError, match="has not answered"):
            lost.result(20)
        for future in after:
            with pytest.raises(tinker.RequestFailedError, match=r"operation 2 of training run .* never reached") as why:
                future.result(10)
            assert why.value.reason == "EARLIER_OPERATION_LOST"
        with pytest.raises(tinker.RequestFailedError, match="continue from a checkpoint"):
            training.optim_step(ADAM).result(10)
        assert service.create_lora_training_client(MODEL).optim_step(ADAM).result(10)


def test_arguments_that_cannot_be_sent_take_no_place(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    with pytest.raises(ValueError, match="data: must be at least one Datum"):
        training.forward([], "cross_entropy")
    with pytest.raises(ValueError, match="loss_fn_config"):
        training.forward([datum()], "cross_entropy", {"beta": "high"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="adam_params"):
        training.optim_step(types.AdamParams(learning_rate="small"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name"):
        training.save_state(7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ttl_seconds"):
        training.save_state("a", 1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="user_metadata"):
        training.save_weights_for_sampler("a", None, {"k": 1})  # type: ignore[dict-item]
    training.optim_step(ADAM).result(10)
    assert platform.operations.carried_out[-1] == f"{training.model_id}:1"


def test_runs_and_sampling_sessions_are_counted_by_the_session(
    platform: LoopbackPlatform, service: tinker.ServiceClient
) -> None:
    first, second = (service.create_lora_training_client(MODEL, user_metadata={"n": "1"}) for _ in range(2))
    assert [first.model_id, second.model_id] == ["s1:train:0", "s1:train:1"]
    sampler = service.create_sampling_client(base_model=MODEL)
    for _ in range(3):
        sampler.compute_logprobs(types.ModelInput.from_ints([1])).result(10)
    assert platform.operations.carried_out[-3:] == ["s1:sample:0:0", "s1:sample:0:1", "s1:sample:0:2"]


def test_creation_that_fails_raises_and_the_next_creation_works(service: tinker.ServiceClient) -> None:
    with pytest.raises(tinker.RequestFailedError, match="there is no checkpoint"):
        service.create_training_client_from_state("tinker://r/weights/missing")
    assert service.create_training_client_from_state("tinker://r/weights/there").model_id == "s1:train:1"
    with pytest.raises(ValueError, match="model_path: must be given without base_model"):
        service.create_sampling_client()
    with pytest.raises(ValueError, match="model_path: must be given without base_model"):
        service.create_sampling_client("tinker://r/weights/a", MODEL)


def test_labels_and_lifetime_of_a_checkpoint_travel_with_its_save(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    training.save_state("a", ttl_seconds=3600, overwrite=True, user_metadata={"k": "v"}).result()
    training.save_weights_for_sampler("b", ttl_seconds=7200, user_metadata={"k": "w"}).result()
    training.save_state("c").result()
    first, second, third = (_request(platform, training, n) for n in (1, 2, 3))
    assert (first.ttl_seconds, first.overwrite, dict(first.user_metadata)) == (3600, True, {"k": "v"})
    assert (second.ttl_seconds, dict(second.user_metadata)) == (7200, {"k": "w"})
    assert not third.HasField("ttl_seconds")


def _request(platform: LoopbackPlatform, training: tinker.TrainingClient, seq_id: int) -> Any:
    return platform.operations.requests[f"{training.model_id}:{seq_id}"]
