"""T7: wall-clock time of the whole platform against a plain PEFT loop, and what it adds to a small call."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from latency import BASE_MODEL, KEY, BareEngine, datum, p50_ms, platform
from naive_peft import NaivePeft
from trainer_load import CONFIG, example
from trainer_table import Targets

import tinker_client as tinker
from tinker_client import types


def whole_platform(targets: Targets, source: Path, scratch: Path, rounds: int, repeats: int) -> None:
    """T7: wall-clock time of client, gateway, queue and trainer against a plain PEFT loop, and what they add."""
    examples = [example(256, index) for index in range(8)]
    naive = NaivePeft(source, CONFIG, 1)
    tokens, wanted = [e.tokens.tolist() for e in examples], [e.targets[:, 0].tolist() for e in examples]
    data = [
        types.Datum(types.ModelInput.from_ints(own), {"target_tokens": following})
        for own, following in zip(tokens, wanted, strict=True)
    ]
    adam = types.AdamParams(learning_rate=1e-4)

    def wall(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def loop() -> None:
        naive.forward_backward(0, tokens, wanted)
        naive.optim_step(0)

    bare = BareEngine(source, scratch / "bare")
    with (
        platform(source, scratch / "data") as address,
        tinker.ServiceClient(base_url=f"grpc://{address}", api_key=KEY) as client,
    ):
        run = client.create_lora_training_client(BASE_MODEL, rank=8, seed=0)

        def through() -> None:
            forward_backward, step = run.forward_backward(data, "cross_entropy"), run.optim_step(adam)
            forward_backward.result()
            step.result()

        through()
        loop()
        speed = [wall(loop) / wall(through) for _ in range(repeats)]
        targets.report("T7", "whole platform against a raw PEFT loop, 8 x 256 tokens", 0.9, speed)
        added = [
            p50_ms(lambda: run.forward_backward([datum()], "cross_entropy").result(), rounds)
            - p50_ms(bare.forward_backward, rounds)
            for _ in range(3)
        ]
        targets.report("T7", "added to one small forward_backward, ms (p50)", 10, added, at_most=True)
