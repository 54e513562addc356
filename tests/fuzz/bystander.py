"""Another tenant's loop: pipelined training and sampling whose every number follows from its round."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import tinker_client as tinker
from testing.platform import BASE_MODEL
from tinker_client import types

PATIENCE_S = 120.0
ADAM = types.AdamParams(learning_rate=1e-2)


@dataclass
class Bystander:
    """Rounds until it is told to end, or as many as another has made."""

    url: str
    key: str
    rounds: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    names: list[str] = field(default_factory=list)
    """Of what it has, for those who want to harm it."""

    numbers: list[tuple[list[float], list[int]]] = field(default_factory=list)
    failure: BaseException | None = None

    def run(self) -> None:
        """All rounds."""
        try:
            with tinker.ServiceClient(base_url=self.url, api_key=self.key) as service:
                training = service.create_lora_training_client(BASE_MODEL, rank=4, seed=7)
                sampling = training.save_weights_and_get_sampling_client("first")
                assert sampling.model_path is not None
                run = training.model_id
                self.names += [run, run.partition(":")[0], f"{run}:3", sampling.model_path]
                while len(self.numbers) != self.rounds and not self.ended.is_set():
                    self.numbers.append(_round(training, sampling, len(self.numbers)))
                    self.begun.set()
        except BaseException as error:
            self.failure = error
        self.begun.set()


def _round(
    training: tinker.TrainingClient, sampling: tinker.SamplingClient, number: int
) -> tuple[list[float], list[int]]:
    tokens = [5, 6, 7, 8, 9, 10 + number % 50]
    datum = types.Datum(types.ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})
    pairs = [(training.forward_backward([datum], "cross_entropy"), training.optim_step(ADAM)) for _ in range(3)]
    params = types.SamplingParams(max_tokens=8, seed=number, stop=[])
    sample = sampling.sample(types.ModelInput.from_ints(tokens), 1, params)
    losses = [forward_backward.result(PATIENCE_S).metrics["loss:sum"] for forward_backward, _ in pairs]
    for _, optim_step in pairs:
        optim_step.result(PATIENCE_S)
    return losses, list(sample.result(PATIENCE_S).sequences[0].tokens)
