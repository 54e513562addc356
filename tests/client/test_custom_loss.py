"""A custom loss: the derivative of the user's function, carried out as a weighted cross-entropy."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import tinker_client as tinker
from services.core.errors import ResourceExhaustedError
from testing.waiting import wait_until
from tests.client.loopback import LoopbackPlatform
from tinker_client import types
from tinker_proto.tensor import to_array

ADAM = types.AdamParams()


def datum(*tokens: int) -> types.Datum:
    extra = np.arange(len(tokens), dtype=np.float32)
    return types.Datum(types.ModelInput.from_ints(tokens), {"target_tokens": list(tokens), "mine": extra})


def sent_weights(platform: LoopbackPlatform, training: tinker.TrainingClient, seq_id: int) -> list[list[float]]:
    request = platform.operations.requests[f"{training.model_id}:{seq_id}"]
    return [to_array(item.loss_fn_inputs["weights"]).tolist() for item in request.data]  # type: ignore[attr-defined]


def test_the_weights_are_minus_the_derivative_of_a_loss_over_all_data(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    """C = (sum p_a)^2 - 3 sum(mine_b * p_b), so dC/dp_a = 2 sum p_a and dC/dp_b = -3 mine_b."""
    data = [datum(0, 1), datum(2, 3, 4)]
    seen: list[object] = []

    def loss_fn(given: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, object]]:
        seen.extend([given, threading.current_thread().name])
        a, b = logprobs
        assert all(item.is_leaf and item.requires_grad and item.dtype == torch.float32 for item in logprobs)
        mine = given[1].loss_fn_inputs["mine"].to_torch()
        return a.sum() ** 2 - 3 * (mine * b).sum(), {"a_sum": a.sum().detach(), "count": 2}

    output = training.forward_backward_custom(data, loss_fn).result(20)
    p_a, p_b = np.array([-0.1, -0.2]), np.array([-0.3, -0.4, -0.5])
    loss = p_a.sum() ** 2 - 3 * (np.arange(3) * p_b).sum()
    weights = sent_weights(platform, training, 2)
    np.testing.assert_allclose(weights[0], [-2 * p_a.sum()] * 2, rtol=1e-6)
    np.testing.assert_allclose(weights[1], 3 * np.arange(3), rtol=1e-6)
    assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-6)
    assert output.metrics["a_sum"] == pytest.approx(-0.3)
    assert output.metrics["count"] == 2.0
    assert output.metrics["data:mean"] == 2.0  # the platform's own
    np.testing.assert_allclose(output.loss_fn_outputs[1]["logprobs"].to_numpy(), p_b, rtol=1e-6)
    assert seen[0] == data
    assert seen[1] not in ("tinker-client", threading.current_thread().name)
    methods = [platform.operations.records[f"{training.model_id}:{n}"].method for n in (1, 2)]
    assert methods == ["Forward", "ForwardBackward"]


def test_cross_entropy_written_by_hand_sends_its_own_weights(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    soft = types.Datum(types.ModelInput.from_ints([1, 2]), {"target_tokens": [[1, 2], [3, 4]]})
    weights = torch.tensor([[0.25, 0.75], [1.0, -1.0]])
    training.forward_backward_custom([soft], lambda data, logprobs: (-(weights * logprobs[0]).sum(), {})).result(20)
    assert sent_weights(platform, training, 2) == [weights.tolist()]


def test_a_datum_that_the_loss_does_not_look_at_gets_no_weight(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    data = [datum(1), datum(2)]
    training.forward_backward_custom(data, lambda data, logprobs: (logprobs[0].sum(), {})).result(20)
    assert sent_weights(platform, training, 2) == [[-1.0], [0.0]]


def test_later_operations_keep_their_place_behind_both_passes(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def loss_fn(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        begun.set()
        assert go_on.wait(20)
        return logprobs[0].sum(), {}

    custom = training.forward_backward_custom([datum(1)], loss_fn)
    full = ResourceExhaustedError("too much is parked", reason="QUEUE_FULL", retry_after_s=0.1)
    platform.refuse_before["OptimStep"].extend([full] * 100_000)
    later = [training.optim_step(ADAM) for _ in range(100)]  # they fill the run's window, and keep it full
    assert begun.wait(20)
    wait_until(lambda: platform.calls["OptimStep"] >= 63)
    go_on.set()
    assert custom.result(20)
    assert not any(future.done() for future in later)
    platform.refuse_before.clear()
    for future in later:
        assert future.result(20)
    names = platform.operations.carried_out
    assert [platform.operations.records[name].method for name in names[1:4]] == [
        "Forward",
        "ForwardBackward",
        "OptimStep",
    ]


def test_large_batches_are_one_loss_over_all_data(platform: LoopbackPlatform, training: tinker.TrainingClient) -> None:
    data = [datum(index % 50) for index in range(1500)]
    sizes: list[int] = []

    def loss_fn(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        sizes.append(len(logprobs))
        return torch.cat(logprobs).mean(), {}

    output = training.forward_backward_custom(data, loss_fn).result(30)
    assert sizes == [1500]
    assert len(output.loss_fn_outputs) == 1500
    methods = [platform.operations.records[f"{training.model_id}:{n}"].method for n in range(1, 5)]
    assert methods == ["Forward", "Forward", "ForwardBackward", "ForwardBackward"]
    assert sent_weights(platform, training, 4)[0] == [pytest.approx(-1 / 1500)]


@pytest.mark.parametrize(
    ("loss_fn", "error", "sentence"),
    [
        (lambda data, logprobs: 1 / 0, ZeroDivisionError, "division"),
        (lambda data, logprobs: logprobs[0].sum(), TypeError, r"must return \(loss, metrics\)"),
        (lambda data, logprobs: (1.0, {}), TypeError, "torch tensor of one element"),
        (lambda data, logprobs: (logprobs[0], {}), TypeError, "torch tensor of one element"),
        (lambda data, logprobs: (logprobs[0].sum(), None), TypeError, "dict of numbers"),
        (lambda data, logprobs: (logprobs[0].sum(), {"a": "b"}), ValueError, "could not convert"),
        (lambda data, logprobs: (logprobs[0].sum().detach(), {}), ValueError, "does not depend on the logprobs"),
        (lambda data, logprobs: (logprobs[0].sum() * float("nan"), {}), ValueError, "returns is nan"),
        (
            lambda data, logprobs: ((logprobs[0] - logprobs[0]).sqrt().sum(), {}),
            ValueError,
            r"respect to logprobs\[0\]",
        ),
    ],
)
def test_a_loss_that_fails_raises_at_its_future_and_the_run_goes_on(
    platform: LoopbackPlatform, training: tinker.TrainingClient, loss_fn: object, error: type[Exception], sentence: str
) -> None:
    custom = training.forward_backward_custom([datum(1, 2)], loss_fn)  # type: ignore[arg-type]
    after = training.optim_step(ADAM)
    with pytest.raises(error, match=sentence):
        custom.result(20)
    assert after.result(20)
    assert platform.calls["ForwardBackward"] == 0  # no gradient came of it


def test_data_that_is_refused_raises_and_the_run_goes_on(training: tinker.TrainingClient) -> None:
    custom = training.forward_backward_custom([datum(1), datum(100)], lambda data, logprobs: (logprobs[0].sum(), {}))
    after = training.optim_step(ADAM)
    with pytest.raises(tinker.BadRequestError, match=r"data\[1\]"):
        custom.result(20)
    assert after.result(20)


def test_targets_are_needed(training: tinker.TrainingClient) -> None:
    without = types.Datum(types.ModelInput.from_ints([1]), {})
    with pytest.raises(ValueError, match=r'data\[0\].loss_fn_inputs\["target_tokens"\]: must be given'):
        training.forward_backward_custom([without], lambda data, logprobs: (logprobs[0].sum(), {}))


def test_cancelling_between_the_passes_leaves_out_the_second(
    platform: LoopbackPlatform, training: tinker.TrainingClient
) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def loss_fn(data: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        begun.set()
        assert go_on.wait(20)
        return logprobs[0].sum(), {}

    custom = training.forward_backward_custom([datum(1)], loss_fn)
    after = training.optim_step(ADAM)
    assert begun.wait(20)
    assert custom.cancel()
    go_on.set()
    with pytest.raises(tinker.RequestFailedError, match="before its backward pass") as caught:
        custom.result(20)
    assert caught.value.code == "CANCELLED"
    assert after.result(20)
    assert platform.calls["ForwardBackward"] == 0
