"""What tenants do: loops over training and sampling whose every step follows from a seed, as researchers write them.

A program runs rounds until it is told to end, or as many as another time, and notes everything that the platform
answers. Two runs of the same rounds must note the same, to the last bit.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tinker_client as tinker
from testing.tiny_models import VOCAB_SIZE
from tests.chaos.site import BASE_MODEL
from tinker_client import types

LOSSES = ("cross_entropy", "importance_sampling", "ppo", "dro")
PATIENCE_S = 300.0


@dataclass
class Program:
    """One tenant's loop."""

    tenant: str
    url: str
    key: str
    seed: int
    rounds_wanted: int | None = None
    """None: until `ended` is set."""

    ended: threading.Event = field(default_factory=threading.Event)
    notes: list[Any] = field(default_factory=list)
    rounds: int = 0
    runs: list[str] = field(default_factory=list)
    failure: BaseException | None = None

    def run(self) -> None:
        """Runs all rounds, then saves."""
        try:
            with tinker.ServiceClient(base_url=self.url, api_key=self.key) as service:
                training = service.create_lora_training_client(BASE_MODEL, rank=2 + 3 * (self.seed % 3), seed=self.seed)
                self.runs.append(training.model_id)
                while self._goes_on():
                    training = self._round(service, training)
                    self.rounds += 1
                training.save_state("final").result(PATIENCE_S)
        except BaseException as error:
            self.failure = error

    def _goes_on(self) -> bool:
        if self.rounds_wanted is None:
            return not self.ended.is_set()
        return self.rounds < self.rounds_wanted

    def _round(self, service: tinker.ServiceClient, training: tinker.TrainingClient) -> tinker.TrainingClient:
        random = np.random.default_rng([self.seed, self.rounds])
        submitted = []
        for _ in range(3):
            for loss in random.choice(LOSSES, size=2):
                data = _data(random, str(loss))
                submitted.append(training.forward_backward(data, str(loss)))
            submitted.append(training.optim_step(types.AdamParams(learning_rate=1e-2, weight_decay=0.01)))
        submitted.append(training.forward(_data(random, "cross_entropy"), "cross_entropy"))
        saved = training.save_state(f"round-{self.rounds}")
        sampling = training.save_weights_and_get_sampling_client(f"round-{self.rounds}")
        prompt = types.ModelInput.from_ints(random.integers(3, VOCAB_SIZE, 9).tolist())
        params = types.SamplingParams(max_tokens=12, seed=int(random.integers(1 << 40)), temperature=0.9, stop=[])
        samples = [sampling.sample(prompt, 2, params), sampling.sample(prompt, 1, params)]
        scores = sampling.compute_logprobs(prompt)
        for future in submitted:
            self._note(future.result(PATIENCE_S))
        for sample in samples:
            self.notes.append([(s.tokens, s.logprobs) for s in sample.result(PATIENCE_S).sequences])
        self.notes.append(scores.result(PATIENCE_S))
        path = saved.result(PATIENCE_S).path
        if self.rounds % 4 == 2:
            training.load_state_with_optimizer(path).result(PATIENCE_S)
        if self.rounds % 4 == 3:
            training = service.create_training_client_from_state_with_optimizer(path)
            self.runs.append(training.model_id)
        return training

    def _note(self, result: Any) -> None:
        self.notes.append(dict(result.metrics))
        for output in getattr(result, "loss_fn_outputs", []):
            self.notes.append(output["logprobs"].to_numpy().tobytes())


def _data(random: np.random.Generator, loss: str) -> list[types.Datum]:
    data = []
    for length in random.integers(2, 12, size=int(random.integers(1, 4))):
        inputs: dict[str, Any] = {"target_tokens": random.integers(3, VOCAB_SIZE, length)}
        if loss == "cross_entropy":
            inputs["weights"] = random.normal(size=length).astype(np.float32)
        else:
            inputs["logprobs"] = -random.uniform(3, 6, size=length).astype(np.float32)
            inputs["advantages"] = random.normal(size=length).astype(np.float32)
        tokens = random.integers(3, VOCAB_SIZE, length).tolist()
        data.append(types.Datum(types.ModelInput.from_ints(tokens), inputs))
    return data
