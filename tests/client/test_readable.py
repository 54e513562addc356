"""What a person sees of values, clients and waits."""

from __future__ import annotations

import io
from concurrent.futures import Future

import numpy as np
import pytest

import tinker_client as tinker
from tests.client.loopback import LoopbackPlatform
from tests.client.toy_operations import MODEL
from tinker_client import types
from tinker_client._waiting import wait_for


class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self) -> bool:
        return True


def done(value: str) -> Future[str]:
    future: Future[str] = Future()
    future.set_result(value)
    return future


def test_values_show_their_fields_and_shorten_long_ones() -> None:
    short = types.ModelInput.from_ints([1, 2, 3])
    assert repr(short) == "ModelInput(chunks=[EncodedTextChunk(tokens=[1, 2, 3])])"
    datum = types.Datum(types.ModelInput.from_ints(list(range(2000))), {"weights": np.ones(2000, np.float32)})
    assert "tokens=[0, 1, 2, 3, 4, 5, 6, 7, … 2,000 in all]" in repr(datum)
    assert len(repr(datum)) < 300
    assert repr(types.TensorData.from_numpy(np.float32([[1, 2], [3, 4.5]]))) == (
        "TensorData([[1. , 2. ], [3. , 4.5]], dtype='float32', shape=[2, 2])"
    )
    assert repr(types.ImageChunk(b"123", "png")) == "ImageChunk(format='png', expected_tokens=None)"
    response = types.SampleResponse([types.SampledSequence([7] * 500, [-0.5] * 500, "length")] * 300)
    assert "… 300 in all" in repr(response)
    assert len(repr(response)) < 3000


def test_clients_and_futures_say_what_they_are(platform: LoopbackPlatform) -> None:
    service = tinker.ServiceClient(base_url=platform.url, api_key="tml-loopback")
    assert repr(service) == f"<ServiceClient of {platform.url}>"
    training = service.create_lora_training_client(MODEL, rank=2)
    assert repr(training) == f"<TrainingClient {training.model_id} on {MODEL}>"
    saved = training.save_state("here")
    saved.result()
    assert repr(saved) == f"<APIFuture {training.model_id}:1: done>"


def test_a_wait_at_a_terminal_says_what_it_waits_for() -> None:
    terminal, waiting = Terminal(), Future[str]()
    asked: list[int] = []

    def state() -> Future[str]:
        asked.append(1)
        if len(asked) == 3:
            waiting.set_result("a result")
        return done("ForwardBackward, which has 3 operations before it, about 12 s")

    assert wait_for(waiting, state=state, terminal=terminal, quiet_s=0.001) == "a result"
    assert "waiting for ForwardBackward, which has 3 operations before it" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[K"), "nothing stays of it"


def test_a_wait_shows_nothing_where_nobody_looks_or_nothing_lasts() -> None:
    quiet = io.StringIO()
    with pytest.raises(TimeoutError):
        wait_for(Future[str](), 0.01, terminal=quiet, quiet_s=0.001)
    terminal = Terminal()
    assert wait_for(done("at once"), terminal=terminal) == "at once"
    assert quiet.getvalue() == terminal.getvalue() == ""


def test_a_wait_at_a_terminal_keeps_its_timeout_and_the_errors() -> None:
    failed, terminal = Future[str](), Terminal()
    failed.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        wait_for(failed, terminal=terminal)
    with pytest.raises(TimeoutError):
        wait_for(Future[str](), 0.01, lambda: failed, terminal=terminal, quiet_s=0.001)
