"""What tenants do all day: short sessions that train, save, sample, stream, change their mind, err, and clean up.

What they save is overwritten or deleted, as by loops that must not fill a disk.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import tinker_client as tinker
from testing.tiny_models import VOCAB_SIZE
from tests.chaos.site import BASE_MODEL
from tinker_client import types

ROUNDS = 3
"""In a session."""

PATIENCE_S = 120.0
ADAM = types.AdamParams(learning_rate=1e-3)
CONTEXT = 128
"""Tokens that the base model takes."""


@dataclass
class Program:
    """One tenant's sessions, one after the other."""

    tenant: str
    url: str
    http_url: str
    key: str
    shared_path: str
    """A checkpoint that somebody has published for all."""

    directory: Path
    """For what is downloaded."""

    rest_s: float
    """Between two rounds."""

    ended: threading.Event = field(default_factory=threading.Event)
    sessions: int = 0
    rounds: int = 0
    failure: BaseException | None = None

    def run(self) -> None:
        """Goes on until it is told to end."""
        try:
            while not self.ended.is_set():
                with tinker.ServiceClient(base_url=self.url, api_key=self.key) as service:
                    self._session(service)
                self.sessions += 1
        except BaseException as error:
            self.failure = error

    def _session(self, service: tinker.ServiceClient) -> None:
        random = np.random.default_rng(self.sessions)
        rest = service.create_rest_client()
        training = service.create_lora_training_client(BASE_MODEL, rank=2 + 3 * (self.sessions % 3))
        shared = service.create_sampling_client(self.shared_path)
        _large(training, random)
        for _ in range(ROUNDS):
            _train(training, random)
            state = training.save_state("state", overwrite=True).result(PATIENCE_S).path
            sampling = training.save_weights_and_get_sampling_client(f"round-{self.rounds}")
            _sample(sampling, random)
            _sample(shared, random)
            _refused(service, training, sampling)
            training.load_state_with_optimizer(state).result(PATIENCE_S)
            assert sampling.model_path is not None
            self._complete_over_http(sampling.model_path)
            rest.delete_checkpoint_from_tinker_path(sampling.model_path).result(PATIENCE_S)
            self.rounds += 1
            if self.ended.wait(self.rest_s):
                break
        if self.sessions % 5 == 0:
            self._transfer(service, training, state)
        rest.delete_checkpoint_from_tinker_path(state).result(PATIENCE_S)

    def _complete_over_http(self, model: str) -> None:
        wanted: dict[str, Any] = {"model": model, "prompt": "w5 w6 w7", "max_tokens": 4}
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.http_url, headers=headers, timeout=PATIENCE_S) as http:
            assert http.post("/v1/completions", json=wanted).status_code == httpx.codes.OK
            assert http.post("/v1/completions", json=wanted | {"n": -1}).status_code == httpx.codes.BAD_REQUEST
            assert http.post("/v1/nothing", json={}).status_code == httpx.codes.NOT_FOUND
            assert http.get("/metrics").status_code == httpx.codes.OK

    def _transfer(self, service: tinker.ServiceClient, training: tinker.TrainingClient, state: str) -> None:
        """Adapters out and in again, and a whole model out."""
        rest = service.create_rest_client()
        lamp = training.save_weights_for_sampler("lamp").result(PATIENCE_S).path
        rest.download_checkpoint(lamp, self.directory / "adapter").result(PATIENCE_S)
        imported = service.import_checkpoint(self.directory / "adapter", BASE_MODEL, "imported", ttl_seconds=3600)
        resumed = service.create_training_client_from_state(imported.path)
        _train(resumed, np.random.default_rng(1))
        service.create_sampling_client(lamp).merge_weights(self.directory / "model").result(PATIENCE_S)
        for path in (lamp, imported.path):
            rest.delete_checkpoint_from_tinker_path(path).result(PATIENCE_S)
        training.save_state("kept-for-an-hour", ttl_seconds=3600).result(PATIENCE_S)
        shutil.rmtree(self.directory)


def _train(training: tinker.TrainingClient, random: np.random.Generator) -> None:
    submitted: list[tinker.APIFuture[Any]] = []
    for _ in range(4):
        submitted += [training.forward_backward(_data(random, 3, 12), "cross_entropy"), training.optim_step(ADAM)]
    for future in submitted:
        future.result(PATIENCE_S)


def _large(training: tinker.TrainingClient, random: np.random.Generator) -> None:
    """A job and a result that are too large for Redis."""
    training.forward(_data(random, 140, CONTEXT - 1), "cross_entropy").result(PATIENCE_S)


def _sample(sampling: tinker.SamplingClient, random: np.random.Generator) -> None:
    """Answers that are awaited, a stream that is read, and some that nobody wants any more."""
    prompt = types.ModelInput.from_ints(random.integers(3, VOCAB_SIZE, 9).tolist())
    brief, endless = types.SamplingParams(max_tokens=8, stop=[]), types.SamplingParams(max_tokens=100, stop=[])
    unwanted = sampling.sample(prompt, 4, endless)
    wanted: list[tinker.APIFuture[Any]] = [sampling.sample(prompt, 2, brief), sampling.compute_logprobs(prompt)]
    unwanted.cancel()
    with sampling.sample_stream(prompt, 2, brief) as stream:
        assert len(list(stream)) == 16
    with sampling.sample_stream(prompt, 1, endless) as stream:
        next(stream)
    for future in wanted:
        future.result(PATIENCE_S)
    unwanted.exception(PATIENCE_S)


def _refused(service: tinker.ServiceClient, training: tinker.TrainingClient, sampling: tinker.SamplingClient) -> None:
    """Requests that are wrong, each in another place."""
    datum = types.Datum(types.ModelInput.from_ints([VOCAB_SIZE]), {"target_tokens": [5]})
    params = types.SamplingParams(max_tokens=10 * CONTEXT)
    wrong: list[Callable[[], Any]] = [
        lambda: training.forward_backward([datum], "cross_entropy").result(PATIENCE_S),
        lambda: sampling.sample(types.ModelInput.from_ints([5]), 1, params).result(PATIENCE_S),
        lambda: training.load_state(f"tinker://{training.model_id}/weights/none").result(PATIENCE_S),
        lambda: service.create_sampling_client(f"tinker://{training.model_id}/sampler_weights/none"),
    ]
    for call in wrong:
        try:
            call()
        except tinker.TinkerError:
            continue
        raise AssertionError("a wrong request was carried out")


def _data(random: np.random.Generator, size: int, length: int) -> list[types.Datum]:
    return [
        types.Datum(
            types.ModelInput.from_ints(random.integers(3, VOCAB_SIZE, length).tolist()),
            {"target_tokens": random.integers(3, VOCAB_SIZE, length)},
        )
        for _ in range(size)
    ]
